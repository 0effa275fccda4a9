"""The paper's tables for any study: test scores, one table per backbone, with the published scores beside ours.

`csv_rows` returns everything, one row per cell; `markdown` and `latex` format tables. Inputs are rows of metrics.csv.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isp.reporting import published, tables, tabular
from isp.reporting.tabular import Row

COLUMNS = (
    *("backbone", "task", "variant", "method", "sparsity", "metric"),
    *("seeds", "test_mean", "test_sd", "test_values", "majority"),
    *("best", "matches_dense", "published_as", "published", "published_sd", "difference", "source", "note"),
)
"""Columns of `csv_rows`.

majority: test score of always answering the most frequent label, in percent; best, matches_dense: "yes" or empty;
difference: our score minus the published one in points, empty if a note says that the published score is for another
task or method; note: caveats of the published score.
"""

_MISSING, _MATCHES = "—", "†"
_NOTED = {
    published.TABLE_4: "‡",
    published.TABLE_5: "§",
    published.CHEN: "¶",
    published.MNLI: "‖",
    published.EARLY_BIRD: "◊",
}
_LEGEND = (
    "Test scores in percent ({metrics}), {seeds}. Choices were made on validation data; test data were evaluated once, "
    "on finished tickets. Bold: best score of a column of its table; variants that were run for few columns have "
    "their own tables, with the other variants of their method. "
    f"{_MATCHES}: matches the dense model, that is, the mean is at least that of the dense model minus its standard "
    "deviation (with two dense seeds: the lower score; with one: its score). "
    f"{_MISSING}: not run. Dense models are above the pruned ones, with one score per task in all of its columns."
)
_GUESSED = "No marks for {tasks}, where the dense model scores no better than always answering the most frequent label."
_BESIDE = (
    f"In parentheses: the score reported in the paper ({published.CITATION}), and our score minus that. The study file "
    "says how its setting differs from the paper's."
)

Cells = list[dict[str, Any]]
"""Rows of `csv_rows`."""


# --- cells ------------------------------------------------------------------------------------------------------------


def csv_rows(metrics: Sequence[Row]) -> Cells:
    """Return one row per variant, task and sparsity with the columns `COLUMNS`, backbone by backbone.

    For a backbone of the paper, rows without a score follow, one per published cell that the study has not run.
    """
    names = _names(metrics)
    lines = []
    for (backbone,), of_backbone in tabular.group(metrics, "backbone").items():
        cells = [_cell(rows, names) for rows in tabular.tickets(of_backbone).values()]
        _mark(cells)
        run = {(row["task"], row["sparsity"], name) for row in cells for name in names[row["variant"]]}
        lines += cells
        lines += [
            dict.fromkeys(COLUMNS, "") | {"backbone": backbone, "task": cell.task} | _beside(cell)
            for cell in published.cells()
            if cell.backbone == backbone and (cell.task, cell.sparsity, cell.name) not in run
        ]
    return lines


def _names(metrics: Sequence[Row]) -> dict[str, list[str]]:
    """Return the names of the published rows that correspond to each variant."""
    methods = {tabular.cell(row, "variant"): tabular.cell(row, "method") for row in metrics}
    return {variant: published.names(variant, methods) for variant in methods}


def _cell(rows: Sequence[Row], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {column: tabular.cell(rows[0], column) for column in COLUMNS[:6]}
    row |= {"seeds": len(rows)} | tabular.summary("test", tabular.numbers(rows, "test"))
    guessing = tabular.majority(rows, "test")
    row["majority"] = "" if guessing is None else guessing
    return _with_published(row, names)


def _with_published(row: dict[str, Any], names: Mapping[str, Sequence[str]], prefer: str = "") -> dict[str, Any]:
    """Return a copy of the row with its published cell, preferably from the table `prefer`."""
    cell = published.find(row["backbone"], row["task"], row["sparsity"], names[row["variant"]], prefer)
    if cell is None:
        return {**row}
    known = row["test_mean"] != "" and cell.comparable
    return row | _beside(cell) | {"difference": round(row["test_mean"] - cell.score, 4) if known else ""}


def _beside(cell: published.Published) -> dict[str, Any]:
    return {
        "sparsity": cell.sparsity,
        "published_as": cell.name,
        "published": cell.score,
        "published_sd": "" if cell.std is None else cell.std,
        "source": cell.source,
        "note": "; ".join(cell.notes),
    }


def _mark(cells: Cells) -> None:
    """Mark the best scores and those that match the dense model among the cells of a backbone.

    The best scores of a task and sparsity are the highest one and those equal to it as printed, if any score is lower.
    Dense models are marked only if several are compared. A score matches if it is at least `tabular.matching_level`.
    Nothing is marked on a task on which the dense model only guesses.
    """
    guessed, levels, dense = _guessed(cells), _levels(cells), _dense_of(cells)
    known = [cell for cell in cells if cell["task"] not in guessed]
    _mark_best([cell for cell in known if float(cell["sparsity"]) or cell["task"] in _with_dense_models(cells)])
    for cell in known:
        if cell["test_mean"] != "" and cell["variant"] != dense[cell["task"]]:
            matches = cell["test_mean"] >= levels.get(cell["task"], float("inf"))
            cell["matches_dense"] = "yes" if matches else ""


def _mark_best(cells: Cells) -> None:
    for same in _by_place(cells).values():
        scores = [round(cell["test_mean"], 2) for cell in same if cell["test_mean"] != ""]
        for cell in same:
            best = len(set(scores)) > 1 and cell["test_mean"] != "" and round(cell["test_mean"], 2) == max(scores)
            cell["best"] = "yes" if best else ""


def _dense_of(cells: Cells) -> dict[str, str | None]:
    """Return the variant of each task that represents the dense model, by `tabular.dense`."""
    return {task: tabular.dense(own) for (task,), own in tabular.group(cells, "task").items()}


def _cells_of_dense(cells: Cells) -> Cells:
    """Return the cells of each task's dense model."""
    dense = _dense_of(cells)
    return [cell for cell in cells if cell["variant"] == dense[cell["task"]] and not float(cell["sparsity"])]


