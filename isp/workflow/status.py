"""Progress of a study: which jobs are done, running, failed or left, and an estimate of the remaining time.

Only files are read, so it works while Snakemake runs, wherever the jobs run. `look` reads and `report` computes.
Existing files count as done, even if Snakemake would remake them because of a changed setting.
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
from isp.errors import ArtifactError, ConfigError, IspError, remake
from isp.families import describe_method
from isp.runtime import watch
from isp.runtime.warm import is_stopped
from isp.shapes import Plan
from isp.workflow import paths
from isp.workflow.jobs import Job, Jobs
from isp.workflow.rules import RULES

State = Literal["done", "running", "lost", "failed", "left"]
"""State of a job; lost means that its process was killed."""
SAMPLED = 10
"""Number of logs that are read for the mean duration of a rule on a backbone and task."""
END_LINES = 6
_ERROR = re.compile(r"^(isp: |(\w+\.)*\w*(Error|Exception|Interrupt)\b)")


@dataclass(frozen=True)
class Log:
    """End of a log, and the seconds since its last modification."""

    text: str
    age: float


@dataclass(frozen=True)
class Mark:
    """Marker of a running job (see `isp.runtime.watch`): its age in seconds, its entries, whether the job is stopped.

    A stopped process (SIGSTOP) does not update its marker, but is alive. This is known only for processes of this
    machine.
    """

    age: float
    says: Mapping[str, Any] = field(default_factory=dict)
    stopped: bool = False

    @property
    def lives(self) -> bool:
        """Whether the process of the job is alive."""
        return self.stopped or self.age < watch.LOST_SECONDS


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Contents of the folder of a study.

    Attributes:
        files: Paths of the existing files.
        marks: Markers of running jobs, by output.
        log: Function that returns a log by its path, or None if it does not exist.
        now: Time of the reading, in seconds since the epoch.
    """

    files: set[str]
    marks: Mapping[str, Mark]
    log: Callable[[str], Log | None]
    now: float


def log_of(study: str, output: str) -> str:
    """Return the path of the log of a job."""
    return paths.log(output.replace(paths.STUDY.format(study=study), paths.STUDY, 1)).format(study=study)


