"""Tables for people (Markdown, text) and for programs (CSV): scores by sparsity, and scores beside costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isp import files
from isp.reporting import tables as made
from isp.stages._options import Metrics, Rounds

VERSION = 1


def tables(
    metrics: Metrics,
    timings: Annotated[Path, typer.Option(help="timings.csv of a study, from `isp collect`.")],
    rounds: Rounds,
    output: Annotated[Path, typer.Option(help="Folder to write scores.{csv,md} and costs.{csv,md,txt} to.")],
) -> None:
    """Write the tables of a study: mean and deviation over seeds."""
    found, took, events = (files.read_csv(path, "collect") for path in (metrics, timings, rounds))
    scores, costs = made.scores(found), made.costs(found, took, events)
    files.ready(*(output / name for name in ("scores.csv", "scores.md", "costs.csv", "costs.md", "costs.txt")))
    files.write_csv(output / "scores.csv", made.scores_csv(found), made.SCORES)
    files.write_csv(output / "costs.csv", made.costs_csv(found, took, events), made.COSTS)
    files.write_bytes(output / "scores.md", made.markdown(scores, made.SCORES_LEGEND).encode())
    files.write_bytes(output / "costs.md", made.markdown(costs, made.COSTS_LEGEND).encode())
    files.write_bytes(output / "costs.txt", f"{made.text(costs)}\n{made.COSTS_LEGEND}\n".encode())
