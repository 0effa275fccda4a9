"""How far a study is, by files that are made up here; every number by hand."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from isp import cli, registry
from isp.config import load_study, parse_study
from isp.errors import IspError
from isp.reporting.status_lines import lines, span
from isp.runtime import watch
from isp.runtime.warm import COLD
from isp.runtime.watch import marker
from isp.stages._work import working
from isp.stages.describe import describe
from isp.workflow.jobs import Jobs
from isp.workflow.status import Log, Mark, Seen, find_study, log_of, look, report
from tests.support.studies import ROOT, STUDY

JOBS = Jobs(parse_study(STUDY, "test"))  # 5 tickets: dense, isp and lth at 0.5 and 0.75
RUN = "results/tiny/runs/clip_tiny/digits/seed0"
INITIAL, DENSE = f"{RUN}/initial/pretrained.safetensors", f"{RUN}/dense/pretrained.safetensors"
STATE = f"{RUN}/isp/round0/state.safetensors"
MASK, LATER_MASK = (f"{RUN}/isp/round{r}/to{s}/mask.safetensors" for r, s in ((0, "0.5000"), (1, "0.7500")))
NOW = 1e9


def wrote(seconds: float) -> Log:
    return Log(f"30 steps in 31 s\nwrote x in {seconds} s after 1.00 s of start-up, peak memory 9 MB\n", 5000)


def found(
    *files: str,
    marks: Mapping[str, Mark] | None = None,
    logs: Mapping[str, Log] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report; logs by output."""
    by_path = {log_of("tiny", output): log for output, log in (logs or {}).items()}
    return report(JOBS, Seen(files=set(files), marks=marks or {}, log=by_path.get, now=NOW), plan)


