"""Train a segment of Instant Soup Pruning: from one prune event to the next."""

from __future__ import annotations

from isp import artifacts, checkpoints
from isp.costs import Cost, Measured
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    Output,
    RoundStart,
    Seed,
    Task,
    Threads,
    Training,
    Until,
    Within,
)
from isp.stages._work import Setup, facts_of, inputs, read_spending, resumable, spending

VERSION = 1


def train_segment(
    start: RoundStart,
    until: Until,
    backbone: Backbone,
    task: Task,
    seed: Seed,
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    within: Within = None,
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Train from a state to step UNTIL of the run's single schedule, under the current mask."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    made_from = inputs(output, setup.told(), start=start, within=within, data=data)
    with resumable(
        output, "train_segment", VERSION, setup, made_from, threads, instruction_set, grouped=True, until=until
    ) as work:
        state, about = artifacts.load_state(start)
        mask, before = artifacts.load_mask(within) if within else (None, None)
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        done, cost = trainer.run(state, until, mask)
        cost_before, took_before = read_spending(before) if before else (Cost(), Measured())
        header = {"stage": "train_segment", "version": VERSION, **setup.described()}
        header |= made_from
        header |= {"rounds": before["rounds"] if before else []}
        header |= facts_of(about)
        header |= spending(cost_before + cost, took_before + work.measured())
        artifacts.save_state(output, done, header, mask)
    checkpoints.forget(start, within)
