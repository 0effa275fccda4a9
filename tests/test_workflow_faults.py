"""A real Snakemake that is killed, doubled, or without a place to write."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from isp import artifacts
from isp.config import load_study, parse_study
from isp.errors import IspError
from isp.workflow import running as running_
from tests.support.reruns import jobs
from tests.support.workflow import (
    COMMAND,
    SMOKE,
    processes,
    rows,
    serves,
    snakemake,
    wait_for,
)

VARIANTS = (
    *("dense", "one_shot", "gradual", "isp", "lth", "lth_rewind", "lottery_pools", "pools_alone"),
    *("uniform_soup", "greedy_soup", "instant_model_soup"),
)
"""Variants of the smoke study, among them one for each of its rules."""


RECORDS = ("--", "results/smoke/metrics.csv")
"""Target of the runs that are disturbed: all records, without the plan and reports, which nothing here looks at."""


def few() -> dict[str, Any]:
    """The smoke study with few variants, whose jobs are of all its rules."""
    study = yaml.safe_load(SMOKE.read_text())
    study["variants"] = {name: study["variants"][name] for name in VARIANTS}
    for block in study["grid"]:
        block["variants"] = [name for name in block["variants"] if name in VARIANTS]
    return study


def test_the_few_variants_are_of_all_rules_and_their_jobs_those_of_the_smoke_study() -> None:
    some, all_ = jobs(parse_study(few(), "few")), jobs(load_study(SMOKE))
    assert {job.rule for job in some.values()} == {job.rule for job in all_.values()}
    compared = {path for path, job in some.items() if job.rule == "compare_masks"}
    assert {path: some[path] for path in some.keys() - compared} == {
        path: all_[path] for path in some.keys() - compared
    }


def equal_rows(smoke: Path, folder: Path) -> bool:
    """Whether the metrics of the few variants are, to the byte, those of the undisturbed run of the smoke study."""
    head, *lines = (smoke / "results/smoke/metrics.csv").read_bytes().splitlines(keepends=True)
    variants = [row["variant"] for row in rows(smoke / "results/smoke/metrics.csv")]
    kept = [line for line, variant in zip(lines, variants, strict=True) if variant in VARIANTS]
    assert len(kept) > len(VARIANTS)
    return (folder / "results/smoke/metrics.csv").read_bytes() == b"".join([head, *kept])


@pytest.fixture(scope="module")
def place(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder for the study of few variants: first its disk is full, then it is killed, and then it ends."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(short_pretraining, folder / "resources")
    (folder / "few.yaml").write_text(yaml.safe_dump(few(), sort_keys=False))
    return folder


@pytest.fixture
def running() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Snakemake in a folder."""
    started = []

    def start(folder: Path, study: Path = SMOKE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, "--configfile", str(study), *RECORDS],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests in the background of a shell ignore it, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def disk(place: Path) -> Iterator[Callable[[str], None]]:
    """Mounts a small file system on `results`, or changes its options."""
    folder = place / "results"
    mounted = []

    def mount(options: str) -> None:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if mounted:
            command[-3] = f"remount,{options}"
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system can be mounted by root only, and not in every container")
        mounted.append(options)

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.process
def test_a_full_disk_and_one_that_is_read_only(place: Path, disk: Callable[[str], None]) -> None:
    """Nothing is left half-written; that the run ends in the same bits afterwards, the next test says."""
    study = place / "few.yaml"
    disk("size=4m,ro")
    done = snakemake(place, *RECORDS, study=study)
    assert done.returncode
    assert "isp: results/smoke: cannot be written to (Read-only file system)" in done.stderr
    disk("size=4m,rw")
    done = snakemake(place, *RECORDS, study=study)
    assert done.returncode
    assert "safetensors: cannot be written (No space left on device); nothing was left half-written" in done.stderr
    assert "Traceback" not in done.stderr
    for path in place.glob("results/**/state.safetensors"):
        artifacts.load_state(path)  # what is there is whole
    disk("size=400m,rw")


