"""Instant Soup Pruning as the authors' public code really behaves (`clip_assets/code/isp_dynamic.py`), CLIP half.

It differs from the paper, and from `isp`, in what is a setting of its own each:

- `rule: union` and `adjust: target`: a round's mask is the union of the look-ahead masks alone, and it is not pruned
  back to the round's sparsity, so that more weights live on than s says (`isp`: mean magnitude, exact in every round).
- `rounds: measured`: a round prunes s of what the union has left, so their number is not known beforehand.
- `stop_within: 0.05`: less than 5 points from the target the rest is pruned at once, without look-aheads.
- `optimizer: fresh` and `warmup_steps: 500`: a copy starts AdamW anew and warms up for 500 steps, of which it does a
  few dozen (C is a tenth of an epoch there: `look_ahead_steps`), so that it hardly moves.
- `learning_rate_factors: [1, 1]`, `weight_decays: []`, `data_fraction: 1`: copies differ in the order of their data
  only.
- s = 10 % and t = 7.5 % of an epoch, where Table 1 says 15 % and the text about 10 %.

Departures: the code reports the largest test accuracy of the last epochs, here as everywhere the state at step T
counts; it sets no seeds, drops batches at random where segments here are consecutive, and trains stale weights of the
attention output under `torch.nn.utils.prune`, which cannot be asked for here. If the budget has no room for another
round, the rest is pruned at once; the code would go on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family
from isp.methods import isp as _isp

FAMILY: Family = "denoised"
VERSION = 1


class Settings(_isp.Settings):
    """As `isp`, with the code's choices for defaults."""

    rate: float = Field(default=0.1, ge=0.001, lt=1, description="s, share of the weights that a round prunes")
    rule: _isp.Rule = Field(default="union", description="how the weak masks are superposed")
    adjust: Literal["rounds", "target"] = Field(default="target", description="when a union is made exact")
    rounds: Literal["nominal", "measured"] = Field(default="measured", description="what a round's sparsity follows")
    stop_within: float = Field(
        default=0.05, ge=0, lt=1, description="how close to the target the rest is pruned at once"
    )
    optimizer: Literal["inherited", "fresh"] = Field(default="fresh", description="moments that a copy starts with")
    warmup_steps: int = Field(default=500, ge=0, description="steps in which a copy's learning rate rises")
    learning_rate_factors: tuple[float, float] = Field(default=(1.0, 1.0), description="range of a copy's factor")
    weight_decays: tuple[float, ...] = Field(default=(), description="that a copy draws from; none: the run's own")
    data_fraction: float = Field(default=1.0, gt=0, le=1, description="share of the training set a copy draws from")
