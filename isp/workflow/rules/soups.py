"""Rules for soups: parallel members and their average; parallel weak subnetworks and their merge for `retrain`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from isp.families import instant, souped
from isp.methods import uniform_soup
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Inputs, Retraining, Rule, Work, scoring_memory, training_memory


def _of_member(dag: Dag, variant: str, w: Wildcards) -> dict[str, Any] | None:
    """Return the settings that determine a member of a variant's soups; None if the variant has no soups."""
    settings = dag.methods[variant, w.backbone].settings
    if not isinstance(settings, uniform_soup.Settings):
        return None
    return {"initial": dag.all_variants[variant].initial, **settings.of_member(Decimal(w.sparsity))}


def _members(dag: Dag, w: Wildcards) -> Inputs:
    """Return the members of a soup. They are in the folder of the first variant with equal members, of any number.

    The first member of a dense soup is the dense run.
    """
    count = souped.settings_of(dag.method_of(w)).members
    wanted = _of_member(dag, w.variant, w)
    owner = next(name for name in dag.all_variants if _of_member(dag, name, w) == wanted)
    members = [paths.fill(paths.MEMBER, w, variant=owner, member=index) for index in range(count)]
    return {"members": members if Decimal(w.sparsity) else [dag.dense(w), *members[1:]]}


def _score_soups(dag: Dag, w: Wildcards, inputs: int) -> Work:
    """Return the work of choosing: score each member alone, and every average that is tried."""
    scored = (2 * inputs - 1) * dag.num_validation(w.task)
    return Work(scored=scored, weights=1, sparsity=Decimal(w.sparsity), bits=1)


def _subnetworks(dag: Dag, w: Wildcards) -> Inputs:
    """Return the inputs of merging: the initial state, and the weak subnetworks that are merged into it."""
    count = instant.settings_of(dag.method_of(w)).subnetworks
    subnetworks = [paths.fill(paths.SUBNETWORK, w, member=index) for index in range(count)]
    return {"initial": dag.initial(w), "subnetworks": subnetworks}


def _score_merges(dag: Dag, w: Wildcards, inputs: int) -> Work:
    """Return the work of merging: score the initial state, and each subnetwork with every coefficient above 0."""
    coefficients = list(filter(None, instant.settings_of(dag.method_of(w)).coefficients))
    return Work(scored=(1 + len(coefficients) * (inputs - 1)) * dag.num_validation(w.task), weights=1, bits=1)


TRAIN_MEMBER = Rule(
    name="train_member",
    output=paths.MEMBER,
    makes="ticket",
    routes=("souped", "chosen"),
    inputs=lambda dag, w: {"initial": dag.initial(w)},
    settings=lambda dag, w: dag.options(
        settings=souped.settings_of(dag.method_of(w)).of_member(Decimal(w.sparsity)),
    ),
    reads=("train",),
    work=lambda dag, w, _: Work(steps=dag.training(w).steps, weights=1, sparsity=Decimal(w.sparsity), bits=1),
    versions=("training", "isp", "uniform_soup"),
    memory=training_memory,
    temporary=True,
)
AVERAGE_MEMBERS = Rule(
    name="average_members",
    output=paths.TICKET,
    makes="ticket",
    routes=("souped",),
    inputs=_members,
    settings=lambda dag, w: dag.method_settings(w),
    work=lambda dag, w, _: Work(weights=1, sparsity=Decimal(w.sparsity), bits=1),
    versions=("method",),
    memory=scoring_memory,
    is_ticket=True,
)
CHOOSE_MEMBERS = Rule(
    name="choose_members",
    output=paths.TICKET,
    makes="ticket",
    routes=("chosen",),
    inputs=_members,
    settings=lambda dag, w: dag.method_settings(w),
    reads=("validation",),
    work=_score_soups,
    versions=("method",),
    memory=scoring_memory,
    is_ticket=True,
)
TRAIN_SUBNETWORK = Rule(
    name="train_subnetwork",
    output=paths.SUBNETWORK,
    makes="weights",
    routes=("instant",),
    inputs=lambda dag, w: {"initial": dag.initial(w)},
    settings=lambda dag, w: dag.options(settings=instant.settings_of(dag.method_of(w)).of_subnetwork()),
    reads=("train",),
    work=lambda dag, w, _: Work(steps=instant.settings_of(dag.method_of(w)).look_ahead_steps, rankings=1, weights=1),
    versions=("training", "method", "isp"),
    memory=training_memory,
    temporary=True,
)
MERGE_SUBNETWORKS = Rule(
    name="merge_subnetworks",
    output=paths.MERGED_MASK,
    beside=(paths.MERGED,),
    temporary_beside=True,
    makes="mask",
    routes=("instant",),
    inputs=_subnetworks,
    settings=lambda dag, w: dag.method_settings(w),
    reads=("validation",),
    work=_score_merges,
    versions=("method",),
    memory=scoring_memory,
)
RETRAINED = {
    "instant": Retraining(
        inputs=lambda dag, w: {
            "start": paths.fill(paths.MERGED, w),
            "mask": paths.fill(paths.MERGED_MASK, w),
        }
    )
}
