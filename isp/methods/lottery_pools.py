"""Lottery Pools: better tickets by interpolating the tickets of one run of iterative magnitude pruning.

Yin et al. 2023, "Lottery Pools: Winning More by Interpolating Tickets without Increasing Training or Inference Cost".
The ingredients are the weights at the end of the rounds of `lth`, including the dense run. Starting from the ticket of
the target sparsity, candidates are tried in order of their distance in rounds. Each is interpolated with the current
weights at every coefficient and pruned by magnitude back to the target, and the best result is kept if it scores better
on validation examples. All evaluations are counted as cost.

Departure: the authors' chain of tickets continues beyond the target, so that sparser tickets are candidates as well.
Here the chain ends at the target, because no ticket may depend on which other sparsities are requested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from pydantic import Field, field_validator

from isp.masks import Mask, Weights
from isp.methods import Family
from isp.methods import lth as _lth
from isp.soups import Score, interpolated, merge, pruned

FAMILY: Family = "pooled"
VERSION = 1

COEFFICIENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Settings(_lth.Settings):
    """Settings of `lth`, whose tickets are pooled, and the coefficients to try."""

    coefficients: tuple[float, ...] = Field(
        default=COEFFICIENTS, min_length=1, description="shares of a candidate in the interpolation, in (0, 1)"
    )

    @field_validator("coefficients")
    @classmethod
    def _inside(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < value < 1 for value in values):
            raise ValueError(f"{list(values)}: must be numbers in (0, 1)")
        return values


def pool(
    ticket: Weights,
    mask: Mask,
    candidates: Sequence[Weights],
    score: Score,
    sparsity: Decimal,
    settings: Settings,
    finish: Callable[[Weights], Weights] = lambda weights: weights,
) -> tuple[Weights, Mask, list[float]]:
    """Interpolate a ticket with candidates, nearest first.

    Args:
        ticket: All weights of the initial ticket.
        mask: Mask of the initial ticket.
        candidates: All weights of the other tickets, in the order in which they are tried.
        score: Function from weights to a validation score; higher is better.
        sparsity: Sparsity of the ticket.
        settings: Coefficients and scope.
        finish: Function applied to all weights of an interpolation after pruning and before scoring.

    Returns:
        Weights, mask, and the coefficient chosen for each candidate (0 where none was better).
    """

    def mix(candidate: Weights, current: tuple[Weights, Mask], share: float) -> tuple[Weights, Mask]:
        sparse, kept = pruned(interpolated(candidate, current[0], share), mask, sparsity, settings.scope)
        return finish(sparse), kept

    start: tuple[Weights, Mask] = ticket, mask
    (weights, result), _, steps = merge(start, candidates, lambda sparse: score(sparse[0]), settings.coefficients, mix)
    return weights, result, [step.coefficient for step in steps]
