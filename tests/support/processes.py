"""Refuse to start processes in tests that are not marked for it, so that `make check` stays quick.

Python tells an audit hook of every process that it starts. A test without the marker `process` that starts one is
stopped there, and fails even if the code under test swallows that.
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
"""Audit events of processes that start; https://docs.python.org/3/library/audit_events.html."""
MARKERS = frozenset(("process", "slurm"))
_refusing: list[list[str]] = []
"""What the tests that must start no process started; the last is the current one's."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS and _refusing:
        started = f"{event} {arguments[:2] if arguments else ''}"
        _refusing[-1].append(started)
        pytest.fail(f"starts a process without being marked `process`: {started}")


def install() -> None:
    """Watch this process from now on; a hook cannot be removed again."""
    sys.addaudithook(_audit)


@contextmanager
def refused(test: pytest.Item) -> Iterator[None]:
    """Refuse to start a process within, unless a test is marked for it.

    Raises:
        pytest.fail.Exception: One was to be started; at once, and at the end, where the first was caught.
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
