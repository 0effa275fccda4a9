"""One file a backbone; its name is the file's stem.

Every file defines `BACKBONE` and `TRAINING`, the protocol that `isp run` fine-tunes with. Those that are pre-trained
here also define `PRETRAINING` and `pretrain`; of others `BACKBONE.source` says where their weights come from. Files
that begin with an underscore hold what the backbones of a family share. A study file can define backbones of its own
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
    """A pre-trained model, its head not among it.

    Attributes:
        weights: parameters and persistent buffers by name, fp32.
        architecture: what the model is built from, as JSON holds it; every artifact of a model carries it on.
        vocabulary: WordPieces in the order of their numbers; empty for pictures.
        data: checksum of what it was pre-trained on, where that is installed with packages.
    """

    weights: dict[str, Tensor]
    architecture: dict[str, Any]
    vocabulary: tuple[str, ...] = ()
    data: str = ""


class Backbone(Protocol):
    """What the stages need of a backbone. The model is the one that is fine-tuned and pruned: backbone and head."""

    @property
    def version(self) -> int:
        """Raised when the backbone's behaviour changes."""
        ...

    @property
    def inputs(self) -> Inputs:
        """What it takes, and so which tasks."""
        ...

    @property
    def source(self) -> HubModel | None:
        """Where the weights come from; None: from pre-training here."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of the weights, with a source."""
        ...

    @property
    def prunable(self) -> tuple[str, ...]:
        """Patterns of the prunable parameters of the model, weights of the shape (outputs, inputs)."""
        ...

    def convert(self, folder: Path) -> Pretrained:
        """The pre-trained model from the files of the source."""
        ...

    def prepare(
        self, columns: Sequence[Column], chosen: np.ndarray, pretrained: Pretrained, where: str
    ) -> dict[str, Tensor]:
        """Inputs of the chosen examples as tensors, ready to be kept; `where` names them in errors."""
        ...

    def examples(
        self, tensors: Mapping[str, Tensor], architecture: Mapping[str, Any], augmentation: Augmentation
    ) -> Examples:
        """Examples that form batches of (inputs, labels), of prepared tensors."""
        ...

    def initial(self, pretrained: Pretrained, task: Task, seed: int, random: bool) -> nn.Module:
        """The model of a task before fine-tuning; `random`: under the same head, but not pre-trained."""
        ...

    def blank(
        self, task: Task, num_examples: int, data_root: Path
    ) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
        """What plans are made with: a model with random weights, its architecture, prepared tensors of zeros.

        Texts are as long as texts may be.

        Raises:
            DataError: only a file that is not fetched yet says what the model looks like.
        """
        ...

    def restore(self, weights: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> nn.Module:
        """The model that such weights are of, holding them."""
        ...

    @property
    def library(self) -> Library:
        """The library that loads what `export` writes."""
        ...

    def export(
        self, folder: Path, weights: Mapping[str, Tensor], pretrained: Pretrained, task: Task, plain: bool
    ) -> None:
        """Write the configuration of a fine-tuned model into a folder, what prepares its inputs, and the classes.

        Args:
            folder: An existing folder.
            weights: Parameters and persistent buffers of the fine-tuned model.
            pretrained: The pre-trained model that it began from.
            task: The task that it was fine-tuned on.
            plain: Whether the weights are written, too, as the library has them.

        Raises:
            ConfigError: `pretrained` is another model.
        """
        ...
