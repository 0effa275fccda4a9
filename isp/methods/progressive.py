"""Progressive magnitude pruning: one run of T steps in which the smallest weights are pruned in equal portions.

The paper's baseline; in the authors' code 10 points of the original weights every 2 of 20 epochs, here `rate` at every
`period` of T. Whatever is left of T after the last event trains the final mask: as in their code a tenth of T at 90 %
and nothing above. Departures: an event that would lie at T or beyond lies at T - 1, because a ticket's weights are
zero where its mask is. With `end` the events are spaced evenly up to that share of T instead, so that every sparsity
leaves the same number of steps; with `end: 0.4` the method is far better in short runs than the paper's baseline is.
The cubic ramp of Zhu & Gupta is the method `gradual`. With an N:M scope only the last event imposes the pattern; those
before it protect the N highest of every group.
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
    """When and how much is pruned."""

    rate: float = Field(default=0.1, ge=0.001, lt=1, description="portion of the original weights an event prunes")
    period: float = Field(default=0.1, gt=0, lt=1, description="share of T between two events")
    end: float | None = Field(
        default=None, gt=0, lt=1, description="share of T at which the last event lies, in place of `period`"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in ("schedule", "events"):
            if key in values:
                raise ConfigError(
                    f"{key} = {values[key]!r}: is not a key any more; progressive prunes in equal portions, and the "
                    "cubic ramp is `method: gradual`, where `every` is the number of steps between two events"
                )
        return values


def schedule(settings: Settings, sparsity: Decimal, steps: int) -> dict[int, Decimal]:
    """Sparsity after each prune event, by the step of the event.

    Args:
        settings: The settings of the method.
        sparsity: The target, reached at the last event.
        steps: T.

    Raises:
        ConfigError: T is a single step, or T has no room for the events.
    """
    rate, period = Decimal(str(settings.rate)), Decimal(str(settings.period))
    count, last = ceil(sparsity / rate), last_event(settings.end or 1, steps)
    if settings.end is None and (count - 1) * period >= 1:
        raise ConfigError(
            f"period = {period}: T has no room for {count} events, {rate} of the weights each; raise `rate`, lower "
            "`period`, or set `end`, the share of T at which the last event lies"
        )
    events: dict[int, Decimal] = {}
    for index in range(1, count + 1):
        step = round(index * period * steps) if settings.end is None else round(last * index / count)
        # Of events at one step the last counts.
        events[min(max(1, step), last)] = min(index * rate, sparsity).quantize(PLACES)
    return events


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """The steps of the prune events, ascending."""
    return list(schedule(settings, sparsity, steps))


def prune(event: Event, settings: Settings) -> Mask:
    """The largest current weights among those that are alive."""
    reached = schedule(settings, event.sparsity, event.steps)[event.step]
    return prune_by_magnitude(event.weights, reached, event.within, scope=settings.scope, input_dims=event.input_dims)
