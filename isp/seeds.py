"""Seeds from named axes; the same names and values give the same seed on every machine and Python version."""

from __future__ import annotations

import hashlib


def seed(purpose: str, **axes: int | str) -> int:
    """Return a seed in [0, 2**63) for one purpose at one point of named axes.

    The names of the axes matter, their order does not: `seed("look-ahead", seed=0, round=3, member=2)`.

    Args:
        purpose: Purpose of the random numbers, such as "batch order".
        axes: Coordinates that distinguish this use from others.
    """
    text = "\x1f".join([purpose, *(f"{name}={axes[name]!r}" for name in sorted(axes))])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
