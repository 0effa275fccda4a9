"""Jobs of a study, derived as Snakemake derives them: backwards from the records through the inputs of the rules.

A test compares both.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

from isp.config import Study
from isp.workflow import paths
from isp.workflow.rule import Rule, Work
from isp.workflow.rules import RULES, make_dag


@dataclass(frozen=True, kw_only=True)
class Job(Work):
    """A job of a study and its work.

    Attributes:
        rule: Name of the job's rule.
        output: Output that identifies the job.
        inputs: Outputs that identify the jobs on which it depends.
        place: Names of the backbone and the task.
        variant: Name of the variant; "" for jobs that variants share.
        beside: Paths of its other outputs.
    """

    rule: str
    output: str
    inputs: tuple[str, ...]
    place: tuple[str, str]
    variant: str = ""
    beside: tuple[str, ...] = ()

    @property
    def temporary(self) -> bool:
        """Whether the output is deleted when no job needs it any more."""
        return RULES[self.rule].temporary

    @property
    def passing(self) -> tuple[str, ...]:
        """Outputs that are deleted when no job needs them any more."""
        rule = RULES[self.rule]
        return (self.output,) * rule.temporary + self.beside * rule.temporary_beside


class Jobs:
    """Jobs of a study by output. Those in `resources/`, which studies share, are only counted."""

    def __init__(self, study: Study) -> None:
        self.study, self.dag = study, make_dag(study)

    @cached_property
    def by_output(self) -> dict[str, Job]:
        """All jobs of the study's cells, by output."""
        jobs: dict[str, Job] = {}
        wanted = [*self.dag.records(), *self.dag.similarities()]
        while wanted:
            output = wanted.pop()
            if output not in jobs:
                job = jobs[output] = self.job(output)
                wanted += job.inputs
        return jobs

    @cached_property
    def shared(self) -> Counter[str]:
        """Number of jobs of each rule that make files shared by studies, or reports."""
        return Counter({rule.name: len(rule.jobs(self.study)) for rule in RULES.values() if rule.jobs})

    def within(self, output: str) -> set[str]:
        """Return the outputs of a job and of all jobs that it depends on, directly or indirectly."""
        outputs, wanted = set(), [output]
        while wanted:
            path = wanted.pop()
            if path not in outputs:
                outputs.add(path)
                wanted += self.by_output[path].inputs
        return outputs

    def job(self, path: str) -> Job:
        """Return the job that makes a file."""
        rule, w = self._rule_of(path)
        inputs = rule.inputs(self.dag, w).values()
        files = [path for each in inputs for path in ([each] if isinstance(each, str) else each)]
        return Job(
            rule=rule.name,
            output=path,
            inputs=tuple(dict.fromkeys(map(self._known_by, files))),
            place=(w.backbone, w.task),
            variant=getattr(w, "variant", ""),
            beside=tuple(paths.fill(beside, w) for beside in rule.beside),
            **vars(rule.work(self.dag, w, len(files))),
        )

    def _known_by(self, path: str) -> str:
        """Return the output that identifies the job which makes a file."""
        for rule, _, besides in self._patterns:
            for beside in besides:
                if match := beside.fullmatch(path):
                    return paths.fill(rule.output, SimpleNamespace(study=self.study.study, **match.groupdict()))
        return path

    def _rule_of(self, output: str) -> tuple[Rule, paths.Wildcards]:
        for rule, pattern, _ in self._patterns:
            if match := pattern.fullmatch(output):
                return rule, SimpleNamespace(study=self.study.study, **match.groupdict())
        raise AssertionError(f"no rule makes {output}")

    @cached_property
    def _patterns(self) -> list[tuple[Rule, re.Pattern[str], list[re.Pattern[str]]]]:
        """Rules whose jobs are derived from the records, with the patterns of their outputs."""
        rules = [self.dag.rule(name) for name, rule in RULES.items() if rule.jobs is None]
        rules.sort(
            key=lambda each: not each.rule.rounds_only
        )  # before the rules that make the same output at any sparsity
        return [
            (
                each.rule,
                _compiled(each.rule.output, variant=each.variants, backbone=each.backbones),
                [_compiled(path, variant=each.variants, backbone=each.backbones) for path in each.rule.beside],
            )
            for each in rules
        ]


def _compiled(pattern: str, **constraints: str) -> re.Pattern[str]:
    escaped = re.sub(r"\\{(\w+)\\}", r"{\1}", re.escape(pattern))
    seen: set[str] = set()

    def named(match: re.Match[str]) -> str:
        name = match[1]
        if name == "study":
            return "[^/]+"
        kind = constraints.get(name, paths.WILDCARDS[name])
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{kind})"

    return re.compile(re.sub(r"{(\w+)}", named, escaped))
