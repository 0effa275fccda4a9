"""From a task's raw splits to tensors for a backbone: train and validation carved from the official training split.

Files hold the whole splits; what a study uses of them (`TaskLimits`) is picked when they are loaded, so that studies
share them. The official test split is a file of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isp.backbones import Backbone
from isp.data.sources import RawImages, Split
from isp.data.splits import carve
from isp.errors import DataError
from isp.tasks import ImageTask, TaskLimits

Tensors = dict[str, Tensor]


def prepare(name: str, task: ImageTask, backbone: Backbone, data_root: Path) -> dict[str, Tensors]:
    """The splits "train", "validation" and "test" as tensors: the backbone's inputs, `labels`, and `index`.

    `index` numbers the examples of the official split that a file was made from, int64, rising.

    Raises:
        DataError: missing or damaged files, another number of examples than the task has, or a label that is no class.
    """
    train, test = _read(name, task, "train", data_root), _read(name, task, "test", data_root)
    if len(train.labels) != task.num_examples:
        raise DataError(
            f"{name}: the training split holds {len(train.labels)} examples instead of {task.num_examples}; "
            f"fetch it again (stage: download)"
        )
    split = carve(len(train.labels), task.num_validation)
    chosen = {"train": (train, split.train), "validation": (train, split.validation)}
    chosen["test"] = (test, np.arange(len(test.labels)))
    return {
        part: {
            **backbone.prepare(raw, index, name),
            "labels": torch.from_numpy(raw.labels[index]),
            "index": torch.from_numpy(index),
        }
        for part, (raw, index) in chosen.items()
    }


def limited(tensors: Tensors, task: ImageTask, limits: TaskLimits) -> Tensors:
    """The prepared examples of a training or validation file that a study's limits leave."""
    split = carve(task.num_examples, task.num_validation, limits.num_train, limits.num_validation)
    index = tensors["index"].numpy()
    kept = np.isin(index, np.concatenate([split.train, split.validation]))
    return tensors if kept.all() else {name: tensor[torch.from_numpy(kept)] for name, tensor in tensors.items()}


def _read(name: str, task: ImageTask, split: Split, data_root: Path) -> RawImages:
    raw = task.source.read(split, data_root)
    wrong = (raw.labels < 0) | (raw.labels >= len(task.classes))
    if wrong.any():
        where = f"{split} split of {name!r}: label {raw.labels[wrong][0]} at example {int(wrong.argmax())}"
        raise DataError(f"{where}; allowed are 0 to {len(task.classes) - 1}")
    return raw
