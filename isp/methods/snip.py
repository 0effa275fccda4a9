"""SNIP: keep the weights whose removal would change the loss most, then fine-tune for T steps.

Lee, Ajanthan & Torr, "SNIP: Single-shot network pruning based on connection sensitivity", ICLR 2019. The sensitivity is
|dL/dc| at c = 1 for a factor c on each weight, which is |g * w|; the paper's division by its sum changes no order.

Departures: the weights are pre-trained, not drawn with variance scaling; the gradient is the mean over several batches
where the paper takes one; dropout is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from isp.lazy import torch
from isp.methods import Family, Probe, Scored

if TYPE_CHECKING:
    from torch import Tensor

FAMILY: Family = "one_shot"
VERSION = 1


class Settings(Scored):
    """Scope, and how much data is looked at."""

    batches: int = Field(default=4, ge=1, description="training batches that the gradient is the mean over")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """|g * w|, g the mean gradient of the batches."""
    gradient = mean_gradient(probe, settings.batches)
    return {name: (gradient[name] * weight).abs().detach() for name, weight in probe.weights.items()}


def sum_type(weight: Tensor) -> torch.dtype:
    """Type to sum scores in: the weight's, but fp32 for half precision, in which small scores would vanish."""
    return torch.promote_types(weight.dtype, torch.float32)


def mean_gradient(probe: Probe, batches: int) -> dict[str, Tensor]:
    """Gradient of the mean loss of the first `batches` batches; zero for weights that the loss does not depend on."""
    total = {name: torch.zeros_like(weight, dtype=sum_type(weight)) for name, weight in probe.weights.items()}
    for batch in probe.batches(batches):
        loss = probe.loss(probe.model, batch)
        gradients = torch.autograd.grad(loss, list(probe.weights.values()), materialize_grads=True)
        for name, gradient in zip(probe.weights, gradients, strict=True):
            total[name] += gradient
    return {name: gradient / batches for name, gradient in total.items()}
