"""Memory and time that a job requests from a cluster, by the estimates of `isp plan`.

Memory is that of a stage: copies of the model's weights, the activations that training saves for the backward pass (on
a CPU; on a GPU they are in device memory), masks and scores, mapped examples, and in addition Python, its imports and
the two Snakemake processes of a job. Time is that of the steps and scored examples at the study's throughput. Both are
upper bounds. If an attempt exceeds its limits, the next one requests more, and training resumes from a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import StrictBool

from isp import files
from isp.config import Study
from isp.errors import ArtifactError, ConfigError, DataError
from isp.lineage import LARGE
from isp.shapes import Number
from isp.workflow import paths
from isp.workflow.jobs import Job, Jobs
from isp.workflow.rates import Rates, selection_seconds
from isp.workflow.rule import Rule, Sizes
from isp.workflow.rules import RULES

MB = 10**6
BASE_MB = 2500
"""Memory of Python and its imports in the stage (at most 700 MB) and in the two Snakemake processes of a job."""
COPY_MB = 800
"""Memory of Python and its imports in the process of a separate look-ahead."""
OVERHEAD_MINUTES = 10
"""Overhead of a job: starts, imports, reading, writing, a slow file system."""
MARGIN = 2.0
"""Safety factor on the estimated time."""
CODE_MINUTES = 30
"""Time limit of jobs that run no model of the study: reports, downloads, pre-training of tiny backbones."""
UNKNOWN = Rates(
    step_flops=10**15,
    example_flops=10**13,
    step_seconds=0.0,
    example_seconds=0.0,
    selection_seconds=0.0,
    job_seconds=0.0,
    weights=1400 * MB,
    prunable=302 * 10**6,
    activations=100 * MB,
    example=3 * 384**2,
)
"""Rates of a backbone whose files do not exist yet: about those of BERT-large with batches of 128."""
COUNTED = 1
"""Version of the counting; raised when it changes."""


@dataclass(frozen=True)
class Requests:
    """Memory and time requests of a study's jobs. The rules call `mem_mb` and `runtime` with Snakemake's arguments.

    Attributes:
        study: The study.
        asked: False if nothing limits memory and time, as on a local machine. Nothing is estimated then, and all jobs
            request the same.
    """

    study: Study
    asked: bool = True

    @cached_property
    def _jobs(self) -> Jobs:
        return Jobs(self.study)

    @cached_property
    def _rates(self) -> dict[tuple[str, str], Rates]:
        return {}

    @cached_property
    def _longest(self) -> float:
        text = os.environ.get("ISP_LONGEST_MINUTES", "inf")
        try:
            minutes = float(text)
        except ValueError:
            minutes = 0.0
        if not minutes > 0:
            raise ConfigError(f"ISP_LONGEST_MINUTES must be a number of minutes such as 1440, got {text!r}")
        return minutes

    def _rates_of(self, place: tuple[str, str]) -> Rates:
        if place not in self._rates:
            try:
                self._rates[place] = bound_rates(self.study, *place)
            except DataError:  # the architecture is not downloaded yet
                self._rates[place] = UNKNOWN
        return self._rates[place]

    @cached_property
    def _found(self) -> dict[str, tuple[int, float, int]]:
        return {}

    def _needs(self, rule: Rule, w: Any) -> tuple[int, float, int] | None:
        """Return the bytes, seconds and look-aheads of a job; None if it belongs to no cell of the study."""
        if rule.jobs is not None:
            return None
        output = paths.fill(rule.output, w)
        if output not in self._found:
            job = self._jobs.job(output)
            self._found[output] = self.held(job), self.seconds(job), job.copies
        return self._found[output]

    def mem_mb(self, wildcards: Any, attempt: int, rulename: str, threads: int = 1) -> int:
        """Return the memory request in megabytes; each further attempt adds half of the first request.

        Each parallel look-ahead needs as much memory as the job itself.
        """
        if not self.asked:
            return BASE_MB
        rule, at_once = RULES[rulename], 0
        needs = self._needs(rule, wildcards)
        if needs is not None:
            held, _, num_copies = needs
            at_once = min(num_copies, threads // self.study.threads)
        elif rule.memory_of:
            jobs = (job for job in self._jobs.by_output.values() if job.rule == rule.memory_of)
            held = max(map(self.held, jobs), default=0)
        elif rule.memory:
            backbone = wildcards.backbone
            some = next(group.task for group in self.study.groups() if group.backbone == backbone)
            task = getattr(wildcards, "task", some)
            rates = self._rates_of((backbone, task))
            prepared = self.study.task(task).num_examples * rates.example
            held = rule.memory(Sizes(weights=rates.weights, prunable=rates.prunable, prepared=prepared))
        else:
            held = 0
        beside = at_once * (COPY_MB + held / MB) if at_once > 1 else 0
        return math.ceil((BASE_MB + held / MB + beside) * (1 + 0.5 * (attempt - 1)))

    def runtime(self, wildcards: Any, attempt: int, rulename: str) -> int:
        """Return the time request in minutes; it grows with each attempt, up to ISP_LONGEST_MINUTES."""
        if not self.asked:
            return CODE_MINUTES
        needs = self._needs(RULES[rulename], wildcards)
        minutes = OVERHEAD_MINUTES + MARGIN * needs[1] / 60 if needs is not None else CODE_MINUTES
        return math.ceil(min(minutes * attempt, self._longest))

    def seconds(self, job: Job) -> float:
        """Return the time of a job's steps, examples and selections at the study's throughput."""
        rates = self._rates_of(job.place)
        flops = job.steps * rates.step_flops + job.scored * rates.example_flops
        selecting = job.selections * selection_seconds(self.study.device, rates.prunable)
        return flops / self.study.sustained() + selecting

    def held(self, job: Job) -> int:
        """Return the peak host memory of a stage in bytes."""
        rates = self._rates_of(job.place)
        batch = rates.activations * self.study.protocol(*job.place).batch_size if self.study.device == "cpu" else 0
        sizes = Sizes(
            weights=rates.weights,
            prunable=rates.prunable,
            inputs=len(job.inputs),
            copies=job.copies,
            examples=min(LARGE, rates.example * self.study.num_train(job.place[1])),
            batch=batch,
        )
        memory = RULES[job.rule].memory
        return memory(sizes) if memory else 0


def bound_rates(study: Study, backbone: str, task: str) -> Rates:
    """Return upper bounds of FLOPs and sizes: all texts have the maximum length, whatever is prepared. No seconds.

    They are counted once and cached in `resources/rates/`.

    Raises:
        DataError: The backbone's architecture is in a file that does not exist yet.
    """
    same = next(group.task for group in study.groups() if group.backbone == backbone)
    training = study.protocol(backbone, task)
    of = [study.defined("backbone", backbone), study.defined("task", same), training.batch_size, COUNTED]
    digest = hashlib.blake2b(json.dumps([*of, metadata.version("torch")]).encode(), digest_size=6).hexdigest()
    path = Path(f"resources/rates/{backbone}.{digest}.json")
    try:
        return Rates(**files.read_json(path, "plan", dict[str, Number | StrictBool]))
    except (ArtifactError, TypeError):  # missing, or from another version
        from isp.workflow.measuring import count_rates

        rates = count_rates(study, backbone, task, same, prepared=False)
        files.write_json(path, asdict(rates))
        return rates
