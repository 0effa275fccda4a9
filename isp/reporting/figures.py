"""Figures of scores, costs and denoisers from a study's collected rows, as read from CSV files (all values are text).

Each function returns a figure and the rows that it draws, whose columns are in a constant of the same name.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, log
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isp.reporting import drawing, tables, tabular
from isp.reporting.axes import limit, log_ticks, over_sparsities, room_for_levels
from isp.reporting.drawing import Drawing, Look
from isp.reporting.tabular import Row

_SCORE = (
    *("task", "backbone", "variant", "sparsity", "metric", "seeds"),
    *("validation_mean", "validation_sd", "validation_values", "chosen_on"),
)
SCORE_BY_SPARSITY = _SCORE
"""Columns of the rows that `score_by_sparsity` draws."""
SCORE_BY_COST = (*_SCORE, "flops")
"""Columns of the rows that `score_by_cost` draws; flops is a mean over seeds."""
DENOISERS = (
    *("task", "backbone", "variant", "round", "sparsity", "on_line", "seeds"),
    *("changed_mean", "changed_sd", "changed_values", "agreement_mean", "agreement_sd", "agreement_values"),
)
"""Columns of the rows that `denoisers` draws. on_line is "no" for a ticket that left the chain in that round."""

# --- scores -----------------------------------------------------------------------------------------------------------


def score_by_sparsity(metrics: Sequence[Row]) -> Drawing:
    """Plot validation scores against sparsity, one panel per task and backbone, one line per variant."""
    drawn = _scores(metrics)
    if not drawn:
        return drawing.message("No tickets to show."), drawn
    with drawing.style():
        label = room_for_levels(drawn)
        figure, styles = drawing.figure_of(drawn, drawing.WIDTH + label), drawing.looks(drawing.variants_of(drawn))
        for axes, rows in _panels(figure, drawn):
            over_sparsities(axes, rows, "validation", styles, label)
        drawing.legend_of(figure, styles, drawn)
    return figure, drawn


def score_by_cost(metrics: Sequence[Row]) -> Drawing:
    """Plot validation scores against training cost, one panel per task and backbone, one point per ticket."""
    runs = tabular.group(metrics, *tabular.CELL, "variant", "sparsity")
    drawn = []
    for row in _scores(metrics):
        tickets = runs[row["task"], row["backbone"], row["variant"], row["sparsity"]]
        flops = statistics.fmean(tabular.numbers(tickets, "finding_flops", "retraining_flops"))
        if flops > 0:  # zero cost cannot be drawn on a logarithmic axis
            drawn.append({**row, "flops": int(flops)})
    if not drawn:
        return drawing.message("No tickets to show."), drawn
    with drawing.style():
        figure, styles = drawing.figure_of(drawn, drawing.WIDTH), drawing.looks(tabular.distinct(metrics, "variant"))
        sparsities = sorted({row["sparsity"] for row in drawn}, key=float)
        markers = {sparsity: drawing.MARKERS[index % len(drawing.MARKERS)] for index, sparsity in enumerate(sparsities)}
        for axes, rows in _panels(figure, drawn):
            places = _side_by_side(rows)
            axes.set_xscale("log")
            for variant in drawing.variants_of(rows):
                _path(axes, drawing.rows_of(rows, variant), places, styles[variant], markers)
            axes.set_xlim(log_ticks(axes.xaxis, list(places.values())))
            axes.set_xlabel("executed training FLOPs, finding and retraining")
        legend = drawing.legend_of(
            figure, {name: styles[name] for name in drawing.variants_of(drawn)}, drawn, markers=False
        )
        legend.set_title("variant")
        figure.suptitle(
            f"{tabular.seeds_note(drawn, 'bars')},\ntickets of equal cost side by side", fontsize=9, x=0.01, ha="left"
        )
        handles = [
            Line2D([], [], color="#555555", marker=marker, linestyle="", label=f"{tabular.percent(sparsity)} %")
            for sparsity, marker in markers.items()
        ]
        figure.legend(handles=handles, title="sparsity", loc="outside right lower", alignment="left")
    return figure, drawn


def _scores(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of both figures of scores: means and deviations, with variants in the study's order."""
    return [{column: row[column] for column in _SCORE} for row in tables.scores_csv(metrics)]


