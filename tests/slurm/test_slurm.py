"""The workflow on a real Slurm: the same bits as on this machine, whatever happens to jobs, nodes and Snakemake."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from isp import registry
from isp.config import Study, load_study
from isp.runtime import watch
from isp.workflow.jobs import Jobs
from isp.workflow.resources import Requests
from tests.slurm.conftest import ROOT, Cluster, control, jobs, wait

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("calm")]

SMOKE = ROOT / "config" / "smoke.yaml"
AT_A_SPARSITY = ("dense", "one_shot", "movement", "isp", "lth_rewind", "pools_alone", "uniform_soup", "greedy_soup")
OF_DENSE = ("instant_model_soup",)
"""Variants of the smoke study's two blocks: of every family, with jobs of every rule, and no more.

A job here costs about 7 s of CPU for two starts of Snakemake and one of the stage, whatever the stage computes.
"""
TRAINED = "results/faults/runs/clip_tiny/digits/seed0/dense/pretrained.safetensors"
DENSE = SimpleNamespace(study="smoke", backbone="clip_tiny", task="digits", seed="0", initial="pretrained")
CHECKPOINT = "results/faults/runs/clip_tiny/digits/seed0/dense/pretrained.checkpoint.safetensors"


def local(folder: Path, study: Path, *options: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]
    done = subprocess.run([*command, *options, "--configfile", str(study)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rules(study: Study) -> set[str]:
    return {job.rule for job in Jobs(study).by_output.values()}


def families(study: Study) -> set[str]:
    return {registry.load("method", variant.method).FAMILY for variant in study.variants.values()}


def smoke(folder: Path) -> Path:
    """The smoke study at one sparsity, few variants of each family; ISP_SLURM_SMOKE=all: as it is."""
    if os.environ.get("ISP_SLURM_SMOKE") == "all":
        return SMOKE
    content = yaml.safe_load(SMOKE.read_text())
    pruned, of_dense = content["grid"]
    content["grid"] = [
        {**pruned, "variants": list(AT_A_SPARSITY), "sparsities": pruned["sparsities"][-1:]},
        {**of_dense, "variants": list(OF_DENSE)},
    ]
    content["variants"] = {name: content["variants"][name] for name in (*AT_A_SPARSITY, *OF_DENSE)}
    content["variants"]["uniform_soup"]["settings"]["members"] = 2
    content["variants"]["greedy_soup"]["settings"]["members"] = 3  # those of uniform_soup, and one more
    path = folder / "smoke.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    ours, whole = load_study(path), load_study(SMOKE)
    for of in (rules, families):
        assert of(ours) == of(whole)
    return path


def tensors(path: Path) -> bytes:
    """Return a safetensors file without its header, which contains measurements."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


# --- a whole study ----------------------------------------------------------------------------------------------------


def test_the_smoke_study_gives_the_same_numbers_on_the_cluster_as_here(place: Path) -> None:
    """On both nodes, with GPU requests, groups, and a job that is cancelled and retried."""
    here, study = place / "here", smoke(place)
    here.mkdir()
    shutil.copytree(place / "resources", here / "resources")
    local(here, study, "results/smoke/metrics.csv")  # and the other csv files
    on_gpus = {rule: {"gpu": 1} for rule in ("prune_denoised", "retrain", "evaluate")}
    slurm = Cluster(place, study, **{"set-resources": on_gpus})
    seen: dict[str, dict[str, str]] = {}
    cancelled: list[str] = []

    def watch() -> None:
        while not stop.wait(1.0):
            for job in jobs():
                seen[job["JobId"]] = job
                if not cancelled and job["JobState"] == "RUNNING" and "_retrain" in job.get("Comment", ""):
                    subprocess.run(["scancel", job["JobId"]], check=True)
                    cancelled.append(job["JobId"])

    running, stop = slurm.start(), threading.Event()
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        slurm.finish(running, seconds=3000)
    finally:
        stop.set()
        watching.join()
    name = Path("results/smoke/metrics.csv")
    assert (place / name).read_bytes() == (here / name).read_bytes()
    for other in ("rounds", "layers", "similarity"):
        assert (place / f"results/smoke/{other}.csv").read_bytes() == (here / f"results/smoke/{other}.csv").read_bytes()
    assert {job["NodeList"] for job in seen.values()} >= {"n1", "n2"}
    assert any("gpu" in job.get("ReqTRES", job.get("TRES", "")) + job.get("TresPerJob", "") for job in seen.values())
    (dense,) = [job for job in seen.values() if "finetune_dense" in job.get("Comment", "")]
    with contextlib.chdir(place):
        requests = Requests(load_study(study))
        asked = [estimate(DENSE, 1, "finetune_dense") for estimate in (requests.mem_mb, requests.runtime)]
    assert (dense["MinMemoryNode"], dense["TimeLimit"]) == (f"{asked[0]}M", f"00:{asked[1]}:00")
    assert len(cancelled) == 1
    assert seen[cancelled[0]]["JobState"] == "CANCELLED"
    assert len(seen) < 0.8 * len(Jobs(load_study(study)).by_output)  # groups


