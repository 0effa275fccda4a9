"""Axes that several figures share: scores and cosines by sparsity, levels of dense variants, limits, log scales.

Rows are the drawn rows. For the drawn quantity `name`, they have the columns `<name>_mean` and `<name>_values`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from isp.reporting import drawing, tables, tabular
from isp.reporting.drawing import Look

Places = dict[tuple[str, str], float]
"""Positions on the axis of tickets by variant and sparsity."""

_STEPS = [1, 2, 2.5, 5, 10]  # ticks are at multiples of these


def room_for_levels(drawn: Sequence[dict[str, Any]]) -> float:
    """Return the width in inches that the names of dense variants need beside the data."""
    dense = [row["variant"] for row in drawn if not float(row["sparsity"])]
    return 0.075 * max(map(len, dense), default=0)


def over_sparsities(
    axes: Axes, rows: Sequence[dict[str, Any]], name: str, styles: Mapping[str, Look], room: float
) -> Places:
    """Draw one line per variant over evenly spaced sparsities; dense variants are horizontal, named at the right.

    Args:
        axes: Axes with the vertical limits and scale already set.
        rows: Rows of one panel.
        name: Name of the drawn quantity.
        styles: Looks of the variants.
        room: Result of `room_for_levels`.

    Returns:
        Positions of the points; dense variants have theirs at the end of their level.
    """
    sparsities = sorted({row["sparsity"] for row in rows if float(row["sparsity"])}, key=float)
    end = max(len(sparsities), 1) - 0.5
    places: Places = {}
    for position, variant in enumerate(own := drawing.variants_of(rows)):
        # beside each other, so that error bars do not hide one another
        shift = 0.24 * ((position + 0.5) / len(own) - 0.5)
        _line_and_level(axes, drawing.rows_of(rows, variant), name, styles[variant], sparsities, shift)
        places |= {(variant, sparsity): index + shift for index, sparsity in enumerate(sparsities)}
        places |= {
            (variant, row["sparsity"]): end for row in drawing.rows_of(rows, variant) if not float(row["sparsity"])
        }
    axes.set_xlim(-0.5, (end + 0.5) * (1 + room / drawing.WIDTH) - 0.5)
    axes.set_xticks(range(len(sparsities)), [tabular.percent(sparsity) for sparsity in sparsities])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("sparsity (%)")
    _name_levels(axes, rows, name, styles, end)
    return places


def _line_and_level(
    axes: Axes, rows: Sequence[dict[str, Any]], name: str, look: Look, sparsities: Sequence[str], shift: float
) -> None:
    """Draw a variant's line over the sparsities, and a horizontal level for its dense tickets."""
    points = sorted((row for row in rows if row["sparsity"] in sparsities), key=lambda row: float(row["sparsity"]))
    if points:
        places = [sparsities.index(row["sparsity"]) + shift for row in points]
        drawing.error_bars(axes, places, points, name, look)
    for row in rows:
        if row["sparsity"] not in sparsities:
            mean, sides = row[f"{name}_mean"], (-0.5, max(len(sparsities), 1) - 0.5)
            axes.plot(sides, (mean, mean), color=look.color, linestyle=look.line, linewidth=1)
            axes.fill_between(sides, *drawing.ends(row, name), color=look.color, alpha=0.1, linewidth=0)


def _name_levels(axes: Axes, rows: Sequence[dict[str, Any]], name: str, styles: Mapping[str, Look], end: float) -> None:
    """Label the dense variants at the right end of their levels, moved apart if they are close."""
    share = axes.transScale + axes.transLimits  # of the height of the axes
    place = blended_transform_factory(axes.transData, axes.transAxes)
    free = 0.0
    for row in sorted(rows, key=lambda row: float(row[f"{name}_mean"])):
        if not float(row["sparsity"]):
            height = max(float(share.transform((0, row[f"{name}_mean"]))[1]), free)
            free = height + 0.055  # a line of text
            color = styles[row["variant"]].color
            axes.text(end + 0.03, height, row["variant"], color=color, fontsize=8, va="center", transform=place)


