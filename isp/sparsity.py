"""Sparsities as exact decimals with four places, counts that follow from them, and nominal schedules.

A sparsity is the fraction of prunable weights that are zero, in [0, 1). Binary floating point is never compared with
it: 6 * 0.15 < 0.9 there.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation, localcontext
from typing import Literal

from isp.errors import LONGEST, ConfigError, shown

PLACES = Decimal("0.0001")
RateOf = Literal["remaining", "original"]
Scope = Literal["global", "layer"]
"""Whether weights are ranked over all layers together (the paper), or in each layer for itself."""


def parse_sparsity(value: str | float | Decimal) -> Decimal:
    """The sparsity that `value` names, as a decimal with four places.

    Raises:
        ConfigError: not a number, outside [0, 1), or finer than four decimals.
    """
    try:
        exact = Decimal(str(value))
        rounded = exact.quantize(PLACES)
        inside = 0 <= exact < 1
    except InvalidOperation:
        raise ConfigError(f"sparsity {shown(value)}: not a number; allowed: a decimal in [0, 1), such as 0.9") from None
    text = str(value)[:LONGEST]
    if not inside:
        raise ConfigError(f"sparsity {text}: outside [0, 1); it is the fraction of prunable weights that are zero")
    if rounded != exact:
        raise ConfigError(
            f"sparsity {text}: more than four decimals; the nearest allowed one is {min(rounded, 1 - PLACES)}"
        )
    return abs(rounded)  # -0 is 0, in paths, too


def num_pruned(sparsity: Decimal, num_weights: int) -> int:
    """How many of `num_weights` weights are zero at `sparsity`: round(sparsity * n), halves to even."""
    return round(sparsity * num_weights)


def nominal(index: int, rate: Decimal | float, rate_of: RateOf) -> Decimal:
    """Nominal sparsity after round `index` (0-based) at compression rate `rate` in (0, 1).

    "remaining": 1 - (1 - rate)**(index + 1); "original": (index + 1) * rate. Both are rounded to four places and may
    reach 1, where no ticket is left.
    """
    exact_rate = Decimal(str(rate))
    with localcontext(prec=50):
        exact = 1 - (1 - exact_rate) ** (index + 1) if rate_of == "remaining" else (index + 1) * exact_rate
        return min(exact, Decimal(1)).quantize(PLACES)


def sparsities_to(target: Decimal, rate: Decimal | float, rate_of: RateOf) -> list[Decimal]:
    """The sparsities of rounds 0, 1, … on the way to `target`: nominal ones, then `target` itself.

    A target leaves the chain at the first round whose nominal sparsity reaches it; a target of 0 needs no round. Near
    sparsity 1, where a small rate prunes less than the fourth decimal shows, neighbours may be equal.
    """
    chain: list[Decimal] = []
    while (chain[-1] if chain else 0) < target:
        chain.append(min(nominal(len(chain), rate, rate_of), target))
    return chain
