"""The paper's figures for any study: scores and FLOPs by sparsity (Fig. 1), LTH and one-shot pruning (Fig. 3).

They show test scores, as the paper does, and the published scores for the same backbone, task, row and sparsity. Each
function returns a figure and the rows that it draws, whose columns are in a constant of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isp.reporting import drawing, paper, published, tables, tabular
from isp.reporting.axes import (
    Places,
    chance_handle,
    cosines,
    limit,
    limits,
    log_ticks,
    over_sparsities,
    room_for_levels,
)
from isp.reporting.drawing import Drawing, Look
from isp.reporting.tabular import Row

_SCORE = (
    *("task", "backbone", "variant", "sparsity", "metric", "seeds"),
    *("test_mean", "test_sd", "test_values", "published_as", "published", "source"),
)
PAPER_FIGURE_1 = (*_SCORE, "flops_mean", "flops_sd", "flops_values")
"""Columns of the rows that `paper_figure_1` draws; flops: executed training FLOPs, finding and retraining together."""
_COSINE = ("cosine_mean", "cosine_sd", "cosine_values", "cosine_by_chance", "published_cosine")
PAPER_FIGURE_3 = (*_SCORE, *_COSINE)
"""Columns of the rows that `paper_figure_3` draws; the rows of LTH contain the cosine of its mask and one-shot's."""

_STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 8,
    "linestyle": "",
    "markeredgecolor": "black",
    "markeredgewidth": 0.5,
    "zorder": 5,
}


def paper_figure_1(metrics: Sequence[Row]) -> Drawing:
    """Plot test scores (left) and executed training FLOPs (right) against sparsity, one line per variant."""
    tickets, drawn = tabular.tickets(metrics), []
    for row in _scores(metrics):
        own = tickets[row["task"], row["backbone"], row["variant"], row["sparsity"]]
        drawn.append(row | tabular.summary("flops", tabular.numbers(own, "finding_flops", "retraining_flops"), 0))
    if not any(float(row["sparsity"]) for row in drawn):
        return drawing.message("No pruned tickets to show."), []
    with drawing.style():
        styles, room = drawing.looks(tabular.distinct(metrics, "variant")), room_for_levels(drawn)
        figure = drawing.sized(drawn, drawing.WIDTH + room, 2, len(drawing.cells_of(drawn)))
        for left, right, rows in _pairs_of_panels(figure, drawn):
            limit(left, _with_theirs(rows), "test")
            _score_panel(left, rows, styles, room)
            costly = [row for row in rows if row["flops_mean"] > 0]  # zero cost has no logarithm
            right.set_yscale("log")
            right.set_ylim(log_ticks(right.yaxis, [row["flops_mean"] for row in costly] or [1.0]))
            over_sparsities(right, costly, "flops", styles, room)
            right.set_ylabel("executed training FLOPs,\nfinding and retraining")
        _legend(figure, styles, drawn, [])
    return figure, drawn


def paper_figure_3(metrics: Sequence[Row], similarity: Sequence[Row]) -> Drawing:
    """Plot LTH and one-shot pruning by sparsity: test scores (left) and the cosine similarity of their masks (right).

    Each method is represented by the variant with its name, otherwise by its first variant.

    Args:
        metrics: Rows of `collect.metrics`.
        similarity: Rows of `collect.similarity`.
    """
    drawn = _lth_and_one_shot(metrics, similarity)
    if not drawn:
        return drawing.message("No task of this study has both LTH and one-shot to compare."), drawn
    with drawing.style():
        # only three variants, so they get their own colours: the study's colours may be equal for all three
        styles, room = drawing.looks(drawing.variants_of(drawn)), room_for_levels(drawn)
        figure = drawing.sized(drawn, drawing.WIDTH + room, 2, len(drawing.cells_of(drawn)))
        for left, right, rows in _pairs_of_panels(figure, drawn):
            left.set_ylim(limits(_with_theirs(rows), "test"))
            _score_panel(left, rows, styles, room)
            compared = [row for row in rows if row["cosine_mean"] != ""]
            places = cosines(right, compared, styles)
            right.set_ylabel("cosine similarity of\ntheir masks")
            _stars(right, compared, "published_cosine", styles, places)
        _legend(figure, styles, drawn, [chance_handle()])
    return figure, drawn


