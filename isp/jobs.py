"""The jobs of a study, as Snakemake finds them: from the records back through the inputs that `isp.dag` names.

A test holds the two to the same numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from isp import dag as paths
from isp.config import Study
from isp.dag import Dag
from isp.data.splits import validation_size
from isp.families import iterative, planned_steps, single_pass
from isp.reporting import FIGURES
from isp.training import Training

TEST_SPLIT = 5
"""A test split, which only `evaluate` looks at, is taken for a fifth of the training split."""
FORWARD = 3
"""A training step is taken for three forward passes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a study.

    Attributes:
        rule: that makes it.
        output: its path.
        inputs: paths that other jobs of the study make.
        place: backbone and task.
        variant: whose it is; "" for what variants share.
        steps: of training; at most, where they follow from what is measured on the way.
        scored: examples that it scores, in forward passes.
        selections: masks that it selects while it trains, at most; the one that other jobs select is in what every job
            takes.
        bytes_weights: how often it writes all weights, the optimizer's two moments included.
        bytes_mask: how often it writes a bit for every prunable weight.
        bytes_magnitudes: how often it writes four bytes for every prunable weight.
        temporary: whether it is deleted when nothing needs it any more.
    """

    rule: str
    output: str
    inputs: tuple[str, ...]
    place: tuple[str, str]
    variant: str = ""
    steps: int = 0
    scored: int = 0
    selections: int = 0
    bytes_weights: int = 0
    bytes_mask: int = 0
    bytes_magnitudes: int = 0
    temporary: bool = False


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How jobs of a rule are known by their outputs, and what they need."""

    name: str
    pattern: re.Pattern[str]
    inputs: Callable[[Any], Any]
    work: Callable[[Any, Sequence[str]], dict[str, Any]]


