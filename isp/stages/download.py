"""Fetch a task's data set or a backbone's weights, or find them in a folder; the only stage that may use a network."""

from __future__ import annotations

from typing import Annotated

import typer

from isp import files
from isp.data.sources import Files, manifest
from isp.definitions import backbone_of, task_of
from isp.errors import IspError
from isp.stages._options import DataRoot, Output
from isp.stages._work import working

VERSION = 2


def download(
    data_root: DataRoot,
    output: Output,
    task: Annotated[str | None, typer.Option(help="The task whose data set is wanted.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Or the backbone whose weights are wanted.")] = None,
) -> None:
    """Make sure that files are there, and write what they are: the hub's commit, names, sizes, checksums.

    Files that DATA_ROOT lacks are fetched from the Hugging Face hub into it, at the revision that the task or backbone
    names. Embedded tasks and backbones have no files.
    """
    if (task is None) == (backbone is None):
        raise IspError("isp download: give either --task or --backbone")
    with working(output):
        if task is not None:
            found = task_of(task).source.fetch(data_root)
        else:
            made = backbone_of(str(backbone))
            found = made.source.fetch(made.files, data_root) if made.source else Files([])
        of = {"task": task} if task is not None else {"backbone": backbone}
        about = {"stage": "download", "version": VERSION, **of, "commit": found.commit}
        files.write_json(output, about | {"files": manifest(found.paths, data_root)})
