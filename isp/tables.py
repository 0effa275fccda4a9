"""The table of a study, as printed and as written: one line a variant and sparsity, mean and deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isp.artifacts import write_bytes, write_csv

Row = dict[str, Any]
HEADER = (
    *("task", "variant", "sparsity", "seeds", "validation", "test", "steps finding", "steps retraining"),
    *("PFLOP executed", "PFLOP sparse", "changed by denoisers"),
)


def sparsity_of(row: Row) -> Decimal:
    """The sparsity of a row."""
    return Decimal(row["sparsity"])


def flat(row: Row) -> Row:
    """A row without lists and nesting, holding only what is the same in every run on such a machine."""
    costs = {f"{part}_{key}": value for part in ("finding", "retraining") for key, value in row[part].items()}
    plain = ("study", "backbone", "task", "seed", "variant", "method", "sparsity", "zero_weights", "prunable_weights")
    scores = {"validation": row["validation"], "test": row.get("test", "")}
    return {key: row[key] for key in plain} | scores | costs


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and sample standard deviation as text, "97.10 ± 0.32"; for one value without the latter."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the table under `HEADER`."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["backbone"], row["task"], row["variant"], row["sparsity"]), []).append(row)
    return [_line(task, variant, sparsity, group) for (_, task, variant, sparsity), group in groups.items()]


def _line(task: str, variant: str, sparsity: str, group: list[Row]) -> list[str]:
    def total(key: str, *parts: str) -> float:
        return statistics.fmean(sum(row[part][key] for part in parts) for row in group)

    tests = [row["test"] for row in group if "test" in row]
    changed = [record["changed"] for row in group for record in row["rounds"] if "changed" in record]
    return [
        task,
        variant,
        f"{float(sparsity):g}",
        str(len(group)),
        mean_and_deviation([row["validation"] for row in group]),
        mean_and_deviation(tests) if tests else "",
        f"{total('steps', 'finding'):.0f}",
        f"{total('steps', 'retraining'):.0f}",
        f"{total('flops', 'finding', 'retraining') / 1e15:.3f}",
        f"{total('sparse_flops', 'finding', 'retraining') / 1e15:.3f}",
        f"{100 * min(changed):.1f}–{100 * max(changed):.1f} %" if changed else "",
    ]


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the table; empty columns are left out."""
    body = lines(rows)
    shown = [index for index in range(len(HEADER)) if any(line[index] for line in body)]
    table = Table()
    for index in shown:
        table.add_column(HEADER[index], justify="left" if index < 2 else "right")
    for line in body:
        table.add_row(*(escape(line[index]) for index in shown))
    console.print(table)


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write `metrics.csv` (a row a ticket) and `table.md` (a row a variant and sparsity)."""
    write_csv(folder / "metrics.csv", [flat(row) for row in rows])
    body = [HEADER, ["---"] * len(HEADER), *lines(rows)]
    write_bytes(folder / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in body).encode())
