"""Rules for one-shot methods, which find a mask before training."""

from __future__ import annotations

from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import FORWARD, Retraining, Rule, Work, training_memory


def _scores(dag: Dag, w: Wildcards, _: int) -> Work:
    """Return the work of scoring by batches or rounds, each of which counts as a training step."""
    settings = dag.method_of(w).settings
    passes = getattr(settings, "batches", 0) * dag.training(w).batch_size + getattr(settings, "rounds", 0)
    return Work(rankings=1, scored=FORWARD * passes, bits=1)


PRUNE_ONE_SHOT = Rule(
    name="prune_one_shot",
    output=paths.ONE_SHOT_MASK,
    makes="mask",
    routes=("one_shot",),
    inputs=lambda dag, w: {"initial": dag.initial(w)},
    settings=lambda dag, w: dag.method_settings(w),
    reads=("train",),
    work=_scores,
    versions=("method",),
    memory=training_memory,
)
RETRAINED = {
    "one_shot": Retraining(inputs=lambda dag, w: {"start": dag.initial(w), "mask": paths.fill(paths.ONE_SHOT_MASK, w)})
}
