"""What `isp clean` deletes, of a study whose files are made up here."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from isp import cli
from isp.config import parse_study
from isp.runtime.watch import marker
from isp.workflow.cleaning import unneeded
from isp.workflow.jobs import Jobs
from isp.workflow.running import LOCK
from isp.workflow.status import Seen
from tests.support.studies import STUDY

JOBS = Jobs(parse_study(STUDY, "test"))
RUN = "results/tiny/runs/clip_tiny/digits/seed0"
STATES = [f"{RUN}/isp/round{number}/state.safetensors" for number in (0, 1)]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file of the study, 0.1 MB each."""
    monkeypatch.chdir(tmp_path)
    for path in JOBS.by_output:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(bytes(100_000))
    description = {"study": JOBS.study.model_dump(mode="json"), "variants": {}}
    Path("results/tiny/study.json").write_text(json.dumps(description))
    return tmp_path


def names() -> set[str]:
    return {str(path) for path in Path("results").rglob("*") if path.is_file()}


def seen(*files: str) -> Seen:
    return Seen(files=set(files), marks={}, log=lambda path: None, now=0.0)


def gone(found: dict[str, list[str]]) -> dict[str, set[str]]:
    return {kind: set(paths) for kind, paths in found.items()}


def test_only_states_go_and_only_if_told(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names()
    with pytest.raises(SystemExit):
        cli.main(["clean", "tiny"])
    assert names() == before
    said = capsys.readouterr().out
    assert "train_segment: 2 files, 0.2 MB" in said
    assert "2 files, 0.2 MB. Nothing was deleted; to delete them: `isp clean tiny --yes`." in said
    with pytest.raises(SystemExit):
        cli.main(["clean", "tiny", "--yes"])
    assert before - names() == {*STATES}
    assert "deleted 2 files, 0.2 MB." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["clean", "tiny", "--yes"])
    assert "nothing to delete" in capsys.readouterr().out


def test_what_unfinished_jobs_need_stays() -> None:
    """Round 1 has no mask yet: its state is needed; and without its state, that of round 0 is."""
    mask = f"{RUN}/isp/round1/to0.7500/mask.safetensors"
    later = {f"{RUN}/isp/0.7500/{name}" for name in ("ticket.safetensors", "metrics.json")}
    left = set(JOBS.by_output) - {mask} - later
    found = unneeded(JOBS, seen(*left))
    assert {path for paths in found.values() for path in paths} == {STATES[0]}
    found = unneeded(JOBS, seen(*left - {STATES[1]}))
    assert found == {}


def test_states_of_rounds_that_are_reached_in_another_way_go() -> None:
    """Those that an earlier form of the study made in one job; not those of variants that it no longer has.

    As long as a round is left, they stay: with the look-aheads of that form, its job resumes from them.
    """
    left = {f"{RUN}/isp/rounds0-1/state.safetensors", f"{RUN}/isp/rounds0-3/state.checkpoint.safetensors"}
    others = {f"{RUN}/old/rounds0-1/state.safetensors", f"{RUN}/isp/round0/state.safetensors"}
    finished = set(JOBS.by_output) - set(STATES)
    assert gone(unneeded(JOBS, seen(*finished, *left, *others))) == {
        "left states": left,
        "train_segment": {f"{RUN}/isp/round0/state.safetensors"},
    }
    assert unneeded(JOBS, seen(*left, *others)) == {}


def test_the_state_that_subnetworks_are_merged_to_goes_and_its_mask_stays() -> None:
    """And nothing goes that its ticket is still to be trained from."""
    variants = {"soup": {"method": "instant_model_soup", "settings": {"subnetworks": 2}}}
    grid = [{**STUDY["grid"][0], "variants": list(variants), "sparsities": []}]
    jobs = Jobs(parse_study({**STUDY, "variants": variants, "grid": grid}, "test"))
    cell = f"{RUN}/soup/0.0000"
    state, weak = f"{cell}/merged.safetensors", {f"{cell}/subnetwork{member}.safetensors" for member in (0, 1)}
    assert gone(unneeded(jobs, seen(*jobs.by_output, state))) == {
        "merge_subnetworks": {state},
        "train_subnetwork": weak,
    }
    left = set(jobs.by_output) - {f"{cell}/ticket.safetensors", f"{cell}/metrics.json"}
    assert gone(unneeded(jobs, seen(*left, state))) == {"train_subnetwork": weak}


def test_checkpoints_of_finished_jobs_go_and_those_of_others_stay() -> None:
    ticket = f"{RUN}/lth/0.7500/ticket"
    left = [f"{ticket}{ending}" for ending in (".checkpoint.safetensors", ".last_good_state.safetensors")]
    done = unneeded(JOBS, seen(*JOBS.by_output, *left))
    assert (done["checkpoints"], done["last good states"]) == (left[:1], left[1:])
    record = f"{RUN}/lth/0.7500/metrics.json"
    running = unneeded(JOBS, seen(*set(JOBS.by_output) - {f"{ticket}.safetensors", record}, *left))
    assert running.keys() == {"train_segment"}


@pytest.mark.process
def test_a_study_that_runs_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job shows its marker, a Snakemake holds the folder's lock."""
    before = names()
    Path(marker(STATES[0])).write_text("{}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["clean", "tiny", "--yes"])
    assert ended.value.code == 2
    assert "its job is running; wait until the study has finished" in " ".join(capsys.readouterr().err.split())
    os.utime(marker(STATES[0]), (time.time() - 1000,) * 2)  # of a process that was killed
    with pytest.raises(SystemExit) as ended:
        cli.main(["clean", "tiny"])
    assert ended.value.code == 0
    child = os.fork()
    if not child:  # locks of one process do not exclude each other
        with LOCK.open("ab+") as file:
            fcntl.lockf(file, fcntl.LOCK_SH)
            time.sleep(60)
        os._exit(0)
    try:
        for _ in range(100):
            with LOCK.open("ab+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    break
            time.sleep(0.1)
        with pytest.raises(SystemExit) as ended:
            cli.main(["clean", "tiny", "--yes"])
        assert ended.value.code == 2
        assert "a Snakemake process works in this folder" in " ".join(capsys.readouterr().err.split())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert names() - {marker(STATES[0])} == before
