"""Render a study as one self-contained HTML page: verdict, figures, tables, settings and provenance."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import files
from isp.errors import ArtifactError, ConfigError
from isp.reporting import alt
from isp.reporting import page as made
from isp.reporting.collected import read, stream
from isp.reporting.tabular import Row
from isp.shapes import Description
from isp.stages._options import Output, mapping

VERSION = 5


def page(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Files of the study: metrics.csv and, if available, study.json, the other collected CSV files, "
            "tables/*.{csv,md} and figures/*.{png,csv,pdf}.",
            show_default=False,
        ),
    ],
    output: Output,
    captions: Annotated[
        dict[str, Any] | None,
        typer.Option(
            parser=mapping, metavar="YAML", help="Captions of tables by name; `figures` is the caption of all figures."
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Variant that the verdict compares with the others. Default: none.", show_default=False)
    ] = "",
) -> None:
    """Write the page of a study, with links to the files beside it."""
    study: Mapping[str, Any] = {}
    metrics: list[Row] | None = None
    layers: Iterable[Row] = ()
    tables: dict[str, list[Row]] = {}
    markdown: dict[str, str] = {}
    drawn: dict[str, list[Row]] = {}
    figures: dict[str, bytes] = {}
    links = []
    for path in inputs:
        match path.parent.name, path.suffix:
            case _, ".json":
                study = files.read_json(path, "describe", Description)
            case "tables", ".csv":
                tables[path.stem] = list(files.read_csv(path, "tables"))
            case "tables", ".md":
                markdown[path.stem] = _read(path).decode()
            case "figures", ".csv":
                drawn[path.stem] = list(files.read_csv(path, "figures", alt.columns(path.stem), alt.problem))
            case _, ".csv" if path.stem == "metrics":
                metrics = read(path, "metrics")
            case _, ".csv" if path.stem == "layers":
                layers = stream(path, "layers")
            case _, ".png":
                figures[path.stem] = _read(path)
            case _, (".csv" | ".md" | ".txt" | ".pdf" | ".tex"):
                pass  # only linked
            case _:
                raise ConfigError(f"{path}: a file of a page must be .json, .csv, .png, .md, .txt, .pdf or .tex")
        links.append(Path(os.path.relpath(path, output.parent)).as_posix())
    if metrics is None:
        raise ConfigError(f"the inputs of a page must include metrics.csv, got {', '.join(map(str, inputs))}")
    captions = captions or {}
    shown = {f"tables/{name}": made.caption_of(captions[name]) for name in tables if name in captions}
    shown |= {f"figures/{name}": made.caption_of(captions.get("figures", ""), figure=name) for name in figures}
    contents = made.Contents(
        metrics,
        study,
        layers,
        tables,
        markdown,
        figures,
        drawn,
        shown,
        links,
        reference,
    )
    files.ready(output)
    files.write_bytes(output, made.render(contents).encode())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); make it first") from None
