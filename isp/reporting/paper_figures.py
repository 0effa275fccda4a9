"""The paper's figures for any study: scores and FLOPs by sparsity (Fig. 1), LTH and one-shot pruning (Fig. 3).

They show test scores, as the paper does, and the published scores for the same backbone, task, row and sparsity. Each
function returns a figure and the rows that it draws, whose columns are in a constant of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from isp.reporting import dots, drawing, paper, published, tables, tabular
from isp.reporting.axes import COARSE, Places, cosines, limits, log_ticks, over_sparsities, set_score_scale
from isp.reporting.drawing import Drawing
from isp.reporting.figures import levels_of, levels_text, references_of
from isp.reporting.looks import Look, looks, methods_of
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


def paper_figure_1(metrics: Sequence[Row]) -> Drawing:
    """Plot test scores (left) and executed training FLOPs (right) against sparsity, one line or row per variant."""
    tickets, drawn = tabular.tickets(metrics), []
    for row in _scores(metrics):
        own = tickets[row["task"], row["backbone"], row["variant"], row["sparsity"]]
        drawn.append(row | tabular.summary("flops", tabular.numbers(own, "finding_flops", "retraining_flops"), 0))
    if not any(float(row["sparsity"]) for row in drawn):
        return drawing.message("No pruned tickets to show."), []
    styles, note = looks(methods_of(metrics)), tabular.seeds_note(drawn, "bars")
    if dots.few(drawn):
        levels = levels_of(metrics)
        cells = [_dots_of_cell(rows, levels[names]) for names, rows in drawing.cells_of(drawn).items()]
        return dots.draw(cells, styles, *dots.notes(drawn, levels_text(levels), band=True)), drawn
    with drawing.style():
        shares = drawing.shares(drawn, styles, references_of(metrics))
        figure, panels = drawing.panels(2 * len(shares), 2.6)
        coarse = False
        for left, right, share in zip(panels[::2], panels[1::2], shares, strict=True):
            left.set_title(share.title, loc="left")
            coarse |= set_score_scale(left, _with_theirs(share.cell), "test")
            _score_panel(left, share, styles)
            costly = [row for row in share.rows if row["flops_mean"] > 0]  # zero cost has no logarithm
            right.set_yscale("log")
            costs = [row["flops_mean"] for row in share.cell if row["flops_mean"] > 0]
            right.set_ylim(log_ticks(right.yaxis, costs or [1.0]))
            over_sparsities(right, costly, "flops", styles, share.faint)
            right.set_ylabel("executed training FLOPs,\nfinding and retraining")
        drawing.annotate(figure, note, _stars_note(drawn), COARSE * coarse)
    return figure, drawn


def _dots_of_cell(rows: Sequence[dict[str, Any]], level: str | None) -> dots.Cell:
    """Return the panels of one task and backbone: scores by sparsity, then FLOPs by sparsity."""
    dense = next((row for row in rows if row["variant"] == level and not float(row["sparsity"])), None)

    def score(sparsity: str, own: dict[str, dict[str, Any]]) -> dots.Panel:
        title, label = f"{tabular.percent(sparsity)} %", f"test {rows[0]['metric']} (%)"
        return dots.Panel(rows=own, name="test", title=title, label=label, level=dense, published="published")

    def cost(sparsity: str, own: dict[str, dict[str, Any]]) -> dots.Panel:
        title, label = f"{tabular.percent(sparsity)} %", "executed training FLOPs"
        costly = {variant: row for variant, row in own.items() if row["flops_mean"] > 0}  # 0 has no logarithm
        paid = dense if dense and dense["flops_mean"] > 0 else None
        return dots.Panel(rows=costly, name="flops", title=title, label=label, level=paid, scale="log")

    panels = [*dots.by_sparsity(rows, score), *dots.by_sparsity(rows, cost)]
    return dots.Cell(title=f"{rows[0]['backbone']} on {rows[0]['task']}", panels=[each for each in panels if each.rows])


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
        styles, shares = looks(methods_of(metrics)), drawing.shares(drawn, looks(methods_of(metrics)))
        figure, panels = drawing.panels(2 * len(shares), 2.6)
        for left, right, share in zip(panels[::2], panels[1::2], shares, strict=True):
            left.set_title(share.title, loc="left")
            left.set_ylim(limits(_with_theirs(share.rows), "test"))
            _score_panel(left, share, styles)
            compared = [row for row in share.rows if row["cosine_mean"] != ""]
            places = cosines(right, compared, styles)
            right.set_ylabel("cosine similarity of\ntheir masks")
            _stars(right, compared, "published_cosine", styles, places)
        drawing.annotate(figure, tabular.seeds_note(drawn, "bars"), _stars_note(drawn))
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
    dense, chosen = levels_of(metrics), [tabular.variant_of(metrics, method) for method in ("one_shot", "lth")]
    alike = {
        (row["task"], row["backbone"], row["sparsity"]): row
        for row in tables.similarity_csv(similarity)
        if {row["variant_a"], row["variant_b"]} == set(chosen)
    }
    compared = {(task, backbone) for task, backbone, _ in alike}
    theirs = {(own.task, own.backbone, own.sparsity): own.score / 100 for own in published.cosines()}
    drawn = []
    for row in _scores(metrics):
        names = (row["task"], row["backbone"])
        if names in compared and row["variant"] in (dense[names], *chosen):
            place = (*names, row["sparsity"])
            masks: dict[str, Any] = dict.fromkeys(_COSINE, "")
            if row["variant"] == chosen[1] and place in alike:
                masks |= {column: alike[place][column] for column in _COSINE[:-1]}
                masks |= {"published_cosine": theirs.get(place, "")}
            drawn.append(row | masks)
    return drawn


def _with_theirs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and the published scores in the form of rows."""
    return [*rows, *({"test_mean": row["published"]} for row in rows if row["published"] != "")]


def _score_panel(axes: Axes, share: drawing.Share, styles: Mapping[str, Look]) -> None:
    places = over_sparsities(axes, share.rows, "test", styles, share.faint)
    axes.set_ylabel(f"test {share.rows[0]['metric']} (%)")
    _stars(axes, share.rows, "published", styles, places)


def _stars(axes: Axes, rows: Sequence[dict[str, Any]], name: str, styles: Mapping[str, Look], places: Places) -> None:
    """Draw the published values in the colours of the variants; those of dense variants at the end of their levels."""
    for row in rows:
        if row[name] != "":
            place = places[row["variant"], row["sparsity"]]
            axes.plot([place], [row[name]], color=styles[row["variant"]].color, **dots.STAR)


def _stars_note(drawn: Sequence[dict[str, Any]]) -> str:
    found = any(row["published"] != "" or row.get("published_cosine", "") != "" for row in drawn)
    return "Stars: as published." * found
