"""Figures of masks from a study's collected rows: sparsity of layers and similarity of masks.

Each function returns a figure and the rows that it draws, whose columns are in a constant of the same name.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from isp.reporting import dots, drawing, tables, tabular
from isp.reporting.axes import cosines
from isp.reporting.drawing import Drawing
from isp.reporting.labels import shortened, text_width, wrapped
from isp.reporting.looks import looks, methods_of
from isp.reporting.tabular import Row

LAYER_SPARSITY = (
    *("task", "backbone", "sparsity", "variant", "layer", "label", "seeds"),
    *("layer_sparsity_mean", "collapsed_seeds"),
)
"""Columns of the rows that `layer_sparsity` draws, as fractions. collapsed_seeds counts seeds with an empty layer."""
MASK_SIMILARITY = (
    *("task", "backbone", "sparsity", "variant_a", "variant_b", "seeds"),
    *("cosine_mean", "cosine_sd", "cosine_values", "cosine_by_chance"),
)
"""Columns of the rows that `mask_similarity` draws."""
MASK_SIMILARITY_BY_SPARSITY = (
    *("task", "backbone", "reference", "variant", "sparsity", "seeds"),
    *("cosine_mean", "cosine_sd", "cosine_values", "cosine_by_chance"),
)
"""Columns of the rows that `mask_similarity_by_sparsity` draws."""
MASK_SIMILARITY_BY_LAYER = (
    *("task", "backbone", "reference", "sparsity", "variant", "layer", "label", "seeds"),
    *("cosine_mean", "cosine_by_chance", "above_chance", "empty_seeds"),
)
"""Columns of the rows that `mask_similarity_by_layer` draws.

above_chance is 0 at the chance level and 1 for equal masks. empty_seeds counts the seeds in which one of the two masks
keeps no weight of the layer; they are left out, because there is nothing to compare.
"""
AGREEMENT_BY_LAYER = (
    *("task", "backbone", "variant", "round", "sparsity", "layer", "label", "seeds"),
    "agreement_mean",
)
"""Columns of the rows that `agreement_by_layer` draws."""

_T = TypeVar("_T")
_COLORS = "viridis"
_BAR = 0.95  # width of a colour bar with its labels in inches
_LEAST = 0.25  # least size in inches of a square with a number


# --- layers -----------------------------------------------------------------------------------------------------------


def layer_sparsity(layers: Sequence[Row]) -> Drawing:
    """Plot the sparsity of layers: one panel per task, backbone and sparsity, a row per variant, a column per layer."""
    drawn = _layers([row for row in layers if float(tabular.cell(row, "sparsity"))])
    if not drawn:
        return drawing.message("No pruned tickets to show."), drawn
    shares = {sparsity: [100 * row["layer_sparsity_mean"] for row in same] for sparsity, same in _by_sparsity(drawn)}
    lines = []
    for (task, backbone), rows in drawing.cells_of(drawn).items():
        variants = drawing.variants_of(rows)
        lines.append(
            [
                _Panel(
                    title=f"{backbone} on {task}\n{tabular.percent(sparsity)} %",
                    rows={variant: drawing.rows_of(same, variant) for variant in variants},
                    value="layer_sparsity_mean",
                    scale=100,
                    # tickets of equal sparsity share one scale, whatever their task
                    colors=_scale(shares[sparsity]),
                    marked=lambda row: row["collapsed_seeds"] > 0,
                )
                for sparsity, same in _by_sparsity(rows)
            ]
        )
    note = f"sparsity of each layer, {tabular.seeds_note(drawn)}"
    return _maps_of_layers(lines, note, "sparsity (%)", "keeps no weight at all in some seed"), drawn


def _layers(layers: Sequence[Row]) -> list[dict[str, Any]]:
    drawn = []
    for (task, backbone), cell in tabular.group(layers, *tabular.CELL).items():
        labels = tabular.short_names(tabular.distinct(cell, "layer"))
        tickets = tabular.group(cell, "variant", "sparsity", "layer")
        variants = tabular.distinct(cell, "variant")
        for (variant, sparsity, layer), rows in sorted(tickets.items(), key=lambda item: variants.index(item[0][0])):
            zeros, weights = tabular.numbers(rows, "zero_weights"), tabular.numbers(rows, "weights")
            shares = [zero / count for zero, count in zip(zeros, weights, strict=True)]
            named: dict[str, Any] = {"task": task, "backbone": backbone, "sparsity": sparsity}
            named |= {"variant": variant, "layer": layer, "label": labels[layer], "seeds": len(rows)}
            named |= {"layer_sparsity_mean": round(statistics.fmean(shares), 6), "collapsed_seeds": shares.count(1)}
            drawn.append(named)
    return drawn


def agreement_by_layer(agreement: Sequence[Row]) -> Drawing:
    """Plot the agreement of weak masks: a panel per task, backbone and variant, a row per round, a column per layer."""
    drawn = _agreement(agreement)
    if not drawn:
        return drawing.message(
            "No variant of this study makes two weak masks a round, so there is no agreement."
        ), drawn
    colors = _scale([row["agreement_mean"] for row in drawn if row["agreement_mean"] != ""])
    lines = []
    for (task, backbone), rows in drawing.cells_of(drawn).items():
        panels = []
        for variant in drawing.variants_of(rows):
            rounds: dict[str, list[dict[str, Any]]] = {}
            for row in sorted(drawing.rows_of(rows, variant), key=lambda row: row["round"]):
                rounds.setdefault(f"{row['round']}: {tabular.percent(row['sparsity'])} %", []).append(row)
            title = f"{variant}\n{backbone} on {task}"
            panels.append(_Panel(title=title, rows=rounds, value="agreement_mean", colors=colors, marked=_nothing_left))
        lines.append(panels)
    note = f"agreement of the weak masks of each round, {tabular.seeds_note(drawn)}"
    mark = "no weak mask keeps a weight"
    return _maps_of_layers(lines, note, "mean Jaccard index", mark, "round: sparsity it prunes to"), drawn


def _nothing_left(row: Mapping[str, Any]) -> bool:
    return bool(row["agreement_mean"] == "")


def _agreement(agreement: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per layer of each round that leads to the sparsest ticket."""
    drawn = []
    for (task, backbone), cell in tabular.group(agreement, *tabular.CELL).items():
        labels = tabular.short_names(tabular.distinct(cell, "layer"))
        for (variant,), rows in tabular.group(cell, "variant").items():
            seeds = tabular.group(rows, "seed").values()
            way = {(row["round"], row["sparsity"]) for same in seeds for row in tabular.chain(same)}
            for (index, sparsity, layer), events in tabular.group(rows, "round", "sparsity", "layer").items():
                if (index, sparsity) in way:
                    named: dict[str, Any] = {"task": task, "backbone": backbone, "variant": variant}
                    named |= {"round": int(index), "sparsity": sparsity, "layer": layer, "label": labels[layer]}
                    mean = tabular.summary("agreement", tabular.numbers(events, "agreement"), 6)["agreement_mean"]
                    drawn.append(named | {"seeds": len(events), "agreement_mean": mean})
    return drawn


