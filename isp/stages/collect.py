"""Collect the records of a study's tickets and the comparisons of their masks into CSV files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from isp import files, lineage
from isp.errors import ArtifactError, IspError, remake, shown
from isp.parsing import load_yaml
from isp.reporting import collect as collecting
from isp.shapes import Comparison, Record

VERSION = 3
NAMES = ("metrics", "timings", "rounds", "layers", "agreement", "similarity", "similarity_layers")
"""Names of the CSV files."""


class Blocks(list[dict[str, Any]]):
    """Blocks of cells: {backbone, tasks, seeds, variants: {name: [sparsities]}}.

    It is a class of its own because typer treats a plain list as a repeated option.
    """


def blocks(text: str) -> Blocks:
    """Parse blocks from YAML text.

    Raises:
        IspError: The text is not a list of blocks.
    """
    try:
        content = load_yaml(text)
        if all(block.keys() == {"backbone", "tasks", "seeds", "variants"} for block in content):
            return Blocks(content)
    except (yaml.YAMLError, AttributeError, TypeError):
        pass
    raise IspError(
        f"--cells {shown(text)} is not a list of {{backbone, tasks, seeds, variants: {{name: [sparsities]}}}}"
    )


def collect(
    runs: Annotated[Path, typer.Option(help="Folder of the study's runs; records of other cells in it are ignored.")],
    cells: Annotated[Blocks, typer.Option(parser=blocks, metavar="YAML", help="The cells, as blocks, in row order.")],
    output: Annotated[Path, typer.Option(help=f"Folder to write {', '.join(f'{name}.csv' for name in NAMES)} to.")],
    similarity: Annotated[
        list[Path] | None, typer.Option(help="Comparison from `isp compare_masks`; repeat for each run of the study.")
    ] = None,
) -> None:
    """Read the record of every cell, and write one row per ticket, round, layer or pair of masks.

    All files except timings.csv are the same in every run; timings.csv holds measured times and memory.
    """
    records = [
        _read(runs / block["backbone"] / task / f"seed{seed}" / variant / sparsity / "metrics.json", "evaluate", Record)
        for block in cells
        for task in block["tasks"]
        for seed in block["seeds"]
        for variant, sparsities in block["variants"].items()
        for sparsity in sparsities
    ]
    if silent := sum("ticket" not in record for record in records):
        print(f"accepted {silent} of {len(records)} records from a version of isp that did not record which ticket "
              f"was scored", file=sys.stderr, flush=True)  # fmt: skip
    comparisons = [_read(path, "compare_masks", Comparison) for path in similarity or []]
    for path, comparison in zip(similarity or [], comparisons, strict=True):
        _check_layers(path, comparison, records)
    files.ready(*(output / f"{name}.csv" for name in NAMES))
    for name, rows, columns in (
        ("metrics", collecting.metrics(records), collecting.METRICS),
        ("timings", collecting.timings(records), collecting.TIMINGS),
        ("rounds", collecting.rounds(records), collecting.ROUNDS),
        ("layers", collecting.layers(records), collecting.LAYERS),
        ("agreement", collecting.agreement(records), collecting.AGREEMENT),
        ("similarity", collecting.similarity(comparisons), collecting.SIMILARITY),
        ("similarity_layers", collecting.similarity_layers(comparisons, records), collecting.SIMILARITY_LAYERS),
    ):
        files.write_csv(output / f"{name}.csv", rows, columns)


def _check_layers(path: Path, comparison: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Refuse a comparison whose layers are not those of the records of its backbone and task."""
    place = comparison["backbone"], comparison["task"]
    record = next((each for each in records if (each["backbone"], each["task"]) == place), None)
    known = {layer["layer"] for layer in record["layers"]} if record else set()
    for pair in comparison["pairs"]:
        for layer in pair["layers"]:
            if layer["layer"] not in known:
                raise ArtifactError(
                    f"{path}: compares layer {shown(layer['layer'])}, which no record of {' on '.join(place)} has; "
                    f"{remake('compare_masks')}"
                )


def _read(path: Path, made_by: str, shape: Any) -> dict[str, Any]:
    """Read a record, and compare it with the cell in its path and with the ticket that now exists.

    Raises:
        ArtifactError: The record belongs to another cell or scores another ticket. The message names both.
    """
    record: dict[str, Any] = files.read_json(path, made_by, shape)
    for key, value in lineage.cell(path).items():
        if record.get(key) != value:
            raise ArtifactError(
                f"{path}: must be a record of {key} {value!r}, got {shown(record.get(key))}; {remake(made_by)}"
            )
    ticket = record.get("ticket")
    if isinstance(ticket, dict) and ticket.get("content"):
        header = lineage.read_header(Path(str(ticket.get("file"))))
        if header is not None and header.get("content", ticket["content"]) != ticket["content"]:
            raise ArtifactError(f"{path}: scores an earlier version of {ticket['file']}; {remake(made_by)}")
    return record
