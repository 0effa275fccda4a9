"""Rules for Instant Soup Pruning: alternately train a segment, and superpose the masks of look-ahead copies."""

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
    """Return the step at which a round prunes; 0 before the first round."""
    return isp.steps_until(_settings(dag, w), round_, _steps_per_epoch(dag, w)) if round_ >= 0 else 0


def _protocol(dag: Dag, w: Wildcards) -> LookAhead:
    """Return the settings on which a look-ahead copy depends."""
    return _settings(dag, w).look_ahead(_steps_per_epoch(dag, w))


def _within(dag: Dag, w: Wildcards) -> Inputs:
    """Return the mask under which round `w.round` trains: that of the previous round."""
    index = int(w.round) - 1
    if index < 0:
        return {}
    return {"within": paths.fill(paths.ROUND_MASK, w, round=index, sparsity=dag.nominal(w, index))}


def _segment(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of a segment: the state and mask of the previous round."""
    index = int(w.round) - 1
    start = dag.initial(w) if index < 0 else paths.fill(paths.STATE, w, round=index)
    return {"start": start, **_within(dag, w)}


def _segment_work(dag: Dag, w: Wildcards, _: int) -> Work:
    """Return the work of a segment: training, and writing weights and moments under the previous round's mask."""
    index = int(w.round)
    steps = _until(dag, w, index) - _until(dag, w, index - 1)
    sparsity = dag.nominal(w, index - 1) if index else Decimal(0)
    return Work(steps=steps, weights=3, sparsity=sparsity, bits=int(index > 0))


def _round(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of a round's copies: its state and the current mask."""
    return {"state": paths.fill(paths.STATE, w), **_within(dag, w)}


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
    return {"start": paths.fill(paths.STATE, w, round=last), "mask": paths.fill(paths.ROUND_MASK, w, round=last)}


TRAIN_SEGMENT = Rule(
    name="train_segment",
    output=paths.STATE,
    makes="state",
    routes=("denoised",),
    inputs=_segment,
    settings=lambda dag, w: _until(dag, w, int(w.round)),
    reads=("train",),
    work=_segment_work,
    versions=("training", "isp"),
    memory=training_memory,
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
    # In addition to training: one copy's magnitudes, their sum in fp64, and one bit per weight for each copy's mask.
    memory=lambda sizes: training_memory(sizes) + 12 * sizes.prunable + sizes.copies * sizes.prunable // 8,
)
RETRAINED = {
    "denoised": Retraining(inputs=_retraining, begins=lambda dag, w: _until(dag, w, len(dag.chain(w)) - 1)),
}
