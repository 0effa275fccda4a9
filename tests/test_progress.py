from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.exceptions import LockException
from snakemake_interface_logger_plugins.common import LogEvent

import snakemake_logger_plugin_isp as plugin

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (72, "1:12"), (3723, "1:02:03")]
)
def test_a_clock(seconds: float, shown: str) -> None:
    assert plugin.clock(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0.0 s"), (2.14, "2.1 s"), (59.96, "1:00"), (72, "1:12")])
def test_a_duration(seconds: float, shown: str) -> None:
    assert plugin.duration(seconds) == shown


def test_a_job_is_called_by_its_message_on_one_line_or_by_its_rule_and_wildcards() -> None:
    assert plugin.label("train", "digits,\n  seed 0", {"seed": "0"}) == "digits, seed 0"
    assert plugin.label("train", None, {"seed": "0", "n": "4"}) == "train, seed 0, n 4"


def test_a_text_is_cut_to_the_width() -> None:
    assert plugin.shorten("abcdef", 6) == "abcdef"
    assert plugin.shorten("abcdef", 5) == "abcd…"
    assert plugin.shorten("abcdef", 0) == "…"


def test_nothing_is_estimated_before_a_job_has_finished() -> None:
    assert plugin.seconds_left({"train": 3}, {}, {"train": [5]}, 5) is None


def test_the_estimate_takes_each_rule_at_its_own_mean() -> None:
    # One after the other: 10 s of training and 1 s of scoring are behind, two of each are to come.
    assert plugin.seconds_left({"train": 2, "score": 2}, {"train": [10], "score": [1]}, {}, 11) == pytest.approx(22)
    # A rule without a finished job counts as the average job.
    assert plugin.seconds_left({"score": 2}, {"train": [10, 20]}, {}, 30) == pytest.approx(30)


def test_the_estimate_knows_how_many_jobs_run_at_once_and_what_is_under_way() -> None:
    # Two at once: 4 jobs of 10 s in 20 s; of the 4 left two are half done, after 25 s.
    assert plugin.seconds_left({"train": 4}, {"train": [10] * 4}, {}, 20) == pytest.approx(20)
    assert plugin.seconds_left({"train": 4}, {"train": [10] * 4}, {"train": [5, 5]}, 25) == pytest.approx(15)
    assert plugin.seconds_left({"train": 1}, {"train": [10] * 4}, {"train": [99]}, 80) == 0


def test_a_job_that_takes_long_does_not_make_the_others_shorter() -> None:
    # One at a time: a job is at 30 s instead of 10, and two jobs of 10 s wait for it.
    assert plugin.seconds_left({"train": 3}, {"train": [10] * 4}, {"train": [30]}, 70) == pytest.approx(20)
    # No ramp has finished, and the oldest has run for 60 s; three are left, two of which run.
    assert plugin.seconds_left({"ramp": 3}, {"score": [1]}, {"ramp": [60, 20]}, 81) == pytest.approx(100)


def test_a_job_does_not_share_itself_out() -> None:
    # Eight at once so far; of one job, 5 of its 10 s are left.
    assert plugin.seconds_left({"train": 1}, {"train": [10] * 16}, {"train": [5]}, 20.625) == pytest.approx(5)


def test_the_estimate_is_never_negative() -> None:
    # A job that is tried again is no longer among those left, and the clock was set back.
    assert plugin.seconds_left({"train": 0}, {"train": [10]}, {"train": [5]}, 15) == 0
    assert plugin.seconds_left({"train": 2}, {"train": [10]}, {}, -3) == pytest.approx(10)


def test_progress() -> None:
    assert plugin.progress(37, 254, 72, 250) == " 37/254  14 %  1:12, about 4:10 left"
    assert plugin.progress(0, 254, 1, None) == "  0/254   0 %  0:01"
    assert plugin.progress(254, 254, 72, 0) == "254/254 100 %  1:12"


def test_a_plan_names_rules_numbers_and_reasons() -> None:
    table = plugin.plan({"train": 12, "all": 1}, {"train": ["Missing output files", "Code has changed"]})
    assert table == "  train  12  Missing output files, Code has changed\n  all     1"
    assert (
        plugin.reason_kind("Missing output files: a, b; Code has changed since last execution")
        == "Missing output files"
    )


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {i}" for i in range(100_000)))
    lines = plugin.log_end(str(log)).splitlines()
    assert lines[0] == f"    log: {log}"
    assert lines[1:] == [f"    | line {i}" for i in range(100_000 - plugin.LOG_LINES, 100_000)]
    log.write_text("")
    assert plugin.log_end(str(log)).endswith("(empty)")
    log.unlink()
    assert plugin.log_end(str(log)).endswith("(No such file or directory)")


def test_what_is_printed_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SimpleNamespace(stdout=True, quiet=None, dryrun=False, verbose=False, printshellcmds=False)
    handler = plugin.LogHandler(settings, None)
    handler._say("FAILED: \x1b[2Jx\n    | \x9b31m\u202e\r\tx")
    assert capsys.readouterr().out == "FAILED: \\x1b[2Jx\n    | \\x9b31m\\u202e\\r\tx\n"


def test_study_files_that_cannot_be_read_are_refused_before_snakemake_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", 2**30)  # sparse
    good = str(ROOT / "config/smoke.yaml")
    plugin.check_study_files(["-n", "--configfile", good, good, "--config", "seed=1", f"--configfile={good}"])
    plugin.check_study_files(["--cores", "1", "--configfile", str(tmp_path / "missing.yaml")])
    problems = {
        "/dev/zero": "not a regular file",
        str(tmp_path / "fifo.yaml"): "not a regular file",
        str(tmp_path): "Is a directory",
        str(tmp_path / "large.yaml"): "must have at most 4,194,304 bytes, got 1,073,741,824",
    }
    for path, problem in problems.items():
        for arguments in (["--configfile", good, path], [f"--configfiles={path}", "-n"]):
            with pytest.raises(SystemExit, match="2"):
                plugin.check_study_files(arguments)
            assert capsys.readouterr().err == f"isp: {path}: cannot be read ({problem})\n"


def test_an_error_is_shown_without_pythons_frames() -> None:
    assert plugin.without_frames("WorkflowError:\nno") == "WorkflowError:\nno"
    assert plugin.without_frames(f"LockException:\n{LockException()}").startswith("isp: another run is making the same")
    frames = (
        'Traceback (most recent call last):\n\n  File "a.py", line 1, in f\n    f()\n\nOSError: [Errno 2] no\n  file'
    )
    assert plugin.without_frames(frames) == "OSError: [Errno 2] no\n  file"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["--until", "part"], "--until"), (["--until=part"], "--until"), (["-Upart"], "-U"), (["--cores", "1"], "")],
)
def test_the_option_that_chooses_jobs(arguments: list[str], option: str) -> None:
    assert plugin.chosen_by(arguments) == option


