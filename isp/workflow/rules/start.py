"""Rules for the common start of all runs of a seed: the initial state and the dense run."""

from __future__ import annotations

from isp.workflow import paths
from isp.workflow.rule import Rule, Work, training_memory

INITIALISE = Rule(
    name="initialise",
    output=paths.INITIAL,
    makes="state",
    reads=("train",),
    work=lambda dag, w, _: Work(weights=int(w.initial == "random"), borrowed=int(w.initial != "random")),
    versions=("training", "backbone", "task"),
    memory=lambda sizes: 6 * sizes.weights + sizes.examples + sizes.batch,  # the FLOPs of a step are counted
)
FINETUNE_DENSE = Rule(
    name="finetune_dense",
    output=paths.DENSE,
    makes="ticket",
    routes=("dense",),
    inputs=lambda dag, w: {"initial": paths.fill(paths.INITIAL, w)},
    reads=("train",),
    work=lambda dag, w, _: Work(steps=dag.training(w).steps, weights=1, bits=1),
    versions=("training", "dense"),
    memory=training_memory,
    is_ticket=True,
)
