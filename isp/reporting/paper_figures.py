"""The figures of the paper for any study: scores and FLOPs by sparsity (Fig. 1), LTH against one-shot (Fig. 3).

They show test scores, as the paper does, and what it published where a study has the same backbone, task, row and
sparsity. Each function returns a figure and the rows of exactly what it draws, under its constant of columns.
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
"""Columns of what `paper_figure_1` draws; flops: executed in training, finding and retraining together."""
_COSINE = ("cosine_mean", "cosine_sd", "cosine_values", "cosine_by_chance", "published_cosine")
PAPER_FIGURE_3 = (*_SCORE, *_COSINE)
"""Columns of what `paper_figure_3` draws; the cosine of the masks of LTH and one-shot stands with LTH."""

_STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 8,
    "linestyle": "",
    "markeredgecolor": "black",
    "markeredgewidth": 0.5,
    "zorder": 5,
}


def paper_figure_1(metrics: Sequence[Row]) -> Drawing:
    """Test score (left) and executed training FLOPs (right) against sparsity, a line a variant, dense ones across."""
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
            costly = [row for row in rows if row["flops_mean"] > 0]  # what cost nothing has no logarithm
            right.set_yscale("log")
            right.set_ylim(log_ticks(right.yaxis, [row["flops_mean"] for row in costly] or [1.0]))
            over_sparsities(right, costly, "flops", styles, room)
            right.set_ylabel("executed training FLOPs,\nfinding and retraining")
        _legend(figure, styles, drawn, [])
    return figure, drawn


def paper_figure_3(metrics: Sequence[Row], similarity: Sequence[Row]) -> Drawing:
    """LTH against one-shot: test scores of both (left) and the cosine similarity of their masks (right) by sparsity.

    Of each method the variant of its name is taken, or else the first.

    Args:
        metrics: rows of `collect.metrics`.
        similarity: rows of `collect.similarity`.
    """
    drawn = _lth_and_one_shot(metrics, similarity)
    if not drawn:
        return drawing.message("No task of this study has both LTH and one-shot to compare."), drawn
    with drawing.style():
        # three variants, so colours of their own: those of the whole study may be the same for all three
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
    """Test scores, and beside them the published ones, except those in doubt (Table 5) or of another method."""
    found = []
    for row in paper.csv_rows(metrics):
        if row["variant"] and row["test_mean"] != "":
            doubtful = row["difference"] == "" or published.TABLE_5 in row["note"]
            shown = row | (dict.fromkeys(("published_as", "published", "source"), "") if doubtful else {})
            found.append({column: shown[column] for column in _SCORE})
    return found


def _lth_and_one_shot(metrics: Sequence[Row], similarity: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of the two variants and of the dense one, of the tasks where the two are compared."""
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
    """The variant of a method that has its name, or else the first."""
    names = tabular.distinct([row for row in metrics if tabular.cell(row, "method") == method], "variant")
    return min(names, key=lambda name: name != method, default=None)


def _pairs_of_panels(
    figure: Figure, drawn: Sequence[dict[str, Any]]
) -> Iterator[tuple[Axes, Axes, list[dict[str, Any]]]]:
    """Two axes beside each other for each task and backbone, and the rows that belong there."""
    cells = drawing.cells_of(drawn)
    grid = figure.add_gridspec(len(cells), 2)
    for line, ((task, backbone), rows) in enumerate(cells.items()):
        left, right = (figure.add_subplot(grid[line, column]) for column in (0, 1))
        left.set_title(f"{backbone} on {task}", loc="left")
        yield left, right, rows


def _with_theirs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of scores, and the published ones as if they were some."""
    return [*rows, *({"test_mean": row["published"]} for row in rows if row["published"] != "")]


def _score_panel(axes: Axes, rows: Sequence[dict[str, Any]], styles: Mapping[str, Look], room: float) -> None:
    places = over_sparsities(axes, rows, "test", styles, room)
    axes.set_ylabel(f"test {rows[0]['metric']} (%)")
    _stars(axes, rows, "published", styles, places)


def _stars(axes: Axes, rows: Sequence[dict[str, Any]], name: str, styles: Mapping[str, Look], places: Places) -> None:
    """What the paper published, in the colour of the variant; of a dense one at the end of its level."""
    for row in rows:
        if row[name] != "":
            place = places[row["variant"], row["sparsity"]]
            axes.plot([place], [row[name]], color=styles[row["variant"]].color, **_STAR)


def _legend(
    figure: Figure, styles: Mapping[str, Look], drawn: Sequence[dict[str, Any]], others: Sequence[Line2D]
) -> None:
    """The variants, and below them others and what stars are, where there are any."""
    shown, handles = drawing.variants_of(drawn), list(others)
    drawing.legend_of(figure, {name: look for name, look in styles.items() if name in shown}, drawn)
    if any(row["published"] != "" or row.get("published_cosine", "") != "" for row in drawn):
        handles.append(Line2D([], [], color="white", **_STAR, label="as published"))
    if handles:
        figure.legend(handles=handles, loc="outside right lower", handlelength=3, alignment="left")
