"""The jobs of a study, as Snakemake finds them: from the records back through the inputs that its rules name.

A test holds the two to the same numbers.
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
    """One job of a study, and the work that it does.

    Attributes:
        rule: Name of the rule that makes it.
        output: Path that it is known by.
        inputs: Paths that other jobs of the study are known by.
        place: Backbone and task.
        variant: Whose it is; "" for what variants share.
        beside: Paths of what else it makes.
    """

    rule: str
    output: str
    inputs: tuple[str, ...]
    place: tuple[str, str]
    variant: str = ""
    beside: tuple[str, ...] = ()

    @property
    def temporary(self) -> bool:
        """Whether the output is deleted when nothing needs it any more."""
        return RULES[self.rule].temporary

    @property
    def passing(self) -> tuple[str, ...]:
        """What it makes that is deleted when nothing needs it any more."""
        rule = RULES[self.rule]
        return (self.output,) * rule.temporary + self.beside * rule.temporary_beside


class Jobs:
    """The jobs of a study by output; those in `resources/`, which studies share, are only counted."""

    def __init__(self, study: Study) -> None:
        self.study, self.dag = study, make_dag(study)

    @cached_property
    def by_output(self) -> dict[str, Job]:
        """All of them."""
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
        """How many jobs of each rule make what studies share, and what people read."""
        return Counter({rule.name: len(rule.jobs(self.study)) for rule in RULES.values() if rule.jobs})

    def within(self, output: str) -> set[str]:
        """The outputs of all jobs that one needs, its own included: what it takes by itself."""
        outputs, wanted = set(), [output]
        while wanted:
            path = wanted.pop()
            if path not in outputs:
                outputs.add(path)
                wanted += self.by_output[path].inputs
        return outputs

    def job(self, path: str) -> Job:
        """The one that makes a file."""
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
        """The output that the job is known by which makes a file."""
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
        """The rules whose jobs are found from the records back, with what their outputs look like."""
        rules = [self.dag.rule(name) for name, rule in RULES.items() if rule.jobs is None]
        rules.sort(key=lambda each: not each.rule.rounds_only)  # before those that make the same output at all
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
