"""Rules of the workflow as values: one file per file in `workflow/rules/`, found by its name.

A file defines its rules (`isp.workflow.rule.Rule`) and optionally:

- `RETRAINED`, the inputs of `retrain` by route;
- `hidden_variants(study)`, the variants that a study does not define but whose jobs it needs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

from isp import lineage
from isp.config import Study, Variant
from isp.workflow import paths
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
"""Inputs of the rule `retrain`, by route."""


def _rules() -> Iterator[Rule]:
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, Rule):
                yield replace(value, routes=tuple(RETRAINED)) if value.name == "retrain" else value


RULES: Mapping[str, Rule] = {rule.name: rule for rule in _rules()}
"""All rules by name."""


def make_dag(
    study: Study, shorten: Callable[[str], str] = str, made_from: Callable[[str], str | None] = lineage.made_from
) -> Dag:
    """Return the jobs of a study under these rules; see `Dag`."""
    rules = Rules(by_name=RULES, retrained=RETRAINED, hidden_variants=_hidden_variants)
    return Dag(study, rules, shorten, cache(made_from))


def _hidden_variants(study: Study) -> dict[str, Variant]:
    hidden: dict[str, Variant] = {}
    for module in MODULES:
        if hasattr(module, "hidden_variants"):
            hidden |= module.hidden_variants(study)
    return hidden


def made_by(kind: str, path: str = "") -> str:
    """Return the names of the stages that make a kind of artifact, for messages.

    Args:
        kind: Kind of artifact.
        path: Path of the artifact. If it is a path of the workflow, only the stages that make it are returned.
    """
    rules = [rule for rule in RULES.values() if rule.makes == kind]
    fitting = [rule for rule in rules if _ending(rule.output).search(path)]
    stages = list(dict.fromkeys(rule.run for rule in fitting or rules))
    return " or ".join(filter(None, [", ".join(stages[:-1]), *stages[-1:]]))


@cache
def _ending(output: str) -> re.Pattern[str]:
    """Return the pattern of the end of the paths of an output."""

    def wildcard(match: re.Match[str]) -> str:
        return f"(?:{paths.WILDCARDS.get(match[1], '[^/]+')})"

    escaped = re.escape(output)
    return re.compile("(?:^|/)" + re.sub(r"\\{(\w+)\\}", wildcard, escaped) + "$")
