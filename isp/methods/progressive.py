"""Progressive magnitude pruning: one run of T steps in which the smallest weights are pruned again and again.

"periodic" is the paper's baseline (in the authors' code 10 points of the original weights every 2 of 20 epochs);
"cubic" the ramp of Zhu & Gupta 2017, "To prune, or not to prune", eq. 1, usually called gradual magnitude pruning.
Departure from the authors' code: the last event lies at `end` of T whatever the target, so that every sparsity has the
same number of steps to recover in; theirs leaves a tenth of T at 90 % and none above.
"""

from __future__ import annotations

from decimal import Decimal
from math import ceil
from typing import Literal

from pydantic import Field

from isp.errors import ConfigError
from isp.masks import Mask, prune_by_magnitude
from isp.methods import Event, Family, Scored
from isp.sparsity import PLACES

FAMILY: Family = "single_pass"
VERSION = 1


class Settings(Scored):
    """When and how much is pruned."""

    schedule: Literal["periodic", "cubic"] = Field(default="periodic", description="equal portions, or a cubic ramp")
    rate: float = Field(
        default=0.1, ge=0.001, lt=1, description="portion of the original weights an event prunes (periodic)"
    )
    events: int = Field(default=20, ge=1, description="number of events (cubic)")
    end: float = Field(default=0.8, gt=0, lt=1, description="share of T at which the target is reached")


def schedule(settings: Settings, sparsity: Decimal, steps: int) -> dict[int, Decimal]:
    """Sparsity after each prune event, by the step of the event; events are evenly spaced up to `end` of T.

    Args:
        settings: of the schedule.
        sparsity: the target, reached at the last event.
        steps: T.

    Raises:
        ConfigError: T is a single step.
    """
    if steps < 2:
        raise ConfigError(f"steps = {steps}: pruning within a run takes at least 2, one before and one after")
    rate = Decimal(str(settings.rate))
    count = ceil(sparsity / rate) if settings.schedule == "periodic" else settings.events
    last = min(max(1, round(settings.end * steps)), steps - 1)
    found = {}
    for index in range(1, count + 1):
        if settings.schedule == "periodic":
            reached = min(index * rate, sparsity)
        else:
            reached = sparsity * (1 - (1 - Decimal(index) / count) ** 3)
        found[max(1, round(last * index / count))] = reached.quantize(PLACES)  # of events at one step the last counts
    return found | {last: sparsity}


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """The steps of the prune events, ascending."""
    return list(schedule(settings, sparsity, steps))


def prune(event: Event, settings: Settings) -> Mask:
    """The largest current weights among those that are alive."""
    reached = schedule(settings, event.sparsity, event.steps)[event.step]
    return prune_by_magnitude(event.weights, reached, event.within, scope=settings.scope)