def groups(content: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    keys = ("tickets", "done", "running", "failed", "left")
    return {row["variant"]: tuple(row[key] for key in keys) for row in content["groups"]}


def test_nothing_is_there_yet() -> None:
    content = found()
    count = len(JOBS.by_output)
    assert content["jobs"] == {"all": count, "done": 0, "running": 0, "lost": 0, "failed": 0, "left": count}
    assert groups(content) == {"dense": (1, 0, 0, 0, 1), "isp": (2, 0, 0, 0, 2), "lth": (2, 0, 0, 0, 2)}
    assert content["left"]["seconds"] is None
    assert "the remaining time is not known" in lines(content)


def test_what_was_deleted_on_the_way_is_done_when_all_that_needs_it_is() -> None:
    records = JOBS.dag.records()
    assert found(*JOBS.dag.similarities(), *records)["jobs"]["left"] == 0
    # The state of round 0 is needed by its mask, the ticket at 0.5 and round 1.
    without_state = [path for path in JOBS.by_output if path != STATE]
    assert found(*without_state)["jobs"]["left"] == 0
    without_mask = [path for path in without_state if path != MASK]
    assert found(*without_mask)["jobs"]["left"] == 0
    first_round = [INITIAL, MASK]
    content = found(*first_round)
    assert content["jobs"]["done"] == 2  # the state is not only needed by MASK
    assert content["left"]["rules"]["train_segment"] == 2


def test_running_lost_failed_and_retried(golden: Callable[[str, str], None]) -> None:
    traceback = Log("Traceback\n  File x\nMemoryError: no memory\n", 10)
    marks = {
        MASK: Mark(19, {"host": "node7", "pid": 3, "started": NOW - 600, "step": 20, "slurm_job": "88"}),
        LATER_MASK: Mark(121, {"host": "node8", "pid": 4, "started": NOW - 900, "step": 10}),
        f"{RUN}/lth/0.5000/ticket.safetensors": Mark(1, {"host": "here", "started": NOW - 5, "step": 0}),
    }
    logs = {path: Log("warming up\n", 100) for path in marks}  # also of a retried one
    logs[f"{RUN}/lth/0.5000/metrics.json"] = traceback
    content = found(INITIAL, DENSE, STATE, marks=marks, logs=logs)
    assert content["jobs"] | {"all": 0, "left": 0} == {
        **{"all": 0, "left": 0, "done": 3, "running": 2, "lost": 1, "failed": 1}
    }
    # Of isp one needs the mask of a lost job, one that of a running one; of lth one failed, the other waits.
    assert groups(content) == {"dense": (1, 0, 0, 0, 1), "isp": (2, 0, 1, 1, 0), "lth": (2, 0, 1, 1, 0)}
    assert [(job["host"], job["step"], job["steps"], job["seconds"]) for job in content["running"]] == [
        ("node7", 20, 100, 600),
        ("here", 0, 100, 5),
    ]
    by_rule = {job["rule"]: job for job in content["failed"]}
    assert by_rule["prune_denoised"]["lost"]
    assert by_rule["evaluate"]["lines"] == ["Traceback", "  File x", "MemoryError: no memory"]
    printed = lines(content)
    assert re.findall(r"\d+", printed.splitlines()[0]) == ["3", str(len(JOBS.by_output)), "0", "5", "2", "2"]
    assert LATER_MASK in printed
    golden("status", printed)


@pytest.mark.process
def test_a_process_that_is_stopped_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only on its own machine; a marker of another one is lost when nobody renews it."""
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            for output, host in ((MASK, socket.gethostname()), (LATER_MASK, "elsewhere")):
                path = Path(marker(output))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"host": host, "pid": process.pid, "started": NOW, "step": 7}))
                os.utime(path, (NOW - 1000, NOW - 1000))
            content = report(JOBS, look(JOBS.study), None)
            assert (content["jobs"]["running"], content["jobs"]["lost"]) == (0, 2)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            content = report(JOBS, look(JOBS.study), None)
        finally:
            process.kill()
    assert (content["jobs"]["running"], content["jobs"]["lost"]) == (1, 1)
    assert [(job["output"], job["stopped"]) for job in content["running"]] == [(MASK, True)]
    assert f'stopped ("kill -CONT {process.pid}" resumes it)\n    {MASK}\n' in lines(content)


def test_a_job_that_says_why_it_starts_cold_is_starting() -> None:
    said = f"{COLD}the fork server is stopped\n"
    assert found(logs={INITIAL: Log(said, 119)})["jobs"]["running"] == 1
    assert found(logs={INITIAL: Log(said, 121)})["jobs"]["lost"] == 1
    assert found(logs={INITIAL: Log(f"{said}MemoryError\n", 1)})["jobs"]["failed"] == 1


def test_what_was_stopped_waits_to_go_on() -> None:
    """After a time limit, until Slurm begins it again."""
    stopped = "isp: stopped by SIGUSR1 at step 120; will resume from there: x.checkpoint.safetensors\n"
    content = found(INITIAL, logs={DENSE: Log(stopped, 4000)})
    assert (content["jobs"]["failed"], content["failed"]) == (0, [])


def test_a_log_without_a_word() -> None:
    """Just begun, the process is starting; later it is gone."""
    content = found(logs={INITIAL: Log("\n", 119)})
    assert content["jobs"]["running"] == 1
    assert content["running"][0]["host"] is None
    assert "initialise, starting\n" in lines(content)
    content = found(logs={INITIAL: Log("", 121)})
    assert content["jobs"]["lost"] == 1
    assert "(empty)" in lines(content)


def test_a_log_of_a_finished_job_whose_output_was_deleted() -> None:
    assert found(logs={INITIAL: wrote(1)})["jobs"]["left"] == len(JOBS.by_output)
    assert found(logs={INITIAL: wrote(1)})["failed"] == []


def test_what_studies_share_and_what_people_read_may_fail_too() -> None:
    logs = {
        "resources/logs/prepare/clip_tiny/digits.log": Log("isp: no file\n", 9),
        "resources/logs/pretrain/clip_tiny.log": Log("30 steps in 31 s\n", 9),  # it works
        "results/tiny/logs/tables.log": Log("Traceback\nisp.errors.ArtifactError: x\n", 9),
        "results/tiny/logs/plan.log": Log("a plan\n", 9),
    }
    content = report(JOBS, Seen(files=set(), marks={}, log=logs.get, now=NOW), None)
    assert [job["rule"] for job in content["failed"]] == ["prepare", "tables"]
    there = {"resources/prepared/clip_tiny/digits/train.safetensors"}
    content = report(JOBS, Seen(files=there, marks={}, log=logs.get, now=NOW), None)
    assert [job["rule"] for job in content["failed"]] == ["tables"]


def test_how_long_by_hand() -> None:
    """Retraining took 9 + 1 and 19 + 1 seconds; nothing else is measured."""
    tickets = [job.output for job in JOBS.by_output.values() if job.rule == "retrain"]
    ready, later = [path for path in tickets if "/0.5000/" in path], [path for path in tickets if "/0.7500/" in path]
    files = [INITIAL, DENSE, STATE, MASK, *ready]
    logs = {ready[0]: wrote(9), ready[1]: wrote(19)}
    content = found(*files, logs=logs)
    left = content["left"]
    assert left["rules"]["retrain"] == 2
    assert (left["work_seconds"], left["seconds"], left["side_by_side"]) == (2 * 15, 30, 1)
    assert left["measured_jobs"] == 2
    assert "retrain" not in left["unknown"]
    assert "prune_denoised" in left["unknown"]
    assert "Not included, because no duration is known yet: compare_masks, " in lines(content)
    # A plan said 5 seconds of a retraining, which took 3 times as long, and 2 of each other job.
    rules = dict.fromkeys(left["rules"], 2) | {"retrain": 5}
    plan = {"parallel": 4, "rules": [{"rule": rule, "jobs": 10, "seconds": 10 * s} for rule, s in rules.items()]}
    content = found(*files, logs=logs, plan=plan)
    others = content["left"]["jobs"] - 2
    assert content["left"]["work_seconds"] == 2 * 15 + others * 2 * 3
    assert content["left"]["seconds"] == round((30 + others * 6) / 4, 1)
    assert content["left"]["unknown"] == []
    # Two that run have had 4 and 40 seconds of 15.
    marks = {path: Mark(0, {"started": NOW - age}) for path, age in zip(later, (4, 40), strict=True)}
    content = found(*files, logs=logs, plan=plan, marks=marks)
    assert content["left"]["work_seconds"] == 11 + 0 + others * 6
    assert content["left"]["side_by_side"] == 2
    assert "by the times of 2 finished jobs and the plan,\n2 parallel jobs." in lines(content)


def test_a_plan_alone() -> None:
    plan = {"parallel": 2, "rules": [{"rule": job.rule, "jobs": 1, "seconds": 3} for job in JOBS.by_output.values()]}
    left = found(plan=plan)["left"]
    assert (left["seconds"], left["measured_jobs"], left["planned"]) == (3 * len(JOBS.by_output) / 2, 0, True)


def test_lines_of_a_whole_grid_are_few_and_short() -> None:
    jobs = Jobs(load_study(ROOT / "config" / "paper.yaml"))
    running = {
        path: Mark(0, {"host": "a" * 20, "started": NOW, "step": 1, "slurm_job": "1234567"}) for path in jobs.by_output
    }
    seen = Seen(files=set(), marks=running, log=lambda path: None, now=NOW)
    printed = lines(report(jobs, seen, None)).splitlines()
    assert len(printed) < 60
    assert all(len(line) <= 100 for line in printed if not line.startswith("    results/"))
    assert f"  and {len(jobs.by_output) - 12:,} more" in printed


def test_variants_that_are_wholly_in_one_state_are_one_row() -> None:
    variants = {"one": (3, 3), "two": (3, 3), "three": (3, 0), "four": (3, 1), "a_name_of_many_letters": (3, 3)}
    keys = {"backbone": "clip_tiny", "task": "digits", "running": 0, "failed": 0}
    rows = [
        {**keys, "variant": name, "tickets": all_, "done": done, "left": all_ - done}
        for name, (all_, done) in variants.items()
    ]
    content = {**found(), "groups": rows}
    table = lines(content).split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [
        "clip_tiny digits one, two, a_name_of_many_letters",
        "clip_tiny digits three",
        "clip_tiny digits four",
    ]
    assert [line.split()[-2:] for line in table[1:]] == [["9", "9"], ["3", "3"], ["1", "2"]]
    content["groups"] = [{**row, "task": "a_task_with_a_name"} for row in rows]
    assert "a_task_with_a_name one, two and 1 more  " in lines(content)


def test_spans() -> None:
    assert [span(seconds) for seconds in (7, 130, 11_100, 2 * 86_400 + 4 * 3600)] == [
        *("7 s", "2 min", "3 h 05 min", "2 d 4 h")
    ]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the study without anything but its file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["status", *arguments])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out + printed.err


def put(path: str, text: str = "x", age: float = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def test_a_folder_of_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run(capsys, "--configfile", "tiny.yaml")
    assert status == 0
    assert printed.startswith("tiny: 0 of ")
    for path in (INITIAL, STATE):
        put(path)
    put(watch.marker(MASK), json.dumps({"host": "node7", "started": time.time() - 3, "step": 4}), age=60)
    put(watch.marker(LATER_MASK), '{"host": "no', age=60)  # just being written
    put(log_of("tiny", MASK), "")
    status, printed = run(capsys, "--configfile", "tiny.yaml", "--json")
    content = json.loads(printed)
    assert status == 0
    assert content["jobs"] | {"all": 0, "left": 0} == {
        **{"all": 0, "left": 0, "done": 2, "running": 2, "lost": 0, "failed": 0}
    }
    assert {job["host"] for job in content["running"]} == {"node7", None}
    put(watch.marker(MASK), "{}", age=130)
    put(log_of("tiny", DENSE), "loss 3\nisp: training diverged\n")
    status, printed = run(capsys, "--configfile", "tiny.yaml")
    assert status == 1
    assert "| isp: training diverged\n    log: results/tiny/logs/runs/" in printed
    assert "prune_denoised lost" in printed


@pytest.mark.process
def test_the_study_is_found_by_its_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run(capsys, "tiny")
    assert status == 2
    assert "results/tiny/study.json: no such file" in printed
    assert "Studies in this folder: none" in printed
    describe(study=STUDY, command="snakemake", output=Path("results/tiny/study.json"))
    assert run(capsys, "tiny")[0] == 0
    assert "Studies in this folder: tiny. For a study that has not started:" in run(capsys, "other")[1]
    assert run(capsys)[0] == run(capsys, "tiny", "--configfile", "tiny.yaml")[0] == 2
    put("results/tiny/study.json", "[]")
    with pytest.raises(IspError, match=r"tiny/study.json: does not contain a study; delete it"):
        find_study("tiny")


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_described_study_is_the_study(here: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its protocol is in epochs, which the description says beside what follows from them."""
    monkeypatch.setattr("isp.stages.describe.commit", dict)  # asks git, in a process
    values = yaml.safe_load(path.read_text())
    describe(study=values, command="snakemake", output=Path(f"results/{values['study']}/study.json"))
    known, again = parse_study(values, "test"), find_study(values["study"])
    assert again.model_dump(exclude={"data_root"}) == known.model_dump(exclude={"data_root"})


def test_a_study_is_known_with_the_look_aheads_of_its_last_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide which jobs there are, but no result, and so study.json does not contain them."""
    monkeypatch.setattr("isp.stages.describe.commit", dict)  # asks git, in a process
    describe(study=STUDY, command="snakemake", output=Path("results/tiny/study.json"))
    for text, expected in [
        ('{"look_aheads": "together"}', "together"),
        *((other, None) for other in ('{"look_aheads": null}', '{"look_aheads": "both"}', "{}", "[]", "broken")),
    ]:
        put(".snakemake/isp-studies/tiny.json", text)
        assert find_study("tiny").look_aheads == expected


METHODS = {
    "one_shot": "from isp.methods import Scored\nclass Settings(Scored):\n    batches: int = 3\ndef scores(): ...\n",
    "single_pass": "from isp.settings import Settings\ndef events(settings, sparsity, steps):\n    return (3, 5)\n"
    "def prune(): ...\n",
    "iterative": "from isp.methods.lth import Settings as Base\nclass Settings(Base):\n    extra: int = 1\n",
    "denoised": "from isp.methods.isp import Settings as Base\nclass Settings(Base):\n    denoisers: int = 3\n",
    "souped": "from isp.methods.uniform_soup import Settings\n",
    "dense": "from isp.settings import Settings\n",
}
"""Files of methods by family; their settings are others than those of the package."""


@pytest.mark.parametrize("family", METHODS)
def test_a_file_that_a_folder_of_results_names_is_not_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Its jobs are known by what study.json says of it, as if it had been run."""
    monkeypatch.setattr("isp.stages.describe.commit", dict)  # asks git, in a process
    monkeypatch.setattr(registry, "_stand_ins", {})
    put("results/tiny/mine.py", f"FAMILY = {family!r}\nVERSION = 1\n{METHODS[family]}")
    variants = {**STUDY["variants"], "mine": {"method": "results/tiny/mine.py"}}
    [block] = STUDY["grid"]
    sparsities = {"sparsities": []} if family == "dense" else {}
    grid = [block, {**block, "variants": ["mine"], **sparsities}]
    values = {**STUDY, "variants": variants, "grid": grid}
    describe(study=values, command="snakemake", output=Path("results/tiny/study.json"))
    known = {output: job.steps for output, job in Jobs(parse_study(values, "test")).by_output.items()}
    for content in ("open('was-run', 'w')\n", "\0", None):
        if content is None:
            Path("results/tiny/mine.py").unlink()
        else:
            put("results/tiny/mine.py", content)
        status, printed = run(capsys, "tiny")
        assert status == 0, printed
        assert "mine" in printed
        assert not Path("was-run").exists()
    assert {output: job.steps for output, job in Jobs(find_study("tiny")).by_output.items()} == known


@pytest.mark.parametrize("known", [None, {}, {"mine": 1}, {"mine": {"family": []}}, {"mine": {"family": "other"}}])
def test_a_description_without_the_family_of_a_methods_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, known: Any
) -> None:
    monkeypatch.setattr(registry, "_stand_ins", {})
    put("mine.py", "open('was-run', 'w')")
    values = {**STUDY, "variants": {**STUDY["variants"], "mine": {"method": "mine.py"}}}
    put("results/tiny/study.json", json.dumps({"study": values, "variants": known}))
    refusal = r"results/tiny/study.json: (does not contain a study|unknown family ('other'|\[\]))"
    with pytest.raises(IspError, match=refusal):
        find_study("tiny")
    assert not Path("was-run").exists()


