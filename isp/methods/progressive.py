"""Progressive magnitude pruning: the smallest weights are pruned in equal portions within one run of T steps.

The paper's baseline. The authors' code prunes 10 points of the original weights every 2 of 20 epochs; here each event
prunes `rate`, every `period` of T. The steps after the last event train the final mask: as in their code, a tenth of T
at 90 % and none above. Departures: an event that would be at T or beyond is at T - 1, because a ticket's weights are
zero where its mask is. With `end`, the events are instead spaced evenly up to that share of T, so that every sparsity
leaves the same number of steps; with `end: 0.4` the method is far better in short runs than the paper's baseline. The
cubic ramp of Zhu & Gupta is the method `gradual`. With an N:M scope only the last event imposes the pattern; earlier
events never prune the N highest weights of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from math import ceil
from typing import Any

from pydantic import Field, model_validator

from isp.errors import ConfigError
from isp.masks import Mask, prune_by_magnitude
from isp.methods import Event, Family, Scored, last_event
from isp.sparsity import PLACES

FAMILY: Family = "single_pass"
VERSION = 2


class Settings(Scored):
    """Timing and size of the prune events."""

    rate: float = Field(default=0.1, ge=0.001, lt=1, description="share of the original weights pruned by each event")
    period: float = Field(default=0.1, gt=0, lt=1, description="share of T between two events")
    end: float | None = Field(
        default=None, gt=0, lt=1, description="share of T at which the last event prunes, instead of `period`"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in ("schedule", "events"):
            if key in values:
                raise ConfigError(
                    f"{key} = {values[key]!r}: this key was removed; progressive prunes in equal portions. For the "
                    "cubic ramp use `method: gradual`, where `every` is the number of steps between two events"
                )
        return values


def schedule(settings: Settings, sparsity: Decimal, steps: int) -> dict[int, Decimal]:
    """Return the sparsity after each prune event, by the step of the event.

    Args:
        settings: Settings of the method.
        sparsity: Target sparsity, reached at the last event.
        steps: Total number of steps T.

    Raises:
        ConfigError: If T is a single step or has no room for the events.
    """
    rate, period = Decimal(str(settings.rate)), Decimal(str(settings.period))
    count, last = ceil(sparsity / rate), last_event(settings.end or 1, steps)
    if settings.end is None and (count - 1) * period >= 1:
        raise ConfigError(
            f"period = {period}: T has no room for {count} events that prune {rate} of the weights each; raise `rate`, "
            "lower `period`, or set `end`, the share of T at which the last event prunes"
        )
    events: dict[int, Decimal] = {}
    for index in range(1, count + 1):
        step = round(index * period * steps) if settings.end is None else round(last * index / count)
        # Of several events at one step the last one counts.
        events[min(max(1, step), last)] = min(index * rate, sparsity).quantize(PLACES)
    return events


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """Return the steps of the prune events, ascending."""
    return list(schedule(settings, sparsity, steps))


def prune(event: Event, settings: Settings) -> Mask:
    """Keep the largest current weights among those that are not yet pruned."""
    reached = schedule(settings, event.sparsity, event.steps)[event.step]
    return prune_by_magnitude(event.weights, reached, event.within, scope=settings.scope, input_dims=event.input_dims)
