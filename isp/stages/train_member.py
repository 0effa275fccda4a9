"""Train one member of a soup to the end, under its own protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts, copies
from isp.artifacts import save_ticket
from isp.costs import Measured
from isp.families import souped
from isp.methods import uniform_soup
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    MethodSettings,
    Output,
    Seed,
    Sparsity,
    Task,
    Threads,
    Training,
)
from isp.stages._work import Setup, inputs, measurements, resumable
from isp.tickets import check_ticket

VERSION = 1


def train_member(
    initial: Annotated[Path, typer.Option(help="The state to start from, from `isp initialise`.")],
    member: Annotated[int, typer.Option(min=0, help="Number of the member, from 0.")],
    sparsity: Sparsity,
    settings: MethodSettings,
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
    """Fine-tune a member of a soup for T steps, and write it as a ticket.

    SETTINGS contains the settings of members only: learning_rate_factors, weight_decays, data_fraction and, above
    sparsity 0, masks, prune_at, scope.
    """
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    chosen, target = parse(uniform_soup.Settings, settings, "--settings"), parse_sparsity(sparsity)
    made_from = inputs(output, setup.told(), initial=initial, data=data)
    told: dict[str, Any] = {"settings": settings, "sparsity": sparsity, "member": member}
    with resumable(
        output, "train_member", VERSION, setup, made_from, threads, instruction_set, [uniform_soup, copies], **told
    ) as work:
        state, about = artifacts.load_state(initial)
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        ticket = souped.train_member(chosen, trainer, state, target, member)
        origin = {
            "stage": "train_member",
            "version": VERSION,
            "architecture": about["architecture"],
            "settings": settings,
            **setup.described(),
            **made_from,
            **measurements(Measured(), work.measured()),
        }
        ticket = replace(ticket, mask={name: kept.cpu() for name, kept in ticket.mask.items()}, origin=origin)
        ticket = replace(ticket, weights={name: tensor.cpu() for name, tensor in ticket.weights.items()})
        check_ticket(ticket)
        save_ticket(output, ticket)
