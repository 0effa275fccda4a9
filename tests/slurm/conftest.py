"""A real Slurm for the tests of this folder, and Snakemake on it with the profile for labs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
CLUSTER = Path(__file__).parent / "cluster.sh"
IMPATIENT = Path(__file__).parent / "impatient.py"
PROFILE = ROOT / "workflow" / "profiles" / "slurm" / "config.yaml"


def control(*words: str) -> None:
    """Run a command of the cluster, such as taking a node down or killing a daemon."""
    subprocess.run([CLUSTER, *words], check=True, timeout=60)


def wait(what: str, true: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait until a value is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {what}")


def jobs() -> list[dict[str, str]]:
    """Return all jobs that Slurm remembers, as shown by `scontrol`."""
    listing = subprocess.run(["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, timeout=30)
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in listing.stdout.splitlines()]
    return [job for job in found if "JobId" in job]


class Cluster:
    """Snakemake in a folder, on the cluster."""

    def __init__(self, folder: Path, study: Path, **changed: Any) -> None:
        self.folder, self.study = folder, study
        profile = yaml.safe_load(PROFILE.read_text())
        # No accounts here; tests need not be patient.
        del profile["default-resources"]["slurm_account"]
        profile |= {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 10} | changed
        (folder / "profile").mkdir(exist_ok=True)
        (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))

    def command(self, *options: str) -> list[str]:
        snakefile = str(ROOT / "workflow" / "Snakefile")
        command = [sys.executable, str(IMPATIENT), "--snakefile", snakefile, "--workflow-profile", "profile"]
        return [*command, *options, "--configfile", str(self.study)]

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Snakemake, running."""
        with (self.folder / "snakemake.txt").open("a") as log:
            return subprocess.Popen(self.command(*options), cwd=self.folder, stdout=log, stderr=log, text=True)

    def run(self, *options: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Snakemake, to its end."""
        return subprocess.run(
            self.command(*options), cwd=self.folder, capture_output=True, text=True, timeout=seconds, check=False
        )

    def finish(self, running: subprocess.Popen[str], seconds: float = 600) -> str:
        """Wait for a Snakemake that must succeed, and return its output."""
        try:
            status = running.wait(timeout=seconds)
        finally:
            running.kill()
            text = (self.folder / "snakemake.txt").read_text()
        assert status == 0, text[-6000:]
        return text


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start a cluster of two nodes. Without it, tests are skipped unless ISP_SLURM=required.

    A configuration that a terminated pytest left behind would make every later start of Snakemake wait 9 s for an
    answer, so SIGTERM ends the tests as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done = subprocess.run([CLUSTER, "up"], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        reason = f"{CLUSTER.name} up: {done.stderr.strip() or done.returncode}"
        if os.environ.get("ISP_SLURM") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    yield
    subprocess.run([CLUSTER, "down"], timeout=120, check=False)


@pytest.fixture
def calm(cluster: None) -> Iterator[None]:
    """Make sure that the queue is empty and both nodes are up before and after a test."""
    yield
    subprocess.run(["scancel", "--me"], timeout=60, check=False)
    wait("the queue is empty", lambda: not subprocess.check_output(["squeue", "--me", "-h"], text=True).strip())


@pytest.fixture
def place(short_pretraining: Path, tmp_path: Path) -> Path:
    """A folder with a pre-trained backbone."""
    shutil.copytree(short_pretraining, tmp_path / "resources")
    return tmp_path