def _levels(cells: Cells) -> dict[str, float]:
    """Return the lowest mean that matches the dense model, by task."""
    return {
        cell["task"]: tabular.matching_level(tabular.split(cell["test_values"]))
        for cell in _cells_of_dense(cells)
        if cell["test_mean"] != ""
    }


def _guessed(cells: Cells) -> list[str]:
    """Return the tasks on which the dense model scores no better than always answering the most frequent label."""
    known = [cell for cell in _cells_of_dense(cells) if "" not in (cell["test_mean"], cell["majority"])]
    return [cell["task"] for cell in known if cell["test_mean"] <= cell["majority"]]


def _with_dense_models(cells: Cells) -> set[str]:
    """Return the tasks with dense models to compare: of a method other than `dense` (soups), or with nothing else."""
    pruned = {cell["task"] for cell in cells if float(cell["sparsity"])}
    return {
        cell["task"]
        for cell in cells
        if not float(cell["sparsity"]) and (cell["method"] != "dense" or cell["task"] not in pruned)
    }


def _by_place(cells: Cells) -> dict[tuple[str, str], Cells]:
    """Group cells by task and sparsity, the columns of a table."""
    groups: dict[tuple[str, str], Cells] = {}
    for cell in cells:
        groups.setdefault((cell["task"], cell["sparsity"]), []).append(cell)
    return groups


# --- tables -----------------------------------------------------------------------------------------------------------


_Lines = dict[str, dict[tuple[str, str], dict[str, Any]]]
"""Cells by variant, and by task and sparsity."""


@dataclass(frozen=True)
class _Table:
    """Table of a backbone.

    Attributes:
        backbone: Name of the backbone.
        columns: Sparsities of each task.
        above: Dense models above the pruned ones, which have one cell per task.
        lines: All other rows.
        guessed: Tasks without marks, on which the dense model only guesses.
    """

    backbone: str
    columns: dict[str, list[str]]
    above: _Lines
    lines: _Lines
    guessed: list[str]

    @property
    def cells(self) -> Cells:
        """All cells that were run."""
        return [cell for rows in (self.above, self.lines) for row in rows.values() for cell in row.values()]


def _tables(metrics: Sequence[Row]) -> list[_Table]:
    """Return the tables of each backbone, made by `_pruned`, `_ablations` and `_dense`."""
    names, tables_ = _names(metrics), []
    run = [row for row in csv_rows(metrics) if row["variant"]]
    for backbone in tabular.distinct(run, "backbone"):
        cells = [row for row in run if row["backbone"] == backbone]
        guessed = _guessed(cells)
        for above, lines, own in (_pruned(cells), *_ablations(cells), _dense(cells)):
            if lines:
                above, lines = ([_with_published(c, names, _source(own)) for c in part] for part in (above, lines))
                tables_.append(_table(backbone, above, lines, guessed))
    return tables_


