"""Write tables to read (Markdown, text, LaTeX) and to process (CSV): scores, costs, masks, statistics, the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import files
from isp.errors import ConfigError, unknown
from isp.reporting import paper, tabular
from isp.reporting import statistics as s
from isp.reporting import tables as made
from isp.reporting.collected import read, stream
from isp.stages._options import Layers, Metrics, Rounds, Similarity

VERSION = 10


def tables(
    metrics: Metrics,
    timings: Annotated[Path, typer.Option(help="timings.csv of a study, from `isp collect`.")],
    rounds: Rounds,
    layers: Layers,
    similarity: Similarity,
    reference: Annotated[str, typer.Option(help="Variant with which the statistics compare the others.")],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder for {scores,costs,spending,similarity,statistics,paper}.{csv,md}, costs.txt and paper.tex."
        ),
    ],
) -> None:
    """Write the tables of a study: mean and deviation over seeds, confidence statistics, and the paper's layout."""
    found, took, events = read(metrics, "metrics"), read(timings, "timings"), read(rounds, "rounds")
    pairs, by_layer = read(similarity, "similarity"), stream(layers, "layers")
    if found and reference not in (variants := tabular.distinct(found, "variant")):
        raise ConfigError(f"--reference: {unknown('variant', reference, variants)}")
    scores, costs, warning = made.scores(found), made.costs(found, took, events), made.collapse(by_layer)
    legends = [legend.format(reference=reference) for legend in (s.RUNS_LEGEND, s.CELLS_LEGEND)]
    note = tabular.CHOSEN_NOTE if tabular.chosen(found) else ""
    texts = {
        "scores.md": made.markdown(scores, made.SCORES_LEGEND, note, warning),
        "costs.md": made.markdown(costs, made.COSTS_LEGEND, note, warning),
        "costs.txt": made.text(costs, made.COSTS_LEGEND, note, warning),
        "spending.md": made.markdown(made.spending(found, took), made.SPENDING_LEGEND),
        "similarity.md": made.markdown(made.similarity(pairs), made.SIMILARITY_LEGEND if pairs else made.NO_PAIRS),
        "statistics.md": "\n".join(
            made.markdown(tables, legend, note)
            for tables, legend, note in (
                (s.runs(found, reference), legends[0], note),
                (s.cells(found, reference), legends[1], ""),
            )
        ),
        "paper.md": paper.markdown(found),
        "paper.tex": paper.latex(found),
    }
    numbers: dict[str, tuple[Sequence[Mapping[str, Any]], Sequence[str]]] = {
        "scores.csv": (made.scores_csv(found), made.SCORES),
        "costs.csv": (made.costs_csv(found, took, events), made.COSTS),
        "spending.csv": (made.spending_csv(found, took), made.SPENDING),
        "similarity.csv": (made.similarity_csv(pairs), made.SIMILARITY),
        "statistics.csv": ([*s.runs_csv(found, reference), *s.cells_csv(found, reference)], s.COLUMNS),
        "paper.csv": (paper.csv_rows(found), paper.COLUMNS),
    }
    files.ready(*(output / name for name in (*numbers, *texts)))
    for name, (rows, columns) in numbers.items():
        files.write_csv(output / name, rows, columns)
    for name, text in texts.items():
        files.write_bytes(output / name, text.encode())
