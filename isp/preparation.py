"""From a task's raw splits to tensors for a backbone.

Files hold whole splits, training and validation examples in the random order of the task's split; what a study uses of
them (`TaskLimits`) is the first of them, so that studies share files. The official test split is a file of its own.
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
    """Training and validation examples of a task, both of its official training split, and the rule that was used.

    Where the files do not say what belongs together, the rule "groups" gives way to "stratified".

    Raises:
        DataError: missing or damaged files, another number of examples than the task has, or a label that is no class.
    """
    raw = _checked(name, task, "train", task.source.labels(data_root))
    rule = task.split
    if rule == "groups" and raw.groups is None:
        print(f"{name}: its files do not say what belongs together; validation is chosen with the classes' shares kept")
        rule = "stratified"
    return carve(raw.labels, task.num_validation, rule, raw.groups), rule


def prepare(
    name: str, task: Task, backbone: Backbone, pretrained: Pretrained, parts: Parts, data_root: Path
) -> Iterator[tuple[Part, Tensors]]:
    """One after the other the splits "train", "validation" and "test" as tensors.

    These are the backbone's inputs, `labels`, and `index`: numbers of the examples in the official split, int64.

    Raises:
        DataError: as `split`; or the backbone was pre-trained on another version of the prose that the task is made of.
    """
    if pretrained.data and isinstance(task.source, Prose) and pretrained.data != task.source.checksum():
        raise DataError(
            f"{name}: the installed packages that it is made of changed since the backbone was pre-trained on other "
            f"parts of their prose; pre-train it again (stage: pretrain)"
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
    """The first `num` examples; None: all. Nothing is copied."""
    return tensors if num is None else {name: tensor[:num] for name, tensor in tensors.items()}


def _checked(name: str, task: Task, part: Split, raw: Raw) -> Raw:
    if part == "train" and len(raw) != task.num_examples:
        raise DataError(
            f"{name}: the training split holds {len(raw)} examples instead of {task.num_examples}; "
            f"fetch it again (stage: download)"
        )
    check_classes(f"{part} split of {name!r}", task.classes, raw.classes)
    for column in raw.columns:
        wrong_kind = next((value for value in column if isinstance(value, str) != (task.inputs == "texts")), None)
        if wrong_kind is not None:
            raise DataError(
                f"{part} split of {name!r}: its inputs are not {task.inputs}, as {wrong_kind!r:.40} is none"
            )
    if not task.classes:
        if not np.isfinite(raw.labels).all():
            raise DataError(f"{part} split of {name!r}: a label is not a finite number")
        return replace(raw, labels=raw.labels.astype(np.float32))
    if raw.labels.dtype != np.int64:
        raise DataError(f"{part} split of {name!r}: its labels are {raw.labels.dtype}, classes are integers")
    wrong = (raw.labels < 0) | (raw.labels >= len(task.classes))
    if wrong.any():
        where = f"{part} split of {name!r}: label {raw.labels[wrong][0]} at example {int(wrong.argmax())}"
        raise DataError(f"{where}; allowed are 0 to {len(task.classes) - 1}")
    return raw
