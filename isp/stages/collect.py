"""Gather the records of a study's tickets into its tables of figures: metrics, timings, rounds, layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from isp import files
from isp.errors import IspError
from isp.reporting import collect as rows

VERSION = 1


class Blocks(list[dict[str, Any]]):
    """Blocks of cells: {backbone, tasks, seeds, variants: {name: [sparsities]}}. A class, for typer repeats lists."""


def blocks(text: str) -> Blocks:
    """Blocks from YAML text.

    Raises:
        IspError: not a list of blocks.
    """
    try:
        found = yaml.safe_load(text)
        if all(block.keys() == {"backbone", "tasks", "seeds", "variants"} for block in found):
            return Blocks(found)
    except (yaml.YAMLError, AttributeError, TypeError):
        pass
    raise IspError(f"--cells {text!r}: not a list of {{backbone, tasks, seeds, variants: {{name: [sparsities]}}}}")


def collect(
    runs: Annotated[Path, typer.Option(help="Folder of the study's runs; records of other cells in it are left out.")],
    cells: Annotated[
        Blocks, typer.Option(parser=blocks, metavar="YAML", help="The cells, as blocks, in the order of the rows.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write metrics.csv, timings.csv, rounds.csv, layers.csv to.")],
) -> None:
    """Read the record of every cell and write one row a ticket, a round or a layer.

    metrics.csv, rounds.csv and layers.csv hold only what is the same in every run; timings.csv what was measured.
    """
    records = [
        files.read_json(
            runs / block["backbone"] / task / f"seed{seed}" / variant / sparsity / "metrics.json", "evaluate"
        )
        for block in cells
        for task in block["tasks"]
        for seed in block["seeds"]
        for variant, sparsities in block["variants"].items()
        for sparsity in sparsities
    ]
    files.ready(*(output / f"{name}.csv" for name in ("metrics", "timings", "rounds", "layers")))
    for name, found, columns in (
        ("metrics", rows.metrics(records), rows.METRICS),
        ("timings", rows.timings(records), rows.TIMINGS),
        ("rounds", rows.rounds(records), rows.ROUNDS),
        ("layers", rows.layers(records), rows.LAYERS),
    ):
        files.write_csv(output / f"{name}.csv", found, columns)
