"""Rules for iterative magnitude pruning: each round prunes the previous round's ticket, and `retrain` trains the next.

Pooled tickets interpolate the tickets of the rounds. The rounds are those of an equal iterative variant of the study,
or, if there is none, those of a hidden variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from isp.config import CHAIN, Study, Variant
from isp.families import iterative
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Inputs, Retraining, Rule, Work, scoring_memory, training_memory


def hidden_variants(study: Study) -> dict[str, Variant]:
    """Return the chains of rounds that only a pooled variant needs."""
    chains: dict[str, Variant] = {}
    for name, variant in study.variants.items():
        if study.method(name).route != "pooled":
            continue
        if any(_equal_chain(study, name, backbone) is None for backbone in study.training):
            settings = _without_coefficients(variant.settings)
            special = {backbone: _without_coefficients(own) for backbone, own in variant.by_backbone.items()}
            update = {"method": "lth", "settings": settings, "by_backbone": special}
            chains[f"{name}{CHAIN}"] = variant.model_copy(update=update)
    return chains


def _without_coefficients(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "coefficients"}


def _equal_chain(study: Study, variant: str, backbone: str) -> str | None:
    """Return an iterative variant of the study with the rounds that a pooled variant needs; None if there is none."""
    pooled: Any = study.method(variant, backbone).settings
    wanted = pooled.model_dump(exclude={"coefficients"})
    for name, other in study.variants.items():
        method = study.method(name, backbone)
        same = other.initial == study.variants[variant].initial
        if method.name == "lth" and same and method.settings.model_dump() == wanted:
            return name
    return None


def _previous_ticket(dag: Dag, w: Wildcards) -> Inputs:
    """Return the ticket that a round prunes: that of the previous round, or the dense one in round 0."""
    index = int(w.round) - 1
    if index < 0:
        return {"ticket": dag.dense(w)}
    return {"ticket": paths.fill(paths.TICKET, w, sparsity=dag.nominal(w, index))}


def _pooling(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of a pooled ticket: the ticket of its sparsity, the dense one, and those of earlier rounds."""
    chain = _equal_chain(dag.study, w.variant, w.backbone) or f"{w.variant}{CHAIN}"
    before = [paths.fill(paths.TICKET, w, variant=chain, sparsity=value) for value in dag.chain(w)[:-1]]
    return {"ticket": paths.fill(paths.TICKET, w, variant=chain), "candidates": [dag.dense(w), *before]}


def _score_pools(dag: Dag, w: Wildcards, inputs: int) -> Work:
    """Return the work of pooling: score the ticket, and each candidate with every coefficient."""
    settings: Any = dag.method_of(w).settings
    evaluations = 1 + len(settings.coefficients) * (inputs - 1)
    scored = evaluations * dag.num_validation(w.task)
    return Work(scored=scored, weights=1, sparsity=Decimal(w.sparsity), bits=1)


def _retraining(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of retraining: the rewind point or the initial state, and the mask of the last round."""
    step = iterative.rewind_step(dag.method_of(w))
    initial = dag.all_variants[w.variant].initial
    start = paths.fill(paths.REWIND_POINT, w, initial=initial, step=step) if step else dag.initial(w)
    return {"start": start, "mask": paths.fill(paths.ROUND_MASK, w, round=len(dag.chain(w)) - 1)}


TRAIN_TO_REWIND_POINT = Rule(
    name="train_to_rewind_point",
    stage="train_segment",
    output=paths.REWIND_POINT,
    makes="state",
    inputs=lambda dag, w: {"start": paths.fill(paths.INITIAL, w)},
    reads=("train",),
    work=lambda dag, w, _: Work(steps=int(w.step), weights=3),
    versions=("training", "isp"),
    memory=training_memory,
    temporary=True,
    is_cost=False,  # the dense run passes this point anyway
)
PRUNE_ITERATIVE = Rule(
    name="prune_iterative",
    output=paths.ROUND_MASK,
    makes="mask",
    routes=("iterative",),
    inputs=_previous_ticket,
    settings=lambda dag, w: dag.scope(w),
    work=lambda dag, w, _: Work(rankings=1, bits=1),
    versions=("method",),
    memory=lambda sizes: sizes.weights + sizes.ranked,
)
POOL_TICKETS = Rule(
    name="pool_tickets",
    output=paths.TICKET,
    makes="ticket",
    routes=("pooled",),
    inputs=_pooling,
    settings=lambda dag, w: dag.method_settings(w),
    reads=("validation",),
    work=_score_pools,
    versions=("method",),
    memory=scoring_memory,
    is_ticket=True,
)
RETRAINED = {"iterative": Retraining(inputs=_retraining, begins=lambda dag, w: iterative.rewind_step(dag.method_of(w)))}
