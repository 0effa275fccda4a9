"""A training step of CLIP ViT-B/32 under a mask, compared with the same step under `torch.nn.utils.prune`.

    python benchmarks/train_step.py [--device cpu] [--batch-size 16] [--steps 6] [--threads 2] [--precision fp32 bf16]

Random weights and images, 90 % sparsity, fused AdamW, clipping. Both run in this process, alternating step by step, so
that drifts of the machine's speed affect both. `torch.nn.utils.prune` does not reach `attn.out_proj` (its hook never
runs there) and masks only the other three weights of a block: less work than ours, and a wrong result.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from isp import masks
from isp.backbones import _open_clip as clip
from isp.backbones.clip_vit_b32 import BACKBONE
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.training import State, Training, make_trainer, state_of


class RandomPictures:
    """Random normalised images of ten classes, on the device."""

    def __init__(self, num: int, device: str) -> None:
        self.pictures = torch.randn(num, 3, 224, 224, device=device)
        self.labels = torch.arange(num, device=device) % 10

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels."""
        indices = indices.to(self.labels.device)
        return self.pictures[indices], self.labels[indices]


def build(device: str) -> nn.Module:
    """Return the classifier with random weights, the same every time."""
    towers = clip.build(BACKBONE.described(), 0)
    return clip.classifier(towers, [str(i) for i in range(10)], ["a photo of {}."]).to(device)


def ours(arguments: argparse.Namespace, precision: str) -> Any:
    """Run steps of `Trainer.run`, and yield the seconds of each."""
    model = build(arguments.device)
    training = Training(
        steps=1000, batch_size=arguments.batch_size, learning_rate=1e-5, precision=precision  # type: ignore[arg-type]
    )  # fmt: skip
    examples = RandomPictures(4 * arguments.batch_size, arguments.device)
    trainer = make_trainer(model, examples, default_loss, training, prunable_names(model, BACKBONE.prunable), 0)
    state = state_of(model)
    mask = masks.prune_by_magnitude(trainer.prunable_weights(state), Decimal("0.9"))
    times: list[float] = []
    begun = 0.0

    def on_step(step: int) -> None:
        nonlocal begun
        now = clock(arguments.device)
        times.append(now - begun)
        begun = clock(arguments.device)

    while True:
        begun = clock(arguments.device)
        state, _ = trainer.run(State(step=0, weights=state.weights, optimizer=state.optimizer), 2, mask, on_step)
        yield times[-1]  # only the second step, because loading the state is not part of a step


def theirs(arguments: argparse.Namespace, precision: str) -> Any:
    """Run the same step with `torch.nn.utils.prune` parametrisations, and yield the seconds of each."""
    model = build(arguments.device)
    modules = []
    for name in prunable_names(model, BACKBONE.prunable):
        owner, _, parameter = name.rpartition(".")
        if not owner.endswith("out_proj"):
            modules.append((model.get_submodule(owner), parameter))
    for module, parameter in modules:
        prune.l1_unstructured(module, parameter, amount=0.9)
    examples = RandomPictures(4 * arguments.batch_size, arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    device_type = torch.device(arguments.device).type
    step = 0
    while True:
        begun = clock(arguments.device)
        pictures = examples.batch(torch.arange(arguments.batch_size) + step % 4 * arguments.batch_size)
        with torch.autocast(device_type, torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = default_loss(model, pictures)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield clock(arguments.device) - begun
        step += 1


def clock(device: str) -> float:
    """Return the current time in seconds, after the work queued on the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Run both in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for precision in arguments.precision:
        runs = {"isp": ours(arguments, precision), "torch.nn.utils.prune": theirs(arguments, precision)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.steps + 1):
            for name, steps in runs.items():
                seconds = next(steps)
                if turn:  # the first is a warm-up
                    times[name].append(seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, seconds in medians.items():
            print(f"{precision}  {name:22} {1000 * seconds:8.1f} ms per step")
        print(f"{precision}  {'ratio':22} {medians['torch.nn.utils.prune'] / medians['isp']:8.2f} x faster")


if __name__ == "__main__":
    main()
