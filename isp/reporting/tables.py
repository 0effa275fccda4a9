"""The tables of a study from its collected rows: scores at a glance, and every ticket's scores beside its costs.

`scores` and `costs` give tables for people, `markdown` and `text` write them down; `scores_csv` and `costs_csv` give
the same for machines, means and deviations apart. All rows are as read from CSV files, every value text.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isp.reporting import rows as r
from isp.reporting.rows import Row

Table = tuple[list[str], list[list[str]]]
"""Header and body; the first cell of the header says what the table is of."""

SCORES = ("task", "backbone", "variant", "method", "sparsity", "metric", "seeds", "validation_mean", "validation_sd")
"""Columns of `scores_csv`."""
COSTS = (
    *(*SCORES, "test_mean", "test_sd", "finding_steps", "retraining_steps", "flops", "sparse_flops"),
    *("seconds_mean", "seconds_sd", "changed_least", "changed_most"),
)
"""Columns of `costs_csv`."""

SCORES_LEGEND = (
    "Validation scores in percent by sparsity, mean ± standard deviation over seeds. steps: optimizer steps, finding "
    "and retraining together, that the ticket of the row's highest sparsity took, mean over seeds."
)
COSTS_LEGEND = (
    "Scores in percent, mean ± standard deviation over seeds; all else is a mean over seeds. finding, retraining: "
    "optimizer steps before and after the mask was known. FLOP: executed, all in all; sparse FLOP: the same without "
    "masked weights (theoretical). seconds: measured, finding and retraining. changed: share of the kept weights that "
    "the denoisers changed, least and most of all rounds on the ticket's way (0 without look-aheads)."
)

_FINDING, _RETRAINING = "finding_steps", "retraining_steps"


def si(value: float) -> str:
    """A count with three digits and an SI prefix: 1.95e14 is "195 T"."""
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and sample standard deviation as text, "97.10 ± 0.32"; for one value without the latter, for none empty."""
    if not values:
        return ""
    spread = r.deviation(values)
    return f"{statistics.fmean(values):.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def scores(metrics: Sequence[Row]) -> list[Table]:
    """For each task and backbone, validation scores: a row a variant, a column a sparsity, and the total steps."""
    tables = []
    for names, rows in r.group(metrics, *r.CELL).items():
        columns = r.sparsities(rows)
        body = []
        for (variant,), own in r.group(rows, "variant").items():
            found = r.group(own, "sparsity")
            texts = [mean_and_deviation(r.numbers(found.get((column,), []), "validation")) for column in columns]
            sparsest = found[(r.sparsities(own)[-1],)]
            body.append([variant, *texts, f"{statistics.fmean(r.numbers(sparsest, _FINDING, _RETRAINING)):,.0f}"])
        tables.append(([_title(names), *(f"{float(column):g}" for column in columns), "steps"], body))
    return tables


def scores_csv(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each task, backbone, variant and sparsity with the columns `SCORES`."""
    return [_scores_of(rows) for rows in _tickets(metrics).values()]


def costs(metrics: Sequence[Row], timings: Sequence[Row], rounds: Sequence[Row]) -> list[Table]:
    """For each task and backbone, a row a variant and sparsity: its scores, what they cost, what denoisers changed."""
    names = ["sparsity", "seeds", "validation", "test", "finding", "retraining", "FLOP", "sparse FLOP", "seconds"]
    tables: dict[tuple[str, ...], Table] = {}
    seconds, runs = _seconds(timings), r.group(rounds, *r.CELL, "variant")
    for key, rows in _tickets(metrics).items():
        *title, variant, sparsity = key
        shares = _changed(runs, key)
        line = [
            variant,
            f"{float(sparsity):g}",
            str(len(rows)),
            mean_and_deviation(r.numbers(rows, "validation")),
            mean_and_deviation(r.numbers(rows, "test")),
            *(f"{statistics.fmean(r.numbers(rows, column)):,.0f}" for column in (_FINDING, _RETRAINING)),
            *(si(statistics.fmean(r.numbers(rows, *_flops(kind)))) for kind in ("flops", "sparse_flops")),
            f"{statistics.fmean(seconds[key]):,.0f}" if seconds.get(key) else "",
            f"{100 * min(shares):.1f}–{100 * max(shares):.1f} %" if shares else "",
        ]
        header = [_title(title), *names, "changed"]
        tables.setdefault(tuple(title), (header, []))[1].append(line)
    return list(tables.values())


def costs_csv(metrics: Sequence[Row], timings: Sequence[Row], rounds: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each task, backbone, variant and sparsity with the columns `COSTS`; changed as fractions."""
    seconds, runs = _seconds(timings), r.group(rounds, *r.CELL, "variant")
    found = []
    for key, rows in _tickets(metrics).items():
        shares = _changed(runs, key)
        means = {column: _mean(rows, column) for column in (_FINDING, _RETRAINING)}
        means |= {kind: _mean(rows, *_flops(kind)) for kind in ("flops", "sparse_flops")}
        least_and_most = {"changed_least": min(shares, default=""), "changed_most": max(shares, default="")}
        measured = r.summary("seconds", seconds.get(key, []), 2)
        tests = r.summary("test", r.numbers(rows, "test"))
        found.append(_scores_of(rows) | tests | means | measured | least_and_most)
    return found


def markdown(tables: Sequence[Table], legend: str = "") -> str:
    """The tables as Markdown, under them the legend."""
    parts = ["".join(map(_line, [header, ["---"] * len(header), *body])) for header, body in tables]
    return "\n".join([*parts, f"{legend}\n"] if legend else parts)


def text(tables: Sequence[Table]) -> str:
    """The tables aligned for a terminal; columns that are empty are left out."""
    parts = []
    for header, body in tables:
        shown = [index for index in range(len(header)) if any(line[index] for line in body)]
        table = [[line[index] for index in shown] for line in (header, *body)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table
        ]
        parts.append("\n".join(aligned) + "\n")
    return "\n".join(parts)


def _tickets(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by ticket but for the seed; variants stay together although the seeds take turns."""
    return {
        (*names, variant, sparsity): same
        for names, cell in r.group(rows, *r.CELL).items()
        for (variant,), own in r.group(cell, "variant").items()
        for (sparsity,), same in r.group(own, "sparsity").items()
    }


def _scores_of(rows: Sequence[Row]) -> dict[str, Any]:
    named = {column: r.cell(rows[0], column) for column in SCORES[:6]}
    return named | {"seeds": len(rows)} | r.summary("validation", r.numbers(rows, "validation"))


def _seconds(timings: Sequence[Row]) -> dict[tuple[str, ...], list[float]]:
    return {key: r.numbers(rows, "finding_seconds", "retraining_seconds") for key, rows in _tickets(timings).items()}


def _changed(runs: Mapping[tuple[str, ...], Sequence[Row]], ticket: tuple[str, ...]) -> list[float]:
    """Shares of kept weights that denoisers changed in any round on the way of a ticket, of all seeds."""
    *names, target = ticket
    ways = [r.chain(events, target) for events in r.group(runs.get(tuple(names), []), "seed").values()]
    return [share for way in ways for share in r.numbers(way, "changed")]


def _flops(kind: str) -> tuple[str, str]:
    return f"finding_{kind}", f"retraining_{kind}"


def _mean(rows: Sequence[Row], *columns: str) -> int | float:
    mean = statistics.fmean(r.numbers(rows, *columns))
    return int(mean) if mean.is_integer() else round(mean, 2)


def _title(names: Sequence[str]) -> str:
    return " on ".join(reversed(names))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
