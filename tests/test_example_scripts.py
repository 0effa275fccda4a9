"""The scripts in `examples/`: short, and true."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import isp
from tests.support.models import equal

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_60_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_the_plain_loop_gives_the_ticket_of_prune_to_the_bit(capsys: pytest.CaptureFixture[str]) -> None:
    made = runpy.run_path(str(EXAMPLES[0].with_name("plain_loop.py")), run_name="__main__")
    printed = capsys.readouterr().out
    assert "step 8: 30% of the weights pruned" in printed
    assert "sparsity 0.8000" in printed
    assert "next: " in printed
    torch.manual_seed(0)
    torch.randn(4, 16), torch.randn(1024, 16)  # the data
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    ticket = isp.prune(
        model,
        (made["inputs"], made["labels"]),
        method="isp",
        sparsity=0.8,
        settings={"segment_fraction": 0.25, "rate": 0.3, "look_ahead_steps": 10},
        steps=made["STEPS"],
        batch_size=made["BATCH"],
        learning_rate=made["PEAK"],
    )
    assert ticket.rounds == made["ticket"].rounds
    assert equal(ticket.mask, made["ticket"].mask)
    assert equal(ticket.weights, made["ticket"].weights)


def test_the_trainer_example_reaches_its_sparsity(capsys: pytest.CaptureFixture[str]) -> None:
    made = runpy.run_path(str(EXAMPLES[0].with_name("transformers_trainer.py")), run_name="__main__")
    printed = capsys.readouterr().out
    assert "sparsity 0.8000 after 5 rounds" in printed
    assert "next: " in printed
    assert made["score"] > 0.8
    weights = made["model"].state_dict()
    assert all(not weights[name][~kept].any() for name, kept in made["ticket"].mask.items())


@pytest.mark.process
def test_processes_of_torchrun_end_in_one_mask() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = EXAMPLES[0].with_name("torchrun_ddp.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "80% of the weights pruned on all 2 processes" in done.stdout
    assert done.stdout.count("sparsity 0.8000, accuracy 0.9") == 1