class Jobs:
    """The jobs of a study by output; those in `resources/`, which studies share, are only counted."""

    def __init__(self, study: Study) -> None:
        self.study, self.dag = study, Dag(study)

    @cached_property
    def by_output(self) -> dict[str, Job]:
        """All of them."""
        found: dict[str, Job] = {}
        wanted = [*self.dag.records(), *self.dag.similarities()]
        while wanted:
            output = wanted.pop()
            if output not in found:
                job = found[output] = self.job(output)
                wanted += job.inputs
        return found

    @cached_property
    def shared(self) -> Counter[str]:
        """How many jobs of each rule make what studies share, and what people read."""
        study = self.study
        tasks = list(dict.fromkeys(group.task for group in study.groups()))
        backbones = list(dict.fromkeys(group.backbone for group in study.groups()))
        pairs = {(group.backbone, group.task) for group in study.groups()}
        embedded = [name for name in backbones if study.backbone(name).source is None]
        counted = {
            "download": len(tasks) + len(backbones) - len(embedded),
            "split": len(tasks),
            "pretrain": len(embedded),
            "convert": len(backbones) - len(embedded),
            "prepare": len(pairs),
        }
        once = dict.fromkeys(("describe", "plan", "compare_plan", "collect", "tables", "page"), 1)
        return Counter({**counted, **once, "figures": len(FIGURES)})

    def within(self, output: str) -> set[str]:
        """The outputs of all jobs that one needs, its own included: what it takes by itself."""
        found, wanted = set(), [output]
        while wanted:
            path = wanted.pop()
            if path not in found:
                found.add(path)
                wanted += self.by_output[path].inputs
        return found

    def job(self, output: str) -> Job:
        """The one that makes `output`."""
        for rule in self._rules:
            match = rule.pattern.fullmatch(output)
            if match:
                w = SimpleNamespace(study=self.study.study, **match.groupdict())
                needed = rule.inputs(w)
                needed = needed.values() if isinstance(needed, Mapping) else needed
                flat = [path for each in ([needed] if isinstance(needed, str) else needed) for path in _flat(each)]
                variant = getattr(w, "variant", "")
                place = (w.backbone, w.task)
                found = Job(rule=rule.name, output=output, inputs=tuple(flat), place=place, variant=variant)
                return replace(found, **rule.work(w, flat))
        raise AssertionError(f"no rule makes {output}")

    @cached_property
    def _rules(self) -> list[_Rule]:
        d = self.dag
        state, ticket = {"bytes_weights": 3}, {"bytes_weights": 1, "bytes_mask": 1}

        def rule(name: str, pattern: str, inputs: Any, work: Any, *ways: str) -> _Rule:
            return _Rule(
                name=name,
                pattern=_compiled(pattern, d.variants(*ways) if ways else paths.WILDCARDS["variant"]),
                inputs=inputs,
                work=work,
            )

        def mask(w: Any, _: Any) -> dict[str, Any]:
            return {"bytes_mask": 1}

        return [
            rule("initialise", paths.INITIAL, lambda w: [], lambda w, _: {"bytes_weights": 1}),
            rule(
                "finetune_dense", paths.DENSE, self._initial, lambda w, _: {"steps": self._training(w).steps, **ticket}
            ),
            rule(
                "train_to_rewind_point", paths.REWIND_POINT, self._initial, lambda w, _: {"steps": int(w.step), **state}
            ),
            rule("prune_one_shot", paths.ONE_SHOT_MASK, d.initial, self._one_shot, "one_shot"),
            rule("prune_iterative", paths.ROUND_MASK, d.previous_ticket, mask, "iterative"),
            rule("train_segment", paths.STATE, d.segment, self._segment, "denoised"),
            rule("weak_mask", paths.WEAK, d.look_ahead, self._look_ahead, "denoised"),
            rule("aggregate", paths.ROUND_MASK, d.aggregation, mask, "denoised"),
            rule(
                "retrain",
                paths.TICKET,
                d.retraining,
                lambda w, _: {"steps": self._training(w).steps - self._start(w), **ticket},
                *("one_shot", "iterative", "denoised"),
            ),
            rule(
                "find_ticket",
                paths.TICKET,
                d.initial,
                lambda w, _: {"steps": self._alone(w), "selections": self._selections(w), **ticket},
                "one_job",
            ),
            rule("pool_tickets", paths.TICKET, d.pooling, self._pooling, "pooled"),
            rule(
                "train_member",
                paths.MEMBER,
                d.initial,
                lambda w, _: {"steps": self._training(w).steps, **ticket, "temporary": True},
                *("souped", "chosen"),
            ),
            rule("average_members", paths.TICKET, d.members, lambda w, _: ticket, "souped"),
            rule("choose_members", paths.TICKET, d.members, self._choosing, "chosen"),
            rule("train_subnetwork", paths.SUBNETWORK, d.initial, self._subnetwork, "instant"),
            rule("merge_subnetworks", paths.MERGED_MASK, self._merged, self._merging, "instant"),
            rule(
                "retrain",
                paths.TICKET,
                lambda w: d.retraining(w)["mask"],  # the state is made with it
                lambda w, _: {"steps": self._training(w).steps, **ticket},
                "instant",
            ),
            rule("compare_masks", paths.SIMILARITY, d.compared, lambda w, _: {}),
            rule("evaluate", paths.RECORD, d.ticket, lambda w, _: {"scored": self._validation(w) + self._test(w)}),
        ]

    # --- the work of a job ------------------------------------------------------------------------------------------

    def _initial(self, w: Any) -> str:
        return paths.fill(paths.INITIAL, w)

    def _training(self, w: Any) -> Training:
        variant, sparsity = getattr(w, "variant", None), getattr(w, "sparsity", None)
        return self.study.protocol(w.backbone, w.task, variant, sparsity and Decimal(sparsity))

    def _start(self, w: Any) -> int:
        """The step that a ticket is trained from."""
        family = self.dag.method_of(w).module.FAMILY
        if family == "denoised":
            return self.dag.until(_with(w, round=len(self.dag.chain(w)) - 1))
        return iterative.rewind_step(self.dag.method_of(w)) if family == "iterative" else 0

    def _alone(self, w: Any) -> int:
        num_train = self.study.num_train(w.task)
        return planned_steps(self.dag.method_of(w), self._training(w), num_train, [Decimal(w.sparsity)])

    def _selections(self, w: Any) -> int:
        method = self.dag.method_of(w)
        if method.module.FAMILY != "single_pass":
            return 0
        return single_pass.num_events(method, self._training(w), Decimal(w.sparsity))

    def _one_shot(self, w: Any, _: Any) -> dict[str, Any]:
        """Scores from batches or in rounds; each is taken for a training step."""
        settings = self.dag.method_of(w).settings
        passes = getattr(settings, "batches", 0) * self._training(w).batch_size + getattr(settings, "rounds", 0)
        return {"scored": FORWARD * passes, "bytes_mask": 1}

    def _segment(self, w: Any, _: Any) -> dict[str, Any]:
        start = self.dag.until(_with(w, round=int(w.round) - 1)) if int(w.round) else 0
        return {"steps": self.dag.until(w) - start, "bytes_weights": 3, "temporary": True}

    def _look_ahead(self, w: Any, _: Any) -> dict[str, Any]:
        settings: Any = self.dag.method_of(w).settings
        written = "bytes_magnitudes" if settings.contribution == "magnitudes" else "bytes_mask"
        return {"steps": self.dag.look_ahead_protocol(w).look_ahead_steps, written: 1, "temporary": True}

    def _pooling(self, w: Any, needed: Sequence[str]) -> dict[str, Any]:
        settings: Any = self.dag.method_of(w).settings
        evaluations = 1 + len(settings.coefficients) * (len(needed) - 1)
        return {"scored": evaluations * self._validation(w), "bytes_weights": 1, "bytes_mask": 1}

    def _choosing(self, w: Any, needed: Sequence[str]) -> dict[str, Any]:
        """Each member alone, and all averages that are tried."""
        evaluations = 2 * len(needed) - 1
        return {"scored": evaluations * self._validation(w), "bytes_weights": 1, "bytes_mask": 1}

    def _subnetwork(self, w: Any, _: Any) -> dict[str, Any]:
        settings: Any = self.dag.method_of(w).settings
        return {"steps": settings.look_ahead_steps, "bytes_weights": 1, "temporary": True}

    def _merged(self, w: Any) -> list[str]:
        return [self.dag.initial(w), *self.dag.subnetworks(w)]

    def _merging(self, w: Any, needed: Sequence[str]) -> dict[str, Any]:
        settings: Any = self.dag.method_of(w).settings
        evaluations = 1 + len(list(filter(None, settings.coefficients))) * (len(needed) - 1)
        return {"scored": evaluations * self._validation(w), "bytes_mask": 1}

    def _validation(self, w: Any) -> int:
        task = self.study.task(w.task)
        return self.study.limits(w.task).num_validation or validation_size(task.num_examples, task.num_validation)

    def _test(self, w: Any) -> int:
        return self.study.task(w.task).num_examples // TEST_SPLIT


def _with(w: Any, **changed: Any) -> Any:
    return SimpleNamespace(**{**vars(w), **changed})


def _compiled(pattern: str, variants: str) -> re.Pattern[str]:
    found = re.sub(r"\\{(\w+)\\}", r"{\1}", re.escape(pattern))
    seen: set[str] = set()

    def named(match: re.Match[str]) -> str:
        name = match[1]
        if name == "study":
            return "[^/]+"
        kind = variants if name == "variant" else paths.WILDCARDS[name]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{kind})"

    return re.compile(re.sub(r"{(\w+)}", named, found))


def _flat(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
