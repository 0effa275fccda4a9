"""Instant Soup Pruning with Algorithm 2 taken literally, which equals ISP without denoisers (see `isp`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family
from isp.methods.isp import Settings as IspSettings

FAMILY: Family = "denoised"
VERSION = 1


class Settings(IspSettings):
    """Settings of `isp` with the rule fixed."""

    rule: Literal["literal"] = Field(default="literal", description="fixed: the text of Algorithm 2")
