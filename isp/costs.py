"""What training costs: steps, samples, FLOPs as executed and FLOPs that a sparse execution would need.

Masked weights are multiplied like any others, so the executed FLOPs never fall with sparsity; the theoretical ones say
what hardware that skips zeros could save. They are two numbers, never one. Seconds and memory depend on the machine
and are measured apart (`Stopwatch`). `isp/counting.py` counts.
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
    """What a piece of work cost; the same on every machine.

    Attributes:
        steps: optimizer updates.
        samples: examples that went through the model.
        flops: floating-point operations executed (2 for a multiply-add), masked weights included.
        sparse_flops: the same without the multiplications by masked weights.
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
    """What was measured while work was done by jobs; differs from run to run.

    Attributes:
        seconds: of work, start-up and imports left out.
        startup_seconds: from the call of a job to the beginning of its work.
        jobs: how many.
        peak_memory_mb: the largest of them.
        device: of the last of them.
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

    They are polynomials in the length of the batch (tokens of its longest text): constant for pictures, of degree two
    for transformers on texts. Coefficients begin with the constant one and are whole numbers.

    Attributes:
        total: all of them, the optimizer's own (a few per weight) left out.
        by_weight: for each prunable parameter, those of its matrix products: forward, gradient of the input, gradient
            of the weight.
    """

    total: tuple[int, ...]
    by_weight: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def steps(self, lengths: Mapping[int, int], mask: Mask | None = None) -> tuple[int, int]:
        """FLOPs of steps: as executed, and if masked weights were skipped in the forward pass and in both gradients.

        Args:
            lengths: how many of the steps have a batch of each length; {0: number} for pictures.
            mask: under which they were made.
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
    """The polynomials through the FLOPs of steps at three lengths that follow one another."""
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
    """Refuse a device that is not there.

    Raises:
        ConfigError: says what there is.
    """
    if device == "cpu":
        return
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r}: allowed are cpu, cuda and cuda:N") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here")


class Stopwatch:
    """Measured on this machine: wall seconds, and the peak memory of the process or device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since creation or the last lap, work queued on the device included."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        begun, self.start = self.start, time.perf_counter()
        return self.start - begun

    def elapsed(self) -> float:
        """Seconds since creation or the last lap, work queued on the device left out; begins no lap."""
        return time.perf_counter() - self.start

    def peak_memory_mb(self) -> float:
        """Peak megabytes: of the device's allocator since creation, or resident in the process since it began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
