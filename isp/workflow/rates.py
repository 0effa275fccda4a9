"""What a training step, a scored example and a job take on a backbone and task; `isp.workflow.measuring` counts it."""

from __future__ import annotations

from dataclasses import dataclass

SELECTION = {"cpu": 3.5e-8, "cuda": 5e-10}
"""Seconds that the selection of a mask takes per prunable weight. On a CPU as measured by scores, with ties, within a
mask: 3 s for the 85 million of BERT-base or ViT-B/32. On a GPU estimated from the memory traffic: 40 ms for as many."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What work on a backbone and task takes.

    Attributes:
        step_flops: of a training step, executed, mean over an epoch.
        example_flops: of scoring an example.
        step_seconds: of a training step.
        example_seconds: of scoring an example.
        selection_seconds: of selecting a mask.
        job_seconds: of every job beside its work: its start, or all of it where an overhead is stated.
        weights: bytes of all weights at four bytes each.
        prunable: how many weights are prunable.
        activations: bytes that a training step keeps of an example until its backward pass, for the longest example.
        example: bytes of a prepared example, at most.
        build_seconds: of building a model.
        read_seconds: of reading a byte of an artifact and checking it.
        write_seconds: of writing a byte.
        ranking_seconds: of ranking the prunable weights once, on a CPU.
        known_lengths: False where the lengths of texts are not known yet, so that all are taken for the longest.
    """

    step_flops: int
    example_flops: int
    step_seconds: float
    example_seconds: float
    selection_seconds: float
    job_seconds: float
    weights: int
    prunable: int
    activations: int
    example: int
    build_seconds: float = 0.0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    ranking_seconds: float = 0.0
    known_lengths: bool = True


def selection_seconds(device: str, num_weights: int) -> float:
    """What selecting a mask takes on a device, where it is not measured."""
    return SELECTION[device.partition(":")[0]] * num_weights
