"""Rules for Instant Soup Pruning: alternately train a segment, and superpose the masks of look-ahead copies.

Rounds at which no ticket leaves the chain can be run in one job with the next one at which a ticket does.
"""

from __future__ import annotations

import re
from decimal import Decimal

from isp.copies import LookAhead
from isp.methods import isp
from isp.sparsity import sparsities_to
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Inputs, Retraining, Rule, Sizes, Work, training_memory

_STATE = re.compile(r"/rounds?(?:(?P<first>\d+)-)?(?P<last>\d+)/state\.safetensors$")
"""End of the path of a state between rounds."""


def _settings(dag: Dag, w: Wildcards) -> isp.Settings:
    settings = dag.method_of(w).settings
    assert isinstance(settings, isp.Settings)
    return settings


def _steps_per_epoch(dag: Dag, w: Wildcards) -> int:
    return dag.study.num_train(w.task) // dag.study.training[w.backbone].batch_size


def _until(dag: Dag, w: Wildcards, round_: int) -> int:
    """Return the step at which a round prunes; 0 before the first round."""
    return isp.steps_until(_settings(dag, w), round_, _steps_per_epoch(dag, w)) if round_ >= 0 else 0


def _protocol(dag: Dag, w: Wildcards) -> LookAhead:
    """Return the settings on which a look-ahead copy depends."""
    return _settings(dag, w).look_ahead(_steps_per_epoch(dag, w))


def _leaving(dag: Dag, w: Wildcards) -> dict[int, list[str]]:
    """Return the rounds at which tickets leave the chain of rounds, and the sparsities of these tickets."""
    rounds: dict[int, list[str]] = {}
    settings = _settings(dag, w)
    for value in dag.recorded.get((w.backbone, w.task, w.variant), ()):
        last = len(sparsities_to(Decimal(value), settings.rate, settings.rate_of)) - 1
        rounds.setdefault(last, []).append(value)
    return rounds


def _nominal_mask(dag: Dag, w: Wildcards, round_: int) -> str:
    """Return the path of the mask with which the chain continues after a round."""
    return paths.fill(paths.ROUND_MASK, w, round=round_, sparsity=dag.nominal(w, round_))


def _before(dag: Dag, w: Wildcards, round_: int, sparsity: object) -> int:
    """Return the round from which the state of an event is reached; -1: the initial state.

    With `look_aheads: together`, the default on a GPU, it is the last round before it at which a ticket leaves, and the
    rounds in between are run in one job; otherwise it is the previous round. What a study has made is kept either way:
    headers say from which state the event's mask and ticket were made, or those of other events of the round. So
    another value of `look_aheads`, or other sparsities, rerun no round. Weak masks can only be kept by rounds that are
    jobs.
    """
    study, leaving = dag.study, _leaving(dag, w)
    if study.keep_weak_masks:
        return round_ - 1
    for value in dict.fromkeys(map(str, (sparsity, dag.nominal(w, round_), *leaving.get(round_, ())))):
        # While a mask is made again, it does not exist, but its ticket does.
        for pattern in (paths.ROUND_MASK, *(paths.TICKET,) * (value in leaving.get(round_, ()))):
            state = dag.made_from(paths.fill(pattern, w, round=round_, sparsity=value))
            match = _STATE.search(state or "")
            if match and int(match["last"]) == round_:
                return int(match["first"] or round_) - 1
    if not (study.look_aheads == "together" or (study.look_aheads is None and study.device != "cpu")):
        return round_ - 1
    candidates = (
        index
        for index in reversed(range(round_))
        if index in leaving or dag.made_from(_nominal_mask(dag, w, index)) is not None
    )
    return next(candidates, -1)


def _state(dag: Dag, w: Wildcards, round_: int, sparsity: object) -> str:
    """Return the path of the state of an event."""
    first = _before(dag, w, round_, sparsity) + 1
    pattern = paths.STATE if first == round_ else paths.ROUNDS_STATE
    return paths.fill(pattern, w, first=first, round=round_)


def _from(dag: Dag, w: Wildcards, first: int) -> Inputs:
    """Return the state from which round `first` starts, and the mask under which it trains: those of the one before."""
    if first == 0:
        return {"start": dag.initial(w)}
    before = first - 1
    return {"start": _state(dag, w, before, dag.nominal(w, before)), "within": _nominal_mask(dag, w, before)}


