"""Scores of a model on examples on which it was not trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isp.counting import counting
from isp.lazy import torch
from isp.metrics import score
from isp.tickets import Validation
from isp.training import lengths_of, load_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


class Labelled(Protocol):
    """Examples whose batches are (inputs, labels)."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        """Return the batch of the examples `indices`."""
        ...


def outputs_of(model: nn.Module, examples: Labelled, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs, fp32 (n, classes or 1), and labels, (n,), of all examples, in evaluation mode."""
    model.eval()
    lengths = lengths_of(examples)
    order = torch.arange(len(examples)) if lengths is None else lengths.argsort(stable=True)
    outputs, labels = [], []
    with torch.inference_mode():
        for indices in torch.split(order, batch_size):
            inputs, truth = examples.batch(indices)
            outputs.append(model(inputs).float().cpu())
            labels.append(truth.cpu())
    back = order.argsort()
    return torch.cat(outputs)[back].numpy(), torch.cat(labels)[back].numpy()


def evaluate(model: nn.Module, examples: Labelled, metrics: Sequence[str]) -> dict[str, float]:
    """Return each of the metrics over all examples, in percent."""
    outputs, labels = outputs_of(model, examples)
    return {metric: score(metric, outputs, labels) for metric in metrics}


def validation_by(model: nn.Module, examples: Labelled, metric: str) -> Validation:
    """Return a validation by one metric over all examples; the weights of `model` are overwritten."""

    def reached(weights: Mapping[str, Tensor]) -> float:
        load_weights(model, weights)
        return evaluate(model, examples, [metric])[metric]

    with counting(model) as counter:
        evaluate(model, examples, [metric])
    return Validation(score=reached, cost=counter.cost())
