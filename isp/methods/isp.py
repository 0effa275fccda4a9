"""Instant Soup Pruning: one training pass in which noisy look-ahead masks are superposed into the mask of each round.

Jaiswal et al., ICML 2023, Algorithms 1 and 2. Segments of t, 2t, 3t, … steps share one optimizer and one schedule.
After each segment, N cheap copies of the model train C steps with varied protocols and data, each copy is pruned to a
weak mask, and the weak masks are superposed into the mask with which the run continues. After the target is reached,
the remaining steps up to T train the final mask.

How masks are superposed is a setting (`rule`), because the paper gives two different descriptions. The default follows
section 2.2.1, where a simple union of the N look-ahead masks is sufficient: the current weights are pruned inside that
union to the round's sparsity (`rule: union`, adjusted in every round). Algorithm 2 as printed also adds the current
weights' own magnitude mask to the union. The largest current weights inside that union are exactly the added mask,
whatever the look-aheads contribute; `isp_literal` implements this text and equals ISP without denoisers. `isp_mean`,
our variant, averages the copies' magnitudes and prunes once; `rule: votes` counts the masks.
docs/explanation/superposition.md compares the rules.

The paper also leaves open a copy's learning rate (here, the run's times a factor of 0.5 to 2), its weight decay (one of
three values) and its data (half of the training set). All three are drawn at random.

With an N:M scope only the last round imposes the pattern, on the weak masks and on their superposition. Earlier rounds
never prune the N highest weights of a group, so that exactly N can be kept in the end.
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
        default=50, ge=1, description="C, training steps of each copy; an alternative to `look_ahead_fraction`"
    )
    look_ahead_fraction: float | None = Field(
        default=None, gt=0, le=1, description="C as a share of the steps of an epoch, instead of `look_ahead_steps`"
    )
    rate: float = Field(default=0.15, ge=0.001, lt=1, description="s, share of the weights pruned in each round")
    rate_of: Literal["remaining", "original"] = Field(
        default="remaining", description="whether `rate` is a share of the remaining or of the original weights"
    )
    segment_fraction: float = Field(default=0.075, gt=0, le=1, description="t as a share of the steps of an epoch")
    denoisers: int = Field(
        default=5, ge=0, le=1000, description="N, look-ahead copies per round; 0: plain magnitude pruning"
    )
    rule: Rule = Field(default="union", description="how the weak masks are superposed")
    adjust: Literal["rounds", "target"] = Field(
        default="rounds",
        description="whether a union is pruned to the exact sparsity in every round or only at the target",
    )
    rounds: Literal["nominal", "measured"] = Field(
        default="nominal",
        description="whether a round's sparsity follows from its number or from the sparsity of the previous mask",
    )
    stop_within: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="distance to the target within which the rest is pruned at once by magnitude, without look-aheads",
    )
    round_limit: Literal["budget", "epochs"] = Field(
        default="budget",
        description="limit on the rounds: 'budget', the T steps; 'epochs', at most one round per epoch of T and none "
        "longer than an epoch, after which the rest is pruned at once",
    )

    @model_validator(mode="before")
    @classmethod
    def _replace_default_look_ahead(cls, values: Any) -> Any:
        """Clear the default of one key for C if the other key is set."""
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
                "exactly one of them must be set; set the other to null"
            )
        return self

    @model_validator(mode="after")
    def _check_adjustment(self) -> Settings:
        if self.adjust == "target" and self.rule not in ("union", "literal"):
            raise ValueError(f"rule = {self.rule!r}: must be 'union' or 'literal' with adjust = 'target'")
        return self

    @property
    def chained(self) -> bool:
        """Whether targets share one chain of rounds, with events known in advance; otherwise each has its own run."""
        exact = self.adjust == "rounds" and self.rounds == "nominal" and self.stop_within == 0
        return exact and self.round_limit == "budget"

    def look_ahead(self, steps_per_epoch: int) -> LookAhead:
        """Return the settings of the copies, with C in steps (at least one)."""
        steps = self.look_ahead_steps
        if steps is None:
            assert self.look_ahead_fraction is not None
            steps = max(1, round(self.look_ahead_fraction * steps_per_epoch))
        shared = self.model_dump(include=set(LookAhead.model_fields))
        return LookAhead.model_validate(shared | {"look_ahead_steps": steps})

    @property
    def contribution(self) -> Contribution:
        """Kind of tensors that the rule needs from a look-ahead copy."""
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
    """Return the unit t = max(1, round(segment_fraction * steps_per_epoch)): round i trains t * (i + 1) steps."""
    return max(1, round(settings.segment_fraction * steps_per_epoch))


def steps_until(settings: Settings, index: int, steps_per_epoch: int) -> int:
    """Return the step at which round `index` prunes: t + 2 t + … + (index + 1) t.

    With `round_limit: epochs` each term is at most one epoch.
    """
    unit = segment_unit(settings, steps_per_epoch)
    if settings.round_limit == "budget":
        return unit * (index + 1) * (index + 2) // 2
    return sum(min(unit * (number + 1), steps_per_epoch) for number in range(index + 1))


def max_rounds(settings: Settings, steps_per_epoch: int, total_steps: int) -> int:
    """Return the number of rounds that fit into the budget and leave at least one step of it.

    With `round_limit: epochs` this is at most the number of whole epochs in the budget.

    Raises:
        ConfigError: If not even the first round fits.
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
    """Return the nominal sparsities of the rounds to `target`, cut short where the rest is pruned at once."""
    chain = sparsities_to(target, settings.rate, settings.rate_of)
    early = [index for index, before in enumerate([Decimal(0), *chain[:-1]]) if rest_at_once(settings, before, target)]
    return [*chain[: early[0]], target] if early else chain


