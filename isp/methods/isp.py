"""Instant Soup Pruning: one pass of training in which noisy look-ahead masks are superposed into each round's mask.

Jaiswal et al., ICML 2023, Algorithms 1 and 2. Segments of t, 2t, 3t, … steps continue one optimizer and one schedule;
after each, N cheap copies of the model train C steps under protocols and data of their own, each is pruned to a weak
mask, and the weak masks are superposed into the mask the run goes on with. When the target is reached, the rest of T
is training at the final mask.

How masks are superposed is a setting (`rule`), because the paper says it twice, differently. The default follows
section 2.2.1, where a simple union of the N look-ahead masks is sufficient: the current weights are pruned inside that
union to the round's sparsity (`rule: union`, adjusted in every round). Algorithm 2 as printed also puts the current
weights' own magnitude mask into the union, and the largest current weights inside it are then that own mask again,
whatever the look-aheads found; `isp_literal` is this text, and equals ISP without denoisers. `isp_mean`, ours, averages
the copies' magnitudes and cuts once; `rule: votes` counts the masks. docs/superposition.md compares them.

Other things that the paper leaves open, as chosen here: a copy's learning rate (the run's times a factor of 0.5 to 2),
its weight decay (one of three) and its data (half of the training set) are drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from isp import masks, settings
from isp.errors import ConfigError
from isp.masks import Mask, Weights
from isp.methods import Family, Scored
from isp.seeds import seed as named_seed
from isp.sparsity import PLACES, Scope, sparsities_to

FAMILY: Family = "denoised"
VERSION = 2

Rule = Literal["mean_score", "votes", "union", "literal"]
Contribution = Literal["mask", "magnitudes"]


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


class LookAhead(settings.Settings):
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


class Settings(LookAhead, Scored):
    """Rounds, look-aheads and their superposition. Defaults: Table 1 for CLIP, `segment_fraction` from the code."""

    look_ahead_steps: int | None = Field(  # type: ignore[assignment]  # `look_ahead` fills it in
        default=50, ge=1, description="C, steps that each copy trains; or else `look_ahead_fraction`"
    )
    look_ahead_fraction: float | None = Field(
        default=None, gt=0, le=1, description="C as a share of the steps of an epoch; replaces `look_ahead_steps`"
    )
    rate: float = Field(default=0.15, ge=0.001, lt=1, description="s, share of the weights that a round prunes")
    rate_of: Literal["remaining", "original"] = Field(default="remaining", description="what `rate` is a share of")
    segment_fraction: float = Field(default=0.075, gt=0, le=1, description="t as a share of the steps of an epoch")
    denoisers: int = Field(
        default=5, ge=0, le=1000, description="N, look-ahead copies a round; 0: plain magnitude pruning"
    )
    rule: Rule = Field(default="union", description="how the weak masks are superposed")
    adjust: Literal["rounds", "target"] = Field(
        default="rounds",
        description="whether a union is pruned to the exact sparsity in every round, or only at the target",
    )
    rounds: Literal["nominal", "measured"] = Field(
        default="nominal",
        description="whether a round's sparsity follows from its number, or from that of the mask before it",
    )
    stop_within: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="once so close to the target, the rest is pruned at once by magnitude, without look-aheads",
    )
    round_limit: Literal["budget", "epochs"] = Field(
        default="budget",
        description="what limits the rounds: the budget T, or T's epochs, where there are at most as many rounds as "
        "epochs and none is longer than an epoch; what is missing after the last round is pruned at once",
    )

    @model_validator(mode="before")
    @classmethod
    def _replace_default_look_ahead(cls, values: Any) -> Any:
        """Let the C that is given replace the default of the other key."""
        keys = ("look_ahead_steps", "look_ahead_fraction")
        for given, other in (keys, keys[::-1]):
            if isinstance(values, Mapping) and values.get(given) is not None and other not in values:
                return {**values, other: None}
        return values

    @model_validator(mode="after")
    def _check_look_ahead(self) -> Settings:
        if (self.look_ahead_steps is None) == (self.look_ahead_fraction is None):
            raise ValueError(
                f"look_ahead_steps = {self.look_ahead_steps}, look_ahead_fraction = {self.look_ahead_fraction}: "
                "exactly one of them must be set, and the other null"
            )
        return self

    @model_validator(mode="after")
    def _check_adjustment(self) -> Settings:
        if self.adjust == "target" and self.rule not in ("union", "literal"):
            raise ValueError(f"adjust = 'target' with rule = {self.rule!r}: allowed are the rules union and literal")
        return self

    @property
    def chained(self) -> bool:
        """Whether targets share a chain of rounds whose events are known beforehand; else each has a run of its own."""
        exact = self.adjust == "rounds" and self.rounds == "nominal" and self.stop_within == 0
        return exact and self.round_limit == "budget"

    def look_ahead(self, steps_per_epoch: int) -> LookAhead:
        """Settings of the copies, with C in steps (at least one)."""
        steps = self.look_ahead_steps
        if steps is None:
            assert self.look_ahead_fraction is not None
            steps = max(1, round(self.look_ahead_fraction * steps_per_epoch))
        own = self.model_dump(include=set(LookAhead.model_fields))
        return LookAhead.model_validate(own | {"look_ahead_steps": steps})

    @property
    def contribution(self) -> Contribution:
        """What the rule needs of a look-ahead copy."""
        return "magnitudes" if self.rule == "mean_score" else "mask"


# --- Algorithm 1: rounds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """Round `index`: train from step `start` to step `stop`, then prune to `sparsity`."""

    index: int
    start: int
    stop: int
    sparsity: Decimal


def segment_unit(settings: Settings, steps_per_epoch: int) -> int:
    """The unit t = max(1, round(segment_fraction * steps_per_epoch)): round i trains t * (i + 1) steps."""
    return max(1, round(settings.segment_fraction * steps_per_epoch))


def steps_until(settings: Settings, index: int, steps_per_epoch: int) -> int:
    """Return the step at which round `index` prunes: t + 2 t + … + (index + 1) t.

    With `round_limit: epochs` no term is larger than an epoch.
    """
    unit = segment_unit(settings, steps_per_epoch)
    if settings.round_limit == "budget":
        return unit * (index + 1) * (index + 2) // 2
    return sum(min(unit * (number + 1), steps_per_epoch) for number in range(index + 1))


def max_rounds(settings: Settings, steps_per_epoch: int, total_steps: int) -> int:
    """Return how many rounds fit into the budget and leave at least one step of it.

    With `round_limit: epochs` there are at most as many as the budget has whole epochs.

    Raises:
        ConfigError: Not even the first round fits.
    """
    epochs = settings.round_limit == "epochs"
    limit = total_steps // steps_per_epoch if epochs else total_steps
    count = 0
    while count < limit and steps_until(settings, count, steps_per_epoch) < total_steps:
        count += 1
    if count == 0:
        first = steps_until(settings, 0, steps_per_epoch)
        needed = max(first + 1, steps_per_epoch) if epochs else first + 1
        raise ConfigError(
            f"no round fits into the budget of {total_steps} steps: the first one prunes at step {first}"
            + (f", and round_limit = 'epochs' needs a whole epoch, {steps_per_epoch} steps" if epochs else "")
            + f". Raise steps to at least {needed}, or lower segment_fraction"
        )
    return count


def sparsities(settings: Settings, target: Decimal) -> list[Decimal]:
    """The nominal sparsities of the rounds to `target`, which comes early where the rest is pruned at once."""
    chain = sparsities_to(target, settings.rate, settings.rate_of)
    early = [index for index, before in enumerate([Decimal(0), *chain[:-1]]) if rest_at_once(settings, before, target)]
    return [*chain[: early[0]], target] if early else chain


def rest_at_once(settings: Settings, reached: Decimal, target: Decimal) -> bool:
    """Whether a run at sparsity `reached` is so close to the target that it prunes the rest without look-aheads."""
    return target - reached < Decimal(str(settings.stop_within))


def next_sparsity(settings: Settings, reached: Decimal, target: Decimal) -> Decimal:
    """The sparsity that a round prunes to when the mask before it had `reached`."""
    rate = Decimal(str(settings.rate))
    exact = 1 - (1 - reached) * (1 - rate) if settings.rate_of == "remaining" else reached + rate
    return min(exact.quantize(PLACES), target)


def rounds(settings: Settings, target: Decimal, steps_per_epoch: int, total_steps: int) -> list[Round]:
    """The rounds that lead to `target`. The last round's sparsity is the target, the others' nominal.

    Raises:
        ConfigError: the rounds leave no step of the budget T = `total_steps` for training at the final mask.
    """
    chain = sparsities(settings, target)
    stops = [0, *(steps_until(settings, index, steps_per_epoch) for index in range(len(chain)))]
    if stops[-1] >= total_steps:
        raise ConfigError(
            f"the rounds overrun the budget: sparsity {target} takes {len(chain)} rounds at rate {settings.rate} of "
            f"the {settings.rate_of} weights, {stops[-1]} steps, and at least one step must be left after them; the "
            f"budget is {total_steps} steps, {stops[-1] + 1 - total_steps} too few. Raise steps or rate, or lower "
            f"segment_fraction (t is now {segment_unit(settings, steps_per_epoch)} steps)"
        )
    return [Round(index, stops[index], stops[index + 1], sparsity) for index, sparsity in enumerate(chain)]


# --- Algorithm 2: look-aheads and their superposition -----------------------------------------------------------------


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


def member(settings: LookAhead, num_examples: int, seed: int, round_index: int, index: int) -> Member:
    """Protocol P_n and data D_n of look-ahead copy `index` of a round; independent of the sparsity it is pruned to."""
    return drawn(settings, num_examples, named_seed("look-ahead", seed=seed, round=round_index, member=index))


def drawn(settings: Varied, num_examples: int, seed: int) -> Member:
    """A protocol and data, drawn by a seed, which is that of the training, too."""
    generator = torch.Generator().manual_seed(seed)
    low, high = settings.learning_rate_factors
    place = torch.rand((), generator=generator, dtype=torch.float64).item()
    decays = settings.weight_decays
    decay = decays[int(torch.randint(len(decays), (), generator=generator))] if decays else None
    subset = torch.randperm(num_examples, generator=generator)[: subset_size(settings, num_examples)].sort().values
    return Member(seed, math.exp(math.log(low) + place * (math.log(high) - math.log(low))), decay, subset)


def weak(
    contribution: Contribution, copy: Weights, sparsity: Decimal, within: Mask | None, scope: Scope = "global"
) -> dict[str, Tensor]:
    """What a look-ahead copy contributes: its magnitude mask at the event's sparsity, or its magnitudes."""
    if contribution == "magnitudes":
        return masks.magnitudes(copy)
    return masks.prune_by_magnitude(copy, sparsity, within, scope=scope)


