"""Turn a task's raw data into tensors for a backbone, once: training, validation and test examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts
from isp.data.preparation import prepare as prepare_splits
from isp.stages._options import Backbone, Task
from isp.stages._work import backbone_of, task_of, working

VERSION = 1


def prepare(
    backbone: Backbone,
    task: Task,
    data_root: Annotated[Path, typer.Option(help="Folder of datasets in the hub's layout.")],
    train: Annotated[Path, typer.Option(help="To write: training examples.")],
    validation: Annotated[Path, typer.Option(help="To write: validation examples, carved from the training split.")],
    test: Annotated[Path, typer.Option(help="To write: the official test split. Only `isp evaluate` reads it.")],
) -> None:
    """Decode, resize and split a task's examples; validation is carved from the official training split by rule."""
    with working(train, validation, test):
        splits = prepare_splits(task, task_of(task), backbone_of(backbone), data_root)
        for part, path in (("train", train), ("validation", validation), ("test", test)):
            about = {"stage": "prepare", "version": VERSION, "backbone": backbone, "task": task, "split": part}
            artifacts.save_examples(path, splits[part], about)
