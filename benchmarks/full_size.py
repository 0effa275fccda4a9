"""The paper's backbones at full size with random weights, ten training steps each through the real stages.

    python benchmarks/full_size.py --data-root FOLDER [--batch-size 8] [--threads 2] [--device cpu]

FOLDER contains MNIST and RTE in the hub's layout. The model files that would come from the hub are generated in a
temporary folder (random weights, BERT's vocabulary of 30,522 words), so that every stage from `isp download` to
`isp finetune_dense` runs as on the real files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import string
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from safetensors.torch import save_file

from isp.backbones import _bert as bert
from isp.backbones import _open_clip as clip
from isp.backbones.bert_base import BACKBONE as BERT
from isp.backbones.clip_vit_b32 import BACKBONE as CLIP

STEPS = 10


def make_files(root: Path) -> None:
    """Generate random weights under the names of the hub."""
    assert CLIP.source is not None
    assert BERT.source is not None
    folder = CLIP.source.where(root)
    folder.mkdir(parents=True)
    save_file(clip.build(CLIP.described(), 0).state_dict(), folder / clip.WEIGHTS)
    folder = BERT.source.where(root)
    folder.mkdir(parents=True)
    letters = string.ascii_lowercase
    words = [*bert.SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    words += ["".join(word) for word in product(letters, repeat=4)][: 30522 - len(words)]
    (folder / bert.VOCABULARY).write_text("\n".join(words), encoding="utf-8")
    config = {"model_type": "bert", "vocab_size": 30522}  # the rest of BERT-base is transformers' default
    (folder / bert.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(bert.build(config, 0).state_dict(), folder / bert.WEIGHTS)


def stage(folder: Path, name: str, *options: object) -> str:
    """Run a stage in its own process, and return its last line."""
    command = [sys.executable, "-m", "isp", name, *map(str, options)]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr.strip().splitlines()[-1]


def main() -> None:
    """Run both backbones, and print one line per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "data"
        make_files(root)
        for part in ("ylecun", "nyu-mll"):
            os.symlink((arguments.data_root / part).absolute(), root / part)
        for backbone, task in (("clip_vit_b32", "mnist"), ("bert_base", "rte")):
            print(
                f"{backbone} on {task}, batch {arguments.batch_size}, {arguments.threads} threads, {arguments.device}"
            )
            run(folder, backbone, task, arguments)


def run(folder: Path, backbone: str, task: str, arguments: argparse.Namespace) -> None:
    """Run all stages of one dense cell."""
    both, root = ("--backbone", backbone, "--task", task), ("--data-root", "data")
    stage(folder, "download", "--task", task, *root, "--output", "task.json")
    stage(folder, "download", "--backbone", backbone, *root, "--output", "backbone.json")
    protocol = {"steps": STEPS, "batch_size": arguments.batch_size, "learning_rate": 1e-5}
    place = ("--threads", arguments.threads, "--device", arguments.device)
    how = (*both, "--seed", 0, "--data", "train", "--training", json.dumps(protocol), "--limits", "{}", *place)
    lines = {
        "convert": ("--backbone", backbone, *root, "--manifest", "backbone.json", "--output", "weights"),
        "split": ("--task", task, *root, "--manifest", "task.json", "--output", "split"),
        "prepare": (
            *both,
            *(*root, "--manifest", "task.json", "--split", "split", "--weights", "weights"),
            *("--train", "train", "--validation", "validation", "--test", "test"),
        ),
        "initialise": (*how, "--weights", "weights", "--initial", "pretrained", "--output", "initial"),
        "finetune_dense": (*how, "--initial", "initial", "--output", "ticket"),
    }
    for name, options in lines.items():
        line = stage(folder, name, *options)
        print(f"  {name}: {line}")
        found = re.search(r" in ([\d.]+) s after .*peak memory ([\d,]+) MB", line)
        if name == "finetune_dense" and found:
            print(f"  {float(found[1]) / STEPS:.2f} s per step (loading and saving included), peak {found[2]} MB")


if __name__ == "__main__":
    main()
