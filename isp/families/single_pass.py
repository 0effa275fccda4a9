"""Methods that prune within one run of T steps: train to the next event, prune, go on under the new mask.

A method says at which steps it wants to look (`events`) and what it does there (`prune`); what it remembers between
events is tensors, so state, mask and memory at an event are all that is needed to go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(kw_only=True)
class Progress:
    """Where a run is, beside its state; it goes on from there when it was interrupted.

    Attributes:
        events: the steps at which the method is still to look at the weights, ascending.
        mask: the current one.
        memory: the method's.
        spent: until the last event.
        finding: until the mask was found.
        records: of the events that pruned.
    """

    events: list[int]
    mask: Mask | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    spent: Cost = field(default_factory=Cost)
    finding: Cost = field(default_factory=Cost)
    records: list[dict[str, Any]] = field(default_factory=list)


def _ticket(method: Method, trainer: Trainer, initial: State, sparsity: Decimal) -> Ticket:
    module, total = method.module, trainer.training.steps
    wanted = masks.num_weights(weights := trainer.prunable_weights(initial))
    wanted -= num_pruned(sparsity, wanted)
    state = initial
    at = trainer.resumed(Progress(events=list(module.events(method.settings, sparsity, total))))
    observe = partial(module.observe, at.memory, tuple(weights)) if hasattr(module, "observe") else None
    while at.events:
        state, cost = trainer.run(state, at.events[0], at.mask, observe)
        at.spent += cost
        event = Event(
            step=at.events.pop(0),
            steps=total,
            sparsity=sparsity,
            weights=trainer.prunable_weights(state),
            within=at.mask,
            memory=at.memory,
        )
        found = module.prune(event, method.settings)
        if found is not None:
            at.mask, at.finding = found, at.spent
            reached = Decimal(masks.sparsity(found)).quantize(sparsity)
            at.records.append({"round": len(at.records), "sparsity": str(reached), "step": event.step})
            if masks.num_kept(found) == wanted:
                at.events.clear()
    assert at.mask is not None, f"{method.name} did not prune"
    state, cost = trainer.run(state, total, at.mask)
    return Ticket(
        method=method.name,
        sparsity=sparsity,
        mask=at.mask,
        weights=state.weights,
        finding=at.finding,
        retraining=cost,
        rounds=at.records,
    )