STUDY: dict[str, Any] = {
    "study": "round",
    "training": {"clip_tiny": {"steps": 12, "batch_size": 16, "learning_rate": 1e-3}},
    "tasks": {"digits": {"num_train": 64, "num_validation": 40}},
    "variants": {"isp": {"method": "isp", "settings": {"rate": 0.5, "segment_fraction": 0.25, "denoisers": 4}}},
    "grid": [{"backbone": "clip_tiny", "tasks": ["digits"], "variants": ["isp"], "sparsities": ["0.5"], "seeds": [0]}],
}


def test_the_copies_of_a_round_run_side_by_side(place: Path) -> None:
    """Separate look-aheads are processes of one job, which requests a CPU for each; the mask is the same either way."""
    study, here = place / "study.yaml", place / "here"
    study.write_text(yaml.safe_dump({**STUDY, "look_aheads": "apart"}))
    slurm = Cluster(place, study)
    mask = Path("results/round/runs/clip_tiny/digits/seed0/isp/round0/to0.5000/mask.safetensors")
    slurm.finish(slurm.start(str(mask)))
    (entry,) = [job for job in jobs() if "prune_denoised" in job.get("Comment", "") and job["WorkDir"] == str(place)]
    assert entry["NumCPUs"] == "4"
    log = (place / f"results/round/logs/{mask.relative_to('results/round').with_suffix('.log')}").read_text()
    assert all(f"weak{member}.safetensors in" in log for member in range(4))
    shutil.copytree(place / "resources", here / "resources")
    (place / "together.yaml").write_text(yaml.safe_dump({**STUDY, "look_aheads": "together"}))
    local(here, place / "together.yaml", str(mask))
    assert tensors(place / mask) == tensors(here / mask)


def test_rounds_up_to_a_ticket_are_one_job(place: Path) -> None:
    """It shares an entry with the mask of the ticket's round; the ticket is that of rounds which are jobs."""
    settings = {**STUDY["variants"]["isp"]["settings"], "denoisers": 2, "look_ahead_steps": 2}
    study = {**STUDY, "variants": {"isp": {"method": "isp", "settings": settings}}}
    study["grid"] = [{**STUDY["grid"][0], "sparsities": ["0.75"]}]
    (place / "study.yaml").write_text(yaml.safe_dump({**study, "look_aheads": "together"}))
    (place / "apart.yaml").write_text(yaml.safe_dump(study))
    ticket, here = Path("results/round/runs/clip_tiny/digits/seed0/isp/0.7500/ticket.safetensors"), place / "here"
    slurm = Cluster(place, place / "study.yaml")
    slurm.finish(slurm.start(str(ticket)))
    entries = [job.get("Comment", "") for job in jobs() if job["WorkDir"] == str(place)]
    (entry,) = [each for each in entries if "run_rounds" in each]
    assert "prune_denoised" in entry
    assert not [each for each in entries if "train_segment" in each]
    shutil.copytree(place / "resources", here / "resources")
    local(here, place / "apart.yaml", str(ticket))
    assert tensors(place / ticket) == tensors(here / ticket)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a dense model was trained locally, for about 15 seconds on one thread."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(short_pretraining, folder / "resources")
    study = {**STUDY, "study": "faults", "variants": {"dense": {"method": "dense"}}}
    study["training"] = {"clip_tiny": {"steps": 1000, "batch_size": 16, "learning_rate": 1e-3}}
    study["grid"] = [{**STUDY["grid"][0], "variants": ["dense"]}]
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    local(folder, folder / "study.yaml", TRAINED)
    return folder


