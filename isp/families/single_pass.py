"""Methods that prune within one run of T steps: the mask changes while the model is trained.

A method of this family defines `events(settings, sparsity, steps)`, the steps of a run at which it looks at the
weights, ascending, all below T; `prune(event, settings)`, a mask, or None for not yet; and, if it must see every step,
`observe(memory, names, parameters)`, called with the gradients of every update until the target is reached. They are
called within the training loop, on the weights themselves: an event copies nothing, so there may be one at every step.
What a method remembers between events is tensors, so state, mask and memory at a step are all that is needed to go on
from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import ceil
from typing import TYPE_CHECKING, Any

from isp import masks
from isp.families import Method, Traits
from isp.masks import Mask
from isp.methods import Event
from isp.sparsity import num_pruned
from isp.tickets import Ticket
from isp.training import State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAITS = Traits(one_run=True, route=lambda method: "one_job", patterns=True)

RECORDED = 10
"""Approximate number of prune events in the record of a run; the first and the last are among them."""


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """T a ticket: nothing is shared.

    Raises:
        ConfigError: no step of the budget is left after the last event.
    """
    for sparsity in sparsities:
        num_events(method, training, sparsity)
    return len(sparsities) * training.steps


def num_events(method: Method, training: Training, sparsity: Decimal) -> int:
    """The largest number of masks that a run selects.

    Raises:
        ConfigError: no step of the budget is left after the last event.
    """
    return len(method.module.events(method.settings, sparsity, training.steps))


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """One ticket a sparsity."""
    for sparsity in sparsities:
        yield _ticket(method, trainer, initial, sparsity)


@dataclass(kw_only=True)
class Progress:
    """Progress of a run, beside its state; an interrupted run resumes from it.

    Attributes:
        mask: The current mask.
        memory: The method's tensors.
        events: Number of events that pruned.
        ramp: Some of these events: the step and the sparsity that it reached.
        last: Step of the last of these events.
        done: Whether the target is reached.
    """

    mask: Mask | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    events: int = 0
    ramp: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0
    done: bool = False


def _ticket(method: Method, trainer: Trainer, initial: State, sparsity: Decimal) -> Ticket:
    module, total = method.module, trainer.training.steps
    names = tuple(weights := trainer.prunable_weights(initial))
    wanted = (size := masks.num_weights(weights)) - num_pruned(sparsity, size)
    events = list(module.events(method.settings, sparsity, total))
    looks, recorded = set(events), set(events[:: ceil(len(events) / RECORDED)])
    at = trainer.resumed(Progress())

    def observe(parameters: Mapping[str, nn.Parameter]) -> None:
        if not at.done:
            module.observe(at.memory, names, parameters)

    def prune(step: int, parameters: Mapping[str, nn.Parameter]) -> Mask | None:
        if at.done or step not in looks:
            return None
        event = Event(
            step=step,
            steps=total,
            sparsity=sparsity,
            weights={name: parameters[name].detach() for name in names},
            within=at.mask,
            memory=at.memory,
            input_dims=trainer.input_dims,
        )
        mask: Mask | None = module.prune(event, method.settings)
        if mask is None:
            return None
        kept = masks.num_kept(mask)
        at.mask, at.last, at.done = mask, step, kept == wanted
        if at.done or step in recorded or not at.ramp:
            at.ramp.append({"step": step, "sparsity": str(Decimal(1 - kept / size).quantize(sparsity))})
        at.events += 1
        if at.done:
            at.memory.clear()
        return mask

    state, cost = trainer.run(initial, total, at.mask, observe if hasattr(module, "observe") else None, prune)
    assert at.mask is not None, f"{method.name} did not prune"
    assert at.done, f"{method.name} did not prune to {sparsity}"
    retraining = trainer.cost(range(at.last, total), at.mask)
    return Ticket(
        method=method.name,
        sparsity=sparsity,
        mask=at.mask,
        weights=state.weights,
        finding=cost - retraining,
        retraining=retraining,
        rounds=[_record(at)],
    )


def _record(at: Progress) -> dict[str, Any]:
    """One record, however many events there were: the last of them, and of several their number and the ramp."""
    last = {"round": 0, "sparsity": at.ramp[-1]["sparsity"], "step": at.last}
    return last if at.events == 1 else {**last, "events": at.events, "first_step": at.ramp[0]["step"], "ramp": at.ramp}
