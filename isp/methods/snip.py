"""SNIP: keep the weights whose removal would change the loss most, then fine-tune for T steps.

Lee, Ajanthan & Torr, "SNIP: Single-shot network pruning based on connection sensitivity", ICLR 2019. The sensitivity is
|dL/dc| at c = 1 for a factor c on each weight, which equals |g * w|. The paper divides by the sum of all sensitivities,
which does not change their order.

Departures: the weights are pre-trained, not drawn with variance scaling; the gradient is the mean over several batches
instead of one; dropout is off.
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
    """Scope and amount of data."""

    batches: int = Field(default=4, ge=1, description="number of training batches over which the gradient is averaged")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Return |g * w|, where g is the mean gradient over the batches."""
    gradient = mean_gradient(probe, settings.batches)
    return {name: (gradient[name] * weight).abs().detach() for name, weight in probe.weights.items()}


def sum_type(weight: Tensor) -> torch.dtype:
    """Return the dtype for sums of scores: at least fp32, because small scores would vanish in half precision."""
    return torch.promote_types(weight.dtype, torch.float32)


def mean_gradient(probe: Probe, batches: int) -> dict[str, Tensor]:
    """Return the mean gradient over the first `batches` batches; zero for weights that do not affect the loss."""
    total = {name: torch.zeros_like(weight, dtype=sum_type(weight)) for name, weight in probe.weights.items()}
    for batch in probe.batches(batches):
        loss = probe.loss(probe.model, batch)
        gradients = torch.autograd.grad(loss, list(probe.weights.values()), materialize_grads=True)
        for name, gradient in zip(probe.weights, gradients, strict=True):
            total[name] += gradient
    return {name: gradient / batches for name, gradient in total.items()}
