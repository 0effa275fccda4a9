"""torch's random generators, borrowed and given back."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def forked_rng(device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """A context after which the generators of the CPU and of `device` are as they were before.

    Other devices are left alone, so that CPU work never starts CUDA.
    """
    device = torch.device(device)
    devices = [device.index or 0] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
