"""What a rule of the workflow is, as a value.

A `Rule` says how its jobs are known, what they need and take, and what makes them run again; the rule of the same name
in `workflow/rules/` says the same to Snakemake, and asks this one. Plans, resources, the status of a study and the
stages' part in messages follow from the values in `isp/workflow/rules/`, one file for each file of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from isp.config import Study, Variant
from isp.lineage import Kind
from isp.workflow.paths import Wildcards

Context = Any
"""What the functions of a rule are given: an `isp.workflow.dag.Dag`, which stands above this module."""
Inputs = Mapping[str, str | list[str]]
"""Paths that other jobs of a study make, by the names that a rule gives them."""

FORWARD = 3
"""A training step is taken for three forward passes."""
RANKS = 6
"""Numbers of four bytes for every prunable weight that ranking holds."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job does, in units that a backbone and a task put a price on.

    Attributes:
        steps: Of training; at most, where they follow from what is measured on the way.
        scored: Examples that it scores, in forward passes.
        selections: Masks that it selects while it trains, at most.
        rankings: How often it ranks all prunable weights beside.
        copies: Look-aheads among what it trains, which may run side by side in processes of their own.
        weights: How often it writes all weights; the optimizer's two moments count as two.
        sparsity: Share of the prunable weights that a mask drops from these; zeros are not written.
        bits: How often it writes a bit for every prunable weight.
        borrowed: How often it names all weights in the weights file instead of writing them.
    """

    steps: int = 0
    scored: int = 0
    selections: int = 0
    rankings: int = 0
    copies: int = 0
    weights: int = 0
    sparsity: Decimal = Decimal(0)
    bits: int = 0
    borrowed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the memory of a job is estimated from, in bytes, but for the number of inputs.

    Attributes:
        weights: All weights at four bytes each.
        prunable: A byte for every prunable weight, as a mask in memory takes.
        inputs: Number of files that other jobs of the study made for it.
        copies: Look-aheads that it trains.
        examples: Training examples that are mapped into memory.
        prepared: Examples that are prepared for a backbone.
        batch: What a training step keeps of a batch until its backward pass; 0 on a GPU, where it is the device's.
    """

    weights: int
    prunable: int
    inputs: int = 0
    copies: int = 0
    examples: int = 0
    prepared: int = 0
    batch: int = 0

    @property
    def ranked(self) -> int:
        """What ranking the prunable weights holds."""
        return 4 * RANKS * self.prunable


def training_memory(sizes: Sizes) -> int:
    """The first state, model, gradients, two moments and their update, the last state, a checkpoint."""
    return 12 * sizes.weights + sizes.ranked + sizes.examples + 2 * sizes.batch


def scoring_memory(sizes: Sizes) -> int:
    """Models that are averaged, and batches that go forward only."""
    return (sizes.inputs + 4) * sizes.weights + sizes.ranked + sizes.examples + sizes.batch // 3


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of the workflow.

    Attributes:
        name: As in `workflow/rules/`.
        stage: The stage that its jobs run; empty: that of the rule's name.
        starts: Stages that they start in processes of their own.
        output: Pattern of the path by which a job is known.
        beside: Patterns of what else it makes.
        makes: Kind of artifact that the output is; None: no artifact.
        rounds_only: Whether it makes its output only at sparsities that no record of the variant has, in the place of a
            rule that makes it at all.
        routes: The routes (`isp.families.Method.route`) whose variants it is for; none: it is not for a variant, or
            for all of them.
        inputs: What it needs of the study's other jobs.
        reads: Parts of the prepared examples that it reads, and builds a model for.
        settings: Its part of the command line: what it depends on beside what all jobs of a kind are told.
        work: What a job does, given the number of its inputs.
        versions: What its results depend on beside its stage, by the names in `isp.workflow.dag`.
        memory: Bytes that a job holds on the host at its peak, beside Python; None: next to nothing.
        memory_of: A rule whose largest job holds as much.
        temporary: Whether the output is deleted when nothing needs it any more.
        temporary_beside: Whether what is made beside the output is, all the weights that the job writes.
        carries: Whether the next job of a chain begins from the output, so that two of them lie there at a time.
        is_ticket: Whether the output is the ticket of a variant on one of its routes.
        is_cost: Whether its work is part of what a ticket costs.
        jobs: The wildcards of its jobs in a study, where studies share them or they belong to no cell; None: they are
            found from the records back.
        log: Pattern of the log of these jobs; that of others mirrors the path of the output.
    """

    name: str
    stage: str = ""
    starts: tuple[str, ...] = ()
    output: str = ""
    beside: tuple[str, ...] = ()
    makes: Kind | None = None
    rounds_only: bool = False
    routes: tuple[str, ...] = ()
    inputs: Callable[[Context, Wildcards], Inputs] = lambda dag, w: {}
    reads: tuple[str, ...] = ()
    settings: Callable[[Context, Wildcards], str | int] = lambda dag, w: ""
    work: Callable[[Context, Wildcards, int], Work] = lambda dag, w, inputs: Work()
    versions: tuple[str, ...] = ()
    memory: Callable[[Sizes], int] | None = None
    memory_of: str = ""
    temporary: bool = False
    temporary_beside: bool = False
    carries: bool = False
    is_ticket: bool = False
    is_cost: bool = True
    jobs: Callable[[Study], list[dict[str, str]]] | None = None
    log: str = ""

    @property
    def run(self) -> str:
        """The stage that its jobs run."""
        return self.stage or self.name


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How the rule `retrain` trains the tickets of a route.

    Attributes:
        inputs: The state to train from (start) and the mask to train under (mask).
        begins: The step that the state is of.
    """

    inputs: Callable[[Context, Wildcards], Inputs]
    begins: Callable[[Context, Wildcards], int] = lambda dag, w: 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of the workflow.

    Attributes:
        by_name: All of them.
        retrained: How `retrain` trains the tickets of a route, by route.
        hidden_variants: Variants that a study does not name, but whose jobs its own need.
    """

    by_name: Mapping[str, Rule]
    retrained: Mapping[str, Retraining]
    hidden_variants: Callable[[Study], dict[str, Variant]]
