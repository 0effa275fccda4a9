"""Errors meant for people: each names the file or key, what is wrong and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isp.masks import Mask
    from isp.training import State


SLOWER = "Lower learning_rate, raise warmup_steps or set clip_norm."
"""Advice for divergence that the training protocol causes."""


class IspError(Exception):
    """Base of every error that bad input can cause; its text is complete and needs no traceback."""


class ConfigError(IspError, ValueError):
    """A setting, name or combination of settings that cannot work."""


class MaskError(IspError, ValueError):
    """A mask that does not fit a model or another mask, or a sparsity that cannot be reached."""


class DataError(IspError):
    """Missing, truncated or malformed data."""


class ArtifactError(IspError):
    """A missing, truncated, altered or foreign artifact file."""


class TrainingDiverged(IspError):
    """The loss, the gradient norm or a trained weight stopped being finite.

    Attributes:
        step: the step whose loss, gradients or update were not finite.
        state: the last good state of the run; of the run itself, too, when it was a look-ahead copy that diverged.
        mask: the mask the run was trained under; None: dense.
        advice: what to change, as a sentence.
    """

    def __init__(
        self,
        problem: str,
        step: int,
        state: State,
        mask: Mask | None,
        advice: str = SLOWER,
    ) -> None:
        self.problem = problem
        self.step = step
        self.state = state
        self.mask = mask
        self.advice = advice
        super().__init__(f"{problem}. The last good state, after {state.step} steps, is kept. {advice}")


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
