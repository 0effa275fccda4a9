"""Backbones, one file per backbone; a backbone's name is the stem of its file.

Every file defines `BACKBONE` and `TRAINING`, the fine-tuning protocol of `isp run`. A backbone that is pre-trained here
also defines `PRETRAINING` and `pretrain`; for others `BACKBONE.source` is the origin of their weights. Files whose
names begin with an underscore contain code that several backbones share. A study file can define further backbones
(`isp.definitions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isp.data.images import Augmentation
from isp.data.sources import Column, HubModel
from isp.tasks import Inputs, Task
from isp.training import Examples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isp.exported import Library


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pre-trained model without a head.

    Attributes:
        weights: Parameters and persistent buffers by name, fp32.
        architecture: Description from which the model is built, as JSON values. Every artifact of the model carries it.
        vocabulary: WordPieces in the order of their ids; empty for images.
        data: Checksum of the pre-training data if they are installed with packages, otherwise "".
    """

    weights: dict[str, Tensor]
    architecture: dict[str, Any]
    vocabulary: tuple[str, ...] = ()
    data: str = ""


class Backbone(Protocol):
    """Interface between a backbone and the stages. Its model, backbone and head, is fine-tuned and pruned."""

    @property
    def version(self) -> int:
        """Version, raised when the backbone's behaviour changes."""
        ...

    @property
    def inputs(self) -> Inputs:
        """Kind of inputs, which decides the tasks it can be trained on."""
        ...

    @property
    def source(self) -> HubModel | None:
        """Origin of the weights; None: pre-training in this package."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the source's files."""
        ...

    @property
    def prunable(self) -> tuple[str, ...]:
        """Patterns of the prunable parameters of the model, which are weights of shape (outputs, inputs)."""
        ...

    def convert(self, folder: Path) -> Pretrained:
        """Load the pre-trained model from the files of the source."""
        ...

    def prepare(
        self, columns: Sequence[Column], chosen: np.ndarray, pretrained: Pretrained, where: str
    ) -> dict[str, Tensor]:
        """Prepare the inputs of the chosen examples as tensors to store; `where` names the data in errors."""
        ...

    def examples(
        self, tensors: Mapping[str, Tensor], architecture: Mapping[str, Any], augmentation: Augmentation
    ) -> Examples:
        """Make examples that form batches of (inputs, labels) from prepared tensors."""
        ...

    def initial(self, pretrained: Pretrained, task: Task, seed: int, random: bool) -> nn.Module:
        """Build the model of a task before fine-tuning; with `random`, only its head is pre-trained."""
        ...

    def blank(
        self, task: Task, num_examples: int, data_root: Path
    ) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
        """Return the material of plans: a model with random weights, its architecture, and prepared tensors of zeros.

        Texts have the maximum length.

        Raises:
            DataError: If the architecture is only known from a file that has not been downloaded yet.
        """
        ...

    def restore(self, weights: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> nn.Module:
        """Build the model to which these weights belong, and load them."""
        ...

    @property
    def library(self) -> Library:
        """Library that loads the files written by `export`."""
        ...

    def export(
        self, folder: Path, weights: Mapping[str, Tensor], pretrained: Pretrained, task: Task, plain: bool
    ) -> None:
        """Write a fine-tuned model's configuration, input preprocessing and classes into a folder.

        Args:
            folder: Existing folder.
            weights: Parameters and persistent buffers of the fine-tuned model.
            pretrained: Pre-trained model from which fine-tuning started.
            task: Task of the fine-tuning.
            plain: Whether to write the weights as well, in the layout of the library.

        Raises:
            ConfigError: If `pretrained` is another model.
        """
        ...
