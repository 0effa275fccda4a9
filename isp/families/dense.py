"""Dense fine-tuning: T steps without a mask.

A method of this family defines nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from isp import masks
from isp.families import Method, Traits
from isp.tickets import Ticket
from isp.training import State, Trainer, Training

TRAITS = Traits(prunes="never")


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return T."""
    return training.steps


def ticket(trainer: Trainer, initial: State) -> Ticket:
    """Train the dense model and return it as the ticket of sparsity 0."""
    state, cost = trainer.run(initial, trainer.training.steps)
    mask = masks.ones(trainer.prunable_weights(state))
    return Ticket(method="dense", sparsity=Decimal("0.0000"), mask=mask, weights=state.weights, retraining=cost)


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """Yield the dense model, the only ticket."""
    yield ticket(trainer, initial)
