"""Global random generators of torch, NumPy and Python, used temporarily and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from isp.lazy import torch
from isp.seeds import integer
from isp.seeds import seed as named_seed


@contextmanager
def forked_rng(device: torch.device | str = "cpu") -> Iterator[None]:
    """Restore torch's generators of the CPU and of `device`, NumPy's and Python's after this context.

    Other devices are not touched, so that CPU work never starts CUDA.
    """
    device = torch.device(device)
    devices = [device.index or 0] if device.type == "cuda" else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python; call it inside `forked_rng`."""
    in_use = torch.cuda.is_initialized() or torch.xpu.is_initialized()  # type: ignore[no-untyped-call]
    if in_use or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # same effect, but torch.manual_seed would format the stack for every unused accelerator, every time
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed the global generators as `isp.prune` does before it forms the batch of a step.

    Args:
        seed: Seed of the run.
        step: Number of the update, from 0.

    Raises:
        ConfigError: If one of them is not an integer.
    """
    seed_all(named_seed("step", seed=integer("seed", seed), step=integer("step", step)))
