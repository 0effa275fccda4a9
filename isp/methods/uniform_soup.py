"""Uniform soup: the average of several models, each fine-tuned to the end under a protocol of its own.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time"; a baseline of Instant Model Soup (Table 6, 8 models). Every member begins from the same initial weights
and trains T steps. Member 0 has the run's own protocol and seed: it is plain fine-tuning. The others draw a factor on
the learning rate, a weight decay and a data order of their own.

Departures: Wortsman et al. vary augmentation and label smoothing, too. Soups of sparse models are not in the paper: at
a sparsity above 0 all members train under the one-shot magnitude mask of the initial weights (`masks: shared`), so that
the average is as sparse as they are, or each is pruned by magnitude on its way (`masks: own`), and the average is
pruned again.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, model_validator

from isp.copies import Member, check_varied, draw
from isp.methods import Family, Scored
from isp.seeds import seed as named_seed

FAMILY: Family = "souped"
VERSION = 1


class Settings(Scored):
    """What is averaged. The scope is that of magnitude masks, at a sparsity above 0."""

    members: int = Field(default=8, ge=1, le=1000, description="models that are fine-tuned")
    learning_rate_factors: tuple[float, float] = Field(
        default=(0.5, 2.0), description="range of a member's factor on the learning rate, drawn log-uniformly"
    )
    weight_decays: tuple[float, ...] = Field(
        default=(0.0, 0.01, 0.1), description="weight decays that a member draws from; none: the run's own"
    )
    data_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the training set in a member's random subset"
    )
    masks: Literal["shared", "own"] = Field(
        default="shared", description="whether all members train under the initial weights' magnitude mask or prune"
    )
    prune_at: float = Field(default=0.25, gt=0, lt=1, description="share of T after which a member prunes (masks: own)")

    @model_validator(mode="after")
    def _check(self) -> Settings:
        check_varied(self)
        return self

    def prune_step(self, steps: int) -> int:
        """The step of T = `steps` at which a member's mask is found: before training, if they share it."""
        return 0 if self.masks == "shared" else max(1, round(self.prune_at * steps))

    def of_member(self, sparsity: Decimal) -> dict[str, Any]:
        """Those settings that a member of a soup of this sparsity depends on, as JSON has them."""
        pruning = {"masks", "prune_at"} if self.masks == "own" else {"masks"}
        drawing = {"learning_rate_factors", "weight_decays", "data_fraction"}
        return self.model_dump(mode="json", include=drawing | {"scope", *pruning} if sparsity else drawing)


def member(settings: Settings, num_examples: int, seed: int, index: int) -> Member:
    """Protocol and data of a member; independent of the sparsity and of the number of members."""
    if index == 0:
        return Member(seed)
    return draw(settings, num_examples, named_seed("soup member", seed=seed, member=index))
