"""One-shot magnitude pruning: keep the largest pre-trained weights, then fine-tune for T steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isp.masks import magnitudes
from isp.methods import Family, Probe, Scored

if TYPE_CHECKING:
    from torch import Tensor

FAMILY: Family = "one_shot"
VERSION = 1


class Settings(Scored):
    """Settings of one-shot magnitude pruning: only the scope."""


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Return |w| of the initial weights."""
    return magnitudes(probe.weights)
