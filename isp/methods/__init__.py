"""One file a method; its name is the file's stem. A method holds only its own mathematics and states its family.

Every file defines `FAMILY`, a file in `isp/families/`, which says what else a method of it defines and how it is run;
`VERSION`, raised when its results change; and `Settings`.
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
        description="how weights are ranked: 'global', over all layers together; 'layer', in each on its own; or a "
        "pattern 'N:M' such as '2:4', of every M consecutive weights along a layer's inputs the N highest, which makes "
        "the sparsity 1 - N/M",
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a one-shot method may look at: the model at the initial weights and batches of training data, nothing else.

    While the method runs, attention is computed by plain matrix products, which can be differentiated twice, and every
    one of its FLOPs is counted as cost.

    Attributes:
        weights: the prunable parameters by name, those of `model` itself; a method must not change them.
        model: the model, in evaluation mode (dropout off), holding the initial weights.
        loss: maps (model, batch) to a scalar, the mean over the batch.
        batches: the first n batches of the training order; the same ones at every call.
        input_dims: the input dimension of each weight, which `isp.masks.keep_top` needs for an N:M scope.
    """

    weights: dict[str, Tensor]
    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int], Iterator[Any]]
    input_dims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a single-pass method sees when it may prune.

    Attributes:
        step: Number of steps done.
        steps: T.
        sparsity: The target.
        weights: The prunable weights that are being trained. They must not be changed, and training changes them: a
            method that remembers one clones it.
        within: The current mask; what it dropped stays dropped.
        memory: Tensors that the method keeps between events, empty at first.
        input_dims: The input dimension of each weight, which `isp.masks.keep_top` needs for an N:M scope.
    """

    step: int
    steps: int
    sparsity: Decimal
    weights: dict[str, Tensor]
    within: Mask | None
    memory: dict[str, Tensor]
    input_dims: Mapping[str, int] = field(default_factory=dict)


def last_event(share: float, steps: int) -> int:
    """The step at `share` of T, where a single-pass method prunes last: at least 1 and at most T - 1.

    Raises:
        ConfigError: T is a single step.
    """
    if steps < 2:
        raise ConfigError(f"steps = {steps}: pruning within a run takes at least 2, one before and one after")
    return min(max(1, round(share * steps)), steps - 1)
