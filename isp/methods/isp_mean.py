"""Instant Soup Pruning with averaged magnitudes: |w| is averaged over the look-ahead copies, then pruned once.

Our variant of "superpose them to average out the noise" (abstract): it averages before pruning instead of after it.
Otherwise identical to `isp`. Chosen among five rules by validation scores (docs/explanation/superposition.md).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family
from isp.methods.isp import Settings as IspSettings

FAMILY: Family = "denoised"
VERSION = 1


class Settings(IspSettings):
    """Settings of `isp` with the rule fixed."""

    rule: Literal["mean_score"] = Field(default="mean_score", description="fixed: the mean of the copies' magnitudes")
