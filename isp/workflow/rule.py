"""Rules of the workflow as values.

A `Rule` defines the outputs, inputs and needs of its jobs, and what makes them rerun. The rule with the same name in
`workflow/rules/` asks it and tells Snakemake. Plans, resources, the status of a study and the names of stages in
messages are derived from the values in `isp/workflow/rules/`, which has one file per file of `workflow/rules/`.
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
"""Type of a rule's context: an `isp.workflow.dag.Dag`, which this module cannot import."""
Inputs = Mapping[str, str | list[str]]
"""Outputs of other jobs of a study, by the name of the rule's input."""

FORWARD = 3
"""Assumed cost of a training step in forward passes."""
RANKS = 6
"""Number of four-byte values per prunable weight that ranking holds in memory."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of a job, in units whose costs depend on the backbone and the task.

    Attributes:
        steps: Training steps; an upper bound if they depend on measurements during the run.
        scored: Scored examples, in forward passes.
        selections: Maximum number of masks selected during training.
        rankings: Number of further rankings of all prunable weights.
        copies: Number of look-aheads among the trained copies, which may run in parallel processes.
        weights: Number of full sets of weights written; the optimizer's two moments count as two.
        sparsity: Fraction of the prunable weights that a mask removes from these; zeros are not written.
        bits: Number of bits written per prunable weight.
        borrowed: Number of full sets of weights that are references to the weights file instead of copies.
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
    """Sizes from which the memory of a job is estimated, in bytes unless stated otherwise.

    Attributes:
        weights: All weights at four bytes each.
        prunable: One byte per prunable weight, the size of a mask in memory.
        inputs: Number of input files that other jobs of the study make.
        copies: Number of look-aheads that the job trains.
        examples: Training examples that are memory-mapped.
        prepared: Examples that are being prepared for a backbone.
        batch: Activations that a training step saves for its backward pass; 0 on a GPU, where they are on the device.
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
        """Memory for ranking the prunable weights."""
        return 4 * RANKS * self.prunable


def training_memory(sizes: Sizes) -> int:
    """Return the memory of training: first state, model, gradients, moments, update, last state and checkpoint."""
    return 12 * sizes.weights + sizes.ranked + sizes.examples + 2 * sizes.batch


def scoring_memory(sizes: Sizes) -> int:
    """Return the memory of scoring: models that are averaged, and batches in forward passes."""
    return (sizes.inputs + 4) * sizes.weights + sizes.ranked + sizes.examples + sizes.batch // 3


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of the workflow.

    Attributes:
        name: Name of the rule, as in `workflow/rules/`.
        stage: Stage that its jobs run; if empty, the stage with the rule's name.
        starts: Stages that its jobs start as child processes.
        output: Pattern of the output that identifies a job.
        beside: Patterns of further outputs.
        makes: Kind of artifact of the output; None if it is not an artifact.
        rounds_only: Whether it makes its output only at sparsities that no record of the variant has, in place of the
            rule that makes the same output at all other sparsities.
        routes: Routes (`isp.families.Method.route`) of the variants that it applies to; empty if it applies to all
            variants or to none.
        inputs: Inputs that other jobs of the study make.
        reads: Parts of the prepared examples that it reads; if it reads any, it builds a model.
        settings: Its part of the command line: the options in addition to those of all jobs of its kind.
        work: Work of a job, given the number of its inputs.
        versions: Versions on which its results depend besides its stage, by their names in `isp.workflow.dag`.
        memory: Peak host memory of a job in bytes, without Python; None if it is negligible.
        memory_of: Name of a rule whose largest job needs the same memory.
        temporary: Whether the output is deleted when no job needs it any more.
        temporary_beside: Whether the further outputs, which then contain all weights that the job writes, are deleted
            when no job needs them any more.
        carries: Whether the next job of a chain starts from the output, so that two outputs exist at a time.
        is_ticket: Whether the output is the ticket of a variant of one of its routes.
        is_cost: Whether its work is part of the cost of a ticket.
        jobs: Wildcards of its jobs in a study, if studies share them or they belong to no cell; None if they are
            derived from the records.
        log: Pattern of the logs of these jobs; logs of other jobs mirror the path of the output.
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
        """Name of the stage that its jobs run."""
        return self.stage or self.name


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """Inputs of the rule `retrain` for the tickets of a route.

    Attributes:
        inputs: The state to train from (start) and the mask to train under (mask).
        begins: Step of that state.
    """

    inputs: Callable[[Context, Wildcards], Inputs]
    begins: Callable[[Context, Wildcards], int] = lambda dag, w: 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules of the workflow.

    Attributes:
        by_name: All rules by name.
        retrained: Inputs of `retrain`, by route.
        hidden_variants: Function that returns the variants that a study does not define but whose jobs it needs.
    """

    by_name: Mapping[str, Rule]
    retrained: Mapping[str, Retraining]
    hidden_variants: Callable[[Study], dict[str, Variant]]
