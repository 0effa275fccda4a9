"""Tickets as folders that other libraries load without this package, verified in a separate process."""

from __future__ import annotations

import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isp import artifacts, exported, lineage, read_ticket
from isp.errors import ConfigError, IspError, expect, reason
from isp.exported import PLAIN, READER, TICKET, Library
from isp.files import new_folder, write_bytes
from isp.masks import check_fits, num_kept, num_weights
from isp.model_card import Facts, model_card
from isp.tasks import ImageTask
from isp.tensors import (
    by_all_names,
    by_first_name,
    check_dtypes,
    check_module,
    copy_of,
    saved_names,
    tensors_of,
    unwrapped,
)
from isp.tickets import Ticket
from isp.training import load_weights
from isp.workflow_tickets import WorkflowTicket

CARD = "README.md"
TEXTS = (
    "A ticket keeps one weight in ten.",
    "It was found while the model was fine-tuned, and it answers like the dense one, or so we hope!",
    "",
    "What is longer than the model reads is cut: " + "a b c d e f g h " * 80,
)
"""Texts whose tokens and logits are compared."""
SHAPES = ((40, 57), (301, 260), (224, 225))
"""Sizes (height, width) of images whose pixels and logits are compared."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written and verified folder.

    Attributes:
        library: Library that loads it.
        zero_weights: Number of prunable weights that are zero, according to the mask and to the library.
        num_tensors: Number of tensors that equal the ticket's to the bit.
        num_inputs: Number of inputs whose logits equal those of the ticket's own model to the bit.
        sizes: Bytes of its files, by name.
    """

    library: Library
    zero_weights: int
    num_tensors: int
    num_inputs: int
    sizes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Content of an export.

    Attributes:
        ticket: Ticket with its weights under all names that the folder has.
        library: Library for which the folder is written.
        write: Function that writes configuration and classes, and also the weights if its second argument is True.
        facts: Entries of `Facts` that do not depend on how the folder is written.
        expected: Inputs and logits of the ticket's own model.
        columns: Texts or images from which the other library forms the same inputs.
        tensors: Inputs as tensors, if nothing forms them.
        attention: Attention implementation of a Hugging Face model; None: the library's default.
    """

    ticket: Ticket
    library: Library
    write: Callable[[Path, bool], None]
    facts: Mapping[str, Any]
    expected: Mapping[str, Tensor] = field(default_factory=dict)
    columns: list[list[Any]] = field(default_factory=list)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    attention: str | None = None


def export(
    ticket: Ticket | str | Path,
    model: nn.Module | None,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    compact: bool = False,
    weights: str | Path | None = None,
) -> Exported:
    """Write a ticket as a folder that other libraries load without this package.

    A ticket of the workflow becomes a model of transformers (BERT: weights, labels, tokenizer) or of open_clip (CLIP:
    both towers, preprocessing, zero-shot head, names of the classes), and a ticket of a Hugging Face model a model of
    transformers. That of any other module becomes plain weights in `model.safetensors`. The folder also has a model
    card.

    The library then loads the folder in a process where this package cannot be imported. There, zeros are counted, and
    all tensors, inputs and logits are compared with the ticket's to the bit.

    Args:
        ticket: Ticket, or path of its file.
        model: Model of the ticket, which is not changed; one wrapped by `DistributedDataParallel`, `DataParallel` or
            `torch.compile` is unwrapped. None: the ticket is a file of the workflow.
        folder: Folder to write, which must not exist.
        tokenizer: Tokenizer of a Hugging Face model, saved with it.
        compact: Whether to write kept values and bits (`ticket.safetensors`) and NumPy code that reads them instead of
            plain weights.
        weights: File of the pre-trained backbone of a ticket of the workflow; None: that of the study.

    Returns:
        Summary of the written and compared content.

    Raises:
        ConfigError: If the ticket belongs to another model or has a tensor of another type than the model's, the
            library cannot save the model, or arguments contradict each other.
        MaskError: If the mask of the ticket belongs to another model.
        ArtifactError: If the ticket or the pre-trained backbone is missing or damaged.
        IspError: If the folder exists or cannot be written, or its content differs from the ticket. Nothing is left
            behind.
    """
    expect("ticket", ticket, "an isp.Ticket or the path of its file", Ticket, str, os.PathLike)
    expect("folder", folder, "a path", str, os.PathLike)
    folder = Path(folder)
    if os.path.lexists(folder):
        raise IspError(f"{folder}: already exists; name a new folder, or delete this one first")
    if model is None:
        if isinstance(ticket, Ticket):
            raise ConfigError("model is None: a ticket in memory needs its model; pass it, or the file of a ticket")
        subject = _of_workflow(WorkflowTicket.read(Path(ticket)), Path(weights) if weights else None, compact)
    elif weights is not None:
        raise ConfigError("weights: only a ticket of the workflow (model=None) has a pre-trained backbone in a file")
    else:
        subject = _of_model(ticket, unwrapped(check_module("model", model)), tokenizer)
    if not compact:
        _check_types(subject.ticket)
    with new_folder(folder) as temporary:
        try:
            _write(subject, temporary, compact)
        except SafetensorError as error:
            raise IspError(f"{folder}: cannot be written ({error}); nothing was left behind") from None
        _verify(subject, temporary, folder)
        return Exported(
            library=subject.library,
            zero_weights=num_weights(subject.ticket.mask) - num_kept(subject.ticket.mask),
            num_tensors=len(subject.ticket.weights),
            num_inputs=len(subject.expected.get("logits", ())),
            sizes={path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
        )


def _write(subject: _Subject, folder: Path, compact: bool) -> None:
    subject.write(folder, not compact)
    if compact:
        artifacts.save_ticket(folder / TICKET, subject.ticket)
        write_bytes(folder / READER, inspect.getsource(read_ticket).encode())
    elif subject.library == "safetensors":
        save_file(_separate(subject.ticket.weights), folder / PLAIN)
    tokenizer = (folder / exported.TOKENIZER).is_file()
    facts = Facts(ticket=subject.ticket, library=subject.library, compact=compact, tokenizer=tokenizer, **subject.facts)
    card = folder / CARD
    write_bytes(card, model_card(facts).encode())
    for path in folder.iterdir():
        shutil.copymode(card, path)  # safetensors writes files that only their owner can read


def _check_types(ticket: Ticket) -> None:
    """Check that plain weights can have the types of a ticket's.

    Raises:
        ConfigError: If they cannot.
    """
    for name, tensor in ticket.weights.items():
        if artifacts.is_stored_as_bytes(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(
                f"the ticket's weights: {name!r} is {dtype}, which safetensors cannot store; export with "
                "`compact=True`, which stores its bytes, or convert it"
            )


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies as safetensors stores them: contiguous, with no memory shared by two names."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


# --- content of an export ---------------------------------------------------------------------------------------------


def _of_workflow(source: WorkflowTicket, weights: Path | None, compact: bool) -> _Subject:
    backbone, task, ticket = source.backbone, source.task, source.ticket
    needed = task.inputs == "texts" or not compact  # for the vocabulary or the text tower
    pretrained = source.pretrained(weights) if needed else source.architecture
    columns = _columns(source)
    inputs = source.inputs(columns, pretrained, "inputs of the verification")
    named = inputs if isinstance(inputs, dict) else {"pixels": inputs}
    with torch.inference_mode():
        logits = source.model()(inputs)
    header = lineage.read_header(source.path) or {}
    described: dict[str, Any] = {"name": source.names[1], "kind": "classification" if task.classes else "regression"}
    described |= {"classes": list(task.classes)} if task.classes else {}
    described |= {"inputs": list(task.source.inputs), "metrics": list(task.metrics)}
    for key in ("id", "folder", "revision"):
        described |= {key: getattr(task.source, key)} if hasattr(task.source, key) else {}
    described |= {"templates": list(task.templates)} if isinstance(task, ImageTask) else {}
    facts = {
        "title": _title(" on ".join(source.names), ticket),
        "digest": header.get("content", ""),
        "made_with": header.get("about", {}).get("made_with", {}),
        "task": described,
        "cls": "AutoModelForSequenceClassification" if backbone.library == "transformers" else "",
        "inputs": task.inputs,
        "base": backbone.source.id if backbone.source else "",
        "settings": source.settings(),
        "records": source.records(),
    }
    return _Subject(
        ticket=ticket,
        library=backbone.library,
        write=lambda folder, plain: backbone.export(folder, ticket.weights, pretrained, task, plain),
        facts=facts,
        expected={**{f"inputs/{name}": each for name, each in named.items()}, "logits": logits},
        columns=columns,
    )


def _columns(source: WorkflowTicket) -> list[list[Any]]:
    """Return fixed inputs with as many columns as the task has: texts, or random images as encoded files.

    The images are not square, because the workflow enlarges small square images differently from open_clip.
    """
    if source.task.inputs == "texts":
        return [list(TEXTS), list(reversed(TEXTS))][: len(source.task.source.inputs)]
    generator = np.random.Generator(np.random.PCG64(0))
    return [[_encoded(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]]


def _encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _of_model(ticket: Ticket | str | Path, model: nn.Module, tokenizer: Any) -> _Subject:
    path = None if isinstance(ticket, Ticket) else Path(ticket)
    ticket_ = ticket if isinstance(ticket, Ticket) else artifacts.load_ticket(ticket)
    holder = copy_of(model).cpu()
    what = f"the weights of the ticket {path}" if path else "the ticket's weights"
    check_dtypes(holder, ticket_.weights, what)
    load_weights(holder, ticket_.weights, what)
    for tensor in (*holder.parameters(), *holder.buffers()):
        tensor.data = tensor.data.contiguous()  # on the order of memory, the bits of a product may depend
    check_fits(
        ticket_.mask, {each: ticket_.weights[each] for each in ticket_.mask if each in ticket_.weights}, "the model"
    )
    for each, kept in ticket_.mask.items():
        if ticket_.weights[each][~kept].any():
            raise ConfigError(f"the ticket's weights: {each!r} has masked weights that are not zero")
    saved, mask = saved_names(holder), by_first_name(ticket_.mask, holder, "the ticket's mask")
    ticket_ = replace(  # with the names of the state dict, into which the folder is loaded
        ticket_,
        mask={saved[each]: kept for each, kept in mask.items()},
        weights={saved[each]: tensor for each, tensor in by_all_names(tensors_of(holder), holder).items()},
    )
    header = (lineage.read_header(path) or {}) if path else {}
    name = type(model).__name__
    facts = {
        "title": _title(name, ticket_),
        "digest": header.get("content", "a ticket in memory, not read from a file"),
        "made_with": header.get("about", {}).get("made_with", artifacts.provenance()),
        "settings": ticket_.origin.get("settings", {}),
    }
    if not _is_of_transformers(model):
        if tokenizer is not None:
            raise ConfigError(f"tokenizer: belongs to a Hugging Face model, but the model is a {name}")
        return _Subject(ticket=ticket_, library="safetensors", write=lambda folder, plain: None, facts=facts)

    config: Any = holder.config

    def write(folder: Path, plain: bool) -> None:
        config.architectures, config.dtype = [name], next(holder.parameters()).dtype
        try:
            (holder if plain else config).save_pretrained(folder)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError):
            raise
        except Exception as error:
            raise ConfigError(f"the model: a {name} that transformers cannot save ({reason(error)})") from None

    reads_tokens = holder.main_input_name == "input_ids"  # transformers' dummy inputs are tokens
    tensors = _dummy_inputs(holder) if reads_tokens else {}
    predictor = exported.Predictor(holder, exported.call_transformers, lambda columns: tensors, "", None, ())
    try:
        expected = exported.outputs(predictor, tensors) if tensors else {}
    except Exception as error:
        raise ConfigError(
            f"the model: a {name} that cannot compute transformers' dummy inputs, 5 tokens each, whose outputs are "
            f"compared ({reason(error)})"
        ) from None
    return _Subject(
        ticket=ticket_,
        library="transformers",
        write=write,
        facts={**facts, "cls": name},
        expected=expected,
        tensors=tensors,
        attention=getattr(config, "_attn_implementation", None),
    )


def _dummy_inputs(model: Any) -> dict[str, Tensor]:
    """Return transformers' dummy inputs of a model, with tokens of its vocabulary only."""
    num_tokens = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return {
        name: each.clamp(max=num_tokens - 1) if num_tokens and name.endswith("input_ids") else each
        for name, each in model.dummy_inputs.items()
    }


