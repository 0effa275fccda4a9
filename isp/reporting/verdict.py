"""What a study found, for people: validation scores of each task and backbone, marks, and sentences about them.

All of it follows from metrics.csv. Sentences say how many seeds there are, and no more than means and deviations do.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from isp.reporting import rows as r
from isp.reporting.rows import Row
from isp.reporting.tables import mean_and_deviation, signed


@dataclass(frozen=True)
class Score:
    """Validation scores of a variant at a sparsity, over seeds."""

    values: tuple[float, ...]
    best: bool = False
    """No pruned variant of this sparsity has a higher mean."""
    matching: bool = False
    """Its mean is at least that of the dense model less one standard deviation of the latter."""
    bar: float = 0
    """Where the mean lies between the lowest and the highest of the table, in percent."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def text(self) -> str:
        """As in the table of scores."""
        return mean_and_deviation(self.values)

    def level_with(self, other: Score) -> bool:
        """Whether the means are no further apart than the larger deviation; never known of one seed."""
        spreads = [r.deviation(score.values) for score in (self, other)]
        return None not in spreads and abs(self.mean - other.mean) <= max(spread or 0 for spread in spreads)


@dataclass(frozen=True)
class Line:
    """A variant in the table."""

    variant: str
    scores: Mapping[str, Score]
    """By sparsity, as written; a dense variant has one."""
    steps: float
    """Optimizer steps of the ticket of the highest sparsity, mean over seeds."""
    of_dense: float | None
    """Its executed FLOPs over those of fine-tuning the dense model."""


@dataclass(frozen=True)
class Verdict:
    """A task and backbone: the dense lines, the pruned ones, and what can be said about them."""

    task: str
    backbone: str
    metric: str
    sparsities: tuple[str, ...]
    dense: tuple[Line, ...]
    pruned: tuple[Line, ...]
    level: Line | None
    """The dense variant that the others are held against."""
    level_bar: float
    sentences: tuple[Markup, ...]


def verdicts(metrics: Sequence[Row], reference: str = "", untrained: Iterable[str] = ()) -> list[Verdict]:
    """One for each task and backbone, in their order.

    Args:
        metrics: rows of metrics.csv.
        reference: the variant that sentences compare with one-shot pruning, lottery tickets and the dense model.
        untrained: variants that begin from random weights, which are no dense level.
    """
    return [_verdict(names, rows, reference, set(untrained)) for names, rows in r.group(metrics, *r.CELL).items()]


def seeds_note(metrics: Sequence[Row], intervals: bool) -> str:
    """How many seeds there are, and what ± is."""
    counts = sorted({len(rows) for rows in r.group(metrics, *r.CELL, "variant", "sparsity").values()})
    if not counts:
        return "No tickets yet."
    count = " to ".join(dict.fromkeys(str(value) for value in (counts[0], counts[-1])))
    if counts[-1] == 1:
        note = "n = 1 seed: there are no deviations, so nothing here says which differences are noise."
    else:
        note = (
            f"n = {count} seeds; ± is one sample standard deviation over seeds, not an interval. Differences of the "
            "size of the deviations are within the noise."
        )
    return f"{note} {'Intervals stand under Statistics.' if intervals else 'No intervals are given.'}"


