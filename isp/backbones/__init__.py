"""One file a backbone; its name is the file's stem.

Every file defines `BACKBONE`; those that are pre-trained here, also `PRETRAINING` and `pretrain`. Files that begin with
an underscore hold what the backbones of a family share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from isp.data.images import Augmentation, Images
from isp.data.sources import RawImages
from isp.tasks import ImageTask
from isp.training import LossFunction


class Backbone(Protocol):
    """What the stages need of a backbone. The model is the one that is fine-tuned and pruned: backbone and head."""

    @property
    def version(self) -> int:
        """Raised when the backbone's behaviour changes."""
        ...

    @property
    def prunable(self) -> tuple[str, ...]:
        """Patterns of the prunable parameters of the model."""
        ...

    @property
    def loss(self) -> LossFunction:
        """Maps (model, batch) to a scalar, the mean over the batch."""
        ...

    def prepare(self, raw: RawImages, chosen: np.ndarray, where: str) -> dict[str, Tensor]:
        """Inputs of the chosen examples as tensors, ready to be kept; `where` names them in errors."""
        ...

    def examples(self, tensors: Mapping[str, Tensor], augmentation: Augmentation) -> Images:
        """Examples that form batches, of prepared tensors."""
        ...

    def initial(self, pretrained: Mapping[str, Tensor], task: ImageTask, random_seed: int | None) -> nn.Module:
        """The model of a task before fine-tuning; `random_seed`: under the same head, but not pre-trained."""
        ...

    def restore(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The model that such weights are of, holding them."""
        ...
