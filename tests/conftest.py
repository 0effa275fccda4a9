"""Order of the tests, and the rule that only tests marked `process` may start processes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import settings

from isp.runtime import instructions
from tests.support import processes
from tests.support.golden import check as check_golden

processes.install()

# What libraries define stays. To search it for cycles again and again would take a twentieth of the time of all tests.
gc.disable()

# As on most machines, Python writes byte code, also into folders where none belongs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Results in the test process must equal those of jobs and of `tests/golden/bits.txt`. Set before torch and NumPy.
if instructions.is_supported():
    os.environ |= instructions.VARIABLES

# CI checks the same examples every time; elsewhere new ones are drawn.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "write the texts in tests/golden/ instead of comparing with them"
    parser.addoption("--renew-golden", action="store_true", help=what)


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, which import torch, except in the process that only distributes files to workers."""
    worker = hasattr(config, "workerinput")
    if worker:
        # Runs last, and saves the two seconds in which Python would free the modules of torch.
        atexit.register(os._exit, 0)
    if worker or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.import_plugin("tests.support.fixtures")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function that compares a text with a golden text, or renews it; see `tests.support.golden`."""
    return partial(check_golden, renew=request.config.getoption("--renew-golden"))


LONGEST = (
    *("workflow_results", "workflow_studies", "workflow_faults", "warm", "workflow_reruns", "workflow_start"),
    "pretrained_bits",
    *("families", "checkpoints", "exporting", "status", "pruner", "isp", "patterns", "lineage", "devices", "models"),
    *("reporting", "backbones", "scores", "run_rounds", "trainer", "prose", "progress", "snippets", "figures", "page"),
    *("evidence", "masks", "soups", "cli", "collected", "example_scripts", "english", "training", "tasks", "hub"),
)
"""The slowest files, first those that start Snakemake; of two neighbours, only one needs the fixture `smoke`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files, so that no worker finishes long after the others."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish() -> None:
    """Exclude everything that was imported from garbage collection, which begins only now."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 20)
    atexit.register(gc.unfreeze)  # some libraries complain about objects that are left when the process has ended


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Skip tests that need a GPU if there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    with processes.refused(item):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with processes.refused(item):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with processes.refused(item):
        yield
