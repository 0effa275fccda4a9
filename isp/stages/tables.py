"""Tables for people (Markdown, text) and for programs (CSV): scores, scores beside costs, similarity of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import files
from isp.reporting import tables as made
from isp.stages._options import Layers, Metrics, Rounds, Similarity

VERSION = 4


def tables(
    metrics: Metrics,
    timings: Annotated[Path, typer.Option(help="timings.csv of a study, from `isp collect`.")],
    rounds: Rounds,
    layers: Layers,
    similarity: Similarity,
    output: Annotated[
        Path, typer.Option(help="Folder to write {scores,costs,spending,similarity}.{csv,md} and costs.txt to.")
    ],
) -> None:
    """Write the tables of a study: mean and deviation over seeds."""
    found, took, events, by_layer, pairs = (
        files.read_csv(path, "collect") for path in (metrics, timings, rounds, layers, similarity)
    )
    scores, costs, warning = made.scores(found), made.costs(found, took, events), made.collapse(by_layer)
    written = {
        "scores.md": made.markdown(scores, made.SCORES_LEGEND, warning),
        "costs.md": made.markdown(costs, made.COSTS_LEGEND, warning),
        "costs.txt": made.text(costs, made.COSTS_LEGEND, warning),
        "spending.md": made.markdown(made.spending(found, took), made.SPENDING_LEGEND),
        "similarity.md": made.markdown(made.similarity(pairs), made.SIMILARITY_LEGEND if pairs else made.NO_PAIRS),
    }
    files.ready(*(output / name for name in ("scores.csv", "costs.csv", "spending.csv", "similarity.csv", *written)))
    files.write_csv(output / "scores.csv", made.scores_csv(found), made.SCORES)
    files.write_csv(output / "costs.csv", made.costs_csv(found, took, events), made.COSTS)
    files.write_csv(output / "spending.csv", made.spending_csv(found, took), made.SPENDING)
    files.write_csv(output / "similarity.csv", made.similarity_csv(pairs), made.SIMILARITY)
    for name, text in written.items():
        files.write_bytes(output / name, text.encode())
