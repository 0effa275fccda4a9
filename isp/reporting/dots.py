"""Dot plots: one row per variant, one column of panels per sparsity, rows sorted by family and value.

They replace lines where a study has few sparsities, because many lines between two points cannot be told apart. A dot
is a mean, a bar has the `ends` of an error bar, and faint dots are the values of the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isp.reporting import drawing, labels, tabular
from isp.reporting.axes import COARSE, log_ticks, set_score_scale
from isp.reporting.looks import Look, families_of

FEW = 3
"""Largest number of sparsities above 0 for which a dot plot is drawn instead of lines."""
_ROW, _GAP = 0.19, 0.45
"""Height of a row in inches, and the gap between families in rows."""
_WIDEST = 2.6
_COLUMNS = 4
"""Largest width of a panel in inches, and the largest number of panels beside each other."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel of a dot plot.

    Attributes:
        rows: Drawn rows by variant, for a quantity `name` with the columns `<name>_mean` and `<name>_values`.
        name: Name of the quantity.
        title: Title, such as a sparsity.
        label: Label of the axis.
        scale: Scale of the axis: "score" with a coarser part for collapsed tickets, "share" from 0 to 1, or "log".
        level: Row of the dense model, for a vertical line across all rows.
        chance: Value by chance, for a grey line across all rows.
        published: Column with a published value, for a star.
    """

    rows: Mapping[str, dict[str, Any]]
    name: str
    title: str
    label: str
    scale: str = "score"
    level: dict[str, Any] | None = None
    chance: float | None = None
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Adjacent panels of one task and backbone.

    Attributes:
        title: Title above the first panel.
        panels: Panels from left to right.
    """

    title: str
    panels: Sequence[Panel]


