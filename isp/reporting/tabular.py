"""Functions that tables and figures share: rows of CSV files, groups in their order, statistics over seeds, names."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from math import sqrt
from typing import Any

from isp.errors import IspError

Row = Mapping[str, str]
"""Row of a CSV file: all values are text, and an empty text means that there is no value."""

CELL = ("task", "backbone")
"""Columns that define a table or a panel."""
ROUNDING = 5e-4
"""Tolerance for equal scores in percent, which are recorded with four decimals."""
SIMILARITIES = ("cosine", "jaccard", "hamming")
"""Columns of similarities of two masks."""


def group(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Group rows by their values in `columns`; groups are in order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(cell(row, column) for column in columns), []).append(row)
    return groups


def tickets(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Group rows by (task, backbone, variant, sparsity); variants stay together even if rows are ordered by seed."""
    return {
        (*names, variant, sparsity): same
        for names, cell in group(rows, *CELL).items()
        for (variant,), own in group(cell, "variant").items()
        for (sparsity,), same in group(own, "sparsity").items()
    }


def dense(rows: Iterable[Row]) -> str | None:
    """Return the variant that represents the dense model: that named "dense", otherwise the first of method dense.

    All comparisons with the dense model use this variant. None if there is none.
    """
    return variant_of(rows, "dense")


def variant_of(rows: Iterable[Row], method: str) -> str | None:
    """Return the variant with the name of the method, otherwise the method's first variant. None if there is none."""
    names = distinct([row for row in rows if cell(row, "method") == method], "variant")
    return min(names, key=lambda name: name != method, default=None)


def distinct(rows: Iterable[Row], column: str) -> list[str]:
    """Return the distinct values of a column, in order of first appearance."""
    return [value for (value,) in group(rows, column)]


def cell(row: Row, column: str) -> str:
    """Return the text in a column.

    Raises:
        IspError: The column does not exist.
    """
    try:
        return row[column]
    except KeyError:
        raise IspError(f"the table has no column {column!r} (it has: {', '.join(row)}); collect it again") from None


def numbers(rows: Iterable[Row], *columns: str) -> list[float]:
    """Return the sum of `columns` for each row, without rows that have an empty value.

    Raises:
        IspError: A value is not a number.
    """
    texts = [[cell(row, column) for column in columns] for row in rows]
    try:
        return [sum(map(float, values)) for values in texts if all(values)]
    except ValueError as error:
        raise IspError(f"column {' or '.join(map(repr, columns))}: {error}; collect it again") from None


FEWEST = 3
"""Smallest number of values that get a deviation or an interval; two values are shown themselves."""


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None for fewer than three values."""
    return statistics.stdev(values) if len(values) >= FEWEST else None


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an error bar: mean ± standard deviation, or both values if there are only one or two."""
    mean, around = statistics.fmean(values), deviation(values)
    return (min(values), max(values)) if around is None else (mean - around, mean + around)


def matching_level(dense: Sequence[float]) -> float:
    """Return the lowest mean that matches the dense model: the lower end of `spread` over its seeds."""
    return spread(dense)[0] - ROUNDING


def majority(rows: Iterable[Row], part: str) -> float | None:
    """Return the score of always answering the most frequent label, in percent with four decimals, mean over rows.

    Args:
        rows: Rows of metrics.csv.
        part: "validation" or "test".

    Returns:
        The score; None if it was not recorded, as in results of earlier versions.
    """
    column = f"majority_{part}"
    values = numbers([row for row in rows if row.get(column)], column)
    return round(statistics.fmean(values), 4) if values else None


CHOSEN = "*"
"""Mark of a variant whose method chose among models by the validation examples of the shown scores."""
CHOSEN_NOTE = (
    f"Marked {CHOSEN}: the method chose among models by these validation examples, so its validation scores are too "
    "high; compare its test scores."
)


def chosen(rows: Iterable[Row]) -> bool:
    """Return whether any of these tickets was chosen by validation scores; False if it was not recorded."""
    return any(row.get("chosen_on") for row in rows)


def name_marked(rows: Sequence[Row]) -> str:
    """Return the variant of these rows, marked if its validation scores are too high."""
    return cell(rows[0], "variant") + CHOSEN * chosen(rows)


def summary(name: str, values: Sequence[float], places: int = 4) -> dict[str, float | str]:
    """Return columns of the mean, the sample standard deviation (empty for fewer than three values), and all values."""
    around = deviation(values)
    return {
        f"{name}_mean": round(statistics.fmean(values), places) if values else "",
        f"{name}_sd": "" if around is None else round(around, places),
        f"{name}_values": joined(values, places),
    }


def joined(values: Iterable[float], places: int = 4) -> str:
    """Join values to the text of one column, separated by spaces."""
    return " ".join(str(round(value, places)) for value in values)


