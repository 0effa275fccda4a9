"""Movement pruning: keep the weights that fine-tuning moves away from zero rather than those that are large.

Sanh, Wolf & Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", hard movement pruning with the cubic
ramp: a weight's score is the sum of -g * w over the steps so far (their eq. 4 without its constant factor, which cannot
change a rank). As in their code, the mask is recomputed at every step (`every`). Pruning in portions of many steps
fails, because it drops too many large but shrinking weights at a time.

Departures: a pruned weight is zero and stays pruned, while the original keeps its value behind the mask and may restore
it; the mask therefore never changes after the end of the ramp (see `gradual` for its events). Gradients are those of
the mean loss before clipping. The original's score parameters have their own learning rate and warm-up; here scores are
plain sums. The original ramp begins and ends with some steps at constant sparsity; here it begins at step 0.
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
    """Add this step's -g * w to the scores, in fp32."""
    with torch.no_grad():
        for name in names:
            weight = parameters[name]
            if name not in memory:
                memory[name] = torch.zeros_like(weight, dtype=torch.float32)
            if weight.grad is not None:
                memory[name].addcmul_(weight.grad.float(), weight.float(), value=-1)


def prune(event: Event, settings: Settings) -> Mask:
    """Keep the highest scores among the weights that are not yet pruned, with ties broken by |w|."""
    reached = gradual.schedule(settings, event.sparsity, event.steps)[event.step]
    return keep_top(
        event.memory,
        sparsity=reached,
        ties=event.weights,
        within=event.within,
        scope=settings.scope,
        input_dims=event.input_dims,
    )
