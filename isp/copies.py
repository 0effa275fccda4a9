"""Copies of a model with varied training: look-aheads, weak subnetworks, and members of soups.

A seed draws the protocol and the data of each copy.
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
"""Version of copies, superposition and rounds of Instant Soup Pruning, under the name "isp" in workflow jobs."""


class Varied(Protocol):
    """Settings from which the protocol and the data of copies are drawn."""

    learning_rate_factors: tuple[float, float]
    weight_decays: tuple[float, ...]
    data_fraction: float


def check_varied(settings: Varied) -> None:
    """Refuse ranges from which nothing can be drawn.

    Raises:
        ValueError: If a range is invalid; the message names the key and its value.
    """
    low, high = settings.learning_rate_factors
    if not 0 < low <= high:
        raise ValueError(f"learning_rate_factors = {[low, high]}: must be two numbers with 0 < low <= high")
    if any(decay < 0 for decay in settings.weight_decays):
        raise ValueError(f"weight_decays = {list(settings.weight_decays)}: must be numbers >= 0")


class LookAhead(Settings):
    """Protocol and data of the look-ahead copies (Algorithm 2's P and D)."""

    look_ahead_steps: int = Field(default=50, ge=1, le=10**9, description="C, training steps of each copy")
    learning_rate_factors: tuple[float, float] = Field(
        default=(0.5, 2.0), description="range of a copy's factor on the learning rate, drawn log-uniformly"
    )
    weight_decays: tuple[float, ...] = Field(
        default=(0.0, 0.01, 0.1), description="values from which a copy's weight decay is drawn; none: that of the run"
    )
    optimizer: Literal["inherited", "fresh"] = Field(
        default="inherited", description="whether a copy continues with the run's AdamW moments or starts without any"
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="steps in which a copy's learning rate rises to the run's current one, before it falls to zero in "
        "as many; 0: it continues the run's schedule",
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
    """Protocol and data of one look-ahead copy or of one member of a soup.

    Attributes:
        seed: Seed of its data order, augmentation and dropout.
        learning_rate_factor: Factor on the run's schedule.
        weight_decay: Weight decay of AdamW; None: that of the run.
        subset: Indices of its training examples, int64; None: all.
    """

    seed: int
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    subset: Tensor | None = None


def subset_size(settings: Varied, num_examples: int) -> int:
    """Return the number of training examples of a look-ahead copy."""
    return max(1, round(settings.data_fraction * num_examples))


def draw(settings: Varied, num_examples: int, seed: int) -> Member:
    """Draw a protocol and data by a seed, which is also that of the training."""
    generator = torch.Generator().manual_seed(seed)
    low, high = settings.learning_rate_factors
    place = torch.rand((), generator=generator, dtype=torch.float64).item()
    decays = settings.weight_decays
    decay = decays[int(torch.randint(len(decays), (), generator=generator))] if decays else None
    subset = torch.randperm(num_examples, generator=generator)[: subset_size(settings, num_examples)].sort().values
    return Member(seed, math.exp(math.log(low) + place * (math.log(high) - math.log(low))), decay, subset)
