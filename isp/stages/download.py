"""Fetch a task's data set, or find it in a folder; the only stage that may use a network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from isp import files
from isp.stages._options import Output, Task
from isp.stages._work import task_of, working

VERSION = 1


def download(
    task: Task,
    data_root: Annotated[Path, typer.Option(help="Folder of datasets in the hub's layout; looked in first.")],
    output: Output,
) -> None:
    """Make sure that a task's files are there, and write what they are: names, sizes, checksums.

    Files that DATA_ROOT lacks are fetched from the Hugging Face hub into it. Embedded tasks have no files.
    """
    with working(output):
        paths = task_of(task).source.fetch(data_root)
        manifest = [
            {"file": str(path.relative_to(data_root)), "bytes": path.stat().st_size, "blake2b": _digest(path)}
            for path in paths
        ]
        files.write_json(output, {"task": task, "version": VERSION, "files": manifest})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
