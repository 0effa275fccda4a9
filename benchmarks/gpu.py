"""What training, a round of Instant Soup Pruning, small jobs and 2:4 layers cost on a GPU. Models have random weights.

    python benchmarks/gpu.py steps rounds sharing inference

- `steps`: a training step of ViT-B/32 and BERT-base at the paper's batch sizes: milliseconds, FLOPs per second as the
  package counts them, peak memory of the GPU.
- `rounds`: three rounds of ViT-B/32 in bf16, each a segment of 20 steps, 5 look-aheads of 20 steps and their
  superposition: as two jobs per round, and as one job that makes all but the last mask. Jobs start through the fork
  server. Seconds on the clock, with and without the training steps, and bytes written.
- `sharing`: training steps per second of 1 to 8 processes that fine-tune a six-layer BERT on the same GPU.
- `inference`: BERT-base and ViT-B/32 with the pattern 2:4 in every layer of the encoder: `isp.accelerate`, and 2:4
  everywhere, against dense torch.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import inference
import paper_scale
import torch
from torch import Tensor, nn
from train_step import RandomPictures, build, clock

import isp
from isp import masks
from isp.forms import DENSE, N_M
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.runtime import instructions, warm
from isp.training import Training, make_trainer, state_of

DEVICE = "cuda"
SPARSITY = Decimal("0.5")


class RandomTexts:
    """Random token ids of two classes, on the GPU."""

    def __init__(self, num: int, length: int) -> None:
        self.ids = torch.randint(1000, 30000, (num, length), device=DEVICE)
        self.labels = torch.arange(num, device=DEVICE) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Return ids and labels."""
        indices = indices.to(DEVICE)
        return {"input_ids": self.ids[indices], "labels": self.labels[indices]}


