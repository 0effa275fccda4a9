"""Train one weak subnetwork of Instant Model Soup: prune the initial weights and train them for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts, copies
from isp.families import instant
from isp.methods import instant_model_soup
from isp.settings import parse
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    MethodSettings,
    Output,
    Seed,
    Task,
    Threads,
    Training,
)
from isp.stages._work import Setup, inputs, resumable, spending

VERSION = 1


def train_subnetwork(
    initial: Annotated[Path, typer.Option(help="The state to prune and train, from `isp initialise`.")],
    member: Annotated[int, typer.Option(min=0, help="Number of the subnetwork, from 0.")],
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
    """Prune the initial weights by magnitude, train them under their own protocol and data, and write them.

    SETTINGS contains the settings of instant_model_soup except `subnetworks` and `coefficients`.
    """
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    chosen = parse(instant_model_soup.Settings, settings, "--settings")
    made_from = inputs(output, setup.told(), initial=initial, data=data)
    told: dict[str, Any] = {"settings": settings, "member": member}
    methods = (instant_model_soup, copies)
    with resumable(
        output, "train_subnetwork", VERSION, setup, made_from, threads, instruction_set, methods, **told
    ) as work:
        state, about = artifacts.load_state(initial)
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        subnetwork = instant.train_subnetwork(chosen, trainer, state, member)
        header = {"stage": "train_subnetwork", "version": VERSION, "settings": settings, **setup.described()}
        header |= {"sparsity": str(subnetwork.sparsity), **made_from}
        artifacts.save_weights(output, subnetwork.weights, header | spending(subnetwork.cost, work.measured()))
