"""What tables and figures share: rows as read from a CSV file, grouped in their order, and numbers over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from isp.errors import IspError

Row = Mapping[str, str]
"""A row of a CSV file: every value is text, an empty one means that there is none."""

CELL = ("task", "backbone")
"""What has a table or a panel of its own."""


def group(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by their values in `columns`, groups in order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(cell(row, column) for column in columns), []).append(row)
    return groups


def distinct(rows: Iterable[Row], column: str) -> list[str]:
    """The values of a column, in order of first appearance."""
    return [value for (value,) in group(rows, column)]


def cell(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        IspError: there is no such column.
    """
    try:
        return row[column]
    except KeyError:
        raise IspError(f"the table has no column {column!r} (it has: {', '.join(row)}); collect it again") from None


def numbers(rows: Iterable[Row], *columns: str) -> list[float]:
    """For each row the sum of `columns`; rows with an empty value are left out.

    Raises:
        IspError: a value is no number.
    """
    texts = [[cell(row, column) for column in columns] for row in rows]
    try:
        return [sum(map(float, values)) for values in texts if all(values)]
    except ValueError as error:
        raise IspError(f"column {' or '.join(map(repr, columns))}: {error}; collect it again") from None


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def summary(name: str, values: Sequence[float], places: int = 4) -> dict[str, float | str]:
    """Mean and sample standard deviation as two columns, empty where there is none."""
    spread = deviation(values)
    return {
        f"{name}_mean": round(statistics.fmean(values), places) if values else "",
        f"{name}_sd": "" if spread is None else round(spread, places),
    }


def sparsities(rows: Iterable[Row]) -> list[str]:
    """The sparsities that occur, as written, ascending."""
    return sorted(distinct(rows, "sparsity"), key=Decimal)


def percent(sparsity: str) -> str:
    """A sparsity as a percentage without needless digits: "0.9000" is "90", "0.8322" is "83.22"."""
    return f"{float(sparsity) * 100:.4g}"


def chain(events: Iterable[Row], target: str | None = None) -> list[Row]:
    """The prune events that one run's ticket of sparsity `target` went through; without a target, the longest way.

    A target leaves the chain at the first round whose nominal sparsity reaches it. So on its way lies the sparsest
    event of every round that is not sparser than the target: others of that round left for lower targets.
    """
    way: dict[int, Row] = {}
    for row in events:
        index, sparsity = int(cell(row, "round")), Decimal(cell(row, "sparsity"))
        if (target is None or sparsity <= Decimal(target)) and (
            index not in way or sparsity > Decimal(way[index]["sparsity"])
        ):
            way[index] = row
    return [way[index] for index in sorted(way)]
