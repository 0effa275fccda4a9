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
the copies' magnitudes and cuts once; `rule: votes` counts the masks. docs/explanation/superposition.md compares them.

Other things that the paper leaves open, as chosen here: a copy's learning rate (the run's times a factor of 0.5 to 2),
its weight decay (one of three) and its data (half of the training set) are drawn at random.

With an N:M scope only the last round imposes the pattern, on the weak masks and on what they are superposed into; the
rounds before it protect the N highest of every group, so that exactly N can be kept in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, model_validator

from isp import copies
from isp.copies import LookAhead, Member
from isp.errors import ConfigError
from isp.methods import Family, Scored
from isp.seeds import seed as named_seed
from isp.sparsity import PLACES, sparsities_to
from isp.superposition import Contribution, Rule, contribution_to

FAMILY: Family = "denoised"
VERSION = copies.VERSION


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
        return contribution_to(self.rule)


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


# --- Algorithm 2: look-aheads ----------------------------------------------------------------------------------------


def member(settings: LookAhead, num_examples: int, seed: int, round_index: int, index: int) -> Member:
    """Protocol P_n and data D_n of look-ahead copy `index` of a round; independent of the sparsity it is pruned to."""
    return copies.draw(settings, num_examples, named_seed("look-ahead", seed=seed, round=round_index, member=index))
