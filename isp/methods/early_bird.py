"""Early-bird tickets: prune once, early in training, as soon as the magnitude mask has stopped changing.

You et al. 2020, "Drawing Early-Bird Tickets": every few steps the mask that pruning now would give is put into a queue
of the last five, and the ticket is drawn when every one of them is within a Hamming distance of 0.1 of the newest.
Departures: theirs prunes channels by the scales of batch norms, and EarlyBERT (Chen et al. 2021) heads and neurons at a
fixed time; this is the unstructured adaptation, a global-magnitude mask of the target sparsity. Masks are compared
every `interval` of T instead of every epoch. A mask that never settles is drawn at `latest` of T. After the draw the
run goes on to T; theirs starts again from the drawn weights with a full schedule.

The paper's tables have an EarlyBird that it does not describe. It cannot be this one: pre-trained weights hardly move
in the first steps, so this draws as soon as the queue is full and is one-shot pruning a little later, while the
published scores are close to LTH (CIFAR-10 at 80 %: 86.8 against 87.5). The two are never subtracted from each other.

Two masks that keep a share of 1 - S differ on at most 2 (1 - S) of the weights, so above 95 % sparsity the criterion
holds as soon as the queue is full. The step of the draw is in the ticket's record.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import Field

from isp.masks import Mask, hamming, prune_by_magnitude
from isp.methods import Event, Family, Scored, last_event

if TYPE_CHECKING:
    from torch import Tensor

FAMILY: Family = "single_pass"
VERSION = 1


class Settings(Scored):
    """The queue and when it counts as settled."""

    interval: float = Field(default=0.02, gt=0, le=0.5, description="share of T between two masks, at least a step")
    queue: int = Field(default=5, ge=2, le=1000, description="masks that are compared")
    distance: float = Field(default=0.1, ge=0, le=1, description="largest Hamming distance that counts as settled")
    latest: float = Field(default=0.5, gt=0, lt=1, description="share of T at which the ticket is drawn in any case")


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """The steps at which a mask is looked at; the last is the latest draw.

    Raises:
        ConfigError: T is a single step.
    """
    last = last_event(settings.latest, steps)
    every = max(1, round(settings.interval * steps))
    return [*range(every, last, every), last]


def prune(event: Event, settings: Settings) -> Mask | None:
    """The mask of the target sparsity if the queue has settled or time is up, else None."""
    mask = prune_by_magnitude(event.weights, event.sparsity, scope=settings.scope, input_dims=event.input_dims)
    if event.step == events(settings, event.sparsity, event.steps)[-1]:
        return mask
    queue = _queue(event.memory, settings.queue)
    if len(queue) == settings.queue - 1 and all(hamming(before, mask) <= settings.distance for before in queue):
        return mask
    for number, before in enumerate([*queue, mask][-(settings.queue - 1) :]):
        event.memory.update({f"{number} {name}": kept for name, kept in before.items()})
    return None


def _queue(memory: dict[str, Tensor], size: int) -> list[Mask]:
    """The masks before the newest, oldest first; tensors of memory are named by place and parameter."""
    found: dict[int, Mask] = {number: {} for number in range(size)}
    for key, kept in memory.items():
        number, _, name = key.partition(" ")
        found[int(number)][name] = kept
    return [mask for mask in found.values() if mask]
