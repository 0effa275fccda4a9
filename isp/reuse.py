"""Files that a study's tensors and weights were made of in an earlier run, and whether they are still the same."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isp.config import Study
from isp.dag import MANIFEST
from isp.errors import ArtifactError, DataError, IspError
from isp.files import read_json, sha256, write_json

KNOWN = Path(".snakemake/isp-files.json")
"""Checksums of files by size, time of change and time of status change, so that a plain rerun reads none of them."""


def check_reused(study: Study) -> str:
    """Compare the files below `data_root` with the manifests of earlier runs, and say in one line what is reused.

    A manifest in `resources/` stands for its files: nothing that was made of them is made again, wherever `data_root`
    points now. Files that are no longer there do no harm; other files in their place were meant to be used.

    Returns:
        The line; empty if nothing that is reused was made of files.

    Raises:
        DataError: A file is not the one that its manifest lists; says how to keep the results or make them again.
    """
    groups = list(study.groups())
    names = [("task", group.task) for group in groups] + [("backbone", group.backbone) for group in groups]
    known, seen = _read_known(), {}
    said = []
    for kind, name in dict.fromkeys(names):
        manifest = MANIFEST.format(kind=kind, name=name)
        entries = _entries(Path(manifest))
        if not entries:
            continue
        paths = [study.data_root / entry["file"] for entry in entries]
        for path, entry in zip(paths, entries, strict=True):
            try:
                if path.is_file():
                    seen[str(path.absolute())] = fresh = _checksum(path, known)
                    problem = "" if fresh[-1] == entry["sha256"] else "is another file"
                else:
                    problem = _replaced(path, paths)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
            if problem:
                raise DataError(
                    f"{path}: {problem} than {kind} {name!r} was prepared from ({manifest}). To keep what was made of "
                    f"it, point data_root to the old files; to use the new ones, delete {manifest}"
                )
        missing = [path for path in paths if not path.is_file()]
        there = f"{len(missing)} of its files are not" if missing else f"{len(paths)} files, unchanged,"
        said.append(f"{name} ({there} in {study.data_root})")
    if {**known, **seen} != known:
        with suppress(IspError):  # a folder that cannot be written; the next start reads the files again
            write_json(KNOWN, {**known, **seen})
    return f"reused as prepared before: {', '.join(said)}" if said else ""


def _entries(manifest: Path) -> list[Mapping[str, Any]]:
    """The files of a manifest; none if it is missing or damaged, which the stages that need it will say."""
    try:
        content = read_json(manifest, "download")
        entries = [entry for entry in content["files"] if {"file", "sha256"} <= entry.keys()]
    except (ArtifactError, KeyError, TypeError, AttributeError):
        return []
    return entries


def _read_known() -> dict[str, list[Any]]:
    try:
        found = read_json(KNOWN, "the start of a run")
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def _checksum(path: Path, known: Mapping[str, Any]) -> list[Any]:
    """What identifies a file without reading it, and its sha256, read only if that is not known."""
    status = path.stat()
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    before = known.get(str(path.absolute()))
    if isinstance(before, list) and before[:-1] == identity:
        return before
    return [*identity, sha256(path)]


def _replaced(path: Path, listed: Collection[Path]) -> str:
    """What is in the place of a file that is gone: the same split in other files. Empty if nothing is."""
    split = re.match(r"(.+)-\d+-of-\d+", path.name)
    others = path.parent.glob(f"{glob.escape(split[1])}-*-of-*.parquet") if split else ()
    found = sorted(other.name for other in others if other not in listed)
    return f"is gone, and {found[0]} is another file" if found else ""
