"""GraSP: keep the weights whose removal would lower the gradient's norm most, then fine-tune for T steps.

Wang, Zhang & Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020. Weights are
scored -w * Hg, the first-order change of g'g when they are removed; those of the highest score are dropped. Logits are
divided by a temperature before the loss, as in the authors' code, in both factors of Hg.

g and H are over the prunable weights alone (the authors' code takes all weight matrices) and are means over several
batches; Hg is made batch by batch, by a second backward pass through the gradient, so every batch is run twice.

Departures: the weights are pre-trained and stay so, where public versions draw them anew before scoring; the batches
are the first of the training, not 25 examples of every class; dropout is off. For a regression the outputs are divided
as well, which shrinks them beside their targets: temperature 1 there scores the true loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """Scope, how much data is looked at, and under which temperature."""

    batches: int = Field(default=4, ge=1, description="training batches that g and H are the means over")
    temperature: float = Field(default=200.0, gt=0, description="what the logits are divided by; 1: nothing is done")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """The score w * Hg, the paper's score with its sign turned, so that the highest are kept.

    Raises:
        ConfigError: there is a temperature, but no logits that could be divided.
    """
    weights = list(probe.weights.values())
    total = {name: torch.zeros_like(weight, dtype=sum_type(weight)) for name, weight in probe.weights.items()}
    with tempered(probe.model, settings.temperature):
        mean = mean_gradient(probe, settings.batches)
        for batch in probe.batches(settings.batches):
            loss = probe.loss(probe.model, batch)
            gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            flow = sum((own * g).sum() for own, g in zip(gradients, mean.values(), strict=True))
            products = torch.autograd.grad(flow, weights, materialize_grads=True)  # type: ignore[arg-type]
            for name, product in zip(total, products, strict=True):
                total[name] += product
    return {name: (weight * total[name]).detach() / settings.batches for name, weight in probe.weights.items()}


@contextmanager
def tempered(model: nn.Module, temperature: float) -> Iterator[None]:
    """A context in which the outputs of `model` are divided by `temperature`.

    Raises:
        ConfigError: the outputs are not a tensor (a model that computes its own loss), or the loss never calls the
            model as a whole, so that nothing was divided.
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
                f"temperature = {temperature}: the model's output is a {type(outputs).__name__}, no tensor of logits "
                f"that could be divided; allowed is 1"
            )
        return outputs / temperature

    with model.register_forward_hook(divide):
        yield
    if not calls:
        raise ConfigError(
            f"temperature = {temperature}: the loss calls only parts of the model, so its logits are not known; "
            f"allowed is 1"
        )