def few(drawn: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether no task and backbone has more than `FEW` sparsities above 0."""
    found = tabular.group(drawn, *tabular.CELL)
    return all(len({row["sparsity"] for row in rows if float(row["sparsity"])}) <= FEW for rows in found.values())


def notes(drawn: Sequence[Mapping[str, Any]], line: str, band: bool = False) -> list[str]:
    """Return the notes above a dot plot.

    Args:
        drawn: Drawn rows.
        line: Meaning of the line across all rows; empty if there is none.
        band: Whether a band shows the deviation of the line.
    """
    several = any(int(row["seeds"]) > 1 for row in drawn)
    across = f"line {'and grey band ' * (band and several)}across all rows: {line}" * bool(line)
    return [tabular.seeds_note(drawn, "bars"), "faint dots: single seeds" * several, across]


def by_sparsity(rows: Sequence[dict[str, Any]], make: Callable[[str, dict[str, dict[str, Any]]], Panel]) -> list[Panel]:
    """Return one panel per sparsity of one task and backbone.

    If no variant has both dense and pruned tickets, there is no panel for sparsity 0: dense variants are in all panels.
    """
    dense = {row["variant"]: row for row in rows if not float(row["sparsity"])}
    pruned: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row["sparsity"])):
        if float(row["sparsity"]):
            pruned.setdefault(row["sparsity"], {})[row["variant"]] = row
    if not pruned:
        return [make("0", dense)]
    if any(variant in dense for own in pruned.values() for variant in own):
        return [make(sparsity, own) for sparsity, own in {"0": dense, **pruned}.items()]
    return [make(sparsity, dense | own) for sparsity, own in pruned.items()]


def draw(cells: Sequence[Cell], styles: Mapping[str, Look], *notes: str) -> Figure:
    """Draw a dot plot.

    Args:
        cells: Panels of each task and backbone.
        styles: Looks of all variants.
        notes: Notes above the panels.
    """
    with drawing.style():
        order = _order([panel for cell in cells for panel in cell.panels], styles)
        names = min(2.1, max(labels.text_width(f"{name}*", 8.5) for family in order for name in family)) + 0.15
        bands = _bands(cells)
        across = max(sum(len(cell.panels) for cell in band) for band in bands)
        width = min(_WIDEST, (drawing.WIDTH - names) / across)
        orders = [_only(order, band) for band in bands]
        heights = [_ROW * (sum(map(len, own)) + _GAP * (len(own) - 1) + 0.9) for own in orders]
        size = (max(names + width * across, 4.2), sum(heights) + 1.0 * len(bands) + 0.45)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(len(bands), across, height_ratios=heights)
        shown = [row for cell in cells for panel in cell.panels for row in panel.rows.values()]
        chosen = {row["variant"] for row in shown if row.get("chosen_on")}
        coarse = stars = False
        for line, (band, own) in enumerate(zip(bands, orders, strict=True)):
            column = 0
            for cell in band:
                for index, panel in enumerate(cell.panels):
                    axes = figure.add_subplot(grid[line, column])
                    coarse |= _panel(axes, panel, own, styles, column == 0, chosen)
                    stars |= any(row.get(panel.published, "") != "" for row in panel.rows.values())
                    room = width * (len(cell.panels) if index == 0 else 1) - 0.1
                    title = labels.wrapped(cell.title, room, 9.5) + "\n" if index == 0 else ""
                    axes.set_title(title + panel.title, loc="left", fontsize=9.5)
                    if index == 0 or panel.label != cell.panels[index - 1].label:
                        axes.set_xlabel(labels.wrapped(panel.label, room, 9), loc="left")
                    column += 1
        drawing.annotate(figure, *notes, "Stars: as published." if stars else "", COARSE * coarse)
    return figure


def _bands(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Put cells beside each other as long as there is room for their panels."""
    bands: list[list[Cell]] = []
    for cell in cells:
        if bands and sum(len(other.panels) for other in (*bands[-1], cell)) <= _COLUMNS:
            bands[-1].append(cell)
        else:
            bands.append([cell])
    return bands


def _order(panels: Sequence[Panel], styles: Mapping[str, Look]) -> list[list[str]]:
    """Return the variants by family, the best first: by the mean rank of the first quantity over panels."""
    places: dict[str, list[float]] = {}
    for panel in panels:
        if panel.name != panels[0].name:
            continue
        values = {variant: float(row[f"{panel.name}_mean"]) for variant, row in panel.rows.items()}
        ranked = sorted(values.values())
        for variant, value in values.items():
            places.setdefault(variant, []).append(ranked.index(value) / max(len(ranked) - 1, 1))
    means = {variant: statistics.fmean(found) for variant, found in places.items()}
    dense = {variant for panel in panels for variant, row in panel.rows.items() if not float(row["sparsity"])}
    ordered = sorted(means, key=lambda variant: -means[variant])
    families = families_of(styles, ordered)
    return sorted(families, key=lambda family: not dense & {*family})


def _only(order: Sequence[Sequence[str]], band: Sequence[Cell]) -> list[list[str]]:
    """Return the families of a band with the variants that it shows."""
    shown = {variant for cell in band for panel in cell.panels for variant in panel.rows}
    found = [[variant for variant in family if variant in shown] for family in order]
    return [family for family in found if family]


def _panel(
    axes: Axes,
    panel: Panel,
    order: Sequence[Sequence[str]],
    styles: Mapping[str, Look],
    named: bool,
    chosen: Collection[str],
) -> bool:
    """Draw one panel. Return whether its axis has a coarser part."""
    places, place = {}, 0.0
    for family in order:
        for variant in family:
            places[variant] = place
            place -= 1
        place -= _GAP
    rows = list(panel.rows.values())
    coarse = False
    if panel.scale == "log":
        axes.set_xscale("log")
        axes.set_xlim(log_ticks(axes.xaxis, [row[f"{panel.name}_mean"] for row in rows], 2))
    elif panel.scale == "share":
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    else:
        published = [{f"{panel.name}_mean": row[panel.published]} for row in rows if row.get(panel.published, "") != ""]
        levels = [panel.level] if panel.level else []
        coarse = set_score_scale(axes, [*rows, *published, *levels], panel.name, "x", 4, with_seeds=True)
    if panel.chance is not None:
        axes.axvline(panel.chance, color="#cccccc", linewidth=4, zorder=1)
    if panel.level:
        color = styles[panel.level["variant"]].hue
        axes.axvspan(*drawing.ends(panel.level, panel.name), color=color, alpha=0.1, linewidth=0)
        axes.axvline(panel.level[f"{panel.name}_mean"], color=color, linewidth=0.9, alpha=0.6, zorder=1)
    seeds = max(int(row["seeds"]) for row in rows)
    for variant, row in panel.rows.items():
        _dot(axes, row, panel, places[variant], styles[variant], seeds)
    axes.set_ylim(min(places.values()) - 0.7, 0.7)
    axes.set_yticks(list(places.values()), [""] * len(places))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="both")
    if named:
        axes.set_yticklabels([labels.shortened(name + tabular.CHOSEN * (name in chosen), 2.1, 8.5) for name in places])
        for text, variant in zip(axes.get_yticklabels(), places, strict=True):
            text.set_color(styles[variant].hue)
    return coarse


def _dot(axes: Axes, row: dict[str, Any], panel: Panel, place: float, look: Look, seeds: int) -> None:
    """Draw a mean, its bar, the values of the seeds, and the published value."""
    mean, values = row[f"{panel.name}_mean"], tabular.split(row[f"{panel.name}_values"])
    low, high = drawing.ends(row, panel.name)
    if high > low:
        axes.hlines(place, low, high, color=look.hue, linewidth=1.5)
    if len(values) > 1:
        axes.plot(
            values,
            [place] * len(values),
            color=look.hue,
            marker="o",
            markersize=3.6,
            markeredgewidth=0,
            linestyle="",
            alpha=0.35,
        )
    axes.plot([mean], [place], color=look.hue, marker="o", markersize=5.5, markeredgecolor="white", markeredgewidth=0.5)
    if row.get(panel.published, "") != "":
        axes.plot([row[panel.published]], [place], color="white", **STAR)
    if int(row["seeds"]) < seeds:
        axes.annotate(
            f"n = {row['seeds']}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5
        )


STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 8,
    "linestyle": "",
    "markeredgecolor": "black",
    "markeredgewidth": 0.6,
    "zorder": 5,
}
"""Style of a published value."""
