"""Averages of fully trained models: of all of them, or of those that a method chooses.

The settings of a method of this family derive from those of `uniform_soup`. If it defines `choose(members, blend,
score)`, which returns `isp.soups.Tried` records, only the members marked in them are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from isp import masks, soups
from isp.costs import Cost
from isp.families import Method, Traits, chooses
from isp.families.denoised import check_subset, named, varied
from isp.masks import Mask, Weights
from isp.methods import uniform_soup
from isp.norms import Reestimation, reestimation
from isp.tickets import Evaluations, Ticket, Validation
from isp.training import State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(
    settings=uniform_soup.Settings,
    prunes="optionally",
    route=lambda method: "chosen" if chooses(method) else "souped",
)


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return T for each member and sparsity.

    Raises:
        ConfigError: If a member's data do not fill a batch, or members prune on their own in a single step.
    """
    settings = settings_of(method)
    check_subset(settings, training, num_examples, "a member")
    if any(sparsities):
        settings.prune_step(training.steps)
    return len(sparsities) * settings.members * training.steps


def settings_of(method: Method) -> uniform_soup.Settings:
    """Return the settings of a method of this family."""
    assert isinstance(method.settings, uniform_soup.Settings)
    return method.settings


@dataclass(kw_only=True)
class Progress:
    """Progress of a member in addition to its state: its mask once it is pruned, and the cost up to that point."""

    mask: Mask | None = None
    spent: Cost = field(default_factory=Cost)


def train_member(
    settings: uniform_soup.Settings, trainer: Trainer, initial: State, sparsity: Decimal, index: int
) -> Ticket:
    """Train member `index` of a soup of this sparsity and return it as a ticket, with its whole cost as retraining.

    At sparsity 0, member 0 equals the dense ticket to the bit.

    Raises:
        TrainingDiverged: If training diverges. The error names the member and contains the initial state.
    """
    member = uniform_soup.member(settings, len(trainer.examples), trainer.seed, index)
    varying, total = varied(trainer, member), trainer.training.steps
    with named(f"member {index} of the soup", member, initial):
        state, at = initial, varying.resumed(Progress())
        if at.mask is None:
            state, at.spent = varying.run(initial, settings.prune_step(total) if sparsity else 0)
            at.mask = masks.prune_by_magnitude(varying.prunable_weights(state), sparsity, scope=settings.scope)
        state, cost = varying.run(state, total, at.mask)
    return Ticket(method="member", sparsity=sparsity, mask=at.mask, weights=state.weights, retraining=at.spent + cost)


def mix(
    method: Method,
    members: Sequence[Ticket],
    validation: Validation | None = None,
    reestimate: Reestimation | None = None,
) -> Ticket:
    """Average the members of a soup: all of them, or those that the method chooses by validation examples.

    The whole cost of members and evaluations counts as finding; nothing is trained afterwards.

    Args:
        method: Method with the settings of `uniform_soup`.
        members: Tickets from `train_member`, all of one sparsity.
        validation: Validation scores for a method that defines `choose`.
        reestimate: Estimation of the running statistics of every average of two or more members, if they have any.
    """
    scope, sparsity = settings_of(method).scope, members[0].sparsity

    def average(some: Sequence[Ticket]) -> tuple[dict[str, Tensor], Mask]:
        weights, mask = soups.sparse_average([m.weights for m in some], [m.mask for m in some], sparsity, scope)
        return (reestimate(weights) if reestimate and len(some) > 1 else weights), mask

    def blend(some: Sequence[Ticket]) -> Weights:
        return average(some)[0]

    chosen, cost = list(members), sum((member.cost for member in members), Cost())
    records: list[dict[str, Any]] = [{"member": index, "taken": True} for index in range(len(members))]
    if validation is not None:
        score = Evaluations(validation)
        tried: list[soups.Tried] = method.module.choose(members, blend, score)
        chosen = [members[each.member] for each in tried if each.taken]
        cost += score.cost
        records = [*map(vars, tried), {"evaluations": score.count}]
    weights, mask = average(chosen)
    cost += reestimate.cost if reestimate else Cost()
    return Ticket(method=method.name, sparsity=sparsity, mask=mask, weights=weights, finding=cost, rounds=records)


def tickets(
    method: Method,
    trainer: Trainer,
    initial: State,
    sparsities: Sequence[Decimal],
    validation: Validation | None = None,
) -> Iterator[Ticket]:
    """Yield one ticket per sparsity."""
    settings = settings_of(method)
    for sparsity in sparsities:
        members = [train_member(settings, trainer, initial, sparsity, index) for index in range(settings.members)]
        yield mix(method, members, validation, reestimation(trainer))
