"""What a study takes, known before it runs: its jobs, their steps and FLOPs, hours, disk, and what sharing saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from isp.config import Study
from isp.workflow.jobs import Job, Jobs
from isp.workflow.measuring import check_layers, measured, stated, time_overhead
from isp.workflow.rates import Rates
from isp.workflow.rules import RULES
from isp.workflow.starts import Starts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs of a study and what each takes.

    Attributes:
        jobs: of the study.
        rates: by backbone and task.
        throughput: that was stated, FLOPs a second; None: measured.
        parallel: jobs side by side.
        starts: measured here; None: an overhead was stated.
    """

    jobs: Jobs
    rates: Mapping[tuple[str, str], Rates]
    throughput: float | None
    parallel: int
    starts: Starts | None = None

    def flops(self, job: Job) -> int:
        """Of a job, executed."""
        rate = self.rates[job.place]
        return job.steps * rate.step_flops + job.scored * rate.example_flops

    def seconds(self, job: Job) -> float:
        """Of a job."""
        rate = self.rates[job.place]
        trained = job.steps * rate.step_seconds + self.selection_seconds(job)
        return self.overhead_seconds(job) + trained + job.scored * rate.example_seconds

    def overhead_seconds(self, job: Job) -> float:
        """Of these the seconds beside steps, scores and selections: its start, building, reading, ranking, writing."""
        rule, rate = RULES[job.rule], self.rates[job.place]
        on_gpu = bool(rule.reads) and self.jobs.study.device != "cpu"  # what reads no examples ranks on a CPU
        return (
            self._processes(job)
            * (rate.job_seconds + rate.build_seconds * bool(rule.reads) + rate.read_seconds * self.read(job))
            + rate.write_seconds * self.disk(job)
            + job.rankings * (rate.selection_seconds if on_gpu else rate.ranking_seconds)
        )

    def _processes(self, job: Job) -> int:
        """Of a job; copies apart are started, and read, like jobs."""
        return 1 + job.copies * (self.jobs.study.look_aheads == "apart")

    def read(self, job: Job) -> int:
        """Bytes that it reads: what other jobs of the study made for it, and prepared examples."""
        rate, dag = self.rates[job.place], self.jobs.dag
        task = job.place[1]
        sizes = {"train": dag.study.num_train, "validation": dag.num_validation, "test": dag.num_test}
        made = [self.jobs.by_output[path] for path in job.inputs]
        borrowed = rate.weights * (job.borrowed + sum(each.borrowed for each in made))
        return (
            borrowed
            + sum(map(self.disk, made))
            + sum(rate.example * sizes[part](task) for part in RULES[job.rule].reads)
        )

    def selection_seconds(self, job: Job) -> float:
        """Of these the seconds in which a job selects masks while it trains."""
        return job.selections * self.rates[job.place].selection_seconds

    def disk(self, job: Job) -> int:
        """Bytes of its output: kept and unpruned weights, and what it has for every prunable weight."""
        rate = self.rates[job.place]
        per_weight = job.bits / 8 - 4 * job.weights * float(job.sparsity)
        return round(job.weights * rate.weights + per_weight * rate.prunable)

    def passing(self, job: Job) -> int:
        """Of these the bytes that are deleted when nothing needs them any more."""
        rule, rate = RULES[job.rule], self.rates[job.place]
        if rule.temporary:
            return self.disk(job)
        return round(job.weights * (rate.weights - 4 * float(job.sparsity) * rate.prunable)) * rule.temporary_beside

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
            "selection_hours": sum(map(self.selection_seconds, jobs)) / 3600,
            "with_sharing": self._sum(_costs(jobs)),
            "without_sharing": {
                key: sum(row[f"{key}_alone"] for row in alone) for key in ("steps", "flops", "seconds")
            },
            "disk": self._disk(),
            **({"starts": self._starts(self.starts)} if self.starts else {}),
        }

    def _starts(self, starts: Starts) -> dict[str, Any]:
        """What was measured, and the overhead of all jobs if each is an entry of a cluster's queue."""
        rates = {backbone: rate for (backbone, _), rate in self.rates.items()}
        jobs, cluster = self.jobs.by_output.values(), None
        if starts.on_cluster is not None:
            cluster = sum(map(self.overhead_seconds, jobs)) + len(jobs) * (starts.on_cluster - starts.here)
        return {
            **asdict(starts),
            "backbones": {
                backbone: {key: getattr(rate, f"{key}_seconds") for key in ("build", "read", "write", "ranking")}
                for backbone, rate in rates.items()
            },
            "overhead_seconds_on_cluster": cluster,
        }

    def _sum(self, jobs: Iterable[Job]) -> dict[str, Any]:
        own = list(jobs)
        return {
            "jobs": len(own),
            "steps": sum(job.steps for job in own),
            "selections": sum(job.selections for job in own),
            "flops": sum(map(self.flops, own)),
            "seconds": round(sum(map(self.seconds, own)), 1),
            "start_seconds": round(sum(map(self._processes, own)) * (self.starts.here if self.starts else 0), 1),
            "overhead_seconds": round(sum(map(self.overhead_seconds, own)), 1),
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
        """Bytes by what they are: what stays, what is written to be deleted, and the most that lies there at a time.

        A chain of rounds that is being made holds two states and the copies of a round, or the tickets of its rounds
        if others are pooled of them; a soup all that is mixed. One chain or soup for each job that runs beside others
        is counted.
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
    """Without evaluations, which are no cost of a ticket, and rewind points: they lie on the dense run's way."""
    return (job for job in jobs if RULES[job.rule].is_cost)


def _by(jobs: Iterable[Job], key: Callable[[Job], Any]) -> dict[Any, list[Job]]:
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups


def _chain_and_round(output: str) -> tuple[str, str]:
    """The chain and the round that a temporary file belongs to; what a soup is mixed of has a folder and no round.

    Tickets of rounds, which may all be pooled at the end of the chain, have its folder.
    """
    if output.endswith("/ticket.safetensors"):
        return output.rsplit("/", 2)[0], ""
    chain, _, rest = output.partition("/round")
    return (chain, rest.split("/")[0]) if rest else (output.rpartition("/")[0], "")


def make_plan(study: Study, throughput: float | None, overhead: float | Starts, parallel: int) -> Plan:
    """The plan of a study. Prepared tensors below the current folder are looked at.

    Args:
        study: the study.
        throughput: FLOPs a second that a job sustains; None: steps are timed here.
        overhead: seconds of a job beside its work; or what its start takes, and the rest is timed here.
        parallel: jobs side by side.

    Raises:
        ConfigError: an N:M scope does not fit into a layer.
    """
    check_layers(study)
    jobs = Jobs(study)
    starts = overhead if isinstance(overhead, Starts) else None
    found: dict[tuple[str, str], Rates] = {}
    timed: dict[str, dict[str, Any]] = {}
    for place in dict.fromkeys(job.place for job in jobs.by_output.values()):
        seconds = overhead.here if isinstance(overhead, Starts) else overhead
        rates = stated(study, *place, throughput, seconds) if throughput else measured(study, *place, seconds)
        if starts and place[0] not in timed:
            timed[place[0]] = time_overhead(study, *place)
        found[place] = replace(rates, **timed.get(place[0], {}))
    return Plan(jobs=jobs, rates=found, throughput=throughput, parallel=parallel, starts=starts)
