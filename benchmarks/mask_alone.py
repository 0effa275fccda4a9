"""What masks alone do to a pre-trained model: how far its outputs still depend on its inputs, before any training.

    python benchmarks/mask_alone.py results/STUDY [--inputs 256] [--resources resources]

STUDY contains tickets of a finished study. For each pruned ticket, one line has the spread of outputs over validation
inputs, that is, their standard deviation over inputs, averaged over outputs: of the pre-trained model, of that model
under the ticket's mask, under the same mask shuffled within each layer, and of the ticket. Lines also have the share of
kept weights in the larger half of their layer, by magnitude before training, and how far kept weights moved: the median
over a layer's kept weights relative to the median magnitude of the layer, averaged over layers.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from isp import artifacts
from isp.definitions import backbone_of
from isp.evaluation import outputs_of
from isp.masks import Mask, Weights
from isp.seeds import seed as named_seed

COLUMNS = ("spread pretrained", "spread masked", "spread shuffled", "spread ticket", "kept in larger half", "moved")


def main() -> None:
    """Print a CSV table with one line per pruned ticket."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--inputs", type=int, default=256, help="number of validation inputs")
    parser.add_argument("--resources", type=Path, default=Path("resources"), help="folder of prepared examples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("ticket", *COLUMNS))
    runs = arguments.study / "runs"
    for path in sorted(runs.glob("*/*/seed*/*/*/ticket.safetensors")):
        backbone, task, seed = path.relative_to(runs).parts[:3]
        initial = runs / backbone / task / seed / "initial/pretrained.safetensors"
        prepared = arguments.resources / "prepared" / backbone / task / "validation.safetensors"
        values = measured(path, backbone, initial, prepared, arguments.inputs)
        table.writerow((path.parent.relative_to(runs), *(f"{value:.3g}" for value in values)))


def measured(path: Path, backbone: str, initial: Path, prepared: Path, num: int) -> Iterator[float]:
    """Yield the values of `COLUMNS` for a ticket."""
    ticket, pretrained = artifacts.load_ticket(path), artifacts.load_state(initial)[0].weights
    tensors = {name: each[:num] for name, each in artifacts.load_examples(prepared, "validation")[0].items()}
    definition, architecture = backbone_of(backbone), ticket.origin["architecture"]
    examples = definition.examples(tensors, architecture, "none")
    masked = under(pretrained, ticket.mask)
    for weights in (pretrained, masked, under(pretrained, shuffled(ticket.mask)), ticket.weights):
        outputs, _ = outputs_of(definition.restore(weights, architecture), examples)
        yield float(outputs.std(0).mean())
    halves, moves = [], []
    for name, kept in ticket.mask.items():
        magnitudes = pretrained[name].abs()
        larger = magnitudes > magnitudes.median()
        halves.append((int((kept & larger).sum()), int(kept.sum())))
        moves.append((ticket.weights[name] - pretrained[name]).abs()[kept].median() / magnitudes.median())
    yield sum(half for half, _ in halves) / sum(whole for _, whole in halves)
    yield float(torch.stack(moves).mean())


def under(weights: Weights, mask: Mask) -> dict[str, torch.Tensor]:
    """Return weights that are zero where the mask is."""
    return {name: tensor * mask[name] if name in mask else tensor for name, tensor in weights.items()}


def shuffled(mask: Mask) -> dict[str, torch.Tensor]:
    """Return a mask with as many kept weights in each layer, in random places."""
    generator = torch.Generator().manual_seed(named_seed("mask_alone"))
    return {
        name: kept.flatten()[torch.randperm(kept.numel(), generator=generator)].view_as(kept)
        for name, kept in mask.items()
    }


if __name__ == "__main__":
    main()
