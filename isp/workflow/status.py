"""How far a study is: which jobs are done, running, failed or left, and about how long the rest takes.

It reads only files, so it works while Snakemake runs, wherever its jobs do. `look` reads, `report` reckons. What
Snakemake would make again because a setting changed is not seen: a file that is there counts as done.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from isp import files, registry
from isp.config import Study, parse_study
from isp.errors import ConfigError, IspError
from isp.families import describe_method
from isp.runtime import watch
from isp.runtime.warm import is_stopped
from isp.shapes import Plan
from isp.workflow import paths
from isp.workflow.jobs import Job, Jobs
from isp.workflow.rules import RULES

State = Literal["done", "running", "lost", "failed", "left"]
"""Of a job; lost: its process was killed."""
SAMPLED = 10
"""Logs that are read for the time that a rule takes on a backbone and task."""
END_LINES = 6
_ERROR = re.compile(r"^(isp: |(\w+\.)*\w*(Error|Exception|Interrupt)\b)")


@dataclass(frozen=True)
class Log:
    """The end of a log, and the seconds since it was written to."""

    text: str
    age: float


@dataclass(frozen=True)
class Mark:
    """A marker (see `isp.runtime.watch`): seconds since it was renewed, what it says, whether its process is stopped.

    A stopped process (SIGSTOP) renews nothing, but lives. It is known of processes of this machine only.
    """

    age: float
    says: Mapping[str, Any] = field(default_factory=dict)
    stopped: bool = False

    @property
    def lives(self) -> bool:
        """Whether its process does."""
        return self.stopped or self.age < watch.LOST_SECONDS


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What lies in the folder of a study.

    Attributes:
        files: paths that are there.
        marks: by output.
        log: gives a log by its path; None: there is none.
        now: seconds since the epoch.
    """

    files: set[str]
    marks: Mapping[str, Mark]
    log: Callable[[str], Log | None]
    now: float


def log_of(study: str, output: str) -> str:
    """The path of the log of a job."""
    return paths.log(output.replace(paths.STUDY.format(study=study), paths.STUDY, 1)).format(study=study)