def report(jobs: Jobs, seen: Seen, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the progress of a study, as printed by `isp status --json`.

    Args:
        jobs: Jobs of the study.
        seen: Contents of its folder.
        plan: Plan that was made before the run, if there is one.
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
    """Return the outputs of all jobs in topological order."""
    return list(TopologicalSorter({job.output: job.inputs for job in jobs.by_output.values()}).static_order())


def states_of(jobs: Jobs, seen: Seen) -> dict[str, State]:
    """Return the state of each job by output. Deleted temporary outputs count as done if all jobs that need them are.

    Args:
        jobs: Jobs of the study.
        seen: Contents of its folder.
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
    if watch.is_starting(said.text):  # starting, or killed before its first output
        return "running" if said.age < watch.LOST_SECONDS else "lost"
    return "failed"


def _tickets(jobs: Jobs, order: list[str], states: Mapping[str, State]) -> list[dict[str, Any]]:
    """Count tickets by state for each backbone, task and variant. A ticket fails or runs if one of its inputs does."""
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
    """Return where and since when a job runs, and its progress. A job without a marker is starting."""
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
    """Return the path of a log and its last lines."""
    said = seen.log(path)
    lines = [line.rstrip() for line in said.text.splitlines() if line.strip()] if said else []
    return {"log": path if said else None, "lines": lines[-END_LINES:]}


def _others(study: Study, seen: Seen) -> list[dict[str, Any]]:
    """Return failed jobs that belong to no cell (shared files and reports), recognised by an error in the log."""
    failures = []
    for rule, output, log in _shared(study):
        end = _end(seen, log)
        if output not in seen.files and end["lines"] and _ERROR.match(end["lines"][-1]):
            failures.append({"rule": rule, "output": output, "lost": False, **end})
    return failures


def _shared(study: Study) -> list[tuple[str, str | None, str]]:
    """Return rule, output (None if not known here) and log of the jobs that belong to no cell."""
    shared: list[tuple[str, str | None, str]] = []
    for rule in RULES.values():
        for wildcards in rule.jobs(study) if rule.jobs else []:
            w = {"study": study.study, **wildcards}
            shared.append((rule.name, rule.output.format(**w) if rule.output else None, rule.log.format(**w)))
    return shared


# --- remaining time ---------------------------------------------------------------------------------------------------


def _left(
    jobs: Jobs,
    states: Mapping[str, State],
    running: list[dict[str, Any]],
    seen: Seen,
    plan: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the remaining jobs, seconds of work, and seconds of wall-clock time.

    The duration of a job is estimated by the mean over finished jobs of its rule on its backbone and task, otherwise
    over those of its rule, otherwise by the plan's mean for its rule, corrected by the ratio of measured to planned
    durations so far. The elapsed time of running jobs is subtracted. `seconds` is None if nothing is known; `unknown`
    lists the rules that are left out.
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
    """Durations of jobs including start-up, from the logs of finished jobs and from the plan.

    Attributes:
        measured: Number of logs that were read.
        planned: Whether the plan was used.
    """

    def __init__(self, jobs: Jobs, states: Mapping[str, State], seen: Seen, plan: Mapping[str, Any] | None) -> None:
        self.measured, self.planned = 0, False
        self._by_place: dict[tuple[str, tuple[str, str]], list[float]] = {}
        self._by_rule: dict[str, list[float]] = {}
        rules = (plan or {}).get("rules", [])
        self._plan: dict[str, float] = {row["rule"]: row["seconds"] / row["jobs"] for row in rules if row["jobs"]}
        actual = planned = 0.0
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
                actual, planned = actual + sum(times), planned + self._plan[job.rule]
        self._ratio = actual / planned if planned else 1.0

    def of(self, job: Job) -> float | None:
        """Return the estimated duration of a job in seconds; None if nothing is known."""
        known = self._by_place.get((job.rule, job.place)) or self._by_rule.get(job.rule)
        if known:
            return sum(known) / len(known)
        if job.rule not in self._plan:
            return None
        self.planned = True
        return self._plan[job.rule] * self._ratio


# --- reading ----------------------------------------------------------------------------------------------------------


def look(study: Study) -> Seen:
    """Read the folders of a study and `resources/` below the current folder."""
    now, there, seen = time.time(), set[str](), set[tuple[int, int]]()
    for folder in (paths.STUDY.format(study=study.study), "resources"):
        for where, folders, names in os.walk(folder, followlinks=True):  # runs/ may be a link to a larger disk
            try:
                about = os.stat(where)
            except FileNotFoundError:  # deleted meanwhile
                continue
            if (place := (about.st_dev, about.st_ino)) in seen:  # a link to a folder around it
                folders.clear()
                continue
            seen.add(place)
            if where == "resources":
                folders[:] = [name for name in folders if name != "data"]  # whole datasets
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
            except OSError:  # it has just finished
                continue

    def log(path: str) -> Log | None:
        if path not in there:
            return None
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe may block forever
                return None
            with open(path, "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
                return Log(file.read().decode(errors="replace"), now - os.fstat(file.fileno()).st_mtime)
        except OSError:
            return None

    return Seen(files=there, marks=marks, log=log, now=now)


def find_study(name: str) -> Study:
    """Return the study of a folder of results below the current folder, from its study.json.

    Code of the study is not executed: a method's file is represented by its description in study.json.

    Raises:
        IspError: The study does not exist. The message lists the existing ones.
    """
    path = Path(paths.DESCRIPTION.format(study=name))
    if not path.exists():
        known = sorted(each.parent.name for each in Path("results").glob("*/study.json"))
        raise IspError(
            f"{path}: no such file, so the study has not started or is not in this folder. Studies in this folder: "
            f"{', '.join(known) or 'none'}. For a study that has not started: isp status --configfile FILE"
        )
    content = files.read_json(path, "describe")
    try:
        values = dict(content["study"]) | _asked(name)
        values["training"] = {key: _given(protocol) for key, protocol in values["training"].items()}
        known = content.get("variants", {})
        values["variants"] = {key: _described(own, known.get(key)) for key, own in values["variants"].items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, KeyError, AttributeError):
        raise IspError(f"{path}: does not contain a study; {remake('describe')}") from None
    return parse_study(values, str(path))


def _asked(name: str) -> dict[str, Any]:
    """Return how the last run of a study in this folder was asked to run look-aheads; nothing if that is unknown."""
    try:
        asked = files.read_json(Path(paths.ASKED.format(study=name)), "describe", dict[str, Any])
    except ArtifactError:
        return {}
    return {"look_aheads": asked["look_aheads"]} if asked.get("look_aheads") in ("together", "apart") else {}


def _described(variant: Mapping[str, Any], known: Any) -> Mapping[str, Any]:
    """Return a variant of study.json; for a method's file, its recorded family and settings are used."""
    source = variant["method"]
    if not (isinstance(source, str) and source.endswith(".py")):
        return variant
    registry.stand_in(source, describe_method(known["family"]))
    return {**variant, "settings": {**known["settings"]}}


def _given(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol as in a study file, with either steps or epochs."""
    unset = "epochs" if protocol.get("epochs") is None else "steps"
    return {key: value for key, value in protocol.items() if key != unset}


def read_plan(study: Study) -> Mapping[str, Any] | None:
    """Read the plan of a study; None if it does not exist yet."""
    path = Path(paths.PLAN.format(study=study.study))
    try:
        plan: Mapping[str, Any] = files.read_json(path, "plan", Plan)
    except IspError:  # not made yet, or of another shape, which the stage that needs it reports
        return None
    return plan
