"""Methods that prune within one run of T steps: the mask changes while the model is trained.

A method of this family defines `events(settings, sparsity, steps)`, the steps at which it looks at the weights,
ascending and all below T, and `prune(event, settings)`, which returns a mask, or None to wait. If it must see every
step, it also defines `observe(memory, names, parameters)`, which is called with the gradients of every update until the
target is reached. Both functions run within the training loop, on the weights themselves. An event copies nothing, so
there may be one at every step. A method keeps only tensors between events, so state, mask and memory at a step are
enough to resume from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import ceil
from typing import TYPE_CHECKING, Any

from isp import masks
from isp.families import Loop, Method, Traits
from isp.lazy import torch
from isp.masks import Mask, Weights
from isp.methods import Event
from isp.sparsity import num_pruned
from isp.tickets import Ticket
from isp.training import State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAITS = Traits(one_run=True, route=lambda method: "one_job", patterns=True, defines=(("events",), ("prune",)))

RECORDED = 10
"""Approximate number of prune events in the record of a run, including the first and the last."""


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return T for each ticket, because tickets share nothing.

    Raises:
        ConfigError: If no step of the budget is left after the last event.
    """
    for sparsity in sparsities:
        num_events(method, training, sparsity)
    return len(sparsities) * training.steps


def num_events(method: Method, training: Training, sparsity: Decimal) -> int:
    """Return the largest number of masks that a run selects.

    Raises:
        ConfigError: If no step of the budget is left after the last event.
    """
    return len(method.module.events(method.settings, sparsity, training.steps))


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """Yield one ticket per sparsity."""
    for sparsity in sparsities:
        yield _ticket(method, trainer, initial, sparsity)


@dataclass(kw_only=True)
class Progress:
    """Progress of a run in addition to its state; an interrupted run resumes from it.

    Attributes:
        mask: Current mask.
        memory: Tensors of the method.
        events: Number of events that pruned.
        ramp: Steps and resulting sparsities of some of these events.
        last: Step of the last of these events.
        done: Whether the target is reached.
    """

    mask: Mask | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    events: int = 0
    ramp: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0
    done: bool = False


class Run:
    """A method within one run of any training loop, called before every update and between updates.

    Args:
        method: Method of this family.
        sparsity: Target sparsity.
        steps: Total number of steps T.
        weights: Prunable weights, used for their names and sizes.
        input_dims: Input dimension of each weight, for an N:M scope.
        at: Progress of the run.
    """

    def __init__(
        self,
        method: Method,
        sparsity: Decimal,
        steps: int,
        weights: Weights,
        input_dims: Mapping[str, int],
        at: Progress,
    ) -> None:
        self.at = at
        self._method, self._sparsity, self._steps, self._input_dims = method, sparsity, steps, input_dims
        self._names, self._size = tuple(weights), masks.num_weights(weights)
        self._wanted = self._size - num_pruned(sparsity, self._size)
        events = list(method.module.events(method.settings, sparsity, steps))
        self._looks, self._recorded = set(events), set(events[:: ceil(len(events) / RECORDED)])

    @property
    def observes(self) -> bool:
        """Whether the method must still see every update."""
        return hasattr(self._method.module, "observe") and not self.at.done

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Show the method the trained parameters with their gradients, masked and not clipped, before an update."""
        if not self.at.done:
            self._method.module.observe(self.at.memory, self._names, parameters)

    def prune(self, step: int, parameters: Mapping[str, Tensor]) -> Mask | None:
        """Return the new mask after `step` updates, or None to keep the current one."""
        at = self.at
        if at.done or step not in self._looks:
            return None
        event = Event(
            step=step,
            steps=self._steps,
            sparsity=self._sparsity,
            weights={name: parameters[name].detach() for name in self._names},
            within=at.mask,
            memory=at.memory,
            input_dims=self._input_dims,
        )
        with torch.no_grad():
            mask: Mask | None = self._method.module.prune(event, self._method.settings)
        if mask is None:
            return None
        kept = masks.num_kept(mask)
        at.mask, at.last, at.done = mask, step, kept == self._wanted
        if at.done or step in self._recorded or not at.ramp:
            reached = Decimal(1 - kept / self._size).quantize(self._sparsity)
            at.ramp.append({"step": step, "sparsity": str(reached)})
        at.events += 1
        if at.done:
            at.memory.clear()
        return mask

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Record of the run so far, if it has pruned."""
        return [_record(self.at)] if self.at.ramp else []


def attach(method: Method, sparsity: Decimal, loop: Loop) -> Run:
    """Attach the method to an existing training loop."""
    trainer = loop.trainer
    weights = {name: trainer.model.get_parameter(name) for name in trainer.prunable}
    return Run(method, sparsity, trainer.training.steps, weights, trainer.input_dims, Progress())


def _ticket(method: Method, trainer: Trainer, initial: State, sparsity: Decimal) -> Ticket:
    total, weights = trainer.training.steps, trainer.prunable_weights(initial)
    at = trainer.resumed(Progress())
    run = Run(method, sparsity, total, weights, trainer.input_dims, at)
    state, cost = trainer.run(initial, total, at.mask, run.observe if run.observes else None, run.prune)
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
        rounds=run.rounds,
    )


def _record(at: Progress) -> dict[str, Any]:
    """Return one record for all events: the last one of the ramp and, if there are several, their number and the ramp.

    The ramp ends with the event that reaches the target. Before that, the last event of all may not be in it.
    """
    last = {"round": 0, "sparsity": at.ramp[-1]["sparsity"], "step": at.ramp[-1]["step"]}
    return last if at.events == 1 else {**last, "events": at.events, "first_step": at.ramp[0]["step"], "ramp": at.ramp}