def _side_by_side(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Return positions of tickets on the cost axis; variants of equal cost (within 1 %) are moved slightly apart."""
    costs = sorted({row["flops"] for row in rows})
    step = 1 + 0.015 * log(costs[-1] / costs[0] * 1.5)
    places: dict[tuple[str, str], float] = {}
    for cost in costs:
        equal = [row for row in rows if abs(row["flops"] / cost - 1) < 0.01]
        variants = drawing.variants_of(equal)
        for row in equal:
            shift = variants.index(row["variant"]) - (len(variants) - 1) / 2
            places.setdefault((row["variant"], row["sparsity"]), row["flops"] * step**shift)
    return places


def _path(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    places: Mapping[tuple[str, str], float],
    look: Look,
    markers: Mapping[str, str],
) -> None:
    """Draw a variant's tickets, connected in order of sparsity."""
    points = sorted(rows, key=lambda row: float(row["sparsity"]))
    costs = [places[row["variant"], row["sparsity"]] for row in points]
    means = [row["validation_mean"] for row in points]
    axes.plot(costs, means, color=look.color, linestyle=look.line, linewidth=0.8, alpha=0.6)
    for row, cost in zip(points, costs, strict=True):
        drawing.error_bars(axes, [cost], [row], "validation", look, marker=markers[row["sparsity"]])


def _panels(figure: Figure, drawn: Sequence[dict[str, Any]]) -> Iterator[tuple[Axes, list[dict[str, Any]]]]:
    """Yield axes of scores for each task and backbone, with their rows."""
    for axes, rows in drawing.panels(figure, drawn):
        axes.set_ylabel(f"validation {rows[0]['metric']} (%)")
        limit(axes, rows, "validation")
        yield axes, rows


# --- denoisers --------------------------------------------------------------------------------------------------------


def denoisers(rounds: Sequence[Row], variants: Sequence[str] = ()) -> Drawing:
    """Plot by round the fraction of the kept weights that the denoisers changed, and the agreement of the weak masks.

    Args:
        rounds: Rows of `collect.rounds`.
        variants: All variants in the study's order, so that colours equal those of the other figures.
    """
    drawn = _events(rounds)
    if not drawn:
        return drawing.message("No variant of this study looks ahead, so there are no denoisers to show."), drawn
    with drawing.style():
        cells = drawing.cells_of(drawn)
        styles = drawing.looks(list(variants) or drawing.variants_of(drawn))
        styles |= {name: look for name, look in drawing.looks(drawing.variants_of(drawn)).items() if name not in styles}
        across, down = min(len(cells), drawing.COLUMNS), ceil(len(cells) / drawing.COLUMNS)
        figure = Figure(figsize=(1.9 + 3.9 * across, 0.3 + 4.5 * down), layout="constrained")
        grid = figure.add_gridspec(2 * down, across)
        for index, ((task, backbone), rows) in enumerate(cells.items()):
            line, column = divmod(index, drawing.COLUMNS)
            upper = figure.add_subplot(grid[2 * line, column])
            lower = figure.add_subplot(grid[2 * line + 1, column], sharex=upper)
            upper.set_title(f"{backbone} on {task}", loc="left")
            for variant in drawing.variants_of(rows):
                own = drawing.rows_of(rows, variant)
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
        names = {variant: styles[variant] for variant in drawing.variants_of(drawn)}
        legend = drawing.legend_of(figure, names, drawn)
        if any(row["on_line"] == "no" for row in drawn):
            text = "off the line: mask of\na ticket that leaves\nthe rounds there"
            label = Line2D([], [], color="#555555", marker="x", markersize=5, linestyle="", label=text)
            figure.legend(handles=[label], loc="outside right lower")
        legend.set_title("variant")
    return figure, drawn


def _events(rounds: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per prune event of the variants with look-aheads, mean and deviation over seeds."""
    drawn = []
    for (task, backbone, variant), rows in tabular.group(rounds, *tabular.CELL, "variant").items():
        if not (tabular.numbers(rows, "agreement") or any(tabular.numbers(rows, "changed"))):
            continue
        on_line = {
            (row["round"], row["sparsity"])
            for same in tabular.group(rows, "seed").values()
            for row in tabular.chain(same)
        }
        events = tabular.group(rows, "round", "sparsity")
        for key in sorted(events, key=lambda key: (int(key[0]), float(key[1]))):
            named: dict[str, Any] = {"task": task, "backbone": backbone, "variant": variant}
            named |= {"round": int(key[0]), "sparsity": key[1]}
            named |= {"on_line": "yes" if key in on_line else "no", "seeds": len(events[key])}
            means = [tabular.summary(name, tabular.numbers(events[key], name), 6) for name in ("changed", "agreement")]
            drawn.append(named | means[0] | means[1])
    return drawn


def _over_rounds(axes: Axes, rows: Sequence[dict[str, Any]], name: str, look: Look, scale: float = 1) -> None:
    found = [row for row in rows if row[f"{name}_mean"] != ""]
    way = [row for row in found if row["on_line"] == "yes"]
    if way:
        drawing.error_bars(axes, [row["round"] for row in way], way, name, look, scale=scale)
    for row in found:
        if row["on_line"] == "no":  # slightly to the right, so that its error bar does not hide the line's
            drawing.error_bars(axes, [row["round"] + 0.25], [row], name, look, marker="x", scale=scale)


def _round_ticks(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Label some rounds with their sparsities, which are ranges if variants prune at different rates."""
    found: dict[int, set[str]] = {}
    for row in rows:
        if row["on_line"] == "yes":
            found.setdefault(row["round"], set()).add(row["sparsity"])
    step = ceil(len(found) / 8)
    # backwards from the last round, because the last rounds matter more than the first
    shown = sorted(found)[::-1][::step]
    texts = [f"{index}\n{_range(found[index])}" for index in shown]
    axes.set_xticks(shown, texts)
    axes.set_xlabel("round, and below it the sparsity that it prunes to (%)")


def _range(sparsities: set[str]) -> str:
    ends = sorted({round(float(sparsity) * 100) for sparsity in sparsities})
    return str(ends[0]) if len(ends) == 1 else f"{ends[0]}–{ends[-1]}"
