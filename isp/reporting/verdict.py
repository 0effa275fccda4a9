"""Verdict of a study's page: validation scores of each task and backbone, marks, and sentences about them.

All of it is derived from metrics.csv. Sentences contain the number of seeds, and claim no more than means and
deviations show.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from isp.reporting import tabular
from isp.reporting.tables import over_seeds, signed
from isp.reporting.tabular import Row


@dataclass(frozen=True)
class Score:
    """Validation scores of a variant at a sparsity, over seeds."""

    values: tuple[float, ...]
    best: bool = False
    """Whether no variant of this sparsity has a higher mean; for dense models only if several are compared. Variants
    whose method chose by these examples are ignored."""
    matching: bool = False
    """Whether its mean is at least `tabular.matching_level` of the dense model."""
    bar: float = 0
    """Position of the mean between the lowest and the highest mean of the table, in percent."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def text(self) -> str:
        """Text of the scores, as in the table of scores."""
        return over_seeds(self.values)

    def level_with(self, other: Score) -> bool:
        """Return whether the means differ by at most the larger deviation; False for fewer than three seeds."""
        spreads = [tabular.deviation(score.values) for score in (self, other)]
        return None not in spreads and abs(self.mean - other.mean) <= max(spread or 0 for spread in spreads)


@dataclass(frozen=True)
class Line:
    """Line of a variant in the table; a variant with dense and pruned tickets has two lines."""

    variant: str
    chosen: bool
    """Whether its method chose among models by these validation examples."""
    scores: Mapping[str, Score]
    """Scores by sparsity, as written; a dense model has one."""
    steps: float
    """Optimizer steps of the ticket of the highest sparsity, mean over seeds."""
    of_dense: float | None
    """Ratio of its executed FLOPs to those of fine-tuning the dense model."""


@dataclass(frozen=True)
class Verdict:
    """Verdict of a task and backbone: dense lines, pruned lines, and sentences about them."""

    task: str
    backbone: str
    metric: str
    sparsities: tuple[str, ...]
    dense: tuple[Line, ...]
    pruned: tuple[Line, ...]
    level: Line | None
    """The dense variant with which the others are compared."""
    level_bar: float
    majority: float | None
    """Score of always answering the most frequent label, in percent; None if unknown."""
    guessed: bool
    """Whether the dense model scores no better than that, so that nothing is marked."""
    sentences: tuple[Markup, ...] = ()


def verdicts(metrics: Sequence[Row], reference: str = "") -> list[Verdict]:
    """Return one verdict per task and backbone, in their order.

    Args:
        metrics: Rows of metrics.csv.
        reference: Variant that the sentences compare with one-shot pruning, lottery tickets and the dense model.
    """
    return [_verdict(names, rows, reference) for names, rows in tabular.group(metrics, *tabular.CELL).items()]


def seeds_note(metrics: Sequence[Row], intervals: bool) -> str:
    """Describe the number of seeds and the meaning of their spread."""
    counts = sorted({len(rows) for rows in tabular.group(metrics, *tabular.CELL, "variant", "sparsity").values()})
    if not counts:
        return "No tickets yet."
    count = " to ".join(dict.fromkeys(str(value) for value in (counts[0], counts[-1])))
    if counts[-1] == 1:
        note = "n = 1 seed: there are no deviations, so nothing here says which differences are noise."
    elif counts[-1] == 2:
        note = f"n = {count} seeds, whose scores are shown: two do not say which differences are noise."
    else:
        note = (
            f"n = {count} seeds; ± is one sample standard deviation over seeds, not an interval. Differences of the "
            "size of the deviations are within the noise."
        )
        note += " Of two seeds both scores are shown." if 2 in counts else ""
    return f"{note} {'Intervals are under Statistics.' if intervals else 'No intervals are given.'}"


def _verdict(names: Sequence[str], rows: Sequence[Row], reference: str) -> Verdict:
    task, backbone = names
    whole, pruned = (
        [row for row in rows if bool(float(tabular.cell(row, "sparsity"))) == cut] for cut in (False, True)
    )
    level = tabular.dense(whole)
    scores = {
        place: tabular.numbers(own, "validation") for place, own in tabular.group(rows, "variant", "sparsity").items()
    }
    means = {place: statistics.fmean(values) for place, values in scores.items()}
    low, high = min(means.values()), max(means.values())
    of_level = next((values for (variant, _), values in scores.items() if variant == level), None)
    majority = tabular.majority(rows, "validation")
    guessed = of_level is not None and majority is not None and round(statistics.fmean(of_level), 4) <= majority
    least = tabular.matching_level(of_level) if of_level else float("inf")
    chosen = {variant for (variant,), own in tabular.group(rows, "variant").items() if tabular.chosen(own)}
    best: dict[str, float] = {}
    for sparsity in () if guessed else _compared(rows):
        fair = [mean for (variant, of), mean in means.items() if of == sparsity and variant not in chosen]
        best |= {sparsity: max(fair)} if fair else {}

    def bar(mean: float) -> float:
        return round(100 * (mean - low) / (high - low), 1) if high > low else 100.0

    def score(variant: str, sparsity: str) -> Score:
        mean, marked = means[variant, sparsity], sparsity in best and variant != level and variant not in chosen
        return Score(
            tuple(scores[variant, sparsity]),
            best=mean == best.get(sparsity) and variant not in chosen,
            matching=marked and mean >= least,
            bar=bar(mean),
        )

    dense_flops = _cost([row for row in whole if tabular.cell(row, "variant") == level])[1] if level else 0

    def lines(part: Sequence[Row]) -> tuple[Line, ...]:
        lines_ = []
        for (variant,), of_variant in tabular.group(part, "variant").items():
            steps, flops = _cost(of_variant)
            texts = {sparsity: score(variant, sparsity) for sparsity in tabular.distinct(of_variant, "sparsity")}
            lines_.append(Line(variant, variant in chosen, texts, steps, flops / dense_flops if dense_flops else None))
        return tuple(lines_)

    verdict = Verdict(
        task,
        backbone,
        " / ".join(tabular.distinct(rows, "metric")),
        tuple(tabular.sparsities(pruned)),
        lines(whole),
        lines(pruned),
        next((line for line in lines(whole) if line.variant == level), None),
        bar(statistics.fmean(of_level)) if of_level else 0,
        majority,
        guessed,
    )
    return replace(verdict, sentences=tuple(_sentences(verdict, _compared(rows), reference, _methods(rows))))


