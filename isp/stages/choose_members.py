"""The greedy soup: the average of the members that improve it on validation examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp.families import make_method
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
from isp.stages._soups import load_members, members_of, save_soup
from isp.stages._work import inputs, make_validation, working

VERSION = 1


def choose_members(
    member: Annotated[
        list[Path], typer.Option(help="Member from `isp train_member`; repeat for each, in their order.")
    ],
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
    """Write the average of the chosen members as a ticket. Its cost includes all members and every evaluation."""
    chosen = make_method(method, settings, "--settings")
    with working(output, threads=threads, device=device, instruction_set=instruction_set) as work:
        told = {"backbone": backbone, "task": task, **members_of(chosen, member)}
        made_from = inputs(output, told, members=member, validation=validation)
        members = load_members(member)
        architecture = members[0].origin["architecture"]
        chooses = make_validation(members[0].weights, architecture, backbone, task, limits, validation, device)
        save_soup(output, "choose_members", VERSION, chosen, members, work, made_from, chooses)
