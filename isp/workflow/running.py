"""Functions of the Snakefile besides its rules: read the study, unlock the folder after a kill, start the server."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from isp import registry
from isp.config import Study, parse_study, read_study_file
from isp.costs import check_device
from isp.errors import IspError
from isp.files import check_writable, write_bytes, write_json
from isp.runtime import instructions, warm
from isp.untrusted import printable
from isp.workflow import paths, pinning, slurm
from isp.workflow.dag import Dag
from isp.workflow.reuse import check_reused
from isp.workflow.starts import ROOT

LOCK = Path(".snakemake/isp.lock")
OPTIONS = Path(".snakemake/isp-options")
LONGEST_OPTIONS = 50_000
"""Maximum bytes of a part of a command line. A command is one argument of a shell, which Linux limits to 128 KiB."""
DEFAULT_LIMIT = (100, 1)
"""Snakemake's default for `--max-jobs-per-timespan`: jobs, and seconds."""
_held: list[Any] = []
"""Keeps the lock file open while this process lives."""


def load(workflow: Any, config: Mapping[str, Any]) -> Study:
    """Parse the study that was passed to Snakemake, and set up the environment of its jobs.

    Raises:
        ConfigError: A setting is invalid, or a cluster job finds another one than the study was started with. The
            message names the key, for an invalid one also the value and the allowed values.
    """
    paths = [Path(path) for path in workflow.configfiles]
    if workflow.is_main_process:  # all others inherit how the study was started
        registry.unpin()
    for path in paths:
        read_study_file(path)  # refuses duplicate keys, which Snakemake does not notice
    study = parse_study(config, ", ".join(_short(path, [Path.cwd()]) for path in paths) or "the configuration")
    if workflow.is_main_process:
        registry.pin(variant.method for variant in study.variants.values())
        pinning.pin(study)
    else:
        pinning.check_unedited(study)
    os.environ["ISP_STUDY"] = study.study  # for the progress lines
    # Not a parameter of jobs, so that datasets can be moved without any rerun.
    os.environ["ISP_DATA_ROOT"] = str(study.data_root)
    # Python processes started from here do not search the current folder for modules, which may contain a yaml.py.
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
    """Set up a job of a cluster: a fork server for the stages of a group, and the notice of the time limit for them.

    Two kinds of Snakemake processes run in such a job. The first lives as long as the job, and starts one of the second
    kind for each member of its group. Therefore the first one starts the fork server, at once. A job with one member
    has no server, because importing everything takes longer than starting one stage.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by shells, undone by stages that save a checkpoint
    if submits_jobs(workflow) and num_target_jobs(sys.argv) > 1:
        _warm_start(study.served_instructions, deployed=_is_deployed(workflow))


def num_target_jobs(arguments: Sequence[str]) -> int:
    """Return the number of jobs in a Snakemake command line; the command line of a cluster job lists its members.

    Snakemake itself does not know them while it reads the Snakefile.
    """
    option = "--target-jobs"
    after = arguments[arguments.index(option) + 1 :] if option in arguments else ()
    return len(list(takewhile(lambda word: not word.startswith("-"), after)))


def submits_jobs(workflow: Any) -> bool:
    """Return whether this process submits its jobs to a cluster, or to a step of a cluster job.

    Use it while the Snakefile is read: `workflow.local_exec` is always true then, since the executor is set later.
    """
    return workflow.resource_settings.nodes is not None


def cores_of_copies(workflow: Any, dag: Dag) -> Callable[[Any], int]:
    """Return a function for the threads of a job whose look-aheads may run in parallel, one process per look-ahead.

    The study decides by `look_aheads`. By default, look-aheads use the cores that the chains of rounds leave idle. On a
    GPU and on a cluster, where idle cores are not known, they run one after another.
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
    """Return whether memory and time of jobs are limited, by a cluster or by the command line."""
    return submits_jobs(workflow) or not {"mem_mb", "runtime"}.isdisjoint(workflow.resource_settings.resources)


def command(workflow: Any) -> str:
    """Return the command that reruns the study in the repository's folder; FOLDER replaces a given `data_root`."""
    given = workflow.config_settings
    words = ["snakemake"]
    if given.configfiles:
        words += ["--configfile", *(_short(Path(path), (ROOT, Path.cwd())) for path in given.configfiles)]
    # How look-aheads run does not affect results and must not cause reruns.
    values = {key: value for key, value in given.config.items() if key != "look_aheads"}
    if values:
        values |= {"data_root": "FOLDER"} if "data_root" in values else {}
        words += ["--config", *(f"{key}={value}" for key, value in values.items())]
    return shlex.join(words)


def verbatim(text: str) -> Callable[[Any], str]:
    """Return a param that Snakemake passes on unchanged; in a plain string it would replace names in braces."""
    return lambda wildcards: text


def by_file(options: str) -> str:
    """Shorten options of a command line: options that are too long are written to a file for `--options-from`.

    The file is named after the digest of its contents. Therefore equal options are equal params of a job everywhere,
    and other options rerun it.
    """
    content = options.encode()
    if len(content) <= LONGEST_OPTIONS:
        return options
    path = OPTIONS / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.txt"
    if not (path.is_file() and path.read_bytes() == content):
        write_bytes(path, content)
    return f"--options-from {path}"


