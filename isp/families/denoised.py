"""Instant Soup Pruning as steps that can be run one by one: segment, look-ahead, aggregate, retrain.

A method of this family defines nothing more; its settings are those of `isp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from isp import copies, masks, superposition
from isp.copies import LookAhead, Member, Varied, subset_size
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import Loop, Method, Traits
from isp.masks import Mask, Weights
from isp.methods import isp
from isp.sparsity import PLACES, Scope
from isp.superposition import Contribution, Superposition, contribution_to
from isp.tickets import Ticket
from isp.training import State, Trainer, Training, TrainingDiverged, learning_rate

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAITS = Traits(
    settings=isp.Settings,
    mathematics={"isp": copies.VERSION},
    route=lambda method: "denoised" if _settings(method).chained else "one_job",
    patterns=True,
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One DenoisedPrune event: its mask and a record of it for reports."""

    mask: Mask
    record: dict[str, Any]


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return the steps of the shared segments and look-aheads, counted once, and of each target after the chain.

    Raises:
        ConfigError: If the rounds exceed the budget, or a look-ahead's data do not fill a batch.
    """
    settings = _settings(method)
    if settings.denoisers:
        check_subset(settings, training, num_examples, "a look-ahead")
    if not settings.chained:
        return sum(_steps_alone(settings, training, num_examples, target) for target in sparsities)
    plans = {target: _rounds(settings, training, num_examples, target) for target in sparsities}
    longest = plans[max(sparsities)]
    look_aheads = len(longest) * _steps_of_look_aheads(settings, training, num_examples)
    return longest[-1].stop + look_aheads + sum(training.steps - plan[-1].stop for plan in plans.values())


def _steps_of_look_aheads(settings: isp.Settings, training: Training, num_examples: int) -> int:
    """Return the number of steps that the look-ahead copies of a round train, N · C."""
    return settings.denoisers * settings.look_ahead(num_examples // training.batch_size).look_ahead_steps


def _steps_alone(settings: isp.Settings, training: Training, num_examples: int, target: Decimal) -> int:
    """Return the steps of a stand-alone run, an upper bound if sparsities are measured."""
    by_epochs = settings.round_limit == "epochs"
    if settings.rounds == "nominal" and not by_epochs:
        _rounds(settings, training, num_examples, target)  # refuses rounds that exceed the budget
    count = isp.max_rounds(settings, num_examples // training.batch_size, training.steps)
    if settings.rounds == "nominal":
        chain = isp.sparsities(settings, target)
        before = chain[-2] if len(chain) > 1 else Decimal(0)
        count = min(count, len(chain) - isp.rest_at_once(settings, before, target))
    elif not by_epochs:
        count -= 1  # the last one prunes the rest
    return training.steps + count * _steps_of_look_aheads(settings, training, num_examples)


def check_subset(settings: Varied, training: Training, num_examples: int, whose: str) -> None:
    """Refuse a copy's own data if they do not fill a batch.

    Raises:
        ConfigError: If there are too few examples; the message gives their number.
    """
    subset = subset_size(settings, num_examples)
    if subset < training.batch_size:
        raise ConfigError(
            f"data_fraction = {settings.data_fraction}: {whose}'s {subset} of {num_examples} training examples do not "
            f"fill a batch of batch_size = {training.batch_size}; raise the former or lower the latter"
        )


def look_ahead(
    settings: LookAhead,
    trainer: Trainer,
    state: State,
    mask: Mask | None,
    round_index: int,
    index: int,
    sparsities: Sequence[Decimal],
    contribution: Contribution,
    scope: Scope,
) -> tuple[Iterator[Weights], Cost]:
    """Train copy `index` of a round for C steps and prune it; the copy itself is discarded.

    Args:
        settings: Settings of the copies.
        trainer: Trainer of the run.
        state: State at the end of the round's segment, from which the copy starts. It is not changed.
        mask: Current mask of the run; None: all weights.
        round_index: Number of the round, from 0.
        index: Number of the copy, from 0.
        sparsities: Sparsities of the round's events.
        contribution: Kind of tensors that the rule of superposition needs from the copy.
        scope: Scope in which weights are ranked.

    Returns:
        Iterator over the copy's contributions to the events, each computed on demand, and the cost.

    Raises:
        TrainingDiverged: If the copy diverges. The error names it and contains `state`.
    """
    member = isp.member(settings, len(trainer.examples), trainer.seed, round_index, index)
    current = learning_rate(trainer.training, state.step)
    name = f"look-ahead {index} of round {round_index}"
    copy, cost = train_copy(settings, member, trainer, state, mask, name, peak=current)
    weights = trainer.prunable_weights(copy)
    ranked = (scope, trainer.input_dims)
    return (superposition.weak(contribution, weights, sparsity, mask, *ranked) for sparsity in sparsities), cost


def add_copies(
    settings: LookAhead,
    trainer: Trainer,
    state: State,
    round_index: int,
    superposed: Superposition,
    count: int,
    at: LookedAhead | Progress,
    keep: Callable[[int, Weights, Cost], None] = lambda index, contribution, cost: None,
) -> None:
    """Train the copies of a round that have not contributed yet, one after another, and add their contributions.

    Args:
        settings: Settings of the copies.
        trainer: Trainer of the run.
        state: State at the end of the round's segment.
        round_index: Number of the round, from 0.
        superposed: Contributions of the round's copies so far.
        count: Number of copies of the round.
        at: Progress to which the cost of each copy is added.
        keep: Function called with the number, the contribution and the cost of each copy.

    Raises:
        TrainingDiverged: If a copy diverges.
    """
    contribution, scope = contribution_to(superposed.rule), superposed.scope
    for index in range(len(superposed.weak), count):
        (contributed,), cost = look_ahead(
            settings, trainer, state, superposed.within, round_index, index, [superposed.sparsity], contribution, scope
        )
        superposed.add(contributed)
        at.spent += cost
        keep(index, contributed, cost)


def train_copy(
    settings: LookAhead,
    member: Member,
    trainer: Trainer,
    state: State,
    mask: Mask | None,
    name: str,
    *,
    peak: float,
) -> tuple[State, Cost]:
    """Train a copy for C steps under its own protocol and data.

    The copy continues the run's schedule from the state's step, multiplied by its own factor, under the given mask.
    With `warmup_steps` it has its own schedule, as in the authors' code.

    Args:
        settings: Settings of the copies, such as C and the schedule.
        member: Protocol and data of the copy.
        trainer: Trainer of the run.
        state: State from which the copy starts. It is not changed.
        mask: Mask under which it trains; None: all weights.
        name: Name of the copy in error messages.
        peak: Peak learning rate of the copy's own schedule, before its factor; unused without such a schedule.

    Returns:
        State after C steps, and their cost.

    Raises:
        TrainingDiverged: If the copy diverges. The error names it and contains the state from which it started.
    """
    varying, warmup = varied(trainer, member), settings.warmup_steps
    start = state if settings.optimizer == "inherited" else replace(state, optimizer={})
    if warmup:
        short = {"learning_rate": peak * member.learning_rate_factor, "warmup_steps": warmup, "steps": 2 * warmup}
        varying = replace(varying, training=varying.training.model_copy(update=short))
        start = replace(start, step=0)
    with named(name, member, state, mask):
        return varying.run(start, start.step + settings.look_ahead_steps, mask)


def varied(trainer: Trainer, member: Member) -> Trainer:
    """Return the trainer with the protocol and data of a copy."""
    run = trainer.training
    update: dict[str, Any] = {"learning_rate": run.learning_rate * member.learning_rate_factor}
    if member.weight_decay is not None:
        update["weight_decay"] = member.weight_decay
    return replace(trainer, training=run.model_copy(update=update), seed=member.seed, subset=member.subset)


@contextmanager
def named(name: str, member: Member, state: State, mask: Mask | None = None) -> Iterator[None]:
    """Name a copy that diverges in this context; its error contains the given state and mask."""
    try:
        yield
    except TrainingDiverged as error:
        problem = f"{name} (learning rate x {member.learning_rate_factor:.3g}): {error.problem}"
        raise TrainingDiverged(problem, error.step, state, mask, error.advice) from None


def aggregate(superposed: Superposition, weights: Weights, about: Mapping[str, Any], adjust: bool = True) -> Event:
    """Make a round's mask from the contributions of its copies, and record the effect of the denoisers.

    Args:
        superposed: Contributions of the round's copies.
        weights: Current prunable weights of the run.
        about: First entries of the record, such as the round and the step at which it prunes.
        adjust: Whether to prune a union to the event's sparsity; otherwise it may keep more weights.
    """
    plain = superposed.largest(weights)
    mask = superposed.mask(weights, adjust=adjust, plain=plain)
    record = {**about, "sparsity": str(superposed.sparsity), "changed": superposition.changed(mask, plain)}
    record["agreement"], record["agreement_by_layer"] = superposed.agreement(weights) or (None, None)
    return Event(mask=mask, record=record)


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """Yield one ticket per sparsity. Targets share segments and look-aheads until they leave the chain of rounds."""
    settings = _settings(method)
    if not settings.chained:
        yield from (_ticket_alone(method, trainer, initial, target) for target in sparsities)
        return
    plans = {t: _rounds(settings, trainer.training, len(trainer.examples), t) for t in sparsities}
    protocol = settings.look_ahead(trainer.order.steps_per_epoch)
    state, mask, finding = initial, None, Cost()
    records: list[dict[str, Any]] = []
    for nominal in plans[max(sparsities)]:
        state, cost = trainer.run(state, nominal.stop, mask)
        finding += cost
        within, weights = mask, trainer.prunable_weights(state)
        leaving = {plan[-1] for plan in plans.values() if plan[-1].index == nominal.index}
        # The nominal event comes last, and the chain continues from it.
        events = sorted({nominal, *leaving}, key=lambda event: event.sparsity)
        targets = [event.sparsity for event in events]
        superposed = [_event(settings, trainer.input_dims, sparsity, within) for sparsity in targets]
        for index in range(settings.denoisers):
            contributions, cost = look_ahead(
                protocol, trainer, state, within, nominal.index, index, targets, settings.contribution, settings.scope
            )
            finding += cost
            for each, contribution in zip(superposed, contributions, strict=True):
                each.add(contribution)
        for event, each in zip(events, superposed, strict=True):
            pruned = aggregate(each, weights, {"round": event.index, "step": state.step})
            mask = pruned.mask
            if event in leaving:
                final, retraining = trainer.run(state, trainer.training.steps, mask)
                yield Ticket(
                    method=method.name,
                    sparsity=event.sparsity,
                    mask=mask,
                    weights=final.weights,
                    finding=finding,
                    retraining=retraining,
                    rounds=[*records, pruned.record],
                )
        records.append(pruned.record)


@dataclass(kw_only=True)
class LookedAhead:
    """Progress of a round's look-ahead copies, from which an interrupted job resumes.

    Attributes:
        superposed: Contributions of the copies.
        spent: Cost of the copies.
    """

    superposed: Superposition
    spent: Cost = field(default_factory=Cost)


@dataclass(kw_only=True)
class Progress:
    """Progress of a run for one target, from which an interrupted run resumes.

    Attributes:
        round: Number of the current round, from 0.
        reached: Sparsity after the previous rounds.
        mask: Mask of the previous round.
        state: State at the end of the round's segment; None: the segment has not been trained yet.
        superposed: Contributions of the round's copies so far; None: its sparsity has not been decided yet.
        spent: Cost so far.
        records: Records of the previous rounds.
    """

    round: int = 0
    reached: Decimal = Decimal(0)
    mask: Mask | None = None
    state: State | None = None
    superposed: Superposition | None = None
    spent: Cost = field(default_factory=Cost)
    records: list[dict[str, Any]] = field(default_factory=list)


class Rounds:
    """Rounds of a run for one target in any training loop: when it prunes, to which sparsity, and with how many copies.

    The rest is pruned at once, without look-aheads, if the target is within `stop_within`, in place of the last round
    that fits into the budget, or after the last round for which T has an epoch (`round_limit`).

    Args:
        settings: Settings of the method.
        target: Sparsity of the ticket.
        steps_per_epoch: Batches per epoch.
        steps: Total number of steps T.
        input_dims: Input dimension of each weight, for an N:M scope.
        at: Progress of the run.

    Raises:
        ConfigError: If no round fits into T.
    """

    def __init__(
        self,
        settings: isp.Settings,
        target: Decimal,
        steps_per_epoch: int,
        steps: int,
        input_dims: Mapping[str, int],
        at: Progress,
    ) -> None:
        self.at = at
        self._settings, self._target, self._steps_per_epoch = settings, target, steps_per_epoch
        self._most, self._input_dims = isp.max_rounds(settings, steps_per_epoch, steps), input_dims

    @property
    def stop(self) -> int | None:
        """Step at which the current round prunes; None: the target is reached."""
        if self.at.reached >= self._target:
            return None
        return isp.steps_until(self._settings, self.at.round, self._steps_per_epoch)

    def event(self) -> tuple[Superposition, int]:
        """Return the superposition of the current round and the number of copies that contribute to it."""
        at, settings, target = self.at, self._settings, self._target
        at_once = self._last and settings.round_limit != "epochs" and settings.rounds != "nominal"
        if at_once or isp.rest_at_once(settings, at.reached, target):
            return _event(settings, self._input_dims, target, at.mask), 0
        if at.superposed is None:
            nominal = settings.rounds == "nominal"
            sparsity = (
                isp.sparsities(settings, target)[at.round]
                if nominal
                else isp.next_sparsity(settings, at.reached, target)
            )
            at.superposed = _event(settings, self._input_dims, sparsity, at.mask)
        return at.superposed, settings.denoisers

    def prune(self, superposed: Superposition, weights: Weights, step: int) -> None:
        """Finish a round by the contributions of its copies or, without any, by magnitude."""
        last = self._last
        self._prune(superposed, weights, step)
        if last and self._settings.round_limit == "epochs" and self.at.reached < self._target:
            self._prune(_event(self._settings, self._input_dims, self._target, self.at.mask), weights, step)

    @property
    def _last(self) -> bool:
        return self.at.round + 1 == self._most

    def _prune(self, superposed: Superposition, weights: Weights, step: int) -> None:
        at, settings, sparsity = self.at, self._settings, superposed.sparsity
        final = sparsity == self._target
        about = {"round": at.round, "step": step}
        pruned = aggregate(superposed, weights, about, adjust=settings.adjust == "rounds" or final)
        measured = Decimal(masks.sparsity(pruned.mask)).quantize(PLACES)
        at.records.append(pruned.record if settings.chained else {**pruned.record, "measured": str(measured)})
        at.reached = sparsity if settings.rounds == "nominal" or final else min(measured, self._target)
        at.round, at.mask, at.state, at.superposed = at.round + 1, pruned.mask, None, None


def _ticket_alone(method: Method, trainer: Trainer, initial: State, target: Decimal) -> Ticket:
    """Run a method for one target, with rounds that depend on the measured sparsities of previous masks."""
    settings, total = _settings(method), trainer.training.steps
    steps_per_epoch = trainer.order.steps_per_epoch
    protocol = settings.look_ahead(steps_per_epoch)
    state, at = initial, trainer.resumed(Progress())
    rounds = Rounds(settings, target, steps_per_epoch, total, trainer.input_dims, at)
    while (stop := rounds.stop) is not None:
        if at.state is None:
            at.state, cost = trainer.run(state, stop, at.mask)
            at.spent += cost
        state, weights = at.state, trainer.prunable_weights(at.state)
        superposed, count = rounds.event()
        add_copies(protocol, trainer, state, at.round, superposed, count, at)
        rounds.prune(superposed, weights, state.step)
    final, retraining = trainer.run(state, total, at.mask)
    assert at.mask is not None
    return Ticket(
        method=method.name,
        sparsity=target,
        mask=at.mask,
        weights=final.weights,
        finding=at.spent,
        retraining=retraining,
        rounds=at.records,
    )


class Run:
    """A method in an existing training loop, which trains the look-ahead copies with the loop's own step."""

    observes = False

    def __init__(self, method: Method, sparsity: Decimal, loop: Loop) -> None:
        self._settings, self._loop = _settings(method), loop
        trainer, steps_per_epoch = loop.trainer, loop.steps_per_epoch
        steps, dims = trainer.training.steps, trainer.input_dims
        self._protocol = self._settings.look_ahead(steps_per_epoch)
        self._rounds = Rounds(self._settings, sparsity, steps_per_epoch, steps, dims, Progress())

    @property
    def at(self) -> Progress:
        """Progress of the run."""
        return self._rounds.at

    @at.setter
    def at(self, at: Progress) -> None:
        self._rounds.at = at

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Records of the rounds so far."""
        return self.at.records

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Do nothing; the loop never calls this."""

    def prune(self, step: int, parameters: Mapping[str, Tensor]) -> Mask | None:
        """Return the mask of the round that ends after `step` updates, or None if no round ends there.

        Raises:
            ConfigError: If the round should have ended earlier.
        """
        stop = self._rounds.stop
        if stop is None or step < stop:
            return None
        at, trainer = self.at, self._loop.trainer
        if step > stop:
            raise ConfigError(
                f"pruner.step(): round {at.round} should have pruned after {stop} updates, but {step} were made "
                "without it, so the target would not be reached; continue from an earlier state, with the "
                "steps_per_epoch with which the run began"
            )
        superposed, count = self._rounds.event()
        weights = {name: parameters[name].detach() for name in trainer.prunable}
        members = {
            f"look-ahead {index} of round {at.round}": isp.member(
                self._protocol, len(trainer.examples), trainer.seed, at.round, index
            )
            for index in range(count)
        }
        ranked = (superposed.sparsity, at.mask, self._settings.scope, trainer.input_dims)
        contribute = partial(_contribute, self._settings.contribution, ranked)
        for contribution in self._loop.look_ahead(self._protocol, members, contribute):
            superposed.add(contribution)
        self._rounds.prune(superposed, weights, step)
        return at.mask


def attach(method: Method, sparsity: Decimal, loop: Loop) -> Run:
    """Attach the method to an existing training loop."""
    return Run(method, sparsity, loop)


def _contribute(contribution: Contribution, ranked: tuple[Any, ...], weights: Weights) -> Weights:
    """Return the contribution of a copy to a round, given its weights."""
    return superposition.weak(contribution, weights, *ranked)


def _event(
    settings: isp.Settings, input_dims: Mapping[str, int], sparsity: Decimal, within: Mask | None
) -> Superposition:
    """Return an event to which no copy has contributed yet."""
    return Superposition(
        rule=settings.rule,
        sparsity=sparsity,
        within=within,
        scope=settings.scope,
        input_dims=input_dims,
    )


def _settings(method: Method) -> isp.Settings:
    assert isinstance(method.settings, isp.Settings)
    return method.settings


def _rounds(settings: isp.Settings, training: Training, num_examples: int, target: Decimal) -> list[isp.Round]:
    return isp.rounds(settings, target, num_examples // training.batch_size, training.steps)
