"""Random pruning: a uniformly random mask of the exact sparsity, then fine-tuning for T steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isp.lazy import torch
from isp.methods import Family, Probe, Scored
from isp.seeds import seed as named_seed

if TYPE_CHECKING:
    from torch import Tensor

FAMILY: Family = "one_shot"
VERSION = 1


class Settings(Scored):
    """The scope alone."""


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Independent uniform scores; a tensor's scores depend on its name and the seed only, not on the other tensors."""
    drawn = {}
    for name, weight in probe.weights.items():
        generator = torch.Generator().manual_seed(named_seed("random mask", seed=seed, parameter=name))
        drawn[name] = torch.rand(weight.shape, generator=generator).to(weight.device)
    return drawn
