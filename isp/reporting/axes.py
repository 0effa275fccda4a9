"""Axes that several figures share: scores and cosines by sparsity, levels of dense variants, limits, log scales.

Rows are the drawn rows. For the drawn quantity `name`, they have the columns `<name>_mean` and `<name>_values`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from isp.reporting import drawing, labels, tables, tabular
from isp.reporting.looks import Look

Places = dict[tuple[str, str], float]
"""Positions on the axis of tickets by variant and sparsity."""

_STEPS = [1, 2, 2.5, 5, 10]  # ticks are at multiples of these


CHANCE: dict[str, Any] = {"color": "#cccccc", "linewidth": 4, "solid_capstyle": "round", "zorder": 1}
"""Style of the level that random masks reach."""
COARSE = "Shaded part of an axis: coarser scale."
"""Note for an axis with a coarser part."""
_LABEL = 8.5
"""Size of the names of lines in points."""
_HEIGHT = 1.6
"""Least height of a panel of lines in inches, which determines how far apart names must be."""


def over_sparsities(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    name: str,
    styles: Mapping[str, Look],
    faint: Collection[str] = (),
    others: Sequence[End] = (),
) -> Places:
    """Draw one line per variant over evenly spaced sparsities with its name beside it; dense variants are horizontal.

    Args:
        axes: Axes with the vertical limits and scale already set.
        rows: Rows of one panel.
        name: Name of the drawn quantity.
        styles: Looks of the variants.
        faint: Variants that are drawn faintly.
        others: Ends of other lines to name.

    Returns:
        Positions of the points; dense variants have theirs at the end of their level.
    """
    sparsities = sorted({row["sparsity"] for row in rows if float(row["sparsity"])}, key=float)
    end = max(len(sparsities), 1) - 0.5
    places: Places = {}
    ends = list(others)
    for position, variant in enumerate(variants := drawing.variants_of(rows)):
        # beside each other, so that error bars do not hide one another
        shift = 0.3 * ((position + 0.5) / len(variants) - 0.5)
        own, look = drawing.rows_of(rows, variant), styles[variant]
        alpha = 0.4 if variant in faint else 1.0
        points = sorted((row for row in own if float(row["sparsity"])), key=lambda row: float(row["sparsity"]))
        levels = [row for row in own if not float(row["sparsity"])]
        if points:
            found = [sparsities.index(row["sparsity"]) + shift for row in points]
            drawing.error_bars(axes, found, points, name, look, alpha=alpha)
            places |= {(variant, row["sparsity"]): place for row, place in zip(points, found, strict=True)}
            marked = variant + tabular.CHOSEN * bool(points[-1].get("chosen_on"))
            ends.append(End(found[-1], points[-1][f"{name}_mean"], marked, look.hue))
        for row in levels:
            mean, sides = row[f"{name}_mean"], (-0.5, end)
            axes.plot(sides, (mean, mean), color=look.color, linestyle=look.line, linewidth=1, alpha=alpha)
            axes.fill_between(sides, *drawing.ends(row, name), color=look.color, alpha=0.1 * alpha, linewidth=0)
            places[variant, row["sparsity"]] = end
            text = f"{variant} (0 %)" if points else variant
            ends.append(End(end, mean, text, look.hue))
    axes.set_xlim(-0.5, end)
    axes.set_xticks(range(len(sparsities)), [tabular.percent(sparsity) for sparsity in sparsities])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("sparsity (%)")
    name_ends(axes, ends)
    return places


@dataclass(frozen=True)
class End:
    """End of a line that is named beside the panel: its position in data coordinates, its name and its colour."""

    x: float
    y: float
    name: str
    color: str


def name_ends(axes: Axes, ends: Sequence[End], height: float = _HEIGHT) -> None:
    """Write the name of each line to the right of the axes, moved apart if ends are close, with a thin line to it.

    Args:
        axes: Axes with their final limits.
        ends: Ends of the lines.
        height: Least height of the axes in inches.
    """
    share = axes.transScale + axes.transLimits  # of the size of the axes
    ordered = sorted(ends, key=lambda end: float(share.transform((end.x, end.y))[1]))
    least = 1.25 * _LABEL / 72 / height
    heights = labels.apart([float(share.transform((end.x, end.y))[1]) for end in ordered], least)
    excess = max(heights[-1] - 1.0, 0.0) if heights else 0.0
    excess += min(heights[0] - excess, 0.0) if heights else 0.0
    for end, place in zip(ordered, heights, strict=True):
        line = {"arrowstyle": "-", "color": end.color, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
        line["relpos"] = (0, 0.5)  # from the left of the name; from its middle, lines would cross other names
        axes.annotate(
            labels.shortened(end.name, 1.5, _LABEL),
            (end.x, end.y),
            (1.04, place - excess),
            textcoords="axes fraction",
            color=end.color,
            fontsize=_LABEL,
            va="center",
            annotation_clip=False,
            arrowprops=line,
        )


def cosines(
    axes: Axes, rows: Sequence[dict[str, Any]], styles: Mapping[str, Look], faint: Collection[str] = ()
) -> Places:
    """Draw cosine similarities of masks over evenly spaced sparsities, one line per variant, and the chance level.

    Args:
        axes: Axes of one panel.
        rows: Rows to draw; `cosine_by_chance` is equal in all rows of a sparsity.
        styles: Looks of the variants.
        faint: Variants that are drawn faintly.

    Returns:
        Positions of the points.
    """
    chances = {row["sparsity"]: row["cosine_by_chance"] for row in rows}
    levels = [chances[sparsity] for sparsity in sorted(chances, key=float)]
    axes.plot(levels, **CHANCE)
    axes.set_ylim(0, 1.03)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    end = End(len(levels) - 1, levels[-1], "random masks", "#666666")
    return over_sparsities(axes, rows, "cosine", styles, faint, [end])


def set_score_scale(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    name: str,
    axis: Literal["x", "y"] = "y",
    ticks: int = 6,
    *,
    with_seeds: bool = False,
) -> bool:
    """Set limits that include all scores, with a coarser scale at the lower end if there are collapsed tickets.

    A ticket counts as collapsed by Tukey's rule: more than 1.5 interquartile ranges below the lower quartile.

    Args:
        axes: Axes to change.
        rows: Rows to draw.
        name: Name of the drawn quantity.
        axis: Axis of the scores.
        ticks: Approximate number of ticks.
        with_seeds: Whether the limits also include the values of single seeds.

    Returns:
        Whether there is a coarser part, which is shaded.
    """
    ruler = axes.xaxis if axis == "x" else axes.yaxis
    set_limits = axes.set_xlim if axis == "x" else axes.set_ylim
    means = [row[f"{name}_mean"] for row in rows]
    lower, upper = np.percentile(means, (25, 75))
    low, high = limits(rows, name, with_seeds)
    usual = [row for row in rows if row[f"{name}_mean"] >= lower - 1.5 * (upper - lower)]
    least, top = limits(usual, name, with_seeds)
    border = floor(least)
    if top - border > 0.6 * (high - low):
        ruler.set_major_locator(MaxNLocator(ticks, steps=_STEPS))
        set_limits(low, high)
        return False
    low -= 0.1 * (border - low)
    fine, coarse = 3 / (top - border), 1 / (border - low)  # three quarters and one quarter of the length
    functions = (
        lambda score: np.where(score < border, (score - border) * coarse, (score - border) * fine),
        lambda place: border + np.where(place < 0, place / coarse, place / fine),
    )
    (axes.set_xscale if axis == "x" else axes.set_yscale)("function", functions=functions)
    set_limits(low, top)
    # the first label above the border needs room below it
    room = {"x": 0.45, "y": 0.2}[axis] / coarse
    below = [tick for tick in MaxNLocator(4, steps=_STEPS).tick_values(low, border) if low < tick < border - room]
    above = [tick for tick in MaxNLocator(ticks, steps=_STEPS).tick_values(border, top) if tick >= border]
    if axis == "x":
        below = below[:1]
    ruler.set_ticks([tick for tick in (*below, *above) if low < tick < top])
    ruler.set_major_formatter(FuncFormatter(lambda score, _: f"{score:g}"))
    (axes.axvspan if axis == "x" else axes.axhspan)(low, border, color="#f3e9cf", zorder=0, linewidth=0)
    return True


def limits(rows: Sequence[dict[str, Any]], name: str, with_seeds: bool = False) -> tuple[float, float]:
    """Return limits that include all error bars, if wanted also the values of single seeds, and a margin."""
    ends = [end for row in rows for end in drawing.ends(row, name)]
    if with_seeds:
        ends += [value for row in rows for value in tabular.split(row.get(f"{name}_values", ""))]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def log_ticks(axis: Axis, values: Sequence[float], most: int = 4) -> tuple[float, float]:
    """Set about `most` ticks or fewer: powers of ten over wide ranges, steps between them over narrow ones.

    Returns:
        Limits that include all values.
    """
    lowest, highest = min(values) / 1.25, max(values) * 1.25
    decades = log10(highest / lowest)
    steps = (1.0,) if decades > most / 1.6 else (1.0, 3.0) if decades > most / 2.7 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    if decades < 0.6:
        axis.set_major_locator(MaxNLocator(most, steps=_STEPS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tables.si(value)))
    return lowest, highest
