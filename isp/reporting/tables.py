"""Tables of a study from its collected rows: scores, scores with costs, spending, and similarity of masks.

`scores`, `costs`, `spending` and `similarity` return tables to read, which `markdown` and `text` format. `scores_csv`,
`costs_csv`, `spending_csv` and `similarity_csv` return the same as CSV rows, with separate means and deviations.
`collapse` returns a warning to print below them. All rows are as read from CSV files: every value is text.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, log10
from typing import Any

from isp.reporting import tabular
from isp.reporting.collect import COST
from isp.reporting.tabular import Row

Table = tuple[list[str], list[list[str]]]
"""Header and body of a table; the first cell of the header is its title."""

SCORES = (
    *("task", "backbone", "variant", "method", "sparsity", "metric", "seeds"),
    *("validation_mean", "validation_sd", "validation_values", "chosen_on"),
)
"""Columns of `scores_csv`; chosen_on has the same meaning as in metrics.csv."""
COSTS = (
    *(*SCORES, "test_mean", "test_sd", "test_values"),
    *("finding_steps", "retraining_steps", "flops", "sparse_flops"),
    *("seconds_mean", "seconds_sd", "seconds_values", "changed_least", "changed_most"),
)
"""Columns of `costs_csv`."""
_SPENT = tuple(f"{part}_{key}" for part in ("finding", "retraining") for key in (*COST, "seconds"))
SPENDING = ("task", "backbone", "variant", "method", "sparsity", "seeds", *_SPENT, "flops_of_dense")
"""Columns of `spending_csv`."""
SIMILARITY = (
    *("task", "backbone", "variant_a", "variant_b", "sparsity", "seeds"),
    *(f"{name}_{part}" for name in tabular.SIMILARITIES for part in ("mean", "sd", "values", "by_chance")),
)
"""Columns of `similarity_csv`."""

SCORES_LEGEND = (
    f"Validation scores in percent by sparsity, {tabular.OVER_SEEDS}. steps: optimizer steps, finding and retraining "
    "together, that the ticket of the row's highest sparsity took, mean over seeds."
)
COSTS_LEGEND = (
    f"Scores in percent, {tabular.OVER_SEEDS}; all other values are means over seeds. finding, "
    "retraining: optimizer steps before and after the mask is known. FLOP: executed in total; sparse FLOP: the same "
    "without masked weights (theoretical). seconds: measured, finding and retraining. changed: fraction of the kept "
    "weights that the denoisers changed, lowest and highest of the ticket's rounds (0 without look-aheads)."
)
SPENDING_LEGEND = (
    "Cost of a ticket on its own, mean over seeds: before its mask is known + under its mask. samples: examples that "
    "passed through the model; FLOP: executed; sparse FLOP: without masked weights (theoretical); seconds: measured (a "
    "method that finds and trains in one job has all of them under finding). of dense: ratio of executed FLOPs to "
    "those of fine-tuning the dense model."
)
SIMILARITY_LEGEND = (
    f"Similarity of the masks of two variants' tickets of equal sparsity, {tabular.OVER_SEEDS}; in parentheses: mean "
    "for random masks of that sparsity. cosine: of the masks as 0/1 vectors; Jaccard: number of weights that both keep "
    "over that of weights that either keeps; Hamming: fraction of the weights on which they differ."
)
NO_PAIRS = "No two pruned tickets of one sparsity to compare."
_NAMED = 12  # layers that a warning names

_FINDING, _RETRAINING = "finding_steps", "retraining_steps"


PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
"""Prefixes that `si` writes."""


def si(value: float) -> str:
    """Format a count with three digits and an SI prefix: 1.95e14 is "195 T"."""
    for prefix, unit in PREFIXES.items():
        text = f"{value / unit:.3g}"
        if float(text) >= 1:  # as written, because 999.6 M is "1 G"
            return f"{text} {prefix}"
    return f"{value:.3g}"


def common_prefix(values: Sequence[float]) -> tuple[str, float, int]:
    """Return the SI prefix that the smallest value has, its unit, and the decimals that give that value three digits.

    All values of a column are written with them, so that their decimals are aligned.
    """
    smallest = min((abs(value) for value in values if value), default=1.0)
    prefix, unit = next(((prefix, unit) for prefix, unit in PREFIXES.items() if smallest >= unit), ("", 1.0))
    return prefix, unit, max(0, 2 - floor(log10(smallest / unit)))


def signed(value: float) -> str:
    """Format a difference with its sign and two decimals: "+1.00", "−0.25", "+0.00"."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def over_seeds(values: Sequence[float], places: int = 2) -> str:
    """Format values over seeds.

    Three or more: mean and sample standard deviation, "97.10 ± 0.32". Two: both, "97.00 / 97.20", since a deviation of
    two says no more. One: that value. None: empty.
    """
    around = tabular.deviation(values)
    if around is None:
        return " / ".join(f"{value:.{places}f}" for value in values)
    return f"{statistics.fmean(values):.{places}f} ± {around:.{places}f}"


