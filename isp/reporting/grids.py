"""Readable tables of any CSV file: one per task and backbone, means with deviations, sortable numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from isp.reporting import tabular
from isp.reporting.tables import PREFIXES, common_prefix
from isp.reporting.tabular import Row

SPLITS = ("of", "part", "source", "table", "task", "backbone")
"""Columns by which a table is split."""
NAMES = ("variant", "variant_a", "variant_b", "sparsity", "sparsity_percent")
"""Columns that identify a row; they are shown even if all rows have the same value."""
COMMON = ("reference", "pairs")
"""Columns that are equal in all rows that have a value; other rows do not need them."""
FINDING, RETRAINING = "finding_", "retraining_"
"""Prefixes of costs before and after the mask is known, which are shown as a sum."""


@dataclass(frozen=True)
class Cell:
    """A text, and the number by which it is sorted, if any.

    `space` is a text as wide as what the cell lacks at its end, so that the numbers of a column are aligned.
    """

    text: str
    value: float | None = None
    space: str = ""


@dataclass(frozen=True)
class Column:
    """Header of a column; numeric columns are aligned right."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Grid:
    """A table: its title, the values that all its rows share, its columns and its rows."""

    title: str
    notes: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    body: tuple[tuple[Cell, ...], ...]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Return the tables of the rows of a CSV file, without empty columns."""
    if not rows:
        return []
    splits = [column for column in SPLITS if column in rows[0]]
    return [_grid(dict(zip(splits, values, strict=True)), own) for values, own in tabular.group(rows, *splits).items()]


def of_markdown(text: str) -> tuple[list[Grid], str]:
    """Return the tables of a Markdown file from `tables.markdown`, and its other lines.

    A cell is sorted by the number with which it begins.
    """
    found, lines = [], []
    for block in text.split("\n\n"):
        if not block.startswith("| "):
            lines.append(block.strip())
            continue
        header, _, *body = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines())
        rows = [dict(zip(header, line, strict=False)) for line in body]
        cells = [[Cell(row.get(name) or "—", _leading(row.get(name, ""))) for name in header[1:]] for row in rows]
        numeric = [any(line[index].value is not None for line in cells) for index in range(len(header) - 1)]
        columns = [Column(header[0], False), *map(Column, header[1:], numeric)]
        named = [(Cell(row[header[0]]), *line) for row, line in zip(rows, cells, strict=True)]
        found.append(Grid("", (), tuple(columns), tuple(named)))
    return found, "\n\n".join(lines).strip()


def _leading(text: str) -> float | None:
    first, second, *_ = *text.replace(",", "").replace("−", "-").split(" "), ""
    value = number(first.rstrip("%"))
    return value * PREFIXES.get(second, 1) if value is not None else None


def _grid(of: Mapping[str, str], rows: Sequence[Row]) -> Grid:
    known = {*of, *(("method",) if "variant" in rows[0] else ())}  # the settings show a variant's method
    columns = [column for column in rows[0] if column not in known and any(row[column] for row in rows)]
    inside = {other for column in columns for other in _parts(column, columns)}
    made = {column: aligned(_cells(column, columns, rows)) for column in columns if column not in inside}
    units = {column: _unit(column, columns, rows) for column in made}
    shared = [
        column
        for column, cells in made.items()
        if len(rows) > 2 and column not in NAMES and len(_texts(column, cells)) == 1
    ]
    shown = [column for column in made if column not in shared]
    cell = " on ".join(of[key] for key in ("backbone", "task") if of.get(key))
    notes = [(_words(column), next(iter(_texts(column, made[column])))) for column in shared]
    if any(column.startswith(FINDING) for column in shown):
        notes.append(("sums", "finding + retraining"))
    return Grid(
        ", ".join(text for text in (cell, *(of[key] for key in of if key not in tabular.CELL)) if text),
        tuple(notes),
        tuple(
            Column(_words(column, units[column]), any(cell.value is not None for cell in made[column]))
            for column in shown
        ),
        tuple(zip(*(made[column] for column in shown), strict=True)),
    )


def _texts(column: str, cells: Sequence[Cell]) -> set[str]:
    """Return the distinct texts of a column."""
    return {cell.text for cell in cells} - ({"—"} if column in COMMON else set())


def _parts(column: str, columns: Sequence[str]) -> list[str]:
    """Return the columns shown within this one: its deviation and values, upper end, or second summand."""
    stem = column.removesuffix("mean").removesuffix("score").rstrip("_") if column != "low" else ""
    found = [f"{stem}_{ending}".lstrip("_") for ending in ("sd", "std", "values")]
    if column.endswith("low"):
        found = [f"{column.removesuffix('low')}high"]
    if column.startswith(FINDING):
        found = [column.replace(FINDING, RETRAINING, 1)]
    return [other for other in found if other in columns and other != column]


def _cells(column: str, columns: Sequence[str], rows: Sequence[Row]) -> list[Cell]:
    values = [number(row[column]) for row in rows]
    parts = _parts(column, columns)
    if any(value is None and row[column] for value, row in zip(values, rows, strict=True)):
        return [Cell(row[column] or "—") for row in rows]
    other = next((part for part in parts if not part.endswith("values")), None)
    listed = next((part for part in parts if part.endswith("values")), None)
    seeds = [[number(text) for text in row[listed].split()] if listed else [] for row in rows]
    beside = [number(row[other]) if other else None for row in rows]
    sums = column.startswith(FINDING)
    pairs = [value for own in seeds if len(own) == 2 for value in own]
    write = _writer(column, [value for value in (*values, *pairs, *(beside if sums else ())) if value is not None])
    return [
        _cell(column, value, more, own, write, sums) if value is not None else Cell("—")
        for value, more, own in zip(values, beside, seeds, strict=True)
    ]


def _cell(
    column: str,
    value: float,
    more: float | None,
    seeds: Sequence[float | None],
    write: Callable[[float], str],
    sums: bool,
) -> Cell:
    text = write(value)
    both = [each for each in seeds if each is not None]
    if len(seeds) == len(both) == 2:
        return Cell(" / ".join(map(write, both)), value)
    if sums and more is not None:
        return Cell(f"{text} + {write(more)}", value + more)
    if more is not None:
        text = f"[{text}, {write(more)}]" if column.endswith("low") else f"{text} ± {write(more)}"
    return Cell(text, value * 100 if column == "sparsity" else value)


def aligned(cells: Sequence[Cell]) -> list[Cell]:
    """Align the first and the second number of all cells of a column, which is aligned right.

    A second number follows " ± ", " / ", " + " or a comma. Shorter ones are padded with figure spaces, and a cell
    without one gets an equally wide `space`.
    """
    parts = [_SECOND.split(cell.text, maxsplit=1) if cell.value is not None else [cell.text] for cell in cells]
    longest = max((len(part[2]) for part in parts if len(part) == 3), default=0)
    joint = next((part[1] for part in parts if len(part) == 3), "")
    if not longest:
        return list(cells)
    return [
        replace(cell, text=part[0] + part[1] + part[2].rjust(longest, _FIGURE_SPACE))
        if len(part) == 3
        else replace(cell, space=joint + longest * "0")
        for cell, part in zip(cells, parts, strict=True)
    ]


_SECOND = re.compile(r"( ± | / | \+ |(?<=\d), )")
_FIGURE_SPACE = "\N{FIGURE SPACE}"


def number(text: str) -> float | None:
    """Return the finite number in a text, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _writer(column: str, values: Sequence[float]) -> Callable[[float], str]:
    """Return the format of all numbers in a column: percent, a common SI prefix, or a number of decimals."""
    largest = max(map(abs, values), default=0)
    places = 0 if all(value.is_integer() for value in values) else 2 if largest >= 2 else 3
    if column in ("sparsity", "sparsity_percent"):
        percents = [value * (100 if column == "sparsity" else 1) for value in values]
        places = max((len(f"{value:.4g}".partition(".")[2]) for value in percents), default=0)
        return lambda value: f"{value * (100 if column == 'sparsity' else 1):.{places}f} %"
    if _has_prefix(column, values):
        _, unit, places = common_prefix(values)
        return lambda value: f"{value / unit:,.{places}f}"
    return lambda value: f"{value:,.{places}f}".replace("-", "−")


def _has_prefix(column: str, values: Sequence[float]) -> bool:
    return column.endswith("flops") and max(map(abs, values), default=0) >= 1e6


def _unit(column: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the SI prefix of a column's numbers; empty for none."""
    shown = [column, *_parts(column, columns)] if column.startswith(FINDING) else [column]
    values = [value for name in shown for row in rows if (value := number(row[name])) is not None]
    return common_prefix(values)[0] if _has_prefix(column, values) else ""


def _words(column: str, prefix: str = "") -> str:
    """Return a header for the name of a column."""
    if column in ("mean", "low"):
        return "interval" if column == "low" else column
    column = column.removeprefix(FINDING)
    stem = f"{column.removesuffix('low')}interval" if column.endswith("_low") else column.removesuffix("_mean")
    return stem.removesuffix("_percent").replace("_", " ").replace("flops", f"{prefix}FLOPs")
