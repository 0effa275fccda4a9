"""Download a task's dataset or a backbone's weights, or find them in a folder; the only stage that uses a network."""

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
    task: Annotated[str | None, typer.Option(help="Task whose dataset to download.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone whose weights to download, instead of a task.")] = None,
) -> None:
    """Make sure that the files exist, and write a manifest of them: the hub's commit, names, sizes, checksums.

    Files that DATA_ROOT lacks are downloaded into it from the Hugging Face hub, at the revision that the task or
    backbone defines. Embedded tasks and backbones have no files.
    """
    if (task is None) == (backbone is None):
        raise IspError("isp download: exactly one of --task and --backbone must be given")
    with working(output):
        if task is not None:
            files_ = task_of(task).source.fetch(data_root)
        else:
            backbone_ = backbone_of(str(backbone))
            files_ = backbone_.source.fetch(backbone_.files, data_root) if backbone_.source else Files([])
        of = {"task": task} if task is not None else {"backbone": backbone}
        about = {"stage": "download", "version": VERSION, **of, "commit": files_.commit}
        files.write_json(output, about | {"files": manifest(files_.paths, data_root)})
