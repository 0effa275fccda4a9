"""Output of `snakemake --logger isp`: one live line on a terminal, otherwise one line per finished job.

Failures are shown with the end of their log, and a dry run as a table. Snakemake's complete log is still written to
`.snakemake/log`. Warnings and errors are always shown. Snakemake finds this plugin by the prefix of its name.
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

# These messages have no event, only a text. If a version changes the wording, the message is shown as it is.
NOTHING_TO_DO = "Nothing to be done"
INTERRUPTED = "Terminating processes on user request"
GRACEFUL = "Will exit after finishing currently running jobs"
COMPLETE_LOG = "Complete log(s): "
SOME_JOB_FAILED = "At least one job did not complete successfully"
SUMMED_UP_BY_US = (SOME_JOB_FAILED, "Exiting because a job execution failed")
BEFORE_A_RUN = ("Assuming unrestricted shared filesystem", "Building DAG of jobs", "Config file ")
LOCKED = "Directory cannot be locked"
LOCKED_BY_ANOTHER = (
    "isp: another run is making the same files in this folder, so this one was not started. Wait until it has finished "
    "(`isp status STUDY` shows its progress) and run this command again, which reuses finished jobs; or run it in "
    "another folder. If no other run exists on any machine that shares the folder, a killed run left the lock: "
    "remove it with `snakemake --unlock` and the same options."
)
COMMAND_FAILED = re.compile(r"CalledProcessError.*(?:non-zero (exit status \d+)|died with <Signals\.(\w+))", re.DOTALL)
OUTPUT_MISSING = re.compile(r"Job (\d+) +completed successfully, but ")
OUR_ERRORS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.IspError)
}
# A shell exits with 128 + signal if its child was killed.
INTERRUPTS = {"SIGINT", "SIGTERM", "exit status 130", "exit status 143"}

CHOOSING = ("--until", "-U", "--omit-from", "-O", "--batch")
"""Options of Snakemake with which it runs fewer jobs than it counts."""


@dataclass(frozen=True)
class Job:
    """A running or failed job."""

    rule: str
    label: str
    started: float


def count(number: int, noun: str) -> str:
    """Format a count: `1 job`, `2 jobs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """Format a time: `0:07`, `1:12`, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """Format the duration of a job: `2.1 s`, and from one minute on `1:12`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def label(rule: str, message: str | None, wildcards: Mapping[str, str]) -> str:
    """Return the rule's `message:` on one line, or the rule and its wildcards if it has none."""
    if message:
        return " ".join(message.split())
    return ", ".join([rule, *(f"{name} {value}" for name, value in wildcards.items())])


def shorten(text: str, width: int) -> str:
    """Cut a text to a width."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def seconds_left(
    left: Mapping[str, int],
    took: Mapping[str, Sequence[float]],
    running: Mapping[str, Sequence[float]],
    elapsed: float,
) -> float | None:
    """Estimate the remaining time from each rule's mean duration and the average number of parallel jobs so far.

    A job that runs longer than the mean of its rule counts as nearly finished, and takes nothing off the other jobs. Of
    a rule without finished jobs, all jobs take as long as the oldest that is running, and at least the median over all
    finished jobs.

    Args:
        left: Number of unfinished jobs by rule.
        took: Durations of finished jobs in seconds by rule.
        running: Seconds so far of the running jobs by rule.
        elapsed: Seconds since the start.

    Returns:
        Seconds, or None until a job has finished.
    """
    times = [seconds for rule in took.values() for seconds in rule]
    done = sum(times)
    if done <= 0:
        return None
    usual = statistics.median(times)  # one long job at the beginning is not representative
    work = 0.0
    for rule, jobs in left.items():
        under_way = running.get(rule, ())
        each = statistics.fmean(took[rule]) if took.get(rule) else max(usual, *under_way, 0.0)
        work += max(jobs * each - sum(min(seconds, each) for seconds in under_way), 0.0)
    parallel = (done + sum(map(sum, running.values()))) / max(elapsed, 1e-3)  # a clock may be set back
    return work / min(parallel, max(sum(left.values()), 1))


def progress(done: int, total: int, elapsed: float, left: float | None) -> str:
    """Format the progress: ` 37/254  15 %  1:12, about 4:10 left`."""
    percent = 100 * done // max(total, 1)
    estimate = "" if left is None or done >= total else f", about {clock(left)} left"
    return f"{done:>{len(str(total))}}/{total} {percent:>3} %  {clock(elapsed)}{estimate}"


def plan(counts: Mapping[str, int], reasons: Mapping[str, Iterable[str]]) -> str:
    """Format the result of a dry run as a table: rules, numbers of jobs, and reasons."""
    width = max(map(len, counts), default=0)
    digits = len(str(max(counts.values(), default=0)))
    rows = (f"  {rule:<{width}}  {jobs:>{digits}}  {', '.join(reasons.get(rule, ()))}" for rule, jobs in counts.items())
    return "\n".join(row.rstrip() for row in rows)


def reason_kind(reason: str) -> str:
    """Return the first of Snakemake's reasons for a job, without its files and values."""
    return re.split("[:;]", reason, maxsplit=1)[0].strip()


def log_end(path: str) -> str:
    """Return the name of a log and its last lines, indented."""
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
    """Remove the stack frames from an error that do not help its reader.

    Errors of `isp` are about the user's files and settings, so the line of the Snakefile is also removed. Other errors
    lose Python's traceback, which Snakemake prints if no line of a Snakefile is the cause.
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
    """Refuse study files that Snakemake would read endlessly or that would exhaust memory, before it reads them.

    Args:
        arguments: Command-line arguments of Snakemake.

    Raises:
        SystemExit: A file is a folder, a device or a FIFO, or too large. Its name is printed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="*", action="extend", type=Path, default=[])
    for path in parser.parse_known_args(arguments)[0].configfile:
        try:
            files.check_regular(path, files.LARGEST_STUDY)
        except FileNotFoundError:
            continue  # Snakemake reports it
        except OSError as error:
            print(f"isp: {printable(path)}: cannot be read ({error.strerror})", file=sys.stderr)
            raise SystemExit(2) from None


def chosen_by(arguments: Sequence[str]) -> str:
    """Return the option by which a command chose some jobs of those that Snakemake counts; empty if it chose none."""
    for name in CHOOSING:
        short = len(name) == 2
        if any(each.startswith(name) if short else each.partition("=")[0] == name for each in arguments):
            return name
    return ""


class LogHandler(LogHandlerBase):
    """Handler of all messages of Snakemake's main process. Messages of jobs in other processes do not arrive here."""

    def __post_init__(self) -> None:
        check_study_files(sys.argv[1:])
        self._stream = sys.stdout if self.common_settings.stdout else sys.stderr
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        quiet = {getattr(choice, "name", str(choice)) for choice in self.common_settings.quiet or ()}
        self._quiet = bool(quiet & {"ALL", "PROGRESS", "RULES"})
        self._ended = threading.Event()
        self._study = ""
        self._in_run = False  # never for --lint, --summary, --unlock …, whose messages are their result
        self._planned: dict[str, int] = {}
        self._up_to_date = False
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
        """True, so that Snakemake does not set up its own stream."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """False, because Snakemake's complete log is the file."""
        return False

    @property
    def has_filter(self) -> bool:
        """True, because Snakemake's filter would drop failures with `--quiet`."""
        return True

    @property
    def has_formatter(self) -> bool:
        """False, because `--verbose` shows messages in Snakemake's format."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """False, because the rule graph is not used."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one message of Snakemake."""
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
        """Print the summary. Snakemake calls this once, and Python once more at exit."""
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
        if self._planned:  # a dry run sends it twice
            return
        self._planned = {rule: jobs for rule, jobs in vars(record)["stats"].items() if rule != "total"}
        self._started = record.created
        self._total = sum(self._planned.values())
        if not self._planned:  # all jobs that an option chose are done; Snakemake counts others, so it does not say so
            self._say_up_to_date()
            return
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
            # The job's own error follows from the same thread, and identifies the job.
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
            self._say_up_to_date()
        elif text.startswith(COMPLETE_LOG):
            self._complete_log = text.removeprefix(COMPLETE_LOG)
        elif text.startswith((INTERRUPTED, GRACEFUL)):
            if not self._stopped:
                self._say("Stopping after the running jobs have finished.")
            self._stopped = True
            self._interrupted |= text.startswith(INTERRUPTED)
        elif record.levelno >= logging.WARNING:
            summed_up = (self._failed or self._stopped) and any(known in text for known in SUMMED_UP_BY_US)
            self._stopped |= record.levelno >= logging.ERROR
            if not summed_up:
                self._say(without_frames(self.format(record)))
        elif self.common_settings.verbose or not (self._in_run or text.startswith(BEFORE_A_RUN)):
            self._say_record(record)

    def _say_up_to_date(self) -> None:
        """Say once that there is nothing to do; a dry run may report it twice."""
        if not self._up_to_date:
            self._up_to_date = True
            option = chosen_by(sys.argv[1:])
            chosen = f"results with {option}" if option else "results"
            self._say(f"{self._of_study()}Nothing to do: all {chosen} are up to date.")

    def _fail(self, fields: Mapping[str, Any], logs: Sequence[str], record: logging.LogRecord) -> None:
        rule, number = fields["rule_name"], fields["jobid"]
        if number in self._failed:  # the jobs of a group are reported twice
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
        # With --quiet, Snakemake does not report finished jobs.
        jobs = count(self._total, "job")
        so_far = f"{f'{jobs} planned' if self._quiet else f'{self._done} of {jobs} done'}, after {seconds}"
        if self._failed:
            lines = [f"{count(len(self._failed), 'job')} failed; {so_far}:"]
            for job, logs in [*self._failed.values()][:FAILURES_LISTED]:
                lines.append(f"    {job.label}" + (f" (log: {', '.join(logs)})" if logs else ""))
            if len(self._failed) > FAILURES_LISTED:
                lines.append(f"    and {len(self._failed) - FAILURES_LISTED} more")
            lines.append(f"Fix {'it' if len(self._failed) == 1 else 'them'} and {RESCUE}")
        elif not (self._stopped or self._quiet) and self._done < self._total and (option := chosen_by(sys.argv[1:])):
            return f"{self._of_study()}{self._done} of {jobs} done in {seconds}; {option} leaves the others"
        elif self._stopped or (self._done < self._total and not self._quiet):
            lines = [f"Stopped; {so_far}.", f"To continue, {RESCUE}"]
        else:
            return f"{self._of_study()}{jobs} done in {seconds}"
        if self._complete_log:
            lines.append(f"Snakemake's complete log: {self._complete_log}")
        return "\n".join(lines)

    def _of_study(self) -> str:
        return f"{self._study}: " if self._study else ""

    def _progress(self, now: float) -> str:
        left = {rule: max(jobs - len(self._took[rule]), 0) for rule, jobs in self._planned.items()}
        running: dict[str, list[float]] = defaultdict(list)
        for job in self._running.values():
            running[job.rule].append(now - job.started)
        elapsed = now - self._started
        return progress(self._done, self._total, elapsed, seconds_left(left, self._took, running, elapsed))

    def _tick(self) -> None:
        while not self._ended.wait(1):
            with self.lock:  # type: ignore[union-attr]
                self._draw()

    def _draw(self) -> None:
        """Rewrite the live line, which has no newline."""
        if not self._live or self._quiet or not self._planned or self.common_settings.dryrun or self._ended.is_set():
            return
        failed = f", {len(self._failed)} failed" if self._failed else ""
        now = "; ".join(job.label for job in self._running.values())
        text = f"{self._progress(time.time())}{failed}{' | ' if now else ''}{now}"
        width = os.get_terminal_size(self._stream.fileno()).columns or 80  # some terminals say 0
        self._stream.write(f"\r{shorten(printable(text), width - 1)}\x1b[K")
        self._stream.flush()

    def _say(self, text: str) -> None:
        """Write whole lines in place of the live line, with control characters escaped."""
        start = "\r\x1b[K" if self._live and self._planned else ""
        self._stream.write(f"{start}{printable(text.rstrip())}\n")
        self._stream.flush()

    def _say_record(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text and text != "None":
            self._say(text)
