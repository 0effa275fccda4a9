"""Instant Model Soup as steps that can be run one by one: weak subnetworks, merging, fine-tuning.

A method of this family defines nothing more; its settings and draws are those of `instant_model_soup`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from isp import masks, soups
from isp.costs import Cost
from isp.families import Method, Traits
from isp.families.denoised import check_subset, train_copy
from isp.masks import Weights
from isp.methods import instant_model_soup
from isp.norms import Reestimation, reestimation
from isp.tickets import Evaluations, Ticket, Validation
from isp.training import State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(settings=instant_model_soup.Settings, prunes="never", chooses=True)


@dataclass(frozen=True, kw_only=True)
class Subnetwork:
    """A weak subnetwork.

    Attributes:
        sparsity: Sparsity s_k.
        weights: All weights, zero where its mask prunes.
        cost: Cost of training it.
    """

    sparsity: Decimal
    weights: dict[str, Tensor]
    cost: Cost


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return T plus the steps of the weak subnetworks.

    Raises:
        ConfigError: If a subnetwork's data do not fill a batch.
    """
    settings = settings_of(method)
    if settings.subnetworks:
        check_subset(settings, training, num_examples, "a weak subnetwork")
    return settings.subnetworks * settings.look_ahead_steps + training.steps


def settings_of(method: Method) -> instant_model_soup.Settings:
    """Return the settings of a method of this family."""
    assert isinstance(method.settings, instant_model_soup.Settings)
    return method.settings


def train_subnetwork(settings: instant_model_soup.Settings, trainer: Trainer, initial: State, index: int) -> Subnetwork:
    """Prune the initial weights by magnitude and train the remaining ones for a few steps.

    With `warmup_steps` the learning rate rises to the run's peak times the subnetwork's factor. At step 0 the run's
    current rate is that of the first step of its warm-up, under which the subnetwork would learn nothing.

    Raises:
        TrainingDiverged: If training diverges. The error names the subnetwork and contains the initial state.
    """
    member = instant_model_soup.member(settings, len(trainer.examples), trainer.seed, index)
    sparsity = instant_model_soup.sparsity(settings, trainer.seed, index)
    mask = masks.prune_by_magnitude(trainer.prunable_weights(initial), sparsity, scope=settings.scope)
    peak = trainer.training.learning_rate
    state, cost = train_copy(settings, member, trainer, initial, mask, f"weak subnetwork {index}", peak=peak)
    return Subnetwork(sparsity=sparsity, weights=state.weights, cost=cost)


def merge(
    settings: instant_model_soup.Settings,
    initial: State,
    weak: Sequence[Subnetwork],
    validation: Validation,
    reestimate: Reestimation | None = None,
) -> tuple[State, Cost, list[dict[str, Any]]]:
    """Mix weak subnetworks into the initial weights.

    Args:
        settings: Settings of the method.
        initial: Initial state.
        weak: Weak subnetworks, in the order in which they are mixed.
        validation: Validation scores by which coefficients are chosen.
        reestimate: Estimation of the running statistics of every interpolation before it is scored, if it has any.

    Returns:
        State to fine-tune from, cost of finding it, and records of the subnetworks and of the evaluations.
    """
    score = Evaluations(validation)

    def mix(new: Weights, current: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        mixed = soups.interpolated(new, current, share)
        return reestimate(mixed) if reestimate and 0 < share < 1 else mixed

    weights, start, steps = soups.merge(
        initial.weights, [each.weights for each in weak], score, sorted(settings.coefficients), mix
    )
    records: list[dict[str, Any]] = [
        {"subnetwork": index, "sparsity": str(each.sparsity), **vars(step)}
        for index, (each, step) in enumerate(zip(weak, steps, strict=True))
    ]
    cost = sum((each.cost for each in weak), score.cost) + (reestimate.cost if reestimate else Cost())
    return replace(initial, weights=weights, masters={}), cost, [*records, {"start": start, "evaluations": score.count}]


def tickets(
    method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal], validation: Validation
) -> Iterator[Ticket]:
    """Yield the fine-tuned soup of sparsity 0, the only ticket."""
    settings = settings_of(method)
    weak = [train_subnetwork(settings, trainer, initial, index) for index in range(settings.subnetworks)]
    state, finding, records = merge(settings, initial, weak, validation, reestimation(trainer))
    mask = masks.ones(trainer.prunable_weights(state))
    final, retraining = trainer.run(state, trainer.training.steps, mask)
    yield Ticket(
        method=method.name,
        sparsity=Decimal("0.0000"),
        mask=mask,
        weights=final.weights,
        finding=finding,
        retraining=retraining,
        rounds=records,
    )
