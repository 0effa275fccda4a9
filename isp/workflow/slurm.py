"""Check of the Slurm queue: jobs of an earlier, killed Snakemake may still make the same files."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from isp.errors import IspError

FORMAT = "%j|%Z"
"""Output format of squeue: the name of a job and its folder."""
LOGS = Path(".snakemake/slurm_logs")
"""Folder of the Slurm logs of Snakemake; it exists if jobs were submitted from this folder."""
_RUN = re.compile(r"([\w-]+_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of jobs that Snakemake submits: the profile's prefix and the run's id."""


def runs_in(listing: str, folder: Path) -> Counter[str]:
    """Return the number of running and waiting jobs of each Snakemake run in a folder, from lines in `FORMAT`."""
    jobs = (line.partition("|") for line in listing.splitlines())
    return Counter(name for name, _, place in jobs if _RUN.fullmatch(name) and Path(place) == folder)


def refuse_twice(folder: Path) -> None:
    """Refuse to start if jobs of an earlier Snakemake are in the queue, because a restart would run them twice.

    A killed Snakemake leaves its jobs in the queue and its lock in the folder; `--unlock` removes only the lock.

    Raises:
        IspError: Such jobs exist (the message names the runs, and says what to do), or squeue failed.
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
            f"{' '.join(asked)}: {said}; the queue must be checked for jobs of an earlier run before a start. Try "
            "again when the cluster's controller responds"
        )
    running = runs_in(listing.stdout, folder)
    if running:
        runs = ", ".join(f"{count} of run {name}" for name, count in sorted(running.items()))
        cancel = " ".join(f"scancel --name={name};" for name in sorted(running)).rstrip(";")
        raise IspError(
            f"{folder}: jobs of another Snakemake are in the queue ({runs}); starting now would run them twice. If it "
            f"is still running, let it finish. If it was killed, cancel its jobs ({cancel!r}) or wait until they are "
            "gone from squeue; then run the same command again"
        )
