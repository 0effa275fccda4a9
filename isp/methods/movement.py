"""Movement pruning: keep the weights that fine-tuning moves away from zero rather than those that are large.

Sanh, Wolf & Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", hard movement pruning with the cubic ramp.
A weight's score is trained like a parameter: its gradient is g * w, the weight's gradient times the weight, and Adam
updates it. So a score falls where fine-tuning moves the weight towards zero, and the size of its steps depends neither
on the weight's size nor on the layer. With plain sums of -g * w (version 2 of this method, and their eq. 4), the sums
of large weights spread most, and the ramp, which asks for the lowest scores while few weights are pruned, drops large
weights first. As in their code, each layer has the same sparsity (`scope: layer`), the mask is recomputed at every
step (`every`), and the ramp begins after a share of T without pruning (`begin`; an epoch of ten on SQuAD) and ends
before T (`end`).

Departures: a pruned weight is zero and stays pruned, while the original keeps its value behind the mask and may restore
it; the mask therefore never changes after the end of the ramp (see `gradual` for its events). The gradients are those
of the mean loss before clipping. The learning rate of scores is constant, so its size cannot change a rank; in the
original it rises and falls like that of the weights. With an N:M scope only the last event imposes the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from isp.lazy import torch
from isp.masks import Mask, keep_top
from isp.methods import Event, Family, gradual, last_event
from isp.sparsity import Scope

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY: Family = "single_pass"
VERSION = 3

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Values of Adam, those of the original code."""


class Settings(gradual.Settings):
    """Timing of the ramp, and the scope of ranks."""

    begin: float = Field(default=0.1, ge=0, lt=1, description="share of T before the ramp, in which nothing is pruned")
    scope: Scope = Field(
        default="layer",
        description="how weights are ranked: 'layer', within each layer; 'global', over all layers together; or an "
        "'N:M' pattern such as '2:4', which keeps the N highest of every M consecutive weights along a layer's inputs "
        "and so fixes the sparsity at 1 - N/M",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Settings:
        if self.begin >= self.end:
            raise ValueError(f"begin = {self.begin}: must be less than end = {self.end}")
        return self


@lru_cache(maxsize=8)
def schedule(settings: Settings, sparsity: Decimal, steps: int) -> Mapping[int, Decimal]:
    """Return the sparsity after each prune event by its step, as `gradual.schedule` does, for a ramp that begins later.

    Raises:
        ConfigError: If T is a single step.
    """
    last = last_event(settings.end, steps)
    return gradual.ramp(sparsity, settings.every, min(round(settings.begin * steps), last - 1), last)


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """Return the steps of the prune events, ascending."""
    return list(schedule(settings, sparsity, steps))


def observe(memory: dict[str, Tensor], names: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> None:
    """Update the scores by this step's g * w as Adam updates parameters, in fp32.

    `memory` has the score of each weight as "score NAME", Adam's moments as "mean NAME" and "square NAME", and the
    number of updates as "updates NAME".
    """
    with torch.no_grad():
        for name in names:
            weight = parameters[name]
            if f"score {name}" not in memory:
                for kind in ("score", "mean", "square"):
                    memory[f"{kind} {name}"] = torch.zeros_like(weight, dtype=torch.float32)
                memory[f"updates {name}"] = torch.zeros((), dtype=torch.int64, device="cpu")
            if weight.grad is not None:
                _update(memory, name, weight.grad.float() * weight.float())


def _update(memory: Mapping[str, Tensor], name: str, gradient: Tensor) -> None:
    """Update a score by Adam at a learning rate of 1, which cannot change a rank."""
    score, mean, square, updates = (memory[f"{kind} {name}"] for kind in ("score", "mean", "square", "updates"))
    updates += 1
    mean.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    mean_correction, square_correction = (1 - beta ** int(updates) for beta in BETAS)
    scale = square.sqrt().div_(math.sqrt(square_correction)).add_(EPSILON)
    score.addcdiv_(mean, scale, value=-1 / mean_correction)


def prune(event: Event, settings: Settings) -> Mask:
    """Keep the highest scores among the weights that are not yet pruned, with ties broken by |w|."""
    scores = {name: event.memory[f"score {name}"] for name in event.weights if f"score {name}" in event.memory}
    return keep_top(
        scores,
        sparsity=schedule(settings, event.sparsity, event.steps)[event.step],
        ties=event.weights,
        within=event.within,
        scope=settings.scope,
        input_dims=event.input_dims,
    )
