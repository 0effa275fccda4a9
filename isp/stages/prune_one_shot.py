"""Find the mask of a one-shot method: score the initial weights and keep the highest scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts
from isp.families import make_method, one_shot
from isp.sparsity import parse_sparsity
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    MethodName,
    MethodSettings,
    Output,
    Seed,
    Sparsity,
    Task,
    Threads,
    Training,
)
from isp.stages._work import Setup, inputs, spending, working

VERSION = 1


def prune_one_shot(
    initial: Annotated[Path, typer.Option(help="The state to score, from `isp initialise`.")],
    method: MethodName,
    settings: MethodSettings,
    sparsity: Sparsity,
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
    """Find the mask of a one-shot method before training, usually by the highest scores, and write it."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    chosen, target = make_method(method, settings, "--settings"), parse_sparsity(sparsity)
    with working(output, threads=threads, device=device, instruction_set=instruction_set) as work:
        made_from = inputs(output, setup.told(), initial=initial, data=data)
        state, about = artifacts.load_state(initial)
        trainer = setup.trainer(state, about)
        ((mask, cost),) = one_shot.find(chosen, trainer, state, [target])
        about = {"stage": "prune_one_shot", "version": VERSION, "method": method, "settings": settings}
        about |= {
            **setup.described(),
            **made_from,
            "rounds": [],
            **spending(cost, work.measured()),
        }
        artifacts.save_mask(output, mask, about)
