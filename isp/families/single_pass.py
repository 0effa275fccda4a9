"""Methods that prune within one run of T steps: train to the next event, prune, go on under the new mask.

A method says at which steps it wants to look (`events`) and what it does there (`prune`); what it remembers between
events is tensors, so state, mask and memory at an event are all that is needed to go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from torch import Tensor

from isp import masks
from isp.costs import Cost
from isp.families import Method, Ticket
from isp.masks import Mask
from isp.methods import Event
from isp.sparsity import num_pruned
from isp.training import State, Trainer, Training


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """T a ticket: nothing is shared.

    Raises:
        ConfigError: no step of the budget is left after the last event.
    """
    for sparsity in sparsities:
        method.module.events(method.settings, sparsity, training.steps)
    return len(sparsities) * training.steps


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """One ticket a sparsity."""
    for sparsity in sparsities:
        yield _ticket(method, trainer, initial, sparsity)


def _ticket(method: Method, trainer: Trainer, initial: State, sparsity: Decimal) -> Ticket:
    module, total = method.module, trainer.training.steps
    wanted = masks.num_weights(weights := trainer.prunable_weights(initial))
    wanted -= num_pruned(sparsity, wanted)
    state, spent, finding = initial, Cost(), Cost()
    mask: Mask | None = None
    memory: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    observe = partial(module.observe, memory, tuple(weights)) if hasattr(module, "observe") else None
    for step in module.events(method.settings, sparsity, total):
        state, cost = trainer.run(state, step, mask, observe)
        spent += cost
        event = Event(
            step=step,
            steps=total,
            sparsity=sparsity,
            weights=trainer.prunable_weights(state),
            within=mask,
            memory=memory,
        )
        found = module.prune(event, method.settings)
        if found is not None:
            mask, finding = found, spent
            reached = Decimal(masks.sparsity(found)).quantize(sparsity)
            records.append({"round": len(records), "sparsity": str(reached), "step": step})
            if masks.num_kept(found) == wanted:
                break
    assert mask is not None, f"{method.name} did not prune"
    state, cost = trainer.run(state, total, mask)
    return Ticket(
        method=method.name,
        sparsity=sparsity,
        mask=mask,
        weights=state.weights,
        finding=finding,
        retraining=cost,
        rounds=records,
    )
