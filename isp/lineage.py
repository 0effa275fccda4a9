"""The origin of an artifact. Its header names its place in the study, its backbone, task and seed, and its input files.
A stage compares these with its options before it reads a tensor. Needs no torch.

A checksum cannot detect an artifact in the place of another one, because both are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from isp.errors import ArtifactError, shown

Kind = Literal["weights", "backbone", "split", "examples", "state", "mask", "ticket", "checkpoint"]
"""Of artifacts."""
LARGE = 2**30
"""Examples of more bytes than this (resized images, as of GTSRB and Cars) get a digest of sums, since BLAKE2 would take
every job seconds."""

ALWAYS = ("backbone", "task")
"""Facts that all inputs of a stage share, as far as their headers contain them."""
IN_A_STUDY = (*ALWAYS, "seed", "limits")
"""The same for a stage that writes into a study: variants share artifacts within one seed only."""
_RUN = re.compile(r"(?:results/[^/]+/)?runs/[^/]+/[^/]+/seed\d+/")
_PLACE = re.compile(rf"(?<=/){_RUN.pattern}.+")
_CELL = re.compile(
    r"(?:results/(?P<study>[^/]+)/)?runs/(?P<backbone>[^/]+)/(?P<task>[^/]+)/seed(?P<seed>\d+)/"
    r"(?:(?P<variant>[^/]+)/(?P<sparsity>0\.\d{4})/)?"
)
_AGAIN = "delete it and run the study again, or name another file"
_MAX_HEADER = 2**27


def place(path: Path) -> str | None:
    """The place of a file in a study: `results/<study>/runs/<backbone>/…`; None for a file elsewhere.

    It begins at `runs/` where the study's folder was moved out of `results/`.
    """
    found = _PLACE.search(Path(os.path.abspath(path)).as_posix())
    return found and found.group()


def at(path: Path) -> dict[str, str]:
    """The entry of a header for the place of its artifact; empty for a file outside of a study."""
    found = place(path)
    return {"place": found} if found else {}


def cell(path: Path) -> dict[str, Any]:
    """The cell that a file in a study belongs to: study, backbone, task, seed, variant and sparsity, as far as its
    place contains them; empty for a file elsewhere.
    """
    found = _CELL.match(place(path) or "")
    values: dict[str, Any] = {key: value for key, value in found.groupdict().items() if value} if found else {}
    return values | {"seed": int(values["seed"])} if values else {}


def read_header(path: Path) -> dict[str, Any] | None:
    """Read the header of an artifact and no tensor. None: it is unreadable, and loading the artifact will say why."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(json.loads(file.read(min(length, _MAX_HEADER)))["__metadata__"]["isp"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return header if isinstance(header, dict) and isinstance(header.get("about"), dict) else None


def sealed(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header with its checksum."""
    return {**header, "checksum": _checksum(header)}


def is_sealed(header: Mapping[str, Any]) -> bool:
    """Whether the checksum of a header matches its content."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    return header.get("checksum") == _checksum(rest)


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(header, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a header contains about the origin of its artifact; in a ticket this is nested under `origin`."""
    about: dict[str, Any] = header["about"]
    origin = about.get("origin")
    return about | origin if isinstance(origin, dict) else about


def trace(output: Path, told: Mapping[str, Any], inputs: Sequence[Path]) -> dict[str, Any]:
    """Check that the inputs of an artifact belong together, and return the entries of its header about its origin.

    Args:
        output: the artifact to write.
        told: facts from the options of the stage, such as the backbone, by their names in headers.
        inputs: artifacts that it reads; other files among them have no header and are skipped.

    Returns:
        Its place, the backbone, task and seed of its inputs, and the digests of their tensors by path.

    Raises:
        ArtifactError: as `check`.
    """
    headers = check(output, told, inputs)
    values = dict(told)
    for header in headers.values():
        values = {**facts(header), **values}
    contents = {path: header["content"] for path, header in headers.items() if "content" in header}
    return {**at(output), **{key: values[key] for key in (*ALWAYS, "seed") if key in values}, "contents": contents}


def check(output: Path, told: Mapping[str, Any], inputs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Refuse artifacts in the place of others, and those made for another cell than the output.

    A stage run by hand, with an output outside of any study, may mix seeds and protocols, but not backbones and tasks.
    Headers of earlier versions contain less; they are checked as far as they go, and one line reports them.

    Returns:
        Headers of the inputs, by path; inputs without one are left out.

    Raises:
        ArtifactError: names the artifact, what it was made for, and what is needed.
    """
    headers = {str(path): header for path in inputs if (header := read_header(path)) is not None}
    needed: dict[str, tuple[Any, str]] = {key: (value, "needed here") for key, value in told.items()}
    keys = {*IN_A_STUDY, *told} if place(output) else {*ALWAYS}
    run, silent = _run(place(output)), []
    for path, header in headers.items():
        of = facts(header)
        where, written = place(Path(path)), of.get("place")
        if where and run and _run(where) != run:
            raise ArtifactError(f"{path}: is of another run than {output}; name a file of {run}")
        if where and written is None:
            silent.append(path)
        elif where and not _is_same_place(where, written):
            raise ArtifactError(f"{path}: was made as {shown(written)}, it does not belong here; {_AGAIN}")
        for key in sorted(keys & of.keys()):
            if key == "training" and of.get("stage") == "initialise":
                continue  # it served to count the FLOPs of a step; variants may have other protocols
            value, source = needed.setdefault(key, (of[key], f"in {path}"))
            if _plain(of[key]) != _plain(value):
                theirs, ours = _differing(of[key], value)
                raise ArtifactError(f"{path}: was made for {key} {theirs}, but it is {ours} {source}; {_AGAIN}")
    for path, header in headers.items():
        for source, content in _contents(header).items():
            if source in headers and headers[source].get("content", content) != content:
                raise ArtifactError(
                    f"{path}: was made from another {source} than there is now; delete {path} and run the study again"
                )
    if silent:
        print(
            f"{silent[0]}{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}: of a version of isp that did not "
            f"write down to which cell an artifact belongs; accepted",
            file=sys.stderr,
            flush=True,
        )
    return headers


def _run(place: str | None) -> str | None:
    """The part of a place that names study, backbone, task and seed."""
    found = _RUN.match(place or "")
    return found and found.group()


def _is_same_place(one: str, other: object) -> bool:
    """Whether two places are the same; studies are compared if both places contain theirs."""
    if not isinstance(other, str):
        return False
    if one.startswith("results/") and other.startswith("results/"):
        return one == other
    return one[one.index("runs/") :] == other[other.find("runs/") :]


def _contents(header: Mapping[str, Any]) -> Mapping[str, Any]:
    found = facts(header).get("contents")
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    """A value independent of its notation: 1e-05 may be a number or the text that YAML reads, a definition may be JSON
    text or a dict.
    """
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if not isinstance(value, str):
        return value
    try:
        if value.startswith("{"):
            return _plain(json.loads(value))
        return float(value) if value[:1] in tuple("+-.0123456789") else value
    except (ValueError, RecursionError):
        return value


def _differing(one: Any, other: Any) -> tuple[str, str]:
    """Two values as text; of two mappings only the keys that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if _plain(one.get(key)) != _plain(other.get(key))]
        one, other = ({key: values[key] for key in keys if key in values} for values in (one, other))
    return shown(one), shown(other)
