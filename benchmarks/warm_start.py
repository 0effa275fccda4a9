"""Savings by the fork server: the same stage in fresh processes and through the server.

    make run                          (makes the inputs)
    python benchmarks/warm_start.py

The stage is `isp initialise` of the default study: it imports torch and open_clip, builds the tiny CLIP and its
zero-shot head, counts the FLOPs of a step, and writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from isp.runtime import warm

CALLS = 6
WEIGHTS = Path("resources/backbones/clip_tiny.safetensors")
DATA = Path("resources/prepared/clip_tiny/digits/train.safetensors")


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Return the wall-clock seconds of one call."""
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    """Time the calls, and print their ratio."""
    if not (WEIGHTS.exists() and DATA.exists()):
        raise SystemExit(f"{WEIGHTS} or {DATA} is missing; run `make run` first")
    fresh = {key: value for key, value in os.environ.items() if key not in ("ISP_WARM", "ISP_OWNER")}
    served = fresh | {"ISP_OWNER": str(os.getpid()), "ISP_WARM": warm.new_address(os.getpid())}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "isp", "initialise", "--weights", str(WEIGHTS), "--data", str(DATA)]
        command += ["--backbone", "clip_tiny", "--task", "digits", "--seed", "0", "--initial", "pretrained"]
        command += ["--training", "{steps: 200, batch_size: 32, learning_rate: 5.0e-4}", "--limits", "{}"]
        command += ["--output", f"{folder}/state.safetensors"]
        seconds(command, fresh)  # from here on, files come from the page cache
        print(f"server started and first call: {seconds(command, served):.2f} s")
        times: dict[str, list[float]] = {"fresh": [], "warm": []}
        for _ in range(CALLS):
            times["fresh"].append(seconds(command, fresh))
            times["warm"].append(seconds(command, served))
    medians = {name: sorted(values)[CALLS // 2] for name, values in times.items()}
    print(f"per call, median of {CALLS}: fresh {medians['fresh']:.2f} s, warm {medians['warm']:.2f} s")
    print(f"{medians['fresh'] / medians['warm']:.1f} times faster")


if __name__ == "__main__":
    main()
