"""A progress bar for whoever waits: in a terminal and in a notebook, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_watched() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return sys.stderr.isatty() or type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def advancing(progress: Callable[[int], None] | bool | None, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A context with a function that is called with every number of steps done.

    Args:
        progress: The function, or whether a bar is drawn; None: if anybody watches.
        total: Number of steps, at most.
        what: Text before the bar.
    """
    if callable(progress):
        yield progress
        return
    if not (is_watched() if progress is None else progress):
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit="step", dynamic_ncols=True) as bar:
        yield bar.update
        bar.total = bar.n  # fewer where the number of rounds depends on what is measured
        bar.refresh()