def _segment_work(dag: Dag, w: Wildcards, _: int) -> Work:
    """Return the work of a segment: training, and writing weights and moments under the previous round's mask."""
    index = int(w.round)
    steps = _until(dag, w, index) - _until(dag, w, index - 1)
    sparsity = dag.nominal(w, index - 1) if index else Decimal(0)
    return Work(steps=steps, weights=3, sparsity=sparsity, bits=int(index > 0))


def _rounds_settings(dag: Dag, w: Wildcards) -> str:
    """Format the options for the steps of several rounds, the sparsities of all but the last, and their pruning."""
    first, last = int(w.first), int(w.round)
    rounds = [[_until(dag, w, index), str(dag.nominal(w, index))] for index in range(first, last)]
    steps = dag.options(first=str(first), rounds=rounds, until=str(_until(dag, w, last)))
    return f"{steps} {_pruning_settings(dag, w)}"


def _rounds_work(dag: Dag, w: Wildcards, _: int) -> Work:
    """Return the work of several rounds: their segments, the copies and the masks of all but the last, and a state."""
    first, last = int(w.first), int(w.round)
    pruned, denoisers = last - first, _settings(dag, w).denoisers
    copied = pruned * denoisers * _protocol(dag, w).look_ahead_steps
    return Work(
        steps=_until(dag, w, last) - _until(dag, w, first - 1) + copied,
        copies=denoisers,
        rankings=pruned * (denoisers + 2),
        weights=3,
        sparsity=dag.nominal(w, last - 1),
        bits=1,
    )


def _round(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of a round's copies: its state, and the current mask unless the state contains it."""
    index = int(w.round)
    state = _state(dag, w, index, w.sparsity)
    if index == 0 or _before(dag, w, index, w.sparsity) + 1 < index:
        return {"state": state}
    return {"state": state, "within": _nominal_mask(dag, w, index - 1)}


def _pruning_settings(dag: Dag, w: Wildcards) -> str:
    """Format the options for the copies, their number, and the superposition of their masks."""
    settings = _settings(dag, w)
    copies = _protocol(dag, w).model_dump(mode="json")
    kept = " --keep-weak" if dag.study.keep_weak_masks else ""
    return f"{dag.options(denoisers=settings.denoisers, rule=settings.rule, settings=copies)} {dag.scope(w)}{kept}"


def _pruning_work(dag: Dag, w: Wildcards, _: int) -> Work:
    """Return the work of pruning: train the copies, rank each, their sum and the weights, and write one mask."""
    denoisers = _settings(dag, w).denoisers
    steps = denoisers * _protocol(dag, w).look_ahead_steps
    return Work(steps=steps, copies=denoisers, rankings=denoisers + 2, bits=1)


def _retraining(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of retraining: the state and mask of the last round."""
    last = len(dag.chain(w)) - 1
    return {"start": _state(dag, w, last, w.sparsity), "mask": paths.fill(paths.ROUND_MASK, w, round=last)}


def _pruning_memory(sizes: Sizes) -> int:
    """Return the memory of training and of pruning: one copy's magnitudes, their sum in fp64, and each copy's mask."""
    return training_memory(sizes) + 12 * sizes.prunable + sizes.copies * sizes.prunable // 8


TRAIN_SEGMENT = Rule(
    name="train_segment",
    output=paths.STATE,
    makes="state",
    routes=("denoised",),
    inputs=lambda dag, w: _from(dag, w, int(w.round)),
    settings=lambda dag, w: _until(dag, w, int(w.round)),
    reads=("train",),
    work=_segment_work,
    versions=("training", "isp"),
    memory=training_memory,
    temporary=True,
    carries=True,
)
RUN_ROUNDS = Rule(
    name="run_rounds",
    output=paths.ROUNDS_STATE,
    makes="state",
    routes=("denoised",),
    inputs=lambda dag, w: _from(dag, w, int(w.first)),
    settings=_rounds_settings,
    reads=("train",),
    work=_rounds_work,
    versions=("training", "method", "isp", "rounds"),
    memory=_pruning_memory,
    temporary=True,
    carries=True,
)
PRUNE_DENOISED = Rule(
    name="prune_denoised",
    starts=("weak_mask",),
    output=paths.ROUND_MASK,
    makes="mask",
    routes=("denoised",),
    inputs=_round,
    settings=_pruning_settings,
    reads=("train",),
    work=_pruning_work,
    versions=("training", "method", "isp"),
    memory=_pruning_memory,
)
RETRAINED = {
    "denoised": Retraining(inputs=_retraining, begins=lambda dag, w: _until(dag, w, len(dag.chain(w)) - 1)),
}
