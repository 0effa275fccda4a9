"""Superpose the weak masks of a round into its one, denoised mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts, checkpoints
from isp.costs import Cost, Measured
from isp.families import denoised
from isp.masks import Weights
from isp.sparsity import parse_sparsity
from isp.stages._options import Output, Round, Scope, Sparsity, Within
from isp.stages._work import inputs, prunable_of, spending, spent, working
from isp.superposition import Rule, Superposition

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
        weights, step, about = _weights(state)
        mask = artifacts.load_mask(within)[0] if within else None
        superposed = Superposition(rule=rule, sparsity=target, within=mask, scope=scope)
        cost, took = spent(about)
        for path in weak or []:
            own_cost, own_took = _add(superposed, path)
            cost, took = cost + own_cost, took + own_took
        event = denoised.aggregate(superposed, weights, {"round": round_, "step": step})
        header = {
            "stage": "aggregate",
            "version": VERSION,
            "rule": rule,
            "scope": scope,
            "rounds": [*about["rounds"], event.record],
        }
        artifacts.save_mask(output, event.mask, header | made_from | spending(cost, took + work.measured()))
    checkpoints.forget(state, *weak or [])


def _weights(path: Path) -> tuple[Weights, int, dict[str, Any]]:
    """Prunable weights of a state, its step and what is written about it; its other tensors are not kept."""
    state, about = artifacts.load_state(path)
    return {name: state.weights[name] for name in prunable_of(about)}, state.step, about


def _add(superposed: Superposition, path: Path) -> tuple[Cost, Measured]:
    """Add what a copy contributes, which then leaves memory; return what it cost and what its jobs took."""
    load = artifacts.load_weights if superposed.rule == "mean_score" else artifacts.load_mask
    contribution, about = load(path)
    superposed.add(contribution)
    return spent(about)
