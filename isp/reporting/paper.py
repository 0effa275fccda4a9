"""The paper's tables for any study: test scores, a table a backbone, with the published figures beside ours.

`csv_rows` has everything, a row a cell; `markdown` and `latex` write the tables down. Rows are those of metrics.csv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isp.reporting import published, tables
from isp.reporting import rows as r
from isp.reporting.rows import Row

COLUMNS = (
    *("backbone", "task", "variant", "method", "sparsity", "metric", "seeds", "test_mean", "test_sd"),
    *("best", "matches_dense", "published_as", "published", "published_sd", "difference", "source", "note"),
)
"""Columns of `csv_rows`; best, matches_dense: "yes" or empty; difference: ours minus the published score, in points."""

_MISSING, _MATCHES, _NOTED = "—", "†", "‡"
_LEGEND = (
    "Test scores in percent ({metrics}), {seeds}. Choices were made on validation data; test data were evaluated once, "
    "on finished tickets. Bold: the best of a column of a table (what was not run on all tasks has tables of its own). "
    f"{_MATCHES}: matches the dense model, that is, the mean is at least the dense model's less one standard deviation "
    f"of the latter (of one dense seed: its score). {_MISSING}: not run. What is not pruned has one score a task, "
    "which stands in all of its columns."
)
_BESIDE = (
    f"In brackets: what the paper reports ({published.CITATION}), and ours minus that. The study file says how far its "
    "setting is the paper's."
)


# --- cells ------------------------------------------------------------------------------------------------------------


def csv_rows(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each ticket but for the seed, with the columns `COLUMNS`, backbone by backbone.

    After them, for a backbone of the paper, a row without a score for each published cell that the study has not run.
    """
    methods = {r.cell(row, "variant"): r.cell(row, "method") for row in metrics}
    names = {variant: published.names(variant, methods) for variant in methods}
    found = []
    for (backbone,), own in r.group(metrics, "backbone").items():
        cells = [
            _cell(rows, published.find(backbone, task, sparsity, names[variant]))
            for (task, _, variant, sparsity), rows in r.tickets(own).items()
        ]
        _mark(cells, r.dense(own))
        run = {(row["task"], row["sparsity"], name) for row in cells for name in names[row["variant"]]}
        found += cells
        found += [
            dict.fromkeys(COLUMNS, "") | {"backbone": backbone, "task": cell.task} | _beside(cell)
            for cell in published.cells()
            if cell.backbone == backbone and (cell.task, cell.sparsity, cell.name) not in run
        ]
    return found


