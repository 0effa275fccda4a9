"""Functions that figures share: looks of variants, panels, legends, and reproducible files.

The global state of pyplot is not used, and files contain no dates or versions, so equal rows give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from isp.files import write_bytes
from isp.metrics import value_range
from isp.reporting import tabular

Drawing = tuple[Figure, list[dict[str, Any]]]
"""A figure, and the rows that it draws."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colour-blind-safe palette without yellow, which is faint on white."""
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "osD^vP*Xph<>8"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
DPI = 150
COLUMNS = 3  # panels per row
WIDTH = 3.2  # width of a panel's data in inches


@dataclass(frozen=True)
class Look:
    """Look of a variant in every figure: a colour, and if colours run out, another line style and hollow markers."""

    color: str
    line: Any
    marker: str
    hollow: bool

    @property
    def face(self) -> str:
        """Colour inside a marker."""
        return "white" if self.hollow else self.color


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """Return a look for each variant, by their order."""
    found = {}
    for index, variant in enumerate(variants):
        turn = index // len(PALETTE)
        marker = MARKERS[index % len(MARKERS)]
        found[variant] = Look(PALETTE[index % len(PALETTE)], LINES[turn % len(LINES)], marker, turn % 2 == 1)
    return found


def save(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.pdf.

    Raises:
        IspError: A file cannot be written.
    """
    formats: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")
    for format in formats:
        write_bytes(path.with_name(f"{path.name}.{format}"), render(figure, format))


def render(figure: Figure, format: Literal["png", "pdf"]) -> bytes:
    """Return the contents of the figure's file, without dates and versions."""
    metadata = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=format, dpi=DPI, metadata=metadata[format])
    return content.getvalue()


def ends(row: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Return the ends of the error bar of a row: one standard deviation down and up; for two seeds, both values.

    Bars of scores do not leave the range of the row's metric.
    """
    mean = row[f"{name}_mean"]
    low, high = tabular.spread(tabular.split(row.get(f"{name}_values") or str(mean)))
    if name in ("validation", "test"):
        least, most = value_range(row.get("metric", ""))
        low, high = max(low, least), min(high, most)
    return min(low, mean), max(high, mean)


def error_bars(
    axes: Axes,
    places: Sequence[float],
    rows: Sequence[dict[str, Any]],
    name: str,
    look: Look,
    marker: str = "",
    scale: float = 1,
) -> None:
    """Draw a line through means with an error bar between the `ends` of each."""
    means = [row[f"{name}_mean"] * scale for row in rows]
    bars = [[abs(row[f"{name}_mean"] - ends(row, name)[side]) * scale for row in rows] for side in (0, 1)]
    axes.errorbar(
        places,
        means,
        yerr=bars if any(map(any, bars)) else None,
        color=look.color,
        linestyle=look.line,
        linewidth=1.3,
        elinewidth=0.9,
        capsize=2,
        marker=marker or look.marker,
        markersize=5,
        markerfacecolor=look.face,
    )


def figure_of(drawn: Sequence[dict[str, Any]], width: float) -> Figure:
    """Create a figure for one panel of `width` inches per task and backbone, and a legend beside them."""
    count = len(cells_of(drawn))
    return sized(drawn, width, min(count, COLUMNS), ceil(count / COLUMNS))


def sized(drawn: Sequence[dict[str, Any]], width: float, across: int, down: int) -> Figure:
    """Create a figure for `across` times `down` panels of `width` inches, and a legend beside them."""
    variants = variants_of(drawn)
    legend = (
        0.9 + 0.08 * max(map(len, variants)),
        1.0 + 0.2 * len(variants) + 0.2 * len(tabular.distinct(drawn, "sparsity")),
    )
    size = (legend[0] + (width + 0.7) * across, max(0.4 + 3.1 * down, legend[1]))
    return Figure(figsize=size, layout="constrained")


def panels(figure: Figure, drawn: Sequence[dict[str, Any]]) -> Iterator[tuple[Axes, list[dict[str, Any]]]]:
    """Yield titled axes for each task and backbone, with their rows."""
    cells = cells_of(drawn)
    grid = figure.add_gridspec(ceil(len(cells) / COLUMNS), min(len(cells), COLUMNS))
    for index, ((task, backbone), rows) in enumerate(cells.items()):
        axes = figure.add_subplot(grid[divmod(index, COLUMNS)])
        axes.set_title(f"{backbone} on {task}", loc="left")
        yield axes, rows


def legend_of(
    figure: Figure, styles: Mapping[str, Look], drawn: Sequence[dict[str, Any]], markers: bool = True
) -> Legend:
    """Add a legend of the variants beside the panels, and the number of seeds above them.

    Variants whose method chose among models by the drawn validation scores are marked.

    Args:
        figure: Figure to draw on.
        styles: Looks of the variants.
        drawn: Drawn rows; variants with sparsity 0 only are lines without markers.
        markers: Whether variants have different markers; otherwise all variants have dots.
    """
    figure.suptitle(tabular.seeds_note(drawn, "bars"), fontsize=9, x=0.01, ha="left")
    pruned = {row["variant"] for row in drawn if float(row["sparsity"])}
    levels = set(styles) - pruned if markers else set()  # drawn as a horizontal line without markers
    chosen = {row["variant"] for row in drawn if row.get("chosen_on")}
    handles = [
        Line2D(
            *([], []),
            color=look.color,
            linestyle=look.line,
            linewidth=1.3,
            marker="" if variant in levels else look.marker if markers else "o",
            markersize=5,
            markerfacecolor=look.face,
            label=variant + tabular.CHOSEN * (variant in chosen) + " (0 %)" * (variant in levels),
        )
        for variant, look in styles.items()
    ]
    return figure.legend(handles=handles, loc="outside right upper", handlelength=3, alignment="left")


def message(text: str) -> Figure:
    """Create a figure with a message about why there is nothing to draw."""
    with style():
        figure = Figure(figsize=(6, 1.2))
        figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    return figure


def cells_of(drawn: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Group rows by task and backbone."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in drawn:
        cells.setdefault((row["task"], row["backbone"]), []).append(row)
    return cells


def rows_of(drawn: Sequence[dict[str, Any]], variant: str) -> list[dict[str, Any]]:
    """Return the rows of a variant."""
    return [row for row in drawn if row["variant"] == variant]


def variants_of(drawn: Sequence[dict[str, Any]]) -> list[str]:
    """Return the variants in order of first appearance."""
    return list(dict.fromkeys(row["variant"] for row in drawn))


def style() -> AbstractContextManager[None]:
    """Return a context with Matplotlib's defaults and our style, regardless of the user's matplotlibrc."""
    return matplotlib.style.context(["default", STYLE])
