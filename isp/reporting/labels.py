"""Texts that fit and do not overlap: widths, line breaks, and names beside the ends of lines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise, product
from typing import cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.text import Annotation

FONT = "DejaVu Sans"
"""Font of all figures; Matplotlib contains it."""


def text_width(text: str, size: float) -> float:
    """Return the width of one line of text in inches at a font size in points."""
    font = get_font(findfont(FONT))
    font.set_size(size, 72)
    font.set_text(text, 0.0, flags=LoadFlags.NO_HINTING)
    return font.get_width_height()[0] / 64 / 72


def shortened(text: str, inches: float, size: float) -> str:
    """Return the text, without its middle if it is wider than `inches`."""
    if text_width(text, size) <= inches:
        return text
    kept = len(text) - 1
    while kept > 2 and text_width(shorter := f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}", size) > inches:
        kept -= 1
    return shorter


def wrapped(text: str, inches: float, size: float) -> str:
    """Break a text at its spaces into lines of at most `inches`; longer words are shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= inches:
            lines[-1] += f" {word}"
        else:
            lines.append(shortened(word, inches, size))
    return "\n".join(lines)


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Ascending heights, moved as little as possible until neighbours are `least` apart; groups keep their mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], least) - _top(groups[-2], least) < least:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, least) + least * index for group in groups for index in range(len(group))]


def _bottom(group: Sequence[float], least: float) -> float:
    return statistics.fmean(group) - least * (len(group) - 1) / 2


def _top(group: Sequence[float], least: float) -> float:
    return statistics.fmean(group) + least * (len(group) - 1) / 2


Points = npt.NDArray[np.float64]
"""Positions in pixels, one per row."""
Box = tuple[float, float, float, float]
"""Left, lower, right and upper end in pixels."""
_POINT = 8.5
_GID = "point"


def point_label(axes: Axes, x: float, y: float, name: str, color: str) -> None:
    """Add a name for a point, which `name_points` moves to a free place."""
    line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    text = axes.annotate(
        shortened(name, 1.5, _POINT),
        (x, y),
        (0, 0),
        textcoords="offset points",
        color=color,
        fontsize=_POINT,
        va="center",
        arrowprops=line,
    )
    text.set_in_layout(False)
    text.set_gid(_GID)


def name_points(figure: Figure, panels: Sequence[Axes]) -> None:
    """Move the labels of points beside their points, so that they hide neither each other nor, if possible, points."""
    figure.draw_without_rendering()  # determines the places of the axes
    for axes in panels:
        found = [cast(Annotation, text) for text in axes.texts if text.get_gid() == _GID]
        scale = figure.dpi / 72
        marks = [axes.transData.transform(np.array(line.get_data(), dtype=float).T) for line in axes.get_lines()]
        points = np.concatenate(marks)
        lines = np.concatenate([_between(mark) for mark in marks])
        inside = axes.get_window_extent()
        boxes: list[Box] = []
        for text in sorted(found, key=lambda text: -float(text.xy[1])):
            x, y = axes.transData.transform(text.xy)
            half, height = text_width(text.get_text(), _POINT) * 36 * scale, 0.62 * _POINT * scale
            best = None
            for distance, (right, up) in product((0, 7, 14, 22, 32, 44), _SIDES):
                dx = right * (half + (7 + distance * (up == 0)) * scale)
                dy = up * (height + (5 + distance) * scale)
                box = (x + dx - half, y + dy - height, x + dx + half, y + dy + height)
                outside = max(inside.x0 - box[0], box[2] - inside.x1, inside.y0 - box[1], box[3] - inside.y1)
                cost = 1000.0 * sum(_overlap(box, other) for other in boxes) + 300 * (outside > -2)
                cost += 6 * _inside(points, box) + _inside(lines, box) + 0.3 * distance
                if best is None or cost < best[0]:
                    best = (cost, dx, dy, box)
            assert best is not None
            boxes.append(best[3])
            text.set_position((best[1] / scale, best[2] / scale))
            text.set_horizontalalignment("center")


_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Sides of a point on which its name may be, the best first."""


def _between(points: Points) -> Points:
    """Return points along the line through the given ones."""
    steps = np.linspace(0, 1, 12)[:, None]
    parts = [start + steps * (stop - start) for start, stop in pairwise(points)]
    return np.concatenate(parts or [points])


def _inside(points: Points, box: Box) -> int:
    return int(np.sum(np.all((points > box[:2]) & (points < box[2:]), axis=1)))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
