"""What the Snakefile does beside its rules: read the study, take the folder over from a killed run, start warm."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from isp.config import Study, parse_study, read_study_file
from isp.costs import check_device
from isp.errors import IspError
from isp.files import check_writable, write_bytes
from isp.runtime import instructions, warm
from isp.untrusted import printable
from isp.workflow import slurm
from isp.workflow.dag import Dag
from isp.workflow.reuse import check_reused

LOCK = Path(".snakemake/isp.lock")
OPTIONS = Path(".snakemake/isp-options")
LONGEST_OPTIONS = 50_000
"""Bytes of a part of a command line. A command is one argument of a shell, and Linux takes 128 KiB of each."""
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
    # No Python that is started from here looks for modules in the current folder, where a yaml.py may lie.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if workflow.is_main_process:
        unlock_if_abandoned(on_this_machine=not submits_jobs(workflow))
        if line := check_reused(study):
            print(line, file=sys.stderr, flush=True)
    if not workflow.is_main_process:
        _serve_cluster_job(workflow, study)
    return study


def _serve_cluster_job(workflow: Any, study: Study) -> None:
    """In a job of a cluster: the stages of a group start warm, and a notice of the time limit is for them.

    There are two kinds of Snakemake there. One lives as long as the job, and starts one of the other kind for each
    member of its group; so the first has the fork server, and begins it at once. A job of one member has none: to
    import everything takes longer than one stage takes to start.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by shells, undone by stages that save what they have
    if submits_jobs(workflow) and num_target_jobs(sys.argv) > 1:
        _warm_start(study.served_instructions, deployed=_is_deployed(workflow))


def num_target_jobs(arguments: Sequence[str]) -> int:
    """Number of the jobs that a command line of Snakemake names, as that of a cluster's job does its members.

    Snakemake itself does not know them yet while the Snakefile is read.
    """
    option = "--target-jobs"
    after = arguments[arguments.index(option) + 1 :] if option in arguments else ()
    return len(list(takewhile(lambda word: not word.startswith("-"), after)))


def submits_jobs(workflow: Any) -> bool:
    """Whether jobs leave this process for a cluster, or for a step of a cluster's job.

    For use while the Snakefile is read: `workflow.local_exec` is always true then, since the executor is set later.
    """
    return workflow.resource_settings.nodes is not None


def cores_of_copies(workflow: Any, dag: Dag) -> Callable[[Any], int]:
    """The threads of a job whose look-aheads may run side by side: those of one process, or of as many as there may be.

    A study says so by `look_aheads`. Where it does not, they run side by side on the cores that its chains of rounds
    leave idle; on a GPU and on a cluster, where that is not known, one after another.
    """
    study, of_rule = dag.study, dag.prune_denoised
    at_once: float = 1
    if study.look_aheads == "apart":
        at_once = math.inf
    elif (
        study.look_aheads is None and study.device == "cpu" and workflow.is_main_process and not submits_jobs(workflow)
    ):
        groups = {(each.backbone, each.task, each.seed, each.variant) for each in study.groups()}
        chains = sum(dag.route(variant) in of_rule.rule.routes for *_, variant in groups)
        at_once = (workflow.resource_settings.cores or 1) // (max(1, chains) * study.threads)

    def cores(w: Any) -> int:
        return study.threads * max(1, int(min(at_once, of_rule.copies(w))))

    return cores


def limits_jobs(workflow: Any) -> bool:
    """Whether memory and time of jobs matter: on a cluster, or where the command line limits them."""
    return submits_jobs(workflow) or not {"mem_mb", "runtime"}.isdisjoint(workflow.resource_settings.resources)


def command(workflow: Any) -> str:
    """What runs the study again, from the repository's folder; FOLDER stands for a `data_root` of the command line."""
    given = workflow.config_settings
    words = ["snakemake"]
    for path in given.configfiles:
        words += ["--configfile", _short(Path(path))]
    # How look-aheads run decides nothing, and must make nothing again.
    values = {key: value for key, value in given.config.items() if key != "look_aheads"}
    if values:
        values |= {"data_root": "FOLDER"} if "data_root" in values else {}
        words += ["--config", *(f"{key}={value}" for key, value in values.items())]
    return shlex.join(words)


def verbatim(text: str) -> Callable[[Any], str]:
    """A param of a rule that Snakemake takes as it is; in a text it would replace names in braces by wildcards."""
    return lambda wildcards: text


