"""Instant Soup Pruning as steps that can be run one by one: segment, look-ahead, aggregate, retrain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from torch import Tensor

from isp.costs import Cost
from isp.errors import ConfigError, TrainingDiverged
from isp.families import Method, Ticket
from isp.masks import Mask, Weights
from isp.methods import isp
from isp.training import State, Trainer, Training


@dataclass(frozen=True, kw_only=True)
class Event:
    """One DenoisedPrune: the mask it made and what is known about it (a record for reports)."""

    mask: Mask
    record: dict[str, Any]


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Shared segments and look-aheads once, and what each target trains after it left the chain.

    Raises:
        ConfigError: the rounds overrun the budget, or a look-ahead's data make no batch.
    """
    settings = _settings(method)
    subset = isp.subset_size(settings, num_examples)
    if settings.denoisers and subset < training.batch_size:
        raise ConfigError(
            f"data_fraction = {settings.data_fraction}: a look-ahead's {subset} of {num_examples} training examples "
            f"make no batch of batch_size = {training.batch_size}; raise the one or lower the other"
        )
    plans = {target: _rounds(settings, training, num_examples, target) for target in sparsities}
    longest = plans[max(sparsities)]
    look_aheads = len(longest) * settings.denoisers * settings.look_ahead_steps
    return longest[-1].stop + look_aheads + sum(training.steps - plan[-1].stop for plan in plans.values())


def look_ahead(
    settings: isp.LookAhead, trainer: Trainer, state: State, mask: Mask | None, round_index: int, index: int
) -> tuple[dict[str, Tensor], Cost]:
    """Train copy `index` of a round for C steps and return its prunable weights; the copy itself is thrown away.

    It goes on from the state's step of the run's schedule, times the copy's own factor, under the current mask.
    """
    member = isp.member(settings, len(trainer.examples), trainer.seed, round_index, index)
    protocol = trainer.training.model_copy(
        update={
            "learning_rate": trainer.training.learning_rate * member.learning_rate_factor,
            "weight_decay": member.weight_decay,
        }
    )
    own = replace(trainer, training=protocol, seed=member.seed, subset=member.subset)
    start = state if settings.optimizer == "inherited" else replace(state, optimizer={})
    try:
        copy, cost = own.run(start, state.step + settings.look_ahead_steps, mask)
    except TrainingDiverged as error:
        problem = f"look-ahead {index} of round {round_index} (learning rate x {member.learning_rate_factor:.3g}): "
        raise TrainingDiverged(problem + error.problem, error.step, state, mask) from None
    return trainer.prunable_weights(copy), cost


def aggregate(
    rule: isp.Rule,
    weights: Weights,
    contributions: Sequence[Weights],
    sparsity: Decimal,
    within: Mask | None,
    about: Mapping[str, Any],
) -> Event:
    """Superpose the contributions of a round's copies into its mask, and record what the denoisers changed.

    Args:
        rule: of superposition.
        weights: the run's current prunable weights.
        contributions: from `isp.weak`, one a copy.
        sparsity: of the event.
        within: the run's current mask.
        about: what the record begins with: the round, the step it is pruned at.
    """
    mask = isp.superpose(rule, weights, contributions, sparsity, within)
    record = {**about, "sparsity": str(sparsity), "changed": isp.changed(mask, weights, sparsity, within)}
    record["agreement"] = None if rule == "mean_score" else isp.agreement(contributions)  # type: ignore[arg-type]
    return Event(mask=mask, record=record)


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """One ticket a sparsity. Targets share segments and look-aheads until they leave the chain of rounds."""
    settings = _settings(method)
    plans = {t: _rounds(settings, trainer.training, len(trainer.examples), t) for t in sparsities}
    state, mask, spent = initial, None, Cost()
    records: list[dict[str, Any]] = []
    for nominal in plans[max(sparsities)]:
        state, cost = trainer.run(state, nominal.stop, mask)
        spent += cost
        within, weights = mask, trainer.prunable_weights(state)
        leaving = {plan[-1] for plan in plans.values() if plan[-1].index == nominal.index}
        events = sorted({nominal, *leaving}, key=lambda event: event.sparsity)  # the nominal one comes last and goes on
        contributions: dict[Decimal, list[Weights]] = {event.sparsity: [] for event in events}
        for index in range(settings.denoisers):
            copy, cost = look_ahead(settings, trainer, state, within, nominal.index, index)
            spent += cost
            for sparsity, found in contributions.items():
                found.append(isp.weak(settings.contribution, copy, sparsity, within))
        for event in events:
            found = contributions[event.sparsity]
            about = {"round": event.index, "step": state.step}
            pruned = aggregate(settings.rule, weights, found, event.sparsity, within, about)
            mask = pruned.mask
            if event in leaving:
                final, retraining = trainer.run(state, trainer.training.steps, mask)
                yield Ticket(
                    method=method.name,
                    sparsity=event.sparsity,
                    mask=mask,
                    weights=final.weights,
                    finding=spent,
                    retraining=retraining,
                    rounds=[*records, pruned.record],
                )
        records.append(pruned.record)


def _settings(method: Method) -> isp.Settings:
    assert isinstance(method.settings, isp.Settings)
    return method.settings


def _rounds(settings: isp.Settings, training: Training, num_examples: int, target: Decimal) -> list[isp.Round]:
    return isp.rounds(settings, target, num_examples // training.batch_size, training.steps)
