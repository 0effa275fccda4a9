"""Post-hoc interpolation of the tickets of iterative magnitude pruning, chosen by validation scores.

A method of this family defines nothing more; its settings and mathematics are those of `lottery_pools`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from isp.costs import Cost
from isp.families import Method, Traits, iterative
from isp.methods import lottery_pools
from isp.norms import Reestimation, reestimation
from isp.tickets import Evaluations, Ticket, Validation
from isp.training import State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(settings=lottery_pools.Settings, chooses=True)


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return the steps of the tickets that are pooled; pooling trains nothing."""
    return iterative.planned_steps(method, training, num_examples, sparsities)


def pool(
    method: Method,
    ticket: Ticket,
    rounds: Sequence[Mapping[str, Tensor]],
    validation: Validation,
    reestimate: Reestimation | None = None,
) -> Ticket:
    """Pool a ticket with the weights of earlier rounds; the evaluations are part of its cost.

    The whole cost of the ticket counts as finding, because its own training is an ingredient like the others.

    Args:
        method: Method with the settings of `lottery_pools`.
        ticket: Ticket of the target sparsity.
        rounds: All weights at the end of the dense run and of the previous rounds, in their order.
        validation: Validation scores by which interpolations are chosen.
        reestimate: Estimation of the running statistics of each interpolation before it is scored, if it has any.
    """
    settings = method.settings
    assert isinstance(settings, lottery_pools.Settings)
    score = Evaluations(validation)
    nearest_first = list(reversed(rounds))
    finish = {} if reestimate is None else {"finish": reestimate}
    weights, mask, coefficients = lottery_pools.pool(
        ticket.weights, ticket.mask, nearest_first, score, ticket.sparsity, settings, **finish
    )
    record: dict[str, Any] = {"pooled": coefficients, "evaluations": score.count}
    return replace(
        ticket,
        method=method.name,
        mask=mask,
        weights=dict(weights),
        finding=ticket.cost + score.cost + (reestimate.cost if reestimate else Cost()),
        retraining=Cost(),
        rounds=[*ticket.rounds, record],
    )


def tickets(
    method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal], validation: Validation
) -> Iterator[Ticket]:
    """Yield one ticket per sparsity; the rounds are shared."""
    for ticket, rounds in iterative.tickets_and_rounds(method, trainer, initial, sparsities):
        yield pool(method, ticket, rounds, validation, reestimation(trainer))