# --- similarity -------------------------------------------------------------------------------------------------------


def mask_similarity(similarity: Sequence[Row]) -> Drawing:
    """Plot the cosine similarity of all pairs of masks, one triangle per task, backbone and sparsity."""
    drawn = [{column: row[column] for column in MASK_SIMILARITY} for row in tables.similarity_csv(similarity)]
    if not drawn:
        return drawing.message(tables.NO_PAIRS), drawn
    order = list(dict.fromkeys(name for row in drawn for name in (row["variant_a"], row["variant_b"])))
    lines = []
    for rows in drawing.cells_of(drawn).values():
        lines.append([same for _, same in _by_sparsity(rows)])
    with drawing.style():
        names = 0.25 + max(text_width(name, 8.5) for name in order)
        most = max(3, len(order) - 1)
        rooms = ((drawing.WIDTH / across - names) / most for across in range(max(map(len, lines)), 0, -1))
        square = min(0.33, next((room for room in rooms if room >= _LEAST), (drawing.WIDTH - names) / most))
        width = square * most
        lines = _wrapped(lines, width + names)
        across = max(map(len, lines))
        tall = square * max(2, len(order) - 1) + names + 0.4
        size = (max((width + names) * across, 4.2), 0.9 + tall * len(lines))
        figure = Figure(figsize=size, layout="compressed")
        grid = figure.add_gridspec(len(lines), across)
        panels = []
        for line, of_line in enumerate(lines):
            for column, rows in enumerate(of_line):
                panels.append(figure.add_subplot(grid[line, column]))
                _triangle(panels[-1], rows, order, square >= _LEAST)
        scale = ScalarMappable(Normalize(0, 1), _COLORS)
        bar = figure.colorbar(
            scale, ax=panels, location="bottom", shrink=min(1, 2.5 / size[0]), aspect=15, anchor=(0, 1)
        )
        bar.set_ticks([0, 1], labels=["as by chance", "equal masks"])
        bar.outline.set_visible(False)
        drawing.annotate(figure, f"cosine similarity of masks, {tabular.seeds_note(drawn)}")
    return figure, drawn


