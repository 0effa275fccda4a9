"""The reference of the Python API: every public name, which mkdocstrings renders from its docstring."""

from __future__ import annotations

import isp

INTEGRATIONS = ("isp.integrations.transformers.PruningCallback",)
"""Public names outside `isp.__all__`, which need another library."""
FIRST = ("prune", "Pruner", "Ticket", "save_ticket", "load_ticket", "export", "accelerate")
"""The order of names; the others follow by the alphabet."""


def names() -> list[str]:
    """Return every public name, dotted."""
    order = sorted(isp.__all__, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return [*(f"isp.{name}" for name in order), *INTEGRATIONS]


def page() -> str:
    """Return the page of the Python API."""
    parts = [
        "# Python API",
        "These are the public names: `isp.prune` and the others are imported from `isp`, and the callback from its "
        "module. Everything else may change without notice. [Prune your own model](../how-to/prune.md) shows them in "
        "use.",
    ]
    return "\n\n".join([*parts, *(f"::: {name}" for name in names())])
