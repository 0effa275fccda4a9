"""What a stage shows of itself: a marker beside its output while it works, and the last line of its log in the end.

`isp status` reads both, also on another machine that shares the folder. A marker says who works and how far it is; its
time of change is renewed while the process lives, and it is removed when the stage ends, however it ends but by a kill.
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
LOST_SECONDS = 120.0
"""A marker that was not renewed for so long is of a process that was killed."""
_KINDS: dict[str, type] = {"host": str, "pid": int, "slurm_job": str, "started": float, "step": int}
"""What a marker says, and of which kind."""
_LONGEST = 10_000
"""Characters of a marker."""
_TOOK = re.compile(r"^wrote .* in ([\d.]+) s after ([\d.]+) s of start-up", re.MULTILINE)


@dataclass
class Shown:
    """A working stage as its marker shows it.

    Attributes:
        steps: of training, how many it has made.
    """

    steps: Callable[[], int] = lambda: 0
    _about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the marker anew; what cannot be written is left: no stage may fail for it."""
        with suppress(OSError):
            path.write_text(json.dumps(self._about | {"step": self.steps()}), encoding="utf-8")


def marker(output: str) -> str:
    """The path of the marker of a job, by its output."""
    folder, _, name = output.rpartition("/")
    return f"{folder}/.{name}.running"


def marked(path: str) -> str | None:
    """The output whose marker a path is; None: it is none."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name[1:-8]}" if name.startswith(".") and name.endswith(".running") else None


@contextmanager
def showing(output: Path) -> Iterator[Shown]:
    """Show that a stage works, if it is one of a study's cells: its output is below `results/<study>/runs/`.

    A thread renews the marker; it keeps nothing alive.
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
        while not ended.wait(RENEW_SECONDS):
            shown.write(path)

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
    """What a marker says: host, pid, slurm_job (under Slurm), started, step; nothing while it is written.

    What is not of its kind is left out.
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
    """Seconds of work and of start-up by the last line of a log that says them; None: none does."""
    found = _TOOK.findall(log)
    return (float(found[-1][0]), float(found[-1][1])) if found else None


def was_stopped(log: str) -> bool:
    """Whether a log ends as that of a stage that was told to stop and saved how far it was (`isp.checkpoints`)."""
    lines = log.strip().splitlines()
    return bool(lines) and lines[-1].startswith("isp: stopped by ")


def is_starting(log: str) -> bool:
    """Whether a log is that of a stage that has said nothing yet, except why it starts cold (`isp.runtime.warm`)."""
    lines = log.strip().splitlines()
    return not lines or lines[-1].startswith(COLD)


def has_finished(log: str) -> bool:
    """Whether a log ends as that of a stage that wrote its output."""
    lines = log.strip().splitlines()
    return bool(lines) and took(lines[-1]) is not None
