"""Functions that figures share: style, error bars, notes, panels, and reproducible files.

The global state of pyplot is not used, and files contain no dates or versions, so equal rows give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Literal

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from isp.files import write_bytes
from isp.metrics import value_range
from isp.reporting import labels, tabular
from isp.reporting.looks import Look, families_of

Drawing = tuple[Figure, list[dict[str, Any]]]
"""A figure, and the rows that it draws."""

STYLE = {
    "font.family": labels.FONT,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
DPI = 150
WIDTH = 7.4
"""Largest width of a figure in inches: at 700 pixels, a text of 7 points is still 9 pixels high."""
LINES = 7
"""Largest number of lines in one panel."""
COLUMNS = 2
"""Largest number of panels of lines in one row."""


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
    options: dict[str, Any] = {
        "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 0}},  # compressed with its palette
        "pdf": {"metadata": {"Creator": None, "Producer": None, "CreationDate": None}},
    }
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=format, dpi=DPI, **options[format])
        figure.set_layout_engine(None)  # a second layout would differ slightly; "none" would draw once more
    return _in_a_palette(content) if format == "png" else content.getvalue()


def _in_a_palette(png: BinaryIO) -> bytes:
    """Return an image with the 256 colours nearest to its own, which takes a third of the space."""
    flat, method = Image.open(png).convert("RGB"), Image.Quantize.MAXCOVERAGE
    palette = flat.quantize(256, method, kmeans=1, dither=Image.Dither.NONE)
    content = io.BytesIO()
    palette.save(content, "png", optimize=True, dpi=(DPI, DPI))
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
    scale: float = 1,
    **more: Any,
) -> None:
    """Draw a line through means with an error bar between the `ends` of each; `more` overrides the style."""
    means = [row[f"{name}_mean"] * scale for row in rows]
    bars = [[abs(row[f"{name}_mean"] - ends(row, name)[side]) * scale for row in rows] for side in (0, 1)]
    shown: dict[str, Any] = {"color": look.color, "linestyle": look.line, "linewidth": 1.4, "elinewidth": 0.9}
    shown |= {"capsize": 2, "marker": look.marker, "markersize": 5, "markerfacecolor": look.face}
    axes.errorbar(places, means, yerr=bars if any(map(any, bars)) else None, **shown | more)


def annotate(figure: Figure, *notes: str) -> None:
    """Write notes above the panels, as sentences in lines as wide as the figure."""
    sentences = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in notes if note]
    text = labels.wrapped(" ".join(sentences), figure.get_size_inches()[0] - 0.35, 9)
    figure.suptitle(text, fontsize=9, x=0.01, ha="left", color="#444444", linespacing=1.35)


def packs(families: Sequence[Sequence[str]], references: Collection[str]) -> list[list[str]]:
    """Distribute variants over panels of at most `LINES` lines; a family is split only if one panel cannot hold it.

    Args:
        families: All variants of a task and backbone, by family.
        references: Variants that every panel shows if there are several panels; they count as lines.

    Returns:
        Variants of each panel.
    """
    variants = [variant for family in families for variant in family]
    if len(variants) <= LINES:
        return [variants]
    shared = [variant for variant in variants if variant in references]
    room, found = max(LINES - len(shared), 1), list[list[str]]()
    for family in families:
        own = [variant for variant in family if variant not in shared]
        for part in (own[start : start + room] for start in range(0, len(own), room)):
            if found and len(found[-1]) + len(part) <= room:
                found[-1] += part
            else:
                found.append(part)
    return [[variant for variant in variants if variant in (*shared, *pack)] for pack in found]


def message(text: str) -> Figure:
    """Create a figure with a message about why there is nothing to draw."""
    with style():
        figure = Figure(figsize=(6, 1.2))
        figure.text(0.5, 0.5, labels.wrapped(text, 5.6, 10), ha="center", va="center", fontsize=10, color="#444444")
    return figure


@dataclass(frozen=True, kw_only=True)
class Share:
    """The variants of a task and backbone that one panel of lines shows.

    Attributes:
        title: Title of the panel.
        rows: Rows of these variants.
        cell: Rows of all variants of the task and backbone, for limits that all panels of them share.
        faint: Variants that are shown faintly, because they are repeated in all of these panels.
    """

    title: str
    rows: list[dict[str, Any]]
    cell: list[dict[str, Any]]
    faint: frozenset[str]


def shares(
    drawn: Sequence[dict[str, Any]], styles: Mapping[str, Look], references: Collection[str] = ()
) -> list[Share]:
    """Distribute the rows over panels of at most `LINES` lines; see `packs`."""
    found: list[Share] = []
    for (task, backbone), rows in cells_of(drawn).items():
        parts = packs(families_of(styles, variants_of(rows)), references)
        for index, variants in enumerate(parts):
            part = f", {index + 1} of {len(parts)}" if len(parts) > 1 else ""
            found.append(
                Share(
                    title=f"{backbone} on {task}{part}",
                    rows=[row for row in rows if row["variant"] in variants],
                    cell=rows,
                    faint=frozenset(references) if len(parts) > 1 else frozenset(),
                )
            )
    return found


def panels(count: int, height: float, parts: int = 1) -> tuple[Figure, list[Axes]]:
    """Create a figure of `count` panels of lines, each of `parts` axes above each other.

    Args:
        count: Number of panels; at most `COLUMNS` are beside each other.
        height: Height of one of the axes in inches, with its labels.
        parts: Number of axes of each panel.

    Returns:
        The figure, and the axes of the first panel from top to bottom, of the second panel, and so on.
    """
    across, down = min(count, COLUMNS), ceil(count / COLUMNS)
    width = WIDTH if across > 1 else 0.65 * WIDTH
    figure = Figure(figsize=(width, 0.45 + height * parts * down), layout="constrained")
    grid = figure.add_gridspec(parts * down, across)
    found = []
    for index in range(count):
        line, column = divmod(index, across)
        found += [figure.add_subplot(grid[parts * line + part, column]) for part in range(parts)]
    return figure, found


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
