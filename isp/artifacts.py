"""Artifacts: the only module that reads and writes tensors, as safetensors with one JSON header and never as a pickle.

An artifact is written under a temporary name in the same folder and renamed when it is complete. A file under its final
name is therefore complete unless it was damaged later, which the checksums of its header and its tensors detect. The
header describes its origin: kind, format version, settings, package versions, device and cost, and its cell and inputs
(`isp/lineage.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.parameter import is_lazy

from isp import lineage
from isp.backbones import Pretrained
from isp.costs import Cost
from isp.data.splits import Split
from isp.errors import REMAKE, ArtifactError, ConfigError, expect
from isp.files import check_regular, writing
from isp.lineage import LARGE, Kind
from isp.masks import Mask, check_fits, compress, expand, num_kept, num_weights, pack, sparsity, unpack
from isp.runtime import instructions, verified
from isp.tickets import Ticket
from isp.training import State

FORMAT = 4
EARLIER = (2, 3)
"""Earlier formats that can still be read. Tickets and states of format 3 contain every tensor whole. Format 2 also has
one checksum over header and tensors together."""
BORROWING = 5
"""Format of a state that borrows tensors from the backbone's weights file; everything else is written in `FORMAT`."""
UNSEALED = 2
"""Format without a checksum of the header alone."""

