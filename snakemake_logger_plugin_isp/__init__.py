"""What `snakemake --logger isp` prints: one live line on a terminal, else one line for each finished job.

Failures come with the end of their log, a dry run is a table; Snakemake's own complete log stays in `.snakemake/log`.
Warnings and errors always pass. Snakemake finds this plugin by the prefix of its name.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import statistics
import sys
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from isp import errors, files
from isp.untrusted import printable

LOG_LINES = 15
FAILURES_LISTED = 10
RESCUE = "run the same command again: finished jobs are kept."

# These have no event, only a text. An error of another wording is shown, so a new one costs beauty only.
NOTHING_TO_DO = "Nothing to be done"
INTERRUPTED = "Terminating processes on user request"
GRACEFUL = "Will exit after finishing currently running jobs"
COMPLETE_LOG = "Complete log(s): "
SOME_JOB_FAILED = "At least one job did not complete successfully"
SUMMED_UP_BY_US = (SOME_JOB_FAILED, "Exiting because a job execution failed")
BEFORE_A_RUN = ("Assuming unrestricted shared filesystem", "Building DAG of jobs", "Config file ")
LOCKED = "Directory cannot be locked"
LOCKED_BY_ANOTHER = (
    "isp: another run is making the same files in this folder, so this one was not started. Wait until it has ended "
    "(`isp status STUDY` shows how far it is) and run this command again, which reuses what is finished; or run it in "
    "another folder. If there is no other run, on any machine that shares the folder, `snakemake --unlock` with the "
    "same options removes the lock that a killed one left."
)
COMMAND_FAILED = re.compile(r"CalledProcessError.*(?:non-zero (exit status \d+)|died with <Signals\.(\w+))", re.DOTALL)
OUTPUT_MISSING = re.compile(r"Job (\d+) +completed successfully, but ")
OUR_ERRORS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.IspError)
}
# A shell says 128 + signal where its own child was killed.
INTERRUPTS = {"SIGINT", "SIGTERM", "exit status 130", "exit status 143"}


@dataclass(frozen=True)
class Job:
    """A job under way, or one that failed."""

    rule: str
    label: str
    started: float


def count(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """`0:07`, `1:12`, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """How long one job took: `2.1 s`, from a minute on `1:12`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def label(rule: str, message: str | None, wildcards: Mapping[str, str]) -> str:
    """The rule's `message:` on one line, or else the rule and its wildcards."""
    if message:
        return " ".join(message.split())
    return ", ".join([rule, *(f"{name} {value}" for name, value in wildcards.items())])


def shorten(text: str, width: int) -> str:
    """The text, cut to a width."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def seconds_left(
    left: Mapping[str, int], took: Mapping[str, Sequence[float]], under_way: float, elapsed: float
) -> float | None:
    """Estimate the time to the end: the work left, at each rule's mean, by as many jobs at once as there were so far.

    Args:
        left: The number of jobs that have not finished, by rule.
        took: The seconds each finished job took, by rule; a rule without any is taken for a median one.
        under_way: The seconds that the running jobs have had, all together.
        elapsed: The seconds since the start.

    Returns:
        Seconds, or None as long as no job has finished.
    """
    times = [seconds for rule in took.values() for seconds in rule]
    done = sum(times)
    if done <= 0:
        return None
    usual = statistics.median(times)  # one long job at the beginning says nothing about the others
    work = sum(jobs * (sum(took[rule]) / len(took[rule]) if took.get(rule) else usual) for rule, jobs in left.items())
    return max(work - under_way, 0) * elapsed / (done + under_way)


def progress(done: int, total: int, elapsed: float, left: float | None) -> str:
    """` 37/254  15 %  1:12, about 4:10 left`."""
    percent = 100 * done // max(total, 1)
    estimate = "" if left is None or done >= total else f", about {clock(left)} left"
    return f"{done:>{len(str(total))}}/{total} {percent:>3} %  {clock(elapsed)}{estimate}"


def plan(counts: Mapping[str, int], reasons: Mapping[str, Iterable[str]]) -> str:
    """A table of what a dry run found: rules, numbers of jobs, and why."""
    width = max(map(len, counts), default=0)
    digits = len(str(max(counts.values(), default=0)))
    rows = (f"  {rule:<{width}}  {jobs:>{digits}}  {', '.join(reasons.get(rule, ()))}" for rule, jobs in counts.items())
    return "\n".join(row.rstrip() for row in rows)


def reason_kind(reason: str) -> str:
    """The first of Snakemake's reasons for a job, without its files and values."""
    return re.split("[:;]", reason, maxsplit=1)[0].strip()


