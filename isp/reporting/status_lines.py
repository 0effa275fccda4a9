"""Progress of a study as text; at most 100 columns, except for paths and lines of logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isp.reporting.tables import text
from isp.untrusted import printable

LISTED = 12
"""Maximum number of running and of failed jobs that are listed individually."""
WIDTH = 56
"""Maximum width of the names of tickets."""
_STATES = ("done", "running", "failed", "left")


def lines(found: Mapping[str, Any]) -> str:
    """Return the report of `isp.workflow.status.report` as text; control characters of logs and markers are escaped."""
    parts = [_header(found)]
    if found["groups"]:
        parts.append(text([(["tickets", "all", *_STATES], _rows(found["groups"]))]))
    parts += [_running(found["running"]), _failed(found["failed"]), _left(found["left"])]
    return printable("\n".join(part for part in parts if part).rstrip() + "\n")


def span(seconds: float) -> str:
    """Format a duration: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _header(found: Mapping[str, Any]) -> str:
    jobs, tickets = found["jobs"], found["tickets"]
    parts = [
        f"{jobs['done']:,} of {jobs['all']:,} jobs done",
        f"{tickets['done']:,} of {tickets['all']:,} tickets",
        f"{jobs['running']:,} running" if jobs["running"] else "none running",
    ]
    bad = len(found["failed"])
    return f"{found['study']}: {', '.join(parts)}{f', {bad:,} failed' if bad else ''}\n"


def _rows(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return one row per variant; variants of a place whose tickets are all done, or all left, share a row."""
    places: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in groups:
        whole = next((state for state in _STATES if row[state] == row["tickets"]), row["variant"])
        places.setdefault(f"{row['backbone']} {row['task']}", {}).setdefault(whole, []).append(row)
    lines_ = []
    for place, alike in places.items():
        for rows in alike.values():
            sums = [sum(row[key] for row in rows) for key in ("tickets", *_STATES)]
            names = [row["variant"] for row in rows]
            lines_.append([f"{place} {_some(names, WIDTH - len(place))}", *(f"{n:,}" if n else "" for n in sums)])
    return lines_


def _some(names: Sequence[str], width: int) -> str:
    """Join as many names as fit into a width, and the number of the others."""
    for count in range(len(names), 1, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        if len(shown := ", ".join(names[:count]) + more) <= width:
            return shown
    return names[0] if len(names) == 1 else f"{len(names)} variants"


def _running(jobs: Sequence[Mapping[str, Any]]) -> str:
    if not jobs:
        return ""
    shown = []
    for job in jobs[:LISTED]:
        where = job["host"] or "starting"
        if job["slurm_job"]:
            where += f" (Slurm {job['slurm_job']})"
        step = ""
        if job["step"]:
            step = f"step {job['step']:,}" + (f" of {job['steps']:,}" if (job["steps"] or 0) >= job["step"] else "")
        age = span(job["seconds"]) if job["seconds"] is not None else ""
        stopped = f'stopped ("kill -CONT {job["pid"]}" resumes it)' if job["stopped"] else ""
        shown.append(f"  {', '.join(filter(None, [job['rule'], where, step, age, stopped]))}\n    {job['output']}")
    return "\n".join(["Running:", *shown, *_more(jobs)]) + "\n"


def _failed(jobs: Sequence[Mapping[str, Any]]) -> str:
    if not jobs:
        return ""
    shown = []
    for job in jobs[:LISTED]:
        what = "lost: its process was killed" if job["lost"] else "failed"
        shown.append(f"  {job['rule']} {what}" + (f": {job['output']}" if job["output"] else ""))
        shown += [f"    | {line}" for line in job["lines"]]
        if job["log"]:
            shown.append(f"    log: {job['log']}" + ("" if job["lines"] else " (empty)"))
    return "\n".join(["Failed:", *shown, *_more(jobs), "  Run the study again to retry them."]) + "\n"


def _more(jobs: Sequence[Any]) -> list[str]:
    return [f"  and {len(jobs) - LISTED:,} more"] if len(jobs) > LISTED else []


def _left(left: Mapping[str, Any]) -> str:
    if not left["jobs"]:
        return "All jobs of the study's tickets are done."
    count = f"{left['jobs']:,} {'job' if left['jobs'] == 1 else 'jobs'} left"
    if left["seconds"] is None:
        return f"{count}; the remaining time is not known, because no job is done yet and there is no plan."
    sources = [f"{left['measured_jobs']:,} finished jobs"] if left["measured_jobs"] else []
    sources += ["the plan"] if left["planned"] else []
    side = left["side_by_side"]
    found = (
        f"{count}, roughly {span(left['seconds'])}: {span(left['work_seconds'])} of work by the times of "
        f"{' and '.join(sources)},\n{f'{side:,} parallel jobs' if side > 1 else 'one job at a time'}."
    )
    if left["unknown"]:
        found += f" Not included, because no duration is known yet: {', '.join(left['unknown'])}."
    return found
