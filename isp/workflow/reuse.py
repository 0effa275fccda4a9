"""Check that the data and model files behind reused artifacts are still the same."""

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
"""Cache of checksums, by size and times of a file, so that a plain rerun reads no data file."""


def check_reused(study: Study) -> str:
    """Compare the files below `data_root` with the manifests of earlier runs, and say in one line what is reused.

    Nothing that was prepared from the files of a manifest in `resources/` is prepared again, wherever `data_root`
    points now. Missing files do no harm. Other files in their place do: somebody meant them to be used.

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
        with suppress(IspError):  # not writable: the next start reads the files again
            write_json(KNOWN, {**known, **seen})
    return f"reused as prepared before: {', '.join(said)}" if said else ""


def _entries(manifest: Path) -> list[Mapping[str, Any]]:
    """The files of a manifest; empty if it is missing or damaged, which the stages that need it report."""
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
    """Size, times and SHA-256 of a file; it is read only if the cache lacks them."""
    status = path.stat()
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    before = known.get(str(path.absolute()))
    if isinstance(before, list) and before[:-1] == identity:
        return before
    return [*identity, sha256(path)]


def _replaced(path: Path, listed: Collection[Path]) -> str:
    """Describe other files of the same split in the place of a missing file; empty if there are none."""
    split = re.match(r"(.+)-\d+-of-\d+", path.name)
    others = path.parent.glob(f"{glob.escape(split[1])}-*-of-*.parquet") if split else ()
    names = sorted(other.name for other in others if other not in listed)
    return f"is gone, and {names[0]} is another file" if names else ""