def _scores(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """Return test scores with the published ones, except doubtful ones (Table 5) and those of another method."""
    found = []
    for row in paper.csv_rows(metrics):
        if row["variant"] and row["test_mean"] != "":
            doubtful = row["difference"] == "" or published.TABLE_5 in row["note"]
            shown = row | (dict.fromkeys(("published_as", "published", "source"), "") if doubtful else {})
            found.append({column: shown[column] for column in _SCORE})
    return found


def _lth_and_one_shot(metrics: Sequence[Row], similarity: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of both variants and of the dense one, for the tasks on which both are compared."""
    dense, chosen = tabular.dense(metrics), [_first(metrics, method) for method in ("one_shot", "lth")]
    alike = {
        (row["task"], row["backbone"], row["sparsity"]): row
        for row in tables.similarity_csv(similarity)
        if {row["variant_a"], row["variant_b"]} == set(chosen)
    }
    compared = {(task, backbone) for task, backbone, _ in alike}
    theirs = {(own.task, own.backbone, own.sparsity): own.score / 100 for own in published.cosines()}
    drawn = []
    for row in _scores(metrics):
        if row["variant"] in (dense, *chosen) and (row["task"], row["backbone"]) in compared:
            place = (row["task"], row["backbone"], row["sparsity"])
            masks: dict[str, Any] = dict.fromkeys(_COSINE, "")
            if row["variant"] == chosen[1] and place in alike:
                masks |= {column: alike[place][column] for column in _COSINE[:-1]}
                masks |= {"published_cosine": theirs.get(place, "")}
            drawn.append(row | masks)
    return drawn


def _first(metrics: Sequence[Row], method: str) -> str | None:
    """Return the variant with the name of the method, otherwise the method's first variant."""
    names = tabular.distinct([row for row in metrics if tabular.cell(row, "method") == method], "variant")
    return min(names, key=lambda name: name != method, default=None)


def _pairs_of_panels(
    figure: Figure, drawn: Sequence[dict[str, Any]]
) -> Iterator[tuple[Axes, Axes, list[dict[str, Any]]]]:
    """Yield two adjacent axes for each task and backbone, with their rows."""
    cells = drawing.cells_of(drawn)
    grid = figure.add_gridspec(len(cells), 2)
    for line, ((task, backbone), rows) in enumerate(cells.items()):
        left, right = (figure.add_subplot(grid[line, column]) for column in (0, 1))
        left.set_title(f"{backbone} on {task}", loc="left")
        yield left, right, rows


def _with_theirs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and the published scores in the form of rows."""
    return [*rows, *({"test_mean": row["published"]} for row in rows if row["published"] != "")]


def _score_panel(axes: Axes, rows: Sequence[dict[str, Any]], styles: Mapping[str, Look], room: float) -> None:
    places = over_sparsities(axes, rows, "test", styles, room)
    axes.set_ylabel(f"test {rows[0]['metric']} (%)")
    _stars(axes, rows, "published", styles, places)


def _stars(axes: Axes, rows: Sequence[dict[str, Any]], name: str, styles: Mapping[str, Look], places: Places) -> None:
    """Draw the published values in the colours of the variants; those of dense variants at the end of their levels."""
    for row in rows:
        if row[name] != "":
            place = places[row["variant"], row["sparsity"]]
            axes.plot([place], [row[name]], color=styles[row["variant"]].color, **_STAR)


def _legend(
    figure: Figure, styles: Mapping[str, Look], drawn: Sequence[dict[str, Any]], others: Sequence[Line2D]
) -> None:
    """Add the legend of the variants, and below it the other entries and that of the stars, if there are any."""
    shown, handles = drawing.variants_of(drawn), list(others)
    drawing.legend_of(figure, {name: look for name, look in styles.items() if name in shown}, drawn)
    if any(row["published"] != "" or row.get("published_cosine", "") != "" for row in drawn):
        handles.append(Line2D([], [], color="white", **_STAR, label="as published"))
    if handles:
        figure.legend(handles=handles, loc="outside right lower", handlelength=3, alignment="left")
