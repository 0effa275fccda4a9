"""Measure what a job costs before its stage does anything: starts of processes, imports, and Snakemake's own part.

The stage that is started does nothing: it prints its help. By hand both ways of starting one are measured. A job of a
workflow measures only its own, through the fork server that it has or else in a process of its own, so that a run is
not made longer by what it does not use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isp.config import Study
from isp.errors import IspError
from isp.runtime import warm
from isp.untrusted import printable
from isp.workflow import paths

TIMES = 2
"""How often each start is measured; the shortest counts, for other work on the machine only adds."""
ROOT = Path(__file__).parents[2]
"""Where this package is imported from, in a clone also that of the workflow."""
SNAKEFILE = ROOT / "workflow" / "Snakefile"
JOBS = 11
"""Jobs of the workflow by which Snakemake's part in one is measured, beside a workflow of one job."""
NOTHING = ("-m", "isp", "retrain", "--help")
"""A stage that does nothing, as arguments of Python."""
LIBRARIES = {"pictures": "open_clip", "texts": "transformers.models.bert.modeling_bert"}
"""What a stage imports beside this package, by what its backbone takes."""
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
"""Runs a command under an environment in a folder; the seconds that it took."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Seconds of starts; None: not measured.

    Attributes:
        warm: A stage through the fork server.
        cold: A stage in a process of its own, with all that it imports.
        snakemake_job: Snakemake's part in a job on this machine.
        snakemake_start: A start of Snakemake that reads the study.
    """

    warm: float | None = None
    cold: float | None = None
    snakemake_job: float | None = None
    snakemake_start: float | None = None

    @property
    def here(self) -> float:
        """A job on this machine, before and beside its stage."""
        start = self.warm if self.warm is not None else self.cold
        return (start or 0.0) + (self.snakemake_job or 0.0)

    @property
    def on_cluster(self) -> float | None:
        """A job of a cluster that shares no entry of the queue: Snakemake starts twice for it, its stage cold."""
        if self.cold is None or self.snakemake_start is None:
            return None
        return self.cold + 2 * self.snakemake_start


def measure_starts(study: Study, configfile: Path | None, run: Seconds | None = None) -> Starts:
    """Measure starts on this machine.

    Args:
        study: The study, for what its stages import.
        configfile: Its file, which a start of Snakemake reads; None: Snakemake is not measured.
        run: Measures one command.

    Raises:
        IspError: A command failed; its last line of output is in the message.
    """
    run = run or run_timed
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))}
    fresh = {key: value for key, value in inherited.items() if key not in ("ISP_WARM", "ISP_OWNER")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def shortest(command: Sequence[str], environment: Mapping[str, str] = fresh) -> float:
            return min(run(command, environment, folder) for _ in range(TIMES))

        nothing = [sys.executable, *NOTHING]
        libraries = dict.fromkeys(LIBRARIES[study.backbone(name).inputs] for name in study.training)
        imports = [sys.executable, "-c", f"import isp.stages.retrain, {', '.join(libraries)}"]
        if "ISP_WARM" in os.environ:
            return Starts(warm=shortest(nothing, inherited))
        if "ISP_OWNER" in os.environ:
            return Starts(cold=shortest(imports))
        served = None
        if warm.available():
            own = str(os.getpid())
            environment = fresh | {"ISP_OWNER": own, "ISP_WARM": warm.new_address(os.getpid())}
            run(nothing, environment, folder)  # the server starts
            served = shortest(nothing, environment)
        cold = shortest(imports)
        if configfile is None or not SNAKEFILE.is_file():
            return Starts(warm=served, cold=cold)
        one, several = (shortest(_snakemake_of(jobs, folder)) for jobs in (1, JOBS))
        return Starts(
            warm=served,
            cold=cold,
            snakemake_job=max(0.0, several - one) / (JOBS - 1),
            snakemake_start=shortest(_snakemake_on(study, configfile)),
        )


def _snakemake_of(jobs: int, folder: Path) -> list[str]:
    """A workflow of jobs that do next to nothing; all of them run each time."""
    snakefile = folder / f"{jobs}.smk"
    snakefile.write_text(_WORKFLOW.format(jobs=jobs), encoding="utf-8")
    options = ["--cores", "1", "--scheduler", "greedy", "--forceall", "--workflow-profile", "none"]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *options]


def _snakemake_on(study: Study, configfile: Path) -> list[str]:
    """A dry run of the study's workflow that asks for one file."""
    split = paths.SPLIT.format(task=next(group.task for group in study.groups()))
    options = ["--configfile", str(configfile.absolute()), "--dry-run", "--quiet", "all"]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), *options, "--", split]


def run_timed(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """Run a command; the seconds on the clock that it took.

    Raises:
        IspError: It failed.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        last = printable(said[-1]) if said else "it printed nothing"
        raise IspError(f"isp plan --calibrate: {' '.join(command[1:4])} ended with status {done.returncode}: {last}")
    return seconds
