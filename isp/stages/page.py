"""Put a study on one page: verdict, figures, tables, settings and provenance, in an HTML file that needs no other."""

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

VERSION = 3


def page(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Files of the study: metrics.csv, and what there is of study.json, other collected csv files, "
            "tables/*.{csv,md}, figures/*.{png,csv,pdf}.",
            show_default=False,
        ),
    ],
    output: Output,
    captions: Annotated[
        dict[str, Any] | None,
        typer.Option(
            parser=mapping, metavar="YAML", help="Of tables by name, and under `figures` that of all figures."
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="The variant that the verdict compares with others; empty: none.", show_default=False)
    ] = "",
) -> None:
    """Write the page of a study; it links what lies beside it."""
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
                raise ConfigError(f"{path}: not a file of a page; allowed are .json, .csv, .png, .md, .txt, .pdf, .tex")
        links.append(Path(os.path.relpath(path, output.parent)).as_posix())
    if metrics is None:
        raise ConfigError(f"no metrics.csv among the inputs ({', '.join(map(str, inputs))}); a page needs it")
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
