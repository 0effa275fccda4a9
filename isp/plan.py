"""What a study takes, known before it runs: its jobs, their steps and FLOPs, hours, disk, and what sharing saves.

The jobs are found as Snakemake finds them, from the records back through the inputs that `isp.dag` names; a test holds
the two to the same numbers. What a job takes follows from its steps and the examples that it scores; the cost of one of
these is counted on a model of the right shape, and timed there if hours are to be those of this machine.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from isp import artifacts, masks
from isp import dag as paths
from isp.config import Study
from isp.dag import Dag
from isp.data.preparation import limited
from isp.data.splits import validation_size
from isp.families import iterative, planned_steps
from isp.masks import num_weights
from isp.prunable import prunable_names
from isp.reporting import FIGURES
from isp.training import BatchOrder, Trainer, Training, default_loss, make_trainer, state_of

UNKNOWN_TEST = 5
"""A test split that is not prepared yet is taken for a fifth of the training split."""
FORWARD = 3
"""A training step is taken for three forward passes."""

# --- jobs -------------------------------------------------------------------------------------------------------------


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
    """The jobs of a study by output; those in `resources/`, which studies share, are only counted.

    Args:
        study: the study.
        prepared: folder below which prepared tensors are looked for (the current one in a run).
    """

    def __init__(self, study: Study, prepared: Path = Path()) -> None:
        self.study, self.dag, self._prepared = study, Dag(study), prepared
        self.by_output: dict[str, Job] = {}
        wanted = [*self.dag.records(), *self.dag.similarities()]
        while wanted:
            output = wanted.pop()
            if output not in self.by_output:
                job = self.by_output[output] = self._job(output)
                wanted += job.inputs

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
        return Counter({**counted, "describe": 1, "collect": 1, "tables": 1, "figures": len(FIGURES)})

    def within(self, output: str) -> set[str]:
        """The outputs of all jobs that one needs, its own included: what it takes by itself."""
        found, wanted = set(), [output]
        while wanted:
            path = wanted.pop()
            if path not in found:
                found.add(path)
                wanted += self.by_output[path].inputs
        return found

    def _job(self, output: str) -> Job:
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
                lambda w, _: {"steps": self._alone(w), **ticket},
                "one_job",
            ),
            rule("pool_tickets", paths.TICKET, d.pooling, self._pooling, "pooled"),
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
        return {"steps": settings.look_ahead_steps, written: 1, "temporary": True}

    def _pooling(self, w: Any, needed: Sequence[str]) -> dict[str, Any]:
        settings: Any = self.dag.method_of(w).settings
        evaluations = 1 + len(settings.coefficients) * (len(needed) - 1)
        return {"scored": evaluations * self._validation(w), "bytes_weights": 1, "bytes_mask": 1}

    def _validation(self, w: Any) -> int:
        task = self.study.task(w.task)
        return self.study.limits(w.task).num_validation or validation_size(task.num_examples, task.num_validation)

    def _test(self, w: Any) -> int:
        return self._sizes(w.backbone, w.task)

    def _sizes(self, backbone: str, task: str) -> int:
        key = (backbone, task)
        if key not in self._known:
            path = self._prepared / paths.PREPARED.format(backbone=backbone, task=task, split="test")
            known = path.exists() and len(artifacts.load_examples(path, "test")[0]["labels"])
            self._known[key] = known or self.study.task(task).num_examples // UNKNOWN_TEST
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[str, str], int]:
        return {}


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


# --- what a step takes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What work on a backbone and task takes.

    Attributes:
        step_flops: of a training step, executed, mean over an epoch.
        example_flops: of scoring an example.
        step_seconds, example_seconds: the same in seconds.
        job_seconds: of reading, building and writing, whatever a job does.
        weights: bytes of all weights at four bytes each.
        prunable: how many weights are prunable.
        known_lengths: False where the lengths of texts are not known yet, so that all are taken for the longest.
    """

    step_flops: int
    example_flops: int
    step_seconds: float
    example_seconds: float
    job_seconds: float
    weights: int
    prunable: int
    known_lengths: bool = True


