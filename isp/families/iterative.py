"""Iterative magnitude pruning: rounds of training to T, each rewound and under the mask of the previous round.

Every round starts from the initial state or, if the method has the setting `rewind_steps`, from the dense run's state
at that step. A method of this family defines nothing more; its settings are those of `lth`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from isp import masks
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import Method, Traits, scope_of
from isp.masks import Mask, Weights
from isp.methods import lth
from isp.sparsity import Scope, sparsities_to
from isp.tickets import Ticket
from isp.training import State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(settings=lth.Settings, patterns=True)


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return T for the dense run plus T less the rewind step for each round and for each target outside the chain.

    Raises:
        ConfigError: If a rate is so small that two rounds have the same sparsity, or the rewind step is outside the
            budget.
    """
    if rewind_step(method) >= training.steps:
        raise ConfigError(
            f"rewind_steps = {rewind_step(method)}: must be in 1 to {training.steps - 1}, below the {training.steps} "
            "steps of the budget"
        )
    chain = _chain(method, max(sparsities))
    if len(set(chain)) < len(chain):
        rate = method.settings.rate  # type: ignore[attr-defined]
        raise ConfigError(f"rate = {rate}: too small, because two rounds have the same sparsity to four decimals")
    events = set(enumerate(chain))
    events |= {(len(_chain(method, target)) - 1, target) for target in sparsities}
    return training.steps + len(events) * (training.steps - rewind_step(method))


def rewind_step(method: Method) -> int:
    """Return the step to which rounds rewind."""
    return int(getattr(method.settings, "rewind_steps", 0))


def prune(
    weights: Weights,
    sparsity: Decimal,
    within: Mask | None,
    scope: Scope,
    index: int,
    steps: int,
    input_dims: Mapping[str, int] = {},
) -> tuple[Mask, dict[str, Any]]:
    """Return the mask of round `index`, which keeps the largest trained weights, and the round's record."""
    record = {"round": index, "sparsity": str(sparsity), "steps": steps}
    return masks.prune_by_magnitude(weights, sparsity, within, scope=scope, input_dims=input_dims), record


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """Yield one ticket per sparsity. A target leaves the shared chain at the first round whose sparsity reaches it.

    If a target is one of the chain's own sparsities, the training of the next round is its ticket.
    """
    return (ticket for ticket, _ in tickets_and_rounds(method, trainer, initial, sparsities, keep=False))


def tickets_and_rounds(
    method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal], keep: bool = True
) -> Iterator[tuple[Ticket, list[dict[str, Tensor]]]]:
    """Yield tickets and, with `keep`, all weights at the end of the dense run and of the previous rounds."""
    total, rewind = trainer.training.steps, rewind_step(method)
    last_round = {target: len(_chain(method, target)) - 1 for target in sparsities}
    start, cost = trainer.run(initial, rewind) if rewind else (initial, Cost())
    state, rest = trainer.run(start, total)
    finding = cost = cost + rest
    mask = None
    records: list[dict[str, Any]] = []
    before = [state.weights] if keep else []
    for index, nominal in enumerate(_chain(method, max(sparsities))):
        within, weights, steps = mask, trainer.prunable_weights(state), cost.steps
        leaving = {target for target in sparsities if last_round[target] == index}
        for sparsity in sorted({nominal, *leaving}):  # the nominal one is the largest, and the chain continues from it
            mask, record = prune(weights, sparsity, within, scope_of(method), index, steps, trainer.input_dims)
            state, cost = trainer.run(start, total, mask)
            if sparsity in leaving:
                ticket = Ticket(
                    method=method.name,
                    sparsity=sparsity,
                    mask=mask,
                    weights=state.weights,
                    finding=finding,
                    retraining=cost,
                    rounds=[*records, record],
                )
                yield ticket, before
        finding += cost
        records.append(record)
        before = [*before, state.weights] if keep else []


def _chain(method: Method, target: Decimal) -> list[Decimal]:
    return sparsities_to(target, method.settings.rate, method.settings.rate_of)  # type: ignore[attr-defined]
