"""Compare the masks of a run's tickets pairwise at equal sparsity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts, files, lineage
from isp.errors import IspError
from isp.masks import Mask, Overlap, overlap_by_layer
from isp.sparsity import parse_sparsity
from isp.stages._options import Output, mapping
from isp.stages._work import working

VERSION = 1


def compare_masks(
    tickets: Annotated[
        dict[str, Any],
        typer.Option(
            parser=mapping,
            metavar="YAML",
            help="Paths of tickets by sparsity and variant, such as {0.9: {isp: a.safetensors, lth: b.safetensors}}.",
        ),
    ],
    cell: Annotated[
        dict[str, Any],
        typer.Option(parser=mapping, metavar="YAML", help="First entries of the record: study, task, seed, …"),
    ],
    output: Output,
) -> None:
    """Write the cosine, Jaccard and Hamming similarity of each pair of masks of equal sparsity, total and per layer."""
    if not all(isinstance(paths, dict) for paths in tickets.values()):
        raise IspError(f"--tickets must be {{sparsity: {{variant: path}}}}, got {tickets}")
    with working(output):
        pairs = []
        for sparsity, paths in tickets.items():  # the masks of one sparsity are in memory, one byte per weight
            told = {"sparsity": str(parse_sparsity(sparsity)), **{key: cell[key] for key in ("seed",) if key in cell}}
            lineage.check(output, told, [Path(path) for path in paths.values()])
            masks = {variant: artifacts.load_ticket_mask(Path(path))[0] for variant, path in paths.items()}
            pairs += [
                {"variant_a": a, "variant_b": b, "sparsity": str(parse_sparsity(sparsity)), **_compared(mask_a, mask_b)}
                for (a, mask_a), (b, mask_b) in itertools.combinations(masks.items(), 2)
            ]
        files.write_json(output, {**cell, "pairs": pairs})


def _compared(a: Mask, b: Mask) -> dict[str, Any]:
    layers = overlap_by_layer(a, b)
    by_layer = [{"layer": name, **_similarity(layer)} for name, layer in layers.items()]
    return {**_similarity(sum(layers.values(), Overlap())), "layers": by_layer}


def _similarity(overlap: Overlap) -> Mapping[str, float]:
    values = {name: round(getattr(overlap, name), 6) for name in ("cosine", "jaccard", "hamming")}
    return {**asdict(overlap), **values}
