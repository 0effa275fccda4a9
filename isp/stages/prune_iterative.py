"""Prune a round of iterative magnitude pruning: keep the largest weights at the end of the previous round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts, checkpoints
from isp.artifacts import load_ticket
from isp.families import iterative
from isp.sparsity import parse_sparsity
from isp.stages._options import Output, Round, Scope, Sparsity
from isp.stages._work import inputs, spending, total_measured, working

VERSION = 1


def prune_iterative(
    ticket: Annotated[Path, typer.Option(help="The ticket of the previous round; for round 0 the dense one.")],
    round_: Round,
    sparsity: Sparsity,
    output: Output,
    scope: Scope = "global",
) -> None:
    """Keep the largest weights of a ticket, within its mask."""
    target = parse_sparsity(sparsity)
    with working(output) as work:
        made_from = inputs(output, ticket=ticket)
        parent = load_ticket(ticket)
        weights = {name: parent.weights[name] for name in parent.mask}
        mask, record = iterative.prune(weights, target, parent.mask, scope, round_, parent.retraining.steps)
        took = total_measured(parent.origin) + work.measured()
        about = {"stage": "prune_iterative", "version": VERSION, "rounds": [*parent.rounds, record]}
        artifacts.save_mask(output, mask, about | made_from | spending(parent.cost, took))
    checkpoints.forget(ticket)
