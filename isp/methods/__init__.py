"""Pruning methods, one file per method; a method's name is the stem of its file.

A method contains only its own mathematics. Every file defines `FAMILY`, the name of the file in `isp/families/` that
says how the method is run and what else it must define; `VERSION`, raised when its results change; and `Settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import Field

from isp.errors import ConfigError
from isp.masks import Mask
from isp.settings import Settings
from isp.sparsity import Scope

if TYPE_CHECKING:
    from torch import Tensor, nn

Family = str
"""The stem of a file in `isp/families/`."""


class Scored(Settings):
    """Settings of every method that ranks weights."""

    scope: Scope = Field(
        default="global",
        description="how weights are ranked: 'global', over all layers together; 'layer', within each layer; or an "
        "'N:M' pattern such as '2:4', which keeps the N highest of every M consecutive weights along a layer's inputs "
        "and so fixes the sparsity at 1 - N/M",
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Inputs of a one-shot method: the model at its initial weights and batches of training data.

    While the method runs, attention is computed by plain matrix products, which can be differentiated twice, and all
    FLOPs are counted as cost.

    Attributes:
        weights: Prunable parameters of `model` by name. A method must not change them.
        model: Model with the initial weights, in evaluation mode (dropout off).
        loss: Function from (model, batch) to a scalar, the mean loss over the batch.
        batches: Function that returns the first n batches of the training order, the same ones at every call.
        input_dims: Input dimension of each weight, which `isp.masks.keep_top` needs for an N:M scope.
    """

    weights: dict[str, Tensor]
    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int], Iterator[Any]]
    input_dims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Inputs of a single-pass method at a step where it may prune.

    Attributes:
        step: Number of completed steps.
        steps: Total number of steps T.
        sparsity: Target sparsity.
        weights: Prunable weights in training. A method must not change them, and must clone those it stores, because
            training changes them.
        within: Current mask, if any. Weights that it prunes stay pruned.
        memory: Tensors that the method keeps between events, initially empty.
        input_dims: Input dimension of each weight, which `isp.masks.keep_top` needs for an N:M scope.
    """

    step: int
    steps: int
    sparsity: Decimal
    weights: dict[str, Tensor]
    within: Mask | None
    memory: dict[str, Tensor]
    input_dims: Mapping[str, int] = field(default_factory=dict)


def last_event(share: float, steps: int) -> int:
    """Return the last step at which a single-pass method prunes: `share` of T, at least 1 and at most T - 1.

    Raises:
        ConfigError: If T is a single step.
    """
    if steps < 2:
        raise ConfigError(f"steps = {steps}: must be at least 2 to prune during a run, one step before and one after")
    return min(max(1, round(share * steps)), steps - 1)