class Training:
    """A dense model that is being trained in a job of the cluster, with periodic checkpoints."""

    def __init__(
        self, here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: str = "1", **resources: Any
    ) -> None:
        monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", seconds)
        self.here, self.folder = here, folder
        shutil.copytree(here, folder, dirs_exist_ok=True)
        (folder / TRAINED).unlink()
        changed = {"set-resources": {"finetune_dense": resources}} if resources else {}
        self.slurm = Cluster(folder, folder / "study.yaml", **changed)
        self.running = self.slurm.start(TRAINED)
        begun = self.has_saved if float(seconds) < 60 else self.has_computed
        wait("training has begun", lambda: begun() or self.running.poll() is not None)
        assert self.running.poll() is None, (folder / "snakemake.txt").read_text()
        (self.job,) = [job for job in self.jobs() if job["JobState"] == "RUNNING"]

    def has_saved(self) -> bool:
        return (self.folder / CHECKPOINT).exists()

    def has_computed(self) -> bool:
        """Whether the marker tells of a step; before the first one there is nothing to save."""
        return watch.read_marker(self.folder / watch.marker(TRAINED)).get("step", 0) > 0

    def stage(self) -> list[psutil.Process]:
        """Return the processes of the stage: a call of `isp`, and its process in a fork server, if any."""
        called = [each for each in processes(self.job["JobId"]) if is_call(each)]
        working = psutil.Process(watch.read_marker(self.folder / watch.marker(TRAINED))["pid"])
        return list({process.pid: process for process in (*called, working)}.values())

    def jobs(self) -> list[dict[str, str]]:
        return [job for job in jobs() if job["WorkDir"] == str(self.folder)]

    def log(self) -> str:
        """What the stage said; nothing while there is no log: Snakemake deletes a job's before it runs it again."""
        path = self.folder / "results/faults/logs/runs/clip_tiny/digits/seed0/dense/pretrained.log"
        return path.read_text() if path.exists() else ""

    def finish(self) -> list[dict[str, str]]:
        """Wait; the weights must be those of the undisturbed run. The jobs there were."""
        self.slurm.finish(self.running)
        self.check()
        return self.jobs()

    def check(self) -> None:
        assert tensors(self.folder / TRAINED) == tensors(self.here / TRAINED)
        assert "resuming from step" in self.log()
        assert not (self.folder / CHECKPOINT).exists()


def is_call(process: psutil.Process) -> bool:
    """Return whether a process is a call of `isp`, which is a Python script."""
    with contextlib.suppress(psutil.Error):
        return any(Path(word).name == "isp" for word in process.cmdline()[1:2])
    return False


def processes(job: str) -> list[psutil.Process]:
    """Return the processes of a job of the cluster, all of which are on this machine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
    return found


def was_notified(process: psutil.Process) -> bool:
    """Whether SIGUSR1 waits for a process that is suspended, or the process is gone."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", status, re.M)
    return any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in pending) or not process.is_running()


