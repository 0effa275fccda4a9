"""The figures of a study from its collected rows, as read from CSV files (every value text).

Each function returns a figure and the rows of exactly what it draws, under its constant of columns. No global state of
pyplot is used, and nothing in a written figure depends on the day or the version, so the same rows give the same bytes.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil, floor, log, log10
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from isp.files import write_bytes
from isp.reporting import rows as r
from isp.reporting import tables
from isp.reporting.rows import Row

Drawing = tuple[Figure, list[dict[str, Any]]]
"""A figure, and the rows of what it draws."""

_SCORE = ("task", "backbone", "variant", "sparsity", "metric", "seeds", "validation_mean", "validation_sd")
SCORE_BY_SPARSITY = _SCORE
"""Columns of what `score_by_sparsity` draws."""
SCORE_BY_COST = (*_SCORE, "flops")
"""Columns of what `score_by_cost` draws; flops is a mean over seeds."""
DENOISERS = (
    *("task", "backbone", "variant", "round", "sparsity", "on_line", "seeds"),
    *("changed_mean", "changed_sd", "agreement_mean", "agreement_sd"),
)
"""Columns of what `denoisers` draws; on_line: "yes" on the line, "no" for a ticket that left it in that round."""
LAYER_SPARSITY = ("task", "backbone", "sparsity", "variant", "layer", "label", "seeds", "layer_sparsity_mean")
"""Columns of what `layer_sparsity` draws, as fractions."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours without yellow, which is faint on white; told apart by the colour-blind."""
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
COLUMNS = 3  # panels beside each other
_WIDTH = 3.2  # inches of a panel's data
_COLORS = "viridis"  # of sparsities
_STEPS = [1, 2, 2.5, 5, 10]  # ticks lie at multiples of these


@dataclass(frozen=True)
class Look:
    """How a variant is drawn in every figure: a colour, and when colours run out another line and hollow markers."""

    color: str
    line: Any
    marker: str
    hollow: bool

    @property
    def face(self) -> str:
        """The colour inside a marker."""
        return "white" if self.hollow else self.color


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """A look for each variant, by their order."""
    found = {}
    for index, variant in enumerate(variants):
        turn = index // len(PALETTE)
        marker = MARKERS[index % len(MARKERS)]
        found[variant] = Look(PALETTE[index % len(PALETTE)], LINES[turn % len(LINES)], marker, turn % 2 == 1)
    return found