def report(jobs: Jobs, seen: Seen, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """How far a study is, as `isp status --json` prints it.

    Args:
        jobs: of the study.
        seen: in its folder.
        plan: that was made before it ran, if there is one.
    """
    order, states = _order(jobs), states_of(jobs, seen)
    groups = _tickets(jobs, order, states)
    name = jobs.study.study
    running = [_running(job, seen) for job in jobs.by_output.values() if states[job.output] == "running"]
    failed = [
        {"rule": job.rule, "output": job.output, "lost": states[job.output] == "lost"}
        | _end(seen, log_of(name, job.output))
        for job in jobs.by_output.values()
        if states[job.output] in ("lost", "failed")
    ]
    tickets = Counter[str]()
    for row in groups:
        tickets.update({key: row[key] for key in ("tickets", "done", "running", "failed", "left")})
    return {
        "study": name,
        "jobs": {"all": len(states), **_count(states.values())},
        "tickets": {"all": tickets.pop("tickets"), **tickets},
        "groups": groups,
        "running": sorted(running, key=lambda each: each["seconds"] or 0, reverse=True),
        "failed": failed + _others(jobs.study, seen),
        "left": _left(jobs, states, running, seen, plan),
    }


def _count(states: Iterable[State]) -> dict[str, int]:
    counts = Counter(states)
    return {state: counts[state] for state in ("done", "running", "lost", "failed", "left")}


def _order(jobs: Jobs) -> list[str]:
    """The outputs of all jobs, each after what it needs."""
    return list(TopologicalSorter({job.output: job.inputs for job in jobs.by_output.values()}).static_order())


def states_of(jobs: Jobs, seen: Seen) -> dict[str, State]:
    """The state of each job, by output. What is deleted on the way is done when all that needs it is.

    Args:
        jobs: Jobs of the study.
        seen: What lies in its folder.
    """
    order = _order(jobs)
    states: dict[str, State] = {}
    needed_by: dict[str, list[str]] = {output: [] for output in order}
    for job in jobs.by_output.values():
        for path in job.inputs:
            needed_by[path].append(job.output)
    for output in reversed(order):
        later = needed_by[output]
        used = bool(later) and all(states[each] == "done" for each in later)
        states[output] = _state(output, used, log_of(jobs.study.study, output), seen)
    return states


def _state(output: str, used: bool, log: str, seen: Seen) -> State:
    mark = seen.marks.get(output)
    if mark and mark.lives:
        return "running"
    if output in seen.files or used:
        return "done"
    if mark:
        return "lost"
    said = seen.log(log)
    if said is None or watch.has_finished(said.text) or watch.was_stopped(said.text):
        return "left"
    if watch.is_starting(said.text):  # it is starting, or was killed before it could say anything
        return "running" if said.age < watch.LOST_SECONDS else "lost"
    return "failed"


def _tickets(jobs: Jobs, order: list[str], states: Mapping[str, State]) -> list[dict[str, Any]]:
    """By backbone, task and variant how many tickets are done; failed, running: where something that they need is."""
    needs: dict[str, set[State]] = {}
    for output in order:
        state = states[output]
        inputs = jobs.by_output[output].inputs if state != "done" else ()
        needs[output] = {state}.union(*(needs[path] for path in inputs))
    rows: dict[tuple[str, str, str], Counter[str]] = {}
    for output in jobs.dag.records():
        job = jobs.by_output[output]
        counts = rows.setdefault((*job.place, job.variant), Counter())
        of_ticket = needs[output]
        if states[output] == "done":
            state = "done"
        elif of_ticket & {"failed", "lost"}:
            state = "failed"
        else:
            state = "running" if "running" in of_ticket else "left"
        counts.update([state, "tickets"])
    keys = ("tickets", "done", "running", "failed", "left")
    return [
        {"backbone": backbone, "task": task, "variant": variant, **{key: counts[key] for key in keys}}
        for (backbone, task, variant), counts in rows.items()
    ]


def _running(job: Job, seen: Seen) -> dict[str, Any]:
    """A job at work: where, since when, and how far; without a marker it is starting."""
    mark = seen.marks.get(job.output)
    says = mark.says if mark else {}
    return {
        "rule": job.rule,
        "output": job.output,
        "host": says.get("host"),
        "pid": says.get("pid"),
        "slurm_job": says.get("slurm_job"),
        "stopped": mark is not None and mark.stopped,
        "step": says.get("step"),
        "steps": job.steps or None,
        "seconds": max(0.0, round(seen.now - says["started"], 1)) if "started" in says else None,
    }


def _end(seen: Seen, path: str) -> dict[str, Any]:
    """A log and its last lines."""
    said = seen.log(path)
    lines = [line.rstrip() for line in said.text.splitlines() if line.strip()] if said else []
    return {"log": path if said else None, "lines": lines[-END_LINES:]}


def _others(study: Study, seen: Seen) -> list[dict[str, Any]]:
    """Jobs that are of no cell, where their logs end in an error: what studies share, and what people read."""
    failures = []
    for rule, output, log in _shared(study):
        end = _end(seen, log)
        if output not in seen.files and end["lines"] and _ERROR.match(end["lines"][-1]):
            failures.append({"rule": rule, "output": output, "lost": False, **end})
    return failures


def _shared(study: Study) -> list[tuple[str, str | None, str]]:
    """Rule, output (None: not known here) and log of the jobs that are of no cell."""
    shared: list[tuple[str, str | None, str]] = []
    for rule in RULES.values():
        for wildcards in rule.jobs(study) if rule.jobs else []:
            w = {"study": study.study, **wildcards}
            shared.append((rule.name, rule.output.format(**w) if rule.output else None, rule.log.format(**w)))
    return shared


# --- how long ---------------------------------------------------------------------------------------------------------


def _left(
    jobs: Jobs,
    states: Mapping[str, State],
    running: list[dict[str, Any]],
    seen: Seen,
    plan: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What is left: jobs, seconds of work, seconds on the clock.

    A job is taken for the mean of those that are done of its rule on its backbone and task, else of its rule, else for
    the plan's mean of its rule, times what jobs took so far over what they were planned to take. Running jobs have had
    a part of it. `seconds` is None where nothing is known; `unknown` are rules that it leaves out.
    """
    times = _Times(jobs, states, seen, plan)
    elapsed = {each["output"]: each["seconds"] or 0.0 for each in running}
    wanted = [job for job in jobs.by_output.values() if states[job.output] != "done"]
    work, unknown = 0.0, set()
    for job in wanted:
        mean = times.of(job)
        if mean is None:
            unknown.add(job.rule)
        else:
            work += max(0.0, mean - elapsed.get(job.output, 0.0))
    side = len(running) or (plan or {}).get("parallel") or 1
    known = not wanted or len(unknown) < len({job.rule for job in wanted})
    return {
        "jobs": len(wanted),
        "rules": dict(Counter(job.rule for job in wanted)),
        "work_seconds": round(work, 1) if known else None,
        "seconds": round(work / side, 1) if known else None,
        "side_by_side": side,
        "measured_jobs": times.measured,
        "planned": times.planned,
        "unknown": sorted(unknown),
    }


class _Times:
    """What jobs take, start-up included, by the logs of those that are done and by the plan.

    Attributes:
        measured: how many logs were read.
        planned: whether the plan was asked.
    """

    def __init__(self, jobs: Jobs, states: Mapping[str, State], seen: Seen, plan: Mapping[str, Any] | None) -> None:
        self.measured, self.planned = 0, False
        self._by_place: dict[tuple[str, tuple[str, str]], list[float]] = {}
        self._by_rule: dict[str, list[float]] = {}
        rules = (plan or {}).get("rules", [])
        self._plan: dict[str, float] = {row["rule"]: row["seconds"] / row["jobs"] for row in rules if row["jobs"]}
        taken = planned = 0.0
        for job in jobs.by_output.values():
            seconds = self._by_place.setdefault((job.rule, job.place), [])
            if states[job.output] != "done" or len(seconds) >= SAMPLED:
                continue
            said = seen.log(log_of(jobs.study.study, job.output))
            times = watch.took(said.text) if said else None
            if times is None:
                continue
            self.measured += 1
            seconds.append(sum(times))
            self._by_rule.setdefault(job.rule, []).append(sum(times))
            if job.rule in self._plan:
                taken, planned = taken + sum(times), planned + self._plan[job.rule]
        self._ratio = taken / planned if planned else 1.0

    def of(self, job: Job) -> float | None:
        """Seconds of a job; None: nothing is known."""
        known = self._by_place.get((job.rule, job.place)) or self._by_rule.get(job.rule)
        if known:
            return sum(known) / len(known)
        if job.rule not in self._plan:
            return None
        self.planned = True
        return self._plan[job.rule] * self._ratio


# --- reading ----------------------------------------------------------------------------------------------------------


def look(study: Study) -> Seen:
    """What lies in the folders of a study and in `resources/`, below the current one."""
    now, there = time.time(), set[str]()
    for folder in (paths.STUDY.format(study=study.study), "resources"):
        for where, folders, names in os.walk(folder):
            if where == "resources":
                folders[:] = [name for name in folders if name != "data"]  # whole data sets
            there.update(f"{where}/{name}" for name in names)
    marks: dict[str, Mark] = {}
    for path in there:
        output = watch.marked(path)
        if output is not None:
            try:
                about = os.stat(path)
                if stat.S_ISREG(about.st_mode):
                    says = watch.read_marker(Path(path))
                    here = says.get("host") == socket.gethostname() and "pid" in says
                    marks[output] = Mark(now - about.st_mtime, says, here and is_stopped(says["pid"]))
            except OSError:  # it ended just now
                continue

    def log(path: str) -> Log | None:
        if path not in there:
            return None
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # of a pipe nothing may ever come
                return None
            with open(path, "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
                return Log(file.read().decode(errors="replace"), now - os.fstat(file.fileno()).st_mtime)
        except OSError:
            return None

    return Seen(files=there, marks=marks, log=log, now=now)


def find_study(name: str) -> Study:
    """The study of a folder of results below the current one, as its study.json says it.

    No code runs that it names: a method's file is known by what study.json says of it.

    Raises:
        IspError: there is none; says which there are.
    """
    path = Path(paths.DESCRIPTION.format(study=name))
    if not path.exists():
        known = sorted(each.parent.name for each in Path("results").glob("*/study.json"))
        raise IspError(
            f"{path}: no such file, the study has not begun or is not in this folder; studies here: "
            f"{', '.join(known) or 'none'}. Give the file of another one: isp status --configfile FILE"
        )
    content = files.read_json(path, "describe")
    try:
        values = dict(content["study"])
        values["training"] = {key: _given(protocol) for key, protocol in values["training"].items()}
        known = content.get("variants", {})
        values["variants"] = {key: _described(own, known.get(key)) for key, own in values["variants"].items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, KeyError, AttributeError):
        raise IspError(f"{path}: says no study; delete it and make it again (stage: describe)") from None
    return parse_study(values, str(path))


def _described(variant: Mapping[str, Any], known: Any) -> Mapping[str, Any]:
    """Return a variant of study.json; of a method's file, the family and settings count that are written there."""
    source = variant["method"]
    if not (isinstance(source, str) and source.endswith(".py")):
        return variant
    registry.stand_in(source, describe_method(known["family"]))
    return {**variant, "settings": {**known["settings"]}}


def _given(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol as a file gives it: its steps or its epochs."""
    unset = "epochs" if protocol.get("epochs") is None else "steps"
    return {key: value for key, value in protocol.items() if key != unset}


def read_plan(study: Study) -> Mapping[str, Any] | None:
    """The plan of a study, if it was made already."""
    path = Path(paths.PLAN.format(study=study.study))
    try:
        plan: Mapping[str, Any] = files.read_json(path, "plan", Plan)
    except IspError:  # not made yet, or of another shape, which the stage that needs it will say
        return None
    return plan