def bert(width: int = 768, layers: int = 12) -> nn.Module:
    """Return a BERT for two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=4 * width
    )
    model: nn.Module = BertForSequenceClassification(config)
    return model


def run_steps(model: nn.Module, examples: Any, steps: int, **training: Any) -> tuple[float, float]:
    """Return the seconds and FLOPs of a training step under a mask, after a warm-up."""
    protocol = Training(steps=10_000, learning_rate=1e-5, **training)
    trainer = make_trainer(model, examples, default_loss, protocol, prunable_names(model), 0)
    state = state_of(model)
    mask = masks.prune_by_magnitude(trainer.prunable_weights(state), SPARSITY)
    state, _ = trainer.run(state, 10, mask)
    seconds = []
    for until in (10 + steps, 10 + 2 * steps, 10 + 3 * steps):
        begun = clock(DEVICE)
        state, cost = trainer.run(state, until, mask)
        seconds.append((clock(DEVICE) - begun) / steps)
    return statistics.median(seconds), cost.flops / steps


def steps() -> None:
    """Print a line per precision and model, those that have to be compiled last."""
    cases: list[tuple[str, Callable[[], nn.Module], Callable[[], Any], int]] = [
        ("BERT-base, 128 tokens", bert, lambda: RandomTexts(512, 128), 32),
        ("BERT-base, 40 tokens", bert, lambda: RandomTexts(512, 40), 32),
        ("ViT-B/32", lambda: build("cpu"), lambda: RandomPictures(512, DEVICE), 128),
    ]
    kinds = ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "bf16", "compile": True})
    for extra, (label, make, examples, batch_size) in itertools.product(kinds, cases):
        torch.cuda.reset_peak_memory_stats()
        seconds, flops = run_steps(make().to(DEVICE), examples(), 30, batch_size=batch_size, **extra)
        settings = ", ".join(f"{key} {value}" for key, value in extra.items())
        print(
            f"{label}, batch {batch_size}, {settings}: {1000 * seconds:.1f} ms per step, "
            f"{flops / seconds / 1e12:.1f} TFLOP/s, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB",
            flush=True,
        )
        gc.collect()
        torch.cuda.empty_cache()


def rounds() -> None:
    """Print a line for two jobs per round, and one for all rounds in one job."""
    steps, number = 20, 3
    os.environ |= {"ISP_OWNER": str(os.getpid()), "ISP_WARM": warm.new_address(os.getpid())}
    os.environ[instructions.SERVED] = "native"  # the default of all stages on a GPU and in bf16
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.perf_counter()
        options = (*paper_scale.prepared(folder, "clip_vit_b32", 128, "bf16"), "--device", DEVICE)
        print(f"(files: {time.perf_counter() - begun:.0f} s)", flush=True)
        cell = paper_scale.Cell(options=options, rule="union", rounds=number, steps=steps)
        for place in ("step", "jobs", "one_job"):
            (folder / place).mkdir()
        times = []
        for until in (steps, steps, 6 * steps):  # the first reads everything from the disk
            spent = paper_scale.Spent()
            output = ("--until", until, "--output", f"to{len(times)}")
            command = paper_scale.isp("train_segment", *cell.options, "--start", "../initial", *output)
            spent.run(command, folder / "step")
            times.append(spent.wall)
        step = (times[2] - times[1]) / (5 * steps)
        print(
            f"ViT-B/32, batch 128, bf16: {1000 * step:.1f} ms per step; a job of {steps} steps {times[1]:.2f} s",
            flush=True,
        )
        for place, run in (("jobs", partial(paper_scale.run, cores=1)), ("one_job", paper_scale.run_in_one_job)):
            spent = paper_scale.Spent()
            done = run(folder / place, cell, spent)
            written = sum(path.stat().st_size for path in (folder / place).rglob("*") if path.is_file())
            print(
                f"{number} rounds of {done // number} steps in {spent.jobs} jobs: {spent.wall:.2f} s, of which beside "
                f"training {spent.wall - done * step:.2f}; written {written / 1e6:,.0f} MB",
                flush=True,
            )
            print((folder / place / "log").read_text(encoding="utf-8").strip(), flush=True)
    for key in ("ISP_OWNER", "ISP_WARM", instructions.SERVED):
        del os.environ[key]


def _share(barrier: Any, queue: Any, steps: int) -> None:
    torch.manual_seed(0)
    barrier.wait()
    begun = time.perf_counter()
    each, _ = run_steps(bert(384, 6).to(DEVICE), RandomTexts(512, 12), steps, batch_size=32)
    queue.put((each, time.perf_counter() - begun))


def sharing() -> None:
    """Print a line per number of processes."""
    torch.set_num_threads(1)  # forked children cannot use the parent's threads
    context = multiprocessing.get_context("fork")  # the parent has not used CUDA
    bert(384, 6)  # imports
    for number in (1, 2, 4, 8):
        barrier, queue = context.Barrier(number), context.Queue()
        processes = [context.Process(target=_share, args=(barrier, queue, 150)) for _ in range(number)]
        for process in processes:
            process.start()
        found = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        rate = sum(1 / each for each, _ in found)
        each = 1000 * statistics.median(seconds for seconds, _ in found)
        print(
            f"{number} processes: {rate:.0f} steps per second together, {each:.1f} ms per step; "
            f"{max(total for _, total in found):.1f} s in all for 460 steps",
            flush=True,
        )


def patterned(model: nn.Module) -> nn.Module:
    """Set the two smallest of every four weights of the encoder's layers to zero."""
    with torch.no_grad():
        for name in inference.of_encoder(model):
            groups = model.get_parameter(name).view(-1, 4)
            groups.scatter_(1, groups.abs().argsort(dim=1)[:, :2], 0)
    return model


def infer() -> None:
    """Print a line per model, type and size of batch."""
    for name in ("bert_base", "vit_b32"):
        for dtype in (torch.float16, torch.bfloat16):
            model = patterned(inference.build(name)).to(DEVICE, dtype)
            for batch in (1, 8, 64, 256):
                example = inference.inputs(name, batch, 128).to(DEVICE)
                example = example if example.dtype == torch.long else example.to(dtype)
                with torch.no_grad():
                    _, report = isp.accelerate(model, example)
                whole = {form: f"{1000 * seconds:.2f}" for form, seconds in report.whole.items()}
                linear = {
                    form: 1000 * sum(layer.seconds[form] for layer in report.layers if N_M in layer.seconds)
                    for form in (DENSE, N_M)
                }
                print(
                    f"{inference.NAMES[name]}, {dtype}, batch {batch}: {report.summary()}; whole {whole} ms; layers "
                    f"with the pattern {linear[DENSE]:.2f} ms dense, {linear[N_M]:.2f} ms 2:4; difference "
                    f"{report.difference:.1e}",
                    flush=True,
                )


PARTS: dict[str, Callable[[], None]] = {"sharing": sharing, "rounds": rounds, "steps": steps, "inference": infer}
"""In the order in which they run: `sharing` forks before this process uses CUDA."""


def main() -> None:
    """Run the requested parts; one that fails does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    chosen = parser.parse_args().parts
    failed = []
    for name, part in PARTS.items():
        if name in chosen:
            begun = time.perf_counter()
            try:
                part()
            except Exception:
                failed.append(name)
                traceback.print_exc()
            print(f"({name}: {time.perf_counter() - begun:.0f} s)", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if "steps" in chosen or "inference" in chosen:
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
