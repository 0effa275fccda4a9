"""The table of a study, as printed and as written: one line a variant and sparsity, mean and deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from isp.artifacts import write_bytes, write_csv

Row = dict[str, Any]
KEYS = ("task", "backbone")
HEADER = (
    *("variant", "sparsity", "seeds", "validation", "test", "finding", "retraining", "FLOP", "sparse FLOP"),
    *("seconds", "changed"),
)
LEGEND = (
    "Scores in percent, mean ± standard deviation over seeds. finding, retraining: optimizer steps before and after "
    "the mask was known. FLOP: executed, all in all; sparse FLOP: the same without masked weights (theoretical). "
    "seconds: measured, and only what a ticket took beyond the one above it. changed: share of the kept weights that "
    "the denoisers changed, least and most of all rounds."
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


def si(value: float) -> str:
    """A count with three digits and an SI prefix: 1.95e14 is "195 T"."""
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g}"


def lines(rows: Sequence[Row]) -> dict[tuple[str, ...], list[list[str]]]:
    """For each task and backbone, the lines of its table under `HEADER`."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], list[Row]]] = {}
    for row in rows:
        table = groups.setdefault(tuple(row[key] for key in KEYS), {})
        table.setdefault((row["variant"], row["sparsity"]), []).append(row)
    return {keys: [_line(*cell, group) for cell, group in table.items()] for keys, table in groups.items()}


def _line(variant: str, sparsity: str, group: list[Row]) -> list[str]:
    def mean(key: str, *parts: str) -> float:
        return statistics.fmean(sum(row[part][key] for part in parts) for row in group)

    tests = [row["test"] for row in group if "test" in row]
    changed = [100 * record["changed"] for row in group for record in row["rounds"] if "changed" in record]
    return [
        variant,
        f"{float(sparsity):g}",
        str(len(group)),
        mean_and_deviation([row["validation"] for row in group]),
        mean_and_deviation(tests) if tests else "",
        f"{mean('steps', 'finding'):.0f}",
        f"{mean('steps', 'retraining'):.0f}",
        si(mean("flops", "finding", "retraining")),
        si(mean("sparse_flops", "finding", "retraining")),
        f"{statistics.fmean(row['measured']['seconds'] for row in group):.0f}",
        f"{min(changed):.1f}–{max(changed):.1f} %" if changed else "",
    ]


def text(rows: Sequence[Row]) -> str:
    """An aligned table for each task and backbone; columns that are empty are left out."""
    parts = []
    for keys, body in lines(rows).items():
        shown = [index for index in range(len(HEADER)) if any(line[index] for line in body)]
        table = [[line[index] for index in shown] for line in (list(HEADER), *body)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table
        ]
        parts.append("\n".join([" on ".join(reversed(keys)), *aligned]))
    return "\n\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """For each task and backbone, validation scores by variant and sparsity as a Markdown table.

    The last column is the steps that the ticket of the row's highest sparsity took, finding and retraining.
    """
    parts = []
    for keys, body in lines(rows).items():
        sparsities = sorted({line[1] for line in body}, key=float)
        scores: dict[str, dict[str, str]] = {}
        steps: dict[str, int] = {}
        for line in body:
            cells = dict(zip(HEADER, line, strict=True))
            scores.setdefault(cells["variant"], {})[cells["sparsity"]] = cells["validation"]
            steps[cells["variant"]] = int(cells["finding"]) + int(cells["retraining"])
        header = [" on ".join(reversed(keys)), *sparsities, "steps"]
        table = [[name, *(found.get(s, "") for s in sparsities), f"{steps[name]:,}"] for name, found in scores.items()]
        parts.append(_markdown([header, ["---"] * len(header), *table]))
    return "\n".join(parts)


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write `metrics.csv` (a row a ticket), `summary.md` and `table.md` (a row a variant and sparsity)."""
    write_csv(folder / "metrics.csv", [flat(row) for row in rows])
    write_bytes(folder / "summary.md", summary(rows).encode())
    body = [[*KEYS, *HEADER], ["---"] * (len(KEYS) + len(HEADER))]
    body += [[*keys, *line] for keys, table in lines(rows).items() for line in table]
    write_bytes(folder / "table.md", f"{_markdown(body)}\n{LEGEND}\n".encode())


def _markdown(table: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in table)
