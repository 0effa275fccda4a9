"""Folders that are slow to make, made once for all workers of pytest-xdist."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_folder(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker fills, while the others wait.

    Args:
        factory: Factory of the worker; the parent of its folder belongs to all workers of a run.
        name: Name of the folder.
        fill: Function that fills the empty folder. If it fails, the next worker tries again.
    """
    base = factory.getbasetemp()
    return filled_once((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name, fill)


def filled_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return the folder, which the first process that asks for it fills, while others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            done.touch()
    return folder
