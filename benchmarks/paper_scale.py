"""Overhead of Instant Soup Pruning at full size, with random weights: the cost of rounds besides their training steps.

    python benchmarks/paper_scale.py [--backbone clip_vit_b32] [--rounds 2] [--batch-size 4] [--rule mean_score]

A round is a segment of 2 steps, 5 look-aheads of 2 steps each, and their superposition. The look-aheads run in separate
processes or together in one, and several rounds can be one job. Nothing is downloaded: weights are generated, and data
come with installed packages. The cost of a step is the difference between a segment of 2 steps and one of 6, divided by
the steps. Seconds are CPU seconds with one thread per process, so that other work on the machine has little influence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from full_size import make_files, stage

STEPS, COPIES = 2, 5
TASKS = {"clip_vit_b32": "digits", "bert_base": "word_order"}


@dataclass
class Spent:
    """Resources that processes used.

    Attributes:
        cpu: CPU seconds.
        wall: Wall-clock seconds.
        peak_mb: Peak memory of the largest process.
        jobs: Number of processes.
    """

    cpu: float = 0.0
    wall: float = 0.0
    peak_mb: float = 0.0
    jobs: int = 0

    def run(self, command: list[str], folder: Path) -> None:
        """Run a process and add its resources; a failure ends the benchmark."""
        log = folder / "log"
        begun = time.perf_counter()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(log.read_text(encoding="utf-8"))
        self.wall += time.perf_counter() - begun
        self.cpu += usage.ru_utime + usage.ru_stime
        self.peak_mb = max(self.peak_mb, usage.ru_maxrss / 1024)
        self.jobs += 1


@dataclass(frozen=True)
class Cell:
    """Pruned model: the options of all stages that train, the superposition rule, and steps of segments and copies."""

    options: tuple[str, ...]
    rule: str
    rounds: int
    steps: int = STEPS


def isp(name: str, *options: object) -> list[str]:
    """Return the command that runs a stage in its own process."""
    return [sys.executable, "-m", "isp", name, *map(str, options)]


def run_in_one_job(folder: Path, cell: Cell, spent: Spent) -> int:
    """Run the rounds in a folder beside `initial` and `train`, all but the last mask in one job; return the steps."""
    last = cell.rounds - 1
    pruning = ("--denoisers", COPIES, "--rule", cell.rule, "--settings", json.dumps({"look_ahead_steps": cell.steps}))
    rounds = json.dumps([[cell.steps * (number + 1), f"{0.1 * (number + 1):.1f}"] for number in range(last)])
    told = ("--start", "../initial", "--first", 0, "--rounds", rounds, "--until", cell.steps * cell.rounds)
    spent.run(isp("run_rounds", *cell.options, *told, *pruning, "--output", "state"), folder)
    event = ("--state", "state", "--round", last, "--sparsity", f"{0.1 * cell.rounds:.1f}", "--output", "mask")
    spent.run(isp("prune_denoised", *cell.options, *event, *pruning), folder)
    return cell.rounds * cell.steps * (1 + COPIES)


def run(folder: Path, cell: Cell, spent: Spent, cores: int) -> int:
    """Run the rounds in a folder beside `initial` and `train`, with a number of cores; return the number of steps."""
    settings = json.dumps({"look_ahead_steps": cell.steps})
    start, within, steps = Path("../initial"), (), 0
    for number in range(cell.rounds):
        state, sparsity = Path(f"state{number}"), f"{0.1 * (number + 1):.1f}"
        until = cell.steps * (number + 1)
        segment = ("--start", start, "--until", until, "--output", state)
        spent.run(isp("train_segment", *cell.options, *segment, *within), folder)
        event = ("--state", state, "--round", number, "--sparsity", sparsity, "--rule", cell.rule, *within)
        copies = (
            "--denoisers",
            COPIES,
            "--settings",
            settings,
            "--cores",
            cores,
            *(("--keep-weak",) if cores > 1 else ()),
        )
        output = Path(f"round{number}") / "mask"
        spent.run(isp("prune_denoised", *cell.options, *event, *copies, "--output", output), folder)
        spent.jobs += COPIES if cores > 1 else 0
        start, within = state, ("--within", output)
        steps += cell.steps * (1 + COPIES)
    return steps


WAYS = {"apart": 2, "together": 1, "one job": 0}
"""Number of cores for the copies of a round; 0: rounds are not separate jobs."""


def prepared(folder: Path, backbone: str, batch_size: int, precision: str = "fp32") -> tuple[str, ...]:
    """Make the initial state and the training examples with the real stages, and return the options for training."""
    make_files(folder / "data")
    root, both = ("--data-root", "data"), ("--backbone", backbone, "--task", TASKS[backbone])
    protocol = {"steps": 1000, "batch_size": batch_size, "learning_rate": 1e-5, "precision": precision}
    training = (*both, "--seed", 0, "--training", json.dumps(protocol), "--limits", "{}", "--threads", 1)
    stage(folder, "download", "--task", TASKS[backbone], *root, "--output", "task.json")
    stage(folder, "download", "--backbone", backbone, *root, "--output", "backbone.json")
    stage(folder, "convert", "--backbone", backbone, *root, "--manifest", "backbone.json", "--output", "weights")
    stage(folder, "split", "--task", TASKS[backbone], *root, "--manifest", "task.json", "--output", "split")
    parts = [part for name in ("train", "validation", "test") for part in (f"--{name}", name)]
    made = (*root, "--manifest", "task.json", "--split", "split", "--weights", "weights", *parts)
    stage(folder, "prepare", *both, *made)
    initial = ("--data", "train", "--weights", "weights", "--initial", "pretrained", "--output", "initial")
    stage(folder, "initialise", *training, *initial)
    return tuple(map(str, (*training, "--data", "../train")))


def step_seconds(folder: Path, cell: Cell) -> float:
    """Return the CPU seconds of one training step."""
    found = []
    for until in (STEPS, 3 * STEPS):
        spent = Spent()
        spent.run(
            isp("train_segment", *cell.options, "--start", "../initial", "--until", until, "--output", f"to{until}"),
            folder,
        )
        found.append(spent.cpu)
    return (found[1] - found[0]) / (2 * STEPS)


def import_seconds(folder: Path) -> float:
    """Return the CPU seconds of starting a process with the imports of a stage that trains."""
    spent = Spent()
    spent.run([sys.executable, "-c", "import torch, open_clip, transformers, isp.stages.prune_denoised"], folder)
    return spent.cpu


def main() -> None:
    """Print one line per way of running look-aheads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=list(TASKS), default="clip_vit_b32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rule", choices=["mean_score", "union", "votes"], default="mean_score")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "ISP_CHECKPOINT_SECONDS": "100000"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = prepared(folder, arguments.backbone, arguments.batch_size)
        cell = Cell(options=options, rule=arguments.rule, rounds=arguments.rounds)
        (folder / "step").mkdir()
        step, imports = step_seconds(folder / "step", cell), import_seconds(folder / "step")
        print(f"{arguments.backbone}, batch {arguments.batch_size}, rule {arguments.rule}: {step:.2f} s per step, "
              f"{imports:.1f} s per start with imports")  # fmt: skip
        ways = WAYS if arguments.rounds > 1 else {label: cores for label, cores in WAYS.items() if cores}
        for label, cores in ways.items():
            place = folder / label.replace(" ", "_")
            place.mkdir()
            spent = Spent()
            steps = run(place, cell, spent, cores) if cores else run_in_one_job(place, cell, spent)
            written = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            beside = spent.cpu - steps * step
            print(
                f"{label}: per round {spent.cpu / cell.rounds:.1f} CPU seconds ({spent.wall / cell.rounds:.1f} on the "
                f"clock), of which beside training {beside / cell.rounds:.1f}, of which starts and imports "
                f"{spent.jobs * imports / cell.rounds:.1f}; written {written / cell.rounds / 1e6:,.0f} MB per round, "
                f"peak memory {spent.peak_mb:,.0f} MB"
            )


if __name__ == "__main__":
    main()
