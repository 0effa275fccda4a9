"""Train under a mask for the remaining steps of the budget, which gives the ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts, checkpoints, masks
from isp.artifacts import save_ticket
from isp.errors import ArtifactError
from isp.sparsity import num_pruned, parse_sparsity
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    MethodName,
    Output,
    Seed,
    Sparsity,
    Task,
    Threads,
    Training,
)
from isp.stages._work import Setup, inputs, measurements, read_spending, resumable
from isp.tickets import Ticket, check_ticket

VERSION = 1


def retrain(
    start: Annotated[Path, typer.Option(help="The state to train from: the initial one, or that of ISP's last round.")],
    mask: Annotated[Path, typer.Option(help="The mask to train under.")],
    method: MethodName,
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
    """Train from a state to step T under a mask, and write the ticket: weights, mask, costs, record of the rounds."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    made_from = inputs(output, setup.told(), start=start, mask=mask, data=data)
    with resumable(
        output,
        "retrain",
        VERSION,
        setup,
        made_from,
        threads,
        instruction_set,
        grouped=True,
        method=method,
        sparsity=sparsity,
    ) as work:
        state, about = artifacts.load_state(start)
        kept, header = artifacts.load_mask(mask)
        target = parse_sparsity(sparsity)
        if masks.num_kept(kept) != (total := masks.num_weights(kept)) - num_pruned(target, total):
            raise ArtifactError(f"{mask}: must be a mask of sparsity {target}, got {masks.sparsity(kept):.4f}")
        trainer = setup.trainer(state, about, work.progress, work.checkpoint)
        final, cost = trainer.run(state, trainer.training.steps, kept)
        finding, took = read_spending(header)
        ticket = Ticket(
            method=method,
            sparsity=target,
            mask=kept,
            weights={name: tensor.cpu() for name, tensor in final.weights.items()},
            finding=finding,
            retraining=cost,
            rounds=header["rounds"],
            origin={
                "stage": "retrain",
                "version": VERSION,
                "architecture": about["architecture"],
                **setup.described(),
                **made_from,
                **measurements(took, work.measured()),
            },
        )
        check_ticket(ticket)
        save_ticket(output, ticket)
    checkpoints.forget(start, mask)
