"""What ties an artifact to what it was made for. Its header says for which place in a study, for which backbone, task
and seed, and from which files; a stage compares that with what it is told before it reads a tensor. Needs no torch.

An artifact that lies in the place of another one is whole, so its checksum cannot tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isp.errors import ArtifactError, shown

ALWAYS = ("backbone", "task")
"""What all inputs of a stage have in common, as far as they say it."""
IN_A_STUDY = (*ALWAYS, "seed", "limits")
"""The same where the stage writes into a study: variants share artifacts within one seed only."""
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
    """What a header says of the place of its artifact."""
    found = place(path)
    return {"place": found} if found else {}


def cell(path: Path) -> dict[str, Any]:
    """The cell that a file in a study belongs to: those of study, backbone, task, seed, variant and sparsity that its
    place says; nothing for a file elsewhere.
    """
    found = _CELL.match(place(path) or "")
    values: dict[str, Any] = {key: value for key, value in found.groupdict().items() if value} if found else {}
    return values | {"seed": int(values["seed"])} if values else {}


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of an artifact, which alone is read; None: whoever loads the artifact will say what is wrong."""
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
    """Whether a header is as it was when it got its checksum."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    return header.get("checksum") == _checksum(rest)


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(header, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a header says about what its artifact was made for; of a ticket, that stands in its origin."""
    about: dict[str, Any] = header["about"]
    origin = about.get("origin")
    return about | origin if isinstance(origin, dict) else about


def trace(output: Path, told: Mapping[str, Any], inputs: Sequence[Path]) -> dict[str, Any]:
    """What an artifact says of its origin, once its inputs were found to belong together.

    Args:
        output: the artifact to write.
        told: facts that a stage knows from its options, such as the backbone, by the names that headers have for them.
        inputs: artifacts that it reads; other files among them have no header and are passed over.

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
    """Refuse artifacts that lie in the place of others, or were made for something else than what is to be made.

    A stage by hand, whose output is in no study, may mix seeds and protocols, but not backbones and tasks. Artifacts of
    earlier versions, which say less, are held to what they say; one line tells of them.

    Returns:
        The headers of those inputs that have one, by path.

    Raises:
        ArtifactError: names both sides: what an artifact was made for, and what is needed.
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
    """The part of a place that says study, backbone, task and seed."""
    found = _RUN.match(place or "")
    return found and found.group()


def _is_same_place(one: str, other: object) -> bool:
    """Where the study is known of both, it counts."""
    if not isinstance(other, str):
        return False
    if one.startswith("results/") and other.startswith("results/"):
        return one == other
    return one[one.index("runs/") :] == other[other.find("runs/") :]


def _contents(header: Mapping[str, Any]) -> Mapping[str, Any]:
    found = facts(header).get("contents")
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    """A value without what depends on how it was written down: 1e-05 or the text that YAML takes it for, a definition
    as a text or as keys and values.
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
