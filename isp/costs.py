"""Costs of training: steps, samples, FLOPs as executed, and FLOPs that a sparse execution would need.

Masked weights are multiplied like all others, so the executed FLOPs do not fall with sparsity; the theoretical ones
show the possible savings of hardware that skips zeros. They are always reported as two numbers. Seconds and memory
depend on the machine and are measured separately (`Stopwatch`). `isp/counting.py` counts.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from isp import masks
from isp.errors import ConfigError
from isp.lazy import torch
from isp.masks import Mask


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a piece of work; the same on every machine.

    Attributes:
        steps: Number of optimizer updates.
        samples: Number of examples that went through the model.
        flops: Floating-point operations executed (2 per multiply-add), including those of masked weights.
        sparse_flops: Floating-point operations without the multiplications by masked weights.
    """

    steps: int = 0
    samples: int = 0
    flops: int = 0
    sparse_flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(Cost)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{part.name: getattr(self, part.name) - getattr(other, part.name) for part in fields(Cost)})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of work done by jobs; they differ from run to run.

    Attributes:
        seconds: Seconds of work, without start-up and imports.
        startup_seconds: Seconds from the call of a job to the beginning of its work.
        jobs: Number of jobs.
        peak_memory_mb: Largest peak memory of the jobs.
        device: Device of the last job.
    """

    seconds: float = 0.0
    startup_seconds: float = 0.0
    jobs: int = 0
    peak_memory_mb: int = 0
    device: str = ""

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            seconds=round(self.seconds + other.seconds, 3),
            startup_seconds=round(self.startup_seconds + other.startup_seconds, 3),
            jobs=self.jobs + other.jobs,
            peak_memory_mb=max(self.peak_memory_mb, other.peak_memory_mb),
            device=other.device or self.device,
        )


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one training step (forward and backward) on one batch.

    They are polynomials in the length of the batch (tokens of its longest text): constant for images, of degree two for
    transformers on texts. Coefficients are integers in ascending order of powers.

    Attributes:
        total: All FLOPs except those of the optimizer (a few per weight).
        by_weight: FLOPs of each prunable parameter's matrix products: forward, gradient of the input, gradient of the
            weight.
    """

    total: tuple[int, ...]
    by_weight: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def steps(self, lengths: Mapping[int, int], mask: Mask | None = None) -> tuple[int, int]:
        """Return the FLOPs of steps: executed, and if the forward pass and both gradients skipped masked weights.

        Args:
            lengths: Number of steps for each batch length; {0: number} for images.
            mask: Mask under which the steps are made.
        """
        mask = mask if mask and self.by_weight else {}
        masked = {
            name: (mask[name].numel() - kept) / max(1, mask[name].numel())
            for name, kept in masks.num_kept_each(mask).items()
        }
        executed = sparse = 0
        for length, count in lengths.items():
            total = _at(self.total, length)
            saved = sum(share * _at(self.by_weight.get(name, (0,)), length) for name, share in masked.items())
            executed += count * total
            sparse += count * round(total - saved)
        return executed, sparse


def _at(coefficients: tuple[int, ...], length: int) -> int:
    return sum(coefficient * length**power for power, coefficient in enumerate(coefficients))


def interpolate_flops(counts: Mapping[int, StepFlops]) -> StepFlops:
    """Return the polynomials through the FLOPs of steps at three consecutive lengths."""
    (first, a), (_, b), (_, c) = sorted(counts.items())

    def through(x: int, y: int, z: int) -> tuple[int, int, int]:
        square = (z - 2 * y + x) // 2
        linear = y - x - square * (2 * first + 1)
        return x - linear * first - square * first**2, linear, square

    return StepFlops(
        total=through(a.total[0], b.total[0], c.total[0]),
        by_weight={
            name: through(a.by_weight[name][0], b.by_weight[name][0], c.by_weight[name][0]) for name in a.by_weight
        },
    )


def check_device(device: str) -> None:
    """Refuse a device that does not exist.

    Raises:
        ConfigError: If the device does not exist; the message describes the available ones.
    """
    if device == "cpu":
        return
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r}: must be cpu, cuda or cuda:N") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: torch finds {torch.cuda.device_count()} CUDA devices on this machine")


class Stopwatch:
    """Measurement of wall seconds, and of the peak memory of the process or device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since creation or the last lap, including work queued on the device, and start a lap."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        begun, self.start = self.start, time.perf_counter()
        return self.start - begun

    def elapsed(self) -> float:
        """Return the seconds since creation or the last lap, without work queued on the device; start no lap."""
        return time.perf_counter() - self.start

    def peak_memory_mb(self) -> float:
        """Return peak megabytes of the device's allocator since creation, or of the process since it started."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
