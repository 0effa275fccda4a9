"""Lottery tickets with rewinding to an early step of training instead of step 0.

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"; Renda et al. 2020. As `lth`, but
every round goes back to the state of the dense run at step `rewind_steps`, weights and moments of the optimizer, and
trains the T - `rewind_steps` steps that are left of the schedule. Departures as in `lth`.
"""

from __future__ import annotations

from pydantic import Field

from isp.methods import Family
from isp.methods import lth as _lth

FAMILY: Family = "iterative"
VERSION = 1


class Settings(_lth.Settings):
    """As `lth`, and where to rewind to."""

    rewind_steps: int = Field(default=10, ge=1, description="step of the dense run that every round goes back to")
