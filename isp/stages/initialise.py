"""Create the initial state of a run: pre-trained (or random) weights with the task's head."""

from __future__ import annotations

from typing import Annotated

import typer

from isp import artifacts
from isp.config import Initial
from isp.definitions import backbone_of, task_of
from isp.stages._options import (
    Backbone,
    Data,
    Device,
    InstructionSet,
    Limits,
    Output,
    Seed,
    Task,
    Threads,
    Training,
    Weights,
)
from isp.stages._work import Setup, inputs, model_facts, working
from isp.training import state_of

VERSION = 2


def initialise(
    backbone: Backbone,
    task: Task,
    seed: Seed,
    weights: Weights,
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    initial: Annotated[Initial, typer.Option(help="Weights to start from; the head is the same.")],
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Write the state of step 0, and count the FLOPs of a training step for later stages."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    with working(output, threads=threads, device=device, instruction_set=instruction_set):
        made_from = inputs(output, setup.told(), weights=weights, data=data)
        pretrained, _ = artifacts.load_backbone(weights)
        state = state_of(backbone_of(backbone).initial(pretrained, task_of(task), seed, initial == "random"))
        trainer = setup.trainer(state, {"architecture": pretrained.architecture})
        about = {"stage": "initialise", "version": VERSION, "initial": initial, **setup.described()}
        about |= made_from | model_facts(pretrained.architecture, trainer)
        artifacts.save_state(output, state, about, weights_file=artifacts.WeightsFile(weights, pretrained.weights))
