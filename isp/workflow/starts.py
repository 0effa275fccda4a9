"""Measure the start of a job, before its stage does anything: processes, imports, and Snakemake's overhead.

The measured stage only prints its help. On the command line, both ways of starting a stage are measured. A job of a
workflow measures only the way it uses itself (the fork server, or a fresh process), which keeps the run short.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from isp.config import Study
from isp.errors import IspError
from isp.runtime import instructions, warm
from isp.untrusted import printable
from isp.workflow import paths

TIMES = 2
"""Number of measurements per start; the shortest counts, because other work on the machine only adds to it."""
ROOT = Path(__file__).parents[2]
"""Folder that contains this package; in a clone, also the workflow."""
SNAKEFILE = ROOT / "workflow" / "Snakefile"
JOBS = 11
"""Number of jobs of a workflow that is compared with one of a single job, to measure Snakemake's overhead per job."""
LIBRARIES = {"pictures": "open_clip", "texts": "transformers.models.bert.modeling_bert"}
"""Libraries that a stage imports besides this package, by the inputs of its backbone."""
_WORKFLOW = """\
rule all:
    input:
        expand("{{number}}", number=range({jobs})),
rule one:
    output:
        "{{number}}",
    shell:
        "touch {{output}}"
"""

Seconds = Callable[[Sequence[str], Mapping[str, str], Path], float]
"""Function that runs a command with an environment in a folder, and returns the duration in seconds."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Durations of starts in seconds; None if not measured.

    Attributes:
        warm: Start of a stage through the fork server.
        cold: Start of a stage in a fresh process, including all imports.
        snakemake_job: Snakemake's overhead of a job on this machine.
        snakemake_start: Start of a Snakemake that reads the study.
    """

    warm: float | None = None
    cold: float | None = None
    snakemake_job: float | None = None
    snakemake_start: float | None = None

    @property
    def here(self) -> float:
        """Overhead of a job on this machine."""
        start = self.warm if self.warm is not None else self.cold
        return (start or 0.0) + (self.snakemake_job or 0.0)

    @property
    def on_cluster(self) -> float | None:
        """Overhead of an ungrouped cluster job, for which Snakemake starts twice and its stage without a server."""
        if self.cold is None or self.snakemake_start is None:
            return None
        return self.cold + 2 * self.snakemake_start


def measure_starts(study: Study, configfile: Path | None, run: Seconds | None = None) -> Starts:
    """Measure starts on this machine.

    Args:
        study: The study, which determines the imports of its stages.
        configfile: File of the study, for a start of Snakemake; None to not measure Snakemake.
        run: Function that measures one command.

    Raises:
        IspError: A command failed. The message contains its last line of output.
    """
    run = run or run_timed
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))}
    fresh = {key: value for key, value in inherited.items() if key not in ("ISP_WARM", "ISP_OWNER")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def shortest(command: Sequence[str], environment: Mapping[str, str] = fresh) -> float:
            return min(run(command, environment, folder) for _ in range(TIMES))

        served = study.served_instructions  # the fork server takes only calls with its own instruction set
        nothing = [sys.executable, "-m", "isp", "retrain", "--instruction-set", served, "--help"]
        libraries = dict.fromkeys(LIBRARIES[study.backbone(name).inputs] for name in study.training)
        imports = [sys.executable, "-c", f"import isp.stages.retrain, {', '.join(libraries)}"]
        through_server = None
        with suppress(warm.UnavailableError):  # then jobs also start without it
            if "ISP_WARM" in os.environ:
                return Starts(warm=shortest(nothing, inherited))
            if "ISP_OWNER" not in os.environ and warm.available():
                address = {"ISP_OWNER": str(os.getpid()), "ISP_WARM": warm.new_address(os.getpid())}
                environment = fresh | address | {instructions.SERVED: served}
                run(nothing, environment, folder)  # the server starts
                through_server = shortest(nothing, environment)
        cold = shortest(imports)
        if "ISP_OWNER" in os.environ or configfile is None or not SNAKEFILE.is_file():
            return Starts(warm=through_server, cold=cold)
        one, several = (shortest(_snakemake_of(jobs, folder)) for jobs in (1, JOBS))
        return Starts(
            warm=through_server,
            cold=cold,
            snakemake_job=max(0.0, several - one) / (JOBS - 1),
            snakemake_start=shortest(_snakemake_on(study, configfile)),
        )


def _snakemake_of(jobs: int, folder: Path) -> list[str]:
    """Return the command for a workflow of trivial jobs, all of which run each time."""
    snakefile = folder / f"{jobs}.smk"
    snakefile.write_text(_WORKFLOW.format(jobs=jobs), encoding="utf-8")
    options = ["--cores", "1", "--scheduler", "greedy", "--forceall", "--workflow-profile", "none"]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *options]


def _snakemake_on(study: Study, configfile: Path) -> list[str]:
    """Return the command for a dry run of the study's workflow with one target."""
    split = paths.SPLIT.format(task=next(group.task for group in study.groups()))
    options = ["--configfile", str(configfile.absolute()), "--dry-run", "--quiet", "all"]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), *options, "--", split]


def run_timed(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """Run a command, and return its duration in seconds of wall-clock time.

    Raises:
        UnavailableError: It is a call of `isp` that should have gone through the fork server but did not.
        IspError: The command failed.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        last = printable(said[-1]) if said else "it printed nothing"
        raise IspError(f"isp plan --calibrate: {' '.join(command[1:4])} exited with status {done.returncode}: {last}")
    if "ISP_WARM" in environment and warm.COLD in done.stderr:
        raise warm.UnavailableError(printable(done.stderr.strip()))
    return seconds