def log_end(path: str) -> str:
    """The last lines of a log, indented, below its name."""
    try:
        with Path(path).open("rb") as file:
            # A log with a progress bar may be huge.
            file.seek(max(file.seek(0, os.SEEK_END) - 65536, 0))
            lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return f"    log: {path} ({error.strerror})"
    if not lines:
        return f"    log: {path} (empty)"
    return "\n".join([f"    log: {path}", *(f"    | {line}" for line in lines[-LOG_LINES:])])


def without_frames(text: str) -> str:
    """An error without the frames that do not help its reader.

    Those of `isp` speak of the reader's files and settings, so the line of the Snakefile is left out with them. Others
    lose Python's traceback, which Snakemake gives where no line of a Snakefile is to blame.
    """
    if LOCKED in text:
        return LOCKED_BY_ANOTHER
    kind, found, rest = text.partition(" in file ")
    if found and kind in OUR_ERRORS:
        lines = rest.partition(":\n")[2].splitlines()
        return "\n".join(["isp: " + lines[0], *(line for line in lines[1:] if not line.startswith("  File "))])
    if not text.startswith("Traceback "):
        return text
    lines = text.rsplit("Traceback (most recent call last):", 1)[-1].splitlines()
    return "\n".join(dropwhile(lambda line: not line or line.startswith(" "), lines))


