"""Movement pruning: keep the weights that fine-tuning moves away from zero, not those that are large.

Sanh, Wolf & Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", hard movement pruning with the cubic
ramp: a weight's score is the sum of -g * w over the steps so far (their eq. 4 without its constant factor, which cannot
change a rank). Departures: a weight that was dropped is zero and stays dropped, where theirs keeps its value behind the
mask and may come back; gradients are those of the mean loss before clipping; their score parameters have a learning
rate and a warm-up of their own, ours are plain sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from isp.masks import Mask, keep_top
from isp.methods import Event, Family
from isp.methods import progressive as _progressive
from isp.methods.progressive import events

__all__ = ["FAMILY", "VERSION", "Settings", "events", "observe", "prune"]

FAMILY: Family = "single_pass"
VERSION = 1


class Settings(_progressive.Settings):
    """As `progressive`, with the ramp for a default."""

    schedule: Literal["periodic", "cubic"] = Field(default="cubic", description="equal portions, or a cubic ramp")


def observe(memory: dict[str, Tensor], names: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> None:
    """Add this step's -g * w to the scores, fp32."""
    with torch.no_grad():
        for name in names:
            weight = parameters[name]
            if name not in memory:
                memory[name] = torch.zeros_like(weight, dtype=torch.float32)
            if weight.grad is not None:
                memory[name].addcmul_(weight.grad.float(), weight.float(), value=-1)


def prune(event: Event, settings: Settings) -> Mask:
    """The highest scores among the weights that are alive, ties by |w|."""
    reached = _progressive.schedule(settings, event.sparsity, event.steps)[event.step]
    return keep_top(event.memory, sparsity=reached, ties=event.weights, within=event.within, scope=settings.scope)