_Parts = tuple[Cells, Cells, Cells]
"""Parts of a table: the dense models above, its lines, and the lines for which the table exists."""


def _pruned(cells: Cells) -> _Parts:
    """Return the pruned models except ablations, and the variants of `dense` above them, as in Tables 2 and 3."""
    narrow = _narrow(cells)
    lines = [cell for cell in cells if float(cell["sparsity"]) and cell["variant"] not in narrow]
    tasks = {cell["task"] for cell in lines}
    above = [c for c in cells if not float(c["sparsity"]) and c["method"] == "dense" and c["task"] in tasks]
    return above, lines, []


def _ablations(cells: Cells) -> Iterator[_Parts]:
    """Yield tables of each method's narrow variants and its other variants, as in Tables 4, 5 and 7.

    The dense model is above them. A table has the columns in which the same of these variants were run.
    """
    narrow, dense = _narrow(cells), _cells_of_dense(cells)
    for method in dict.fromkeys(cell["method"] for cell in cells if cell["variant"] in narrow):
        tables_of: dict[tuple[str, ...], Cells] = {}
        for same in _by_place([c for c in cells if c["method"] == method and float(c["sparsity"])]).values():
            variants = tuple(cell["variant"] for cell in same)
            if narrow & set(variants):
                tables_of.setdefault(variants, []).extend(same)
        for lines in tables_of.values():
            tasks = {cell["task"] for cell in lines}
            yield [c for c in dense if c["task"] in tasks], lines, [cell for cell in lines if cell["variant"] in narrow]


def _dense(cells: Cells) -> _Parts:
    """Return dense models if there are any to compare, as in Table 6."""
    tasks = _with_dense_models(cells)
    lines = [cell for cell in cells if not float(cell["sparsity"]) and cell["task"] in tasks]
    return [], lines, [cell for cell in lines if cell["method"] != "dense"]


def _narrow(cells: Cells) -> set[str]:
    """Return the variants with less than half of the columns, if another variant of their method has more."""
    columns: dict[str, int] = {}
    places = _by_place([cell for cell in cells if float(cell["sparsity"])])
    for same in places.values():
        for cell in same:
            columns[cell["variant"]] = columns.get(cell["variant"], 0) + 1
    methods = {cell["variant"]: cell["method"] for cell in cells}
    narrow = {variant for variant, count in columns.items() if 2 * count < len(places)}
    wide = {methods[variant] for variant in columns.keys() - narrow}
    return {variant for variant in narrow if methods[variant] in wide}


def _source(cells: Cells) -> str:
    """Return the published table that contains most of these cells; empty if none does."""
    sources = Counter(cell["source"] for cell in cells if cell["source"]).most_common(1)
    return sources[0][0] if sources else ""


def _table(backbone: str, above: Cells, lines: Cells, guessed: Sequence[str]) -> _Table:
    """Return a table of these cells, in which the best scores are those of this table."""
    columns: dict[str, list[str]] = {}
    for task, sparsity in _by_place(lines):
        columns.setdefault(task, []).append(sparsity)
    _mark_best([cell for cell in lines if cell["task"] not in guessed])
    return _Table(
        backbone,
        {task: sorted(sparsities, key=float) for task, sparsities in columns.items()},
        _by_variant({**cell, "best": ""} for cell in above),
        _by_variant(lines),
        [task for task in guessed if task in columns],
    )


def _by_variant(cells: Iterable[dict[str, Any]]) -> _Lines:
    lines: _Lines = {}
    for cell in cells:
        lines.setdefault(cell["variant"], {})[cell["task"], cell["sparsity"]] = cell
    return lines


def markdown(metrics: Sequence[Row]) -> str:
    """Return the tables as Markdown, followed by the meaning of their marks."""
    shown = _tables(metrics)
    if not shown:
        return "No tickets to show.\n"
    parts: list[tables.Table] = []
    for table in shown:
        places = [(task, sparsity) for task, sparsities in table.columns.items() for sparsity in sparsities]
        body = []
        for variant, cells in table.above.items():
            body.append([variant, *(_text(cells.get((task, "0.0000")), _bold) for task, _ in places)])
        for variant, cells in table.lines.items():
            body.append([variant, *(_text(cells.get(place), _bold) for place in places)])
        header = [table.backbone, *(f"{task} {tabular.percent(sparsity)} %" for task, sparsity in places)]
        parts.append((header, body))
    return tables.markdown(parts, *_legend(shown))