def rest_at_once(settings: Settings, reached: Decimal, target: Decimal) -> bool:
    """Return whether a run at sparsity `reached` is so close to the target that it prunes the rest at once."""
    return target - reached < Decimal(str(settings.stop_within))


def next_sparsity(settings: Settings, reached: Decimal, target: Decimal) -> Decimal:
    """Return the sparsity to which a round prunes when the previous mask had sparsity `reached`."""
    rate = Decimal(str(settings.rate))
    exact = 1 - (1 - reached) * (1 - rate) if settings.rate_of == "remaining" else reached + rate
    return min(exact.quantize(PLACES), target)


def rounds(settings: Settings, target: Decimal, steps_per_epoch: int, total_steps: int) -> list[Round]:
    """Return the rounds that lead to `target`. The last one has the target sparsity, the others nominal ones.

    Raises:
        ConfigError: If the rounds leave no step of the budget T = `total_steps` for training the final mask.
    """
    chain = sparsities(settings, target)
    stops = [0, *(steps_until(settings, index, steps_per_epoch) for index in range(len(chain)))]
    if stops[-1] >= total_steps:
        raise ConfigError(
            f"the rounds exceed the budget: reaching sparsity {target} takes {len(chain)} rounds at rate "
            f"{settings.rate} of the {settings.rate_of} weights, {stops[-1]} steps, and at least one step must be left "
            f"after them; the budget is {total_steps} steps, {stops[-1] + 1 - total_steps} too few. Raise steps or "
            f"rate, or lower segment_fraction (t is now {segment_unit(settings, steps_per_epoch)} steps)"
        )
    return [Round(index, stops[index], stops[index + 1], sparsity) for index, sparsity in enumerate(chain)]


# --- Algorithm 2: look-aheads ----------------------------------------------------------------------------------------


def member(settings: LookAhead, num_examples: int, seed: int, round_index: int, index: int) -> Member:
    """Draw the protocol P_n and the data D_n of look-ahead copy `index` of a round, independently of its sparsity."""
    return copies.draw(settings, num_examples, named_seed("look-ahead", seed=seed, round=round_index, member=index))
