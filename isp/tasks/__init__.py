"""One file a task; its name is the file's stem. Every file defines `TASK`.

Files that begin with an underscore hold what the tasks of a family share. A study file can define tasks of its own
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
    """How much of a task's training split is used, and how it is augmented."""

    num_train: int | None = Field(default=None, ge=1, description="training examples; null: all")
    num_validation: int | None = Field(default=None, ge=1, description="validation examples used; null: all")
    augmentation: Augmentation = Field(default="crop", description="of training pictures; texts have none")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the tasks of pictures and of texts have in common.

    Attributes:
        source: where the examples come from.
        num_examples: size of the official training split; data of another size are refused.
        classes: names of the classes in the order of the labels; empty: a regression.
        metrics: names in `isp.metrics`; choices and tables go by the first.
        num_validation: examples carved from the official training split; None: min(10 %, 5000).
        split: how they are chosen; see `isp.data.splits`.
        version: raised when the task's behaviour changes; scores of different versions are not comparable.
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
        """What the examples are made of."""
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        """Outputs of a head: one for each class, or one number."""
        return len(self.classes) or 1

    def num_train(self, limits: TaskLimits) -> int:
        """How many examples are trained on.

        Raises:
            ConfigError: the limits ask for more than there are.
        """
        validation = validation_size(self.num_examples, self.num_validation)
        sizes = {"num_train": self.num_examples - validation, "num_validation": validation}
        for key, size in sizes.items():
            wanted = getattr(limits, key)
            if wanted is not None and wanted > size:
                raise ConfigError(f"{key} = {wanted}: allowed are 1 to {size}, what the training split has")
        return limits.num_train or sizes["num_train"]


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """A picture classification task.

    Attributes:
        templates: prompt templates for the zero-shot head, each with one {}.
    """

    templates: tuple[str, ...]

    @property
    def inputs(self) -> Inputs:
        """One picture an example."""
        return "pictures"


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A task on sentences or pairs of sentences: classification, or regression where there are no classes."""

    @property
    def inputs(self) -> Inputs:
        """One text or two an example."""
        return "texts"
