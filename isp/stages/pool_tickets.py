"""Interpolate the tickets of iterative magnitude pruning, chosen on validation examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts
from isp.api import load_ticket, save_ticket
from isp.costs import Measured
from isp.data.preparation import limited
from isp.definitions import backbone_of, task_of
from isp.evaluation import validation_by
from isp.families import check_ticket, make_method, pooled
from isp.settings import parse
from isp.stages._options import Backbone, Device, Limits, MethodName, MethodSettings, Output, Task, Threads
from isp.stages._work import inputs, taken, working
from isp.tasks import TaskLimits

VERSION = 1


def pool_tickets(
    ticket: Annotated[Path, typer.Option(help="The ticket of the target sparsity.")],
    candidate: Annotated[list[Path], typer.Option(help="The dense ticket, then those of the rounds; once for each.")],
    method: MethodName,
    settings: MethodSettings,
    backbone: Backbone,
    task: Task,
    limits: Limits,
    validation: Annotated[Path, typer.Option(help="Prepared validation examples, from `isp prepare`.")],
    output: Output,
    threads: Threads = 1,
    device: Device = "cpu",
) -> None:
    """Write the pooled ticket; its cost is that of all tickets and of every evaluation."""
    chosen, allowed = make_method(method, settings, "--settings"), parse(TaskLimits, limits, "--limits")
    with working(output, threads=threads, device=device) as work:
        found = load_ticket(ticket)
        made, definition = backbone_of(backbone), task_of(task)
        architecture = found.origin["architecture"]
        model = made.restore(found.weights, architecture).to(device)
        tensors = limited(artifacts.load_examples(validation, "validation")[0], allowed.num_validation)
        examples = made.examples({name: each.to(device) for name, each in tensors.items()}, architecture, "none")
        chooses = validation_by(model, examples, definition.metrics[0])
        rounds = [load_ticket(path).weights for path in candidate]
        best = pooled.pool(chosen, found, rounds, chooses)
        before = found.origin["measured"]
        took = Measured(**before["finding"]) + Measured(**before["retraining"]) + work.measured()
        kept: dict[str, Any] = {key: found.origin[key] for key in ("architecture", "training", "seed", "limits")}
        origin: dict[str, Any] = {
            "stage": "pool_tickets",
            "version": VERSION,
            **kept,
            "settings": settings,
            "backbone": backbone,
            "task": task,
            "device": device,
            **inputs(ticket=ticket, candidates=candidate, validation=validation),
            **taken(took, Measured()),
        }
        best = replace(best, origin=origin)
        check_ticket(best)
        save_ticket(output, best)