def scores(metrics: Sequence[Row]) -> list[Table]:
    """Return validation scores, one table per task and backbone, a row per variant, a column per sparsity."""
    tables = []
    for names, rows in tabular.group(metrics, *tabular.CELL).items():
        columns = tabular.sparsities(rows)
        body = []
        for of_variant in tabular.group(rows, "variant").values():
            by_sparsity = tabular.group(of_variant, "sparsity")
            texts = [over_seeds(tabular.numbers(by_sparsity.get((column,), []), "validation")) for column in columns]
            sparsest = by_sparsity[(tabular.sparsities(of_variant)[-1],)]
            steps = statistics.fmean(tabular.numbers(sparsest, _FINDING, _RETRAINING))
            body.append([tabular.name_marked(of_variant), *texts, f"{steps:,.0f}"])
        tables.append(([title(names), *(f"{float(column):g}" for column in columns), "steps"], body))
    return tables


def scores_csv(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per task, backbone, variant and sparsity with the columns `SCORES`."""
    return [_scores_of(rows) for rows in tabular.tickets(metrics).values()]


def costs(metrics: Sequence[Row], timings: Sequence[Row], rounds: Sequence[Row]) -> list[Table]:
    """Return scores, costs and denoiser changes, one table per task and backbone, a row per variant and sparsity."""
    names = ["sparsity", "seeds", "validation", "test", "finding", "retraining", "FLOP", "sparse FLOP", "seconds"]
    tables: dict[tuple[str, ...], Table] = {}
    seconds, runs = _seconds(timings), tabular.group(rounds, *tabular.CELL, "variant")
    for key, rows in tabular.tickets(metrics).items():
        *of, _, sparsity = key
        shares = _changed(runs, key)
        line = [
            tabular.name_marked(rows),
            f"{float(sparsity):g}",
            str(len(rows)),
            over_seeds(tabular.numbers(rows, "validation")),
            over_seeds(tabular.numbers(rows, "test")),
            *(f"{statistics.fmean(tabular.numbers(rows, column)):,.0f}" for column in (_FINDING, _RETRAINING)),
            *(si(statistics.fmean(tabular.numbers(rows, *_flops(kind)))) for kind in ("flops", "sparse_flops")),
            f"{statistics.fmean(seconds[key]):,.0f}" if seconds.get(key) else "",
            f"{100 * min(shares):.1f}–{100 * max(shares):.1f} %" if shares else "",
        ]
        header = [title(of), *names, "changed"]
        tables.setdefault(tuple(of), (header, []))[1].append(line)
    return list(tables.values())


def costs_csv(metrics: Sequence[Row], timings: Sequence[Row], rounds: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per task, backbone, variant and sparsity with the columns `COSTS`; changes are fractions."""
    seconds, runs = _seconds(timings), tabular.group(rounds, *tabular.CELL, "variant")
    lines = []
    for key, rows in tabular.tickets(metrics).items():
        shares = _changed(runs, key)
        means = {column: _mean(rows, column) for column in (_FINDING, _RETRAINING)}
        means |= {kind: _mean(rows, *_flops(kind)) for kind in ("flops", "sparse_flops")}
        least_and_most = {"changed_least": min(shares, default=""), "changed_most": max(shares, default="")}
        duration = tabular.summary("seconds", seconds.get(key, []), 2)
        tests = tabular.summary("test", tabular.numbers(rows, "test"))
        lines.append(_scores_of(rows) | tests | means | duration | least_and_most)
    return lines


def spending(metrics: Sequence[Row], timings: Sequence[Row]) -> list[Table]:
    """Return costs of finding and of retraining, one table per task and backbone, a row per variant and sparsity."""
    tables: dict[tuple[str, ...], Table] = {}
    for row in spending_csv(metrics, timings):
        both = [[row[f"{part}_{key}"] for part in ("finding", "retraining")] for key in (*COST, "seconds")]
        write: list[Callable[[float], str]] = [_whole, _whole, si, si, _whole]
        cells = [" + ".join(map(one, pair)) for one, pair in zip(write, both, strict=True)]
        ratio = f"{row['flops_of_dense']:.2f}" if row["flops_of_dense"] != "" else ""
        names = (row["task"], row["backbone"])
        header = [title(names), "sparsity", "steps", "samples", "FLOP", "sparse FLOP", "seconds", "of dense"]
        line = [row["variant"], f"{float(row['sparsity']):g}", *cells, ratio]
        tables.setdefault(names, (header, []))[1].append(line)
    return list(tables.values())


def spending_csv(metrics: Sequence[Row], timings: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per task, backbone, variant and sparsity with the columns `SPENDING`."""
    took, lines = tabular.tickets(timings), []
    dense = {
        names: statistics.fmean(tabular.numbers(dense_rows, *_flops("flops")))
        for names, rows in tabular.group(metrics, *tabular.CELL).items()
        for level in [tabular.dense(rows)]
        if (dense_rows := [row for row in rows if tabular.cell(row, "variant") == level])
    }
    for key, rows in tabular.tickets(metrics).items():
        row: dict[str, Any] = {column: tabular.cell(rows[0], column) for column in SPENDING[:5]} | {"seeds": len(rows)}
        for column in _SPENT:
            row[column] = _mean(took[key] if column.endswith("seconds") else rows, column)
        whole = statistics.fmean(tabular.numbers(rows, *_flops("flops")))
        row["flops_of_dense"] = round(whole / dense[key[:2]], 4) if dense.get(key[:2]) else ""
        lines.append(row)
    return lines


def similarity(similarity: Sequence[Row]) -> list[Table]:
    """Return similarities of masks and chance levels, one table per task and backbone, a row per pair and sparsity."""
    tables: dict[tuple[str, ...], Table] = {}
    for (*of, a, b, sparsity), rows in _pairs(similarity).items():
        chance = tabular.by_chance(rows)
        texts = [f"{over_seeds(tabular.numbers(rows, name), 3)} ({chance[name]:.3f})" for name in tabular.SIMILARITIES]
        header = [title(of), "sparsity", "seeds", "cosine", "Jaccard", "Hamming"]
        line = [f"{a}, {b}", f"{float(sparsity):g}", str(len(rows)), *texts]
        tables.setdefault(tuple(of), (header, []))[1].append(line)
    return list(tables.values())


def similarity_csv(similarity: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per task, backbone, pair of variants and sparsity with the columns `SIMILARITY`."""
    lines = []
    for key, rows in _pairs(similarity).items():
        chance, row = tabular.by_chance(rows), dict(zip(SIMILARITY, (*key, len(rows)), strict=False))
        for name in tabular.SIMILARITIES:
            row |= tabular.summary(name, tabular.numbers(rows, name), 6) | {f"{name}_by_chance": round(chance[name], 6)}
        lines.append(row)
    return lines


def collapse(layers: Iterable[Row]) -> str:
    """Return a warning about tickets that have layers with only zero weights, or an empty text if there are none.

    Only the rows of such layers are kept in memory, because there may be a million others.
    """
    lines = []
    all_layers: dict[tuple[str, ...], dict[str, None]] = {}
    gone: dict[tuple[str, ...], list[Row]] = {}
    for row in layers:
        place = tuple(tabular.cell(row, column) for column in tabular.CELL)
        all_layers.setdefault(place, {})[tabular.cell(row, "layer")] = None
        if tabular.cell(row, "zero_weights") == tabular.cell(row, "weights"):
            gone.setdefault(place, []).append(row)
    for names, of_place in all_layers.items():
        labels = tabular.short_names(list(of_place))
        for (variant, sparsity), rows in tabular.group(gone.get(names, []), "variant", "sparsity").items():
            by_seeds: dict[str, list[str]] = {}
            for (layer,), same in tabular.group(rows, "layer").items():
                seeds = tabular.distinct(same, "seed")
                by_seeds.setdefault(f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}", []).append(labels[layer])
            found = "; ".join(f"{seeds}: {_some(layers)}" for seeds, layers in by_seeds.items())
            lines.append(f"- {title(names)}, {variant} at {float(sparsity):g}, {found}")
    return (
        "\n".join(["Layer collapse: these tickets have layers that keep no weight at all.\n", *lines]) if lines else ""
    )


def markdown(tables: Sequence[Table], *notes: str) -> str:
    """Format tables as Markdown, followed by notes such as the legend; empty notes are omitted."""
    parts = ["".join(map(_line, [header, ["---"] * len(header), *body])) for header, body in tables]
    return "\n".join([*parts, *(f"{note}\n" for note in notes if note)])


def text(tables: Sequence[Table], *notes: str) -> str:
    """Format tables for a terminal, followed by notes; empty columns and notes are omitted."""
    parts = []
    for header, body in tables:
        shown = [index for index in range(len(header)) if any(line[index] for line in body)]
        table = [[line[index] for index in shown] for line in (header, *body)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table
        ]
        parts.append("\n".join(aligned) + "\n")
    return "\n".join([*parts, *(f"{note}\n" for note in notes if note)])


def _pairs(similarity: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Group rows by pair of variants and sparsity; sparsities of a pair stay together."""
    return {
        (*names, *pair, sparsity): own[(sparsity,)]
        for names, cell in tabular.group(similarity, *tabular.CELL).items()
        for pair, rows in tabular.group(cell, "variant_a", "variant_b").items()
        for own in [tabular.group(rows, "sparsity")]
        for sparsity in tabular.sparsities(rows)
    }


def _some(layers: Sequence[str]) -> str:
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return ", ".join(layers[:_NAMED]) + more


def _scores_of(rows: Sequence[Row]) -> dict[str, Any]:
    named = {column: tabular.cell(rows[0], column) for column in SCORES[:6]}
    scores = tabular.summary("validation", tabular.numbers(rows, "validation"))
    return named | {"seeds": len(rows)} | scores | {"chosen_on": "validation" if tabular.chosen(rows) else ""}


def _seconds(timings: Sequence[Row]) -> dict[tuple[str, ...], list[float]]:
    return {
        key: tabular.numbers(rows, "finding_seconds", "retraining_seconds")
        for key, rows in tabular.tickets(timings).items()
    }


def _changed(runs: Mapping[tuple[str, ...], Sequence[Row]], ticket: tuple[str, ...]) -> list[float]:
    """Return the fractions of kept weights that denoisers changed in the rounds of a ticket, over all seeds."""
    *names, target = ticket
    ways = [tabular.chain(events, target) for events in tabular.group(runs.get(tuple(names), []), "seed").values()]
    return [share for way in ways for share in tabular.numbers(way, "changed")]


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _flops(kind: str) -> tuple[str, str]:
    return f"finding_{kind}", f"retraining_{kind}"


def _mean(rows: Sequence[Row], *columns: str) -> int | float:
    mean = statistics.fmean(tabular.numbers(rows, *columns))
    return int(mean) if mean.is_integer() else round(mean, 2)


def title(names: Sequence[str]) -> str:
    """Return the title of a table of a (task, backbone)."""
    return " on ".join(reversed(names))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