def split(text: str) -> list[float]:
    """Split the text of a column that `joined` wrote into its values."""
    return [float(value) for value in text.split()]


OVER_SEEDS = "mean ± standard deviation over seeds (of two seeds: both values)"
"""How tables show values over seeds; see `tables.over_seeds`."""


def seeds_note(rows: Iterable[Mapping[str, Any]], shown: str = "") -> str:
    """Describe the number of seeds of rows with a column `seeds`, and how their spread is shown.

    Args:
        rows: Rows of a table or figure.
        shown: "table" for values as `tables.over_seeds` writes them, "bars" for error bars; empty if only means are
            shown.
    """
    seeds = sorted({int(row["seeds"]) for row in rows})
    if seeds == [1]:
        return "one seed" + (", so no deviations" if shown else "")
    count = " to ".join(dict.fromkeys(str(value) for value in (seeds[0], seeds[-1])))
    if not shown:
        return f"mean over {count} seeds"
    if seeds[-1] == 2:
        both = "both values" if shown == "table" else "mean and both values (bars)"
        return f"{both} of two seeds" if seeds == [2] else f"{both} of two seeds, or one seed"
    mean = "mean ± standard deviation" if shown == "table" else "mean and standard deviation (bars)"
    two = {"table": " (of two seeds: both values)", "bars": "; of two seeds, bars end at both values"}[shown]
    return f"{mean} over {count} seeds{two if 2 in seeds else ''}"


def by_chance(pairs: Sequence[Row]) -> dict[str, float]:
    """Return the `SIMILARITIES` of random masks that keep as many weights as the given pairs, mean over pairs.

    If the masks keep fractions p and q, random masks have p q of the weights in common on average: cosine sqrt(p q),
    Jaccard p q / (p + q - p q), Hamming p + q - 2 p q. For two masks of sparsity s, these are 1 - s,
    (1 - s) / (1 + s) and 2 s (1 - s).
    """
    columns = [numbers(pairs, column) for column in ("weights", "kept_a", "kept_b")]
    shares = [(a / weights, b / weights) for weights, a, b in zip(*columns, strict=True)]
    found = {
        "cosine": [sqrt(p * q) for p, q in shares],
        "jaccard": [p * q / (p + q - p * q) if p + q else 1.0 for p, q in shares],
        "hamming": [p + q - 2 * p * q for p, q in shares],
    }
    return {name: statistics.fmean(values) for name, values in found.items()}


def sparsities(rows: Iterable[Row]) -> list[str]:
    """Return the distinct sparsities, as written, in ascending order."""
    return sorted(distinct(rows, "sparsity"), key=Decimal)


def percent(sparsity: str) -> str:
    """Format a sparsity as a percentage without trailing zeros: "0.9000" is "90", "0.8322" is "83.22"."""
    return f"{float(sparsity) * 100:.4g}"


def chain(events: Iterable[Row], target: str | None = None) -> list[Row]:
    """Return the prune events that led to one run's ticket of sparsity `target`; by default, to the sparsest ticket.

    A target leaves the chain at the first round whose nominal sparsity reaches it. Therefore its path contains the
    sparsest event of every round that is not sparser than the target; other events of a round belong to lower targets.
    So does an event without look-aheads in a round that has others, as where `isp_code` prunes the rest at once, unless
    it is in the target's last round.
    """
    rounds: dict[int, list[Row]] = {}
    for row in events:
        if target is None or Decimal(cell(row, "sparsity")) <= Decimal(target):
            rounds.setdefault(int(cell(row, "round")), []).append(row)
    last = max(rounds, default=0)

    def rank(row: Row) -> tuple[bool, Decimal]:
        return int(row["round"]) < last and row.get("agreement", "") != "", Decimal(row["sparsity"])

    return [max(rounds[index], key=rank) for index in sorted(rounds)]


def short_names(layers: Sequence[str]) -> dict[str, str]:
    """Return short, distinct names of layers: the number of the block and the end of the path, such as "0 in_proj".

    As many parts of the path are used as needed for distinct names, without the common suffix "weight".
    """
    parts = {layer: (layer.removesuffix("weight").rstrip("._") or layer).split(".") for layer in layers}
    split = {}
    for layer, path in parts.items():
        block = next((index for index, part in enumerate(path) if part.isdigit()), -1)
        split[layer] = (path[block] + " " if block >= 0 else "", path[block + 1 :] or path)
    names = {layer: head + tail[-1] for layer, (head, tail) in split.items()}
    for length in range(2, max((len(path) for path in parts.values()), default=0) + 1):
        current = list(names.values())
        names = {
            layer: head + ".".join(tail[-length:]) if current.count(names[layer]) > 1 else names[layer]
            for layer, (head, tail) in split.items()
        }
    if len(set(names.values())) < len(names):
        return {layer: layer for layer in layers}
    return names
