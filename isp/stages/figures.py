"""Draw a figure of a study: as PNG, as PDF, and what it shows as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from isp import files
from isp.errors import ConfigError, unknown
from isp.reporting import FIGURES
from isp.reporting import figures as drawn
from isp.reporting.rows import distinct
from isp.stages._options import Metrics, Rounds

VERSION = 1


def figures(
    figure: Annotated[str, typer.Option(help=f"One of {', '.join(FIGURES)}.")],
    metrics: Metrics,
    rounds: Rounds,
    layers: Annotated[Path, typer.Option(help="layers.csv of a study, from `isp collect`.")],
    output: Annotated[Path, typer.Option(help="Folder to write FIGURE.{png,pdf,csv} to.")],
) -> None:
    """Draw one figure."""
    if figure not in FIGURES:
        raise ConfigError(unknown("figure", figure, FIGURES))
    found, events, by_layer = (files.read_csv(path, "collect") for path in (metrics, rounds, layers))
    variants = distinct(found, "variant")
    draw: dict[str, tuple[Callable[[], drawn.Drawing], Sequence[str]]] = {
        "score_by_sparsity": (lambda: drawn.score_by_sparsity(found), drawn.SCORE_BY_SPARSITY),
        "score_by_cost": (lambda: drawn.score_by_cost(found), drawn.SCORE_BY_COST),
        "denoisers": (lambda: drawn.denoisers(events, variants), drawn.DENOISERS),
        "layer_sparsity": (lambda: drawn.layer_sparsity(by_layer), drawn.LAYER_SPARSITY),
    }
    make, columns = draw[figure]
    picture, rows = make()
    files.ready(*(output / f"{figure}.{suffix}" for suffix in ("png", "pdf", "csv")))
    drawn.save(picture, output / figure)
    files.write_csv(output / f"{figure}.csv", rows, columns)
