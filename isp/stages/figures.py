"""Draw a figure of a study as PNG and PDF, and write its data as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from isp import files
from isp.errors import ConfigError, unknown
from isp.reporting import FIGURES
from isp.reporting import figures as scores
from isp.reporting import mask_figures as masks
from isp.reporting import paper_figures as paper
from isp.reporting.collected import read
from isp.reporting.drawing import Drawing, save
from isp.reporting.tabular import Row
from isp.stages._options import Layers, Metrics, Rounds, Similarity

VERSION = 7


def figures(
    figure: Annotated[str, typer.Option(help=f"Name of the figure: one of {', '.join(FIGURES)}.")],
    metrics: Metrics,
    rounds: Rounds,
    layers: Layers,
    agreement: Annotated[Path, typer.Option(help="agreement.csv of a study, from `isp collect`.")],
    similarity: Similarity,
    similarity_layers: Annotated[Path, typer.Option(help="similarity_layers.csv of a study, from `isp collect`.")],
    output: Annotated[Path, typer.Option(help="Folder to write FIGURE.{png,pdf,csv} to.")],
) -> None:
    """Draw one figure."""
    if figure not in FIGURES:
        raise ConfigError(unknown("figure", figure, FIGURES))

    def scores_of() -> list[Row]:
        return read(metrics, "metrics")

    draw: dict[str, tuple[Callable[[], Drawing], Sequence[str]]] = {
        "score_by_sparsity": (lambda: scores.score_by_sparsity(scores_of()), scores.SCORE_BY_SPARSITY),
        "score_by_cost": (lambda: scores.score_by_cost(scores_of()), scores.SCORE_BY_COST),
        "denoisers": (
            lambda: scores.denoisers(read(rounds, "rounds"), scores_of()),
            scores.DENOISERS,
        ),
        "agreement_by_layer": (
            lambda: masks.agreement_by_layer(read(agreement, "agreement")),
            masks.AGREEMENT_BY_LAYER,
        ),
        "layer_sparsity": (lambda: masks.layer_sparsity(read(layers, "layers")), masks.LAYER_SPARSITY),
        "mask_similarity": (lambda: masks.mask_similarity(read(similarity, "similarity")), masks.MASK_SIMILARITY),
        "mask_similarity_by_sparsity": (
            lambda: masks.mask_similarity_by_sparsity(read(similarity, "similarity"), scores_of()),
            masks.MASK_SIMILARITY_BY_SPARSITY,
        ),
        "mask_similarity_by_layer": (
            lambda: masks.mask_similarity_by_layer(read(similarity_layers, "similarity_layers"), scores_of()),
            masks.MASK_SIMILARITY_BY_LAYER,
        ),
        "paper_figure_1": (lambda: paper.paper_figure_1(scores_of()), paper.PAPER_FIGURE_1),
        "paper_figure_3": (
            lambda: paper.paper_figure_3(scores_of(), read(similarity, "similarity")),
            paper.PAPER_FIGURE_3,
        ),
    }
    make, columns = draw[figure]
    picture, rows = make()
    files.ready(*(output / f"{figure}.{suffix}" for suffix in ("png", "pdf", "csv")))
    save(picture, output / figure)
    files.write_csv(output / f"{figure}.csv", rows, columns)