def _is_of_transformers(model: nn.Module) -> bool:
    """Return whether the class of a model belongs to transformers, which can therefore load it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and getattr(transformers, type(model).__name__, None) is type(model)


def _title(subject: str, ticket: Ticket) -> str:
    return (
        f"{subject}, {float(100 * ticket.sparsity):g} % of its prunable weights zero"
        if ticket.sparsity
        else f"{subject}, dense"
    )


# --- verification -----------------------------------------------------------------------------------------------------


def _verify(subject: _Subject, written: Path, folder: Path) -> None:
    """Compare the content of a folder, as read by another process, with the ticket.

    Args:
        subject: Content of the export.
        written: Temporary folder with the content.
        folder: Final path, for messages.

    Raises:
        IspError: If they differ, or the folder cannot be loaded.
    """
    ticket = subject.ticket
    expected = {f"digest/{name}": exported.digest(tensor) for name, tensor in ticket.weights.items()}
    expected |= {f"zeros/{name}": exported.zeros(ticket.weights[name]) for name in ticket.mask}
    expected |= subject.expected
    with tempfile.TemporaryDirectory() as scratch:
        request: dict[str, Any] = {
            "folder": str(written.absolute()),
            "threads": torch.get_num_threads(),
            "names": sorted(ticket.weights),
            "prunable": sorted(ticket.mask),
            "columns": [_as_arguments(column, Path(scratch)) for column in subject.columns],
            "tensors": None,
            "attention": subject.attention,
        }
        if subject.tensors:
            request["tensors"] = str(Path(scratch) / "inputs.safetensors")
            save_file(_separate(subject.tensors), request["tensors"])
        answer = ask(request, Path(scratch), folder)
    for name in sorted({*expected, *answer}, key=lambda name: (name.split("/")[0] == "logits", name)):
        if name not in answer or name not in expected or not _equal(answer[name], expected[name]):
            what, _, entry = name.partition("/")
            raise IspError(
                f"{folder}: {_WHAT[what].format(entry)} differs between the ticket and the copy that {subject.library} "
                f"loads in a separate process; nothing was kept{_several_types(subject)} (versions: "
                f"{artifacts.versions()})"
            )


def _several_types(subject: _Subject) -> str:
    """Return advice for a model whose parameters have several types, since transformers loads all in one."""
    types = sorted({str(tensor.dtype) for tensor in subject.ticket.weights.values() if tensor.is_floating_point()})
    if subject.library != "transformers" or len(types) < 2:
        return ""
    return (
        f". transformers loads all tensors in one type, but the model has {', '.join(types)}: convert it before pruning"
    )


_WHAT = {
    "digest": "tensor {!r}",
    "zeros": "the number of zeros of {!r}",
    "inputs": "input {!r}",
    "logits": "the output",
}


def _as_arguments(column: list[Any], scratch: Path) -> list[str]:
    """Return texts, or paths of files with the images."""
    arguments = []
    for number, each in enumerate(column):
        if isinstance(each, bytes):
            path = scratch / f"{number}.png"
            path.write_bytes(each)
            each = str(path)
        arguments.append(each)
    return arguments


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal to the bit."""
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and torch.equal(exported.digest(one), exported.digest(other))


def ask(request: Mapping[str, Any], scratch: Path, folder: Path) -> dict[str, Tensor]:
    """Return the answer of `isp.exported` to a request, from a process that cannot import this package.

    Raises:
        IspError: If the process fails.
    """
    question, output = scratch / "request.json", scratch / "answer.safetensors"
    question.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-P", exported.__file__, str(question), str(output)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise IspError(f"{folder}: cannot be loaded without this package ({reason}); nothing was kept")
    return load_file(output)
