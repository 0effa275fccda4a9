"""Seeds from named axes; the same names and values give the same seed on every machine and Python version."""

from __future__ import annotations

import hashlib
import operator
from contextlib import suppress
from typing import Any

from isp.errors import ConfigError, shown


def seed(purpose: str, **axes: int | str) -> int:
    """Return a seed in [0, 2**63) for one purpose at one point of named axes.

    The names of the axes matter, their order does not: `seed("look-ahead", seed=0, round=3, member=2)`.

    Args:
        purpose: Purpose of the random numbers, such as "batch order".
        axes: Coordinates that distinguish this use from others. Integers of other kinds, such as NumPy's, count as int.

    Raises:
        ConfigError: If a coordinate is neither an integer nor a text.
    """
    values = {name: value if isinstance(value, str) else integer(name, value) for name, value in axes.items()}
    text = "\x1f".join([purpose, *(f"{name}={values[name]!r}" for name in sorted(values))])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def integer(key: str, value: Any, least: int | None = None) -> int:
    """Return an integer of any kind, such as one of NumPy, as an int.

    Args:
        key: Name of the value in the error message.
        value: Value to convert; a boolean, a fraction and a text are not integers.
        least: Smallest allowed value; None: any.

    Raises:
        ConfigError: If the value is not an integer or too small.
    """
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None or (least is not None and number < least):
        wanted = "an integer" if least is None else f"an integer of at least {least}"
        raise ConfigError(f"{key} = {shown(value)}: must be {wanted}")
    return number
