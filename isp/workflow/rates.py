"""Rates: needs of a training step, a scored example and a job, by backbone and task. See `isp.workflow.measuring`."""

from __future__ import annotations

from dataclasses import dataclass

SELECTION = {"cpu": 3.5e-8, "cuda": 5e-10}
"""Time to select a mask, in seconds per prunable weight. On a CPU, measured for selection by scores with a tie key and
a current mask: 3 s for the 85 million weights of BERT-base or ViT-B/32. On a GPU, estimated from the memory traffic:
40 ms for the same number."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Needs of work on a backbone and task.

    Attributes:
        step_flops: Executed FLOPs of a training step, mean over an epoch.
        example_flops: FLOPs of scoring an example.
        step_seconds: Time of a training step.
        example_seconds: Time of scoring an example.
        selection_seconds: Time of selecting a mask.
        job_seconds: Overhead of every job: its start, or the whole overhead if one was given.
        weights: Bytes of all weights at four bytes each.
        prunable: Number of prunable weights.
        activations: Bytes per example that a training step saves for its backward pass, for the longest example.
        example: Maximum bytes of a prepared example.
        build_seconds: Time of building a model.
        read_seconds: Time of reading and verifying one byte of an artifact.
        write_seconds: Time of writing one byte.
        ranking_seconds: Time of ranking the prunable weights once, on a CPU.
        compress_seconds: Time of one value that a mask covers, kept or not, when it is written, besides that of bytes.
        expand_seconds: Time of one such value when it is read.
        known_lengths: False if the lengths of texts are not known yet; all texts then count as the longest.
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
    compress_seconds: float = 0.0
    expand_seconds: float = 0.0
    known_lengths: bool = True


def selection_seconds(device: str, num_weights: int) -> float:
    """Return the estimated time of selecting a mask on a device, in seconds."""
    return SELECTION[device.partition(":")[0]] * num_weights
