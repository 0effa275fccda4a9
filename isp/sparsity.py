"""Sparsities as exact decimals with four places, the counts that follow from them, and nominal schedules.

A sparsity is the fraction of prunable weights that are zero, in [0, 1). It is never compared with binary floating-point
numbers, in which 6 * 0.15 < 0.9.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from isp.errors import LONGEST, ConfigError, shown

PLACES = Decimal("0.0001")
RateOf = Literal["remaining", "original"]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """N:M sparsity, which keeps N of every M consecutive weights along a layer's inputs.

    Attributes:
        n: Number of weights kept in a group, 1 to m - 1.
        m: Number of weights in a group.
    """

    n: int
    m: int

    @property
    def sparsity(self) -> Decimal:
        """Sparsity of the pattern, 1 - n / m, with four places."""
        return (1 - Decimal(self.n) / self.m).quantize(PLACES)


def parse_scope(scope: str) -> Pattern | None:
    """Return the N:M pattern that a scope names, or None for "global" and "layer".

    Raises:
        ConfigError: If the scope is invalid, or the sparsity of its pattern has more than four decimals, such as 1:3.
    """
    if scope in ("global", "layer"):
        return None
    match = re.fullmatch(r"([1-9]\d{0,4}):([1-9]\d{0,4})", scope)
    pattern = Pattern(n=int(match[1]), m=int(match[2])) if match else None
    if pattern is None or pattern.n >= pattern.m:
        raise ConfigError(
            f"scope = {shown(scope)}: must be 'global', 'layer', or a pattern 'N:M' with 1 <= N < M, such as '2:4'"
        )
    if pattern.m * (1 - pattern.sparsity) != pattern.n:
        raise ConfigError(
            f"scope = {shown(scope)}: sparsities have four decimals, and 1 - {pattern.n}/{pattern.m} has more; choose "
            "a pattern such as '2:4', '1:4' or '4:8'"
        )
    return pattern


def _check_scope(scope: Any) -> str:
    """Validate a scope from a settings file; YAML reads 2:4 without quotes as the number 124."""
    if isinstance(scope, int) and scope > 60:
        text = f"{scope // 60}:{scope % 60}"
        raise ValueError(f'scope = {shown(scope)}: put a pattern in quotes, "{text}"; YAML reads {text} as a number')
    parse_scope(scope if isinstance(scope, str) else str(scope))
    return str(scope)


Scope = Annotated[str, BeforeValidator(_check_scope)]
"""Scope in which weights are ranked: all layers together ("global", the paper), each layer on its own ("layer"), or
groups of M along a layer's inputs ("N:M", such as "2:4")."""


def parse_sparsity(value: str | float | Decimal) -> Decimal:
    """Return the sparsity `value` as a decimal with four places.

    Raises:
        ConfigError: If it is not a number, is outside [0, 1), or has more than four decimals.
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
    return abs(rounded)  # -0 is 0, also in paths


def num_pruned(sparsity: Decimal, num_weights: int) -> int:
    """Return the number of `num_weights` weights that are zero at `sparsity`: round(sparsity * n), halves to even."""
    return round(sparsity * num_weights)


def nominal(index: int, rate: Decimal | float, rate_of: RateOf) -> Decimal:
    """Return the nominal sparsity after round `index` (0-based) at compression rate `rate` in (0, 1).

    "remaining": 1 - (1 - rate)**(index + 1); "original": (index + 1) * rate. Both are rounded to four places and may
    reach 1, at which no ticket exists.
    """
    exact_rate = Decimal(str(rate))
    with localcontext(prec=50):
        exact = 1 - (1 - exact_rate) ** (index + 1) if rate_of == "remaining" else (index + 1) * exact_rate
        return min(exact, Decimal(1)).quantize(PLACES)


def sparsities_to(target: Decimal, rate: Decimal | float, rate_of: RateOf) -> list[Decimal]:
    """Return the sparsities of rounds 0, 1, … on the way to `target`: nominal ones, then `target` itself.

    A target leaves the chain at the first round whose nominal sparsity reaches it; a target of 0 needs no round. Near
    sparsity 1, where a small rate may prune less than four decimals can show, neighbours may be equal.
    """
    chain: list[Decimal] = []
    while (chain[-1] if chain else 0) < target:
        chain.append(min(nominal(len(chain), rate, rate_of), target))
    return chain
