"""Gradual magnitude pruning: within one run the smallest weights are pruned along a cubic ramp.

Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression", eq. 1 with
t_0 = 0 and s_i = 0: after t steps a share of S * (1 - (1 - t / t_end)^3) of the weights is zero, where S is the target
and t_end is `end` of T. The ramp is steep at first, when many weights are redundant, and flat at its end. `every` is
their frequency Delta t.
Departures: theirs recomputes the mask from all weights, so a dropped one may return; here it stays dropped. The
sparsities of the ramp have four decimals, and where one equals the one before nothing is selected; so the last events
may lie a little before t_end. Theirs prunes each layer to the same sparsity, which is `scope: layer` here.
With an N:M scope only the last event imposes the pattern; those before it protect the N highest of every group.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator

from isp.errors import ConfigError
from isp.masks import Mask, prune_by_magnitude
from isp.methods import Event, Family, Scored, last_event
from isp.sparsity import PLACES

FAMILY: Family = "single_pass"
VERSION = 1


class Settings(Scored):
    """When the ramp prunes and where it ends."""

    every: int = Field(default=1, ge=1, description="steps between two prune events")
    end: float = Field(default=0.8, gt=0, lt=1, description="share of T at which the target is reached")

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if "events" in values:
            raise ConfigError(
                f"events = {values['events']!r}: is not a key any more; use `every`, the number of steps between two "
                "events"
            )
        if "schedule" in values:
            raise ConfigError(f"schedule = {values['schedule']!r}: is not a key any more; the ramp is always cubic")
        return values


@lru_cache(maxsize=8)
def schedule(settings: Settings, sparsity: Decimal, steps: int) -> Mapping[int, Decimal]:
    """Sparsity after each prune event, by the step of the event.

    Events lie at every multiple of `every` below t_end and at t_end, except those that would prune nothing.

    Args:
        settings: The settings of the ramp.
        sparsity: The target, reached at the last event.
        steps: T.

    Raises:
        ConfigError: T is a single step.
    """
    last = last_event(settings.end, steps)
    events: dict[int, Decimal] = {}
    before = Decimal(0)
    for step in (*range(settings.every, last, settings.every), last):
        reached = (sparsity * (1 - (1 - Decimal(step) / last) ** 3)).quantize(PLACES)
        if reached > before:
            events[step] = before = reached
    return events


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """The steps of the prune events, ascending."""
    return list(schedule(settings, sparsity, steps))


def prune(event: Event, settings: Settings) -> Mask:
    """The largest current weights among those that are alive."""
    reached = schedule(settings, event.sparsity, event.steps)[event.step]
    return prune_by_magnitude(event.weights, reached, event.within, scope=settings.scope, input_dims=event.input_dims)
