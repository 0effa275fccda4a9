"""Figures of scores, costs and denoisers from a study's collected rows, as read from CSV files (all values are text).

Each function returns a figure and the rows that it draws, whose columns are in a constant of the same name.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from math import ceil, log
from typing import Any

from matplotlib.axes import Axes

from isp.reporting import dots, drawing, tables, tabular
from isp.reporting.axes import COARSE, End, log_ticks, name_ends, over_sparsities, set_score_scale
from isp.reporting.drawing import Drawing
from isp.reporting.labels import name_points, point_label
from isp.reporting.looks import Look, looks, methods_of
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
    """Plot validation scores against sparsity: dots for up to `dots.FEW` sparsities, otherwise lines.

    Dots have one row per variant and one panel per task, backbone and sparsity; lines have one line per variant and one
    panel or several per task and backbone.
    """
    drawn = _scores(metrics)
    if not drawn:
        return drawing.message("No tickets to show."), drawn
    styles, levels = looks(methods_of(metrics)), levels_of(metrics)
    note, chosen = tabular.seeds_note(drawn, "bars"), _chosen_note(drawn)
    if dots.few(drawn):
        cells = [
            dots.Cell(title=f"{backbone} on {task}", panels=_dots_of_scores(rows, levels[task, backbone]))
            for (task, backbone), rows in drawing.cells_of(drawn).items()
        ]
        return dots.draw(cells, styles, *dots.notes(drawn, levels_text(levels), band=True), chosen), drawn
    with drawing.style():
        shares = drawing.shares(drawn, styles, references_of(metrics))
        figure, panels = drawing.panels(len(shares), 2.6)
        coarse = False
        for axes, share in zip(panels, shares, strict=True):
            coarse |= _set_up(axes, share)
            over_sparsities(axes, share.rows, "validation", styles, share.faint)
        drawing.annotate(figure, note, COARSE * coarse, chosen)
    return figure, drawn


def _set_up(axes: Axes, share: drawing.Share) -> bool:
    """Title a panel of lines and scale its axis of validation scores; return whether a part of that is coarser."""
    axes.set_title(share.title, loc="left")
    axes.set_ylabel(f"validation {share.rows[0]['metric']} (%)")
    return set_score_scale(axes, share.cell, "validation")


def levels_of(metrics: Sequence[Row]) -> dict[tuple[str, ...], str | None]:
    """Return the variant that represents the dense model, by task and backbone."""
    return {names: tabular.dense(rows) for names, rows in tabular.group(metrics, *tabular.CELL).items()}


def levels_text(levels: Mapping[tuple[str, ...], str | None]) -> str:
    """Return the names of the dense models that lines across dot plots show; empty if there are none."""
    return " or ".join(dict.fromkeys(level for level in levels.values() if level))


def _dots_of_scores(rows: Sequence[dict[str, Any]], level: str | None) -> list[dots.Panel]:
    """Return the panels of one task and backbone."""
    label = f"validation {rows[0]['metric']} (%)"

    def panel(sparsity: str, own: dict[str, dict[str, Any]]) -> dots.Panel:
        title = f"{tabular.percent(sparsity)} %"
        dense = next((row for row in rows if row["variant"] == level and not float(row["sparsity"])), None)
        return dots.Panel(rows=own, name="validation", title=title, label=label, level=dense)

    return dots.by_sparsity(rows, panel)


def references_of(metrics: Sequence[Row]) -> list[str]:
    """Return the variants that every panel of lines repeats: the dense models of all cells, and lottery tickets."""
    found = dict.fromkeys([*levels_of(metrics).values(), tabular.variant_of(metrics, "lth")])
    return [variant for variant in found if variant]


def _chosen_note(drawn: Sequence[dict[str, Any]]) -> str:
    return f"{tabular.CHOSEN}: chose among models by these examples." * any(row["chosen_on"] for row in drawn)


def score_by_cost(metrics: Sequence[Row]) -> Drawing:
    """Plot validation scores against training cost, one line per variant from its lowest to its highest sparsity."""
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
        styles = looks(methods_of(metrics))
        shares = drawing.shares(drawn, styles, references_of(metrics))
        figure, panels = drawing.panels(len(shares), 2.8)
        coarse = False
        for axes, share in zip(panels, shares, strict=True):
            coarse |= _set_up(axes, share)
            axes.set_xlabel("executed training FLOPs, finding and retraining")
            axes.set_xscale("log")
            axes.set_xlim(log_ticks(axes.xaxis, [row["flops"] for row in share.cell]))
        note = tabular.seeds_note(drawn, "bars")
        lines = "Lines lead to the highest sparsity (large marker). Variants of equal cost are drawn side by side."
        drawing.annotate(figure, note, lines, COARSE * coarse, _chosen_note(drawn))
        for axes, share in zip(panels, shares, strict=True):
            _paths(axes, share, styles)
        name_points(figure, panels)
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


def _paths(axes: Axes, share: drawing.Share, styles: Mapping[str, Look]) -> None:
    """Draw the tickets of each variant, connected in order of sparsity, with a large marker and the name at the end."""
    places = _side_by_side(share.rows)
    for variant in drawing.variants_of(share.rows):
        look, alpha = styles[variant], 0.4 if variant in share.faint else 1.0
        points = sorted(drawing.rows_of(share.rows, variant), key=lambda row: float(row["sparsity"]))
        costs = [places[variant, row["sparsity"]] for row in points]
        drawing.error_bars(axes, costs, points, "validation", look, markersize=3, linewidth=0.8, alpha=alpha)
        end = (costs[-1], points[-1]["validation_mean"])
        axes.plot(*end, color=look.color, marker=look.marker, markerfacecolor=look.face, markersize=7, alpha=alpha)
        point_label(axes, *end, variant + tabular.CHOSEN * bool(points[-1]["chosen_on"]), look.hue)


# --- denoisers --------------------------------------------------------------------------------------------------------


def denoisers(rounds: Sequence[Row], metrics: Sequence[Row] = ()) -> Drawing:
    """Plot by round the fraction of the kept weights that the denoisers changed, and the agreement of the weak masks.

    Args:
        rounds: Rows of `collect.rounds`.
        metrics: Rows of `collect.metrics`, for all variants, so that colours equal those of the other figures.
    """
    drawn = _events(rounds)
    if not drawn:
        return drawing.message("No variant of this study looks ahead, so there are no denoisers to show."), drawn
    with drawing.style():
        styles = looks(methods_of(metrics or rounds))
        shares = drawing.shares(drawn, styles)
        figure, panels = drawing.panels(len(shares), 2.1, 2)
        for upper, lower, share in zip(panels[::2], panels[1::2], shares, strict=True):
            upper.set_title(share.title, loc="left")
            for axes, name, scale in ((upper, "changed", 100), (lower, "agreement", 1)):
                lines = [drawing.rows_of(share.rows, variant) for variant in drawing.variants_of(share.rows)]
                ends = [_over_rounds(axes, rows, name, styles[rows[0]["variant"]], scale) for rows in lines]
                axes.set_ylim(*((0, None) if name == "changed" else (None, 1)))
                _round_ticks(axes, share.rows)
                name_ends(axes, [end for end in ends if end], 1.3)
            upper.tick_params(labelbottom=False)
            upper.set_xlabel("")
            if not any(row["agreement_mean"] != "" for row in share.rows):
                lower.set_yticks([])
                text = "this rule of superposition\nmakes no weak masks"
                lower.text(0.5, 0.5, text, ha="center", va="center", transform=lower.transAxes)
            upper.set_ylabel("kept weights that the\ndenoisers changed (%)")
            lower.set_ylabel("agreement of weak masks\n(mean Jaccard index)")
        crosses = "Cross: mask of a ticket that leaves the rounds there." * any(row["on_line"] == "no" for row in drawn)
        drawing.annotate(figure, tabular.seeds_note(drawn, "bars"), crosses)
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


def _over_rounds(axes: Axes, rows: Sequence[dict[str, Any]], name: str, look: Look, scale: float) -> End | None:
    """Draw the line of a variant. Return its end; None if there is no value."""
    found = [row for row in rows if row[f"{name}_mean"] != ""]
    way = [row for row in found if row["on_line"] == "yes"]
    if way:
        drawing.error_bars(axes, [row["round"] for row in way], way, name, look, scale)
    for row in found:
        if row["on_line"] == "no":  # slightly to the right, so that its error bar does not hide the line's
            drawing.error_bars(axes, [row["round"] + 0.25], [row], name, look, scale, marker="x")
    return End(way[-1]["round"], way[-1][f"{name}_mean"] * scale, rows[0]["variant"], look.hue) if way else None


def _round_ticks(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Label some rounds with their sparsities, which are ranges if variants prune at different rates."""
    found: dict[int, set[str]] = {}
    for row in rows:
        if row["on_line"] == "yes":
            found.setdefault(row["round"], set()).add(row["sparsity"])
    step = ceil(len(found) / 6)
    # backwards from the last round, because the last rounds matter more than the first
    shown = sorted(found)[::-1][::step]
    texts = [f"{index}\n{_range(found[index])}" for index in shown]
    axes.set_xticks(shown, texts)
    axes.set_xlabel("round; below: sparsity after it (%)")


def _range(sparsities: set[str]) -> str:
    ends = sorted({round(float(sparsity) * 100) for sparsity in sparsities})
    return str(ends[0]) if len(ends) == 1 else f"{ends[0]}–{ends[-1]}"