def unlock_if_abandoned(on_this_machine: bool = True) -> None:
    """Remove Snakemake's locks if no Snakemake is alive in this folder, so that the one that left them was killed.

    Snakemake's locks do not name their owner. Therefore every live Snakemake holds a shared lock of ours, which the
    kernel releases however the process exits. A process that gets the exclusive lock is alone.

    Args:
        on_this_machine: Whether the jobs of this process exit with it. On a cluster they do not; nothing is removed.

    Raises:
        IspError: The current folder is not writable.
    """
    file = _open_lock()
    _held.append(file)
    if on_this_machine:
        with suppress(OSError):  # another Snakemake is alive
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(".snakemake/locks", ignore_errors=True)
    with suppress(OSError):  # a file system without locks
        fcntl.lockf(file, fcntl.LOCK_SH)


@contextmanager
def alone() -> Iterator[None]:
    """Keep Snakemake out of the current folder while the context is open; one that is started meanwhile waits.

    Raises:
        IspError: A Snakemake works in the folder, or the folder is not writable.
    """
    with _open_lock() as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise IspError(
                    f"{Path.cwd()}: its file system has no locks ({error.strerror}), so whether a Snakemake works in "
                    f"this folder is unknown; make sure that none does, and delete files by hand"
                ) from None
            raise IspError(
                f"{Path.cwd()}: a Snakemake process works in this folder; wait until it has finished, or stop it"
            ) from None
        yield


def _open_lock() -> BinaryIO:
    try:
        LOCK.parent.mkdir(exist_ok=True)
        return LOCK.open("ab+")
    except OSError as error:
        raise IspError(f"{LOCK.absolute()}: cannot be written ({error.strerror})") from None


def start(workflow: Any, study: Study) -> None:
    """Prepare to run jobs: check the folder and the device, tie local jobs to this process, start the fork server.

    Raises:
        IspError: The device does not exist, the folder of results is not writable, jobs of an earlier run are in the
            queue of the cluster, or the cluster's profile is not in effect.
    """
    select_only_after_jobs(workflow)
    check_writable(Path("results") / study.study)
    write_json(Path(paths.ASKED.format(study=study.study)), {"look_aheads": study.look_aheads})
    if not workflow.local_exec or slurm.LOGS.exists():
        slurm.refuse_twice(Path.cwd())
    unwatched = _unwatched(workflow)
    if unwatched:
        files, them, they = ("file", "it", "it belongs") if len(unwatched) == 1 else ("files", "them", "they belong")
        print(
            f"Snakemake has no record of the settings of {len(unwatched)} existing {files}, such as "
            f"{printable(unwatched[0])}. This happens if files are copied, or are finished after Snakemake was killed. "
            f"A change of settings would not remake {them}. If {they} to the study as it is now, record that by "
            "running the same command with --touch --forceall.",
            file=sys.stderr,
            flush=True,
        )
    if not workflow.local_exec:
        if "turn" not in workflow.global_resources:
            raise IspError(
                "the cluster's profile defines `resources: turn: 1`, but the resources of another profile are in "
                "effect; pass it as --workflow-profile, not as --profile, which also loads the profile of this machine"
            )
        return
    if any(job.resources.get("gpu") for job in workflow.dag.needrun_jobs()):  # none to download on another machine
        check_device(study.device)
    if study.served_instructions == "avx2":
        instructions.check_supported("instruction_set: native in the study")
    _warm_start(study.served_instructions, deployed=_is_deployed(workflow))


def select_only_after_jobs(workflow: Any) -> None:
    """Remove Snakemake's default limit on jobs per second, which makes it busier with every job that has ended.

    With a limit, each selection of jobs starts a timer for another selection, which starts a timer as well. A job that
    ends adds one more of these chains, so Snakemake 9.27 selects 1,000 times per second after 1,000 jobs. A limit that
    is set on the command line or in a profile stays.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit is not None and (limit.max_jobs, limit.timespan) == DEFAULT_LIMIT:
        workflow.scheduler.job_rate_limiter = None


def _unwatched(workflow: Any) -> list[str]:
    """Return reused outputs of which Snakemake has no record, because cluster jobs outlived their Snakemake."""
    done = (job for job in workflow.dag.jobs if not workflow.dag.needrun(job))
    return sorted(
        str(path)
        for job in done
        for path in job.output
        if os.path.exists(path) and workflow.persistence.metadata(path) is None
    )


def _is_deployed(workflow: Any) -> bool:
    """Return whether jobs run in their own environments or containers (`--sdm`)."""
    return bool(workflow.deployment_settings.deployment_method)


def _warm_start(instruction_set: str, *, deployed: bool = False) -> None:
    """Tie the jobs of this process to it, and start a fork server for them, or print why there is none.

    Args:
        instruction_set: Instruction set of the server. On a CPU without it, the server is "native", and the jobs
            report the error.
        deployed: Whether jobs run in their own environments. There is no server then, because its children would run
            in the environment of this process.
    """
    os.environ["ISP_OWNER"] = str(os.getpid())
    os.environ[instructions.SERVED] = instruction_set if instructions.is_supported() else "native"
    os.environ.pop("ISP_WARM", None)
    if deployed or not warm.available():
        return
    try:
        os.environ["ISP_WARM"] = warm.new_address(os.getpid())
    except warm.UnavailableError as error:
        print(
            f"{printable(error)}. Jobs start without it, which takes a few seconds per job.",
            file=sys.stderr,
            flush=True,
        )
    else:
        warm.begin(os.environ["ISP_WARM"])


def _short(path: Path, folders: Iterable[Path]) -> str:
    """Return a path relative to the first of the folders that it is in."""
    return next((str(path.relative_to(folder)) for folder in folders if path.is_relative_to(folder)), str(path))