def cosines(axes: Axes, rows: Sequence[dict[str, Any]], styles: Mapping[str, Look]) -> Places:
    """Draw cosine similarities of masks over evenly spaced sparsities, one line per variant, and the chance level.

    Args:
        axes: Axes of one panel.
        rows: Rows to draw; `cosine_by_chance` is equal in all rows of a sparsity.
        styles: Looks of the variants.

    Returns:
        Positions of the points.
    """
    chances = {row["sparsity"]: row["cosine_by_chance"] for row in rows}
    sparsities = sorted(chances, key=float)
    places: Places = {}
    axes.plot([chances[sparsity] for sparsity in sparsities], **_CHANCE)
    lines = drawing.variants_of(rows)
    for position, variant in enumerate(lines):
        shift = 0.1 * ((position + 0.5) / len(lines) - 0.5)  # so that equal lines do not hide one another
        points = sorted(drawing.rows_of(rows, variant), key=lambda row: float(row["sparsity"]))
        found = [sparsities.index(row["sparsity"]) + shift for row in points]
        drawing.error_bars(axes, found, points, "cosine", styles[variant])
        places |= {(variant, row["sparsity"]): place for row, place in zip(points, found, strict=True)}
    axes.set_xlim(-0.5, len(sparsities) - 0.5)
    axes.set_ylim(0, 1.03)
    axes.set_xticks(range(len(sparsities)), [tabular.percent(sparsity) for sparsity in sparsities])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("sparsity (%)")
    return places


def chance_handle() -> Line2D:
    """Return the legend entry of the chance level."""
    return Line2D([], [], **_CHANCE, label="chance: random masks")


_CHANCE: dict[str, Any] = {"color": "#cccccc", "linewidth": 5, "solid_capstyle": "round"}


def limit(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    """Set limits that include all scores, with a coarser scale at the bottom if there are collapsed tickets.

    A ticket counts as collapsed by Tukey's rule: more than 1.5 interquartile ranges below the lower quartile.
    """
    means = [row[f"{name}_mean"] for row in rows]
    lower, upper = np.percentile(means, (25, 75))
    low, high = limits(rows, name)
    least, top = limits([row for row in rows if row[f"{name}_mean"] >= lower - 1.5 * (upper - lower)], name)
    border = floor(least)
    if top - border > 0.6 * (high - low):
        axes.set_ylim(low, high)
        return
    low -= 0.1 * (border - low)
    fine, coarse = 3 / (top - border), 1 / (border - low)  # three quarters and one quarter of the height
    axes.set_yscale(
        "function",
        functions=(
            lambda score: np.where(score < border, (score - border) * coarse, (score - border) * fine),
            lambda place: border + np.where(place < 0, place / coarse, place / fine),
        ),
    )
    axes.set_ylim(low, top)
    # the first label above the border needs room below it
    below = [tick for tick in MaxNLocator(4, steps=_STEPS).tick_values(low, border) if tick < border - 0.2 / coarse]
    above = [tick for tick in MaxNLocator(7, steps=_STEPS).tick_values(border, top) if tick >= border]
    axes.set_yticks([tick for tick in (*below, *above) if low < tick < top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda score, _: f"{score:g}"))
    axes.axhspan(low, border, color="#f0f0f0", zorder=0, linewidth=0)
    place = blended_transform_factory(axes.transAxes, axes.transData)
    text = f"coarser scale below {border}"
    axes.text(0.99, border, text, transform=place, ha="right", va="top", fontsize=7.5, style="italic", color="#444444")


def limits(rows: Sequence[dict[str, Any]], name: str) -> tuple[float, float]:
    """Return limits that include all error bars, and a margin."""
    ends = [end for row in rows for end in drawing.ends(row, name)]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def log_ticks(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    """Set a few ticks: powers of ten over wide ranges, intermediate steps over narrow ones. Return the limits."""
    lowest, highest = min(values) / 1.25, max(values) * 1.25
    decades = log10(highest / lowest)
    steps = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    if decades < 0.6:
        axis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tables.si(value)))
    return lowest, highest