@pytest.mark.parametrize(
    ("dryrun", "arguments", "chosen"), [(True, ["--until", "a"], "results with --until"), (False, [], "results")]
)
def test_no_chosen_job_is_left(
    dryrun: bool, arguments: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run of jobs that an option chose and that were done printed nothing, another run "0 jobs to run"."""
    monkeypatch.setattr("sys.argv", ["snakemake", *arguments])
    settings = SimpleNamespace(stdout=True, quiet=None, dryrun=dryrun, verbose=False, printshellcmds=False)
    handler = plugin.LogHandler(settings, None)
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "Job stats", None, None)
    vars(record).update(event=LogEvent.RUN_INFO, stats={"total": 0})
    handler.emit(record)
    handler.emit(record)
    handler.close()
    assert capsys.readouterr().out == f"Nothing to do: all {chosen} are up to date.\n"


WORKFLOW = """
configfile: "tiny.yaml"
localrules: all
rule all:
    input: "sum"
rule part:
    output: "part{i}"
    log: "logs/part{i}.log"
    params: n=lambda wildcards: int(wildcards.i) + 1
    message: "part {params.n} of 3"
    shell: "if test -e broken && test {wildcards.i} = 1; then echo out of soup > {log}; exit 3; fi; touch {output}"
rule sum:
    input: expand("part{i}", i=range(3))
    output: "sum"
    shell: "touch {output}"
"""


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--logger",
        "isp",
        "--cores",
        "1",
        "--scheduler",
        "greedy",
        *arguments,
    ]
    # Where the project is not installed, or was before it had the plugin.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    return ran.returncode, ran.stdout


@pytest.mark.process
def test_a_failure_and_the_runs_after_it(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    (tmp_path / "tiny.yaml").write_text("{}")
    (tmp_path / "broken").touch()

    status, said = snakemake(tmp_path, "--keep-going")
    assert status == 1
    assert said.startswith("tiny: 5 jobs to run\n")
    assert "FAILED: part 2 of 3 (rule part, exit status 3" in said
    assert "    log: logs/part1.log\n    | out of soup\n" in said
    assert "1 job failed; 2 of 5 jobs done" in said
    assert "Traceback" not in said
    (log,) = (tmp_path / ".snakemake/log").iterdir()
    assert said.endswith(f"Snakemake's complete log: {log}\n")

    (tmp_path / "broken").unlink()
    status, said = snakemake(tmp_path)
    first, *finished, last = said.splitlines()
    assert status == 0
    assert first == "tiny: 3 jobs to run"
    assert finished[0].startswith("[1/3  33 %  0:0")
    assert "] part 2 of 3 (" in finished[0]
    assert [line.split("] ")[1].split(" (")[0] for line in finished[1:]] == ["sum", "all"]
    assert last.startswith("tiny: 3 jobs done in 0:")

    assert snakemake(tmp_path) == (0, "tiny: Nothing to do: all results are up to date.\n")

    (tmp_path / "part0").unlink()
    (tmp_path / "sum").unlink()
    status, said = snakemake(tmp_path, "--until", "part")
    assert status == 0
    assert re.fullmatch(r"tiny: 1 of 3 jobs done in \d+:\d\d; --until leaves the others", said.splitlines()[-1])


@pytest.mark.process
def test_a_dry_run_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    (tmp_path / "tiny.yaml").write_text("{}")
    status, said = snakemake(tmp_path, "-n")
    assert status == 0
    assert said.splitlines() == [
        "tiny: 5 jobs to run; this was a dry run, nothing was started",
        "  part  3  Missing output files",
        "  sum   1  Missing output files",
        "  all   1  Input files updated by another job",
    ]


@pytest.mark.process
def test_an_error_in_the_snakefile_is_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text('raise WorkflowError("study: no method soup\\nallowed are a, b")\n')
    status, said = snakemake(tmp_path)
    assert status == 1
    assert said.count("study: no method soup\nallowed are a, b") == 1
    assert "to run" not in said
