"""One file a task; its name is the file's stem. Every file defines `TASK`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from isp.data.images import Augmentation
from isp.data.sources import Digits, HubFolder
from isp.data.splits import validation_size
from isp.errors import ConfigError
from isp.settings import Settings


class TaskLimits(Settings):
    """How much of a task's training split is used, and how it is augmented."""

    num_train: int | None = Field(default=None, ge=1, description="training examples; null: all")
    num_validation: int | None = Field(default=None, ge=1, description="validation examples used; null: all")
    augmentation: Augmentation = Field(default="crop", description="of training pictures")


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """A picture classification task.

    Attributes:
        source: where the examples come from.
        num_examples: size of the official training split; data of another size are refused.
        classes: names of the classes in the order of the labels.
        templates: prompt templates for the zero-shot head, each with one {}.
        metric: name in `isp.metrics`.
        num_validation: examples carved from the official training split; None: min(10 %, 5000).
        version: raised when the task's behaviour changes; scores of different versions are not comparable.
    """

    source: HubFolder | Digits
    num_examples: int
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    metric: str = "accuracy"
    num_validation: int | None = None
    version: int = 1

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
