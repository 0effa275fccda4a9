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
    """Settings of random pruning: only the scope."""


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Draw independent uniform scores, which depend only on the tensor's name and the seed, not on other tensors."""
    scores = {}
    for name, weight in probe.weights.items():
        generator = torch.Generator().manual_seed(named_seed("random mask", seed=seed, parameter=name))
        scores[name] = torch.rand(weight.shape, dtype=torch.float32, generator=generator).to(weight.device)
    return scores
