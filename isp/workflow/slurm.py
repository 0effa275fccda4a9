"""What a run on Slurm must know of the queue: whether jobs of a Snakemake that is gone still make the same files."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from isp.errors import IspError

FORMAT = "%j|%Z"
"""What is asked of squeue: a job's name and its folder."""
LOGS = Path(".snakemake/slurm_logs")
"""Where Snakemake lets Slurm log; it is there if jobs were submitted from this folder."""
_RUN = re.compile(r"([\w-]+_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of jobs that Snakemake submits: the run's id behind the profile's prefix."""


def runs_in(listing: str, folder: Path) -> Counter[str]:
    """How many jobs of each Snakemake run work or wait in a folder, from lines in `FORMAT`."""
    jobs = (line.partition("|") for line in listing.splitlines())
    return Counter(name for name, _, place in jobs if _RUN.fullmatch(name) and Path(place) == folder)


def refuse_twice(folder: Path) -> None:
    """Refuse to start where jobs of an earlier Snakemake are in the queue: its restart would run them twice.

    A Snakemake that was killed leaves its jobs to Slurm and its lock in the folder; `--unlock` takes only that away.

    Raises:
        IspError: names the runs, and says what to do; or the queue cannot be asked.
    """
    if shutil.which("squeue") is None:
        return
    asked = ["squeue", "--me", "--noheader", "--format", FORMAT]
    try:
        listing = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except subprocess.TimeoutExpired:
        raise IspError(f"{' '.join(asked)}: no answer within 60 s; is the cluster's controller up?") from None
    if listing.returncode:
        said = listing.stderr.strip() or f"exit status {listing.returncode}"
        raise IspError(
            f"{' '.join(asked)}: {said}; a start must know whether jobs of an earlier run are in the queue. Try again "
            "when the cluster's controller answers"
        )
    running = runs_in(listing.stdout, folder)
    if running:
        runs = ", ".join(f"{count} of run {name}" for name, count in sorted(running.items()))
        cancel = " ".join(f"scancel --name={name};" for name in sorted(running)).rstrip(";")
        raise IspError(
            f"{folder}: jobs of another Snakemake are in the queue ({runs}); starting now would run them twice. If it "
            f"lives, let it end. If it was killed, cancel its jobs, {cancel!r}, or wait until they are gone from "
            "squeue; then run the same command again"
        )
