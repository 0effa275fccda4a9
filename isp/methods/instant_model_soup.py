"""Instant Model Soup: briefly trained weak subnetworks are mixed into the initial weights before one fine-tuning run.

Jaiswal et al., ICML 2023, Algorithm 3 and Table 6, dense to dense. K times, the initial weights are pruned by magnitude
to a sparsity s_k and trained for about 100 steps under a protocol H_k on a random subset D_k of the data. The weak
subnetworks are interpolated with the running weights one after the other, each with the coefficient that scores best on
validation examples (Ilharco et al. 2022, "Patching open-vocabulary models by interpolating weights"). A coefficient of
0 leaves a subnetwork out, so the validation score never falls. The result is fine-tuned for T steps. Evaluations are
counted as cost.

The paper does not specify sparsities, protocols and coefficients. Here s_k is drawn from `sparsities`, and H_k and D_k
are drawn like those of the look-aheads of `isp`, starting at step 0 of the run's schedule. With `warmup_steps`, the
learning rate instead rises to the run's peak and falls to zero, so that subnetworks learn something even if the run's
own warm-up is longer than their training. `optimizer` makes no difference here, because there are no moments at the
initial weights.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import Field, field_validator

from isp.copies import LookAhead, Member, draw
from isp.lazy import torch
from isp.methods import Family, Scored
from isp.seeds import seed as named_seed
from isp.sparsity import parse_sparsity

FAMILY: Family = "instant"
VERSION = 2


class Settings(LookAhead, Scored):
    """Weak subnetworks and how they are mixed."""

    subnetworks: int = Field(
        default=8, ge=0, le=1000, description="K, number of weak subnetworks; 0: plain fine-tuning"
    )
    sparsities: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.5), min_length=1, description="values from which a sparsity s_k is drawn"
    )
    look_ahead_steps: int = Field(default=100, ge=1, le=10**9, description="training steps of each subnetwork")
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="steps in which a subnetwork's learning rate rises to the run's peak, before it falls to zero in "
        "as many; 0: it starts at step 0 of the run's schedule",
    )
    coefficients: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        description="shares of a subnetwork in the interpolation, in [0, 1] and including 0; ties go to the smallest",
    )

    @field_validator("sparsities")
    @classmethod
    def _above_zero(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(parse_sparsity(value) > 0 for value in values):
            raise ValueError(f"{list(values)}: must be decimals in (0, 1)")
        return values

    @field_validator("coefficients")
    @classmethod
    def _with_zero(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if 0 not in values or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{list(values)}: must be numbers in [0, 1], including 0")
        return values

    def of_subnetwork(self) -> dict[str, Any]:
        """Return the settings on which a weak subnetwork depends, as JSON values."""
        return self.model_dump(mode="json", exclude={"subnetworks", "coefficients"})


def member(settings: Settings, num_examples: int, seed: int, index: int) -> Member:
    """Draw the protocol H_k and the data D_k of weak subnetwork `index`, independently of the number of subnetworks."""
    return draw(settings, num_examples, named_seed("weak subnetwork", seed=seed, member=index))


def sparsity(settings: Settings, seed: int, index: int) -> Decimal:
    """Draw s_k, the sparsity of weak subnetwork `index`."""
    generator = torch.Generator().manual_seed(named_seed("subnetwork sparsity", seed=seed, member=index))
    return parse_sparsity(settings.sparsities[int(torch.randint(len(settings.sparsities), (), generator=generator))])
