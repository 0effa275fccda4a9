"""The tasks and backbones of the package, one table each."""

from __future__ import annotations

from typing import Literal

from isp import registry
from isp.tasks import Task
from tools.docs.markdown import code, prose, table


def page(kind: Literal["task", "backbone"]) -> str:
    """Return the page that lists the entries of a kind."""
    own = f"[your own {kind}s](../how-to/own-models-and-data.md)"
    head = [
        f"# {kind.title()}s",
        f"Each is one file in `isp/{kind}s/`; `isp list {kind}s` prints this list. A study file can define {own}.",
    ]
    if kind == "task":
        rows = [_task(name, registry.load("task", name).TASK) for name in registry.names("task")]
        return "\n\n".join([*head, table(("task", "what it is", "inputs", "classes", "metrics"), rows)])
    return "\n\n".join(
        [*head, table(("backbone", "what it is", "inputs"), [_backbone(n) for n in registry.names(kind)])]
    )


def _task(name: str, task: Task) -> tuple[str, ...]:
    classes = str(len(task.classes)) if task.classes else "a regression"
    return code(name), prose(registry.summary("task", name)), task.inputs, classes, ", ".join(task.metrics)


def _backbone(name: str) -> tuple[str, ...]:
    return code(name), prose(registry.summary("backbone", name)), registry.load("backbone", name).BACKBONE.inputs
