"""Train one look-ahead copy of a round of Instant Soup Pruning in its own process, and prune it to a weak mask."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from isp import artifacts, copies
from isp.copies import LookAhead
from isp.families import denoised
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.stages._copies import Copies
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    LookAheadSettings,
    Output,
    Round,
    RoundState,
    Scope,
    Seed,
    Sparsity,
    Task,
    Threads,
    Training,
    WithinRound,
)
from isp.stages._work import Setup, inputs, resumable
from isp.superposition import Contribution

VERSION = 1


def weak_mask(
    state: RoundState,
    round_: Round,
    member: Annotated[int, typer.Option(min=0, help="Number of the copy, from 0.")],
    sparsity: Sparsity,
    settings: LookAheadSettings,
    backbone: Backbone,
    task: Task,
    seed: Seed,
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    within: WithinRound = None,
    contribution: Annotated[
        Contribution, typer.Option(help="Output: the mask or, for the rule mean_score, the magnitudes.")
    ] = "mask",
    scope: Scope = "global",
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Train a copy for C steps under its own protocol and data, and prune it."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    protocol, target = parse(LookAhead, settings, "--settings"), parse_sparsity(sparsity)
    of_round = Copies(
        setup=setup,
        state=state,
        within=within,
        round_index=round_,
        sparsity=sparsity,
        settings=settings,
        contribution=contribution,
        scope=scope,
        threads=threads,
    )
    made_from = inputs(output, setup.told(), state=state, within=within, data=data)
    told: dict[str, Any] = {"settings": settings, "sparsity": sparsity, "round": round_, "member": member}
    told |= {"contribution": contribution, "scope": scope}
    with resumable(output, "weak_mask", VERSION, setup, made_from, threads, instruction_set, [copies], **told) as work:
        start, about = artifacts.load_state(state)
        mask = artifacts.load_mask(within)[0] if within else artifacts.load_state_mask(state)
        trainer = setup.trainer(start, about, work.progress, work.checkpoint)
        (contributed,), cost = denoised.look_ahead(
            protocol, trainer, start, mask, round_, member, [target], contribution, scope
        )
        of_round.save(member, output, contributed, cost, work.measured())
