"""Uncertainty of a study's scores: intervals over seeds, paired differences to one variant, ranks over tasks.

`cells_csv` and `runs_csv` give the numbers, `cells` and `runs` user-facing tables. All rows are those of metrics.csv.

Intervals and p values are Student's t, from three values on. Two values are shown themselves: their interval would be
18 times as wide as they are apart. p values are those of single comparisons, not corrected for their number.

Runs of one task share its data, so they are not independent observations of how methods compare on other tasks. A
comparison over tasks therefore takes one value per task, the mean over its runs, and the number of tasks as the sample
size: Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, section 3. In a study of
one task the seeds are the sample, and the interval is about that task only.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from math import inf, sqrt
from typing import Any, Literal, TypeVar

from scipy.special import nctdtrinc, stdtr, stdtrit  # a third of the time that scipy.stats takes to import

from isp.metrics import value_range
from isp.reporting import tabular
from isp.reporting.tables import Table, over_seeds, signed, title
from isp.reporting.tabular import Row

Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")
LEVEL = 0.95
"""Confidence level of the intervals."""
POWER = 0.8
"""Power of the smallest detectable difference."""

_SUMMARY = ("mean", "sd", "values", "low", "high")
_DIFFERENCE = (
    *("reference", "pairs", "tasks", "difference", "difference_sd", "difference_values"),
    *("difference_low", "difference_high", "p", "detectable"),
)
_OF = ("of", "part", "task", "backbone", "variant", "method", "sparsity", "metric")
COLUMNS = (*_OF, "n", *_SUMMARY, "to_dense", *_DIFFERENCE, "mean_rank", "ranked_cells")
"""Columns of `cells_csv` and `runs_csv`; of: "cell" or "runs"; columns that do not apply are empty.

values: scores of the seeds, separated by spaces; pairs: seeds, or runs, that the variant shares with the reference;
difference_values: the differences that the interval is of, one per seed, or per task where there are several tasks;
detectable: see `detectable_difference`; mean_rank: 1 is best, over the `ranked_cells` cells that all ranked variants
have; both empty for the others.
"""

DETECTABLE = (
    "detectable: the smallest true difference that such a comparison finds with 80 % power at the 5 % level: "
    "δ sd / √n, where sd is the deviation of the n paired differences and δ the noncentrality at which the two-sided "
    "paired t test has that power (5.65 for n = 3, 3.76 for n = 5); a smaller difference may well have been missed. "
    "Not determinable, and empty, with fewer than three differences."
)
RUNS_LEGEND = (
    "Over all runs: a run is a backbone, task and seed, its value a mean over the sparsities that both variants have. "
    "difference: of the variant to {reference}, in points. Runs of one task are not independent, so the sample is the "
    "tasks: the difference is the mean of the means of the tasks, with its 95 % interval (Student's t over tasks) and "
    "p (paired t test). Two tasks have no interval, and both of their means are shown. With one task the sample is its "
    "runs, and the interval is about that task only. " + DETECTABLE + " Each row is over the runs that its variant "
    "shares with {reference}: rows over different runs cannot be compared with each other. Points are those of each "
    "task's own metric, pooled: one of accuracy counts as much as one of Matthews correlation. rank: by mean score "
    "over seeds, mean over cells (backbone, task, sparsity); 1 is best, ties averaged. cells: number of these cells. "
    "All variants with a rank have all of these cells, which are chosen for the most comparisons with {reference}."
)
CELLS_LEGEND = (
    "Test scores in percent, mean ± standard deviation over n seeds, with the 95 % interval of the mean (Student's t, "
    "cut to the range of the metric). Two seeds have neither: both of their values are shown. to dense: difference to "
    "the dense model. pairs: seeds that the variant and {reference} share; difference: between the two over those, its "
    "95 % interval and p (paired t test). " + DETECTABLE + " Values that are all equal have no interval either, since "
    "they show no spread to judge by. p values are those of single comparisons: of twenty without any difference, one "
    "is below 0.05 by chance. The csv has the same for validation scores."
)
_CANDIDATES = 4096
"""Largest number of sets of cells that `largest_block` tries, apart from those of the variants."""
_Cell = TypeVar("_Cell")


def interval(values: Sequence[float], within: tuple[float, float] | None = None) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean (Student's t); None for fewer than three values or all-equal values.

    Args:
        values: Independent values.
        within: Range that the interval is cut to, such as that of a metric.
    """
    if len(values) < tabular.FEWEST:
        return None
    return _around(values, 1, within)


