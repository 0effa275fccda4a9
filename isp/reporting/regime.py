"""The figure of the regimes: how methods compare as training gets longer, from studies that differ in epochs only.

A line needs two studies or more that agree in everything but the length of training: backbone, task and its limits,
training protocol, sparsities, and each drawn variant that both have, with its method, settings and initial weights. How
long a segment between rounds is follows from the length of training, so it may differ.
"""

from __future__ import annotations

import json
import statistics as means
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from isp.metrics import value_range
from isp.reporting import drawing, statistics, tables, tabular
from isp.reporting.axes import End, name_ends
from isp.reporting.drawing import Drawing
from isp.reporting.evidence import Results, per_run, settings_of
from isp.reporting.looks import Look, looks, methods_of
from isp.tasks import TaskLimits

COLUMNS = (
    *("line", "task", "backbone", "sparsity", "metric", "epochs", "study", "variant", "reference", "seeds"),
    *("difference", "difference_values", "difference_low", "difference_high", "detectable"),
)
"""Columns of what `regime` draws: paired differences of test scores, in points, with their 95 % interval over seeds.

line: number of the line of studies, from 1; lines of one task and backbone differ in more than the epochs.
"""

PANELS = (
    ("lth", ("isp_n0", "isp", "isp_mean", "gradual", "movement")),
    ("lth", ("gradual_equal",)),
    ("isp_n0", ("isp", "isp_mean")),
)
"""References, and the variants that are compared with each in one panel.

`gradual_equal` has its own panel, because its lead in short trainings would set the scale of all others.
"""
_DRAWN = tuple(dict.fromkeys(name for reference, variants in PANELS for name in (reference, *variants)))
"""Variants on which the studies of a line agree."""
_LABELS = {"lth": "test score minus LTH's\n(points)", "isp_n0": "gain over isp_n0\n(points)"}
LEGEND = (
    "Paired differences of test scores in points: to lottery tickets (`lth`), and to rounds without look-aheads "
    "(`isp_n0`), mean with its 95 % interval over seeds (Student's t); of two seeds both differences. T: epochs."
)


def regime(studies: Sequence[Results]) -> Drawing:
    """Gaps to LTH and, below, gains over isp_n0 against epochs, a column of panels for each backbone and task."""
    drawn = differences(studies)
    if not drawn:
        return drawing.message("No two studies differ in the epochs of training only."), drawn
    with drawing.style():
        lines = _by_line(drawn)
        styles = looks({variant: method for study in studies for variant, method in methods_of(study.metrics).items()})
        parts = [panel for panel in PANELS if any(_belongs(row, *panel) for row in drawn)]
        figure, panels = drawing.panels(len(lines), 2.5, len(parts))
        for index, (title, rows) in enumerate(lines.items()):
            column = panels[len(parts) * index : len(parts) * (index + 1)]
            for (reference, variants), axes in zip(parts, column, strict=True):
                own = [row for row in rows if _belongs(row, reference, variants)]
                _panel(axes, own, sorted({row["epochs"] for row in rows}), styles)
                axes.set_ylabel(_LABELS[reference])
            column[0].set_title(title, loc="left")
            column[-1].set_xlabel("length of training T (epochs)")
        drawing.annotate(figure, _seeds(drawn), "bars: 95 % interval of the paired differences (of two seeds: both)")
    return figure, drawn


def _belongs(row: Mapping[str, Any], reference: str, variants: Sequence[str]) -> bool:
    """Return whether a row is drawn in the panel of a reference and variants."""
    return row["reference"] == reference and row["variant"] in variants


@dataclass(frozen=True, kw_only=True)
class _Point:
    """The part of a study on one task and backbone.

    Attributes:
        study: The study.
        rows: Its rows of that task and backbone.
        epochs: Length of its training.
        protocol: Values that all studies of a line share.
        variants: Description of each drawn variant that it has; studies of a line share those that both have.
    """

    study: Results
    rows: list[tabular.Row]
    epochs: float
    protocol: tuple[Any, ...]
    variants: Mapping[str, str]

    def fits(self, other: _Point) -> bool:
        """Return whether both may be on one line."""
        both = self.variants.keys() & other.variants.keys()
        return self.protocol == other.protocol and all(self.variants[name] == other.variants[name] for name in both)


