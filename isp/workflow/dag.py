"""Structure of a study: its variants and the inputs of its jobs. Pure functions, which `workflow/rules/` call.

The jobs of different cells share intermediate results: the tensors of a task, the initial state and the dense run of a
seed, and one chain of rounds per variant. Pooled tickets use the chain of an equal iterative variant, and soups with
equal members share them. A prune event of the chain is keyed by (round, sparsity). Its sparsity is either the nominal
one of the round, with which the chain continues, or a target, which leaves the chain at the first round whose nominal
sparsity reaches it. A target leaves the chain with a mask, and training under it gives the ticket. Methods that prune
within one run, or whose rounds are not known in advance, have one job per ticket.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from isp import copies, lineage, registry, sparsity, training
from isp.config import Study, Variant
from isp.data.splits import validation_size
from isp.families import Method
from isp.methods import uniform_soup
from isp.workflow import paths
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Inputs, Retraining, Rule, Rules

TEST_SPLIT = 5
"""Assumed ratio of the training split to the test split, which only `evaluate` may read."""


@dataclass(frozen=True)
class Dag:
    """Jobs of a study. Each rule of the workflow is an attribute with its name, such as `dag.retrain`.

    Attributes:
        study: The study.
        rules: Rules of the workflow.
        shorten: Function applied to each part of a command line that a study can make arbitrarily long: texts, classes,
            lists of files. The default is the identity.
        made_from: Function that returns from which state a mask or ticket of the study was made; "" if from none or if
            that is unknown, None if the file does not exist. The default reads headers below the current folder.
    """

    study: Study
    rules: Rules
    shorten: Callable[[str], str] = str
    made_from: Callable[[str], str | None] = lineage.made_from

    def __getattr__(self, name: str) -> RuleOfStudy:
        """Return a rule of the workflow by its name."""
        if name == "rules" or name not in self.rules.by_name:
            raise AttributeError(f"the workflow has no rule {name!r}")
        return self.rule(name)

    def rule(self, name: str) -> RuleOfStudy:
        """Return a rule by its name, for names that are computed."""
        return RuleOfStudy(self.rules.by_name[name], self)

    # --- variants ---------------------------------------------------------------------------------------------------

    @cached_property
    def all_variants(self) -> dict[str, Variant]:
        """Variants of the study, and hidden ones whose jobs they need."""
        return {**self.study.variants, **self.rules.hidden_variants(self.study)}

    @cached_property
    def methods(self) -> dict[tuple[str, str], Method]:
        """Methods by variant and backbone."""
        study = self.study.model_copy(update={"variants": self.all_variants})
        return {(name, b): study.method(name, b) for name in self.all_variants for b in study.training}

    def method_of(self, w: Wildcards) -> Method:
        """Return the method of a variant, with its settings."""
        return self.methods[w.variant, w.backbone]

    def route(self, variant: str) -> str:
        """Return the route by which the tickets of a variant are made; it is the same on all backbones."""
        return self.methods[variant, next(iter(self.study.training))].route

    def retraining(self, w: Wildcards) -> Retraining:
        """Return how the ticket of a cell is trained under its mask."""
        return self.rules.retrained[self.route(w.variant)]

    def chain(self, w: Wildcards) -> list[Decimal]:
        """Return the sparsities of the rounds that lead to `w.sparsity`, which is the last of them."""
        settings: Any = self.method_of(w).settings
        return sparsity.sparsities_to(Decimal(w.sparsity), settings.rate, settings.rate_of)

    def nominal(self, w: Wildcards, round_: int) -> Decimal:
        """Return the sparsity with which the chain continues after a round."""
        settings: Any = self.method_of(w).settings
        return sparsity.nominal(round_, settings.rate, settings.rate_of)

    def training(self, w: Wildcards) -> training.Training:
        """Return the protocol of a job."""
        variant, target = getattr(w, "variant", None), getattr(w, "sparsity", None)
        return self.study.protocol(w.backbone, w.task, variant, target and Decimal(target))

    def num_validation(self, task: str) -> int:
        """Return the number of validation examples of a task."""
        known = self.study.task(task)
        return self.study.limits(task).num_validation or validation_size(known.num_examples, known.num_validation)

    def num_test(self, task: str) -> int:
        """Return the estimated number of test examples of a task."""
        return self.study.task(task).num_examples // TEST_SPLIT

    def backbones(self, embedded: bool) -> str:
        """Return a pattern of the backbones that are pre-trained by the study, or of those that are downloaded."""
        names = [name for name in self.study.training if self.study.is_embedded(name) == embedded]
        return "|".join(names) or paths.NOTHING

    # --- outputs and inputs of jobs ---------------------------------------------------------------------------------

    def initial(self, w: Wildcards) -> str:
        """Return the path of the state from which a variant starts."""
        return paths.fill(paths.INITIAL, w, initial=self.all_variants[w.variant].initial)

    def dense(self, w: Wildcards) -> str:
        """Return the path of the dense ticket with which a variant's rounds or soups start."""
        return paths.fill(paths.DENSE, w, initial=self.all_variants[w.variant].initial)

    def ticket(self, w: Wildcards) -> str:
        """Return the path of the ticket of a cell; dense variants share the ticket of the dense run."""
        route = self.route(w.variant)
        rule = next(rule for rule in self.rules.by_name.values() if rule.is_ticket and route in rule.routes)
        return paths.fill(rule.output, w, initial=self.all_variants[w.variant].initial)

    @cached_property
    def _compared(self) -> dict[tuple[str, str, str], dict[str, list[str]]]:
        """Variants whose masks are compared, by run (backbone, task, seed) and sparsity; at least two of each."""
        by_run: dict[tuple[str, str, str], dict[str, list[str]]] = {}
        for group in self.study.groups():
            run = by_run.setdefault((group.backbone, group.task, str(group.seed)), {})
            for value in filter(None, group.sparsities):  # dense tickets have no mask
                run.setdefault(str(value), []).append(group.variant)
        shared = {run: {s: names for s, names in of_run.items() if len(names) > 1} for run, of_run in by_run.items()}
        return {run: of_run for run, of_run in shared.items() if of_run}

    def compared(self, w: Wildcards) -> dict[str, dict[str, str]]:
        """Return the paths of a run's tickets whose masks are compared, by sparsity and variant."""
        return {
            value: {variant: paths.fill(paths.TICKET, w, variant=variant, sparsity=value) for variant in variants}
            for value, variants in self._compared[w.backbone, w.task, w.seed].items()
        }

    def similarities(self) -> list[str]:
        """Return the paths of the comparisons of masks, one per run that has two masks of equal sparsity."""
        return [
            paths.SIMILARITY.format(study=self.study.study, backbone=backbone, task=task, seed=seed)
            for backbone, task, seed in self._compared
        ]

    def records(self) -> list[str]:
        """Return the paths of the records of all cells, in the order of the study."""
        return [
            paths.RECORD.format(study=self.study.study, **group._asdict(), sparsity=value)
            for group in self.study.groups()
            for value in group.sparsities
        ]

    @cached_property
    def recorded(self) -> dict[tuple[str, str, str], list[str]]:
        """Sparsities of the records by backbone, task and variant, over all seeds; none for hidden variants."""
        sparsities: dict[tuple[str, str, str], dict[str, None]] = {}
        for group in self.study.groups():
            place = (group.backbone, group.task, group.variant)
            sparsities.setdefault(place, {}).update(dict.fromkeys(map(str, group.sparsities)))
        return {place: list(values) for place, values in sparsities.items() if values}

    def prepared(self) -> list[str]:
        """Return the paths of the prepared training examples of all backbones and tasks."""
        places = dict.fromkeys((group.backbone, group.task) for group in self.study.groups())
        return [paths.PREPARED.format(backbone=backbone, task=task, split="train") for backbone, task in places]

    # --- options of jobs --------------------------------------------------------------------------------------------

    def options(self, **values: Any) -> str:
        """Format options of a command line, with settings as JSON."""
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for key, value in values.items()
        }
        return self.shorten(" ".join(f"--{key} {shlex.quote(text)}" for key, text in texts.items()))

    def repeated(self, option: str, files: Iterable[str]) -> str:
        """Format an option that is repeated for each of several files."""
        return self.shorten(" ".join(f"--{option} {path}" for path in files))

    def backbone(self, w: Wildcards) -> str:
        """Format the option for the backbone of a job: its name, or its definition in the study file."""
        return self.options(backbone=self.study.defined("backbone", w.backbone))

    def task(self, w: Wildcards) -> str:
        """Format the option for the task of a job: its name, or its definition in the study file."""
        return self.options(task=self.study.defined("task", w.task))

    def run(self, w: Wildcards) -> str:
        """Format the options of jobs that train."""
        limits = self.study.limits(w.task).model_dump(mode="json", exclude={"num_validation"})
        told = self.options(seed=w.seed, training=self.training(w).model_dump(mode="json"), limits=limits)
        return f"{self.backbone(w)} {self.task(w)} {told} {self._place(w)}"

    def scoring(self, w: Wildcards) -> str:
        """Format the options of jobs that score."""
        limits = self.study.limits(w.task).model_dump(mode="json", include={"num_validation"})
        return f"{self.backbone(w)} {self.task(w)} {self.options(limits=limits)} {self._place(w)}"

    def _place(self, w: Wildcards) -> str:
        kernels = {"instruction-set": self.study.instructions(w.backbone)} if self.study.device == "cpu" else {}
        return self.options(threads=self.study.threads, device=self.study.device, **kernels)

    def method_name(self, w: Wildcards) -> str:
        """Return the name of a variant's method, quoted for the shell because a method's file may have any name."""
        return shlex.quote(self.method_of(w).name)

    def method_settings(self, w: Wildcards) -> str:
        """Format the options for the method of a variant and its settings."""
        method = self.method_of(w)
        return self.options(method=method.source, settings=method.settings.model_dump(mode="json"))

    def within(self, w: Wildcards, input: Any) -> str:
        """Format the option for the current mask; empty if there is none, or if the state contains it."""
        return f"--within {input.within}" if "within" in input.keys() else ""  # noqa: SIM118 (not a dict)

    def scope(self, w: Wildcards) -> str:
        """Format the option for the scope in which a variant ranks weights."""
        return self.options(scope=self.method_of(w).settings.scope)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class RuleOfStudy:
    """A rule applied to one study. The rule with the same name in `workflow/rules/` is built from its methods.

    Attributes:
        rule: The rule.
        dag: The jobs of the study.
    """

    rule: Rule
    dag: Dag

    @property
    def variants(self) -> str:
        """Pattern of the variants that the rule applies to."""
        if not self.rule.routes:
            return paths.WILDCARDS["variant"]
        names = [name for name in self.dag.all_variants if self.dag.route(name) in self.rule.routes]
        return "|".join(map(re.escape, names)) or paths.NOTHING

    @property
    def backbones(self) -> str:
        """Pattern of the backbones of the rule's jobs; for rules for rounds only, it excludes the paths of records."""
        excluded = self.dag.recorded if self.rule.rounds_only else {}
        cells = "|".join(
            rf"{backbone}/{task}/seed\d+/{re.escape(variant)}/(?:{'|'.join(map(re.escape, values))})/"
            for (backbone, task, variant), values in excluded.items()
            if self.dag.route(variant) in self.rule.routes
        )
        return f"(?!{cells}){paths.WILDCARDS['backbone']}" if cells else paths.WILDCARDS["backbone"]

    def inputs(self, w: Wildcards) -> Inputs:
        """Return the inputs of a job that other jobs of the study make."""
        return self.rule.inputs(self.dag, w)

    def settings(self, w: Wildcards) -> str | int:
        """Return the rule's part of the command line."""
        return self.rule.settings(self.dag, w)

    def copies(self, w: Wildcards) -> int:
        """Return the number of look-aheads that a job trains."""
        return self.rule.work(self.dag, w, 0).copies

    def version(self, w: Wildcards) -> str:
        """Return the versions of the code that determines a job's results; the job reruns when they change."""
        stage = self.rule.run
        by_source = {name: _VERSIONS[name](self.dag, w) for name in self.rule.versions}
        if "method" in by_source and self.dag.method_of(w).source.endswith(".py"):
            others = {stage, *(key for name, of_one in by_source.items() if name != "method" for key in of_one)}
            by_source["method"] = _renamed(by_source["method"], others)
        versions: dict[str, Any] = {stage: registry.stage_version(stage)}
        for of_source in by_source.values():
            for key, version in of_source.items():
                versions.setdefault(key, version)
        return json.dumps(versions)