def superpose(
    rule: Rule,
    weights: Weights,
    contributions: Sequence[Weights],
    sparsity: Decimal,
    within: Mask | None,
    scope: Scope = "global",
    adjust: bool = True,
) -> Mask:
    """Superpose the contributions of the look-ahead copies into one mask of exactly `sparsity`.

    Every rule is exchangeable (the order of the copies does not matter), and with no copies each is magnitude pruning.

    - mean_score: keep the largest mean look-ahead |w|, ties by current |w| (`isp_mean`).
    - votes: keep the weights that most look-ahead masks keep, ties by current |w|.
    - union: keep the largest current |w| inside the union of the look-ahead masks (the default; section 2.2.1).
    - literal: the same with the current weights' own mask in the union, the text of Algorithm 2. It equals magnitude
      pruning: the union contains the k largest current weights, and the adjustment takes the k largest inside it.

    Args:
        rule: one of the above.
        weights: the run's current prunable weights.
        contributions: from `weak`, one a copy.
        sparsity: of the event, over all prunable weights.
        within: the run's current mask; what it dropped stays dropped.
        scope: whether layers are ranked together.
        adjust: False leaves a union as it is, with more weights than `sparsity` says.
    """
    if not contributions:
        return masks.prune_by_magnitude(weights, sparsity, within, scope=scope)
    keep_top = partial(masks.keep_top, sparsity=sparsity, ties=weights, within=within, scope=scope)
    if rule == "votes":
        return keep_top(masks.votes(contributions))  # type: ignore[arg-type]
    if rule == "mean_score":
        # Summed in fp64, where fp32 magnitudes add up exactly enough for the order of the copies not to show.
        mean = {name: sum(copy[name].double() for copy in contributions) / len(contributions) for name in weights}
        return keep_top(mean)  # type: ignore[arg-type]
    superposed = masks.union(*contributions)  # type: ignore[arg-type]
    if rule == "literal":
        superposed = masks.union(superposed, masks.prune_by_magnitude(weights, sparsity, within, scope=scope))
    return masks.prune_by_magnitude(weights, sparsity, superposed, scope=scope) if adjust else superposed


