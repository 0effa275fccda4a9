"""Gradual magnitude pruning: the smallest weights are pruned along a cubic ramp within one run.

Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression", eq. 1 with
t_0 = 0 and s_i = 0: after t steps a share of S * (1 - (1 - t / t_end)^3) of the weights is zero, where S is the target
and t_end is `end` of T. The ramp is steep at first, when many weights are redundant, and flat at its end. `every` is
their pruning frequency Delta t.

Departures: the original recomputes the mask from all weights, so a pruned weight may return; here it stays pruned. The
original prunes every layer to the same sparsity, which is `scope: layer` here. The sparsities of the ramp have four
decimals, and an event whose sparsity equals the previous one is skipped, so the last event may come slightly before
t_end. With an N:M scope only the last event imposes the pattern; earlier events never prune the N highest weights of a
group.
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
    """Timing of the ramp."""

    every: int = Field(default=1, ge=1, description="number of steps between two prune events")
    end: float = Field(default=0.8, gt=0, lt=1, description="share of T at which the target is reached")

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if "events" in values:
            raise ConfigError(
                f"events = {values['events']!r}: this key was replaced by `every`, the number of steps between two "
                "prune events"
            )
        if "schedule" in values:
            raise ConfigError(f"schedule = {values['schedule']!r}: this key was removed; the ramp is always cubic")
        return values


@lru_cache(maxsize=8)
def schedule(settings: Settings, sparsity: Decimal, steps: int) -> Mapping[int, Decimal]:
    """Return the sparsity after each prune event, by the step of the event.

    There is an event at every multiple of `every` below t_end and at t_end, except those that would prune nothing.

    Args:
        settings: Settings of the ramp.
        sparsity: Target sparsity, reached at the last event.
        steps: Total number of steps T.

    Raises:
        ConfigError: If T is a single step.
    """
    return ramp(sparsity, settings.every, 0, last_event(settings.end, steps))


def ramp(sparsity: Decimal, every: int, first: int, last: int) -> Mapping[int, Decimal]:
    """Return the sparsity after each prune event of a cubic ramp from step `first` to step `last`, by its step.

    There is an event at every `every` steps after `first` and at `last`, except those that would prune nothing.
    """
    events: dict[int, Decimal] = {}
    before = Decimal(0)
    for step in (*range(first + every, last, every), last):
        reached = (sparsity * (1 - (1 - Decimal(step - first) / (last - first)) ** 3)).quantize(PLACES)
        if reached > before:
            events[step] = before = reached
    return events


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """Return the steps of the prune events, ascending."""
    return list(schedule(settings, sparsity, steps))


def prune(event: Event, settings: Settings) -> Mask:
    """Keep the largest current weights among those that are not yet pruned."""
    reached = schedule(settings, event.sparsity, event.steps)[event.step]
    return prune_by_magnitude(event.weights, reached, event.within, scope=settings.scope, input_dims=event.input_dims)