def differences(studies: Sequence[Results]) -> list[dict[str, Any]]:
    """Return the rows of `regime`: the studies of each line by epochs."""
    found: list[dict[str, Any]] = []
    lines = (line for line in _lines(studies) if len({point.epochs for point in line}) > 1)
    for number, line in enumerate(lines, 1):
        fullest: dict[float, _Point] = {}
        for point in line:  # of studies of equal length, the one with the most drawn variants
            known = fullest.setdefault(point.epochs, point)
            if len(point.variants) > len(known.variants):
                fullest[point.epochs] = point
        for reference, variants in PANELS:
            for variant in variants:
                for epochs in sorted(fullest):
                    found += [{"line": number} | row for row in _difference(fullest[epochs], variant, reference)]
    return found


def _lines(studies: Sequence[Results]) -> list[list[_Point]]:
    """Group the studies of each task and backbone into lines: each joins the first whose studies all fit."""
    lines: list[list[_Point]] = []
    for study in studies:
        for (backbone, task), rows in tabular.group(study.metrics, "backbone", "task").items():
            epochs = _epochs(study, task, rows)
            if epochs is None:
                continue
            protocol, variants = _protocol(study, backbone, task, rows), _variants(study, backbone, rows)
            point = _Point(study=study, rows=rows, epochs=epochs, protocol=protocol, variants=variants)
            line = next((line for line in lines if all(map(point.fits, line))), None)
            if line is None:
                lines.append([point])
            else:
                line.append(point)
    return lines


def _epochs(study: Results, task: str, rows: Sequence[tabular.Row]) -> float | None:
    """Return the epochs of the study; if it sets steps instead, count those of the dense run, None if unknown."""
    backbone = tabular.cell(rows[0], "backbone")
    training = ((study.description.get("study") or {}).get("training") or {}).get(backbone) or {}
    if training.get("epochs"):
        return float(training["epochs"])
    level = tabular.dense(rows)
    samples = tabular.numbers([row for row in rows if tabular.cell(row, "variant") == level], "retraining_samples")
    num_train = ((study.description.get("tasks") or {}).get(task) or {}).get("num_train")
    return round(means.fmean(samples) / num_train, 1) if samples and num_train else None


def _protocol(study: Results, backbone: str, task: str, rows: Sequence[tabular.Row]) -> tuple[Any, ...]:
    """Return what all studies of one line share, apart from their variants."""
    described = study.description.get("study") or {}
    training = (described.get("training") or {}).get(backbone) or {}
    limits = TaskLimits().model_dump() | ((described.get("tasks") or {}).get(task) or {})
    limits["num_train"] = ((study.description.get("tasks") or {}).get(task) or {}).get("num_train")
    define = described.get("define") or {}
    definitions = [(define.get(kind) or {}).get(name) for kind, name in (("backbones", backbone), ("tasks", task))]
    kept = {key: value for key, value in training.items() if key not in ("steps", "epochs")}
    drawn = [row for row in rows if tabular.cell(row, "variant") in _DRAWN]
    metric = tabular.cell(rows[0], "metric")
    return (backbone, task, metric, *tabular.sparsities(drawn), *map(_text_of, (kept, limits, definitions)))


def _variants(study: Results, backbone: str, rows: Sequence[tabular.Row]) -> dict[str, str]:
    """Describe each drawn variant that the study has: all that the studies of one line share."""
    described = study.description.get("variants") or {}
    found = {}
    for (variant, method), own in tabular.group(rows, "variant", "method").items():
        if variant in _DRAWN:
            known, settings = described.get(variant) or {}, settings_of(study, variant, backbone)
            shared = {key: value for key, value in settings.items() if key != "segment_fraction"}
            start = (known.get("initial"), known.get("steps_of"))
            found[variant] = _text_of([method, tabular.sparsities(own), start, shared])
    return found


