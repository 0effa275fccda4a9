"""A ticket, the trained sparse model that every method ends in, and the validation scores that some choose by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from isp import masks
from isp.costs import Cost
from isp.masks import Mask
from isp.sparsity import num_pruned

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A trained, sparse model: the state at step T and the mask it was trained under.

    Attributes:
        method: name of the method that found it.
        sparsity: as asked for, a decimal with four places.
        mask: over the prunable parameters.
        weights: all parameters and buffers; the masked ones are exactly zero.
        finding: what was spent until the mask was known (for single-pass methods this is part of the training).
        retraining: what was spent under the final mask.
        rounds: One record per round of a method that has rounds; one in total of a method that prunes within one run.
        origin: what made it: the method's settings, the protocol, seed and device.
    """

    method: str
    sparsity: Decimal
    mask: Mask
    weights: dict[str, Tensor]
    finding: Cost = field(default_factory=Cost)
    retraining: Cost = field(default_factory=Cost)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """All that the ticket cost by itself, nothing shared with others taken off."""
        return self.finding + self.retraining


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a method that `chooses` does it by: validation examples, never test ones.

    Attributes:
        score: of all weights of a model; higher is better.
        cost: of scoring once.
    """

    score: Callable[[Mapping[str, Tensor]], float]
    cost: Cost


@dataclass
class Evaluations:
    """Scores by validation examples, counted.

    Attributes:
        validation: what is asked.
        count: how often it was.
    """

    validation: Validation
    count: int = 0

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """The score of all weights of a model."""
        self.count += 1
        return self.validation.score(weights)

    @property
    def cost(self) -> Cost:
        """Of all evaluations until now."""
        return sum([self.validation.cost] * self.count, Cost())


def check_ticket(ticket: Ticket) -> None:
    """Refuse a ticket that is not exact to one weight, counted on the weights: a bug in a method, not bad input."""
    total = masks.num_weights(ticket.mask)
    assert masks.num_kept(ticket.mask) == total - num_pruned(ticket.sparsity, total), ticket.method
    for name, kept in ticket.mask.items():
        assert not ticket.weights[name][~kept].any(), f"{ticket.method}: {name} has masked weights that are not zero"
