"""Conversion of a task's raw splits to tensors for a backbone.

Files contain whole splits, with training and validation examples in the random order of the task's split. A study uses
the first examples (`TaskLimits`), so that studies share files. The official test split has its own file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from isp.backbones import Backbone, Pretrained
from isp.data.prose import Prose
from isp.data.sources import Raw, Split, check_classes
from isp.data.splits import Rule, carve
from isp.data.splits import Split as Parts
from isp.errors import DataError
from isp.lazy import torch
from isp.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"
Part = Literal["train", "validation", "test"]


def split(name: str, task: Task, data_root: Path) -> tuple[Parts, Rule]:
    """Return training and validation examples of a task, both from its official training split, and the rule used.

    If the source allows files that do not identify groups, the rule "groups" is then replaced by "stratified".

    Raises:
        DataError: If files are missing or damaged, the number of examples differs, or a label is not a class.
    """
    raw = _checked(name, task, "train", task.source.labels(data_root))
    rule = task.split
    if rule == "groups" and raw.groups is None:
        print(f"{name}: its files do not identify groups; validation keeps the classes' shares instead")
        rule = "stratified"
    return carve(raw.labels, task.num_validation, rule, raw.groups), rule


def prepare(
    name: str, task: Task, backbone: Backbone, pretrained: Pretrained, parts: Parts, data_root: Path
) -> Iterator[tuple[Part, Tensors]]:
    """Yield the splits "train", "validation" and "test" as tensors, one after the other.

    These are the backbone's inputs, `labels`, and `index`: indices of the examples in the official split, int64.

    Raises:
        DataError: If `split` refuses the data, or the backbone was pre-trained on another version of the task's prose.
    """
    if pretrained.data and isinstance(task.source, Prose) and pretrained.data != task.source.checksum():
        raise DataError(
            f"{name}: the installed packages from which it is made have changed since the backbone was pre-trained on "
            f"other parts of their prose; pre-train it again (stage: pretrain)"
        )
    raw = _checked(name, task, "train", task.source.read("train", data_root))
    yield "train", _tensors(f"{name}, train split", raw, parts.train, backbone, pretrained)
    yield "validation", _tensors(f"{name}, train split", raw, parts.validation, backbone, pretrained)
    raw = _checked(name, task, "test", task.source.read("test", data_root))
    yield "test", _tensors(f"{name}, test split", raw, np.arange(len(raw)), backbone, pretrained)


def _tensors(where: str, raw: Raw, chosen: np.ndarray, backbone: Backbone, pretrained: Pretrained) -> Tensors:
    inputs = backbone.prepare(raw.columns, chosen, pretrained, where)
    return {**inputs, "labels": torch.from_numpy(raw.labels[chosen]), "index": torch.from_numpy(chosen)}


def limited(tensors: Tensors, num: int | None) -> Tensors:
    """Return the first `num` examples, or all if it is None, without copying."""
    return tensors if num is None else {name: tensor[:num] for name, tensor in tensors.items()}


def _checked(name: str, task: Task, part: Split, raw: Raw) -> Raw:
    if part == "train" and len(raw) != task.num_examples:
        raise DataError(
            f"{name}: the training split has {len(raw)} examples instead of {task.num_examples}; "
            f"fetch it again (stage: download)"
        )
    check_classes(f"{part} split of {name!r}", task.classes, raw.classes)
    for column in raw.columns:
        wrong_kind = next((value for value in column if isinstance(value, str) != (task.inputs == "texts")), None)
        if wrong_kind is not None:
            raise DataError(f"{part} split of {name!r}: its inputs must be {task.inputs}, got {wrong_kind!r:.40}")
    if not task.classes:
        if not np.isfinite(raw.labels).all():
            raise DataError(f"{part} split of {name!r}: a label is not a finite number")
        return replace(raw, labels=raw.labels.astype(np.float32))
    if raw.labels.dtype != np.int64:
        raise DataError(f"{part} split of {name!r}: labels of classes must be integers, got {raw.labels.dtype}")
    wrong = (raw.labels < 0) | (raw.labels >= len(task.classes))
    if wrong.any():
        where = f"{part} split of {name!r}: label {raw.labels[wrong][0]} at example {int(wrong.argmax())}"
        raise DataError(f"{where}; labels must be 0 to {len(task.classes) - 1}")
    return raw