def save(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.pdf.

    Raises:
        IspError: they cannot be written.
    """
    formats: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")
    for format in formats:
        write_bytes(path.with_name(f"{path.name}.{format}"), render(figure, format))


def render(figure: Figure, format: Literal["png", "pdf"]) -> bytes:
    """The figure's file, without dates and versions."""
    metadata = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    content = io.BytesIO()
    with _style():
        figure.savefig(content, format=format, dpi=DPI, metadata=metadata[format])
    return content.getvalue()


# --- scores -----------------------------------------------------------------------------------------------------------


def score_by_sparsity(metrics: Sequence[Row]) -> Drawing:
    """Validation score against sparsity, a panel a task and backbone, a line a variant; dense ones lie across."""
    drawn = _scores(metrics)
    if not drawn:
        return _message("No tickets to show."), drawn
    with _style():
        dense = [row["variant"] for row in drawn if not float(row["sparsity"])]
        label = 0.075 * max(map(len, dense), default=0)  # inches beside the data
        figure, styles = _figure(drawn, _WIDTH + label), looks(_variants(drawn))
        for axes, rows in _panels(figure, drawn):
            sparsities = sorted({row["sparsity"] for row in rows if float(row["sparsity"])}, key=float)
            end = max(len(sparsities), 1) - 0.5
            for position, variant in enumerate(own := _variants(rows)):
                # beside each other, so that error bars do not hide one another
                shift = 0.24 * ((position + 0.5) / len(own) - 0.5)
                _line_and_level(axes, _of(rows, variant), styles[variant], sparsities, shift)
            axes.set_xlim(-0.5, (end + 0.5) * (1 + label / _WIDTH) - 0.5)
            axes.set_xticks(range(len(sparsities)), [r.percent(sparsity) for sparsity in sparsities])
            axes.grid(visible=False, axis="x")
            axes.set_xlabel("sparsity (%)")
            _name_levels(axes, rows, styles, end)
        _legend(figure, styles, drawn)
    return figure, drawn


def score_by_cost(metrics: Sequence[Row]) -> Drawing:
    """Validation score against what a ticket cost to train, a panel a task and backbone, a point a ticket."""
    runs = r.group(metrics, *r.CELL, "variant", "sparsity")
    drawn = []
    for row in _scores(metrics):
        tickets = runs[row["task"], row["backbone"], row["variant"], row["sparsity"]]
        flops = statistics.fmean(r.numbers(tickets, "finding_flops", "retraining_flops"))
        if flops > 0:  # what cost nothing has no place on a logarithmic axis
            drawn.append({**row, "flops": int(flops)})
    if not drawn:
        return _message("No tickets to show."), drawn
    with _style():
        figure, styles = _figure(drawn, _WIDTH), looks(r.distinct(metrics, "variant"))
        sparsities = sorted({row["sparsity"] for row in drawn}, key=float)
        markers = {sparsity: MARKERS[index % len(MARKERS)] for index, sparsity in enumerate(sparsities)}
        for axes, rows in _panels(figure, drawn):
            places = _side_by_side(rows)
            axes.set_xscale("log")
            for variant in _variants(rows):
                _path(axes, _of(rows, variant), places, styles[variant], markers)
            _log_ticks(axes, list(places.values()))
            axes.set_xlabel("executed training FLOPs, finding and retraining")
        legend = _legend(figure, {name: styles[name] for name in _variants(drawn)}, drawn, markers=False)
        legend.set_title("variant")
        figure.suptitle(f"{_seeds_note(drawn)},\ntickets of equal cost side by side", fontsize=9, x=0.01, ha="left")
        handles = [
            Line2D([], [], color="#555555", marker=marker, linestyle="", label=f"{r.percent(sparsity)} %")
            for sparsity, marker in markers.items()
        ]
        figure.legend(handles=handles, title="sparsity", loc="outside right lower", alignment="left")
    return figure, drawn


def _scores(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """What both figures of scores draw: means and deviations, variants in the study's order."""
    return [{column: row[column] for column in _SCORE} for row in tables.scores_csv(metrics)]


def _line_and_level(
    axes: Axes, rows: Sequence[dict[str, Any]], look: Look, sparsities: Sequence[str], shift: float
) -> None:
    """A variant's line over the sparsities, and a level across the panel where it is dense."""
    points = sorted((row for row in rows if row["sparsity"] in sparsities), key=lambda row: float(row["sparsity"]))
    if points:
        places = [sparsities.index(row["sparsity"]) + shift for row in points]
        _error_bars(axes, places, points, "validation", look)
    for row in rows:
        if row["sparsity"] not in sparsities:
            mean, spread = row["validation_mean"], row["validation_sd"] or 0
            ends = (-0.5, max(len(sparsities), 1) - 0.5)
            axes.plot(ends, (mean, mean), color=look.color, linestyle=look.line, linewidth=1)
            axes.fill_between(ends, mean - spread, mean + spread, color=look.color, alpha=0.1, linewidth=0)


def _side_by_side(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Where tickets lie on the axis of costs: variants of (within 1 %) equal cost a little apart, around that cost."""
    costs = sorted({row["flops"] for row in rows})
    step = 1 + 0.015 * log(costs[-1] / costs[0] * 1.5)
    places: dict[tuple[str, str], float] = {}
    for cost in costs:
        equal = [row for row in rows if abs(row["flops"] / cost - 1) < 0.01]
        variants = _variants(equal)
        for row in equal:
            shift = variants.index(row["variant"]) - (len(variants) - 1) / 2
            places.setdefault((row["variant"], row["sparsity"]), row["flops"] * step**shift)
    return places


def _name_levels(axes: Axes, rows: Sequence[dict[str, Any]], styles: Mapping[str, Look], end: float) -> None:
    """Name the dense variants at the right end of their lines, pushed apart where they are close."""
    share = axes.transScale + axes.transLimits  # of the height of the axes
    place = blended_transform_factory(axes.transData, axes.transAxes)
    free = 0.0
    for row in sorted(rows, key=lambda row: float(row["validation_mean"])):
        if not float(row["sparsity"]):
            height = max(float(share.transform((0, row["validation_mean"]))[1]), free)
            free = height + 0.055  # a line of text
            color = styles[row["variant"]].color
            axes.text(end + 0.03, height, row["variant"], color=color, fontsize=8, va="center", transform=place)


def _path(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    places: Mapping[tuple[str, str], float],
    look: Look,
    markers: Mapping[str, str],
) -> None:
    """A variant's tickets, joined in order of sparsity."""
    points = sorted(rows, key=lambda row: float(row["sparsity"]))
    costs = [places[row["variant"], row["sparsity"]] for row in points]
    means = [row["validation_mean"] for row in points]
    axes.plot(costs, means, color=look.color, linestyle=look.line, linewidth=0.8, alpha=0.6)
    for row, cost in zip(points, costs, strict=True):
        _error_bars(axes, [cost], [row], "validation", look, marker=markers[row["sparsity"]])


def _log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Few ticks in plain words: powers of ten over wide ranges, steps between over narrow ones."""
    lowest, highest = min(values) / 1.25, max(values) * 1.25
    decades = log10(highest / lowest)
    steps = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axes.set_xlim(lowest, highest)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    if decades < 0.6:
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tables.si(value)))


# --- denoisers --------------------------------------------------------------------------------------------------------


def denoisers(rounds: Sequence[Row], variants: Sequence[str] = ()) -> Drawing:
    """By round, which share of the kept weights the denoisers changed and how far the weak masks agreed.

    Args:
        rounds: rows of `collect.rounds`.
        variants: all of the study in its order, so that colours are those of the other figures.
    """
    drawn = _events(rounds)
    if not drawn:
        return _message("No variant of this study looks ahead, so there are no denoisers to show."), drawn
    with _style():
        cells = _cells(drawn)
        styles = looks(list(variants) or _variants(drawn))
        styles |= {name: look for name, look in looks(_variants(drawn)).items() if name not in styles}
        across, down = min(len(cells), COLUMNS), ceil(len(cells) / COLUMNS)
        figure = Figure(figsize=(1.9 + 3.9 * across, 0.3 + 4.5 * down), layout="constrained")
        grid = figure.add_gridspec(2 * down, across)
        for index, ((task, backbone), rows) in enumerate(cells.items()):
            line, column = divmod(index, COLUMNS)
            upper = figure.add_subplot(grid[2 * line, column])
            lower = figure.add_subplot(grid[2 * line + 1, column], sharex=upper)
            upper.set_title(f"{backbone} on {task}", loc="left")
            for variant in _variants(rows):
                own = _of(rows, variant)
                _over_rounds(upper, own, "changed", styles[variant], scale=100)
                _over_rounds(lower, own, "agreement", styles[variant])
            upper.set_ylim(bottom=0)
            upper.tick_params(labelbottom=False)
            lower.set_ylim(top=1)
            if not any(row["agreement_mean"] != "" for row in rows):
                lower.set_yticks([])
                text = "this rule of superposition makes no weak masks"
                lower.text(0.5, 0.5, text, ha="center", transform=lower.transAxes)
            _round_ticks(lower, rows)
            if column == 0:
                upper.set_ylabel("kept weights that the\ndenoisers changed (%)")
                lower.set_ylabel("agreement of weak masks\n(mean Jaccard index)")
        names = {variant: styles[variant] for variant in _variants(drawn)}
        legend = _legend(figure, names, drawn)
        if any(row["on_line"] == "no" for row in drawn):
            text = "off the line: mask of\na ticket that leaves\nthe rounds there"
            label = Line2D([], [], color="#555555", marker="x", markersize=5, linestyle="", label=text)
            figure.legend(handles=[label], loc="outside right lower")
        legend.set_title("variant")
    return figure, drawn


def _events(rounds: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each prune event of the variants that look ahead, mean and deviation over seeds."""
    drawn = []
    for (task, backbone, variant), rows in r.group(rounds, *r.CELL, "variant").items():
        if not (r.numbers(rows, "agreement") or any(r.numbers(rows, "changed"))):
            continue
        on_line = {(row["round"], row["sparsity"]) for same in r.group(rows, "seed").values() for row in r.chain(same)}
        events = r.group(rows, "round", "sparsity")
        for key in sorted(events, key=lambda key: (int(key[0]), float(key[1]))):
            named: dict[str, Any] = {"task": task, "backbone": backbone, "variant": variant}
            named |= {"round": int(key[0]), "sparsity": key[1]}
            named |= {"on_line": "yes" if key in on_line else "no", "seeds": len(events[key])}
            means = [r.summary(name, r.numbers(events[key], name), 6) for name in ("changed", "agreement")]
            drawn.append(named | means[0] | means[1])
    return drawn


def _over_rounds(axes: Axes, rows: Sequence[dict[str, Any]], name: str, look: Look, scale: float = 1) -> None:
    found = [row for row in rows if row[f"{name}_mean"] != ""]
    way = [row for row in found if row["on_line"] == "yes"]
    if way:
        _error_bars(axes, [row["round"] for row in way], way, name, look, scale=scale)
    for row in found:
        if row["on_line"] == "no":  # a little to the right, so that its bar can be told from the line's
            _error_bars(axes, [row["round"] + 0.25], [row], name, look, marker="x", scale=scale)


def _round_ticks(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Some rounds with their sparsity below; only the number where variants prune at different paces."""
    found: dict[int, set[str]] = {}
    for row in rows:
        if row["on_line"] == "yes":
            found.setdefault(row["round"], set()).add(row["sparsity"])
    step = ceil(len(found) / 8)
    # from the last round back: the end of the way matters more than its first step
    shown = sorted(found)[::-1][::step]
    texts = [f"{index}\n{_range(found[index])}" for index in shown]
    axes.set_xticks(shown, texts)
    axes.set_xlabel("round, and below it the sparsity that it prunes to (%)")


def _range(sparsities: set[str]) -> str:
    ends = sorted({round(float(sparsity) * 100) for sparsity in sparsities})
    return str(ends[0]) if len(ends) == 1 else f"{ends[0]}–{ends[-1]}"


# --- layers -----------------------------------------------------------------------------------------------------------


def layer_sparsity(layers: Sequence[Row]) -> Drawing:
    """Sparsity of every prunable layer: a row of panels a task and backbone, a column a sparsity, a line a variant."""
    pruned = [row for row in layers if float(r.cell(row, "sparsity"))]
    drawn = _layers(pruned)
    if not drawn:
        return _message("No pruned tickets to show."), drawn
    with _style():
        cells = _cells(drawn)
        sparsities = {cell: sorted({row["sparsity"] for row in rows}, key=float) for cell, rows in cells.items()}
        labels = {cell: list(dict.fromkeys(row["label"] for row in rows)) for cell, rows in cells.items()}
        across = max(map(len, sparsities.values()))
        width = min(max(2.6, 0.15 * max(map(len, labels.values()))), 5.5)
        heights = [max(1.1, 0.21 * len(_variants(rows))) for rows in cells.values()]
        names = 0.075 * max(map(len, _variants(drawn)))
        size = (0.5 + names + (width + 0.9) * across, 0.5 + sum(heights) + 1.25 * len(cells))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))
        grid = figure.add_gridspec(len(cells), across, height_ratios=heights)
        for line, (cell, rows) in enumerate(cells.items()):
            for column, sparsity in enumerate(sparsities[cell]):
                axes = figure.add_subplot(grid[line, column])
                # tickets of one sparsity have one scale, whatever their task
                shares = [100 * row["layer_sparsity_mean"] for row in drawn if row["sparsity"] == sparsity]
                colors = Normalize(min(shares), max(max(shares), min(shares) + 0.01))
                own = [row for row in rows if row["sparsity"] == sparsity]
                _heatmap(axes, own, _variants(rows), labels[cell], colors, width)
                axes.set_title(f"{cell[1]} on {cell[0]}\n{r.percent(sparsity)} %", loc="left")
                axes.tick_params(labelleft=column == 0)
                bar = figure.colorbar(ScalarMappable(colors, _COLORS), ax=axes, pad=0.02, aspect=15)
                bar.set_label("sparsity (%)")
                bar.outline.set_visible(False)
        figure.suptitle(f"sparsity of each layer, {_seeds_note(drawn, spread=False)}", fontsize=9, x=0.01, ha="left")
    return figure, drawn


def _layers(layers: Sequence[Row]) -> list[dict[str, Any]]:
    drawn = []
    for (task, backbone), cell in r.group(layers, *r.CELL).items():
        labels = short_names(r.distinct(cell, "layer"))
        tickets = r.group(cell, "variant", "sparsity", "layer")
        variants = r.distinct(cell, "variant")
        for (variant, sparsity, layer), rows in sorted(tickets.items(), key=lambda item: variants.index(item[0][0])):
            zeros, weights = r.numbers(rows, "zero_weights"), r.numbers(rows, "weights")
            mean = statistics.fmean(zero / count for zero, count in zip(zeros, weights, strict=True))
            named: dict[str, Any] = {"task": task, "backbone": backbone, "sparsity": sparsity}
            named |= {"variant": variant, "layer": layer, "label": labels[layer], "seeds": len(rows)}
            drawn.append(named | {"layer_sparsity_mean": round(mean, 6)})
    return drawn


def _heatmap(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    variants: Sequence[str],
    labels: Sequence[str],
    colors: Normalize,
    width: float,
) -> None:
    """A cell a variant and layer; grey where a variant has no such ticket, a thin line between blocks."""
    values = np.full((len(variants), len(labels)), np.nan)
    at = {label: index for index, label in enumerate(labels)}
    for row in rows:
        values[variants.index(row["variant"]), at[row["label"]]] = 100 * row["layer_sparsity_mean"]
    axes.imshow(values, cmap=_COLORS, norm=colors, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#dddddd")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(variants)), list(variants))
    blocks = [label.split(" ")[0] for label in labels]
    starts = [index for index in range(1, len(labels)) if blocks[index] != blocks[index - 1]]
    for start in starts:
        axes.axvline(start - 0.5, color="white", linewidth=0.8)
    step = ceil(0.12 * len(labels) / width)  # a label needs 0.12 inch
    if step > 1 and starts:
        # only whole blocks, or an even part of one, so that the labels keep step with the blocks
        step = next((part for part in range(step, starts[0] + 1) if starts[0] % part == 0), step)
    axes.set_xticks(range(0, len(labels), step), list(labels)[::step], rotation=90, fontsize=7.5)
    axes.tick_params(length=0)


def short_names(layers: Sequence[str]) -> dict[str, str]:
    """Short, distinct names: the number of the block and the end of the path, "0 in_proj".

    Of the path's end as many parts are taken as tell the layers apart; what all names end in ("weight") is left out.
    """
    parts = {layer: (layer.removesuffix("weight").rstrip("._") or layer).split(".") for layer in layers}
    split = {}
    for layer, path in parts.items():
        block = next((index for index, part in enumerate(path) if part.isdigit()), -1)
        split[layer] = (path[block] + " " if block >= 0 else "", path[block + 1 :] or path)
    names = {layer: head + tail[-1] for layer, (head, tail) in split.items()}
    for length in range(2, max((len(path) for path in parts.values()), default=0) + 1):
        taken = list(names.values())
        names = {
            layer: head + ".".join(tail[-length:]) if taken.count(names[layer]) > 1 else names[layer]
            for layer, (head, tail) in split.items()
        }
    if len(set(names.values())) < len(names):
        return {layer: layer for layer in layers}
    return names


# --- what figures share -----------------------------------------------------------------------------------------------


def _panels(figure: Figure, drawn: Sequence[dict[str, Any]]) -> Iterator[tuple[Axes, list[dict[str, Any]]]]:
    """Axes of scores for each task and backbone, and the rows that belong there."""
    cells = _cells(drawn)
    grid = figure.add_gridspec(ceil(len(cells) / COLUMNS), min(len(cells), COLUMNS))
    for index, ((task, backbone), rows) in enumerate(cells.items()):
        axes = figure.add_subplot(grid[divmod(index, COLUMNS)])
        axes.set_title(f"{backbone} on {task}", loc="left")
        axes.set_ylabel(f"validation {rows[0]['metric']} (%)")
        _score_axis(axes, rows)
        yield axes, rows


def _score_axis(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Limits over all scores, and a coarser scale at the bottom where collapsed tickets would squeeze the rest.

    Collapsed is what lies below the rest by Tukey's rule: more than 1.5 interquartile ranges under the lower quartile.
    """
    means = [row["validation_mean"] for row in rows]
    lower, upper = np.percentile(means, (25, 75))
    low, high = _limits(rows)
    least, top = _limits([row for row in rows if row["validation_mean"] >= lower - 1.5 * (upper - lower)])
    border = floor(least)
    if top - border > 0.6 * (high - low):
        axes.set_ylim(low, high)
        return
    low -= 0.1 * (border - low)
    fine, coarse = 3 / (top - border), 1 / (border - low)  # three quarters of the height, and the last one
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


def _limits(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    ends = [row["validation_mean"] + sign * (row["validation_sd"] or 0) for row in rows for sign in (-1, 1)]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _error_bars(
    axes: Axes,
    places: Sequence[float],
    rows: Sequence[dict[str, Any]],
    name: str,
    look: Look,
    marker: str = "",
    scale: float = 1,
) -> None:
    """A line through means with a bar of one deviation up and down where there is one."""
    means = [row[f"{name}_mean"] * scale for row in rows]
    spreads = [(row[f"{name}_sd"] or 0) * scale for row in rows]
    axes.errorbar(
        places,
        means,
        yerr=spreads if any(spreads) else None,
        color=look.color,
        linestyle=look.line,
        linewidth=1.3,
        elinewidth=0.9,
        capsize=2,
        marker=marker or look.marker,
        markersize=5,
        markerfacecolor=look.face,
    )


def _figure(drawn: Sequence[dict[str, Any]], width: float) -> Figure:
    """A figure for panels of `width` inches and a legend beside them."""
    panels, variants = len(_cells(drawn)), _variants(drawn)
    legend = 0.9 + 0.08 * max(map(len, variants)), 1.0 + 0.2 * len(variants) + 0.2 * len(r.distinct(drawn, "sparsity"))
    height = 0.4 + 3.1 * ceil(panels / COLUMNS)
    size = (legend[0] + (width + 0.7) * min(panels, COLUMNS), max(height, legend[1]))
    return Figure(figsize=size, layout="constrained")


def _legend(
    figure: Figure, styles: Mapping[str, Look], drawn: Sequence[dict[str, Any]], markers: bool = True
) -> Legend:
    figure.suptitle(_seeds_note(drawn), fontsize=9, x=0.01, ha="left")
    pruned = {row["variant"] for row in drawn if float(row["sparsity"])}
    levels = set(styles) - pruned if markers else set()  # drawn as a line across, without markers
    handles = [
        Line2D(
            *([], []),
            color=look.color,
            linestyle=look.line,
            linewidth=1.3,
            marker="" if variant in levels else look.marker if markers else "o",
            markersize=5,
            markerfacecolor=look.face,
            label=f"{variant} (0 %)" if variant in levels else variant,
        )
        for variant, look in styles.items()
    ]
    return figure.legend(handles=handles, loc="outside right upper", handlelength=3, alignment="left")


def _seeds_note(drawn: Sequence[dict[str, Any]], spread: bool = True) -> str:
    seeds = sorted({row["seeds"] for row in drawn})
    if seeds == [1]:
        return "one seed" + (", so no deviations" if spread else "")
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"mean {'± standard deviation ' if spread else ''}over {count} seeds"


def _message(text: str) -> Figure:
    with _style():
        figure = Figure(figsize=(6, 1.2))
        figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    return figure


def _cells(drawn: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in drawn:
        cells.setdefault((row["task"], row["backbone"]), []).append(row)
    return cells


def _of(drawn: Sequence[dict[str, Any]], variant: str) -> list[dict[str, Any]]:
    return [row for row in drawn if row["variant"] == variant]


def _variants(drawn: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in drawn))


def _style() -> AbstractContextManager[None]:
    """Matplotlib's defaults and ours, whatever a user's matplotlibrc says."""
    return matplotlib.style.context(["default", STYLE])
