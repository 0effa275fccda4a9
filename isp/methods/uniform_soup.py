"""Uniform soup: the average of several models, each fine-tuned for the whole budget under a varied protocol.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time"; a baseline of Instant Model Soup (Table 6, 8 models). Every member starts from the same initial weights
and trains T steps. Member 0 has the run's own protocol and seed and is therefore plain fine-tuning. Every other member
draws its own factor on the learning rate, weight decay and data order.

Departures: Wortsman et al. also vary augmentation and label smoothing. The paper has no soups of sparse models. Here,
at a sparsity above 0, either all members train under the one-shot magnitude mask of the initial weights
(`masks: shared`), so that the average is as sparse as they are, or each is pruned by magnitude during training
(`masks: own`) and the average is pruned again.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, model_validator

from isp.copies import Member, check_varied, draw
from isp.methods import Family, Scored, last_event
from isp.seeds import seed as named_seed

FAMILY: Family = "souped"
VERSION = 1


class Settings(Scored):
    """Members of the soup. The scope is that of magnitude masks, at a sparsity above 0."""

    members: int = Field(default=8, ge=1, le=1000, description="number of models that are fine-tuned")
    learning_rate_factors: tuple[float, float] = Field(
        default=(0.5, 2.0), description="range of a member's factor on the learning rate, drawn log-uniformly"
    )
    weight_decays: tuple[float, ...] = Field(
        default=(0.0, 0.01, 0.1),
        description="values from which a member's weight decay is drawn; none: that of the run",
    )
    data_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the training set in a member's random subset"
    )
    masks: Literal["shared", "own"] = Field(
        default="shared",
        description="'shared': all members train under the magnitude mask of the initial weights; 'own': each prunes",
    )
    prune_at: float = Field(default=0.25, gt=0, lt=1, description="share of T after which a member prunes (masks: own)")

    @model_validator(mode="after")
    def _check(self) -> Settings:
        check_varied(self)
        return self

    def prune_step(self, steps: int) -> int:
        """Return the step of T = `steps` at which a member's mask is computed: 0 if the members share it.

        Raises:
            ConfigError: If members prune on their own and T is a single step.
        """
        return 0 if self.masks == "shared" else last_event(self.prune_at, steps)

    def of_member(self, sparsity: Decimal) -> dict[str, Any]:
        """Return the settings on which a member of a soup of this sparsity depends, as JSON values."""
        pruning = {"masks", "prune_at"} if self.masks == "own" else {"masks"}
        drawing = {"learning_rate_factors", "weight_decays", "data_fraction"}
        return self.model_dump(mode="json", include=drawing | {"scope", *pruning} if sparsity else drawing)


def member(settings: Settings, num_examples: int, seed: int, index: int) -> Member:
    """Draw the protocol and data of a member, independently of the sparsity and of the number of members."""
    if index == 0:
        return Member(seed)
    return draw(settings, num_examples, named_seed("soup member", seed=seed, member=index))
