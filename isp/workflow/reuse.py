"""Check that the data and model files from which reused artifacts were made have not changed."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isp.config import Study
from isp.errors import ArtifactError, DataError, IspError
from isp.files import read_json, sha256, write_json
from isp.workflow.paths import MANIFEST

KNOWN = Path(".snakemake/isp-files.json")
"""Cache of checksums by the size and times of a file, so that a rerun reads no data files."""


def check_reused(study: Study) -> str:
    """Compare the files below `data_root` with the manifests of earlier runs, and summarise in one line what is reused.

    Data that were prepared from the files of a manifest in `resources/` are not prepared again, wherever `data_root`
    points now. Missing files are accepted. Other files in their place are not, because they are meant to be used.

    Returns:
        The line; empty if no reused data were made from files.

    Raises:
        DataError: A file differs from the one in its manifest. The message says how to keep or remake the results.
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
                    f"{path}: {problem} than {kind} {name!r} was prepared from ({manifest}). To keep the results, "
                    f"point data_root to the old files; to use the new files, delete {manifest}"
                )
        missing = [path for path in paths if not path.is_file()]
        there = f"{len(missing)} of its files are missing" if missing else f"{len(paths)} files, unchanged,"
        said.append(f"{name} ({there} in {study.data_root})")
    if {**known, **seen} != known:
        with suppress(IspError):  # not writable: the next start reads the files again
            write_json(KNOWN, {**known, **seen})
    return f"reused as prepared before: {', '.join(said)}" if said else ""


def _entries(manifest: Path) -> list[Mapping[str, Any]]:
    """Return the files of a manifest; empty if it is missing or damaged, which the stages that need it report."""
    try:
        content = read_json(manifest, "download")
        entries = [entry for entry in content["files"] if {"file", "sha256"} <= entry.keys()]
    except (ArtifactError, KeyError, TypeError, AttributeError):
        return []
    return entries


def _read_known() -> dict[str, list[Any]]:
    try:
        known = read_json(KNOWN, "the start of a run")
    except ArtifactError:
        return {}
    return known if isinstance(known, dict) else {}


def _checksum(path: Path, known: Mapping[str, Any]) -> list[Any]:
    """Return the size, times and SHA-256 of a file, which is read only if the cache lacks them."""
    status = path.stat()
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    before = known.get(str(path.absolute()))
    if isinstance(before, list) and before[:-1] == identity:
        return before
    return [*identity, sha256(path)]


def _replaced(path: Path, listed: Collection[Path]) -> str:
    """Describe other files of the same split that replace a missing file; empty if there are none."""
    split = re.match(r"(.+)-\d+-of-\d+", path.name)
    others = path.parent.glob(f"{glob.escape(split[1])}-*-of-*.parquet") if split else ()
    names = sorted(other.name for other in others if other not in listed)
    return f"is gone, and {names[0]} is another file" if names else ""
