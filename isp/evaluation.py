"""Scores of a model on examples it was not trained on."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from isp.metrics import score


class Labelled(Protocol):
    """Examples whose batches are (inputs, labels)."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        """The batch of the examples `indices`."""
        ...


def evaluate(model: nn.Module, examples: Labelled, metric: str, batch_size: int = 256) -> float:
    """The metric over all examples, in percent; the model is put into evaluation mode."""
    model.eval()
    outputs, labels = [], []
    with torch.inference_mode():
        for indices in torch.split(torch.arange(len(examples)), batch_size):
            inputs, truth = examples.batch(indices)
            outputs.append(model(inputs).float().cpu().numpy())
            labels.append(truth.cpu().numpy())
    return score(metric, np.concatenate(outputs), np.concatenate(labels))