def _cell(rows: Sequence[Row], beside: published.Published | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {column: r.cell(rows[0], column) for column in COLUMNS[:6]}
    row |= {"seeds": len(rows)} | r.summary("test", r.numbers(rows, "test"))
    if beside is not None:
        row |= _beside(beside)
        if row["test_mean"] != "":
            row["difference"] = round(row["test_mean"] - beside.score, 4)
    return row


def _beside(cell: published.Published) -> dict[str, Any]:
    return {
        "sparsity": cell.sparsity,
        "published_as": cell.name,
        "published": cell.score,
        "published_sd": "" if cell.std is None else cell.std,
        "source": cell.source,
        "note": cell.note,
    }


def _mark(cells: Sequence[dict[str, Any]], dense: str | None) -> None:
    """Mark what is best and what matches the dense model among the cells of a backbone.

    Best is the highest score of a task and sparsity and what is equal to it as printed, where any is lower; scores of
    sparsity 0 compete only where nothing is pruned. What matches has at least the dense mean less its deviation.
    """
    found = [cell for cell in cells if cell["test_mean"] != ""]
    columns: dict[tuple[str, str], list[float]] = {}
    for cell in found:
        columns.setdefault((cell["task"], cell["sparsity"]), []).append(round(cell["test_mean"], 2))
    pruned = any(float(cell["sparsity"]) for cell in found)
    levels = {cell["task"]: cell["test_mean"] - (cell["test_sd"] or 0) for cell in found if cell["variant"] == dense}
    for cell in found:
        scores = columns[cell["task"], cell["sparsity"]]
        competes = len(set(scores)) > 1 and (float(cell["sparsity"]) > 0 or not pruned)
        if competes and round(cell["test_mean"], 2) == max(scores):
            cell["best"] = "yes"
        if cell["variant"] != dense and cell["test_mean"] >= levels.get(cell["task"], float("inf")):
            cell["matches_dense"] = "yes"


# --- tables -----------------------------------------------------------------------------------------------------------


_Lines = dict[str, dict[tuple[str, str], dict[str, Any]]]
"""Cells by variant, and by task and sparsity."""


@dataclass(frozen=True)
class _Table:
    """A table of a backbone.

    Attributes:
        backbone: its name.
        columns: the sparsities of each task.
        unpruned: rows above the others, which have one cell a task.
        pruned: the other rows.
    """

    backbone: str
    columns: dict[str, list[str]]
    unpruned: _Lines
    pruned: _Lines

    @property
    def cells(self) -> list[dict[str, Any]]:
        """All that were run."""
        return [cell for rows in (self.unpruned, self.pruned) for row in rows.values() for cell in row.values()]


def _tables(metrics: Sequence[Row]) -> list[_Table]:
    """For each backbone a table of the variants that are on all tasks, and others of those that are on some.

    Of the latter, those with the same cells share a table, beside the variants of the first that have their method
    (what is not pruned: beside what is not pruned there); so ablations look like Tables 4 to 7.
    """
    found = []
    run = [row for row in csv_rows(metrics) if row["variant"]]
    for (backbone,), cells in r.group(run, "backbone").items():
        lines: _Lines = {}
        order = r.distinct(cells, "task")
        for row in cells:
            lines.setdefault(row["variant"], {})[row["task"], row["sparsity"]] = dict(row)
        prunes = {name: any(float(sparsity) for _, sparsity in line) for name, line in lines.items()}
        tasks = {
            task for line in lines.values() for task, sparsity in line if float(sparsity) or not any(prunes.values())
        }
        dense = r.dense(cells)
        whole = [name for name, line in lines.items() if name == dense or tasks <= {task for task, _ in line}]
        if not any(prunes[name] for name in whole) and any(prunes.values()):
            whole = list(lines)
        groups: dict[frozenset[tuple[str, str]], list[str]] = {}
        for name, line in lines.items():
            if name not in whole:
                groups.setdefault(frozenset(line), []).append(name)
        method = {row["variant"]: row["method"] for row in cells}
        found.append(_table(backbone, order, {name: lines[name] for name in whole}))
        for places, names in groups.items():
            methods = {method[name] for name in names}
            beside = [
                name for name in whole if method[name] in methods or not any(prunes[own] for own in (name, *names))
            ]
            shown = {name: _only(lines[name], places) for name in lines if name in (*beside, *names)}
            found.append(_table(backbone, order, {name: line for name, line in shown.items() if line}))
    return found


def _only(line: Mapping[tuple[str, str], dict[str, Any]], places: Iterable[tuple[str, str]]) -> dict[Any, Any]:
    return {place: cell for place, cell in line.items() if place in set(places)}


def _table(backbone: str, order: Sequence[str], lines: _Lines) -> _Table:
    """A table of these lines, tasks in that order; best is what is best in it."""
    lines = {name: {place: {**cell, "best": ""} for place, cell in line.items()} for name, line in lines.items()}
    _mark([cell for line in lines.values() for cell in line.values()], None)
    columns: dict[str, list[str]] = {task: [] for line in lines.values() for task, _ in line}
    for line in lines.values():
        for task, sparsity in line:
            if float(sparsity) and sparsity not in columns[task]:
                columns[task].append(sparsity)
    prunes = {name for name, line in lines.items() if any(float(sparsity) for _, sparsity in line)}
    return _Table(
        backbone,
        {task: sorted(columns[task], key=float) or ["0.0000"] for task in order if task in columns},
        {name: line for name, line in lines.items() if prunes and name not in prunes},
        {name: line for name, line in lines.items() if not prunes or name in prunes},
    )


def markdown(metrics: Sequence[Row]) -> str:
    """The tables as Markdown, and under them what their marks mean."""
    found = _tables(metrics)
    if not found:
        return "No tickets to show.\n"
    made: list[tables.Table] = []
    for table in found:
        places = [(task, sparsity) for task, sparsities in table.columns.items() for sparsity in sparsities]
        body = []
        for variant, cells in table.unpruned.items():
            body.append([variant, *(_text(cells.get((task, "0.0000")), _bold) for task, _ in places)])
        for variant, cells in table.pruned.items():
            body.append([variant, *(_text(cells.get(place), _bold) for place in places)])
        header = [table.backbone, *(f"{task} {r.percent(sparsity)} %" for task, sparsity in places)]
        made.append((header, body))
    return tables.markdown(made, *_legend([cell for table in found for cell in table.cells]))


def latex(metrics: Sequence[Row]) -> str:
    r"""The tables as LaTeX; a document that inputs them needs \usepackage{booktabs,adjustbox}."""
    return "\n".join(["% needs \\usepackage{booktabs,adjustbox}", *map(_latex, _tables(metrics))])


def _latex(table: _Table) -> str:
    counts = [len(sparsities) for sparsities in table.columns.values()]
    starts = [2 + sum(counts[:index]) for index in range(len(counts))]
    tasks = [_across(count, _escape(task)) for count, task in zip(counts, table.columns, strict=True)]
    rules = [f"\\cmidrule(lr){{{start}-{start + count - 1}}}" for start, count in zip(starts, counts, strict=True)]
    sparsities = [_escape(f"{r.percent(value)} %") for values in table.columns.values() for value in values]
    lines = [
        *("\\begin{table}", "\\centering", f"\\caption{{{_escape(' '.join(_legend(table.cells)))}}}"),
        *("\\begin{adjustbox}{max width=\\linewidth}", f"\\begin{{tabular}}{{l{'r' * sum(counts)}}}", "\\toprule"),
        _line([_escape(table.backbone), *tasks]),
        " ".join(rules),
        *(_line(["", *sparsities]), "\\midrule"),
    ]
    for variant, cells in table.unpruned.items():
        texts = [_text(cells.get((task, "0.0000")), _textbf, _escape) for task in table.columns]
        lines.append(_line([_escape(variant), *map(_across, counts, texts)]))
    if table.unpruned and table.pruned:
        lines.append("\\midrule")
    places = [(task, value) for task, values in table.columns.items() for value in values]
    for variant, cells in table.pruned.items():
        lines.append(_line([_escape(variant), *(_text(cells.get(place), _textbf, _escape) for place in places)]))
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{adjustbox}", "\\end{table}", ""]
    return "\n".join(lines)


def _legend(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the marks mean, and whatever else must be known of the cells that are shown."""
    tasks: dict[str, list[str]] = {}
    for cell in cells:
        tasks.setdefault(cell["metric"], []).append(cell["task"])
    metrics = "; ".join(
        f"{metric}: {', '.join(dict.fromkeys(names))}" if len(tasks) > 1 else metric for metric, names in tasks.items()
    )
    notes = dict.fromkeys(cell["note"] for cell in cells if cell["note"])
    return [
        _LEGEND.format(metrics=metrics, seeds=r.seeds_note(cells)),
        *([_BESIDE] if any(cell["published"] != "" for cell in cells) else []),
        *([f"{_NOTED}: {'; '.join(notes)}."] if notes else []),
    ]


def _text(cell: Mapping[str, Any] | None, bold: Callable[[str], str], escape: Callable[[str], str] = str) -> str:
    """Mean ± deviation, marks, and in brackets the published score and the difference; a dash for what is missing."""
    if cell is None or cell["test_mean"] == "":
        return escape(_MISSING)
    spread = f" ± {cell['test_sd']:.2f}" if cell["test_sd"] != "" else ""
    score = escape(f"{cell['test_mean']:.2f}{spread}")
    score = bold(score) if cell["best"] else score
    marks = escape((_MATCHES if cell["matches_dense"] else "") + (_NOTED if cell["note"] else ""))
    if cell["published"] == "":
        return score + marks
    beside = f"({cell['published']:.2f}, {tables.signed(cell['difference'])})"
    return f"{score}{marks} {escape(beside)}"


def _bold(text: str) -> str:
    return f"**{text}**"


def _textbf(text: str) -> str:
    return f"\\textbf{{{text}}}"


def _across(columns: int, text: str) -> str:
    return f"\\multicolumn{{{columns}}}{{c}}{{{text}}}"


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"±": "$\\pm$", "−": "$-$", "+": "$+$", _MISSING: "---", _MATCHES: "$^\\dagger$", _NOTED: "$^\\ddagger$"},
}


def _escape(text: str) -> str:
    """Text for LaTeX, with what its fonts may lack as commands."""
    return "".join(_TEX.get(character, character) for character in text)
