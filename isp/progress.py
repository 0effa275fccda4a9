"""Progress bar in a terminal or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_watched() -> bool:
    """Return whether standard error is a terminal, or this is a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return sys.stderr.isatty() or type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def advancing(progress: Callable[[int], None] | bool | None, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Provide a function that is called with every number of completed steps.

    Args:
        progress: Function to use, or whether to draw a bar; None: draw it in a terminal or notebook.
        total: Number of steps, an upper bound.
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
        bar.total = bar.n  # fewer than planned if the number of rounds depends on measured sparsities
        bar.refresh()
