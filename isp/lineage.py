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
"""Kind of an artifact."""
LARGE = 2**30
"""Size in bytes above which examples (resized images, as of GTSRB and Cars) get a digest of sums, because BLAKE2 would
cost every job seconds."""

ALWAYS = ("backbone", "task")
"""Facts that all inputs of a stage share, if their headers contain them."""
IN_A_STUDY = (*ALWAYS, "seed", "limits")
"""Shared facts for a stage that writes into a study, where variants share artifacts within one seed only."""
_RUN = re.compile(r"(?:results/[^/]+/)?runs/[^/]+/[^/]+/seed\d+/")
_PLACE = re.compile(rf"(?<=/){_RUN.pattern}.+")
_CELL = re.compile(
    r"(?:results/(?P<study>[^/]+)/)?runs/(?P<backbone>[^/]+)/(?P<task>[^/]+)/seed(?P<seed>\d+)/"
    r"(?:(?P<variant>[^/]+)/(?P<sparsity>0\.\d{4})/)?"
)
_AGAIN = "delete it and run the study again, or name another file"
_MAX_HEADER = 2**27


def place(path: Path) -> str | None:
    """Return the place of a file in a study, `results/<study>/runs/<backbone>/…`, or None for a file elsewhere.

    It begins at `runs/` if the study's folder was moved out of `results/`.
    """
    match = _PLACE.search(Path(os.path.abspath(path)).as_posix())
    return match and match.group()


def at(path: Path) -> dict[str, str]:
    """Return the header entry for the place of an artifact; empty for a file outside of a study."""
    place_ = place(path)
    return {"place": place_} if place_ else {}


def cell(path: Path) -> dict[str, Any]:
    """Return the cell to which a file in a study belongs: study, backbone, task, seed, variant and sparsity, as far as
    its place contains them; empty for a file elsewhere.
    """
    match = _CELL.match(place(path) or "")
    values: dict[str, Any] = {key: value for key, value in match.groupdict().items() if value} if match else {}
    return values | {"seed": int(values["seed"])} if values else {}


def read_header(path: Path) -> dict[str, Any] | None:
    """Read the header of an artifact and no tensor; None if it is unreadable, which loading the artifact explains."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(json.loads(file.read(min(length, _MAX_HEADER)))["__metadata__"]["isp"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return header if isinstance(header, dict) and isinstance(header.get("about"), dict) else None


def made_from(path: str) -> str | None:
    """Return the state from which a mask or ticket was made, as its header names it.

    The result is "" if the header names none, and None if the file does not exist or is unreadable.
    """
    header = read_header(Path(path))
    if header is None:
        return None
    inputs = facts(header).get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    return str(inputs.get("state") or inputs.get("start") or "")


def sealed(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header with its checksum."""
    return {**header, "checksum": _checksum(header)}


def is_sealed(header: Mapping[str, Any]) -> bool:
    """Return whether the checksum of a header matches its content."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    return header.get("checksum") == _checksum(rest)


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(header, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a header about the origin of its artifact, which a ticket nests under `origin`."""
    about: dict[str, Any] = header["about"]
    origin = about.get("origin")
    return about | origin if isinstance(origin, dict) else about


def trace(output: Path, told: Mapping[str, Any], inputs: Sequence[Path]) -> dict[str, Any]:
    """Check that the inputs of an artifact belong together, and return the entries of its header about its origin.

    Args:
        output: Artifact to write.
        told: Facts from the options of the stage, such as the backbone, by their names in headers.
        inputs: Artifacts that it reads; other files among them have no header and are skipped.

    Returns:
        Its place, the backbone, task and seed of its inputs, and the digests of their tensors by path.

    Raises:
        ArtifactError: If `check` refuses an input.
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
    Headers of earlier versions contain fewer entries; the existing ones are checked, and one line reports them.

    Returns:
        Headers of the inputs, by path, except inputs without one.

    Raises:
        ArtifactError: If an input does not fit. The message names it, what it was made for, and what is needed.
    """
    headers = {str(path): header for path in inputs if (header := read_header(path)) is not None}
    needed: dict[str, tuple[Any, str]] = {key: (value, "needed here") for key, value in told.items()}
    keys = {*IN_A_STUDY, *told} if place(output) else {*ALWAYS}
    run, silent = _run(place(output)), []
    for path, header in headers.items():
        of = facts(header)
        where, written = place(Path(path)), of.get("place")
        if where and run and _run(where) != run:
            raise ArtifactError(f"{path}: belongs to another run than {output}; name a file of {run}")
        if where and written is None:
            silent.append(path)
        elif where and not _is_same_place(where, written):
            raise ArtifactError(f"{path}: was made as {shown(written)} and does not belong here; {_AGAIN}")
        for key in sorted(keys & of.keys()):
            if key == "training" and of.get("stage") == "initialise":
                continue  # it only served to count the FLOPs of a step; variants may have other protocols
            value, source = needed.setdefault(key, (of[key], f"in {path}"))
            if _plain(of[key]) != _plain(value):
                theirs, ours = _differing(of[key], value)
                raise ArtifactError(f"{path}: was made for {key} {theirs}, but it is {ours} {source}; {_AGAIN}")
    for path, header in headers.items():
        for source, content in _contents(header).items():
            if source in headers and headers[source].get("content", content) != content:
                raise ArtifactError(
                    f"{path}: was made from another {source} than the current one; delete {path} and rerun the study"
                )
    if silent:
        print(
            f"{silent[0]}{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}: from a version of isp that did "
            f"not record the cell of an artifact; accepted",
            file=sys.stderr,
            flush=True,
        )
    return headers


def _run(place: str | None) -> str | None:
    """Return the part of a place that names study, backbone, task and seed."""
    match = _RUN.match(place or "")
    return match and match.group()


def _is_same_place(one: str, other: object) -> bool:
    """Return whether two places are the same; studies are compared only if both places contain one."""
    if not isinstance(other, str):
        return False
    if one.startswith("results/") and other.startswith("results/"):
        return one == other
    study = re.compile(r"^results/[^/]+/")
    return study.sub("", one) == study.sub("", other)


def _contents(header: Mapping[str, Any]) -> Mapping[str, Any]:
    contents = facts(header).get("contents")
    return contents if isinstance(contents, dict) else {}


def _plain(value: Any) -> Any:
    """Normalise a notation: 1e-05 may be a number or the text that YAML reads, a definition JSON text or a dict."""
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
    """Return two values as text, or only the differing keys of two mappings."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if _plain(one.get(key)) != _plain(other.get(key))]
        one, other = ({key: values[key] for key in keys if key in values} for values in (one, other))
    return shown(one), shown(other)
