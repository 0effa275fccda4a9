"""Every generated page of the site, by its path in `docs/`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the repository."""


def generate() -> dict[str, str]:
    """Return the Markdown of every generated page by its path in `docs/`."""
    return {}
