"""Every generated page of the site, by its path in `docs/`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.docs import command_line, entries, environment, methods, outputs, python_api, results, study_file

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the repository."""


def sources() -> dict[str, Callable[[], str]]:
    """Return what makes each generated page, by its path in `docs/`."""
    reference = ROOT / "docs" / "results"
    return {
        "reference/study-file.md": study_file.page,
        "reference/command-line.md": command_line.page,
        "reference/python.md": python_api.page,
        "reference/environment.md": environment.page,
        "reference/outputs.md": partial(outputs.page, ROOT),
        "reference/tasks.md": partial(entries.page, "task"),
        "reference/backbones.md": partial(entries.page, "backbone"),
        **methods.pages(reference),
        **results.pages(reference),
    }


def generate() -> dict[str, str]:
    """Return the Markdown of every generated page by its path in `docs/`."""
    return {path: make() for path, make in sources().items()}