def changed(mask: Mask, weights: Weights, sparsity: Decimal, within: Mask | None, scope: Scope = "global") -> float:
    """Share of the kept weights that the denoisers changed: those that plain magnitude pruning would have dropped."""
    plain = masks.prune_by_magnitude(weights, sparsity, within, scope=scope)
    return 1 - masks.num_kept(masks.intersection(mask, plain)) / max(1, masks.num_kept(mask))


def agreement(contributions: Sequence[Mask]) -> tuple[float, dict[str, float | None]] | None:
    """Mean Jaccard index over all pairs of weak masks, in all and by layer; None with fewer than two masks.

    A layer of which no mask keeps a weight has None, for there is nothing to agree on.
    """
    pairs = [masks.overlap_by_layer(a, b) for i, a in enumerate(contributions) for b in contributions[:i]]
    if not pairs:
        return None
    total = _mean_jaccard([sum(layers.values(), masks.Overlap()) for layers in pairs])
    by_layer = {name: [layers[name] for layers in pairs] for name in pairs[0]}
    some = {name: any(pair.kept_a or pair.kept_b for pair in found) for name, found in by_layer.items()}
    return total, {name: _mean_jaccard(found) if some[name] else None for name, found in by_layer.items()}


def _mean_jaccard(pairs: Sequence[masks.Overlap]) -> float:
    return sum(pair.jaccard for pair in pairs) / len(pairs)
