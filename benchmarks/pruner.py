"""Overhead of `isp.Pruner` in a training step of BERT-base on this machine's CPU.

    python benchmarks/pruner.py [--batch 16] [--length 128] [--steps 6] [--layers 12]

The same step (random weights, AdamW, clipping) is run with and without Pruner in turns, in CPU seconds of this process.
Medians and the median of the paired ratios are printed. `outside events`: a mask of 90 % is applied and nothing is
pruned. `every step`: one method selects a mask at every step, another one at every k-th.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import isp

KINDS: dict[str, dict[str, Any]] = {
    "outside events": {"method": "one_shot"},
    "movement, every step": {"method": "movement", "settings": {"every": 1, "begin": 0, "end": 0.99}},
    "gradual, every step": {"method": "gradual", "settings": {"every": 1, "end": 0.99}},
    "movement, outside events": {"method": "movement", "settings": {"every": 500, "begin": 0, "end": 0.99}},
}


def make_step(arguments: argparse.Namespace, pruning: dict[str, Any] | None) -> Callable[[], None]:
    """Return a training step of a new model; with `pruning`, a Pruner is attached."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=arguments.layers))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(1000, 30000, (arguments.batch, arguments.length))
    labels = torch.randint(2, (arguments.batch,))
    exclude = ["classifier.*"]
    pruner = pruning and isp.Pruner(model, optimizer, sparsity=0.9, steps=10**4, exclude=exclude, **pruning)

    def step() -> None:
        model(input_ids=tokens, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if pruner:
            pruner.step()

    step()  # creates the optimizer's state
    return step


def seconds(step: Callable[[], None]) -> float:
    """Return the CPU seconds of this process in one step."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 16), ("length", 128), ("steps", 6), ("layers", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = make_step(arguments, None)
    print(f"BERT-base, {arguments.layers} layers, {arguments.batch} x {arguments.length} tokens, one thread")
    print(f"{'':28}{'plain s':>10}{'Pruner s':>10}{'overhead':>10}")
    for kind in arguments.kinds:
        pruned = make_step(arguments, KINDS[kind])
        pairs = [(seconds(plain), seconds(pruned)) for _ in range(arguments.steps)]
        ratio = statistics.median(b / a for a, b in pairs)
        before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"{kind:28}{before:10.3f}{after:10.3f}{ratio - 1:10.1%}", flush=True)
        del pruned


if __name__ == "__main__":
    main()