def prediction_interval(
    values: Sequence[float], within: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of one further value (Student's t); None for a single value or all-equal values.

    It is mean ± t(0.975, n - 1) sd sqrt(1 + 1/n), that is sqrt(n + 1) times as wide as the interval of the mean.
    """
    return _around(values, sqrt(len(values) + 1), within)


def p_value(differences: Sequence[float]) -> float | None:
    """Return the p value of the two-sided paired t test; None in the same cases as for `interval`."""
    error = _standard_error(differences)
    if error is None or len(differences) < tabular.FEWEST:
        return None
    return 2 * float(stdtr(len(differences) - 1, -abs(statistics.fmean(differences)) / error))


def detectable_difference(differences: Sequence[float]) -> float | None:
    """Return the smallest true mean difference that the two-sided paired t test finds with 80 % power at the 5 % level.

    It is δ sd / sqrt(n), with the sample's sd and the noncentrality δ for which P(T > t(0.975, n - 1)) = 0.8, where T
    has the noncentral t distribution with n - 1 degrees of freedom: Cohen 1988, "Statistical Power Analysis for the
    Behavioral Sciences", chapter 2. None in the same cases as for `interval`.
    """
    error = _standard_error(differences)
    if error is None or len(differences) < tabular.FEWEST:
        return None
    freedom = len(differences) - 1
    return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, (1 + LEVEL) / 2))) * error


def ranks(scores: Sequence[float]) -> list[float]:
    """Return the rank of each score, 1 for the highest; equal scores share the mean of their ranks."""
    return [
        1 + sum(other > score for other in scores) + (sum(other == score for other in scores) - 1) / 2
        for score in scores
    ]


def largest_block(cells: Mapping[str, Collection[_Cell]], reference: str) -> tuple[list[str], set[_Cell]]:
    """Return the variants to rank and the cells that all of them have, with the most comparisons to the reference.

    The number of comparisons is that of the other variants times that of the cells. If all variants were ranked, a
    variant with few cells would leave hardly any common ones. Of equal blocks, the one with more cells is used, then
    the first. Candidates are the cells of each variant and all their intersections, up to `_CANDIDATES`.

    Args:
        cells: Cells of each variant.
        reference: Variant that is in every block.
    """
    candidates: dict[frozenset[_Cell], None] = {}
    singles = dict.fromkeys(frozenset(own) & frozenset(cells[reference]) for own in cells.values())
    for own in singles:
        # the cells of a largest block are those that all of its variants have, so no other sets need to be tried
        new = [each for each in (own, *(own & other for other in candidates)) if each not in candidates]
        candidates |= dict.fromkeys(list(dict.fromkeys(new))[: max(_CANDIDATES - len(candidates), 0)])
    sets = {variant: set(own) for variant, own in cells.items()}
    blocks = [
        ([variant for variant, own in sets.items() if shared <= own], set(shared))
        for shared in singles | candidates  # the variants' own cells first, whatever the limit
    ]
    return max(blocks, key=lambda block: ((len(block[0]) - 1) * len(block[1]), len(block[1])), default=([], set()))


def cells_csv(metrics: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """Return one row per part, task, backbone, variant and sparsity with the columns `COLUMNS`."""
    found, tickets = [], tabular.tickets(metrics)
    dense_of = {names: tabular.dense(rows) for names, rows in tabular.group(metrics, *tabular.CELL).items()}
    for part in PARTS:
        for (task, backbone, variant, sparsity), rows in tickets.items():
            dense = dense_of[task, backbone]
            values = list(_by_seed(rows, part).values())
            named = {column: tabular.cell(rows[0], column) for column in _OF[2:]}
            to_dense = _differences(rows, tickets.get((task, backbone, dense or "", "0.0000"), []), part)
            limits = value_range(named["metric"])
            row: dict[str, Any] = {"of": "cell", "part": part} | named | {"n": len(values)}
            row |= _summary(values, limits) | {"to_dense": _mean(to_dense) if variant != dense else ""}
            against = tickets.get((task, backbone, reference, sparsity), [])
            pairs = _differences(rows, against, part) if variant != reference else []
            compared = _compared(pairs, len(pairs), reference, limits) | {"tasks": ""}
            found.append(row | compared | {"mean_rank": "", "ranked_cells": ""})
    return found


def runs_csv(metrics: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """Return one row per part and variant that shares cells with the reference, with the columns `COLUMNS`."""
    limits = widest_range(metrics)
    methods = {tabular.cell(row, "variant"): tabular.cell(row, "method") for row in metrics}
    lines = []
    for part in PARTS:
        differences = {variant: over_runs(metrics, variant, reference, part) for variant in methods}
        compared = [variant for variant, values in differences.items() if values]
        ranked, cells = _mean_ranks(metrics, compared, reference, part)
        for variant in compared:
            by_task = differences[variant] if variant != reference else {}
            sample = independent(by_task)
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            row |= {"of": "runs", "part": part, "variant": variant, "method": methods[variant]}
            row |= _compared(sample, sum(map(len, by_task.values())), reference, limits)
            row |= {"tasks": len(by_task) or "", "mean_rank": _rounded(ranked.get(variant))}
            row["ranked_cells"] = cells if variant in ranked else ""
            lines.append(row)
    return lines


def runs(metrics: Sequence[Row], reference: str) -> list[Table]:
    """Return tables for validation and test with one row per variant: difference over all runs, and mean rank."""
    header = ["runs", "tasks", f"difference to {reference}", "95 % interval", "p", "detectable", "rank", "cells"]
    tables: dict[str, Table] = {}
    chosen = {variant for (variant,), rows in tabular.group(metrics, "variant").items() if tabular.chosen(rows)}
    for row in runs_csv(metrics, reference):
        table_ = tables.setdefault(row["part"], ([f"all runs, {row['part']}", *header], []))
        rank = f"{row['mean_rank']:.2f}" if row["mean_rank"] != "" else ""
        mark = tabular.CHOSEN * (row["part"] == "validation" and row["variant"] in chosen)
        line = [
            *(row["variant"] + mark, str(row["pairs"]), str(row["tasks"])),
            *(*_compared_texts(row), rank, str(row["ranked_cells"])),
        ]
        table_[1].append(line)
    return list(tables.values())


def cells(metrics: Sequence[Row], reference: str) -> list[Table]:
    """Return a table per task and backbone, one row per variant and sparsity: score, difference to the reference."""
    header = ["sparsity", "n", "test", "95 % interval", "to dense"]
    header += ["pairs", f"difference to {reference}", "95 % interval", "p", "detectable"]
    tables: dict[tuple[str, str], Table] = {}
    tickets = tabular.tickets(metrics)
    for row in cells_csv(metrics, reference):
        if row["part"] == "test":
            names = row["task"], row["backbone"]
            values = list(_by_seed(tickets[(*names, row["variant"], row["sparsity"])], "test").values())
            to_dense = signed(row["to_dense"]) if row["to_dense"] != "" else ""
            line = [row["variant"], f"{float(row['sparsity']):g}", str(row["n"]), over_seeds(values)]
            line += [_range(row, ""), to_dense, str(row["pairs"]), *_compared_texts(row)]
            tables.setdefault(names, ([title(names), *header], []))[1].append(line)
    return list(tables.values())


def _standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None if all values are equal up to rounding."""
    around = statistics.stdev(values) if len(values) > 1 else 0.0
    return around / sqrt(len(values)) if around > tabular.ROUNDING else None


def _around(values: Sequence[float], factor: float, within: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the interval mean ± factor t(0.975, n - 1) sd / sqrt(n), cut to a range; None for equal values."""
    error = _standard_error(values)
    if error is None:
        return None
    mean, half = statistics.fmean(values), factor * float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * error
    least, most = within or (-inf, inf)
    return max(mean - half, least), min(mean + half, most)


def _by_seed(rows: Sequence[Row], part: Part) -> dict[str, float]:
    return {tabular.cell(row, "seed"): value for row in rows for value in tabular.numbers([row], part)}


def _differences(rows: Sequence[Row], others: Sequence[Row], part: Part) -> list[float]:
    """Subtract the scores of another ticket from those of a ticket, over the seeds that both have."""
    own, other = _by_seed(rows, part), _by_seed(others, part)
    return [value - other[seed] for seed, value in own.items() if seed in other]


def independent(by_task: Mapping[str, Sequence[float]]) -> list[float]:
    """Return a sample of independent values: the mean of each task; or for a single task, all of its runs."""
    if len(by_task) == 1:
        return list(*by_task.values())
    return [statistics.fmean(values) for values in by_task.values()]


def over_runs(metrics: Sequence[Row], variant: str, reference: str, part: Part) -> dict[str, list[float]]:
    """Return by task the difference of a variant to the reference in each run, a mean over their common sparsities."""
    differences: dict[str, list[float]] = {}
    for (_, task, _), rows in tabular.group(metrics, "backbone", "task", "seed").items():
        scores, other = (
            {
                tabular.cell(row, "sparsity"): value
                for row in rows
                if tabular.cell(row, "variant") == name
                for value in tabular.numbers([row], part)
            }
            for name in (variant, reference)
        )
        shared = [value - other[sparsity] for sparsity, value in scores.items() if sparsity in other]
        if shared:
            differences.setdefault(task, []).append(statistics.fmean(shared))
    return differences


def widest_range(metrics: Sequence[Row]) -> tuple[float, float]:
    """Return the smallest range that contains the ranges of all metrics of a study."""
    ranges = [value_range(metric) for metric in tabular.distinct(metrics, "metric")]
    return min((low for low, _ in ranges), default=0.0), max((high for _, high in ranges), default=0.0)


def _mean_ranks(
    metrics: Sequence[Row], variants: Sequence[str], reference: str, part: Part
) -> tuple[dict[str, float], int]:
    """Return the mean rank of each variant of the largest block over its cells, and the number of these cells."""
    scores: dict[str, dict[tuple[str, ...], float]] = {variant: {} for variant in variants}
    for (*place, variant), rows in tabular.group(metrics, *tabular.CELL, "sparsity", "variant").items():
        values = tabular.numbers(rows, part)
        if values and variant in scores:
            scores[variant][tuple(place)] = statistics.fmean(values)
    ranked, shared = largest_block({variant: own.keys() for variant, own in scores.items()}, reference)
    by_cell = [ranks([scores[variant][cell] for variant in ranked]) for cell in shared]
    return dict(zip(ranked, map(statistics.fmean, zip(*by_cell, strict=True)), strict=True)), len(shared)


def _summary(values: Sequence[float], within: tuple[float, float]) -> dict[str, Any]:
    """Return the values of the columns `_SUMMARY`."""
    low, high = interval(values, within) or (None, None)
    return {
        "mean": _mean(values),
        "sd": _rounded(tabular.deviation(values)),
        "values": tabular.joined(values),
        "low": _rounded(low),
        "high": _rounded(high),
    }


def _compared(sample: Sequence[float], pairs: int, reference: str, limits: tuple[float, float]) -> dict[str, Any]:
    """Return the columns of a difference; empty for the reference itself and for variants that share nothing with it.

    Args:
        sample: Independent differences.
        pairs: Number of differences that they are means of.
        reference: Variant that is subtracted.
        limits: Range of the scores.
    """
    if not sample:
        return dict.fromkeys(_DIFFERENCE, "")
    least, most = limits
    names = ("difference", *(f"difference_{name}" for name in _SUMMARY[1:]))
    p = p_value(sample)
    return (
        dict.fromkeys(_DIFFERENCE, "")
        | {"reference": reference, "pairs": pairs}
        | dict(zip(names, _summary(sample, (least - most, most - least)).values(), strict=True))
        | {"p": "" if p is None else float(f"{p:.3g}"), "detectable": _rounded(detectable_difference(sample))}
    )


def _compared_texts(row: dict[str, Any]) -> list[str]:
    """Format difference (for a sample of two, both values), interval, p and smallest detectable difference."""
    if row["pairs"] == "":
        return [""] * 4
    sample = tabular.split(row["difference_values"])
    p = "" if row["p"] == "" else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    difference = " / ".join(map(signed, sample)) if len(sample) == 2 else signed(row["difference"])
    return [difference, _range(row, "difference_"), p, f"{row['detectable']:.2f}" if row["detectable"] != "" else ""]


def _range(row: dict[str, Any], of: str) -> str:
    """Format an interval, or the reason why there is none."""
    if row[f"{of}low"] != "":
        ends = (row[f"{of}low"], row[f"{of}high"])
        return " to ".join(map(signed, ends)) if of else f"{ends[0]:.2f} to {ends[1]:.2f}"
    size = len(tabular.split(row[f"{of}values"]))
    if size < tabular.FEWEST:
        several = of and row["tasks"] not in ("", 1)
        return {0: "", 1: "one seed", 2: "two tasks" if several else "two seeds"}[size]
    return "all equal"


def _mean(values: Sequence[float]) -> float | str:
    return _rounded(statistics.fmean(values)) if values else ""


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)
