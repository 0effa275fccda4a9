"""The rules of the workflow as values: one file for each file in `workflow/rules/`, found by its name.

A file defines its rules (`isp.workflow.rule.Rule`) and, of a family of methods, where it has any:

- `RETRAINED`, by route, how `retrain` trains its tickets;
- `hidden_variants(study)`, variants that a study does not name, but whose jobs its own need.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from isp.config import Study, Variant
from isp.workflow.dag import Dag
from isp.workflow.rule import Retraining, Rule, Rules

MODULES: tuple[ModuleType, ...] = tuple(
    importlib.import_module(f"isp.workflow.rules.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem != "__init__"
)
RETRAINED: Mapping[str, Retraining] = {
    route: retraining for module in MODULES for route, retraining in getattr(module, "RETRAINED", {}).items()
}
"""How tickets are trained under a mask, by route."""


def _rules() -> Iterator[Rule]:
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, Rule):
                yield replace(value, routes=tuple(RETRAINED)) if value.name == "retrain" else value


RULES: Mapping[str, Rule] = {rule.name: rule for rule in _rules()}
"""All rules, by name."""


def make_dag(study: Study, shorten: Callable[[str], str] = str) -> Dag:
    """The jobs of a study under these rules; see `Dag`."""
    return Dag(study, Rules(by_name=RULES, retrained=RETRAINED, hidden_variants=_hidden_variants), shorten)


def _hidden_variants(study: Study) -> dict[str, Variant]:
    hidden: dict[str, Variant] = {}
    for module in MODULES:
        if hasattr(module, "hidden_variants"):
            hidden |= module.hidden_variants(study)
    return hidden


def made_by(kind: str) -> str:
    """The stages that make a kind of artifact, for messages."""
    stages = list(dict.fromkeys(rule.run for rule in RULES.values() if rule.makes == kind))
    return " or ".join(filter(None, [", ".join(stages[:-1]), *stages[-1:]]))