def _text_of(value: Any) -> str:
    """Return a text that equal values have, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def _difference(point: _Point, variant: str, reference: str) -> list[dict[str, Any]]:
    """Return the row of a variant and reference in a study; no row if the study lacks one of them."""
    rows = point.rows
    values = per_run(rows, variant, reference)
    if not values:
        return []
    metric = tabular.cell(rows[0], "metric")
    least, most = value_range(metric)
    around = statistics.interval(values, (least - most, most - least))
    detectable = statistics.detectable_difference(values)
    own = [row for row in rows if tabular.cell(row, "variant") == variant]
    place = {column: tabular.cell(rows[0], column) for column in tabular.CELL}
    named = {"sparsity": " ".join(tabular.sparsities(own)), "metric": metric, "epochs": point.epochs}
    named |= {"study": point.study.folder.name, "variant": variant, "reference": reference}
    numbers: dict[str, Any] = {"seeds": len(values), "difference": round(means.fmean(values), 4)}
    numbers |= {"difference_values": tabular.joined(values)}
    for index, end in enumerate(("difference_low", "difference_high")):
        numbers[end] = "" if around is None else round(around[index], 4)
    return [{**place, **named, **numbers, "detectable": "" if detectable is None else round(detectable, 4)}]


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], epochs: Sequence[float], styles: Mapping[str, Look]) -> None:
    """Draw one line per variant over epochs, with its name at its end; the reference is the line at 0."""
    axes.axhline(0, color="#444444", linewidth=1)
    axes.set_xscale("log")
    variants = drawing.variants_of(rows)
    step = (epochs[-1] / epochs[0]) ** 0.012  # beside each other, so that bars do not hide one another
    ends = []
    for index, variant in enumerate(variants):
        own, look = drawing.rows_of(rows, variant), styles[variant]
        places = [row["epochs"] * step ** (index - (len(variants) - 1) / 2) for row in own]
        bars = [{"difference_mean": row["difference"], "difference_values": _bar(row)} for row in own]
        drawing.error_bars(axes, places, bars, "difference", look)
        ends.append(End(places[-1], own[-1]["difference"], variant, look.hue))
    margin = (epochs[-1] / epochs[0]) ** 0.08
    axes.set_xlim(epochs[0] / margin, epochs[-1] * margin)
    axes.xaxis.set_major_locator(FixedLocator(epochs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=False, axis="x")
    axes.set_ylim(axes.get_ylim())
    name_ends(axes, ends)


def _by_line(drawn: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by line, with backbone, task and sparsities as title, and the line's number where that is not unique.

    Of sparsities that differ between variants, the title has none.
    """
    lines: dict[int, list[dict[str, Any]]] = {}
    for row in drawn:
        lines.setdefault(row["line"], []).append(row)
    titles = {number: _title(rows) for number, rows in lines.items()}
    counts = Counter(titles.values())
    return {titles[number] + f", line {number}" * (counts[titles[number]] > 1): rows for number, rows in lines.items()}


def _title(rows: Sequence[dict[str, Any]]) -> str:
    """Return the title of a line."""
    sparsities = {row["sparsity"] for row in rows}
    percents = [f"{tabular.percent(each)} %" for each in rows[0]["sparsity"].split()] if len(sparsities) == 1 else []
    return ", ".join([f"{rows[0]['backbone']} on {rows[0]['task']}", *percents])


def _bar(row: dict[str, Any]) -> str:
    """Return the ends of a bar as two values: the interval, or both values of two, or one value twice."""
    return tabular.joined(_ends(row))


def _ends(row: dict[str, Any]) -> tuple[float, float]:
    """Return the ends of a bar: the interval, or both values of two, or one value twice."""
    if row["difference_low"] != "":
        return row["difference_low"], row["difference_high"]
    values = tabular.split(row["difference_values"])
    return (min(values), max(values)) if len(values) < tabular.FEWEST else (row["difference"], row["difference"])


def _seeds(drawn: Sequence[dict[str, Any]]) -> str:
    counts = sorted({row["seeds"] for row in drawn})
    return f"{' to '.join(dict.fromkeys(map(str, (counts[0], counts[-1]))))} seeds"


def table(drawn: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `regime` as Markdown tables: one per backbone, task and reference, one row per variant."""
    made: list[tables.Table] = []
    for title, rows in _by_line(drawn).items():
        lengths = sorted({row["epochs"] for row in rows})
        for reference in dict.fromkeys(reference for reference, _ in PANELS):
            own = [row for row in rows if row["reference"] == reference]
            header = [f"{title}, minus {reference}", *(f"T = {length:g}" for length in lengths)]
            body = []
            for variant in drawing.variants_of(own):
                by_length = {row["epochs"]: row for row in drawing.rows_of(own, variant)}
                body.append([variant, *(_text(by_length.get(length)) for length in lengths)])
            if body:
                made.append((header, body))
    return tables.markdown(made, LEGEND)


def _text(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["difference_low"] == "":
        values = tabular.split(row["difference_values"])
        return " / ".join(map(tables.signed, values if len(values) < tabular.FEWEST else [row["difference"]]))
    ends = " to ".join(tables.signed(row[f"difference_{end}"]) for end in ("low", "high"))
    return f"{tables.signed(row['difference'])} ({ends})"