def latex(metrics: Sequence[Row]) -> str:
    r"""Return the tables as LaTeX; a document that inputs them needs \usepackage{booktabs,adjustbox}."""
    return "\n".join(["% needs \\usepackage{booktabs,adjustbox}", *map(_latex, _tables(metrics))])


def _latex(table: _Table) -> str:
    counts = [len(sparsities) for sparsities in table.columns.values()]
    starts = [2 + sum(counts[:index]) for index in range(len(counts))]
    tasks = [_across(count, _escape(task)) for count, task in zip(counts, table.columns, strict=True)]
    rules = [f"\\cmidrule(lr){{{start}-{start + count - 1}}}" for start, count in zip(starts, counts, strict=True)]
    sparsities = [_escape(f"{tabular.percent(value)} %") for values in table.columns.values() for value in values]
    lines = [
        *("\\begin{table}", "\\centering", f"\\caption{{{_escape(' '.join(_legend([table])))}}}"),
        *("\\begin{adjustbox}{max width=\\linewidth}", f"\\begin{{tabular}}{{l{'r' * sum(counts)}}}", "\\toprule"),
        _line([_escape(table.backbone), *tasks]),
        " ".join(rules),
        *(_line(["", *sparsities]), "\\midrule"),
    ]
    for variant, cells in table.above.items():
        texts = [_text(cells.get((task, "0.0000")), _textbf, _escape) for task in table.columns]
        lines.append(_line([_escape(variant), *map(_across, counts, texts)]))
    if table.above and table.lines:
        lines.append("\\midrule")
    places = [(task, value) for task, values in table.columns.items() for value in values]
    for variant, cells in table.lines.items():
        lines.append(_line([_escape(variant), *(_text(cells.get(place), _textbf, _escape) for place in places)]))
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{adjustbox}", "\\end{table}", ""]
    return "\n".join(lines)


def _legend(shown: Sequence[_Table]) -> list[str]:
    """Return the legend: the meaning of the marks, and the caveats of the cells of these tables."""
    cells = [cell for table in shown for cell in table.cells]
    tasks: dict[str, list[str]] = {}
    for cell in cells:
        tasks.setdefault(cell["metric"], []).append(cell["task"])
    metrics = "; ".join(
        f"{metric}: {', '.join(dict.fromkeys(names))}" if len(tasks) > 1 else metric for metric, names in tasks.items()
    )
    guessed = dict.fromkeys(f"{table.backbone} on {task}" for table in shown for task in table.guessed)
    notes = "; ".join(cell["note"] for cell in cells)
    return [
        _LEGEND.format(metrics=metrics, seeds=tabular.seeds_note(cells, "table")),
        *([_GUESSED.format(tasks=", ".join(guessed))] if guessed else []),
        *([_BESIDE] if any(cell["published"] != "" for cell in cells) else []),
        *(f"{mark}: {note}." for note, mark in _NOTED.items() if note in notes),
    ]


def _text(cell: Mapping[str, Any] | None, bold: Callable[[str], str], escape: Callable[[str], str] = str) -> str:
    """Write scores over seeds, marks, and in parentheses the published score and the difference; a dash if missing."""
    if cell is None or cell["test_mean"] == "":
        return escape(_MISSING)
    score = escape(tables.over_seeds(tabular.split(cell["test_values"])))
    score = bold(score) if cell["best"] else score
    notes = "".join(mark for note, mark in _NOTED.items() if note in cell["note"])
    marks = escape((_MATCHES if cell["matches_dense"] else "") + notes)
    if cell["published"] == "":
        return score + marks
    difference = f", {tables.signed(cell['difference'])}" if cell["difference"] != "" else ""
    beside = f"({cell['published']:.2f}{difference})"
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
    **{
        "±": "$\\pm$",
        "−": "$-$",
        "+": "$+$",
        _MISSING: "---",
        _MATCHES: "$^\\dagger$",
        "‡": "$^\\ddagger$",
        "§": "$^\\S$",
        "¶": "$^\\P$",
        "‖": "$^\\parallel$",
        "◊": "$^\\diamond$",
    },
}


def _escape(text: str) -> str:
    """Escape text for LaTeX, with commands for characters that its fonts may lack."""
    return "".join(_TEX.get(character, character) for character in text)
