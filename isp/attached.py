"""Pruners whose hooks are on parameters, so that one that was never closed does not disturb a later training.

A loop that is left by an error, or a Trainer by Ctrl-C, does not call `Pruner.close`. The hooks then remain on the
parameters and would mask the gradients of any later training. Nobody may have a reference to such a pruner, so it is
closed here instead of being refused.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from isp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Attached(Protocol):
    """Part of a `Pruner` that this module uses.

    Attributes:
        optimizer: Optimizer of its run.
        num_updates: Number of updates of that optimizer, including those of look-aheads.
    """

    optimizer: Optimizer
    num_updates: int

    @property
    def complete(self) -> bool:
        """Return whether the run has ended."""

    @property
    def progress(self) -> str:
        """Return a description of the run."""

    def masks_any(self, parameters: Iterable[Tensor]) -> bool:
        """Return whether one of the parameters has a hook of this pruner."""

    def close(self) -> None:
        """Remove the hooks."""


_ATTACHED: WeakSet[Attached] = WeakSet()
_BEFORE: WeakKeyDictionary[Optimizer, dict[int, int]] = WeakKeyDictionary()
"""Numbers of updates of the attached pruners when a step of another optimizer began, by the pruner's id."""
_LOOKING_AHEAD: dict[int, tuple[Optimizer, str]] = {}
"""Optimizer and description of the look-aheads in progress, by the optimizer's id."""
_watching: list[Any] = []


def add(pruner: Attached) -> None:
    """Register a pruner whose hooks were added."""
    if not _watching:  # once for all pruners, without a reference to any, so that a model is freed with its pruner
        _watching.append(register_optimizer_step_pre_hook(_before_update))
        _watching.append(register_optimizer_step_post_hook(_after_update))
    _ATTACHED.add(pruner)


def remove(pruner: Attached) -> None:
    """Forget a pruner whose hooks were removed."""
    _ATTACHED.discard(pruner)


def detach(parameters: Iterable[Tensor], whose: str, stacklevel: int) -> None:
    """Close the pruners that are attached to one of the parameters, with a warning unless their run is complete.

    Args:
        parameters: Parameters that are going to be trained or pruned.
        whose: Name of the function that trains them, for the warning.
        stacklevel: Number of callers between this function and the user's code, plus one.
    """
    parameters = list(parameters)
    for pruner in [each for each in _ATTACHED if each.masks_any(parameters)]:
        pruner.close()
        if not pruner.complete:
            warnings.warn(
                f"{whose}: closed a Pruner ({pruner.progress}) that was still attached to this model, because its "
                "hooks would mask gradients of the new run; call pruner.close() when you end a run early",
                stacklevel=stacklevel + 1,
            )


@contextmanager
def looking_ahead(pruner: Attached, whose: str) -> Iterator[None]:
    """Let other pruners ignore the updates of a look-ahead, and refuse updates by other optimizers.

    Args:
        pruner: Pruner of the look-ahead, which restores everything afterwards.
        whose: Name of the function that trains the copy, for the message.
    """
    _LOOKING_AHEAD[id(pruner.optimizer)] = pruner.optimizer, whose
    try:
        yield
    finally:
        del _LOOKING_AHEAD[id(pruner.optimizer)]


def is_looking_ahead(optimizer: Optimizer) -> bool:
    """Return whether a pruner trains a look-ahead copy with this optimizer now."""
    return id(optimizer) in _LOOKING_AHEAD


def _before_update(optimizer: Optimizer, *_: Any) -> None:
    for looking, whose in _LOOKING_AHEAD.values():
        if optimizer is not looking and not _wraps(optimizer, looking) and not is_updating(looking, sys._getframe(1)):
            raise ConfigError(
                f"{whose}: made an update with another optimizer ({type(optimizer).__name__}), whose state would not "
                "be restored; look-aheads need one optimizer for the whole model"
            )
    if _ATTACHED:
        _BEFORE[optimizer] = {id(pruner): pruner.num_updates for pruner in _ATTACHED}


def _after_update(optimizer: Optimizer, *_: Any) -> None:
    """Close the pruners that have masked the gradients of an update by another optimizer, with a warning.

    An optimizer whose step contains a step of the pruner's, or is part of one, is not another one: wrappers such as
    Lookahead and SAM.
    """
    before = _BEFORE.pop(optimizer, {})
    others = [each for each in _ATTACHED if each.optimizer is not optimizer]
    if not others:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for pruner in others:
        contains = pruner.num_updates != before.get(id(pruner), pruner.num_updates)
        if contains or not pruner.masks_any(parameters) or is_updating(pruner.optimizer, sys._getframe(1)):
            continue
        pruner.close()
        warnings.warn(
            f"optimizer.step(): a Pruner ({pruner.progress}) was still attached to parameters that another optimizer "
            f"({type(optimizer).__name__}) has updated, and has masked their gradients in this update. It is closed "
            "now and masks nothing more; start this training again if it must be exact, and call pruner.close() after "
            "every run of a Pruner",
            stacklevel=3,
        )


def _wraps(optimizer: Optimizer, other: Optimizer) -> bool:
    """Return whether an optimizer contains another one, directly, in a list or dict, or within a third."""
    seen: set[int] = set()
    waiting: list[Any] = [optimizer]
    while waiting:
        value = waiting.pop()
        if value is other:
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Optimizer):
            waiting += [each for key, each in vars(value).items() if key not in ("state", "param_groups")]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return False


def is_updating(optimizer: Optimizer, hooked: Any) -> bool:
    """Return whether a step of the optimizer is among the callers of `hooked`, torch's frame around a step.

    The stack of calls tells, and not a counter of both kinds of hooks, because torch omits the hook after an update if
    the update raises.
    """
    frame = hooked.f_back
    while frame is not None:
        if frame.f_code is hooked.f_code and any(value is optimizer for value in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False
