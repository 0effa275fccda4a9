"""Plan of a study, before it runs: its jobs, their steps and FLOPs, hours, disk space, and the savings by sharing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import fsum
from typing import Any

from isp.config import Study
from isp.workflow.jobs import Job, Jobs
from isp.workflow.measuring import check_layers, measure_rates, rates_at, time_overhead
from isp.workflow.rates import Rates
from isp.workflow.rules import RULES
from isp.workflow.starts import Starts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs of a study and the resources that each needs.

    Attributes:
        jobs: Jobs of the study.
        rates: Rates by backbone and task.
        throughput: Given throughput in FLOPs per second; None if it was measured.
        parallel: Number of parallel jobs.
        starts: Measured start times; None if an overhead was given.
    """

    jobs: Jobs
    rates: Mapping[tuple[str, str], Rates]
    throughput: float | None
    parallel: int
    starts: Starts | None = None

    def flops(self, job: Job) -> int:
        """Return the executed FLOPs of a job."""
        rate = self.rates[job.place]
        return job.steps * rate.step_flops + job.scored * rate.example_flops

    def seconds(self, job: Job) -> float:
        """Return the duration of a job in seconds."""
        rate = self.rates[job.place]
        trained = job.steps * rate.step_seconds + self.selection_seconds(job)
        return self.overhead_seconds(job) + trained + job.scored * rate.example_seconds

    def overhead_seconds(self, job: Job) -> float:
        """Return the part of `seconds` for the start, building, reading, ranking and writing."""
        rule, rate = RULES[job.rule], self.rates[job.place]
        on_gpu = bool(rule.reads) and self.jobs.study.device != "cpu"  # stages that read no examples rank on the CPU
        makers = [self.jobs.by_output[path] for path in job.inputs]
        return (
            self._processes(job)
            * (
                rate.job_seconds
                + rate.build_seconds * bool(rule.reads)
                + rate.read_seconds * (self.read(job) + self.examples(job) * (not self._verifies_once))
                + rate.expand_seconds * sum(map(self.masked, makers))
            )
            + rate.write_seconds * self.disk(job)
            + rate.compress_seconds * self.masked(job)
            + job.rankings * (rate.selection_seconds if on_gpu else rate.ranking_seconds)
        )

    @property
    def _verifies_once(self) -> bool:
        """Whether jobs share a fork server, so that a run verifies prepared examples once (`isp.runtime.verified`)."""
        return self.starts is not None and self.starts.warm is not None

    def _processes(self, job: Job) -> int:
        """Return the number of processes of a job; separate look-aheads start, and read, like jobs."""
        return 1 + job.copies * (self.jobs.study.look_aheads == "apart")

    def read(self, job: Job) -> int:
        """Return the bytes that a job reads of outputs of other jobs of the study, and of the weights file."""
        makers = [self.jobs.by_output[path] for path in job.inputs]
        borrowed = job.borrowed + sum(each.borrowed for each in makers)
        return self.rates[job.place].weights * borrowed + sum(map(self.disk, makers))

    def examples(self, job: Job) -> int:
        """Return the bytes of the prepared examples that a job uses."""
        dag = self.jobs.dag
        sizes = {"train": dag.study.num_train, "validation": dag.num_validation, "test": dag.num_test}
        return sum(self.rates[job.place].example * sizes[part](job.place[1]) for part in RULES[job.rule].reads)

    def masked(self, job: Job) -> int:
        """Return the number of values in a job's output that a mask covers."""
        return job.weights * self.rates[job.place].prunable * bool(job.bits)

    def selection_seconds(self, job: Job) -> float:
        """Return the part of `seconds` in which a job selects masks during training."""
        return job.selections * self.rates[job.place].selection_seconds

    def disk(self, job: Job) -> int:
        """Return the bytes of a job's output: nonzero weights, and the bits for each prunable weight."""
        rate = self.rates[job.place]
        per_weight = job.bits / 8 - 4 * job.weights * float(job.sparsity)
        return round(job.weights * rate.weights + per_weight * rate.prunable)

    def passing(self, job: Job) -> int:
        """Return the part of `disk` that is deleted when no job needs it any more."""
        rule, rate = RULES[job.rule], self.rates[job.place]
        if rule.temporary:
            return self.disk(job)
        return round(job.weights * (rate.weights - 4 * float(job.sparsity) * rate.prunable)) * rule.temporary_beside

    def as_json(self) -> dict[str, Any]:
        """Return the plan as written and shown: by rule, by variant and in total."""
        jobs = self.jobs.by_output.values()
        total = self._sum(jobs)
        records = self.jobs.dag.records()
        apart = self._sum(_costs(job for path in records for job in self._needed(path)))
        return {
            "study": self.jobs.study.study,
            "throughput": self.throughput,
            "parallel": self.parallel,
            "device": self.jobs.study.device,
            "threads": self.jobs.study.threads,
            "unknown_lengths": ["/".join(place) for place, rate in self.rates.items() if not rate.known_lengths],
            "rules": [{"rule": name, **self._sum(own)} for name, own in _by(jobs, lambda job: job.rule).items()],
            "shared_jobs": dict(self.jobs.shared),
            "variants": self._variants(),
            "total": {**total, "all_jobs": total["jobs"] + self.jobs.shared.total()},
            "hours": total["seconds"] / 3600,
            "wall_hours": total["seconds"] / 3600 / self.parallel,
            "selection_hours": sum(map(self.selection_seconds, jobs)) / 3600,
            "with_sharing": self._sum(_costs(jobs)),
            "without_sharing": {key: apart[key] for key in ("steps", "flops", "seconds")},
            "disk": self._disk(),
            **({"starts": self._starts(self.starts)} if self.starts else {}),
        }

    def _starts(self, starts: Starts) -> dict[str, Any]:
        """Return the measured start times, and the overhead of all jobs if each is a separate job of a cluster."""
        rates = {backbone: rate for (backbone, _), rate in self.rates.items()}
        jobs, cluster = self.jobs.by_output.values(), None
        if starts.on_cluster is not None:
            apart = replace(self, starts=None)  # without a common fork server
            cluster = sum(map(apart.overhead_seconds, jobs)) + len(jobs) * (starts.on_cluster - starts.here)
        measured = ("build", "read", "write", "ranking", "compress", "expand")
        return {
            **asdict(starts),
            "backbones": {
                backbone: {key: getattr(rate, f"{key}_seconds") for key in measured} for backbone, rate in rates.items()
            },
            "overhead_seconds_on_cluster": cluster,
        }

    def _needed(self, output: str) -> list[Job]:
        """Return the jobs within the ticket of a record."""
        return [self.jobs.by_output[path] for path in self.jobs.within(output)]

    def _sum(self, jobs: Iterable[Job]) -> dict[str, Any]:
        """Return the totals of jobs, with seconds to the microsecond, as small studies take less than one."""
        jobs_ = list(jobs)
        return {
            "jobs": len(jobs_),
            "steps": sum(job.steps for job in jobs_),
            "selections": sum(job.selections for job in jobs_),
            "flops": sum(map(self.flops, jobs_)),
            "seconds": round(fsum(map(self.seconds, jobs_)), 6),  # equal for equal jobs, in whatever order
            "start_seconds": round(sum(map(self._processes, jobs_)) * (self.starts.here if self.starts else 0), 6),
            "overhead_seconds": round(fsum(map(self.overhead_seconds, jobs_)), 6),
        }

    def _variants(self) -> list[dict[str, Any]]:
        """Return the needs of the jobs by backbone and variant, and of the tickets if each were made on its own."""
        by_output, records = self.jobs.by_output, self.jobs.dag.records()
        rows = []
        for (backbone, variant), own in _by(
            (by_output[path] for path in records), lambda job: (job.place[0], job.variant)
        ).items():
            closures = [self._needed(job.output) for job in own]
            needed = {job.output: job for closure in closures for job in closure}
            apart = self._sum(_costs(job for closure in closures for job in closure))
            together = self._sum(_costs(needed.values()))
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

    def _disk(self) -> dict[str, Any]:
        """Return the bytes of permanent files and of temporary files, by kind, and the peak disk usage.

        A chain of rounds in progress holds two states and the copies of a round, or the tickets of its rounds if they
        are pooled. A soup in progress holds all its members. One chain or soup is counted per parallel job.
        """
        kept, temporary = Counter[str](), Counter[str]()
        for job in self.jobs.by_output.values():
            rule, passing = RULES[job.rule], self.passing(job)
            temporary["state" if rule.temporary_beside else str(rule.makes)] += passing
            kept[str(rule.makes)] += self.disk(job) - passing
        rounds = [
            2 * max((self.passing(job) for job in jobs if RULES[job.rule].carries), default=0)
            + sum(self.passing(job) for job in jobs if not RULES[job.rule].carries)
            for jobs in _by(
                (job for job in self.jobs.by_output.values() if job.passing),
                lambda job: _chain_and_round(job.passing[0]),
            ).values()
        ]
        chains = len({_chain_and_round(job.passing[0])[0] for job in self.jobs.by_output.values() if job.passing})
        at_once = sum(sorted(rounds)[-min(self.parallel, chains) :]) if rounds else 0
        return {
            "kept": kept.total(),
            "kept_by_kind": {kind: size for kind, size in kept.items() if size},
            "temporary": temporary.total(),
            "temporary_by_kind": {kind: size for kind, size in temporary.items() if size},
            "chain": max(rounds, default=0),
            "peak": kept.total() + at_once,
        }


