"""GraSP: keep the weights whose removal would lower the gradient norm most, then fine-tune for T steps.

Wang, Zhang & Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020. The score of a
weight is -w * Hg, the first-order change of g'g when the weight is removed; the weights with the highest scores are
pruned. As in the authors' code, logits are divided by a temperature before the loss, in both factors of Hg.

g and H cover only the prunable weights (in the authors' code, all weight matrices) and are means over several batches.
Hg is computed batch by batch with a second backward pass through the gradient, so every batch is processed twice.

Departures: the weights are pre-trained, while public versions draw random weights before scoring; the batches are the
first ones of training, not 25 examples of every class; dropout is off. The outputs of a regression model are divided as
well, which shrinks them relative to their targets; temperature 1 scores the true loss there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from isp.errors import ConfigError
from isp.lazy import torch
from isp.methods import Family, Probe, Scored
from isp.methods.snip import mean_gradient, sum_type

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY: Family = "one_shot"
VERSION = 1


class Settings(Scored):
    """Scope, amount of data and temperature."""

    batches: int = Field(default=4, ge=1, description="number of training batches over which g and H are averaged")
    temperature: float = Field(default=200.0, gt=0, description="divisor of the logits; 1 leaves them unchanged")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Return w * Hg, the paper's score with the opposite sign, so that the highest scores are kept.

    Raises:
        ConfigError: If the temperature is not 1 and the model has no logits to divide.
    """
    # A power of two changes no bit of the result, and in fp16 gradients of divided logits would vanish without it.
    scale = 2.0 ** round(math.log2(settings.temperature))
    probe = replace(probe, loss=partial(_scaled, probe.loss, scale))
    weights = list(probe.weights.values())
    total = {name: torch.zeros_like(weight, dtype=sum_type(weight)) for name, weight in probe.weights.items()}
    with tempered(probe.model, settings.temperature):
        mean = mean_gradient(probe, settings.batches)
        for batch in probe.batches(settings.batches):
            loss = probe.loss(probe.model, batch)
            gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            flow = sum((gradient * g).sum() for gradient, g in zip(gradients, mean.values(), strict=True))
            products = torch.autograd.grad(flow, weights, materialize_grads=True)  # type: ignore[arg-type]
            for name, product in zip(total, products, strict=True):
                total[name] += product
    divisor = settings.batches * scale**2
    return {name: (weight * total[name]).detach() / divisor for name, weight in probe.weights.items()}


def _scaled(loss: Callable[[nn.Module, Any], Tensor], scale: float, model: nn.Module, batch: Any) -> Tensor:
    return loss(model, batch) * scale


@contextmanager
def tempered(model: nn.Module, temperature: float) -> Iterator[None]:
    """Divide the outputs of `model` by `temperature` inside this context.

    Raises:
        ConfigError: If the outputs are not a tensor (a model that computes its own loss), or if the loss never calls
            the model as a whole, so that nothing was divided.
    """
    if temperature == 1:
        yield
        return
    calls = 0

    def divide(module: nn.Module, inputs: Any, outputs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if not isinstance(outputs, torch.Tensor):
            raise ConfigError(
                f"temperature = {temperature}: must be 1 because the model's output has type {type(outputs).__name__}, "
                'so it is not a tensor of logits to divide; pass settings={"temperature": 1}'
            )
        return outputs / temperature

    with model.register_forward_hook(divide):
        yield
    if not calls:
        raise ConfigError(
            f"temperature = {temperature}: must be 1 because the loss calls only parts of the model, so its logits are "
            f"unknown"
        )
