"""Instant Soup Pruning as the authors' public code runs it (`clip_assets/code/isp_dynamic.py`, the CLIP half).

The defaults are those of that file. It differs from the paper, and from `isp`, in these settings:

- `round_limit: epochs`: the loop over the epochs of T also counts the rounds. A round trains a share of an epoch, 7.5,
  15, 22.5, … %, but never more than a whole one, so there are at most as many rounds as epochs: 20, which train 13.8
  epochs. If the last round ends above the target, the rest is pruned at once, and the remaining epochs train the
  ticket. At s = 10 % this happens for every target above about 91 %.
- `adjust: target`: a round's mask is the union of the look-ahead masks, not pruned back to the round's sparsity, so
  more weights survive than s implies.
- `rounds: measured`: a round prunes s of what the previous union kept, so the number of rounds is not known in advance.
- `stop_within: 0.05`: less than 5 points from the target, the rest is pruned at once, without look-aheads.
- `look_ahead_fraction: 0.1`: C is a tenth of an epoch (Table 1: 50 steps).
- `optimizer: fresh` and `warmup_steps: 500`: a copy starts a new AdamW and a 500-step warm-up. It trains for only a
  fraction of the warm-up and hardly moves.
- `learning_rate_factors: [1, 1]`, `weight_decays: []`, `data_fraction: 1`: copies differ only in the order of their
  data.
- s = 10 % (Table 1: 15 %), t = 7.5 % of an epoch (the paper's text: about 10 %).

T should be about 20 epochs: with fewer epochs there are fewer rounds, and more is pruned at once. The protocol of the
run is that of the study; the code uses AdamW at 1e-5 with weight decay 0.1, batches of 128 and a warm-up of 500 steps.

Departures from that code:

- There, `attn.out_proj` is stale. `torch.nn.utils.prune` refreshes a masked weight in a hook on the module's forward
  pass, and attention never calls that of `out_proj`. Forward passes, gradients and rankings use its values from the
  last prune event, while the optimizer updates hidden ones. A copy therefore ranks `out_proj` as it was at its start.
- There, a copy's other weights are ranked as they were before its last update, for the same reason.
- There, the learning rate lags by one step: the first update of the run, and of every copy, has rate 0.
- There, after the last of all rounds, the amount left to prune is computed from the sparsity before that round's union,
  so the ticket is sparser than requested (95.5 instead of 95 %). Here it is exact.
- The code assumes that its 20 rounds train 15.75 epochs, but they train 13.8, so it stops after 18.8 of 20 epochs, at
  6 % of the peak rate. Here the ticket trains until step T, where the rate is zero.
- There, a segment is a random choice of the batches of a shuffled epoch, including its last, smaller batch, which
  counts as a whole update; here segments are consecutive whole batches, and t and C are rounded to whole steps.
  CIFAR-100 is not shuffled there, so segments and copies see the same batches of the file in every round.
- The code reports the highest test accuracy of the epochs after the rounds; here the state at step T counts, as for all
  methods. The code seeds which batches are skipped, but neither their order nor the augmentation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family
from isp.methods.isp import Settings as IspSettings
from isp.superposition import Rule

FAMILY: Family = "denoised"
VERSION = 2


class Settings(IspSettings):
    """Settings of `isp` with the defaults of the authors' code."""

    rate: float = Field(default=0.1, ge=0.001, lt=1, description="s, share of the weights pruned in each round")
    look_ahead_steps: int | None = Field(
        default=None, ge=1, description="C, training steps of each copy; an alternative to `look_ahead_fraction`"
    )
    look_ahead_fraction: float | None = Field(
        default=0.1, gt=0, le=1, description="C as a share of the steps of an epoch, instead of `look_ahead_steps`"
    )
    rule: Rule = Field(default="union", description="how the weak masks are superposed")
    adjust: Literal["rounds", "target"] = Field(
        default="target",
        description="whether a union is pruned to the exact sparsity in every round or only at the target",
    )
    rounds: Literal["nominal", "measured"] = Field(
        default="measured",
        description="whether a round's sparsity follows from its number or from the sparsity of the previous mask",
    )
    stop_within: float = Field(
        default=0.05, ge=0, lt=1, description="distance to the target within which the rest is pruned at once"
    )
    round_limit: Literal["budget", "epochs"] = Field(
        default="epochs", description="limit on the rounds: the budget T, or one round per epoch of T"
    )
    optimizer: Literal["inherited", "fresh"] = Field(default="fresh", description="moments with which a copy starts")
    warmup_steps: int = Field(default=500, ge=0, description="steps in which a copy's learning rate rises")
    learning_rate_factors: tuple[float, float] = Field(
        default=(1.0, 1.0), description="range of a copy's factor on the learning rate"
    )
    weight_decays: tuple[float, ...] = Field(
        default=(), description="values from which a copy's weight decay is drawn; none: that of the run"
    )
    data_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the training set in a copy's random subset"
    )