def _costs(jobs: Iterable[Job]) -> Iterator[Job]:
    """Return the jobs that count as cost: not evaluations and comparisons, nor rewind points.

    The dense run passes a rewind point anyway.
    """
    return (job for job in jobs if RULES[job.rule].is_cost)


def _by(jobs: Iterable[Job], key: Callable[[Job], Any]) -> dict[Any, list[Job]]:
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups


def _chain_and_round(output: str) -> tuple[str, str]:
    """Return the chain and the round of a temporary file; members of a soup have a folder and no round.

    Tickets of rounds have the folder of the chain, because all of them may be pooled at its end.
    """
    if output.endswith("/ticket.safetensors"):
        return output.rsplit("/", 2)[0], ""
    chain, _, rest = output.partition("/round")
    return (chain, rest.split("/")[0]) if rest else (output.rpartition("/")[0], "")


def make_plan(study: Study, throughput: float | None, overhead: float | Starts, parallel: int) -> Plan:
    """Make the plan of a study. Prepared tensors below the current folder are used if they exist.

    Args:
        study: The study.
        throughput: Sustained FLOPs per second of a job; None to time steps on this machine.
        overhead: Overhead of a job in seconds; or the start times, to time the rest on this machine.
        parallel: Number of parallel jobs.

    Raises:
        ConfigError: An N:M scope does not fit a layer.
    """
    check_layers(study)
    jobs = Jobs(study)
    starts = overhead if isinstance(overhead, Starts) else None
    rates_: dict[tuple[str, str], Rates] = {}
    timed: dict[str, dict[str, Any]] = {}
    for place in dict.fromkeys(job.place for job in jobs.by_output.values()):
        seconds = overhead.here if isinstance(overhead, Starts) else overhead
        rates = rates_at(study, *place, throughput, seconds) if throughput else measure_rates(study, *place, seconds)
        if starts and place[0] not in timed:
            timed[place[0]] = time_overhead(study, *place)
        rates_[place] = replace(rates, **timed.get(place[0], {}))
    return Plan(jobs=jobs, rates=rates_, throughput=throughput, parallel=parallel, starts=starts)
