"""Find a ticket in one job, for methods that prune within one run or whose rounds are not known in advance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts, copies
from isp.artifacts import save_ticket
from isp.costs import Measured
from isp.families import find_tickets, make_method
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
from isp.stages._work import Setup, inputs, measurements, resumable

VERSION = 2


def find_ticket(
    initial: Annotated[Path, typer.Option(help="The state to start from, from `isp initialise`.")],
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
    """Run a method from the initial state to step T, and write the ticket. All of its time counts as finding."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    chosen, target = make_method(method, settings, "--settings"), parse_sparsity(sparsity)
    made_from = inputs(output, setup.told(), initial=initial, data=data)
    told = {"method": method, "settings": settings, "sparsity": sparsity}
    methods = (chosen.module, copies)  # the version of `copies` covers the mathematics of a whole family
    with resumable(
        output, "find_ticket", VERSION, setup, made_from, threads, instruction_set, methods, grouped=True, **told
    ) as work:
        state, about = artifacts.load_state(initial)
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        (ticket,) = find_tickets(chosen, trainer, state, [target])
        origin = {
            **ticket.origin,
            "stage": "find_ticket",
            "version": VERSION,
            "architecture": about["architecture"],
            **setup.described(),
            **made_from,
            **measurements(work.measured(), Measured()),
        }
        weights = {name: tensor.cpu() for name, tensor in ticket.weights.items()}
        mask = {name: kept.cpu() for name, kept in ticket.mask.items()}
        save_ticket(output, replace(ticket, weights=weights, mask=mask, origin=origin))
