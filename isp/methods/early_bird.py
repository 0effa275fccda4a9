"""Early-bird tickets: prune once, early in training, as soon as the magnitude mask has stopped changing.

You et al. 2020, "Drawing Early-Bird Tickets": every few steps, the mask that pruning would give at that point enters a
queue of the last five masks. The ticket is drawn once every mask in the queue is within a Hamming distance of 0.1 of
the newest.

Departures: the original prunes channels by the scales of batch norms, and EarlyBERT (Chen et al. 2021) prunes heads and
neurons at a fixed time; this is the unstructured adaptation, a global-magnitude mask of the target sparsity. Masks are
compared every `interval` of T instead of every epoch. If the mask never settles, the ticket is drawn at `latest` of T.
After the draw, training continues to T; the original restarts from the drawn weights with a full schedule.

The paper's tables contain an EarlyBird that it does not describe. It cannot be this method: pre-trained weights hardly
move in the first steps, so this method draws as soon as the queue is full and amounts to slightly delayed one-shot
pruning, while the published scores are close to LTH (CIFAR-10 at 80 %: 86.8 vs. 87.5). Results never compare the two.

Two masks that keep a share of 1 - S differ in at most 2 (1 - S) of the weights, so above 95 % sparsity the criterion is
met as soon as the queue is full. The ticket's record contains the step of the draw.
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
    """The queue of masks and the criterion for drawing the ticket."""

    interval: float = Field(default=0.02, gt=0, le=0.5, description="share of T between two masks, at least one step")
    queue: int = Field(default=5, ge=2, le=1000, description="number of masks that are compared")
    distance: float = Field(default=0.1, ge=0, le=1, description="largest Hamming distance that counts as settled")
    latest: float = Field(default=0.5, gt=0, lt=1, description="share of T at which the ticket is drawn at the latest")


def events(settings: Settings, sparsity: Decimal, steps: int) -> list[int]:
    """Return the steps at which a mask is computed; the last one is the latest possible draw.

    Raises:
        ConfigError: If T is a single step.
    """
    last = last_event(settings.latest, steps)
    every = max(1, round(settings.interval * steps))
    return [*range(every, last, every), last]


def prune(event: Event, settings: Settings) -> Mask | None:
    """Return the mask of the target sparsity if the queue has settled or time is up, otherwise None."""
    mask = prune_by_magnitude(event.weights, event.sparsity, scope=settings.scope, input_dims=event.input_dims)
    if event.step == events(settings, event.sparsity, event.steps)[-1]:
        return mask
    queue = _queue(event.memory, settings.queue)
    if len(queue) == settings.queue - 1 and all(hamming(before, mask) <= settings.distance for before in queue):
        return mask
    for number, before in enumerate([*queue, mask][-(settings.queue - 1) :]):
        event.memory.update({f"{number} {name}": bits for name, bits in before.items()})
    return None


def _queue(memory: dict[str, Tensor], size: int) -> list[Mask]:
    """Return the previous masks, oldest first; the keys of `memory` are "<position> <parameter>"."""
    masks: dict[int, Mask] = {number: {} for number in range(size)}
    for key, bits in memory.items():
        number, _, name = key.partition(" ")
        masks[int(number)][name] = bits
    return [mask for mask in masks.values() if mask]