@pytest.fixture
def training(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(trained, tmp_path, monkeypatch)


def test_a_cancelled_stage_goes_on_where_it_was(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only SIGTERM, which arrives before the end, makes it save a checkpoint."""
    training = Training(trained, tmp_path, monkeypatch, seconds="3600")
    subprocess.run(["scancel", training.job["JobId"]], check=True)
    first, second = training.finish()
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")


def test_a_stage_that_met_its_time_limit_goes_on_under_a_longer_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt may take a minute. It is notified 20 to 50 s before, and suspended until then."""
    short = {"runtime": "attempt", "slurm_extra": "'--signal=USR1@20'"}
    training = Training(trained, tmp_path, monkeypatch, **short)
    held = training.stage()
    for process in held:
        process.suspend()
    wait("its time ends", lambda: any(map(was_notified, held)))
    for process in held:
        with contextlib.suppress(psutil.Error):
            process.resume()
    *before, last = training.finish()
    assert before
    assert {job["JobState"] for job in before} <= {"FAILED", "TIMEOUT"}
    assert [job["TimeLimit"] for job in [*before, last]] == [f"00:0{1 + n}:00" for n in range(len(before) + 1)]
    assert last["JobState"] == "COMPLETED"


def test_a_node_that_is_set_down_gives_its_job_to_the_other(training: Training) -> None:
    node = training.job["NodeList"]
    control("node", node, "down")
    try:
        (job,) = training.finish()
    finally:
        control("node", node, "idle")
    assert job["JobId"] == training.job["JobId"]
    assert int(job["Restarts"]) == 1
    assert job["NodeList"] != node


def test_a_job_whose_node_lost_its_daemon_goes_on_at_the_other_and_harms_nobody(training: Training) -> None:
    """Slurm considers the node lost and moves the job to the other one, although it still runs on the first.

    On a node that is lost, `srun` reaches nobody. Here it would reach the controller, hear of the lost node, and cancel
    its step by a number that the moved job now has. So it and the batch script stay suspended until the moved job has
    ended, and are then killed, as by a daemon that comes back. What trains continues.
    """
    node = training.job["NodeList"]
    orphans = processes(training.job["JobId"])
    cut_off = [orphan for orphan in orphans if orphan.environ().get("SLURM_STEP_ID") != "0"]
    assert "srun" in {orphan.name() for orphan in cut_off}
    assert len(cut_off) < len(orphans)
    control("slurmd", node, "kill")
    try:
        for orphan in orphans:  # so that it does not end before Slurm has noticed
            orphan.suspend()
        wait("the job goes on from its checkpoint", lambda: "resuming from step" in training.log())
        for orphan in orphans:
            if orphan not in cut_off:
                orphan.resume()
        training.slurm.finish(training.running)
        for orphan in cut_off:
            orphan.kill()
        wait("the first of the two has ended", lambda: not any(orphan.is_running() for orphan in orphans))
    finally:
        control("slurmd", node, "start")
        wait("the node is back", lambda: len(subprocess.check_output(["sinfo", "-hNt", "idle"]).splitlines()) == 2)
    about = {job["JobId"]: [job[key] for key in ("JobState", "Reason", "Restarts")] for job in training.jobs()}
    (job,) = [job for job in training.jobs() if job["JobId"] == training.job["JobId"]]
    assert about[job["JobId"]] == ["COMPLETED", "None", "1"], (about, (training.folder / "snakemake.txt").read_text())
    assert job["NodeList"] != node
    training.check()


def test_a_killed_snakemake_is_not_started_beside_its_own_jobs(training: Training) -> None:
    """A wrong start is refused with a message about the right way."""
    training.running.send_signal(signal.SIGKILL)
    training.running.wait()
    subprocess.run(["scontrol", "suspend", training.job["JobId"]], check=True)  # so that it does not end before we ask
    locked = training.slurm.run(TRAINED)
    assert locked.returncode != 0
    assert "unlock" in locked.stderr
    assert training.slurm.run(TRAINED, "--unlock").returncode == 0
    refused = training.slurm.run(TRAINED)
    assert refused.returncode != 0
    run = training.job["JobName"]
    assert f"1 of run {run}" in refused.stderr
    assert f"scancel --name={run}" in refused.stderr
    assert len(training.jobs()) == 1  # nothing was submitted
    subprocess.run(["scancel", f"--name={run}"], check=True)
    wait("it is gone", lambda: not subprocess.check_output(["squeue", "--me", "-h"], text=True).strip())
    done = training.slurm.run(TRAINED)
    assert done.returncode == 0, done.stderr
    training.check()
