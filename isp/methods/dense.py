"""Dense model: plain fine-tuning for T steps without pruning."""

from __future__ import annotations

from isp import settings
from isp.methods import Family

FAMILY: Family = "dense"
VERSION = 1


class Settings(settings.Settings):
    """Settings of the dense model: none."""