def _triangle(axes: Axes, rows: Sequence[dict[str, Any]], order: Sequence[str], numbers: bool) -> None:
    """Draw a square for every pair of variants, below the diagonal, with its number if there is room for it."""
    chance = statistics.fmean(row["cosine_by_chance"] for row in rows)
    found = {row[side] for row in rows for side in ("variant_a", "variant_b")}
    variants = [name for name in order if name in found]
    values = np.full((len(variants) - 1, len(variants) - 1), np.nan)
    for row in rows:
        column, line = sorted((variants.index(row["variant_a"]), variants.index(row["variant_b"])))
        shade = _above(row["cosine_mean"], row["cosine_by_chance"])
        values[line - 1, column] = shade
        color = "black" if shade > 0.55 else "white"
        if numbers:
            axes.text(column, line - 1, _brief(row["cosine_mean"]), ha="center", va="center", fontsize=7, color=color)
    axes.imshow(values, cmap=_COLORS, norm=Normalize(0, 1), interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(variants) - 1), variants[:-1], rotation=90)
    axes.set_yticks(range(len(variants) - 1), variants[1:])
    axes.tick_params(length=0)
    title = f"{rows[0]['backbone']} on {rows[0]['task']}\n{tabular.percent(rows[0]['sparsity'])} %, chance {chance:.2f}"
    axes.set_title(title, loc="left")


def _brief(cosine: float) -> str:
    """Write a cosine with two decimals; "1" means exactly equal."""
    return "1" if cosine == 1 else ">.99" if cosine >= 0.995 else f"{cosine:.2f}".removeprefix("0")


def mask_similarity_by_sparsity(similarity: Sequence[Row], metrics: Sequence[Row]) -> Drawing:
    """Plot the cosine similarity to a reference's mask (see `references`) against sparsity, as in Fig. 3 (right).

    Args:
        similarity: Rows of `collect.similarity`.
        metrics: Rows of `collect.metrics`, for the methods of the variants, and for their order, so that colours equal
            those of the other figures.
    """
    chosen, drawn = references(metrics), []
    for row in tables.similarity_csv(similarity):
        reference = chosen[row["task"], row["backbone"]]
        if reference in (row["variant_a"], row["variant_b"]):
            own = row | {"reference": reference, "variant": _other(row, reference)}
            drawn.append({column: own[column] for column in MASK_SIMILARITY_BY_SPARSITY})
    if not drawn:
        return drawing.message(tables.NO_PAIRS), drawn
    styles, note = looks(methods_of(metrics)), tabular.seeds_note(drawn, "bars")
    if dots.few(drawn):
        cells = [_dots_of_cosines(rows) for rows in drawing.cells_of(drawn).values()]
        return dots.draw(cells, styles, *dots.notes(drawn, "random masks")), drawn
    with drawing.style():
        shares = drawing.shares(drawn, styles)
        figure, panels = drawing.panels(len(shares), 2.6)
        for axes, share in zip(panels, shares, strict=True):
            axes.set_title(share.title, loc="left")
            cosines(axes, share.rows, styles)
            axes.set_ylabel(f"cosine similarity\nto the mask of {share.rows[0]['reference']}")
        drawing.annotate(figure, note)
    return figure, drawn


def _dots_of_cosines(rows: Sequence[dict[str, Any]]) -> dots.Cell:
    """Return the panels of one task and backbone."""

    def panel(sparsity: str, own: dict[str, dict[str, Any]]) -> dots.Panel:
        return dots.Panel(
            rows=own,
            name="cosine",
            title=f"{tabular.percent(sparsity)} %",
            label=f"cosine similarity to the mask of {rows[0]['reference']}",
            scale="share",
            chance=statistics.fmean(row["cosine_by_chance"] for row in own.values()),
        )

    return dots.Cell(title=f"{rows[0]['backbone']} on {rows[0]['task']}", panels=dots.by_sparsity(rows, panel))