def rates(
    study: Study, backbone: str, task: str, throughput: float | None, overhead: float, prepared: Path = Path()
) -> Rates:
    """What work on a backbone and task takes, counted on a model of its shape with random weights.

    Args:
        study: the study.
        backbone: its name.
        task: its name.
        throughput: FLOPs a second that are sustained; None: steps are timed here, on the study's device and threads.
        overhead: seconds of a job beside its work, with a throughput.
        prepared: folder below which prepared tensors are looked for.
    """
    made, definition = study.backbone(backbone), study.task(task)
    training = study.protocol(backbone, task)
    model, architecture, tensors = made.blank(definition, 2 * training.batch_size, study.data_root)
    path = prepared / paths.PREPARED.format(backbone=backbone, task=task, split="train")
    if path.exists():
        tensors = limited(artifacts.load_examples(path, "train")[0], study.limits(task).num_train)
    if throughput is None:
        torch.set_num_threads(study.threads)
        model.to(study.device)
        tensors = {name: tensor.to(study.device) for name, tensor in tensors.items()}
    examples = made.examples(tensors, architecture, study.limits(task).augmentation)
    small = training.model_copy(update={"batch_size": 2})  # FLOPs are in proportion
    counted = make_trainer(model, examples, default_loss, small, prunable_names(model, made.prunable), 0)
    trainer = replace(counted, training=training)
    epoch = BatchOrder(len(examples), training.batch_size, 0).steps_per_epoch
    step_flops = trainer.cost(range(epoch)).flops // epoch * training.batch_size // small.batch_size
    state = state_of(model)
    found = Rates(
        step_flops=step_flops,
        example_flops=step_flops // training.batch_size // FORWARD,
        step_seconds=0.0,
        example_seconds=0.0,
        job_seconds=overhead,
        weights=sum(4 * tensor.numel() for tensor in state.weights.values()),
        prunable=num_weights(trainer.prunable_weights(state)),
        known_lengths=path.exists() or study.task(task).inputs == "pictures",
    )
    if throughput is not None:
        return replace(found, step_seconds=step_flops / throughput, example_seconds=found.example_flops / throughput)
    step, example, job = _timed(trainer, lambda: made.restore(state.weights, architecture))
    return replace(found, step_seconds=step, example_seconds=example, job_seconds=job)


