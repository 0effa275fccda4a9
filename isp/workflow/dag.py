"""The shape of a study: its variants, and what its jobs need. Pure; the rules in `workflow/rules/` ask it.

A cell's jobs share what they have in common: the tensors of a task, the initial state and the dense run of a seed, and
for each variant one chain of rounds; pooled tickets use that of an equal iterative variant, and soups whose members are
equal share those. A prune event of the chain is keyed by (round, sparsity): its sparsity is the nominal one of the
round, where the chain goes on, or a target, which leaves the chain at the first round whose nominal sparsity reaches
it. A target leaves with a mask; training under it gives the ticket. Methods that prune within one run, and rounds that
are not known beforehand, are a job a ticket.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from isp import copies, registry, sparsity, training
from isp.config import Study, Variant
from isp.data.splits import validation_size
from isp.families import Method
from isp.methods import uniform_soup
from isp.workflow import paths
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Inputs, Retraining, Rule, Rules

TEST_SPLIT = 5
"""A test split, which only `evaluate` looks at, is taken for a fifth of the training split."""


@dataclass(frozen=True)
class Dag:
    """The jobs of a study; a rule of the workflow is an attribute of its name, such as `dag.retrain`.

    Attributes:
        study: The study.
        rules: Those of the workflow.
        shorten: What is done to every part of a command line that a study makes as long as it likes: texts, classes,
            lists of files. The default leaves it as it is.
    """

    study: Study
    rules: Rules
    shorten: Callable[[str], str] = str

    def __getattr__(self, name: str) -> RuleOfStudy:
        """A rule of the workflow."""
        if name == "rules" or name not in self.rules.by_name:
            raise AttributeError(f"the workflow has no rule {name!r}")
        return self.rule(name)

    def rule(self, name: str) -> RuleOfStudy:
        """A rule by its name, for code."""
        return RuleOfStudy(self.rules.by_name[name], self)

    # --- variants ---------------------------------------------------------------------------------------------------

    @cached_property
    def all_variants(self) -> dict[str, Variant]:
        """The study's variants, and hidden ones whose jobs they need."""
        return {**self.study.variants, **self.rules.hidden_variants(self.study)}

    @cached_property
    def methods(self) -> dict[tuple[str, str], Method]:
        """The methods by variant and backbone."""
        study = self.study.model_copy(update={"variants": self.all_variants})
        return {(name, b): study.method(name, b) for name in self.all_variants for b in study.training}

    def method_of(self, w: Wildcards) -> Method:
        """The method of a variant, with its settings."""
        return self.methods[w.variant, w.backbone]

    def route(self, variant: str) -> str:
        """How the tickets of a variant are made; the same way on all backbones."""
        return self.methods[variant, next(iter(self.study.training))].route

    def retraining(self, w: Wildcards) -> Retraining:
        """How the ticket of a cell is trained under its mask."""
        return self.rules.retrained[self.route(w.variant)]

    def chain(self, w: Wildcards) -> list[Decimal]:
        """The sparsities of the rounds that lead to `w.sparsity`, which is the last of them."""
        settings: Any = self.method_of(w).settings
        return sparsity.sparsities_to(Decimal(w.sparsity), settings.rate, settings.rate_of)

    def nominal(self, w: Wildcards, round_: int) -> Decimal:
        """The sparsity that the chain goes on with after a round."""
        settings: Any = self.method_of(w).settings
        return sparsity.nominal(round_, settings.rate, settings.rate_of)

    def training(self, w: Wildcards) -> training.Training:
        """The protocol of a job."""
        variant, target = getattr(w, "variant", None), getattr(w, "sparsity", None)
        return self.study.protocol(w.backbone, w.task, variant, target and Decimal(target))

    def num_validation(self, task: str) -> int:
        """Number of validation examples of a task."""
        known = self.study.task(task)
        return self.study.limits(task).num_validation or validation_size(known.num_examples, known.num_validation)

    def num_test(self, task: str) -> int:
        """Number of test examples of a task, estimated."""
        return self.study.task(task).num_examples // TEST_SPLIT

    def backbones(self, embedded: bool) -> str:
        """A pattern of the backbones that are pre-trained here, or of those that are downloaded."""
        names = [name for name in self.study.training if self.study.is_embedded(name) == embedded]
        return "|".join(names) or paths.NOTHING

    # --- what jobs make and need ------------------------------------------------------------------------------------

    def initial(self, w: Wildcards) -> str:
        """The state that a variant begins from."""
        return paths.fill(paths.INITIAL, w, initial=self.all_variants[w.variant].initial)

    def dense(self, w: Wildcards) -> str:
        """The dense ticket that a variant's rounds or soups begin with."""
        return paths.fill(paths.DENSE, w, initial=self.all_variants[w.variant].initial)

    def ticket(self, w: Wildcards) -> str:
        """The ticket of a cell; dense variants share that of the dense run."""
        route = self.route(w.variant)
        rule = next(rule for rule in self.rules.by_name.values() if rule.is_ticket and route in rule.routes)
        return paths.fill(rule.output, w, initial=self.all_variants[w.variant].initial)

    @cached_property
    def _compared(self) -> dict[tuple[str, str, str], dict[str, list[str]]]:
        """By run (backbone, task, seed) and sparsity the variants whose masks are compared: where there are two."""
        by_run: dict[tuple[str, str, str], dict[str, list[str]]] = {}
        for group in self.study.groups():
            run = by_run.setdefault((group.backbone, group.task, str(group.seed)), {})
            for value in filter(None, group.sparsities):  # a dense one has no mask
                run.setdefault(str(value), []).append(group.variant)
        shared = {run: {s: names for s, names in of_run.items() if len(names) > 1} for run, of_run in by_run.items()}
        return {run: of_run for run, of_run in shared.items() if of_run}

    def compared(self, w: Wildcards) -> dict[str, dict[str, str]]:
        """The tickets of a run whose masks are compared, by sparsity and variant."""
        return {
            value: {variant: paths.fill(paths.TICKET, w, variant=variant, sparsity=value) for variant in variants}
            for value, variants in self._compared[w.backbone, w.task, w.seed].items()
        }

    def similarities(self) -> list[str]:
        """The comparisons of masks, one a run where there are two masks of one sparsity."""
        return [
            paths.SIMILARITY.format(study=self.study.study, backbone=backbone, task=task, seed=seed)
            for backbone, task, seed in self._compared
        ]

    def records(self) -> list[str]:
        """The records of all cells, in the order of the study."""
        return [
            paths.RECORD.format(study=self.study.study, **group.model_dump(exclude={"sparsities"}), sparsity=value)
            for group in self.study.groups()
            for value in group.sparsities
        ]

    @cached_property
    def recorded(self) -> dict[tuple[str, str, str], list[str]]:
        """The sparsities of records by backbone, task and variant, of whichever seed; hidden variants have none."""
        found: dict[tuple[str, str, str], dict[str, None]] = {}
        for group in self.study.groups():
            place = (group.backbone, group.task, group.variant)
            found.setdefault(place, {}).update(dict.fromkeys(map(str, group.sparsities)))
        return {place: list(values) for place, values in found.items() if values}

    def prepared(self) -> list[str]:
        """The prepared training examples of all backbones and tasks."""
        places = dict.fromkeys((group.backbone, group.task) for group in self.study.groups())
        return [paths.PREPARED.format(backbone=backbone, task=task, split="train") for backbone, task in places]

    # --- options of jobs --------------------------------------------------------------------------------------------

    def options(self, **values: Any) -> str:
        """Options of a command line; settings as JSON."""
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for key, value in values.items()
        }
        return self.shorten(" ".join(f"--{key} {shlex.quote(text)}" for key, text in texts.items()))

    def repeated(self, option: str, files: Iterable[str]) -> str:
        """An option that is given once for each of several files."""
        return self.shorten(" ".join(f"--{option} {path}" for path in files))

    def backbone(self, w: Wildcards) -> str:
        """The backbone of a job: its name, or what the study file defines."""
        return self.options(backbone=self.study.defined("backbone", w.backbone))

    def task(self, w: Wildcards) -> str:
        """The task of a job: its name, or what the study file defines."""
        return self.options(task=self.study.defined("task", w.task))

    def run(self, w: Wildcards) -> str:
        """The options of every job that trains."""
        limits = self.study.limits(w.task).model_dump(mode="json", exclude={"num_validation"})
        told = self.options(seed=w.seed, training=self.training(w).model_dump(mode="json"), limits=limits)
        return f"{self.backbone(w)} {self.task(w)} {told} {self._place(w)}"

    def scoring(self, w: Wildcards) -> str:
        """The options of jobs that score."""
        limits = self.study.limits(w.task).model_dump(mode="json", include={"num_validation"})
        return f"{self.backbone(w)} {self.task(w)} {self.options(limits=limits)} {self._place(w)}"

    def _place(self, w: Wildcards) -> str:
        kernels = {"instruction-set": self.study.instructions(w.backbone)} if self.study.device == "cpu" else {}
        return self.options(threads=self.study.threads, device=self.study.device, **kernels)

    def method_name(self, w: Wildcards) -> str:
        """The name of a variant's method, quoted for the shell: a method's file may have any name."""
        return shlex.quote(self.method_of(w).name)

    def method_settings(self, w: Wildcards) -> str:
        """The method of a variant and its settings."""
        method = self.method_of(w)
        return self.options(method=method.source, settings=method.settings.model_dump(mode="json"))

    def within(self, w: Wildcards, input: Any) -> str:
        """The option that names the current mask; the first round has none."""
        return f"--within {input.within}" if "within" in input.keys() else ""  # noqa: SIM118 (not a dict)

    def scope(self, w: Wildcards) -> str:
        """Whether a variant ranks all layers together."""
        return self.options(scope=self.method_of(w).settings.scope)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class RuleOfStudy:
    """A rule as the jobs of one study follow it; the rule of its name in `workflow/rules/` is made of these.

    Attributes:
        rule: The rule.
        dag: The study's.
    """

    rule: Rule
    dag: Dag

    @property
    def variants(self) -> str:
        """A pattern of the variants that it is for."""
        if not self.rule.routes:
            return paths.WILDCARDS["variant"]
        names = [name for name in self.dag.all_variants if self.dag.route(name) in self.rule.routes]
        return "|".join(map(re.escape, names)) or paths.NOTHING

    @property
    def backbones(self) -> str:
        """A pattern of the backbones of its jobs; of a rule for rounds only, where the path of no record follows."""
        but = self.dag.recorded if self.rule.rounds_only else {}
        cells = "|".join(
            rf"{backbone}/{task}/seed\d+/{re.escape(variant)}/(?:{'|'.join(map(re.escape, values))})/"
            for (backbone, task, variant), values in but.items()
            if self.dag.route(variant) in self.rule.routes
        )
        return f"(?!{cells}){paths.WILDCARDS['backbone']}" if cells else paths.WILDCARDS["backbone"]

    def inputs(self, w: Wildcards) -> Inputs:
        """What a job needs of the study's other jobs."""
        return self.rule.inputs(self.dag, w)

    def settings(self, w: Wildcards) -> str | int:
        """The rule's part of the command line."""
        return self.rule.settings(self.dag, w)

    def copies(self, w: Wildcards) -> int:
        """Number of look-aheads that a job trains."""
        return self.rule.work(self.dag, w, 0).copies

    def version(self, w: Wildcards) -> str:
        """The versions of the code that a job's results depend on; it reruns when they change."""
        stage = self.rule.run
        versions: dict[str, Any] = {stage: registry.stage_version(stage)}
        for name in self.rule.versions:
            for key, version in _VERSIONS[name](self.dag, w).items():
                versions.setdefault(key, version)
        return json.dumps(versions)


def _of_method(dag: Dag, w: Wildcards) -> dict[str, Any]:
    """The version of a method; for a file elsewhere the name of its module, which ends in the file's checksum."""
    method = dag.method_of(w)
    return {method.name: method.module.__name__ if method.source.endswith(".py") else method.module.VERSION}


_VERSIONS: Mapping[str, Callable[[Dag, Wildcards], Mapping[str, Any]]] = {
    "training": lambda dag, w: {"training": training.VERSION},
    "dense": lambda dag, w: {"dense": registry.load("method", "dense").VERSION},
    "method": _of_method,
    "isp": lambda dag, w: {"isp": copies.VERSION},
    "mathematics": lambda dag, w: dag.method_of(w).traits.mathematics,
    "uniform_soup": lambda dag, w: {"uniform_soup": uniform_soup.VERSION},
    "backbone": lambda dag, w: {f"backbone {w.backbone}": dag.study.backbone(w.backbone).version},
    "task": lambda dag, w: {f"task {w.task}": dag.study.task(w.task).version},
    "protocol": lambda dag, w: {
        "protocol": registry.load("backbone", w.backbone).PRETRAINING.model_dump(mode="json"),
    },
}
"""What the results of a job may depend on beside its stage. The keys of what is returned are in finished studies."""