def _of_method(dag: Dag, w: Wildcards) -> dict[str, Any]:
    """Return the version of a method; for a user's file, the name of its module, which ends in the file's checksum."""
    method = dag.method_of(w)
    return {method.name: method.module.__name__ if method.source.endswith(".py") else method.module.VERSION}


def _renamed(versions: Mapping[str, Any], others: Container[str]) -> dict[str, Any]:
    """Return the versions of a user's file, whose stem may be any of the other keys, under keys that differ from them.

    All other keys are kept, because a changed key reruns the jobs of finished studies.
    """
    return {f"method {key}" if key in others else key: version for key, version in versions.items()}


_VERSIONS: Mapping[str, Callable[[Dag, Wildcards], Mapping[str, Any]]] = {
    "training": lambda dag, w: {"training": training.VERSION},
    "dense": lambda dag, w: {"dense": registry.load("method", "dense").VERSION},
    "method": _of_method,
    "isp": lambda dag, w: {"isp": copies.VERSION},
    "mathematics": lambda dag, w: dag.method_of(w).traits.mathematics,
    "rounds": lambda dag, w: {stage: registry.stage_version(stage) for stage in ("train_segment", "prune_denoised")},
    "uniform_soup": lambda dag, w: {"uniform_soup": uniform_soup.VERSION},
    "backbone": lambda dag, w: {f"backbone {w.backbone}": dag.study.backbone(w.backbone).version},
    "task": lambda dag, w: {f"task {w.task}": dag.study.task(w.task).version},
    "protocol": lambda dag, w: {
        "protocol": registry.load("backbone", w.backbone).PRETRAINING.model_dump(mode="json"),
    },
}
"""Versions on which the results of a job may depend besides its stage. Finished studies contain the returned keys."""
