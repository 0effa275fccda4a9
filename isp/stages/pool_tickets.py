"""Interpolate the tickets of iterative magnitude pruning, chosen on validation examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import checkpoints
from isp.artifacts import load_ticket, save_ticket
from isp.costs import Measured
from isp.families import make_method, pooled
from isp.norms import check_no_statistics
from isp.stages._options import (
    Backbone,
    Device,
    InstructionSet,
    Limits,
    MethodName,
    MethodSettings,
    Output,
    Task,
    Threads,
    ValidationData,
)
from isp.stages._work import inputs, make_validation, measurements, total_measured, working
from isp.tickets import check_ticket

VERSION = 1


def pool_tickets(
    ticket: Annotated[Path, typer.Option(help="The ticket of the target sparsity.")],
    candidate: Annotated[list[Path], typer.Option(help="The dense ticket, then those of the rounds; repeat for each.")],
    method: MethodName,
    settings: MethodSettings,
    backbone: Backbone,
    task: Task,
    limits: Limits,
    validation: ValidationData,
    output: Output,
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Write the pooled ticket. Its cost includes all tickets and every evaluation."""
    chosen = make_method(method, settings, "--settings")
    with working(output, threads=threads, device=device, instruction_set=instruction_set) as work:
        told = {"backbone": backbone, "task": task}
        made_from = inputs(output, told, ticket=ticket, candidates=candidate, validation=validation)
        latest = load_ticket(ticket)
        check_no_statistics(latest.weights)
        architecture = latest.origin["architecture"]
        chooses = make_validation(latest.weights, architecture, backbone, task, limits, validation, device)
        rounds = [load_ticket(path).weights for path in candidate]
        best = pooled.pool(chosen, latest, rounds, chooses)
        took = total_measured(latest.origin) + work.measured()
        kept: dict[str, Any] = {key: latest.origin[key] for key in ("architecture", "training", "seed", "limits")}
        origin: dict[str, Any] = {
            "stage": "pool_tickets",
            "version": VERSION,
            **kept,
            "settings": settings,
            "backbone": backbone,
            "task": task,
            "device": device,
            **made_from,
            **measurements(took, Measured()),
        }
        best = replace(best, origin=origin)
        check_ticket(best)
        save_ticket(output, best)
    checkpoints.forget(ticket, *candidate)