def check_study_files(arguments: Sequence[str]) -> None:
    """Refuse study files that Snakemake would read without end, or into all memory. It reads them after this is loaded.

    Args:
        arguments: Snakemake's own.

    Raises:
        SystemExit: one is a folder, a device or a FIFO, or too large; printed is which.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="*", action="extend", type=Path, default=[])
    for path in parser.parse_known_args(arguments)[0].configfile:
        try:
            files.check_regular(path, files.LARGEST_STUDY)
        except FileNotFoundError:
            continue  # Snakemake says so
        except OSError as error:
            print(f"isp: {printable(path)}: cannot be read ({error.strerror})", file=sys.stderr)
            raise SystemExit(2) from None


class LogHandler(LogHandlerBase):
    """Snakemake's handler for everything it says in its main process; jobs of their own process do not come here."""

    def __post_init__(self) -> None:
        check_study_files(sys.argv[1:])
        self._stream = sys.stdout if self.common_settings.stdout else sys.stderr
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        quiet = {getattr(choice, "name", str(choice)) for choice in self.common_settings.quiet or ()}
        self._quiet = bool(quiet & {"ALL", "PROGRESS", "RULES"})
        self._ended = threading.Event()
        self._study = ""
        self._in_run = False  # --lint, --summary, --unlock … never are; what they log is their result
        self._planned: dict[str, int] = {}
        self._started = 0.0
        self._done = self._total = 0
        self._stopped = self._interrupted = False
        self._complete_log = ""
        self._reasons: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._running: dict[int, Job] = {}
        self._failed: dict[int, tuple[Job, Sequence[str]]] = {}
        self._took: defaultdict[str, list[float]] = defaultdict(list)
        self._exits: dict[int | None, str] = {}
        self._on: dict[LogEvent | None, Any] = {
            LogEvent.WORKFLOW_STARTED: self._on_workflow,
            LogEvent.RUN_INFO: self._on_plan,
            LogEvent.JOB_INFO: self._on_job,
            LogEvent.JOB_FINISHED: self._on_finished,
            LogEvent.PROGRESS: self._on_progress,
            LogEvent.JOB_ERROR: self._on_job_error,
            LogEvent.GROUP_ERROR: self._on_group_error,
            LogEvent.SHELLCMD: self._on_command,
            LogEvent.DEBUG_DAG: self._say_record,
            LogEvent.ERROR: self._on_error,
            None: self._on_text,
        }

    @property
    def writes_to_stream(self) -> bool:
        """It does, so Snakemake sets up no stream of its own."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """Snakemake's own complete log is the file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Snakemake's filter would take failures away with `--quiet`."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Snakemake's formatter is what `--verbose` shows."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """It does not."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message of Snakemake's."""
        try:
            on = self._on.get(getattr(record, "event", None))
            if on is not None:
                on(record)
            elif self.common_settings.verbose or record.levelno >= logging.WARNING:
                self._say_record(record)
            self._draw()
        except BrokenPipeError:
            pass
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Sum up; Snakemake calls this once, and Python once more at its exit."""
        if not self._ended.is_set():
            self._ended.set()
            with self.lock:  # type: ignore[union-attr]
                if self._planned:
                    self._say(self._summary())
        super().close()

    def _on_workflow(self, record: logging.LogRecord) -> None:
        self._in_run = True
        self._study = os.environ.get("ISP_STUDY") or " + ".join(
            dict.fromkeys(Path(file).stem for file in vars(record)["configfiles"])
        )

    def _on_plan(self, record: logging.LogRecord) -> None:
        if self._planned:  # a dry run says it twice
            return
        self._planned = {rule: jobs for rule, jobs in vars(record)["stats"].items() if rule != "total"}
        self._started = record.created
        self._total = sum(self._planned.values())
        if self.common_settings.dryrun or self._quiet:
            return
        self._say(f"{self._of_study()}{count(self._total, 'job')} to run")
        if self._live:
            threading.Thread(target=self._tick, daemon=True).start()

    def _on_job(self, record: logging.LogRecord) -> None:
        fields = vars(record)
        rule, number = fields["rule_name"], fields["jobid"]
        self._reasons[rule][reason_kind(fields["reason"])] = None
        self._running[number] = Job(rule, label(rule, fields["rule_msg"], fields["wildcards"]), record.created)
        if self._failed.pop(number, None):
            self._say(f"Trying again: {self._running[number].label}")

    def _on_finished(self, record: logging.LogRecord) -> None:
        job = self._running.pop(vars(record)["job_id"], None)
        if job is None or self.common_settings.dryrun:
            return
        self._done += 1
        self._took[job.rule].append(record.created - job.started)
        if not (self._live or self._quiet):
            self._say(f"[{self._progress(record.created)}] {job.label} ({duration(record.created - job.started)})")

    def _on_progress(self, record: logging.LogRecord) -> None:
        self._done, self._total = vars(record)["done"], vars(record)["total"]

    def _on_job_error(self, record: logging.LogRecord) -> None:
        self._fail(vars(record), vars(record)["log"], record)

    def _on_group_error(self, record: logging.LogRecord) -> None:
        for fields in vars(record)["job_error_info"]:
            self._fail(fields, [*fields["log"], *vars(record)["aux_logs"]], record)

    def _on_command(self, record: logging.LogRecord) -> None:
        command = vars(record).get("cmd") or vars(record).get("shellcmd")
        if command and self.common_settings.printshellcmds:
            self._say(textwrap.indent(textwrap.dedent(command).strip(), "  $ "))

    def _on_error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if command := COMMAND_FAILED.search(text):
            # The job's own error follows from the same thread, and says which job it is.
            self._exits[record.thread] = command[1] or command[2]
        elif missing := OUTPUT_MISSING.search(text):
            job = self._running.pop(int(missing[1]), None)
            if job is not None:
                self._failed[int(missing[1])] = (job, ())
                text = f"FAILED: {job.label}\n{textwrap.indent(text, '    ')}"
            self._say(text)
        else:
            self._on_text(record)

    def _on_text(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(NOTHING_TO_DO):
            self._say(f"{self._of_study()}Nothing to do: all results are up to date.")
        elif text.startswith(COMPLETE_LOG):
            self._complete_log = text.removeprefix(COMPLETE_LOG)
        elif text.startswith((INTERRUPTED, GRACEFUL)):
            if not self._stopped:
                self._say("Stopping; the running jobs end first.")
            self._stopped = True
            self._interrupted |= text.startswith(INTERRUPTED)
        elif record.levelno >= logging.WARNING:
            summed_up = (self._failed or self._stopped) and any(known in text for known in SUMMED_UP_BY_US)
            self._stopped |= record.levelno >= logging.ERROR
            if not summed_up:
                self._say(without_frames(self.format(record)))
        elif self.common_settings.verbose or not (self._in_run or text.startswith(BEFORE_A_RUN)):
            self._say_record(record)

    def _fail(self, fields: Mapping[str, Any], logs: Sequence[str], record: logging.LogRecord) -> None:
        rule, number = fields["rule_name"], fields["jobid"]
        if number in self._failed:  # the jobs of a group are told twice
            return
        job = self._running.pop(number, None) or Job(rule, rule, record.created)
        how = self._exits.pop(record.thread, "")
        if self._interrupted or how in INTERRUPTS:
            self._say(f"Interrupted: {job.label}")
            return
        self._failed[number] = (job, logs)
        details = [f"rule {rule}", how, f"after {duration(record.created - job.started)}"]
        lines = [f"FAILED: {job.label} ({', '.join(filter(None, details))})"]
        if fields.get("rule_msg"):
            lines.append(textwrap.indent(str(fields["rule_msg"]), "    "))
        lines += [f"    {name}: {value}" for name, value in (fields.get("aux") or {}).items()]
        lines += map(log_end, logs)
        if not logs and fields.get("shellcmd"):
            lines.append(textwrap.indent(textwrap.dedent(fields["shellcmd"]).strip(), "    $ "))
        self._say("\n".join(lines))

    def _summary(self) -> str:
        if self.common_settings.dryrun:
            title = f"{self._of_study()}{count(self._total, 'job')} to run; this was a dry run, nothing was started"
            return f"{title}\n{plan(self._planned, self._reasons)}"
        seconds = clock(time.time() - self._started)
        # With --quiet Snakemake does not say what has finished.
        jobs = count(self._total, "job")
        so_far = f"{f'{jobs} planned' if self._quiet else f'{self._done} of {jobs} done'}, after {seconds}"
        if self._failed:
            lines = [f"{count(len(self._failed), 'job')} failed; {so_far}:"]
            for job, logs in [*self._failed.values()][:FAILURES_LISTED]:
                lines.append(f"    {job.label}" + (f" (log: {', '.join(logs)})" if logs else ""))
            if len(self._failed) > FAILURES_LISTED:
                lines.append(f"    and {len(self._failed) - FAILURES_LISTED} more")
            lines.append(f"Fix {'it' if len(self._failed) == 1 else 'them'} and {RESCUE}")
        elif self._stopped or (self._done < self._total and not self._quiet):
            lines = [f"Stopped; {so_far}.", f"To go on, {RESCUE}"]
        else:
            return f"{self._of_study()}{jobs} done in {seconds}"
        if self._complete_log:
            lines.append(f"Snakemake's complete log: {self._complete_log}")
        return "\n".join(lines)

    def _of_study(self) -> str:
        return f"{self._study}: " if self._study else ""

    def _progress(self, now: float) -> str:
        left = {rule: max(jobs - len(self._took[rule]), 0) for rule, jobs in self._planned.items()}
        under_way = sum(now - job.started for job in self._running.values())
        elapsed = now - self._started
        return progress(self._done, self._total, elapsed, seconds_left(left, self._took, under_way, elapsed))

    def _tick(self) -> None:
        while not self._ended.wait(1):
            with self.lock:  # type: ignore[union-attr]
                self._draw()

    def _draw(self) -> None:
        """Rewrite the live line, which has no end of line."""
        if not self._live or self._quiet or not self._planned or self.common_settings.dryrun or self._ended.is_set():
            return
        failed = f", {len(self._failed)} failed" if self._failed else ""
        now = "; ".join(job.label for job in self._running.values())
        text = f"{self._progress(time.time())}{failed}{' | ' if now else ''}{now}"
        width = os.get_terminal_size(self._stream.fileno()).columns or 80  # some terminals say 0
        self._stream.write(f"\r{shorten(printable(text), width - 1)}\x1b[K")
        self._stream.flush()

    def _say(self, text: str) -> None:
        """Write whole lines, in the place of the live line; what logs and messages hold does not steer the terminal."""
        start = "\r\x1b[K" if self._live and self._planned else ""
        self._stream.write(f"{start}{printable(text.rstrip())}\n")
        self._stream.flush()

    def _say_record(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text and text != "None":
            self._say(text)