def test_markers_and_logs_that_are_hostile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;title\x07\x1b[2J"
    put("results/tiny/study.yaml", "x")
    put(watch.marker(MASK), json.dumps({"host": escape, "step": 4, "started": time.time(), "slurm_job": "\x9b"}))
    put(watch.marker(LATER_MASK), json.dumps({"host": 7, "step": "x", "started": "x", "slurm_job": []}))
    wrong = (
        "[" * 9000,
        "[]",
        '{"started": NaN}',
        '{"started": 1e999, "step": true}',
        "\ud800".encode("utf-8", "replace"),
    )
    for output, text in zip(list(JOBS.by_output)[-len(wrong) :], wrong, strict=True):
        put(watch.marker(output), text if isinstance(text, str) else text.decode())
    os.mkfifo(watch.marker(DENSE))
    put(log_of("tiny", STATE), f"{escape}\nisp: \u202egone\x85{escape}\n", age=500)
    Path(log_of("tiny", INITIAL)).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(log_of("tiny", INITIAL))
    status, printed = run(capsys, "--configfile", "tiny.yaml")
    assert status == 1
    assert r"prune_denoised, \x1b]0;title\x07\x1b[2J (Slurm \x9b), step 4 of 100" in printed
    assert r"| isp: \u202egone" in printed
    assert all(line.isprintable() for line in printed.split("\n"))


# --- progress of a stage ----------------------------------------------------------------------------------------------


def test_runs_on_another_disk_are_seen(here: Path, tmp_path: Path) -> None:
    """Their folder is a link; one that leads back to the study is not followed again."""
    study_ = load_study(here / "tiny.yaml")
    elsewhere = tmp_path / "scratch"
    runs = Path(INITIAL).parents[4]
    elsewhere.mkdir()
    runs.parent.mkdir(parents=True, exist_ok=True)
    runs.symlink_to(elsewhere)
    Path(INITIAL).parent.mkdir(parents=True)
    Path(INITIAL).touch()
    (elsewhere / "again").symlink_to(runs.parent.absolute())
    assert {path for path in look(study_).files if path.endswith(Path(INITIAL).name)} == {INITIAL}


def test_folders_that_disappear_meanwhile_are_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = str(Path(INITIAL).parent)
    Path(INITIAL).parent.mkdir(parents=True)
    Path(INITIAL).touch()
    stat = os.stat

    def vanished(path: Any, **options: Any) -> os.stat_result:
        if path == gone:
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", vanished)
    assert INITIAL not in look(load_study(here / "tiny.yaml")).files


def test_a_stage_shows_itself_while_it_works(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RENEW_SECONDS", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "88")
    output = Path(INITIAL)
    marker = Path(watch.marker(INITIAL))
    with working(output) as work:
        first = watch.read_marker(marker)
        assert (first["pid"], first["slurm_job"], first["step"]) == (os.getpid(), "88", 0)
        work.progress(7)
        deadline = time.monotonic() + 10
        while watch.read_marker(marker).get("step") != 7:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert look(load_study(here / "tiny.yaml")).marks[INITIAL].lives
    assert not marker.exists()
    with pytest.raises(FileNotFoundError), working(output):
        Path("nowhere").read_text()
    assert not marker.exists()
    with working(Path("elsewhere/x.json")):
        assert not list(Path("elsewhere").glob(".*"))


@pytest.mark.process
def test_no_thread_keeps_a_stage_alive_and_a_killed_one_leaves_its_marker(here: Path) -> None:
    code = "import os, sys, pathlib; from isp.runtime import watch\nwith watch.showing(pathlib.Path(sys.argv[1])): "
    for end, left in (("sys.exit(3)", False), ("os._exit(3)", True)):
        done = subprocess.run([sys.executable, "-c", code + end, INITIAL], timeout=60, check=False)
        assert done.returncode == 3
        assert Path(watch.marker(INITIAL)).exists() == left


def test_the_last_line_of_a_log() -> None:
    text = wrote(2.5).text
    assert watch.took(text) == (2.5, 1.0)
    assert watch.has_finished(text)
    assert not watch.has_finished(text + "isp: killed\n")
    assert watch.took("30 steps in 31 s\n") is None
    assert not watch.has_finished("")