@pytest.mark.process
def test_killed_three_times_it_ends_in_the_same_bits(
    smoke: Path, place: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    """Also after a full disk."""
    study = place / "few.yaml"

    def server(snakemake: subprocess.Popen[str]) -> psutil.Process | None:
        return next((p for p in psutil.process_iter(["cmdline"]) if serves(p, snakemake.pid)), None)

    def suspended(snakemake: subprocess.Popen[str]) -> list[psutil.Process]:
        """The stages that are being computed, stopped before they told their end; empty if one had told it already."""
        stages: list[psutil.Process] = []
        try:
            found = server(snakemake)
            stages = found.children() if found else []
            waiting = [shell for shell in psutil.Process(snakemake.pid).children() if "isp " in shell.cmdline()[-1]]
            for stage in stages:
                stage.suspend()
            time.sleep(2)  # a job ends within a second of its stage's end, and then another begins
            if stages and found and found.children() == stages and any(shell.is_running() for shell in waiting):
                return stages
        except psutil.NoSuchProcess:
            pass
        for stage in stages:
            with suppress(psutil.NoSuchProcess):
                stage.resume()
        return []

    for number, victim in enumerate(("stages", "server", "snakemake")):
        snakemake = running(place, study)
        enough = 6 + 12 * number
        wait_for(lambda enough=enough: len(list(place.glob("results/**/*.safetensors"))) >= enough)
        stages = wait_for(lambda run=snakemake: suspended(run))
        helper = server(snakemake)
        assert helper
        if victim == "server":
            helper.kill()
        if victim == "snakemake":
            snakemake.kill()
            for stage in stages:
                stage.resume()  # they end by themselves
        else:
            for stage in stages:
                stage.kill()
        _, errors = snakemake.communicate(timeout=120)
        assert snakemake.returncode
        if victim != "snakemake":
            assert "killed" in errors
        wait_for(lambda gone=helper: not gone.is_running())
        wait_for(lambda: not processes(place))
    last = running(place, study)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert equal_rows(smoke, place)
    wait_for(lambda: not processes(place))
    assert not list(place.rglob("*.partial"))


@pytest.mark.process
def test_two_at_once_are_refused(
    short_pretraining: Path, tmp_path: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    """The locks of a living Snakemake stay."""
    shutil.copytree(short_pretraining, tmp_path / "resources")
    first = running(tmp_path)
    wait_for(lambda: list(tmp_path.glob(".snakemake/locks/*.lock")))
    second = snakemake(tmp_path, *RECORDS)
    assert second.returncode
    assert "isp: another run is making the same files in this folder" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)


def test_a_file_system_without_locks_runs_studies_and_cleans_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "lockf", unknown)
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    running_.unlock_if_abandoned()
    assert (tmp_path / ".snakemake/locks").exists()  # perhaps of a living Snakemake
    with pytest.raises(IspError, match=r"its file system has no locks \(Function not implemented\)"), running_.alone():
        pass


@pytest.mark.process
def test_locks_of_a_living_snakemake_stay(tmp_path: Path) -> None:
    """A, B and C start one after the other; A ends before C: B's locks must outlive that."""
    code = (
        "import sys; from isp.workflow import running; running.unlock_if_abandoned(); print('in', flush=True); "
        "sys.stdin.read()"
    )

    def start(here: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code.replace("abandoned()", f"abandoned({here})")],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "in\n"
        return process

    first, second = start(), start()
    first.kill()
    first.wait()
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir()
    lock.touch()  # the second's
    third = start()
    assert lock.exists()
    for process in (second, third):
        process.kill()
        process.wait()
    on_cluster = start("False")
    assert lock.exists()  # of jobs that may still run
    beside = start()
    assert lock.exists()  # of a living one
    for process in (on_cluster, beside):
        process.kill()
        process.wait()
    last = start()
    assert not lock.exists()
    last.kill()
    last.wait()


@pytest.mark.process
def test_a_results_folder_that_cannot_be_written(short_pretraining: Path, tmp_path: Path) -> None:
    shutil.copytree(short_pretraining, tmp_path / "resources")
    (tmp_path / "results").touch()
    done = snakemake(tmp_path)
    assert done.returncode
    assert "results" in done.stderr
    assert "Traceback" not in done.stderr
