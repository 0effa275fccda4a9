"""One look-ahead copy of a round of Instant Soup Pruning, pruned to a weak mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts, copies
from isp.copies import LookAhead
from isp.families import denoised
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    Limits,
    MethodSettings,
    Output,
    Round,
    Scope,
    Seed,
    Sparsity,
    Task,
    Threads,
    Training,
    Within,
)
from isp.stages._work import Setup, inputs, resumable, spending
from isp.superposition import Contribution

VERSION = 1


def weak_mask(
    state: Annotated[Path, typer.Option(help="The state that the round's segment ended in.")],
    round_: Round,
    member: Annotated[int, typer.Option(min=0, help="Number of the copy, from 0.")],
    sparsity: Sparsity,
    settings: MethodSettings,
    backbone: Backbone,
    task: Task,
    seed: Seed,
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    within: Within = None,
    contribution: Annotated[
        Contribution, typer.Option(help="What to write: the mask, or (for the rule mean_score) the magnitudes.")
    ] = "mask",
    scope: Scope = "global",
    threads: Threads = 1,
    device: Device = "cpu",
) -> None:
    """Train a copy for C steps under a protocol and data of its own, and prune it.

    SETTINGS are those of look-aheads only: look_ahead_steps, learning_rate_factors, weight_decays, optimizer,
    warmup_steps, data_fraction.
    """
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    protocol, target = parse(LookAhead, settings, "--settings"), parse_sparsity(sparsity)
    made_from = inputs(output, setup.told(), state=state, within=within, data=data)
    told = {"settings": settings, "sparsity": sparsity, "round": round_, "member": member}
    told |= {"contribution": contribution, "scope": scope}
    with resumable(output, "weak_mask", VERSION, setup, made_from, threads, [copies], grouped=True, **told) as work:
        start, about = artifacts.load_state(state)
        mask = artifacts.load_mask(within)[0] if within else None
        trainer = setup.trainer(start, about, work.progress, work.checkpoint)
        (contributed,), cost = denoised.look_ahead(
            protocol, trainer, start, mask, round_, member, [target], contribution, scope
        )
        header = {"stage": "weak_mask", "version": VERSION, "settings": settings, **setup.described()}
        header |= made_from
        save: Any = artifacts.save_weights if contribution == "magnitudes" else artifacts.save_mask
        save(output, contributed, header | spending(cost, work.measured()))
