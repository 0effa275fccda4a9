"""Jobs that Snakemake would rerun for a changed study, computed without Snakemake.

The files in `workflow/rules/` define the inputs and params of jobs. `jobs` reads them, derives the jobs of a study
backwards from its records, and asks the study's DAG like these blocks. A job reruns if the set of its inputs or one of
its params has changed, if its output is new, or if a job on which it depends reruns: Snakemake's triggers, except for
the times of files and the shell command. `tests/test_workflow_reruns.py` compares the results with those of the real
Snakemake.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, MappingProxyType, SimpleNamespace
from typing import Any

from isp.config import Study
from isp.workflow import paths
from isp.workflow.rules import make_dag
from tests.support.studies import ROOT

RULE = re.compile(r"^(?:use rule (\w+) as )?(?:rule )?(\w+)(?: with)?:\n((?:    .*\n|\n)+)", re.MULTILINE)
ORDER = re.compile(r"^ruleorder: (\w+) > (\w+)$", re.MULTILINE)
BLOCK = re.compile(r"^    (input|output|params|wildcard_constraints):\n((?:        .*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A job of a study.

    Attributes:
        rule: Name of the rule.
        outputs: Output files.
        inputs: Input files.
        params: Its params, by name.
    """

    rule: str
    outputs: tuple[str, ...]
    inputs: frozenset[str]
    params: Mapping[str, Any]


class Files(dict[str, Any]):
    """Inputs of a job by name, as Snakemake passes them to functions of params."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@cache
def rules() -> tuple[dict[str, dict[str, str]], set[tuple[str, str]]]:
    """Return the blocks that decide when a job reruns, as written, by rule and block; and the precedence of rules.

    The rules of `report.smk`, whose jobs are the last of a study, are not included.
    """
    files = [path for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")) if path.stem != "report"]
    blocks: dict[str, dict[str, str]] = {}
    order: set[tuple[str, str]] = set()
    for path in files:
        content = path.read_text(encoding="utf-8") + "\n"
        for like, name, text in RULE.findall(content):
            blocks[name] = blocks.get(like, {}) | dict(BLOCK.findall(text))
        order |= set(ORDER.findall(content))
    return {name: of_rule for name, of_rule in blocks.items() if "output" in of_rule}, order


Patterns = list[tuple[str, re.Pattern[str]]]


class _Workflow:
    """Rules of a study, as Snakemake reads them.

    Args:
        study: The study.
        existing: Files that its folder contains, with the jobs that made them.
        patterns: Patterns of the files that the rules make, if another workflow of the same study has them.
    """

    def __init__(self, study: Study, existing: Mapping[str, Job], patterns: Patterns | None = None) -> None:
        def made_from(path: str) -> str | None:
            inputs = existing[path].inputs if path in existing else None
            return (
                None if inputs is None else next((each for each in inputs if each.endswith("/state.safetensors")), "")
            )

        self.dag = make_dag(study, made_from=made_from)
        self.study = study.study
        self.known = {"dag": self.dag, "study": study, "unpack": lambda function: function}
        self.patterns = patterns or [
            (name, _compiled(output, constraints))
            for name in rules()[0]
            for constraints in [(*paths.WILDCARDS.items(), *self.read(name, "wildcard_constraints")[1].items())]
            for output in _outputs(name)
        ]

    def read(self, rule: str, block: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a block; none if the rule lacks it."""
        return _evaluated(rules()[0][rule].get(block, ""), self.known)

    def rule_of(self, path: str) -> tuple[str, Any]:
        """Return the rule that makes a file, and the wildcards."""
        matches = {name: match for name, pattern in self.patterns if (match := pattern.fullmatch(path))}
        [name] = [name for name in matches if not any((other, name) in rules()[1] for other in matches)]
        return name, SimpleNamespace(**{**matches[name].groupdict(), "study": self.study})

    def job(self, path: str) -> Job:
        name, w = self.rule_of(path)
        plain, named = self.read(name, "input")
        inputs = Files()
        for function in plain:  # each is unpacked
            inputs |= function(w)
        inputs |= {key: value.format(**vars(w)) for key, value in named.items()}
        given = {key: _called(value, w, inputs) for key, value in self.read(name, "params")[1].items()}
        files = [file for value in inputs.values() for file in ([value] if isinstance(value, str) else value)]
        made = tuple(pattern.format(**vars(w)) for pattern in _outputs(name))
        return Job(name, made, frozenset(files), given)


def _arguments(*plain: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return plain, named


def _evaluated(arguments: str, known: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return eval(_code(arguments), {"paths": paths, "temp": str, "_arguments": _arguments, **known})  # type: ignore[no-any-return]


@cache
def _outputs(rule: str) -> tuple[str, ...]:
    """Return the patterns of a rule's files, which are the same for every study."""
    plain, named = _evaluated(rules()[0][rule]["output"], {})
    return (*plain, *named.values())


def _called(value: Any, w: Any, inputs: Files) -> Any:
    if not callable(value):
        return value.format(**vars(w)) if isinstance(value, str) else value
    code = value.__code__  # inspect.signature takes as long as everything else
    takes_inputs = "input" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return value(w, input=inputs) if takes_inputs else value(w)


@cache
def _code(arguments: str) -> CodeType:
    return compile(f"_arguments({arguments})", "rule", "eval")


@cache
def _compiled(pattern: str, kinds: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    constraints = dict(kinds)
    seen: set[str] = set()

    def wildcard(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{constraints.get(name, '[^/]+')})"

    escaped = re.sub(r"\\{(\w+)\\}", r"{\1}", re.escape(pattern))
    return re.compile(re.sub(r"{(\w+)}", wildcard, escaped))


def jobs(study: Study, existing: Mapping[str, Job] = MappingProxyType({})) -> dict[str, Job]:
    """Return the jobs of a study up to its records and comparisons of masks, by each of their output files.

    Args:
        study: The study.
        existing: Files that its folder contains, with the jobs that made them.
    """
    workflow = _Workflow(study, existing)
    wanted = [*workflow.dag.records(), *workflow.dag.similarities()]
    by_file: dict[str, Job] = {}
    while wanted:
        path = wanted.pop()
        if path not in by_file:
            job = workflow.job(path)
            by_file |= dict.fromkeys(job.outputs, job)
            wanted += job.inputs
    return by_file


def reader(study: Study) -> Callable[[str, Mapping[str, Job]], Job]:
    """Return a function from a file and the existing files to the job that makes the file.

    Each call reads the study again, like a Snakemake that runs only this job; only the patterns of files are shared.
    """
    patterns = _Workflow(study, {}).patterns
    return lambda path, existing: _Workflow(study, existing, patterns).job(path)


def reruns(before: Mapping[str, Job], after: Mapping[str, Job]) -> dict[str, set[str]]:
    """Return the files, by rule, that a changed study would make in the folder of a finished one.

    Args:
        before: Jobs of the finished study.
        after: Jobs of the changed study.
    """

    @cache
    def runs_again(path: str) -> bool:
        job = after[path]
        changed = path not in before or (before[path].inputs, before[path].params) != (job.inputs, job.params)
        return changed or any(map(runs_again, job.inputs))

    by_rule: dict[str, set[str]] = defaultdict(set)
    for path, job in after.items():
        if runs_again(path):
            by_rule[job.rule].add(path)
    return dict(by_rule)
