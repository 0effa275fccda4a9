"""Convert a task's raw data to tensors for a backbone, once: training, validation and test examples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts
from isp.definitions import backbone_of, label_of, task_of
from isp.preparation import prepare as prepare_parts
from isp.stages._options import Backbone, DataRoot, Manifest, Task, Weights
from isp.stages._work import check_manifest, inputs, working

VERSION = 2


def prepare(
    backbone: Backbone,
    task: Task,
    data_root: DataRoot,
    manifest: Manifest,
    split: Annotated[Path, typer.Option(help="The split, from `isp split`.")],
    weights: Weights,
    train: Annotated[Path, typer.Option(help="File to write: training examples.")],
    validation: Annotated[
        Path, typer.Option(help="File to write: validation examples, carved from the training split.")
    ],
    test: Annotated[Path, typer.Option(help="File to write: the official test split. Only `isp evaluate` reads it.")],
) -> None:
    """Decode and resize images, or convert texts to token ids of the backbone's vocabulary."""
    paths: dict[artifacts.Part, Path] = {"train": train, "validation": validation, "test": test}
    with working(*paths.values()):
        check_manifest(manifest, data_root)
        about = {"stage": "prepare", "version": VERSION, "backbone": backbone, "task": task}
        told = {"backbone": backbone, "task": task}
        about |= inputs(train, told, manifest=manifest, split=split, weights=weights)
        parts, _ = artifacts.load_split(split)
        pretrained, _ = artifacts.load_backbone(weights)
        examples = prepare_parts(label_of(task), task_of(task), backbone_of(backbone), pretrained, parts, data_root)
        for part, tensors in examples:
            artifacts.save_examples(paths[part], tensors, part, about)
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            print(f"{part}: {shapes}", file=sys.stderr, flush=True)