def _timed(trainer: Trainer, build: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds of a step, of scoring an example, and of what every job does beside: build, read, write, rank."""
    from isp.evaluation import outputs_of

    state, _ = trainer.run(state_of(trainer.model), 2)  # the first steps warm up
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < 3 or steps < 4:
        state, _ = trainer.run(state, state.step + 4)
        steps += 4
    step = (time.perf_counter() - begun) / steps
    examples: Any = trainer.examples
    begun = time.perf_counter()
    outputs_of(trainer.model, examples)
    example = (time.perf_counter() - begun) / len(examples)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        artifacts.save_state(Path(folder) / "state", state, {})
        artifacts.load_state(Path(folder) / "state")
    masks.prune_by_magnitude(trainer.prunable_weights(state), Decimal("0.5"))
    build()
    return step, example, time.perf_counter() - begun


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs of a study and what each takes.

    Attributes:
        jobs: of the study.
        rates: by backbone and task.
        throughput: that was stated, FLOPs a second; None: measured.
        parallel: jobs side by side.
    """

    jobs: Jobs
    rates: Mapping[tuple[str, str], Rates]
    throughput: float | None
    parallel: int

    def flops(self, job: Job) -> int:
        """Of a job, executed."""
        rate = self.rates[job.place]
        return job.steps * rate.step_flops + job.scored * rate.example_flops

    def seconds(self, job: Job) -> float:
        """Of a job."""
        rate = self.rates[job.place]
        return rate.job_seconds + job.steps * rate.step_seconds + job.scored * rate.example_seconds

    def disk(self, job: Job) -> int:
        """Bytes of its output."""
        rate = self.rates[job.place]
        per_weight = job.bytes_mask / 8 + job.bytes_magnitudes * 4
        return round(job.bytes_weights * rate.weights + per_weight * rate.prunable)

    def as_json(self) -> dict[str, Any]:
        """What is written and shown: by rule, by variant, in all."""
        jobs = self.jobs.by_output.values()
        total = self._sum(jobs)
        alone = self._variants()
        return {
            "study": self.jobs.study.study,
            "throughput": self.throughput,
            "parallel": self.parallel,
            "device": self.jobs.study.device,
            "threads": self.jobs.study.threads,
            "unknown_lengths": ["/".join(place) for place, rate in self.rates.items() if not rate.known_lengths],
            "rules": [{"rule": name, **self._sum(own)} for name, own in _by(jobs, lambda job: job.rule).items()],
            "shared_jobs": dict(self.jobs.shared),
            "variants": alone,
            "total": {**total, "all_jobs": total["jobs"] + self.jobs.shared.total()},
            "hours": total["seconds"] / 3600,
            "wall_hours": total["seconds"] / 3600 / self.parallel,
            "without_sharing": {
                key: sum(row[f"{key}_alone"] for row in alone) for key in ("steps", "flops", "seconds")
            },
            "disk": self._disk(),
        }

    def _sum(self, jobs: Iterable[Job]) -> dict[str, Any]:
        own = list(jobs)
        return {
            "jobs": len(own),
            "steps": sum(job.steps for job in own),
            "flops": sum(map(self.flops, own)),
            "seconds": round(sum(map(self.seconds, own)), 1),
        }

    def _variants(self) -> list[dict[str, Any]]:
        """By backbone and variant: what its jobs take, and what its tickets would if each were made by itself."""
        by_output, records = self.jobs.by_output, self.jobs.dag.records()
        rows = []
        for (backbone, variant), own in _by(
            (by_output[path] for path in records), lambda job: (job.place[0], job.variant)
        ).items():
            closures = [[by_output[path] for path in self.jobs.within(job.output)] for job in own]
            needed = {job.output: job for closure in closures for job in closure}
            apart = self._sum(job for closure in closures for job in closure)
            together = self._sum(needed.values())
            rows.append(
                {
                    "backbone": backbone,
                    "variant": variant,
                    "tickets": len(own),
                    **together,
                    **{f"{key}_alone": apart[key] for key in ("steps", "flops", "seconds")},
                }
            )
        return rows

    def _disk(self) -> dict[str, int]:
        """Bytes: what stays, what is deleted on the way, and the most that lies there at a time.

        A chain of rounds that is being made holds two states and the copies of a round; one chain for each job that
        runs beside others is counted.
        """
        jobs = self.jobs.by_output.values()
        temporary = [job for job in jobs if job.temporary]
        kept = sum(self.disk(job) for job in jobs) - sum(map(self.disk, temporary))
        rounds = [
            2 * max((self.disk(job) for job in own if job.rule == "train_segment"), default=0)
            + sum(self.disk(job) for job in own if job.rule != "train_segment")
            for own in _by(
                temporary, lambda job: job.output.rsplit("/round", 1)[0] + job.output.split("/round")[1][:2]
            ).values()
        ]
        chains = len({job.output.split("/round")[0] for job in temporary})
        at_once = sum(sorted(rounds)[-min(self.parallel, chains) :]) if rounds else 0
        return {"kept": kept, "temporary": sum(map(self.disk, temporary)), "peak": kept + at_once}


def _by(jobs: Iterable[Job], key: Callable[[Job], Any]) -> dict[Any, list[Job]]:
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups


def make_plan(study: Study, throughput: float | None, overhead: float, parallel: int, prepared: Path = Path()) -> Plan:
    """The plan of a study.

    Args:
        study: the study.
        throughput: FLOPs a second that are sustained; None: timed on this machine.
        overhead: seconds of a job beside its work, with a throughput.
        parallel: jobs side by side.
        prepared: folder below which prepared tensors are looked for.
    """
    jobs = Jobs(study, prepared)
    places = dict.fromkeys(job.place for job in jobs.by_output.values())
    found = {place: rates(study, *place, throughput, overhead, prepared) for place in places}
    return Plan(jobs=jobs, rates=found, throughput=throughput, parallel=parallel)
