"""Forbid starting processes in tests that are not marked for it, so that `make check` stays fast.

Python reports every process that it starts to an audit hook. A test without the marker `process` that starts one is
stopped at this point, and fails even if the code under test catches the exception.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

EVENTS = frozenset(
    ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn")
)
"""Audit events of starting processes; https://docs.python.org/3/library/audit_events.html."""
MARKERS = frozenset(("process", "slurm"))
_refusing: list[list[str]] = []
"""Processes that tests without the marker started, one list per test; the last belongs to the current test."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS and _refusing:
        started = f"{event} {arguments[:2] if arguments else ''}"
        _refusing[-1].append(started)
        pytest.fail(f"starts a process without being marked `process`: {started}")


def install() -> None:
    """Watch this process from now on; an audit hook cannot be removed."""
    sys.addaudithook(_audit)


@contextmanager
def refused(test: pytest.Item) -> Iterator[None]:
    """Forbid starting a process while the context is open, unless a test is marked for it.

    Raises:
        pytest.fail.Exception: A process would have been started; raised at once, and again at the end if it was caught.
    """
    if any(marker.name in MARKERS for marker in test.iter_markers()):
        yield
        return
    started: list[str] = []
    _refusing.append(started)
    try:
        yield
    finally:
        _refusing.pop()
    if started:
        pytest.fail(f"starts processes without being marked `process`: {'; '.join(started)}")
