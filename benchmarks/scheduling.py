"""CPU time of Snakemake itself per job, with its default limit on jobs per second and as isp's workflow runs it.

    python benchmarks/scheduling.py [--jobs 600] [--seconds 1]

Every job sleeps; four run at a time. The shell of a job takes some milliseconds, which are included in both.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SNAKEFILE = """
from isp.workflow.running import select_only_after_jobs

rule all:
    input: [f"{{n}}.txt" for n in range({jobs})]

rule one:
    output: "{{n}}.txt"
    shell: "sleep {seconds}; touch {{output}}"

onstart:
    if {without_limit}:
        select_only_after_jobs(workflow)
"""


def measure(jobs: int, seconds: float, without_limit: bool) -> tuple[float, float]:
    """Return CPU and wall seconds of a run of Snakemake with its jobs."""
    command = [sys.executable, "-m", "snakemake", "--cores", "4", "--scheduler", "greedy", "--quiet", "all"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Snakefile").write_text(
            SNAKEFILE.format(jobs=jobs, seconds=seconds, without_limit=without_limit), encoding="utf-8"
        )
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stderr=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


def main() -> None:
    """Print both, for one job and for all, so that the time to start can be subtracted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a job")
    options = parser.parse_args()
    jobs, seconds = options.jobs, options.seconds
    for without_limit in (False, True):
        (first, _), (cpu, wall) = (measure(number, seconds, without_limit) for number in (1, jobs))
        each = 1000 * (cpu - first) / (jobs - 1)
        name = "without the limit" if without_limit else "with Snakemake's default limit"
        print(f"{jobs} jobs {name}: {cpu:.1f} CPU seconds in {wall:.0f} s, {each:.0f} ms per job", flush=True)


if __name__ == "__main__":
    main()