def _compared(rows: Sequence[Row]) -> list[str]:
    """Return the sparsities at which variants are compared, including 0 if dense models of several methods exist.

    It also includes 0 if there are only dense models. A dense variant trained from scratch does not count as a second
    dense model.
    """
    whole = [row for row in rows if not float(tabular.cell(row, "sparsity"))]
    methods, only = tabular.distinct(whole, "method"), len(whole) == len(rows)
    rivals = any(method != "dense" for method in methods) or (only and len(tabular.distinct(whole, "variant")) > 1)
    return [sparsity for sparsity in tabular.sparsities(rows) if float(sparsity) or rivals]


def _cost(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the steps and executed FLOPs of the sparsest ticket, means over seeds."""
    sparsest = tabular.group(rows, "sparsity")[(tabular.sparsities(rows)[-1],)]
    both = [tabular.numbers(sparsest, f"finding_{kind}", f"retraining_{kind}") for kind in ("steps", "flops")]
    return statistics.fmean(both[0]), statistics.fmean(both[1])


def _methods(rows: Sequence[Row]) -> dict[str, str]:
    """Return the first variant of each method."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(tabular.cell(row, "method"), tabular.cell(row, "variant"))
    return first


def _sentences(
    verdict: Verdict, compared: Sequence[str], reference: str, methods: Mapping[str, str]
) -> Iterable[Markup]:
    level, by_sparsity = verdict.level, {sparsity: _there(verdict, sparsity) for sparsity in compared}
    dense = next(iter(level.scores.values())) if level else None
    if level and dense and verdict.guessed:
        yield Markup(
            "Nothing can be said about methods: {} ({}) scores no more than always answering the most frequent label "
            "({:.2f})."
        ).format(code(level.variant), dense.text, verdict.majority)
        return
    chosen = {line.variant for line in (*verdict.dense, *verdict.pruned) if line.chosen}
    for sparsity, there in by_sparsity.items():
        fair = {name: score for name, score in there.items() if name not in chosen}
        if len(fair) > 1:
            yield _best(sparsity, fair, level.variant if level else "", dense)
    if reference not in {line.variant for line in verdict.pruned}:
        return
    others = [methods[method] for method in ("one_shot", "lth") if methods.get(method, reference) != reference]
    for sparsity in verdict.sparsities:
        there = dict(by_sparsity[sparsity])
        if level and dense:
            there[level.variant] = dense
        compared_with = [*(name for name in others if name in there), *([level.variant] if level else [])]
        if reference in there and compared_with:
            own = there[reference]
            parts = [
                Markup("{} against {}{}").format(
                    signed(own.mean - there[name].mean),
                    code(name),
                    " (within the deviations)" if own.level_with(there[name]) else "",
                )
                for name in compared_with
            ]
            yield Markup("{} at {} %: {}; in points {}.").format(
                code(reference), tabular.percent(sparsity), own.text, _listed(parts)
            )


def _there(verdict: Verdict, sparsity: str) -> dict[str, Score]:
    """Return the scores of a sparsity by variant."""
    lines = verdict.pruned if float(sparsity) else verdict.dense
    return {line.variant: line.scores[sparsity] for line in lines if sparsity in line.scores}


def _best(sparsity: str, there: Mapping[str, Score], level: str, dense: Score | None) -> Markup:
    first = [name for name, score in there.items() if score.best]
    top, kind = there[first[0]], "pruned" if float(sparsity) else "dense model"
    text = Markup("Best {} at {} %: {}, {}").format(
        kind, tabular.percent(sparsity), _listed(map(code, first)), top.text
    )
    if dense and level not in first:
        gap = top.mean - dense.mean
        where = "level with" if not round(gap, 2) else f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'}"
        text += Markup(", {} {} ({})").format(where, code(level), dense.text)
    near = [name for name, score in there.items() if not score.best and score.level_with(top)]
    if near:
        text += Markup("; within the deviations of it: {}").format(_listed(map(code, near)))
    return text + Markup(".")


def code(name: str) -> Markup:
    """Format a name as code, escaped."""
    return Markup("<code>{}</code>").format(name)


def _listed(parts: Iterable[Markup]) -> Markup:
    """Join parts with commas, and "and" before the last."""
    *most, last = parts
    return Markup(" and ").join([*([Markup(", ").join(most)] if most else []), last])
