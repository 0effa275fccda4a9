"""Checkpoints of long stages: a file beside the output, from which the same stage goes on when it is begun again.

Snakemake deletes the outputs of a job that failed, but no file that it does not know. A checkpoint is written every few
minutes, and when SIGTERM or SIGUSR1 announces the end (of an allocation, of a job's time). It holds the state of the
run that the stage is in, to the bit, and what a loop of several runs must know (`Trainer.resumed`). One of other
settings, inputs or versions, or a damaged one, is deleted and the log says so: then everything is trained anew.
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
"""Between two checkpoints, unless ISP_CHECKPOINT_SECONDS says otherwise."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
VERSION = 2
"""Raised when what a file holds changes; one of another version is deleted."""


def beside(output: Path) -> Path:
    """Where the checkpoint of an output lies."""
    return output.with_name(f"{output.stem}.checkpoint.safetensors")


def forget(*outputs: Path) -> None:
    """Delete the checkpoints of outputs that have been used by what was in a group with them."""
    for output in outputs:
        beside(output).unlink(missing_ok=True)


def period() -> float:
    """Seconds between two checkpoints; 0: one after every step.

    Raises:
        IspError: ISP_CHECKPOINT_SECONDS is no such number.
    """
    text = os.environ.get("ISP_CHECKPOINT_SECONDS", str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise IspError(f"ISP_CHECKPOINT_SECONDS is {text!r}: allowed are seconds, such as 180, or 0 for every step")
    return seconds


class Stopped(BaseException):
    """A signal arrived where there is nothing to keep.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


class FileCheckpoint:
    """The checkpoint of a stage, in a file; what `Trainer.checkpoint` asks for.

    Where a stage makes several runs, but tells no progress (`Trainer.resumed`), only the first of them is kept.

    Args:
        path: of the file; from `beside`.
        identity: JSON of all that decides what the stage computes. A file with another one is deleted.
        seconds: between two checkpoints; from `period`.
        worked: gives the seconds that were worked until now, which are kept, too.

    Attributes:
        earlier: seconds that were worked, by processes that are gone, for what the stage goes on from.
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

    # --- what a trainer asks for

    @contextmanager
    def leg(self, state: State, until: int) -> Iterator[tuple[Cost, State]]:
        """As `training.Checkpoint.leg`; a signal within it lets the step end, one outside ends the process.

        Raises:
            Stopped: a signal arrived after the last step.
        """
        if self._found is not None and "progress" in self._found and self._progress is None:
            self._ignore("made by a loop of several runs, which this is not")
        self._runs += 1
        self._until, spent = until, Cost()
        if self._found is not None:
            spent, state, reached = self._found["spent"], self._found["state"], self._found["until"]
            if until != reached:
                raise IspError(f"{self.path}: of a run to step {reached}, this one goes to step {until}; delete it")
            self._found = None
            print(f"going on from step {state.step} of a run to step {until}: {self.path}", file=sys.stderr, flush=True)
        self._training = True
        try:
            yield spent, state
        finally:
            self._training = False
        if self._signal is not None:
            self._ended = True
            raise Stopped(self._signal)

    def due(self) -> bool:
        """Whether it is time, or a signal arrived."""
        return self._signal is not None or (time.monotonic() >= self._next and self._can_go_on)

    def keep(self, state: State, spent: Cost) -> None:
        """Write the file; a full disk is reported, and training goes on.

        Raises:
            SystemExit: a signal arrived; the status is 128 + its number.
            Stopped: the same, but this run cannot be gone on with.
        """
        kept = self._can_go_on and self._save(state, spent)
        self._next = time.monotonic() + self._seconds
        if self._signal is None:
            return
        self._ended = True
        if not kept:
            raise Stopped(self._signal)
        name = signal.Signals(self._signal).name
        stopped = f"isp: stopped by {name} at step {state.step}; will go on from there: {self.path}"
        print(stopped, file=sys.stderr, flush=True)
        raise SystemExit(128 + self._signal)

    def loop(self, progress: Progress) -> Progress:
        """As `training.Checkpoint.loop`."""
        assert self._progress is None, "one checkpoint, one loop"
        assert self._runs == 0, "the loop has begun"
        if self._found is not None:
            kept = self._found.get("progress")
            if not isinstance(kept, dict) or kept.keys() != {each.name for each in fields(progress)}:  # type: ignore[arg-type]
                self._ignore("made by another loop")
            else:
                progress = type(progress)(**kept)
        self._progress = progress
        return progress

    # --- what a stage asks for

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """A context in which SIGTERM and SIGUSR1 let the step end; outside of a run they end the process as usual.

        What is being written is cleaned up. Only the main thread can have it; in another one nothing changes.
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
            raise SystemExit(128 + stopped.number) from None  # who called had it ignored

    def remove(self) -> None:
        """Delete the file: the output is written."""
        self.path.unlink(missing_ok=True)

    # --- its own

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
        found: dict[str, Any] = unpack(content, tensors)
        return found

    def _ignore(self, why: str) -> None:
        self._found, self.earlier = None, 0.0
        self.remove()
        print(f"{self.path}: {printable(why)}; it was deleted, everything is trained anew", file=sys.stderr, flush=True)


# --- any progress as tensors and JSON ---------------------------------------------------------------------------------

_CLASSES: dict[str, Callable[..., Any]] = {"Cost": Cost, "State": State, "Superposition": Superposition}


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors are put into `tensors`, under numbers.

    Raises:
        TypeError: something else than tensors, numbers, texts, truth values, None, costs, states, superpositions, and
            dicts (by name) and lists of these.
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
    raise TypeError(f"{type(value).__name__} {value!r}: no progress of a loop can have that")


def unpack(content: Any, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Any:
    """What `pack` was given, its tensors on the devices that they were on, or on another one."""
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