def _verdict(names: Sequence[str], rows: Sequence[Row], reference: str, untrained: set[str]) -> Verdict:
    task, backbone = names
    sparsities = tuple(sparsity for sparsity in r.sparsities(rows) if float(sparsity))
    found = {variant: _values(own) for (variant,), own in r.group(rows, "variant").items()}
    dense = [variant for variant, scores in found.items() if not any(map(float, scores))]
    level = next((variant for variant in dense if variant not in untrained), None)
    means = {
        variant: {sparsity: statistics.fmean(values) for sparsity, values in scores.items()}
        for variant, scores in found.items()
    }
    bar = next(iter(means[level].values())) if level else None
    least = r.matching_level(next(iter(found[level].values()))) if level else float("inf")
    best = {s: max(of[s] for name, of in means.items() if s in of) for s in sparsities}
    everything = [mean for scores in means.values() for mean in scores.values()]
    low, high = min(everything), max(everything)

    def place(mean: float) -> float:
        return round(100 * (mean - low) / (high - low), 1) if high > low else 100.0

    costs = {variant: _cost(own) for (variant,), own in r.group(rows, "variant").items()}
    lines = {
        variant: Line(
            variant,
            {
                sparsity: Score(
                    tuple(values),
                    best=sparsity in best and means[variant][sparsity] == best[sparsity],
                    matching=sparsity in best and means[variant][sparsity] >= least,
                    bar=place(means[variant][sparsity]),
                )
                for sparsity, values in scores.items()
            },
            costs[variant][0],
            costs[variant][1] / costs[level][1] if level and costs[level][1] else None,
        )
        for variant, scores in found.items()
    }
    pruned = tuple(line for variant, line in lines.items() if variant not in dense)
    return Verdict(
        task,
        backbone,
        " / ".join(r.distinct(rows, "metric")),
        sparsities,
        tuple(lines[variant] for variant in dense),
        pruned,
        lines[level] if level else None,
        place(bar) if bar is not None else 0,
        tuple(_sentences(sparsities, pruned, lines[level] if level else None, reference, _methods(rows))),
    )


def _values(rows: Sequence[Row]) -> dict[str, list[float]]:
    return {sparsity: r.numbers(own, "validation") for (sparsity,), own in r.group(rows, "sparsity").items()}


def _cost(rows: Sequence[Row]) -> tuple[float, float]:
    """Steps and executed FLOPs of the sparsest ticket, means over seeds."""
    sparsest = r.group(rows, "sparsity")[(r.sparsities(rows)[-1],)]
    both = [r.numbers(sparsest, f"finding_{kind}", f"retraining_{kind}") for kind in ("steps", "flops")]
    return statistics.fmean(both[0]), statistics.fmean(both[1])


def _methods(rows: Sequence[Row]) -> dict[str, str]:
    """The first variant of each method."""
    found: dict[str, str] = {}
    for row in rows:
        found.setdefault(r.cell(row, "method"), r.cell(row, "variant"))
    return found


def _sentences(
    sparsities: Sequence[str], pruned: Sequence[Line], level: Line | None, reference: str, methods: Mapping[str, str]
) -> Iterable[Markup]:
    dense = next(iter(level.scores.values())) if level else None
    for sparsity in sparsities:
        there = {line.variant: line.scores[sparsity] for line in pruned if sparsity in line.scores}
        if len(there) > 1:
            yield _best(sparsity, there, level.variant if level else "", dense)
    if reference not in {line.variant for line in pruned}:
        return
    others = [methods[method] for method in ("one_shot", "lth") if methods.get(method, reference) != reference]
    for sparsity in sparsities:
        there = {line.variant: line.scores[sparsity] for line in pruned if sparsity in line.scores}
        if level and dense:
            there[level.variant] = dense
        compared = [*(name for name in others if name in there), *([level.variant] if level else [])]
        if reference in there and compared:
            own = there[reference]
            parts = [
                Markup("{} against {}{}").format(
                    signed(own.mean - there[name].mean),
                    code(name),
                    " (within the deviations)" if own.level_with(there[name]) else "",
                )
                for name in compared
            ]
            yield Markup("{} at {} %: {}; in points {}.").format(
                code(reference), r.percent(sparsity), own.text, _listed(parts)
            )


def _best(sparsity: str, there: Mapping[str, Score], level: str, dense: Score | None) -> Markup:
    first = [name for name, score in there.items() if score.best]
    top = there[first[0]]
    found = Markup("Best pruned at {} %: {}, {}").format(r.percent(sparsity), _listed(map(code, first)), top.text)
    if dense:
        gap = top.mean - dense.mean
        where = "level with" if not round(gap, 2) else f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'}"
        found += Markup(", {} {} ({})").format(where, code(level), dense.text)
    near = [name for name, score in there.items() if not score.best and score.level_with(top)]
    if near:
        found += Markup("; within the deviations of it: {}").format(_listed(map(code, near)))
    return found + Markup(".")


def code(name: str) -> Markup:
    """A name, escaped, set as code."""
    return Markup("<code>{}</code>").format(name)


def _listed(parts: Iterable[Markup]) -> Markup:
    """With commas, and "and" before the last."""
    *most, last = parts
    return Markup(" and ").join([*([Markup(", ").join(most)] if most else []), last])