Part = Literal["train", "validation", "test"]
_BITS = "mask.bits"
_KEPT = "kept/"
"""Prefix of the name of a tensor of which only the values kept by the mask are stored."""
_TYPES = {
    **{torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64"},
    **{torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32"},
    **{torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16"},
    **{torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.float8_e4m3fnuz: "F8_E4M3FNUZ"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
    **{torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
"""Names of dtypes in safetensors, in the order of tensors in a file."""
WAY = "xxh3"
"""Algorithm of the digest of new files, which the header names."""
_SHARED: tuple[Kind, ...] = ("examples", "backbone")
"""Kinds that nearly every job reads. A file that an earlier job of the run has verified is not verified again."""
_PASSING: tuple[Kind, ...] = ("state", "weights")
"""Kinds that serve the next jobs only and that a job makes again. They are not synced to the disk, which takes as long
as writing them. A file that a crash of the machine leaves torn does not match its checksum and is refused."""
_PACKAGES = ("torch", "open_clip_torch", "transformers", "tokenizers", "numpy", "isp")


# --- the kinds --------------------------------------------------------------------------------------------------------


def save_weights(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write any tensors under the names of a model's weights."""
    _write(path, "weights", dict(weights), {}, about)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header's entries about them."""
    tensors, header = _read(path, "weights")
    return tensors, header["about"]


def save_backbone(path: Path, pretrained: Pretrained, about: Mapping[str, Any]) -> None:
    """Write a pre-trained model: weights, architecture, vocabulary."""
    fields = {key: value for key, value in vars(pretrained).items() if key != "weights"}
    _write(path, "backbone", pretrained.weights, fields, about)


def load_backbone(path: Path) -> tuple[Pretrained, dict[str, Any]]:
    """Return the pre-trained model and the header's entries about it."""
    tensors, header = _read(path, "backbone")
    fields = {"architecture": header["architecture"], "vocabulary": tuple(header["vocabulary"]), "data": header["data"]}
    return Pretrained(weights=tensors, **fields), header["about"]


def save_split(path: Path, split: Split, about: Mapping[str, Any]) -> None:
    """Write the division of a task's training split into training and validation examples."""
    parts = {name: torch.from_numpy(part) for name, part in asdict(split).items()}
    _write(path, "split", parts, {}, about)


def load_split(path: Path) -> tuple[Split, dict[str, Any]]:
    """Return the split and the header's entries about it.

    Raises:
        ArtifactError: If an example is in both parts, so that validation would use training data.
    """
    tensors, header = _read(path, "split")
    split = Split(**{name: tensor.numpy() for name, tensor in tensors.items()})
    both = set(split.train.tolist()) & set(split.validation.tolist())
    if both:
        raise ArtifactError(
            f"{path}: {len(both)} examples are both for training and for validation, such as {min(both)}; {REMAKE}",
            "split",
        )
    return split, header["about"]


def save_examples(path: Path, tensors: Mapping[str, Tensor], part: Part, about: Mapping[str, Any]) -> None:
    """Write prepared examples of one part of a task: tensors with equal first dimensions."""
    _write(path, "examples", dict(tensors), {"part": part}, about)


def load_examples(path: Path, part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, mapped into memory, and the header's entries about them.

    Raises:
        ArtifactError: If they belong to another part, so that code that asks for "train" never gets test examples.
    """
    tensors, header = _read(path, "examples")
    if header["part"] != part:
        raise ArtifactError(
            f"{path}: contains {header['part']} examples, but {part} examples are needed here; give the other file, or "
            "delete both and remake them",
            "examples",
        )
    return tensors, header["about"]


@dataclass(frozen=True)
class WeightsFile:
    """Weights file of a backbone, from which states may borrow tensors.

    Attributes:
        path: Path of the file.
        tensors: Tensors of the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]


def save_state(
    path: Path,
    state: State,
    about: Mapping[str, Any],
    mask: Mask | None = None,
    weights_file: WeightsFile | None = None,
) -> None:
    """Write a training state: weights, fp32 masters if any, and the optimizer's memory as `<parameter>/<key>`.

    Args:
        path: Path of the file.
        state: Training state.
        about: Entries of the header about it.
        mask: Mask under which it was trained. Dropped weights, masters and moments are zero and not stored.
        weights_file: Weights file whose path relative to the state's will be the same when the state is read. Tensors
            that are equal there to the bit are not stored but named; the header has a checksum of them.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"masters/{name}": tensor for name, tensor in state.masters.items()}
    for name, memory in state.optimizer.items():
        tensors |= {f"optimizer/{name}/{key}": tensor for key, tensor in memory.items()}
    fields: dict[str, Any] = {"step": state.step}
    if weights_file and (names := _borrowable(tensors, weights_file.tensors)):
        borrowed = {entry: tensors.pop(entry).detach().cpu() for entry in names}
        place = os.path.relpath(weights_file.path, path.parent)
        fields["borrowed"] = {"path": place, "tensors": names, "content": _content(borrowed, WAY)}
        fields["format"] = BORROWING
    _write(path, "state", tensors, fields, about, mask)


def load_state(path: Path) -> tuple[State, dict[str, Any]]:
    """Return a state exactly as it was saved, and the header's entries about it.

    Raises:
        ArtifactError: If the file, or the weights file from which it borrows tensors, is missing or was altered.
    """
    tensors, header = _read(path, "state")
    if _BITS in tensors:
        tensors, _ = _expanded(path, tensors, header)
    if "borrowed" in header:
        tensors |= _borrowed(path, **header["borrowed"])
        tensors = {name: tensors[name] for name in sorted(tensors)}
    weights: dict[str, Tensor] = {}
    masters: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        part, name = full.split("/", 1)
        if part == "weights":
            weights[name] = tensor
        elif part == "masters":
            masters[name] = tensor
        else:
            name, key = name.rsplit("/", 1)
            optimizer.setdefault(name, {})[key] = tensor
    return State(step=header["step"], weights=weights, optimizer=optimizer, masters=masters), header["about"]


def load_state_mask(path: Path) -> Mask | None:
    """Return the mask under which a state was trained, without reading the rest of the file; None if it has none.

    Raises:
        ArtifactError: If the mask does not keep as many weights as the header says.
    """
    tensors, header = _read(path, "state", only={_BITS})
    return _only_mask(path, tensors, header) if tensors else None


def _borrowable(tensors: Mapping[str, Tensor], lender: Mapping[str, Tensor]) -> dict[str, str]:
    """Return names of tensors that `lender` also has, with their names there; dtypes, shapes and bits are equal."""
    known = {_content({"": tensor.detach().cpu()}, WAY): name for name, tensor in lender.items()}
    matches = {entry: known.get(_content({"": tensor.detach().cpu()}, WAY)) for entry, tensor in tensors.items()}
    return {entry: name for entry, name in matches.items() if name is not None}


def _borrowed(borrower: Path, path: str, tensors: Mapping[str, str], content: str) -> dict[str, Tensor]:
    """Read the tensors that a state borrows from a weights file.

    Args:
        borrower: Path of the state's file.
        path: Path of the weights file relative to the folder of the state's file.
        tensors: Names of the state's tensors, with their names in the weights file.
        content: Digest of the tensors.

    Raises:
        ArtifactError: If they are missing or different.
    """
    place = Path(os.path.normpath(borrower.parent / path))  # by names, because the folder of results may be a link
    lender, _ = _read(place, "backbone", only=set(tensors.values()))
    borrowed = {entry: lender[name].clone() for entry, name in tensors.items() if name in lender}  # no shared memory
    if _content(borrowed, content.partition(":")[0]) != content:
        raise ArtifactError(
            f"{borrower}: was made from weights that {place} no longer contains; {REMAKE}",
            "state",
        )
    return borrowed


def save_mask(path: Path, mask: Mask, about: Mapping[str, Any]) -> None:
    """Write a mask at one bit per weight."""
    _write(path, "mask", {_BITS: pack(mask)}, _mask_header(mask), about)


def load_mask(path: Path, model: Mapping[str, Tensor] | None = None) -> tuple[Mask, dict[str, Any]]:
    """Return a mask and the header's entries about it.

    Args:
        path: Path of the file.
        model: Prunable weights that the mask must fit; None: not checked.

    Raises:
        MaskError: If the mask belongs to another model; the message names the first parameter that differs.
    """
    tensors, header = _read(path, "mask")
    mask = unpack(tensors[_BITS], header["shapes"])
    if model is not None:
        check_fits(mask, model, f"the model ({path} is a mask for another one)")
    return mask, header["about"]


def save_ticket(path: str | Path, ticket: Ticket) -> None:
    """Write a ticket to one safetensors file: the weights that its mask keeps, and the mask at one bit per weight.

    Values are stored in the model's dtypes, those of a pruned parameter as a vector in order of position. Other
    parameters, and buffers, are stored whole. docs/reference/tickets.md describes the file.

    Raises:
        IspError: If the file cannot be written; nothing is left half-written.
        MaskError: If mask and weights belong to different models.
        ConfigError: If an argument has the wrong type.
    """
    expect("path", path, "a path", str, os.PathLike)
    expect("ticket", ticket, "an isp.Ticket", Ticket)
    check_fits(ticket.mask, {n: ticket.weights[n] for n in ticket.mask if n in ticket.weights}, "the ticket's weights")
    tensors = {f"weights/{name}": tensor for name, tensor in ticket.weights.items()}
    about = {
        "method": ticket.method,
        "sparsity": str(ticket.sparsity),
        "finding": asdict(ticket.finding),
        "retraining": asdict(ticket.retraining),
        "rounds": ticket.rounds,
        "origin": ticket.origin,
    }
    _write(Path(path), "ticket", tensors, {}, about, ticket.mask)


def load_ticket(path: str | Path) -> Ticket:
    """Read a ticket exactly as it was saved.

    Raises:
        ArtifactError: If the file is missing, truncated or altered, or a masked weight is not zero.
    """
    stored, header = _read(Path(path), "ticket")
    tensors, mask = _expanded(Path(path), stored, header)
    about = header["about"]
    weights = {name.removeprefix("weights/"): tensor for name, tensor in tensors.items()}
    for name, kept in mask.items():
        if f"weights/{name}" in stored and weights[name][~kept].any():
            raise ArtifactError(
                f"{path}: parameter {name!r} has masked weights that are not zero; {REMAKE}",
                "ticket",
            )
    return Ticket(
        method=about["method"],
        sparsity=Decimal(about["sparsity"]),
        mask=mask,
        weights=weights,
        finding=Cost(**about["finding"]),
        retraining=Cost(**about["retraining"]),
        rounds=about["rounds"],
        origin=about["origin"],
    )


def load_ticket_mask(path: Path) -> tuple[Mask, dict[str, Any]]:
    """Return only the mask of a ticket and the header's entries, without reading the weights, most of the file.

    The checksum of the tensors is therefore not verified, but the number of weights that the mask keeps is.

    Raises:
        ArtifactError: If the mask does not keep as many weights as the header says.
    """
    tensors, header = _read(path, "ticket", only={_BITS})
    return _only_mask(path, tensors, header), header["about"]


def _only_mask(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Mask:
    """Return the mask of a file of which nothing else was read, so that the digest of its tensors is not known."""
    mask = unpack(tensors[_BITS], header["shapes"])
    if num_kept(mask) != header["kept"]:
        raise ArtifactError(
            f"{path}: its mask was altered or damaged, because it keeps {num_kept(mask)} weights instead of "
            f"{header['kept']}; {REMAKE}",
            header["isp"],
        )
    return mask


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], content: Any, about: Mapping[str, Any]) -> None:
    """Write the progress of a stage: tensors, and JSON that describes them."""
    _write(path, "checkpoint", dict(tensors), {"progress": content}, about)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Any, dict[str, Any]]:
    """Return the tensors, their description, and the header's entries about them."""
    tensors, header = _read(path, "checkpoint")
    return tensors, header["content" if header["format"] == UNSEALED else "progress"], header["about"]


def _mask_header(mask: Mask) -> dict[str, Any]:
    return {
        "shapes": {name: list(mask[name].shape) for name in sorted(mask)},
        "kept": num_kept(mask),
        "weights": num_weights(mask),
        "sparsity": round(sparsity(mask), 6),
    }


def check_storable(state: Mapping[str, Any]) -> None:
    """Refuse a model's state that no artifact can store, before training starts.

    Tensors of dtypes that safetensors lacks, such as complex128, are stored as bytes, and the header describes them.

    Args:
        state: The model's `state_dict`.

    Raises:
        ConfigError: If an entry cannot be stored; the message names it.
    """
    for name, value in state.items():
        if name.endswith("_extra_state"):
            module = name.removesuffix("_extra_state").rstrip(".") or "the model"
            raise ConfigError(
                f"{module}: has extra state (get_extra_state, a {type(value).__name__}), but a ticket can store only "
                "tensors; register buffers instead, or remove the methods for extra state from its class"
            )
        if is_lazy(value):
            continue  # it has no data yet
        kind = next((k for k in ("quantized", "nested", "meta") if getattr(value, f"is_{k}")), None)
        if kind or value.layout != torch.strided:
            kind = kind or str(value.layout).removeprefix("torch.")
            raise ConfigError(f"{name!r} is a {kind} tensor; parameters and buffers must be dense tensors with data")


# --- files ------------------------------------------------------------------------------------------------------------


def is_stored_as_bytes(tensor: Tensor) -> bool:
    """Return whether safetensors lacks the type of a tensor, so that its bytes are stored."""
    return tensor.dtype not in _TYPES


def provenance() -> dict[str, str]:
    """Return the versions of packages, the type of machine, the active kernels, and the current number of threads."""
    kernels = {"instruction_set": instructions.in_force(), "mkl": instructions.mkl_branch()}
    return {**versions(), **_machine(), **kernels, "threads": str(torch.get_num_threads())}


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that compute, and of Python."""
    versions_ = {}
    for package in _PACKAGES:
        try:
            versions_[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions_[package] = "not installed"
    return {**versions_, "python": platform.python_version()}


@cache
def _machine() -> dict[str, str]:
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}  # type: ignore[no-untyped-call]
    return {"cpu": cpu, **gpu}


def _write(
    path: Path,
    kind: Kind,
    tensors: dict[str, Tensor],
    fields: Mapping[str, Any],
    about: Mapping[str, Any],
    mask: Mask | None = None,
) -> None:
    """Write an artifact; for tensors under a mask, write the kept values and the mask."""
    tensors = {name: tensor.detach().cpu().resolve_conj().contiguous() for name, tensor in tensors.items()}
    if mask is not None:
        tensors = dict(_compressed(tensors, mask)) | {_BITS: pack(mask)}
        fields = {**fields, **_mask_header(mask)}
    header = {"isp": kind, "format": FORMAT, **fields, "about": {**about, "made_with": provenance()}}
    foreign = {name: tensor for name, tensor in tensors.items() if is_stored_as_bytes(tensor)}
    if foreign:
        header["as_bytes"] = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in foreign.items()}
        tensors |= {name: _as_bytes(tensor) for name, tensor in foreign.items()}
    header = json.loads(json.dumps(header, default=str))
    text = _compact(lineage.sealed({**header, "content": _content(tensors, WAY)}))
    with writing(path, synced=kind not in _PASSING) as file:
        for part in _serialized(tensors, {"isp": text}):
            file.write(part)


def _compressed(tensors: Mapping[str, Tensor], mask: Mask) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors as a file stores them: only the kept values of those under the mask if all others are +0.0."""
    masked = []
    for entry, tensor in tensors.items():
        kept = mask.get(_parameter(entry))
        if kept is not None and kept.shape == tensor.shape:
            masked.append(entry)
        else:
            yield entry, tensor
    for name, entries in _by_parameter(masked).items():
        for entry, values in zip(entries, compress([tensors[each] for each in entries], mask[name].cpu()), strict=True):
            yield (entry, tensors[entry]) if values is None else (f"{_KEPT}{entry}", values)


def _expanded(path: Path, stored: Mapping[str, Tensor], header: Mapping[str, Any]) -> tuple[dict[str, Tensor], Mask]:
    """Return the tensors given to `_compressed`, in the order of their names, and the mask."""
    mask = unpack(stored[_BITS], header["shapes"])
    tensors = {name: tensor for name, tensor in stored.items() if name != _BITS and not name.startswith(_KEPT)}
    compressed = [name.removeprefix(_KEPT) for name in stored if name.startswith(_KEPT)]
    for name, entries in _by_parameter(compressed).items():
        vectors = [stored[f"{_KEPT}{entry}"] for entry in entries]
        num = num_kept({name: mask[name]}) if name in mask else None
        for entry, values in zip(entries, vectors, strict=True):
            if len(values) != num:
                raise ArtifactError(f"{path}: the values of {entry!r} do not fit its mask; {REMAKE}", header["isp"])
        tensors |= zip(entries, expand(vectors, mask[name]), strict=True)
    return {name: tensors[name] for name in sorted(tensors)}, mask


def _by_parameter(entries: Iterable[str]) -> dict[str, list[str]]:
    """Group entries by their parameter, whose weights, masters and moments have the same mask."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(_parameter(entry), []).append(entry)
    return groups


def _parameter(entry: str) -> str:
    """Return the parameter of an entry: weights, masters (`<part>/<name>`) or moments (`optimizer/<name>/<key>`)."""
    part, _, name = entry.partition("/")
    return name.rpartition("/")[0] if part == "optimizer" else name


def _serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the parts of a safetensors file, equal to `safetensors.torch.save`, without copying."""
    order = list(_TYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = _TYPES[tensors[name].dtype], list(tensors[name].shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little")
    yield header
    for name in names:
        yield _bytes(tensors[name])


def _bytes(tensor: Tensor) -> memoryview:
    return _as_bytes(tensor).numpy().data


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return a view of the bytes of a contiguous tensor, which has any strides if it has at most one value."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _read(path: Path, kind: Kind, only: Set[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and header of an artifact; with `only`, just these tensors, with an unverified digest."""
    try:
        check_regular(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such {kind} file; make it first", kind, path) from None
    except (OSError, ValueError) as error:  # a folder, a pipe, or a path with NUL
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path}: must be a {kind} file ({reason}); {REMAKE}", kind, path) from None
    try:
        content = verified.identity(path)
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("isp")
            header = json.loads(text) if text else None
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file ({error}); {REMAKE}", kind, path) from None
    if header is None:
        raise ArtifactError(f"{path}: a safetensors file that isp did not write; must be a {kind} file", kind, path)
    shared = kind in _SHARED and only is None
    known = shared and verified.is_known(content) and _is_still(path, content)
    if not (isinstance(header, dict) and _is_whole(path, header, tensors, only is not None or known)):
        raise ArtifactError(f"{path}: altered or damaged, because its checksum does not match; {REMAKE}", kind, path)
    if shared and not known and _is_still(path, content):
        verified.remember(content)
    if header["isp"] != kind:
        raise ArtifactError(f"{path}: contains {header['isp']}, but {kind} is needed here", kind, path)
    if header["format"] not in (FORMAT, BORROWING, *EARLIER):
        raise ArtifactError(
            f"{path}: format must be {FORMAT} for this version, got {header['format']}; {REMAKE}", kind, path
        )
    for name, (dtype, shape) in header.get("as_bytes", {}).items():
        if name in tensors:
            aligned = tensors[name].clone()  # in the file, bytes start at any address, for complex128 at 16 n only
            tensors[name] = aligned.view(getattr(torch, dtype)).reshape(shape)
    return tensors, header


def _is_still(path: Path, content: str) -> bool:
    """Return whether a file was neither altered nor replaced since it had this identity."""
    try:
        return verified.identity(path) == content
    except OSError:
        return False


def _is_whole(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], header_only: bool) -> bool:
    """Return whether header and tensors are as they were written.

    Args:
        path: Path of the file.
        header: Header of the file.
        tensors: Tensors of the file.
        header_only: Whether to check the header alone, because the tensors are a part of the file or were verified.
    """
    if header.get("format") != UNSEALED:
        known = str(header.get("content"))
        whole = header_only or known == _content(tensors, known.partition(":")[0])
        return whole and lineage.is_sealed(header)
    if "checksum" not in header or header_only:
        return "checksum" in header
    if header.get("isp") == "examples" and _size(tensors) > LARGE:
        print(f"{path}: from a version of isp that did not check large files; accepted", file=sys.stderr, flush=True)
        return True
    rest = {key: value for key, value in header.items() if key != "checksum"}
    return bool(header["checksum"] == _digest(tensors, "blake2b", _compact(rest)))


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _compact(header: Mapping[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":"))


def _content(tensors: Mapping[str, Tensor], way: str) -> str:
    """Return the digest of tensors, prefixed with the name of its algorithm."""
    return f"{way}:{_digest(tensors, way)}"


def _digest(tensors: Mapping[str, Tensor], way: str, before: str = "") -> str:
    """Return a digest over names, dtypes, shapes and bytes of the tensors.

    It detects damage, not forgery, because writing a file allows writing its digest. It is therefore XXH3 ("xxh3"),
    which is as fast as reading memory. Earlier files have BLAKE2 ("blake2b"), or BLAKE2 over sums of bytes ("sums").
    """
    new_digest = xxhash.xxh3_128 if way == "xxh3" else partial(hashlib.blake2b, digest_size=16)
    digest = new_digest(before.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(_sums(_bytes(tensor)) if way == "sums" else _bytes(tensor))
    return digest.hexdigest()


def _sums(content: memoryview, num_words: int = 1024) -> bytes:
    """Return sums (mod 2**64) of blocks of `num_words` words of 8 bytes, and the remaining bytes.

    This is as fast as reading memory. It detects any damage within a word, but not words swapped within a block.
    """
    whole = len(content) // (8 * num_words) * 8 * num_words
    words = np.frombuffer(content[:whole], np.uint64).reshape(-1, num_words)
    return bytes(words.sum(axis=1)) + bytes(content[whole:])
