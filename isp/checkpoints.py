"""Checkpoints of long stages: a file in the folder of the output, from which a restarted stage resumes.

Snakemake deletes the outputs of a failed job, but not files that it does not know. A checkpoint is written every few
minutes, and when SIGTERM or SIGUSR1 announces the end of an allocation or of a job's time. It contains the exact state
of the stage's current run and the variables of a loop of several runs (`Trainer.resumed`). A checkpoint with other
settings, inputs or versions, or a damaged one, is deleted with a line in the log, and training restarts from step 0.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isp import artifacts
from isp.costs import Cost
from isp.errors import ArtifactError, IspError
from isp.superposition import Superposition
from isp.training import Progress, State
from isp.untrusted import printable

SECONDS = 300.0
"""Seconds between two checkpoints, unless ISP_CHECKPOINT_SECONDS is set."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
VERSION = 2
"""Version of the content of a file, raised when it changes; a file of another version is deleted."""


def beside(output: Path) -> Path:
    """Return the path of an output's checkpoint."""
    return output.with_name(f"{output.stem}.checkpoint.safetensors")


def forget(*outputs: Path | None) -> None:
    """Delete the checkpoints of outputs that cannot be lost any more, unless another stage has already deleted them.

    `isp.stages._work.resumable` says which stages may call this (`grouped`).

    Args:
        outputs: Paths of outputs; None is ignored.
    """
    for output in outputs:
        if output is not None:
            beside(output).unlink(missing_ok=True)


