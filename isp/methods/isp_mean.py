"""Instant Soup Pruning with averaged magnitudes: the look-ahead copies' |w| are averaged, then cut once.

Ours, from the abstract's "superpose them to average out the noise", with the average taken before the cut instead of
after it. Otherwise as `isp`. Chosen among five rules by validation scores (docs/explanation/superposition.md).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family
from isp.methods.isp import Settings as IspSettings

FAMILY: Family = "denoised"
VERSION = 1


class Settings(IspSettings):
    """As `isp`, with the rule fixed."""

    rule: Literal["mean_score"] = Field(default="mean_score", description="fixed: the mean of the copies' magnitudes")
