"""Tasks, one file per task; a task's name is the stem of its file, which defines `TASK`.

Files whose names begin with an underscore contain code that several tasks share. A study file can define further tasks
(`isp.definitions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from isp.data.images import Augmentation
from isp.data.sources import Source
from isp.data.splits import Rule, validation_size
from isp.errors import ConfigError, unknown
from isp.metrics import allowed_metrics
from isp.settings import Settings

Inputs = Literal["pictures", "texts"]


class TaskLimits(Settings):
    """Amount of a task's training split to use, and its augmentation."""

    num_train: int | None = Field(default=None, ge=1, description="number of training examples; null: all")
    num_validation: int | None = Field(default=None, ge=1, description="number of validation examples used; null: all")
    augmentation: Augmentation = Field(default="crop", description="augmentation of training images; none for texts")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task; base class of tasks on images and on texts.

    Attributes:
        source: Origin of the examples.
        num_examples: Size of the official training split; data of another size are refused.
        classes: Names of the classes in the order of the labels; empty: a regression.
        metrics: Names in `isp.metrics`; choices and tables use the first.
        num_validation: Number of examples carved from the official training split; None: min(10 %, 5000).
        split: Rule by which they are carved; see `isp.data.splits`.
        version: Version, raised when the task's behaviour changes. Scores of different versions are not comparable.
    """

    source: Source
    num_examples: int
    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    num_validation: int | None = None
    split: Rule = "random"
    version: int = 1

    def __post_init__(self) -> None:
        kind = f"{len(self.classes)} classes" if self.classes else "a regression"
        for metric in self.metrics:
            if metric not in allowed_metrics(len(self.classes)):
                raise ConfigError(unknown(f"metric for {kind}", metric, allowed_metrics(len(self.classes))))

    @property
    def inputs(self) -> Inputs:
        """Kind of inputs of the examples."""
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a head: one for each class, or one for a regression."""
        return len(self.classes) or 1

    def num_train(self, limits: TaskLimits) -> int:
        """Return the number of examples to train on.

        Raises:
            ConfigError: If the limits exceed the available examples.
        """
        validation = validation_size(self.num_examples, self.num_validation)
        sizes = {"num_train": self.num_examples - validation, "num_validation": validation}
        for key, size in sizes.items():
            limit = getattr(limits, key)
            if limit is not None and limit > size:
                raise ConfigError(f"{key} = {limit}: must be in 1 to {size}, the size of the training split")
        return limits.num_train or sizes["num_train"]


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """An image classification task.

    Attributes:
        templates: Prompt templates for the zero-shot head, each with one {}.
    """

    templates: tuple[str, ...]

    @property
    def inputs(self) -> Inputs:
        """Kind of inputs: one image per example."""
        return "pictures"


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A task on sentences or pairs of sentences: a classification, or a regression if there are no classes."""

    @property
    def inputs(self) -> Inputs:
        """Kind of inputs: one or two texts per example."""
        return "texts"
