"""Movement pruning: keep the weights that fine-tuning moves away from zero, not those that are large.

Sanh, Wolf & Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", hard movement pruning with the cubic
ramp: a weight's score is the sum of -g * w over the steps so far (their eq. 4 without its constant factor, which cannot
change a rank). As in their code the mask is recomputed at every step (`every`): in portions of many steps the method
fails, because weights that are large and shrink are dropped too many at a time.
Departures: a weight that was dropped is zero and stays dropped, where theirs keeps its value behind the mask and may
come back; so nothing changes after the end of the ramp (`gradual` says where its events lie). Gradients are those of
the mean loss before clipping. Their score parameters have a learning rate and a warm-up of their own, ours are plain
sums. Their ramp begins and ends with some steps at constant sparsity; ours begins at step 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from isp.lazy import torch
from isp.masks import Mask, keep_top
from isp.methods import Event, Family, gradual
from isp.methods.gradual import Settings, events

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FAMILY", "VERSION", "Settings", "events", "observe", "prune"]

FAMILY: Family = "single_pass"
VERSION = 2


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
    reached = gradual.schedule(settings, event.sparsity, event.steps)[event.step]
    return keep_top(
        event.memory,
        sparsity=reached,
        ties=event.weights,
        within=event.within,
        scope=settings.scope,
        input_dims=event.input_dims,
    )
