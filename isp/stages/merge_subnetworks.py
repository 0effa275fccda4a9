"""Interpolate the initial weights with weak subnetworks, chosen on validation examples, before fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts, lineage, masks
from isp.costs import Measured
from isp.families import instant, make_method
from isp.norms import check_no_statistics
from isp.sparsity import parse_sparsity
from isp.stages._options import (
    Backbone,
    Device,
    InstructionSet,
    Limits,
    MethodName,
    MethodSettings,
    Task,
    Threads,
    ValidationData,
)
from isp.stages._work import facts_of, inputs, make_validation, prunable_of, read_spending, spending, working

VERSION = 1


def merge_subnetworks(
    initial: Annotated[Path, typer.Option(help="The state that the subnetworks were pruned from.")],
    method: MethodName,
    settings: MethodSettings,
    backbone: Backbone,
    task: Task,
    limits: Limits,
    validation: ValidationData,
    state: Annotated[Path, typer.Option(help="The state to write.")],
    output: Annotated[Path, typer.Option(help="The mask to write, which keeps all weights, for `isp retrain`.")],
    subnetwork: Annotated[
        list[Path] | None, typer.Option(help="Subnetwork from `isp train_subnetwork`; repeat for each, in their order.")
    ] = None,
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Write the merged state and the mask for its fine-tuning. The cost of finding the state is that of the mask."""
    chosen = instant.settings_of(make_method(method, settings, "--settings"))
    with working(output, state, threads=threads, device=device, instruction_set=instruction_set) as work:
        told = {"backbone": backbone, "task": task, "settings": chosen.of_subnetwork()}
        made_from = inputs(output, told, initial=initial, subnetworks=subnetwork, validation=validation)
        start, about = artifacts.load_state(initial)
        check_no_statistics(start.weights)
        weak, took = [], Measured()
        for path in subnetwork or []:
            weights, header = artifacts.load_weights(path)
            cost, measured = read_spending(header)
            took += measured
            weak.append(instant.Subnetwork(sparsity=parse_sparsity(header["sparsity"]), weights=weights, cost=cost))
        chooses = make_validation(start.weights, about["architecture"], backbone, task, limits, validation, device)
        merged, cost, records = instant.merge(chosen, start, weak, chooses)
        header = {"stage": "merge_subnetworks", "version": VERSION, "settings": settings, **made_from}
        header_of_state = header | lineage.at(state) | facts_of(about)
        artifacts.save_state(state, merged, header_of_state)
        mask = masks.ones({name: merged.weights[name] for name in prunable_of(about)})
        artifacts.save_mask(output, mask, header | {"rounds": records, **spending(cost, took + work.measured())})
