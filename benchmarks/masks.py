"""Select the top 10 % of 85 million weights and pack the mask; and with `torch.nn.utils.prune.global_unstructured`.

    python benchmarks/masks.py [--threads 2] [--repeats 3]

Every measurement is a fresh process with the same weights (the shapes of CLIP ViT-B/32's visual blocks); the two
methods take turns. Seconds are those of the work only; memory is the increase of the peak resident size over that with
only the weights in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.utils import prune

SHAPES = {"in_proj": (2304, 768), "out_proj": (768, 768), "c_fc": (3072, 768), "c_proj": (768, 3072)}


def weights() -> dict[str, torch.Tensor]:
    """Return 84,934,656 fp32 weights."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"block{block:02d}.{name}": 0.02 * torch.randn(shape, generator=generator)
        for block in range(12)
        for name, shape in SHAPES.items()
    }


def ours(drawn: dict[str, torch.Tensor]) -> float:
    """Select, pack and write the file."""
    from isp import artifacts, masks

    with TemporaryDirectory() as folder:
        begun = time.perf_counter()
        mask = masks.prune_by_magnitude(drawn, Decimal("0.9"))
        artifacts.save_mask(Path(folder) / "mask", mask, {"method": "one_shot"})
        seconds = time.perf_counter() - begun
        size = (Path(folder) / "mask").stat().st_size
    assert masks.num_kept(mask) == 84_934_656 - 76_441_190
    print(f"packed: {8 * size / 84_934_656:.4f} bits per weight ({size:,} bytes)", file=sys.stderr)
    return seconds


def theirs(drawn: dict[str, torch.Tensor]) -> float:
    """Select only; this method packs nothing."""
    modules = []
    for tensor in drawn.values():
        module = nn.Module()
        module.weight = nn.Parameter(tensor)
        modules.append((module, "weight"))
    begun = time.perf_counter()
    prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=0.9)
    return time.perf_counter() - begun


def resident_mb(peak: bool) -> float:
    """Return the resident size of this process, now or at its peak."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def child(which: str, threads: int) -> None:
    """Run one measurement and print it as JSON."""
    torch.set_num_threads(threads)
    import isp.artifacts  # noqa: F401  (imports are not measured)

    drawn = weights()
    before = resident_mb(peak=False)
    seconds = {"ours": ours, "theirs": theirs}[which](drawn)
    print(json.dumps([seconds, resident_mb(peak=True) - before]))


def main() -> None:
    """Run both methods in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=["ours", "theirs"])
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.threads)
        return
    found: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for _ in range(arguments.repeats):
        for which, results in found.items():
            command = [sys.executable, __file__, "--child", which, "--threads", str(arguments.threads)]
            results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    medians = {
        which: [statistics.median(column) for column in zip(*rows, strict=True)] for which, rows in found.items()
    }
    for which, label in (("ours", "isp: select, pack, write"), ("theirs", "torch.nn.utils.prune: select")):
        seconds, memory = medians[which]
        print(f"{label:30} {seconds:7.2f} s  {memory:7.0f} MB more")
    print(f"{'ratio':30} {medians['theirs'][0] / medians['ours'][0]:7.1f} x faster, "
          f"{medians['theirs'][1] / medians['ours'][1]:.1f} x less memory")  # fmt: skip


if __name__ == "__main__":
    main()
