"""Copies of a model that train a little differently: look-aheads, weak subnetworks, the members of soups.

Each has a protocol and data of its own, drawn by a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, model_validator

from isp.lazy import torch
from isp.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2
"""Of copies, their superposition and the rounds of Instant Soup Pruning, which workflow jobs know as "isp"."""


class Varied(Protocol):
    """Settings of what copies draw: a protocol and data of their own."""

    learning_rate_factors: tuple[float, float]
    weight_decays: tuple[float, ...]
    data_fraction: float


def check_varied(settings: Varied) -> None:
    """Refuse ranges that nothing can be drawn from.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    low, high = settings.learning_rate_factors
    if not 0 < low <= high:
        raise ValueError(f"learning_rate_factors = {[low, high]}: allowed are two numbers with 0 < low <= high")
    if any(decay < 0 for decay in settings.weight_decays):
        raise ValueError(f"weight_decays = {list(settings.weight_decays)}: allowed are numbers >= 0")


class LookAhead(Settings):
    """Protocol and data of the look-ahead copies (Algorithm 2's P and D)."""

    look_ahead_steps: int = Field(default=50, ge=1, le=10**9, description="C, steps that each copy trains")
    learning_rate_factors: tuple[float, float] = Field(
        default=(0.5, 2.0), description="range of a copy's factor on the learning rate, drawn log-uniformly"
    )
    weight_decays: tuple[float, ...] = Field(
        default=(0.0, 0.01, 0.1), description="weight decays that a copy draws from; none: the run's own"
    )
    optimizer: Literal["inherited", "fresh"] = Field(
        default="inherited", description="whether a copy goes on with the run's AdamW moments or starts with none"
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="steps in which a copy's learning rate rises to the run's current one, falling to zero in as many; "
        "0: it goes on under the run's schedule",
    )
    data_fraction: float = Field(
        default=0.5, gt=0, le=1, description="share of the training set in a copy's random subset"
    )

    @model_validator(mode="after")
    def _check(self) -> LookAhead:
        check_varied(self)
        return self


@dataclass(frozen=True)
class Member:
    """Protocol and data of one look-ahead copy, or of one member of a soup.

    Attributes:
        seed: of its data order, augmentation and dropout.
        learning_rate_factor: on the run's schedule.
        weight_decay: AdamW's; None: the run's own.
        subset: the examples it trains on, int64; None: all.
    """

    seed: int
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    subset: Tensor | None = None


def subset_size(settings: Varied, num_examples: int) -> int:
    """How many of the training examples a look-ahead copy trains on."""
    return max(1, round(settings.data_fraction * num_examples))


def draw(settings: Varied, num_examples: int, seed: int) -> Member:
    """A protocol and data, drawn by a seed, which is that of the training, too."""
    generator = torch.Generator().manual_seed(seed)
    low, high = settings.learning_rate_factors
    place = torch.rand((), generator=generator, dtype=torch.float64).item()
    decays = settings.weight_decays
    decay = decays[int(torch.randint(len(decays), (), generator=generator))] if decays else None
    subset = torch.randperm(num_examples, generator=generator)[: subset_size(settings, num_examples)].sort().values
    return Member(seed, math.exp(math.log(low) + place * (math.log(high) - math.log(low))), decay, subset)
