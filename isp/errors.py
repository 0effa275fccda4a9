"""Errors meant for people: each names the file or key, what is wrong and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IspError(Exception):
    """Base of every error that bad input can cause; its text is complete and needs no traceback."""


class ConfigError(IspError, ValueError):
    """A setting, name or combination of settings that cannot work."""


class MaskError(IspError, ValueError):
    """A mask that does not fit a model or another mask, or a sparsity that cannot be reached."""


class DataError(IspError):
    """Missing, truncated or malformed data."""


class ArtifactError(IspError):
    """A missing, truncated, altered or foreign artifact file.

    Attributes:
        kind: Kind of artifact that is needed, where making it again helps; "": another file.
    """

    def __init__(self, problem: str, kind: str = "") -> None:
        self.kind = kind
        super().__init__(problem)


LONGEST = 200
"""Largest number of characters of a value in a message."""


def shown(value: object) -> str:
    """Format a value for a message: its `repr`, cut at `LONGEST` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = "a number of too many digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Text for an unknown name: what it was, the nearest allowed one, all allowed ones."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name)[:LONGEST], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {shown(name)}{hint} (allowed: {', '.join(names) or 'none'})"
