"""Find the mask of a round of Instant Soup Pruning by superposing the weak masks of look-ahead copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from isp import artifacts, checkpoints, copies
from isp.copies import LookAhead
from isp.costs import Cost, Measured
from isp.families import denoised
from isp.families.denoised import LookedAhead
from isp.masks import Weights
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.stages._copies import Copies
from isp.stages._options import (
    Backbone,
    Data,
    Denoisers,
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
    SuperpositionRule,
    Task,
    Threads,
    Training,
    WithinRound,
)
from isp.stages._work import Setup, inputs, prunable_of, read_spending, resumable, spending
from isp.superposition import Superposition, contribution_to

VERSION = 1


def prune_denoised(
    state: RoundState,
    round_: Round,
    sparsity: Sparsity,
    denoisers: Denoisers,
    rule: SuperpositionRule,
    settings: LookAheadSettings,
    backbone: Backbone,
    task: Task,
    seed: Seed,
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    within: WithinRound = None,
    scope: Scope = "global",
    threads: Threads = 1,
    cores: Annotated[
        int, typer.Option(min=1, help="CPU cores. Copies run in parallel if there are enough for THREADS per copy.")
    ] = 1,
    keep_weak: Annotated[
        bool, typer.Option(help="Keep the contribution of each copy as weak<number> beside the mask.")
    ] = False,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Train copies for C steps each, superpose their weak masks to a mask of exactly SPARSITY, and record the round.

    The copies run one after another in this process or in parallel child processes, with bit-identical results.
    """
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    protocol, target = parse(LookAhead, settings, "--settings"), parse_sparsity(sparsity)
    of_round = Copies(
        setup=setup,
        state=state,
        within=within,
        round_index=round_,
        sparsity=sparsity,
        settings=settings,
        contribution=contribution_to(rule),
        scope=scope,
        threads=threads,
    )
    weak = [output.with_name(f"weak{member}.safetensors") for member in range(denoisers)]
    made_from = inputs(output, setup.told(), state=state, within=within, data=data)
    told: dict[str, Any] = {"settings": settings, "sparsity": sparsity, "round": round_, "denoisers": denoisers}
    told |= {"rule": rule, "scope": scope}
    with resumable(
        output, "prune_denoised", VERSION, setup, made_from, threads, instruction_set, [copies], grouped=True, **told
    ) as work:
        start, about = artifacts.load_state(state)
        mask = artifacts.load_mask(within)[0] if within else artifacts.load_state_mask(state)
        superposed = Superposition(rule=rule, sparsity=target, within=mask, scope=scope)
        (cost, took), waited = read_spending(about), 0.0
        if (at_once := min(cores // threads, denoisers)) > 1:
            waited = of_round.run(weak, at_once, work.progress)
            for path in weak:
                own_cost, own_took = of_round.add(superposed, path)
                cost, took = cost + own_cost, took + own_took
        else:
            trainer = setup.trainer(start, about, work.progress, work.checkpoint)
            at = trainer.resumed(LookedAhead(superposed=superposed))
            superposed = at.superposed

            def keep(member: int, contributed: Weights, own_cost: Cost) -> None:
                if keep_weak:
                    of_round.save(member, weak[member], contributed, own_cost, Measured())

            denoised.add_copies(protocol, trainer, start, round_, superposed, denoisers, at, keep)
            cost += at.spent
        weights = {name: start.weights[name] for name in prunable_of(about)}
        event = denoised.aggregate(superposed, weights, {"round": round_, "step": start.step})
        header = {"stage": "prune_denoised", "version": VERSION, **setup.described(), **told, **made_from}
        header |= {"rounds": [*about["rounds"], event.record]}
        here = work.measured()
        took += replace(here, seconds=round(here.seconds - waited, 3))
        artifacts.save_mask(output, event.mask, header | spending(cost, took))
    checkpoints.forget(*weak)
    if not keep_weak:
        for path in weak:
            path.unlink(missing_ok=True)
