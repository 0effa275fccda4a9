"""Instant Soup Pruning: a segment of training, look-ahead copies side by side, their masks superposed, and on."""

from __future__ import annotations

from decimal import Decimal

from isp.copies import LookAhead
from isp.methods import isp
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Inputs, Retraining, Rule, Work, training_memory


def _settings(dag: Dag, w: Wildcards) -> isp.Settings:
    settings = dag.method_of(w).settings
    assert isinstance(settings, isp.Settings)
    return settings


def _steps_per_epoch(dag: Dag, w: Wildcards) -> int:
    return dag.study.num_train(w.task) // dag.study.training[w.backbone].batch_size


def _until(dag: Dag, w: Wildcards, round_: int) -> int:
    """The step at which a round prunes; 0 before the first."""
    return isp.steps_until(_settings(dag, w), round_, _steps_per_epoch(dag, w)) if round_ >= 0 else 0


def _protocol(dag: Dag, w: Wildcards) -> LookAhead:
    """The settings that a look-ahead copy depends on."""
    return _settings(dag, w).look_ahead(_steps_per_epoch(dag, w))


def _within(dag: Dag, w: Wildcards) -> Inputs:
    """The mask that round `w.round` trains under: that of the round before."""
    index = int(w.round) - 1
    if index < 0:
        return {}
    return {"within": paths.fill(paths.ROUND_MASK, w, round=index, sparsity=dag.nominal(w, index))}


def _segment(dag: Dag, w: Wildcards) -> Inputs:
    """A segment goes on from the state and mask of the round before."""
    index = int(w.round) - 1
    start = dag.initial(w) if index < 0 else paths.fill(paths.STATE, w, round=index)
    return {"start": start, **_within(dag, w)}


def _segment_work(dag: Dag, w: Wildcards, _: int) -> Work:
    """Train a segment, and write weights and moments under the mask of the round before."""
    index = int(w.round)
    steps = _until(dag, w, index) - _until(dag, w, index - 1)
    sparsity = dag.nominal(w, index - 1) if index else Decimal(0)
    return Work(steps=steps, weights=3, sparsity=sparsity, bits=int(index > 0))


def _look_ahead(dag: Dag, w: Wildcards) -> Inputs:
    """A look-ahead copy starts from the round's state, under the current mask."""
    return {"state": paths.fill(paths.STATE, w), **_within(dag, w)}


def _aggregation(dag: Dag, w: Wildcards) -> Inputs:
    """A round's mask is made of its state, the current mask and the weak masks."""
    copies = range(_settings(dag, w).denoisers)
    return {**_look_ahead(dag, w), "weak": [paths.fill(paths.WEAK, w, member=index) for index in copies]}


def _look_ahead_settings(dag: Dag, w: Wildcards) -> str:
    """The settings of a copy and what it contributes."""
    settings = _protocol(dag, w).model_dump(mode="json")
    return f"{dag.options(settings=settings, contribution=_settings(dag, w).contribution)} {dag.scope(w)}"


def _look_ahead_work(dag: Dag, w: Wildcards, _: int) -> Work:
    magnitudes = _settings(dag, w).contribution == "magnitudes"
    return Work(steps=_protocol(dag, w).look_ahead_steps, magnitudes=int(magnitudes), bits=int(not magnitudes))


def _retraining(dag: Dag, w: Wildcards) -> Inputs:
    """A ticket goes on from its last round."""
    last = len(dag.chain(w)) - 1
    return {"start": paths.fill(paths.STATE, w, round=last), "mask": paths.fill(paths.ROUND_MASK, w, round=last)}


TRAIN_SEGMENT = Rule(
    name="train_segment",
    output=paths.STATE,
    makes="state",
    routes=("denoised",),
    inputs=_segment,
    settings=lambda dag, w: _until(dag, w, int(w.round)),
    work=_segment_work,
    versions=("training", "isp"),
    memory=training_memory,
    temporary=True,
    carries=True,
)
WEAK_MASK = Rule(
    name="weak_mask",
    output=paths.WEAK,
    makes="weights",
    routes=("denoised",),
    inputs=_look_ahead,
    settings=_look_ahead_settings,
    work=_look_ahead_work,
    versions=("training", "method", "isp"),
    memory=training_memory,
    temporary=True,
)
AGGREGATE = Rule(
    name="aggregate",
    output=paths.ROUND_MASK,
    makes="mask",
    routes=("denoised",),
    inputs=_aggregation,
    settings=lambda dag, w: f"{dag.options(rule=_settings(dag, w).rule)} {dag.scope(w)}",
    work=lambda dag, w, _: Work(bits=1),
    versions=("method", "isp"),
    # A state; one copy's magnitudes, their sum in fp64 and mean; a bit of each copy's mask.
    memory=lambda sizes: 3 * sizes.weights + 16 * sizes.prunable + sizes.inputs * sizes.prunable // 8 + sizes.ranked,
)
RETRAINED = {
    "denoised": Retraining(inputs=_retraining, begins=lambda dag, w: _until(dag, w, len(dag.chain(w)) - 1)),
}
