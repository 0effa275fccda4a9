"""Dense fine-tuning for T steps without a mask: gives the dense ticket and round 0 of iterative methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts
from isp.artifacts import save_ticket
from isp.costs import Measured
from isp.families import dense
from isp.stages._options import Backbone, Data, Device, InstructionSet, Limits, Output, Seed, Task, Threads, Training
from isp.stages._work import Setup, inputs, measurements, resumable

VERSION = 1


def finetune_dense(
    initial: Annotated[Path, typer.Option(help="The state to start from, from `isp initialise`.")],
    backbone: Backbone,
    task: Task,
    seed: Seed,
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Fine-tune for T steps and write the ticket of sparsity 0."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    made_from = inputs(output, setup.told(), initial=initial, data=data)
    with resumable(output, "finetune_dense", VERSION, setup, made_from, threads, instruction_set) as work:
        state, about = artifacts.load_state(initial)
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        ticket = dense.ticket(trainer, state)
        origin = {
            "stage": "finetune_dense",
            "version": VERSION,
            "architecture": about["architecture"],
            **setup.described(),
            **made_from,
        }
        save_ticket(output, replace(ticket, origin=origin | measurements(Measured(), work.measured())))