def mask_similarity_by_layer(similarity_layers: Sequence[Row], metrics: Sequence[Row]) -> Drawing:
    """Plot per layer the similarity to the reference's mask above chance, with panels as in `layer_sparsity`.

    Args:
        similarity_layers: Rows of `collect.similarity_layers`.
        metrics: Rows of `collect.metrics`, for the methods of the variants.
    """
    drawn = _likeness(similarity_layers, references(metrics))
    if not drawn:
        return drawing.message(tables.NO_PAIRS), drawn
    colors, lines = Normalize(0, 1), []
    for (task, backbone), rows in drawing.cells_of(drawn).items():
        variants, reference = drawing.variants_of(rows), rows[0]["reference"]
        lines.append(
            [
                _Panel(
                    title=f"{backbone} on {task}\n{tabular.percent(sparsity)} %, against {reference}",
                    rows={variant: drawing.rows_of(same, variant) for variant in variants},
                    value="above_chance",
                    colors=colors,
                    marked=lambda row: row["empty_seeds"] > 0,
                )
                for sparsity, same in _by_sparsity(rows)
            ]
        )
    note = f"similarity of each layer's mask to that of one variant, {tabular.seeds_note(drawn)}"
    note += ". 0: as random masks that keep as many weights of the layer, 1: equal masks"
    return _maps_of_layers(lines, note, "cosine above chance", "one of the two keeps no weight in some seed"), drawn


def _likeness(similarity_layers: Sequence[Row], chosen: Mapping[tuple[str, str], str]) -> list[dict[str, Any]]:
    """Return one row per layer, sparsity and variant with the similarity to the mask of the reference."""
    drawn = []
    for (task, backbone), cell in tabular.group(similarity_layers, *tabular.CELL).items():
        reference, labels = chosen[task, backbone], tabular.short_names(tabular.distinct(cell, "layer"))
        own = [{**row, "variant": _other(row, reference)} for row in cell if reference in _pair(row)]
        for (sparsity, variant, layer), rows in tabular.group(own, "sparsity", "variant", "layer").items():
            both = [row for row in rows if float(row["kept_a"]) and float(row["kept_b"])]
            named: dict[str, Any] = {"task": task, "backbone": backbone, "reference": reference, "sparsity": sparsity}
            named |= {"variant": variant, "layer": layer, "label": labels[layer], "seeds": len(rows)}
            named |= {
                "cosine_mean": "",
                "cosine_by_chance": "",
                "above_chance": "",
                "empty_seeds": len(rows) - len(both),
            }
            if both:
                mean, chance = statistics.fmean(tabular.numbers(both, "cosine")), tabular.by_chance(both)["cosine"]
                values = {"cosine_mean": mean, "cosine_by_chance": chance, "above_chance": _above(mean, chance)}
                named |= {name: round(value, 6) for name, value in values.items()}
            drawn.append(named)
    return drawn


