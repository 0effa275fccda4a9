"""Lottery-ticket hypothesis: iterative magnitude pruning, T steps a round, everything rewound to the initial weights.

Frankle & Carbin 2019; for pre-trained weights Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT
Networks". Departures from Chen et al.: everything rewinds, so that the training of round k + 1 is the ticket at the
sparsity of round k, while their code rewinds the pruned matrices only and leaves biases, norms, embeddings and the task
head as they were trained; and the mask prunes a share of the remaining weights by default (20 %, Frankle & Carbin)
where they take 10 points of the original ones (`rate_of: original`, `rate: 0.1`). With an N:M scope only the last round
imposes the pattern; those before it protect the N highest of every group.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family, Scored

FAMILY: Family = "iterative"
VERSION = 1


class Settings(Scored):
    """How fast the rounds prune."""

    rate: float = Field(default=0.2, ge=0.001, lt=1, description="share of the weights that a round prunes")
    rate_of: Literal["remaining", "original"] = Field(default="remaining", description="what `rate` is a share of")
