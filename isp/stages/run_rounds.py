"""Run rounds of Instant Soup Pruning in one process: all that lead to the next round at which a ticket leaves."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated, Any

import typer

from isp import artifacts, checkpoints, copies
from isp.copies import LookAhead
from isp.costs import Cost, Measured
from isp.errors import IspError
from isp.families import denoised
from isp.families.denoised import Progress
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.stages._options import (
    Backbone,
    Data,
    Denoisers,
    Device,
    InstructionSet,
    Limits,
    LookAheadSettings,
    Output,
    RoundStart,
    Scope,
    Seed,
    SuperpositionRule,
    Task,
    Threads,
    Training,
    Until,
    Within,
)
from isp.stages._work import Setup, facts_of, inputs, read_spending, resumable, spending
from isp.superposition import Superposition

VERSION = 1


def run_rounds(
    start: RoundStart,
    first: Annotated[int, typer.Option(min=0, help="Number of the first round, from 0.")],
    rounds: Annotated[
        str,
        typer.Option(metavar="JSON", help="Step and sparsity of each round that prunes, as [[40, 0.2], [120, 0.36]]."),
    ],
    until: Until,
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
    within: Within = None,
    scope: Scope = "global",
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Train and prune for several rounds, then train to step UNTIL. Look-ahead copies run one after another.

    The state is that of `train_segment` and `prune_denoised` for each round in turn, bit by bit, and contains the mask
    of the last round that pruned.
    """
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    protocol, events = parse(LookAhead, settings, "--settings"), _parse(rounds, until)
    made_from = inputs(output, setup.told(), start=start, within=within, data=data)
    told: dict[str, Any] = {"settings": settings, "first": first, "rounds": rounds, "denoisers": denoisers}
    told |= {"rule": rule, "scope": scope}
    with resumable(
        output,
        "run_rounds",
        VERSION,
        setup,
        made_from,
        threads,
        instruction_set,
        [copies],
        grouped=True,
        until=until,
        **told,
    ) as work:
        state, about = artifacts.load_state(start)
        mask, before = artifacts.load_mask(within) if within else (None, None)
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        spent, took = read_spending(before) if before else (Cost(), Measured())
        records = before["rounds"] if before else []
        at = trainer.resumed(Progress(round=first, mask=mask, spent=spent, records=records))
        del mask  # a later round has another one
        for step, target in events[at.round - first :]:
            if at.state is None:
                at.state, cost = trainer.run(state, step, at.mask)
                at.spent += cost
                at.superposed = Superposition(rule=rule, sparsity=target, within=at.mask, scope=scope)
            state = at.state
            assert at.superposed is not None
            denoised.add_copies(protocol, trainer, state, at.round, at.superposed, denoisers, at)
            about_event = {"round": at.round, "step": step}
            event = denoised.aggregate(at.superposed, trainer.prunable_weights(state), about_event)
            at.records = [*at.records, event.record]
            at.round, at.mask, at.state, at.superposed = at.round + 1, event.mask, None, None
        done, cost = trainer.run(state, until, at.mask)
        header = {"stage": "run_rounds", "version": VERSION, **setup.described(), **told, **made_from}
        header |= {"rounds": at.records, **facts_of(about), **spending(at.spent + cost, took + work.measured())}
        artifacts.save_state(output, done, header, at.mask)
    checkpoints.forget(start, within)


def _parse(rounds: str, until: int) -> list[tuple[int, Decimal]]:
    """Parse the steps and sparsities of rounds, both of which must rise.

    Raises:
        IspError: The text is something else; the message shows it.
    """
    try:
        events = [(int(step), parse_sparsity(str(sparsity))) for step, sparsity in json.loads(rounds)]
    except (TypeError, ValueError):
        events = []
    steps, sparsities = [step for step, _ in events], [sparsity for _, sparsity in events]
    rising = steps == sorted({*steps}) and sparsities == sorted({*sparsities})
    if not (events and rising and steps[-1] < until and sparsities[0] > 0):
        raise IspError(
            f"--rounds {rounds!r}: must be a list such as [[40, 0.2], [120, 0.36]], with rising steps before --until "
            f"{until} and rising sparsities in (0, 1)"
        )
    return events
