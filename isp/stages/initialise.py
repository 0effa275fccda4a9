"""The state that a run begins from: pre-trained (or random) weights under the task's head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import artifacts
from isp.config import Initial
from isp.stages._options import Backbone, Data, Device, Limits, Output, Seed, Task, Threads, Training
from isp.stages._work import Setup, backbone_of, inputs, step_flops, task_of, working
from isp.training import state_of

VERSION = 1


def initialise(
    backbone: Backbone,
    task: Task,
    seed: Seed,
    weights: Annotated[Path, typer.Option(help="Pre-trained weights, from `isp pretrain`.")],
    data: Data,
    training: Training,
    limits: Limits,
    output: Output,
    initial: Annotated[Initial, typer.Option(help="Weights to begin from; the head is the pre-trained one's.")],
    threads: Threads = 1,
    device: Device = "cpu",
) -> None:
    """Write the state of step 0, and count the FLOPs of a training step for the stages after it."""
    setup = Setup(backbone=backbone, task=task, seed=seed, data=data, training=training, limits=limits, device=device)
    with working(output, threads=threads, device=device):
        pretrained, _ = artifacts.load_weights(weights)
        model = backbone_of(backbone).initial(pretrained, task_of(task), seed if initial == "random" else None)
        state = state_of(model)
        about = {"stage": "initialise", "version": VERSION, "initial": initial, **setup.described()}
        about |= inputs(weights=weights, data=data)
        artifacts.save_state(output, state, about | step_flops(setup.trainer(state, {})))