def by_file(options: str) -> str:
    """Options for a command line; too long ones are written to a file, and the option `--options-from` names it.

    The file is named by what it holds, so the same options are the same param of a job everywhere, and others rerun it.
    """
    content = options.encode()
    if len(content) <= LONGEST_OPTIONS:
        return options
    path = OPTIONS / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.txt"
    if not (path.is_file() and path.read_bytes() == content):
        write_bytes(path, content)
    return f"--options-from {path}"


def unlock_if_abandoned(on_this_machine: bool = True) -> None:
    """Remove Snakemake's locks if no Snakemake is alive in this folder; the one that took them was killed.

    Snakemake's locks do not say whose they are. Every one that lives holds a share of ours, which the kernel takes back
    however it ends; who gets it whole is alone.

    Args:
        on_this_machine: whether the jobs of this one end with it. On a cluster they live on: nothing is removed.

    Raises:
        IspError: the current folder cannot be written.
    """
    file = _open_lock()
    _held.append(file)
    if on_this_machine:
        with suppress(OSError):  # somebody is alive
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(".snakemake/locks", ignore_errors=True)
    fcntl.lockf(file, fcntl.LOCK_SH)


@contextmanager
def alone() -> Iterator[None]:
    """A context in which no Snakemake works in the current folder; one that is started meanwhile waits for its end.

    Raises:
        IspError: One does, or the current folder cannot be written.
    """
    with _open_lock() as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise IspError(
                f"{Path.cwd()}: a Snakemake works in this folder; wait until it has ended, or end it"
            ) from None
        yield


def _open_lock() -> BinaryIO:
    try:
        LOCK.parent.mkdir(exist_ok=True)
        return LOCK.open("ab+")
    except OSError as error:
        raise IspError(f"{LOCK.absolute()}: cannot be written ({error.strerror})") from None


def start(workflow: Any, study: Study) -> None:
    """Called when jobs are about to run: jobs of this machine end with this process, and start warm.

    Raises:
        IspError: the device is not there, the folder of results cannot be written, jobs of an earlier run are in the
            queue of the cluster, or its profile is not the one that counts.
    """
    check_writable(Path("results") / study.study)
    if not workflow.local_exec or slurm.LOGS.exists():
        slurm.refuse_twice(Path.cwd())
    unwatched = _unwatched(workflow)
    if unwatched:
        print(
            f"no record of the settings of {len(unwatched)} of the files there, such as {printable(unwatched[0])}: "
            "they were finished when Snakemake had been killed, or copied. A change of settings would not make them "
            "again. If they are of the study as it is now, record that: the same command with --touch --forceall.",
            file=sys.stderr,
            flush=True,
        )
    if not workflow.local_exec:
        if "turn" not in workflow.global_resources:
            raise IspError(
                "the profile of the cluster says `resources: turn: 1`, but another profile's resources are in its "
                "place; give it as --workflow-profile, not as --profile, beside which the one of this machine is loaded"
            )
        return
    check_device(study.device)
    if study.served_instructions == "avx2":
        instructions.check_supported("instruction_set: native in the study")
    _warm_start(study.served_instructions, deployed=_is_deployed(workflow))


def _unwatched(workflow: Any) -> list[str]:
    """Outputs that are taken as they are, but of which Snakemake has no record: jobs of a cluster outlived theirs."""
    done = (job for job in workflow.dag.jobs if not workflow.dag.needrun(job))
    return sorted(
        str(path)
        for job in done
        for path in job.output
        if os.path.exists(path) and workflow.persistence.metadata(path) is None
    )


def _is_deployed(workflow: Any) -> bool:
    """Whether jobs run in environments or containers of their own (`--sdm`)."""
    return bool(workflow.deployment_settings.deployment_method)


def _warm_start(instruction_set: str, *, deployed: bool = False) -> None:
    """Let the jobs that this process runs end with it and start warm, or say why they start cold.

    Args:
        instruction_set: That of the server, which is not started on a CPU that lacks it: the jobs say so.
        deployed: Whether jobs run in environments of their own; there is no server then, since its children would run
            in this one.
    """
    os.environ["ISP_OWNER"] = str(os.getpid())
    os.environ[instructions.SERVED] = instruction_set if instructions.is_supported() else "native"
    os.environ.pop("ISP_WARM", None)
    if deployed or not warm.available():
        return
    try:
        os.environ["ISP_WARM"] = warm.new_address(os.getpid())
    except warm.UnavailableError as error:
        print(f"{printable(error)}. Jobs start without it, which takes some seconds each.", file=sys.stderr, flush=True)
    else:
        warm.begin(os.environ["ISP_WARM"])


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
