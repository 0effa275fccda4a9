"""Fraction of padding in batches of texts: examples in random order, compared with examples grouped by length.

    python benchmarks/padding.py --data-root FOLDER [--tasks cola rte] [--backbone minilm] [--batch-size 32]

FOLDER contains the datasets and the backbone's vocabulary in the hub's layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from isp.backbones._bert import VOCABULARY
from isp.data.texts import padding_share, to_tokens
from isp.definitions import backbone_of, task_of
from isp.preparation import split
from isp.training import BatchOrder


def main() -> None:
    """Print one line per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["cola", "rte"])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    backbone = backbone_of(arguments.backbone)
    assert backbone.source is not None
    vocabulary = (backbone.source.where(arguments.data_root) / VOCABULARY).read_text(encoding="utf-8").splitlines()
    for name in arguments.tasks:
        task = task_of(name)
        chosen = split(name, task, arguments.data_root)[0].train.tolist()
        columns = task.source.read("train", arguments.data_root).columns
        lengths = to_tokens(columns, chosen, vocabulary, lower_case=True, max_length=128)["length"]
        shares = {}
        for how, sorted_by in (("random order", None), ("grouped by length", lengths)):
            order = BatchOrder(len(lengths), arguments.batch_size, 0, lengths=sorted_by)
            shares[how] = padding_share(lengths, map(order, range(order.steps_per_epoch)))
        mean, longest = lengths.float().mean().item(), int(lengths.max())
        whole = 1 - mean / longest
        texts = ", ".join(f"{how} {share:.1%}" for how, share in shares.items())
        fewer = (1 - shares["grouped by length"]) / (1 - shares["random order"])
        print(
            f"{name}: {len(lengths):,} texts of {mean:.1f} tokens on average, maximum {longest}; padding: "
            f"all to the maximum {whole:.1%}, {texts}; {fewer:.2f} times fewer tokens than in random order"
        )


if __name__ == "__main__":
    main()
