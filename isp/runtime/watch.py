"""State of a running stage, visible from outside: a marker beside its output, and the last line of its log.

`isp status` reads both, possibly on another machine that shares the folder. A marker contains the process and its
progress. Its modification time is updated while the process lives, and it is removed when the stage exits in any way
other than by SIGKILL.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isp.runtime.warm import COLD

RENEW_SECONDS = 20.0
"""Longest time in seconds between two renewals of a marker; the first comes after a second."""
LOST_SECONDS = 120.0
"""Age in seconds at which a marker is assumed to belong to a killed process."""
_KINDS: dict[str, type] = {"host": str, "pid": int, "slurm_job": str, "started": float, "step": int}
"""Entries of a marker and their types."""
_LONGEST = 10_000
"""Maximum length of a marker in characters."""
_TOOK = re.compile(r"^wrote .* in ([\d.]+) s after ([\d.]+) s of start-up", re.MULTILINE)


@dataclass
class Shown:
    """Contents of the marker of a running stage.

    Attributes:
        steps: Function that returns the number of training steps so far.
    """

    steps: Callable[[], int] = lambda: 0
    _about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Rewrite the marker. Errors are ignored, because no stage may fail because of its marker."""
        with suppress(OSError):
            path.write_text(json.dumps(self._about | {"step": self.steps()}), encoding="utf-8")


def marker(output: str) -> str:
    """Return the path of the marker of the job with this output."""
    folder, _, name = output.rpartition("/")
    return f"{folder}/.{name}.running"


def marked(path: str) -> str | None:
    """Return the output of the job whose marker has this path; None if it is not the path of a marker."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name[1:-8]}" if name.startswith(".") and name.endswith(".running") else None


@contextmanager
def showing(output: Path) -> Iterator[Shown]:
    """Maintain the marker of a stage while the context is open, if its output is below `results/<study>/runs/`.

    A daemon thread updates the marker.
    """
    about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    if "SLURM_JOB_ID" in os.environ:
        about["slurm_job"] = os.environ["SLURM_JOB_ID"]
    shown, path = Shown(_about=about), Path(marker(output.as_posix()))
    if output.parts[:1] != ("results",) or output.parts[2:3] != ("runs",):
        yield shown
        return
    ended = threading.Event()

    def renew() -> None:
        pause = min(1.0, RENEW_SECONDS)  # doubles: the steps of a short stage show, and a long one is not disturbed
        while not ended.wait(pause):
            shown.write(path)
            pause = min(2 * pause, RENEW_SECONDS)

    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    shown.write(path)
    thread = threading.Thread(target=renew, daemon=True, name="shows that the stage is alive")
    thread.start()
    try:
        yield shown
    finally:
        ended.set()
        thread.join(timeout=5)
        with suppress(OSError):
            path.unlink()


def read_marker(path: Path) -> Mapping[str, Any]:
    """Read a marker: host, pid, slurm_job (under Slurm), started, step. Empty while the marker is being written.

    Entries of the wrong type are omitted.
    """
    with suppress(OSError, ValueError, RecursionError):
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(_LONGEST))
        if isinstance(content, dict):
            return {key: content[key] for key, kind in _KINDS.items() if _is_of(content.get(key), kind)}
    return {}


def _is_of(value: object, kind: type) -> bool:
    return type(value) is kind and (not isinstance(value, float) or math.isfinite(value))


def took(log: str) -> tuple[float, float] | None:
    """Return the seconds of work and of start-up from the last line of a log with them; None if there is none."""
    matches = _TOOK.findall(log)
    return (float(matches[-1][0]), float(matches[-1][1])) if matches else None


def was_stopped(log: str) -> bool:
    """Return whether a log ends like that of a stage that was stopped and saved a checkpoint (`isp.checkpoints`)."""
    lines = log.strip().splitlines()
    return bool(lines) and lines[-1].startswith("isp: stopped by ")


def is_starting(log: str) -> bool:
    """Return whether a log is empty, except for why the stage starts without the fork server (`isp.runtime.warm`)."""
    lines = log.strip().splitlines()
    return not lines or lines[-1].startswith(COLD)


def has_finished(log: str) -> bool:
    """Return whether a log ends like that of a stage that wrote its output."""
    lines = log.strip().splitlines()
    return bool(lines) and took(lines[-1]) is not None
