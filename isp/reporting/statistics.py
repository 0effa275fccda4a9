"""How sure a study's scores are: intervals over seeds, paired differences to one variant, ranks over tasks.

`cells_csv` and `runs_csv` give the numbers, `cells` and `runs` tables for people. All rows are those of metrics.csv.
Intervals and p values are Student's t; p values are of each comparison by itself, not corrected for their number.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from math import sqrt
from typing import Any, Literal, TypeVar

from scipy.special import stdtr, stdtrit  # a third of the time that scipy.stats takes to import

from isp.reporting import tabular
from isp.reporting.tables import Table, mean_and_deviation, signed, title
from isp.reporting.tabular import Row

Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")
LEVEL = 0.95
"""Of the intervals."""

_DIFFERENCE = ("reference", "pairs", "difference", "difference_sd", "difference_low", "difference_high", "p")
_OF = ("of", "part", "task", "backbone", "variant", "method", "sparsity", "metric")
COLUMNS = (*_OF, "n", "mean", "sd", "low", "high", "to_dense", *_DIFFERENCE, "mean_rank", "ranked_cells")
"""Columns of `cells_csv` and `runs_csv`; of: "cell" or "runs", for which what does not apply is empty.

mean_rank: 1 is best, over the `ranked_cells` cells that all ranked variants have; both empty for the others.
"""

RUNS_LEGEND = (
    "Over all runs: a run is a backbone, task and seed, its value a mean over the sparsities that both variants have. "
    "difference: of the variant to {reference}, in points, mean over runs with its 95 % interval (Student's t) and p "
    "(paired t test). Each row is over the runs that its variant shares with {reference}: rows over different runs are "
    "not to be held against each other. Points are those of each task's own metric, pooled: one of accuracy counts as "
    "much as one of Matthews correlation. Runs of one task are not independent, so the intervals are lower bounds of "
    "the uncertainty. rank: by mean score over seeds, mean over cells (backbone, task, sparsity); 1 is best, ties "
    "averaged. cells: how many those are. All that are ranked have all of these cells; they are chosen for the most "
    "comparisons with {reference}. The others have no rank."
)
CELLS_LEGEND = (
    "Test scores in percent, mean ± standard deviation over n seeds, with the 95 % interval of the mean (Student's t). "
    "to dense: difference to the dense model. pairs: seeds that the variant and {reference} share; difference: between "
    "the two over those, its 95 % interval and p (paired t test). One seed has no interval, nor have values that are "
    "all equal, which show no spread to judge by. p values are of each comparison by itself: of twenty without any "
    "difference, one is below 0.05 by chance. The csv has the same for validation scores."
)
_Cell = TypeVar("_Cell")


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean (Student's t); None for one value and for values that are all equal."""
    error = _standard_error(values)
    if error is None:
        return None
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * error
    mean = statistics.fmean(values)
    return mean - half, mean + half


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of one further value (Student's t); None as `interval`.

    It is mean ± t(0.975, n - 1) sd sqrt(1 + 1/n), that is sqrt(n + 1) times as wide as the interval of the mean.
    """
    own = interval(values)
    if own is None:
        return None
    mean = statistics.fmean(values)
    half = (own[1] - mean) * sqrt(len(values) + 1)
    return mean - half, mean + half


def p_value(differences: Sequence[float]) -> float | None:
    """Of the paired t test, two-sided: how likely such a mean difference is if there is none; None as `interval`."""
    error = _standard_error(differences)
    if error is None:
        return None
    return 2 * float(stdtr(len(differences) - 1, -abs(statistics.fmean(differences)) / error))


def ranks(scores: Sequence[float]) -> list[float]:
    """The rank of each score, 1 for the highest; equal ones share the mean of their ranks."""
    return [
        1 + sum(other > score for other in scores) + (sum(other == score for other in scores) - 1) / 2
        for score in scores
    ]


def largest_block(cells: Mapping[str, Collection[_Cell]], reference: str) -> tuple[list[str], set[_Cell]]:
    """The variants to rank, and the cells that all of them have: those with the most comparisons to the reference.

    That is, other variants times cells. Were all variants ranked, one on few cells would leave hardly any that all
    have. Of equal blocks the one with more cells is taken, then the first.

    Args:
        cells: of each variant.
        reference: one of them, which is in every block.
    """
    blocks = []
    for own in cells.values():
        shared = set(own) & set(cells[reference])
        blocks.append(([variant for variant, theirs in cells.items() if shared <= set(theirs)], shared))
    return max(blocks, key=lambda block: ((len(block[0]) - 1) * len(block[1]), len(block[1])), default=([], set()))


def cells_csv(metrics: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """A row for each part, task, backbone, variant and sparsity with the columns `COLUMNS`."""
    found, tickets = [], tabular.tickets(metrics)
    dense_of = {names: tabular.dense(rows) for names, rows in tabular.group(metrics, *tabular.CELL).items()}
    for part in PARTS:
        for (task, backbone, variant, sparsity), rows in tickets.items():
            dense = dense_of[task, backbone]
            values = list(_by_seed(rows, part).values())
            named = {column: tabular.cell(rows[0], column) for column in _OF[2:]}
            to_dense = _differences(rows, tickets.get((task, backbone, dense or "", "0.0000"), []), part)
            row: dict[str, Any] = {"of": "cell", "part": part} | named | {"n": len(values)}
            row |= _summary(values) | {"to_dense": _mean(to_dense) if variant != dense else ""}
            against = tickets.get((task, backbone, reference, sparsity), [])
            pairs = _differences(rows, against, part) if variant != reference else []
            found.append(row | _compared(pairs, reference) | {"mean_rank": "", "ranked_cells": ""})
    return found


def runs_csv(metrics: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """A row for each part and each variant that shares cells with the reference, with the columns `COLUMNS`."""
    methods = {tabular.cell(row, "variant"): tabular.cell(row, "method") for row in metrics}
    found = []
    for part in PARTS:
        differences = {variant: _over_runs(metrics, variant, reference, part) for variant in methods}
        compared = [variant for variant, values in differences.items() if values]
        ranked, cells = _mean_ranks(metrics, compared, reference, part)
        for variant in compared:
            values = differences[variant] if variant != reference else []
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            row |= {"of": "runs", "part": part, "variant": variant, "method": methods[variant]}
            row |= _compared(values, reference) | {"mean_rank": _rounded(ranked.get(variant))}
            row["ranked_cells"] = cells if variant in ranked else ""
            found.append(row)
    return found


def runs(metrics: Sequence[Row], reference: str) -> list[Table]:
    """For validation and test, a row a variant: its difference to the reference over all runs, and its mean rank."""
    header = ["runs", f"difference to {reference}", "95 % interval", "p", "rank", "cells"]
    tables: dict[str, Table] = {}
    chosen = {variant for (variant,), rows in tabular.group(metrics, "variant").items() if tabular.chosen(rows)}
    for row in runs_csv(metrics, reference):
        own = tables.setdefault(row["part"], ([f"all runs, {row['part']}", *header], []))
        rank = f"{row['mean_rank']:.2f}" if row["mean_rank"] != "" else ""
        mark = tabular.CHOSEN * (row["part"] == "validation" and row["variant"] in chosen)
        own[1].append([row["variant"] + mark, *_compared_texts(row), rank, str(row["ranked_cells"])])
    return list(tables.values())


def cells(metrics: Sequence[Row], reference: str) -> list[Table]:
    """For each task and backbone, a row a variant and sparsity: test score, interval, difference to the reference."""
    header = ["sparsity", "n", "test", "95 % interval", "to dense"]
    header += ["pairs", f"difference to {reference}", "95 % interval", "p"]
    tables: dict[tuple[str, str], Table] = {}
    tickets = tabular.tickets(metrics)
    for row in cells_csv(metrics, reference):
        if row["part"] == "test":
            names = row["task"], row["backbone"]
            values = list(_by_seed(tickets[(*names, row["variant"], row["sparsity"])], "test").values())
            to_dense = signed(row["to_dense"]) if row["to_dense"] != "" else ""
            line = [row["variant"], f"{float(row['sparsity']):g}", str(row["n"]), mean_and_deviation(values)]
            line += [_range(row, ""), to_dense, *_compared_texts(row)]
            tables.setdefault(names, ([title(names), *header], []))[1].append(line)
    return list(tables.values())


def _standard_error(values: Sequence[float]) -> float | None:
    """None where there is no spread to judge by; what is left of equal values by rounding is no spread."""
    spread = tabular.deviation(values)
    return spread / sqrt(len(values)) if spread is not None and spread > tabular.ROUNDING else None


def _by_seed(rows: Sequence[Row], part: Part) -> dict[str, float]:
    return {tabular.cell(row, "seed"): value for row in rows for value in tabular.numbers([row], part)}


def _differences(rows: Sequence[Row], others: Sequence[Row], part: Part) -> list[float]:
    """Scores of a ticket minus those of another one, over the seeds that both have."""
    own, other = _by_seed(rows, part), _by_seed(others, part)
    return [value - other[seed] for seed, value in own.items() if seed in other]


def _over_runs(metrics: Sequence[Row], variant: str, reference: str, part: Part) -> list[float]:
    """Difference of a variant to the reference in each run, a mean over the sparsities that both have there."""
    found = []
    for rows in tabular.group(metrics, "backbone", "task", "seed").values():
        own, other = (
            {
                tabular.cell(row, "sparsity"): value
                for row in rows
                if tabular.cell(row, "variant") == name
                for value in tabular.numbers([row], part)
            }
            for name in (variant, reference)
        )
        shared = [value - other[sparsity] for sparsity, value in own.items() if sparsity in other]
        if shared:
            found.append(statistics.fmean(shared))
    return found


def _mean_ranks(
    metrics: Sequence[Row], variants: Sequence[str], reference: str, part: Part
) -> tuple[dict[str, float], int]:
    """The mean rank of each variant of the largest block over its cells, and how many those are."""
    scores: dict[str, dict[tuple[str, ...], float]] = {variant: {} for variant in variants}
    for (*place, variant), rows in tabular.group(metrics, *tabular.CELL, "sparsity", "variant").items():
        values = tabular.numbers(rows, part)
        if values and variant in scores:
            scores[variant][tuple(place)] = statistics.fmean(values)
    ranked, shared = largest_block({variant: own.keys() for variant, own in scores.items()}, reference)
    by_cell = [ranks([scores[variant][cell] for variant in ranked]) for cell in shared]
    return dict(zip(ranked, map(statistics.fmean, zip(*by_cell, strict=True)), strict=True)), len(shared)


def _summary(values: Sequence[float]) -> dict[str, Any]:
    low, high = interval(values) or (None, None)
    return {
        "mean": _mean(values),
        "sd": _rounded(tabular.deviation(values)),
        "low": _rounded(low),
        "high": _rounded(high),
    }


def _compared(pairs: Sequence[float], reference: str) -> dict[str, Any]:
    """The columns of a difference; empty for the reference itself and for what shares nothing with it."""
    if not pairs:
        return dict.fromkeys(_DIFFERENCE, "")
    names = ("difference", "difference_sd", "difference_low", "difference_high")
    p = p_value(pairs)
    return (
        {"reference": reference, "pairs": len(pairs)}
        | dict(zip(names, _summary(pairs).values(), strict=True))
        | {"p": "" if p is None else float(f"{p:.3g}")}
    )


def _compared_texts(row: dict[str, Any]) -> list[str]:
    if row["pairs"] == "":
        return [""] * 4
    p = "" if row["p"] == "" else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    return [str(row["pairs"]), signed(row["difference"]), _range(row, "difference_"), p]


def _range(row: dict[str, Any], of: str) -> str:
    """An interval as text, or why there is none."""
    if row[f"{of}low"] != "":
        ends = (row[f"{of}low"], row[f"{of}high"])
        return " to ".join(map(signed, ends)) if of else f"{ends[0]:.2f} to {ends[1]:.2f}"
    return "one seed" if row["pairs" if of else "n"] == 1 else "all equal"


def _mean(values: Sequence[float]) -> float | str:
    return _rounded(statistics.fmean(values)) if values else ""


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)
