"""Tickets, the trained sparse models in which every method ends, and the validation scores by which some choose."""

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
    """A trained, sparse model: the state at step T and the mask under which it was trained.

    Attributes:
        method: Name of the method that made it.
        sparsity: Target sparsity, a decimal with four places.
        mask: Mask over the prunable parameters.
        weights: All parameters and buffers; masked weights are exactly zero.
        finding: Cost until the mask was known (for single-pass methods this is part of the training).
        retraining: Cost of training under the final mask.
        rounds: One record per round of a method that has rounds; one in total for a method that prunes within one run.
        origin: Settings of the method, protocol, seed and device.
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
        """Whole cost of the ticket, even if parts of it were shared with other tickets."""
        return self.finding + self.retraining


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Criterion by which a method that `chooses` does so: scores on validation examples, never on test examples.

    Attributes:
        score: Function from all weights of a model to a score; higher is better.
        cost: Cost of one score.
    """

    score: Callable[[Mapping[str, Tensor]], float]
    cost: Cost


@dataclass
class Evaluations:
    """Counter of validation scores.

    Attributes:
        validation: Criterion.
        count: Number of scores computed so far.
    """

    validation: Validation
    count: int = 0

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """Return the score of all weights of a model."""
        self.count += 1
        return self.validation.score(weights)

    @property
    def cost(self) -> Cost:
        """Cost of all evaluations so far."""
        return sum([self.validation.cost] * self.count, Cost())


def check_ticket(ticket: Ticket) -> None:
    """Check on the weights that a ticket is exact to one weight; a failure is a bug in a method, not bad input."""
    total = masks.num_weights(ticket.mask)
    assert masks.num_kept(ticket.mask) == total - num_pruned(ticket.sparsity, total), ticket.method
    for name, kept in ticket.mask.items():
        assert not ticket.weights[name][~kept].any(), f"{ticket.method}: {name} has masked weights that are not zero"
