"""Alternative texts: descriptions of figures in words, from the rows that they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isp.files import is_number
from isp.reporting import tabular
from isp.reporting.tables import si, title
from isp.reporting.tabular import Row

PANELS = 8
"""Maximum number of described panels per task and backbone."""


@dataclass(frozen=True)
class _Shown:
    """A kind of figure: its panels, the number it shows, and the columns that name a lowest and a highest value."""

    kind: str
    value: str
    named: tuple[str, ...]
    by: tuple[str, ...] = ("sparsity",)
    write: Callable[[float], str] = "{:.2f}".format


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


_FIGURES = {
    "score_by_sparsity": _Shown("Validation scores of the variants by sparsity", "validation_mean", ("variant",)),
    "score_by_cost": _Shown(
        "Validation scores against executed training FLOPs", "validation_mean", ("variant", "flops")
    ),
    "denoisers": _Shown(
        "Lines by round: the fraction of the kept weights that look-ahead copies changed",
        *("changed_mean", ("round",), ("variant",), _percent),
    ),
    "agreement_by_layer": _Shown(
        "Heat maps of rounds and layers: agreement of the weak masks (Jaccard index)",
        *("agreement_mean", ("round", "label"), ("variant",)),
    ),
    "layer_sparsity": _Shown(
        "Heat maps of variants and layers: sparsity of each layer",
        *("layer_sparsity_mean", ("variant", "label"), ("sparsity",), _percent),
    ),
    "mask_similarity": _Shown(
        "Triangles of pairs of variants: the cosine similarity of their masks",
        *("cosine_mean", ("variant_a", "variant_b")),
    ),
    "mask_similarity_by_sparsity": _Shown(
        "Cosine similarity of masks to the mask of a reference by sparsity", "cosine_mean", ("variant",)
    ),
    "paper_figure_1": _Shown(
        "Test scores and executed training FLOPs of the variants by sparsity", "test_mean", ("variant",)
    ),
    "paper_figure_3": _Shown(
        "Lines of test scores and of the similarity of masks against sparsity", "test_mean", ("variant",)
    ),
    "mask_similarity_by_layer": _Shown(
        "Heat maps of variants and layers: cosine similarity above chance to the mask of a reference",
        *("above_chance", ("variant", "label")),
    ),
}


def columns(figure: str) -> tuple[str, ...]:
    """Return the columns that the CSV file of a figure must have if it has any rows."""
    shown = _FIGURES.get(figure)
    return (*tabular.CELL, shown.value, *shown.named, *shown.by) if shown else ()


def problem(column: str, text: str) -> str:
    """Return what the value of a numeric column must be; empty if the value is valid."""
    numeric = column in ("sparsity", "flops", *(shown.value for shown in _FIGURES.values()))
    return "a finite number" if numeric and text and not is_number(text) else ""


def describe(figure: str, rows: Sequence[Row]) -> str:
    """Describe a figure: its kind, and the lowest and highest value of each panel with their names."""
    if not rows:
        return "An empty figure: this study has no data for it."
    shown = _FIGURES.get(figure)
    if shown is None or shown.value not in rows[0]:
        return f"Figure {figure.replace('_', ' ')}: {len(rows)} values by {', '.join(rows[0])}; see the CSV file."
    drawn = [row for row in rows if tabular.cell(row, shown.value)]
    found = []
    for names, own in tabular.group(drawn, *tabular.CELL).items():
        panels = [_panel(shown, values, rows) for values, rows in tabular.group(own, *shown.by).items()]
        more = [f"{len(panels) - PANELS} more"] if len(panels) > PANELS else []
        found.append(f"{title(names)}: {'; '.join([*panels[:PANELS], *more])}.")
    return " ".join([f"{shown.kind}.", *found])


def _panel(shown: _Shown, values: Sequence[str], rows: Sequence[Row]) -> str:
    where = ", ".join(map(_written, shown.by, values))
    if "reference" in rows[0]:
        where += f", reference {rows[0]['reference']}"

    def number(row: Row) -> float:
        return float(row[shown.value])

    ends = [
        f"{shown.write(number(row))} ({', '.join(_written(name, row[name]) for name in shown.named)})"
        for row in (min(rows, key=number), max(rows, key=number))
    ]
    return f"{where} from {ends[0]} to {ends[1]}"


def _written(column: str, text: str) -> str:
    if column == "sparsity":
        return f"{tabular.percent(text)} %"
    if column == "flops":
        return f"{si(float(text))}FLOPs"
    return f"round {text}" if column == "round" else text
