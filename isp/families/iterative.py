"""Iterative magnitude pruning: rounds of T steps, each from the initial state under the mask of the round before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from isp import masks
from isp.errors import ConfigError
from isp.families import Method, Ticket
from isp.masks import Mask, Weights
from isp.sparsity import sparsities_to
from isp.training import State, Trainer, Training


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """T for the dense run, T a round of the common chain, and T a target that is not one of the chain's sparsities.

    Raises:
        ConfigError: a rate so small that two rounds have the same sparsity.
    """
    chain = _chain(method, max(sparsities))
    if len(set(chain)) < len(chain):
        rate = method.settings.rate  # type: ignore[attr-defined]
        raise ConfigError(f"rate = {rate}: so small that two rounds have the same sparsity, to four decimals")
    events = set(enumerate(chain))
    events |= {(len(_chain(method, target)) - 1, target) for target in sparsities}
    return (1 + len(events)) * training.steps


def prune(
    weights: Weights, sparsity: Decimal, within: Mask | None, index: int, steps: int
) -> tuple[Mask, dict[str, Any]]:
    """The mask of round `index` (the largest weights at the end of its training) and the round's record."""
    record = {"round": index, "sparsity": str(sparsity), "steps": steps}
    return masks.prune_by_magnitude(weights, sparsity, within), record


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """One ticket a sparsity. Targets share the rounds; each leaves at the first whose nominal sparsity reaches it.

    Where a target is one of the chain's own sparsities, the next round's training is the ticket.
    """
    total = trainer.training.steps
    last_round = {target: len(_chain(method, target)) - 1 for target in sparsities}
    state, spent = trainer.run(initial, total)
    mask = None
    records: list[dict[str, Any]] = []
    for index, nominal in enumerate(_chain(method, max(sparsities))):
        within, weights = mask, trainer.prunable_weights(state)
        leaving = {target for target in sparsities if last_round[target] == index}
        for sparsity in sorted({nominal, *leaving}):  # the nominal one, the largest, comes last and goes on
            mask, record = prune(weights, sparsity, within, index, total)
            state, cost = trainer.run(initial, total, mask)
            if sparsity in leaving:
                yield Ticket(
                    method=method.name,
                    sparsity=sparsity,
                    mask=mask,
                    weights=state.weights,
                    finding=spent,
                    retraining=cost,
                    rounds=[*records, record],
                )
        spent += cost
        records.append(record)


def _chain(method: Method, target: Decimal) -> list[Decimal]:
    return sparsities_to(target, method.settings.rate, method.settings.rate_of)  # type: ignore[attr-defined]
