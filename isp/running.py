"""What the Snakefile does beside its rules: read the study, take the folder over from a killed run, start warm."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isp import slurm, warm
from isp.config import Study, parse_study, read_study_file
from isp.costs import check_device
from isp.errors import IspError
from isp.files import check_writable

LOCK = Path(".snakemake/isp.lock")
_held: list[Any] = []
"""Keeps the lock's file open as long as this process lives."""


def load(workflow: Any, config: Mapping[str, Any]) -> Study:
    """The study that Snakemake was given; the environment of its jobs is set up.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    paths = [Path(path) for path in workflow.configfiles]
    for path in paths:
        read_study_file(path)  # refuses a key that is there twice, which Snakemake does not see
    study = parse_study(config, ", ".join(map(_short, paths)) or "the configuration")
    os.environ["ISP_STUDY"] = study.study  # for the lines about progress
    # Not a parameter of jobs: data sets may be moved without anything being made again.
    os.environ["ISP_DATA_ROOT"] = str(study.data_root)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    on_this_machine = workflow.resource_settings.nodes is None
    if workflow.is_main_process and on_this_machine:  # elsewhere jobs live on when Snakemake dies
        unlock_if_abandoned()
    if not workflow.is_main_process:
        _serve_cluster_job(workflow, study)
    return study


def _serve_cluster_job(workflow: Any, study: Study) -> None:
    """In a job of a cluster: what is on a CPU starts warm, and a notice of the time limit is for the stages.

    There are two kinds of Snakemake there. One lives as long as the job, and starts one of the other kind for each
    member of its group; so the first has the fork server, and begins it at once.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by shells, undone by stages that save what they have
    if study.device == "cpu" and not workflow.local_exec:
        _warm_start(study)
        if "ISP_WARM" in os.environ:
            warm.begin(os.environ["ISP_WARM"])


def limits_jobs(workflow: Any) -> bool:
    """Whether memory and time of jobs matter: on a cluster, or where the command line limits them."""
    return not workflow.local_exec or not {"mem_mb", "runtime"}.isdisjoint(workflow.resource_settings.resources)


def command(workflow: Any) -> str:
    """What runs the study again, from the repository's folder."""
    given = workflow.config_settings.configfiles
    return " ".join(["snakemake", *(f"--configfile {_short(Path(path))}" for path in given)])


def unlock_if_abandoned() -> None:
    """Remove Snakemake's locks if no Snakemake is alive in this folder; the one that took them was killed.

    Snakemake's locks do not say whose they are. Every one that lives holds a share of ours, which the kernel takes back
    however it ends; who gets it whole is alone.

    Raises:
        IspError: the current folder cannot be written.
    """
    try:
        LOCK.parent.mkdir(exist_ok=True)
        file = LOCK.open("a+")
    except OSError as error:
        raise IspError(f"{LOCK.absolute()}: cannot be written ({error.strerror})") from None
    _held.append(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(".snakemake/locks", ignore_errors=True)
    except OSError:
        pass  # somebody is alive
    fcntl.lockf(file, fcntl.LOCK_SH)


def start(workflow: Any, study: Study) -> None:
    """Called when jobs are about to run: jobs of this machine end with this process, and on a CPU they start warm.

    Raises:
        IspError: the device is not there, the folder of results cannot be written, or jobs of an earlier run are in
            the queue of the cluster.
    """
    check_writable(Path("results") / study.study)
    if not workflow.local_exec:
        slurm.refuse_twice(Path.cwd())
        return
    check_device(study.device)
    _warm_start(study)


def _warm_start(study: Study) -> None:
    """Let the jobs that this process runs end with it, and those of a CPU start warm."""
    os.environ["ISP_OWNER"] = str(os.getpid())
    address = warm.address(os.getpid())
    if study.device == "cpu" and warm.available() and len(os.fsencode(address)) <= warm.LONGEST_PATH:
        os.environ["ISP_WARM"] = address


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
