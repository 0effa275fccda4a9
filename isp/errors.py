"""User-facing errors. Each names the offending file or key, the problem and the allowed values."""

from __future__ import annotations

from collections.abc import Iterable


class IspError(Exception):
    """Base class of all errors caused by bad input; its text is complete and needs no traceback."""


class ConfigError(IspError, ValueError):
    """A setting, name or combination of settings that cannot work."""


class MaskError(IspError, ValueError):
    """A mask that does not fit a model or another mask, or a sparsity that cannot be reached."""


class DataError(IspError):
    """Missing, truncated or malformed data."""


class ArtifactError(IspError):
    """A missing, truncated, altered or foreign artifact file.

    Attributes:
        kind: Kind of the required artifact if remaking it helps, otherwise "".
        path: Path of the required artifact, which may tell which stage makes it.
    """

    def __init__(self, problem: str, kind: str = "", path: object = "") -> None:
        self.kind, self.path = kind, str(path)
        super().__init__(problem)


REMAKE = "delete it and remake it"
"""End of a message about a file that a stage writes."""


def remake(made_by: str) -> str:
    """Return the end of a message about a file that the stage `made_by` writes."""
    return f"{REMAKE} (stage: {made_by})"


LONGEST = 200
"""Largest number of characters of a value in a message."""
SHORT = 4
"""Largest number of letters of a name whose half is enough for a suggestion: `f1` for `f2`."""


def shown(value: object) -> str:
    """Format a value for a message: its `repr`, cut at `LONGEST` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = "a number of too many digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def expect(name: str, value: object, what: str, *types: type) -> None:
    """Refuse an argument of another type than `types`.

    Args:
        name: Name of the argument.
        value: Its value.
        what: Description of the allowed values, for the message.
        types: Allowed types.

    Raises:
        ConfigError: If the value has another type.
    """
    if isinstance(value, types):
        return
    if isinstance(value, type):
        kind = f"the class {value.__name__}"
    elif value is None or isinstance(value, (str, bool, int, float)):
        kind = shown(value)
    else:
        kind = f"an object of class {type(value).__name__}"
    raise ConfigError(f"{name}: must be {what}, got {kind}")


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: the name, the nearest allowed one, and all allowed ones."""
    import difflib  # not at the top, because every client of the fork server imports this module

    names = sorted(allowed)
    text = str(name)[:LONGEST]
    # Half of the letters of a long name also occur in names that have nothing to do with it.
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5 if len(text) <= SHORT else 0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {shown(name)}{hint} (allowed: {', '.join(names) or 'none'})"


def reason(error: Exception) -> str:
    """Return the type and message of another library's error in one line of at most some 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
