"""Superpose the weak masks of a round into its one, denoised mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts, checkpoints
from isp.families import denoised
from isp.sparsity import parse_sparsity
from isp.stages._options import Output, Round, Scope, Sparsity, Within
from isp.stages._work import inputs, prunable_of, spending, spent, working
from isp.superposition import Rule

VERSION = 4


def aggregate(
    state: Annotated[Path, typer.Option(help="The state that the round's segment ended in.")],
    rule: Annotated[Rule, typer.Option(help="How the weak masks are superposed.")],
    round_: Round,
    sparsity: Sparsity,
    output: Output,
    weak: Annotated[list[Path] | None, typer.Option(help="A weak mask; once for each. None: plain magnitude.")] = None,
    within: Within = None,
    scope: Scope = "global",
) -> None:
    """Superpose weak masks into one of exactly SPARSITY, and record what they changed and how they agree."""
    target = parse_sparsity(sparsity)
    with working(output) as work:
        made_from = inputs(output, state=state, within=within, weak=weak)
        found, about = artifacts.load_state(state)
        load = artifacts.load_weights if rule == "mean_score" else artifacts.load_mask
        contributions = [load(path) for path in weak or []]
        mask = artifacts.load_mask(within)[0] if within else None
        weights = {name: found.weights[name] for name in prunable_of(about)}
        at = {"round": round_, "step": found.step}
        event = denoised.aggregate(rule, weights, [part for part, _ in contributions], target, mask, at, scope)
        cost, took = spent(about)
        for _, header in contributions:
            own_cost, own_took = spent(header)
            cost, took = cost + own_cost, took + own_took
        header = {
            "stage": "aggregate",
            "version": VERSION,
            "rule": rule,
            "scope": scope,
            "rounds": [*about["rounds"], event.record],
        }
        artifacts.save_mask(output, event.mask, header | made_from | spending(cost, took + work.measured()))
    checkpoints.forget(state, *weak or [])