def period() -> float:
    """Return the seconds between two checkpoints; 0: one after every step.

    Raises:
        IspError: If ISP_CHECKPOINT_SECONDS is not a valid number.
    """
    text = os.environ.get("ISP_CHECKPOINT_SECONDS", str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise IspError(f"ISP_CHECKPOINT_SECONDS must be seconds, such as 180, or 0 for every step, got {text!r}")
    return seconds


class Stopped(BaseException):
    """Signal that arrived while there was no state to save.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


class FileCheckpoint:
    """Checkpoint of a stage in a file, with the interface of `Trainer.checkpoint`.

    If a stage makes several runs without reporting progress (`Trainer.resumed`), only the first run is saved.

    Args:
        path: Path of the file, from `beside`.
        identity: JSON values that determine the result of the stage. A file with other values is deleted.
        seconds: Seconds between two checkpoints, from `period`.
        worked: Function that returns the seconds of work so far, which are also saved.

    Attributes:
        earlier: Seconds of work, by earlier processes, up to the state from which the stage resumes.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], seconds: float, worked: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.path = path
        self.earlier = 0.0
        self._identity = json.loads(json.dumps({**identity, "checkpoints": VERSION}, default=str))
        self._seconds, self._worked = seconds, worked
        self._next = time.monotonic() + seconds
        self._progress: Any = None
        self._runs = self._until = 0
        self._training = self._ended = False
        self._signal: int | None = None
        self._found = self._load()

    # --- interface for a trainer

    @contextmanager
    def leg(self, state: State, until: int) -> Iterator[tuple[Cost, State]]:
        """Implement `training.Checkpoint.leg`; a signal inside lets the step finish, one outside ends the process.

        Raises:
            Stopped: If a signal arrived after the last step.
        """
        if self._found is not None and "progress" in self._found and self._progress is None:
            self._ignore("made by a loop of several runs, but this is a single run")
        self._runs += 1
        self._until, spent = until, Cost()
        if self._found is not None:
            spent, state, reached = self._found["spent"], self._found["state"], self._found["until"]
            if until != reached:
                raise IspError(f"{self.path}: belongs to a run to step {reached}, not to step {until}; delete it")
            self._found = None
            print(f"resuming from step {state.step} of a run to step {until}: {self.path}", file=sys.stderr, flush=True)
        self._training = True
        try:
            yield spent, state
        finally:
            self._training = False
        if self._signal is not None:
            self._ended = True
            raise Stopped(self._signal)

    def due(self) -> bool:
        """Return whether the time is up or a signal arrived."""
        return self._signal is not None or (time.monotonic() >= self._next and self._can_go_on)

    def keep(self, state: State, spent: Cost) -> None:
        """Write the file; if the disk is full, report it and continue training.

        Raises:
            SystemExit: If a signal arrived; the status is 128 + its number.
            Stopped: If a signal arrived and this run cannot be resumed.
        """
        kept = self._can_go_on and self._save(state, spent)
        self._next = time.monotonic() + self._seconds
        if self._signal is None:
            return
        self._ended = True
        if not kept:
            raise Stopped(self._signal)
        name = signal.Signals(self._signal).name
        stopped = f"isp: stopped by {name} at step {state.step}; will resume from there: {self.path}"
        print(stopped, file=sys.stderr, flush=True)
        raise SystemExit(128 + self._signal)

    def loop(self, progress: Progress) -> Progress:
        """Implement `training.Checkpoint.loop`."""
        assert self._progress is None, "a checkpoint serves one loop"
        assert self._runs == 0, "the loop has already begun"
        if self._found is not None:
            kept = self._found.get("progress")
            if not isinstance(kept, dict) or kept.keys() != {each.name for each in fields(progress)}:  # type: ignore[arg-type]
                self._ignore("made by another loop")
            else:
                progress = type(progress)(**kept)
        self._progress = progress
        return progress

    # --- interface for a stage

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Let the step finish on SIGTERM or SIGUSR1 in this context; outside of a run they end the process as usual.

        Partly written files are cleaned up. This works only in the main thread; in others it has no effect.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
        except Stopped as stopped:
            signal.raise_signal(stopped.number)
            raise SystemExit(128 + stopped.number) from None  # the caller had the signal ignored

    def remove(self) -> None:
        """Delete the file after the output has been written."""
        self.path.unlink(missing_ok=True)

    # --- internals

    @property
    def _can_go_on(self) -> bool:
        return self._runs == 1 or self._progress is not None

    def _stop(self, number: int, frame: object) -> None:
        if self._training:
            self._signal = self._signal or number
        elif not self._ended:
            self._ended = True
            raise Stopped(number)

    def _save(self, state: State, spent: Cost) -> bool:
        content: dict[str, Any] = {"spent": spent, "until": self._until, "state": state}
        if self._progress is not None:
            content["progress"] = {each.name: getattr(self._progress, each.name) for each in fields(self._progress)}
        tensors: dict[str, Tensor] = {}
        packed = pack(content, tensors)
        about = {"identity": self._identity, "seconds": self.earlier + self._worked()}
        try:
            artifacts.save_checkpoint(self.path, tensors, packed, about)
        except IspError as error:
            print(f"no checkpoint: {printable(error)}", file=sys.stderr, flush=True)
            return False
        return True

    def _load(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            tensors, content, about = artifacts.load_checkpoint(self.path)
        except ArtifactError:
            self._ignore("damaged")
            return None
        theirs, ours = about["identity"], self._identity
        others = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if others:
            self._ignore(f"made with other values of {', '.join(others)}")
            return None
        self.earlier = float(about["seconds"])
        progress: dict[str, Any] = unpack(content, tensors)
        return progress

    def _ignore(self, why: str) -> None:
        self._found, self.earlier = None, 0.0
        self.remove()
        print(f"{self.path}: {printable(why)}; it was deleted, and training restarts", file=sys.stderr, flush=True)


# --- any progress as tensors and JSON ---------------------------------------------------------------------------------

_CLASSES: dict[str, Callable[..., Any]] = {"Cost": Cost, "State": State, "Superposition": Superposition}


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON, moving its tensors into `tensors` under numbers.

    Raises:
        TypeError: If the value is not made of tensors, numbers, strings, booleans, None, costs, states,
            superpositions, and dicts (with string keys) and lists of these.
    """
    if isinstance(value, Tensor):
        number = str(len(tensors))
        tensors[number] = value
        return {"tensor": number, "device": str(value.device)}
    if isinstance(value, Decimal):
        return {"Decimal": str(value)}
    if is_dataclass(value) and type(value).__name__ in _CLASSES:
        return {type(value).__name__: {each.name: pack(getattr(value, each.name), tensors) for each in fields(value)}}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(each, tensors) for key, each in value.items()}}
    if isinstance(value, list):
        return [pack(each, tensors) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} {value!r}: not supported in the progress of a loop")


def unpack(content: Any, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Any:
    """Return the value given to `pack`, with its tensors on their original devices or on another one."""
    if isinstance(content, list):
        return [unpack(each, tensors, device) for each in content]
    if not isinstance(content, dict):
        return content
    if "tensor" in content:
        return tensors[content["tensor"]].to(device or content["device"])
    if "Decimal" in content:
        return Decimal(content["Decimal"])
    ((kind, values),) = content.items()
    values = {key: unpack(each, tensors, device) for key, each in values.items()}
    return values if kind == "dict" else _CLASSES[kind](**values)
