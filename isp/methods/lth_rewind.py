"""Lottery tickets with rewinding to an early step of training instead of step 0.

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"; Renda et al. 2020. Identical to `lth`
except that every round rewinds to the state of the dense run at step `rewind_steps`, both weights and moments of the
optimizer, and trains the remaining T - `rewind_steps` steps of the schedule. Departures: see `lth`.
"""

from __future__ import annotations

from pydantic import Field

from isp.methods import Family
from isp.methods import lth as _lth

FAMILY: Family = "iterative"
VERSION = 1


class Settings(_lth.Settings):
    """Settings of `lth`, and the step to rewind to."""

    rewind_steps: int = Field(default=10, ge=1, description="step of the dense run to which every round rewinds")