def references(metrics: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return the reference of mask similarities for each task and backbone: the first variant of method one_shot.

    If there is none, it is the first variant that prunes.
    """
    found: dict[tuple[str, str], str] = {}
    for (task, backbone), rows in tabular.group(metrics, *tabular.CELL).items():
        pruned = [row for row in rows if float(tabular.cell(row, "sparsity"))]
        if pruned:  # `min` returns the first of equal keys
            found[task, backbone] = min(pruned, key=lambda row: row["method"] != "one_shot")["variant"]
    return found


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["variant_a"], row["variant_b"]


def _other(row: Mapping[str, Any], reference: str) -> str:
    a, b = _pair(row)
    return b if a == reference else a


def _above(cosine: float, chance: float) -> float:
    """Rescale a cosine so that 0 is the chance level and 1 equal masks."""
    return max(0.0, (cosine - chance) / (1 - chance)) if chance < 1 else 1.0


# --- maps of layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A heat map with a column for each layer.

    Attributes:
        title: Title above the panel.
        rows: Drawn rows, by the names of the panel's lines.
        value: Column that determines the colour, times `scale`; an empty value has no colour.
        scale: Factor of the values.
        colors: Colour scale of the values.
        marked: Function that says whether a row is marked by a cross.
    """

    title: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    value: str
    scale: float = 1
    colors: Normalize
    marked: Callable[[Mapping[str, Any]], bool] = lambda _: False

    @property
    def labels(self) -> list[str]:
        """Short names of the layers."""
        return list(dict.fromkeys(row["label"] for rows in self.rows.values() for row in rows))


def _maps_of_layers(
    lines: Sequence[Sequence[_Panel]], note: str, bar_label: str, mark: str = "", rows_are: str = ""
) -> Figure:
    """Draw rows of panels; a row that is too long is wrapped.

    Args:
        lines: Rows of panels.
        note: Note above the panels.
        bar_label: Label of the colour bars.
        mark: Meaning of a cross, for the legend.
        rows_are: Meaning of the lines of a panel, written beside the first panel of each row.
    """
    with drawing.style():
        panels = [panel for line in lines for panel in line]
        names = 0.4 * bool(rows_are) + max(text_width(name, 8.5) for panel in panels for name in panel.rows)
        most = max(len(panel.labels) for panel in panels)
        width = min(max(2.0, 0.13 * most), drawing.WIDTH - names - _BAR)
        across = max(1, int((drawing.WIDTH - names) / (width + _BAR)))
        lines = [list(line[start : start + across]) for line in lines for start in range(0, len(line), across)]
        across = max(map(len, lines))
        heights = [max(1.1, 0.19 * max(len(panel.rows) for panel in line)) for line in lines]
        size = (max(names + (width + _BAR) * across, 4.2), 0.6 + sum(heights) + 1.3 * len(lines))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.04))
        grid = figure.add_gridspec(len(lines), across, height_ratios=heights)
        marked = False
        for line, of_line in enumerate(lines):
            for column, panel in enumerate(of_line):
                axes = figure.add_subplot(grid[line, column])
                marked |= _heatmap(axes, panel, width)
                title = "\n".join(wrapped(line, width + _BAR, 9.5) for line in panel.title.split("\n"))
                axes.set_title(title, loc="left")
                axes.tick_params(labelleft=column == 0 or [*panel.rows] != [*of_line[column - 1].rows])
                if column == 0 and rows_are:
                    axes.set_ylabel(rows_are)
                bar = figure.colorbar(ScalarMappable(panel.colors, _COLORS), ax=axes, pad=0.02, aspect=15)
                bar.set_label(bar_label)
                bar.outline.set_visible(False)
        drawing.annotate(figure, note, f"cross: {mark}" * marked)
    return figure


_CROSS: dict[str, Any] = {
    "marker": "X",
    "color": "#D55E00",
    "markeredgecolor": "white",
    "markersize": 7,
    "linestyle": "",
}
"""Style of crosses, which are visible on every colour of a map."""


def _heatmap(axes: Axes, panel: _Panel, width: float) -> bool:
    """Draw one cell per line and layer (grey if empty), with lines between blocks. Return whether any is marked."""
    labels = panel.labels
    values: npt.NDArray[np.float64] = np.full((len(panel.rows), len(labels)), np.nan)
    at = {label: index for index, label in enumerate(labels)}
    crosses = []
    for line, rows in enumerate(panel.rows.values()):
        for row in rows:
            if row[panel.value] != "":
                values[line, at[row["label"]]] = row[panel.value] * panel.scale
            if panel.marked(row):
                crosses.append((at[row["label"]], line))
    axes.imshow(values, cmap=_COLORS, norm=panel.colors, aspect="auto", interpolation="nearest")
    if crosses:
        axes.plot(*zip(*crosses, strict=True), **_CROSS)
    axes.set_facecolor("#dddddd")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(panel.rows)), list(panel.rows))
    blocks = [label.split(" ")[0] for label in labels]
    starts = [index for index in range(1, len(labels)) if blocks[index] != blocks[index - 1]]
    for start in starts:
        axes.axvline(start - 0.5, color="white", linewidth=0.8)
    step = ceil(0.12 * len(labels) / width)  # a label needs 0.12 inch
    if step > 1 and starts:
        # only multiples or divisors of a block, so that labels stay aligned with the blocks
        step = next((part for part in range(step, starts[0] + 1) if starts[0] % part == 0), step)
    shown = [shortened(label, 1.1, 7.5) for label in labels[::step]]
    axes.set_xticks(range(0, len(labels), step), shown, rotation=90, fontsize=7.5)
    axes.tick_params(length=0)
    return bool(crosses)


def _scale(values: Sequence[float]) -> Normalize:
    return Normalize(min(values), max(max(values), min(values) + 0.01))


def _by_sparsity(drawn: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group rows by sparsity, ascending."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in drawn:
        groups.setdefault(row["sparsity"], []).append(row)
    return sorted(groups.items(), key=lambda item: float(item[0]))


def _wrapped(lines: Sequence[Sequence[_T]], width: float) -> list[list[_T]]:
    """Wrap rows of items that are `width` inches wide to the width of a page."""
    most = max(1, int(drawing.WIDTH / width))
    return [list(line[start : start + most]) for line in lines for start in range(0, len(line), most)]
