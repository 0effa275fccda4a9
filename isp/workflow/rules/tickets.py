"""Rules for tickets of every family, the similarity of their masks, and their scores."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from isp.families import planned_steps
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Rule, Work, scoring_memory, training_memory


def _retraining_work(dag: Dag, w: Wildcards, _: int) -> Work:
    steps = dag.training(w).steps - dag.retraining(w).begins(dag, w)
    return Work(steps=steps, weights=1, sparsity=Decimal(w.sparsity), bits=1)


def _one_job(dag: Dag, w: Wildcards, _: int) -> Work:
    """Return the work of a whole run, including the masks that it selects during training."""
    method, training, target = dag.method_of(w), dag.training(w), Decimal(w.sparsity)
    steps = planned_steps(method, training, dag.study.num_train(w.task), [target])
    num_events = getattr(method.family, "num_events", None)
    selections = num_events(method, training, target) if num_events else 0
    return Work(steps=steps, selections=selections, weights=1, sparsity=target, bits=1)


def _run_of(w: Wildcards) -> dict[str, str | int]:
    return {"study": w.study, "backbone": w.backbone, "task": w.task, "seed": int(w.seed)}


RETRAIN = Rule(
    name="retrain",
    output=paths.TICKET,
    makes="ticket",
    inputs=lambda dag, w: dag.retraining(w).inputs(dag, w),
    settings=lambda dag, w: dag.method_name(w),
    reads=("train",),
    work=_retraining_work,
    versions=("training",),
    memory=training_memory,
    is_ticket=True,
)
RETRAIN_ROUND = replace(
    RETRAIN,
    name="retrain_round",
    stage="retrain",
    rounds_only=True,
    routes=("iterative",),
    temporary=True,
    is_ticket=False,
)
"""Rule for tickets of rounds that are not results: the next round's mask and pooled tickets need them."""
FIND_TICKET = Rule(
    name="find_ticket",
    output=paths.TICKET,
    makes="ticket",
    routes=("one_job",),
    inputs=lambda dag, w: {"initial": dag.initial(w)},
    settings=lambda dag, w: dag.method_settings(w),
    reads=("train",),
    work=_one_job,
    versions=("training", "method", "mathematics"),
    memory=training_memory,
    is_ticket=True,
)
COMPARE_MASKS = Rule(
    name="compare_masks",
    output=paths.SIMILARITY,
    inputs=lambda dag, w: {"tickets": [path for by in dag.compared(w).values() for path in by.values()]},
    settings=lambda dag, w: dag.options(tickets=dag.compared(w), cell=_run_of(w)),
    memory=lambda sizes: sizes.inputs * sizes.prunable,  # all masks of one sparsity
    is_cost=False,
)
EVALUATE = Rule(
    name="evaluate",
    output=paths.RECORD,
    inputs=lambda dag, w: {"ticket": dag.ticket(w)},
    settings=lambda dag, w: dag.options(cell={**_run_of(w), "variant": w.variant}),
    reads=("validation", "test"),
    work=lambda dag, w, _: Work(scored=dag.num_validation(w.task) + dag.num_test(w.task)),
    versions=("task",),
    memory=scoring_memory,
    is_cost=False,
)
