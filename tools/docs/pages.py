"""Every generated page of the site, by its path in `docs/`."""

from __future__ import annotations

from pathlib import Path

from tools.docs import command_line, entries, environment, methods, outputs, python_api, results, study_file

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the repository."""


def generate() -> dict[str, str]:
    """Return the Markdown of every generated page by its path in `docs/`."""
    reference = ROOT / "docs" / "results"
    return {
        "reference/study-file.md": study_file.page(),
        "reference/command-line.md": command_line.page(),
        "reference/python.md": python_api.page(),
        "reference/environment.md": environment.page(),
        "reference/outputs.md": outputs.page(ROOT),
        "reference/tasks.md": entries.page("task"),
        "reference/backbones.md": entries.page("backbone"),
        **methods.pages(reference),
        **results.pages(reference),
    }
