"""Lottery-ticket hypothesis: iterative magnitude pruning, T steps per round, with everything rewound to step 0.

Frankle & Carbin 2019; for pre-trained weights Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT
Networks". Departures from Chen et al.: everything is rewound, so that the training of round k + 1 is the ticket at the
sparsity of round k; their code rewinds only the pruned matrices and leaves biases, norms, embeddings and the task head
trained. By default each round prunes a share of the remaining weights (20 %, Frankle & Carbin); theirs prunes 10 points
of the original ones (`rate_of: original`, `rate: 0.1`). With an N:M scope only the last round imposes the pattern;
earlier rounds never prune the N highest weights of a group.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isp.methods import Family, Scored

FAMILY: Family = "iterative"
VERSION = 1


class Settings(Scored):
    """Pruning rate of the rounds."""

    rate: float = Field(default=0.2, ge=0.001, lt=1, description="share of the weights pruned in each round")
    rate_of: Literal["remaining", "original"] = Field(
        default="remaining", description="whether `rate` is a share of the remaining or of the original weights"
    )
