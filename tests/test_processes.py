"""Tests that are not marked `process` cannot start a process, so none becomes slow unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.support.processes import refused


class Item:
    """A test with markers."""

    def __init__(self, *markers: str) -> None:
        self.markers = [getattr(pytest.mark, name).mark for name in markers]

    def iter_markers(self) -> list[pytest.Mark]:
        return self.markers


def run_nothing() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


@pytest.mark.parametrize(
    "start", [run_nothing, fork, lambda: os.system("true"), lambda: os.posix_spawn("/bin/true", ["true"], {})]
)
def test_an_unmarked_test_cannot_start_a_process(start: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="without being marked `process`"), refused(Item()):  # type: ignore[arg-type]
        start()


def test_code_that_swallows_everything_hides_no_process() -> None:
    def swallow() -> None:
        with refused(Item()), suppress(BaseException):  # type: ignore[arg-type]
            run_nothing()

    with pytest.raises(pytest.fail.Exception, match=r"starts processes .* subprocess.Popen"):
        swallow()


@pytest.mark.process
@pytest.mark.parametrize("marker", ["process", "slurm"])
def test_a_marked_test_can(marker: str) -> None:
    with refused(Item(marker)):  # type: ignore[arg-type]
        run_nothing()
