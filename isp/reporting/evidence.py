"""The verdict table: the paper's claims, its figures, and what the reference studies found, from their csv files.

Nothing in it is typed: the paper's figures are computed from `isp/reporting/published/`, ours from `metrics.csv` and
`study.json` of each study. A study without `study.json` is left out, since its variants may be of another rule.
"""

from __future__ import annotations

import os
import statistics as means
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import sub, truediv
from pathlib import Path
from typing import Any

from isp import files
from isp.errors import ConfigError
from isp.metrics import value_range
from isp.reporting import claims, published, statistics, tables, tabular
from isp.reporting.claims import CLAIMS, Claim, Verdict
from isp.reporting.collected import read
from isp.reporting.tabular import Row
from isp.shapes import Description

_MISSING = "—"
_FEW_STUDIES = 2
"""Most studies of a row that a table without a page names."""
_ORDERED = 5
"""Fewest methods of the paper's Table 2 that an order is compared on."""
_NOTE = "`isp verdict` writes this page from the reference results; do not edit it."
HEADER = ["claim", "paper", "ours", "by task", "n", "detectable", "where", "verdict"]
_ONLY_ON_PAGE = ("by task", "detectable")
LEGEND = """\
All figures are of test scores.

- **paper**: mean over the cells of its tables that have the comparison, in brackets the least and the greatest (for the
  dense score: over the cells that we have).
- **ours**: differences in points of each task's own metric, costs as a ratio of executed FLOPs, orders as Kendall's
  tau. A run is a seed, its value a mean over sparsities. **by task**: the mean of each of three or more tasks.
- **Which studies count**: where several have a task, the one whose dense run executes the most FLOPs, because it is the
  nearest to the paper's scale; one of fewer than three seeds counts only if no other has the task. Studies that repeat
  another one at a different learning rate do not count: {varied}.
- **Three or more tasks**: the sample is their means, since runs of one task are not independent, with its 95 % interval
  (Student's t).
- **Fewer tasks**: each is judged by the interval over its own seeds, and all must agree. Of two seeds both values are
  shown, and the row stays open.
- **Costs** are exact and have no interval. Each task is judged by its ratio, and all must agree; brackets contain the
  lowest and the highest.
- **detectable**: the smallest true difference that the comparison finds with 80 % power at the 5 % level.
- **verdict**: *reproduced* or *not reproduced* if the whole interval is on one side of the limit; *open* if it is not,
  or if no study has the data.

Limits: {rules}."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one study.

    Attributes:
        folder: Where they are.
        metrics: Rows of metrics.csv.
        description: Content of study.json.
    """

    folder: Path
    metrics: Sequence[Row]
    description: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The measurements that decide a claim on one task.

    Attributes:
        task: Its name.
        backbone: Name of the backbone.
        study: The study that they are of.
        values: One value per run.
        limits: Range of the measure.
    """

    task: str
    backbone: str
    study: Results
    values: Sequence[float]
    limits: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the verdict table.

    Attributes:
        claim: The claim.
        published: Figures of the paper, one per cell of its tables.
        evidence: Measurements by task.
        ours: The measure and its interval as text.
        detectable: Smallest detectable differences as text.
        verdict: Verdict that follows.
    """

    claim: Claim
    published: Sequence[float]
    evidence: Sequence[Evidence]
    ours: str
    detectable: str
    verdict: Verdict


def read_results(folder: Path) -> list[Results]:
    """Read the studies below a folder that have both metrics.csv and study.json, by name.

    Raises:
        ConfigError: there is no such folder.
        ArtifactError: a file is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name one with the results of studies, such as docs/results")
    return [
        Results(
            folder=path.parent,
            metrics=read(path, "metrics"),
            description=files.read_json(path.with_name("study.json"), "describe", Description),
        )
        for path in sorted(folder.glob("*/metrics.csv"))
        if path.with_name("study.json").exists()
    ]


def settings_of(results: Results, variant: str, backbone: str) -> dict[str, Any]:
    """Return the settings of a variant on a backbone, as study.json has them."""
    known = (results.description.get("variants") or {}).get(variant) or {}
    return {**(known.get("settings") or {}), **((known.get("by_backbone") or {}).get(backbone) or {})}


def role_of(results: Results, backbone: str, role: str) -> str | None:
    """Return the variant of a study that has a role in a claim; None if the study has none.

    A role is the name of a published row ("isp", "isp_without_denoiser", "denoisers=4", "look_ahead=50", a method), or
    of a variant. A variant of the method `isp` counts only if it has the paper's rounds and rule, the union of masks,
    and the number of denoisers and look-ahead steps that the role names. `progressive` is the variant that prunes up to
    the end of T, as the paper's does, whatever its name.
    """
    rows = [row for row in results.metrics if tabular.cell(row, "backbone") == backbone]
    if role == "dense":
        return tabular.dense(rows)
    methods = {tabular.cell(row, "variant"): tabular.cell(row, "method") for row in rows}
    variants = (results.description.get("variants") or {}).items()
    altered = {name for name, known in variants if known.get("steps_of") or known.get("initial") == "random"}
    for variant, method in methods.items():
        settings = settings_of(results, variant, backbone)
        if variant in altered:
            continue
        if role == method == "progressive":
            if settings.get("end") is None:
                return variant
        elif role not in (variant, *published.names(variant, methods)):
            continue
        elif method == "isp":
            if _is_the_papers(settings, role):
                return variant
        elif role not in ("isp", "isp_without_denoiser") and "=" not in role:
            return variant
    return None


def _is_the_papers(settings: Mapping[str, Any], role: str) -> bool:
    """Return whether settings of the method `isp` are the paper's, with the copies that a role names."""
    wanted: dict[str, Any] = {"rule": "union", "scope": "global", "adjust": "rounds", "rounds": "nominal"}
    name, _, count = role.partition("=")
    if count:
        wanted[{"denoisers": "denoisers", "look_ahead": "look_ahead_steps"}[name]] = int(count)
    # Results may be older than these keys; their rounds were what are the defaults now.
    later = {"rate_of": "remaining", "stop_within": 0.0, "round_limit": "budget"}
    copies = settings.get("denoisers", 0)
    return all({**later, **settings}.get(key) == value for key, value in {**wanted, **later}.items()) and (
        copies == 0 if role in ("isp_without_denoiser", "denoisers=0") else copies > 0
    )


def verdict_lines(studies: Sequence[Results]) -> list[Line]:
    """Return one line per claim."""
    return [_line(claim, studies) for claim in CLAIMS]


def page(lines: Sequence[Line], place: Path) -> str:
    """Return the page of the verdict table; `place` is its folder."""
    return f"# The paper's claims, tested\n\n{_NOTE}\n\n{table(lines, place)}"


def table(lines: Sequence[Line], place: Path, legend: bool = True) -> str:
    """Return the verdict table as Markdown.

    Args:
        lines: Rows.
        place: Folder of the file that the table is for, from which links start.
        legend: Whether all studies are linked, means by task and detectable differences are shown, and the text under
            the table says how each row is decided.
    """
    body = [
        [
            line.claim.statement,
            _published_text(line),
            line.ours or _MISSING,
            _means(line),
            _count(line.evidence),
            line.detectable or _MISSING,
            _where(line.evidence, place if legend else None),
            f"*{line.verdict}*",
        ]
        for line in lines
    ]
    if not legend:
        kept = [index for index, name in enumerate(HEADER) if name not in _ONLY_ON_PAGE]
        header, *body = [[row[index] for index in kept] for row in (HEADER, *body)]
        return tables.markdown([(header, body)], "")
    rules: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        rules.setdefault(claims.rule(line.claim), []).append(str(number))
    texts = [f"row{'s' * (len(rows) > 1)} {', '.join(rows)}: {text}" for text, rows in rules.items()]
    varied = ", ".join(f"`{name}`" for name in claims.VARIED)
    return tables.markdown([(HEADER, body)], LEGEND.format(rules="; ".join(texts), varied=varied))


def plain(lines: Sequence[Line]) -> str:
    """Return the verdict table for a terminal."""
    header = ["verdict", "paper", "ours", "n", "where"]
    parts = []
    for line in lines:
        values = [
            *(line.verdict, _published_text(line), line.ours or _MISSING),
            *(_count(line.evidence), _where(line.evidence, None)),
        ]
        parts.append("\n".join([line.claim.statement, *map("  {:>7}  {}".format, header, values)]) + "\n")
    return "\n".join(parts)


def insert(text: str, name: str, content: str, path: Path) -> str:
    """Put content between the markers `<!-- name:begin -->` and `<!-- name:end -->` of a Markdown text.

    Raises:
        ConfigError: the text does not have each marker once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if [text.count(begin), text.count(end)] != [1, 1] or text.index(begin) > text.index(end):
        raise ConfigError(f"{path}: must have the lines {begin} and {end} once each, in this order")
    return f"{text.split(begin)[0]}{begin}\n{content}{end}{text.split(end)[1]}"


# --- measures ---------------------------------------------------------------------------------------------------------


def _line(claim: Claim, studies: Sequence[Results]) -> Line:
    evidence = _evidence(claim, studies)
    figures = _order_figures() if claim.measure == "order" else _published_differences(claim, _places(claim, evidence))
    verdict, ours, detectable = _judge(claim, evidence, means.fmean(figures) if figures else None)
    return Line(claim=claim, published=figures, evidence=evidence, ours=ours, detectable=detectable, verdict=verdict)


def _evidence(claim: Claim, studies: Sequence[Results]) -> list[Evidence]:
    """Return the measurements of each task, from the study with the largest dense run among those with enough runs.

    The studies in `claims.VARIED` do not count.
    """
    largest: dict[str, tuple[tuple[bool, float, int], Evidence]] = {}
    for study in studies:
        if (study.description.get("study") or {}).get("study") in claims.VARIED:
            continue
        for (backbone, task), rows in tabular.group(study.metrics, "backbone", "task").items():
            values = _measured(claim, study, backbone, task, rows)
            if values:
                size = len(values) >= tabular.FEWEST, _dense_flops(rows), len(rows)
                limits = _limits(claim, value_range(tabular.cell(rows[0], "metric")))
                evidence = Evidence(task=task, backbone=backbone, study=study, values=values, limits=limits)
                if task not in largest or size > largest[task][0]:
                    largest[task] = size, evidence
    return [evidence for _, evidence in largest.values()]


def _limits(claim: Claim, scores: tuple[float, float]) -> tuple[float, float]:
    low, high = scores
    return (-1.0, 1.0) if claim.measure == "order" else (low - high, high - low)


def _dense_flops(rows: Sequence[Row]) -> float:
    level = tabular.dense(rows)
    values = tabular.numbers([row for row in rows if tabular.cell(row, "variant") == level], "retraining_flops")
    return means.fmean(values) if values else 0.0


def _measured(claim: Claim, study: Results, backbone: str, task: str, rows: Sequence[Row]) -> list[float]:
    """Measure each run (seed) of a study on a task, as a mean over sparsities; empty if the study has no data."""
    if claim.at_published:
        sparsities = {each.sparsity for each in _cells(claim.variant, claim.published) if each.task == task}
        rows = [row for row in rows if tabular.cell(row, "sparsity") in sparsities | {"0.0000"}]
    if claim.measure == "order":
        names = {name: role_of(study, backbone, name) for name in _paper_order()}
        variants = {name: variant for name, variant in names.items() if variant}
        if "isp" not in variants:
            return []
        taus = [_order(run, variants) for run in tabular.group(rows, "seed").values()]
        return [tau for tau in taus if tau is not None]
    variant, reference = (role_of(study, backbone, role) for role in (claim.variant, claim.reference))
    if variant is None or reference is None or variant == reference:
        return []
    if claim.measure == "cost":
        return per_run(rows, variant, reference, truediv, ("finding_flops", "retraining_flops"))
    return per_run(rows, variant, reference)


def per_run(
    rows: Sequence[Row],
    variant: str,
    reference: str,
    compare: Callable[[float, float], float] = sub,
    columns: Sequence[str] = ("test",),
) -> list[float]:
    """Compare two variants in each run (seed) of a backbone and task: one value per run that has both.

    Args:
        rows: Rows of metrics.csv of one backbone and task.
        variant: Name of a variant.
        reference: Name of the variant that it is compared with at the same sparsity; a dense one at every sparsity.
        compare: Function of the two numbers; their difference by default.
        columns: Columns whose sum is compared.

    Returns:
        The mean over sparsities of each run.
    """
    values = []
    for run in tabular.group(rows, "seed").values():
        scores, other = (_by_sparsity(run, name, columns) for name in (variant, reference))
        if set(other) == {"0.0000"}:
            other = dict.fromkeys(scores, other["0.0000"])
        shared = [compare(value, other[sparsity]) for sparsity, value in scores.items() if sparsity in other]
        if shared:
            values.append(means.fmean(shared))
    return values


def _by_sparsity(run: Sequence[Row], variant: str, columns: Sequence[str]) -> dict[str, float]:
    rows = [row for row in run if tabular.cell(row, "variant") == variant]
    return {tabular.cell(row, "sparsity"): value for row in rows for value in tabular.numbers([row], *columns)}


def _order(run: Sequence[Row], variants: Mapping[str, str]) -> float | None:
    """Kendall's tau of a run's scores with the paper's order, mean over the sparsities that have enough methods."""
    scores = {name: _by_sparsity(run, variant, ("test",)) for name, variant in variants.items()}
    taus = []
    for sparsity in tabular.sparsities(run):
        ranked = [
            (scores[name][sparsity], place)
            for name, place in _paper_order().items()
            if sparsity in scores.get(name, ())
        ]
        if float(sparsity) and len(ranked) >= _ORDERED:
            taus.append(kendall_tau([score for score, _ in ranked], [place for _, place in ranked]))
    return means.fmean(taus) if taus else None


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a: pairs in the same order less those in the opposite order, over all pairs; ties are neither."""
    signs = [
        ((a > b) - (a < b)) * ((c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)
    ]
    return sum(signs) / len(signs)


# --- the paper --------------------------------------------------------------------------------------------------------


def _cells(name: str, sources: Sequence[str]) -> list[published.Published]:
    return [cell for cell in published.cells() if cell.name == name and cell.source in sources and cell.comparable]


def _places(claim: Claim, evidence: Sequence[Evidence]) -> set[tuple[str, str]] | None:
    """Return the tasks and sparsities of the claim's variant in the evidence if only these count; None if all do."""
    if not claim.at_published or not evidence:
        return None
    places = set()
    for each in evidence:
        own = (each.task, each.backbone, role_of(each.study, each.backbone, claim.variant))
        for row in each.study.metrics:
            if tuple(tabular.cell(row, column) for column in ("task", "backbone", "variant")) == own:
                places.add((each.task, tabular.cell(row, "sparsity")))
    return places


def _published_differences(claim: Claim, places: set[tuple[str, str]] | None = None) -> list[float]:
    """Subtract the two rows of a claim in the paper's tables, one difference per cell.

    Args:
        claim: The claim.
        places: Tasks and sparsities that count; None: all.
    """
    others = {}
    for cell in _cells(claim.reference, claim.published):
        sparsity = "" if claim.reference == "dense" else cell.sparsity
        others[cell.source, cell.backbone, cell.task, sparsity] = cell.score
    differences = []
    for cell in _cells(claim.variant, claim.published):
        place = (cell.source, cell.backbone, cell.task, "" if claim.reference == "dense" else cell.sparsity)
        if place in others and (places is None or (cell.task, cell.sparsity) in places):
            differences.append(round(cell.score - others[place], 4))
    return differences


def _by_cell() -> list[dict[str, float]]:
    """Scores by method of each pruned cell of Table 2, without random masks, last in all of them."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for cell in published.cells():
        if cell.source == "table2" and float(cell.sparsity) and cell.comparable and cell.name != "random":
            scores.setdefault((cell.task, cell.sparsity), {})[cell.name] = cell.score
    return list(scores.values())


def _paper_order() -> dict[str, float]:
    """Return minus the mean rank of each method over the cells of Table 2; a better method has a higher number."""
    names = list(_by_cell()[0])
    ranked = [statistics.ranks([scores[name] for name in names]) for scores in _by_cell()]
    return {name: -means.fmean(ranks) for name, ranks in zip(names, zip(*ranked, strict=True), strict=True)}


def _order_figures() -> list[float]:
    """Compare the order of each cell of Table 2 with that of the mean ranks."""
    order = _paper_order()
    return [kendall_tau([scores[name] for name in order], list(order.values())) for scores in _by_cell()]


# --- decisions and texts ----------------------------------------------------------------------------------------------


def _judge(claim: Claim, evidence: Sequence[Evidence], paper: float | None) -> tuple[Verdict, str, str]:
    """Verdict, measure with interval, and smallest detectable difference."""
    if not evidence:
        return "open", "", ""
    write = _writer(claim)
    by_task = {each.task: each.values for each in evidence}
    if claim.measure == "cost":
        ratios = [means.fmean(values) for values in by_task.values()]
        return _agreed([claims.decide(claim, value, value, paper) for value in ratios]), _listed(by_task, write), ""
    if len(evidence) < tabular.FEWEST:
        judged = [_interval_text(claim, each.values, each.limits, paper, write) for each in evidence]
        texts = [f"{each.task} {text}" for each, (_, text, _) in zip(evidence, judged, strict=True)]
        powers = [power for _, _, power in judged if power]
        return _agreed([verdict for verdict, _, _ in judged]), "; ".join(texts), " / ".join(powers)
    low, high = zip(*(each.limits for each in evidence), strict=True)
    return _interval_text(claim, statistics.independent(by_task), (min(low), max(high)), paper, write)


def _interval_text(
    claim: Claim,
    sample: Sequence[float],
    limits: tuple[float, float],
    paper: float | None,
    write: Callable[[float], str],
) -> tuple[Verdict, str, str]:
    around = statistics.interval(sample, limits)
    if around is None:
        shown = sample if len(sample) < tabular.FEWEST else [means.fmean(sample)]
        return "open", " / ".join(map(write, shown)), ""
    text = f"{write(means.fmean(sample))} ({write(around[0])} to {write(around[1])})"
    power = statistics.detectable_difference(sample)
    return claims.decide(claim, *around, paper), text, "" if power is None else f"{power:.2f}"


def _agreed(verdicts: Sequence[Verdict]) -> Verdict:
    return verdicts[0] if len(set(verdicts)) == 1 else "open"


def _listed(by_task: Mapping[str, Sequence[float]], write: Callable[[float], str]) -> str:
    """Write the mean of each task; of three or more tasks their mean, the least and the greatest."""
    values = {task: means.fmean(own) for task, own in by_task.items()}
    if len(values) < tabular.FEWEST:
        return "; ".join(f"{task} {write(value)}" for task, value in values.items())
    return f"{write(means.fmean(values.values()))} ({write(min(values.values()))} to {write(max(values.values()))})"


def _writer(claim: Claim) -> Callable[[float], str]:
    return tables.signed if claim.measure == "difference" else "{:.2f}".format


def _means(line: Line) -> str:
    """Write the mean of each of three or more tasks; fewer are listed beside the claim."""
    if len(line.evidence) < tabular.FEWEST:
        return _MISSING
    write = _writer(line.claim)
    return "; ".join(f"{each.task} {write(means.fmean(each.values))}" for each in line.evidence)


def _published_text(line: Line) -> str:
    if not line.published:
        return _MISSING
    write = _writer(line.claim)
    if len(line.published) == 1:
        return write(line.published[0])
    ends = min(line.published), max(line.published)
    return f"{write(means.fmean(line.published))} ({' to '.join(map(write, ends))})"


def _count(evidence: Sequence[Evidence]) -> str:
    runs = sum(len(each.values) for each in evidence)
    names = ((runs, "run"), (len(evidence), "task"))
    return ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in names) if runs else _MISSING


def _where(evidence: Sequence[Evidence], place: Path | None) -> str:
    """Names of the studies, which for a page in `place` link to their scores, or to the folder if there are none.

    Without a page, more than a few are only counted.
    """
    folders = list(dict.fromkeys(each.study.folder for each in evidence))
    if place is None:
        few = len(folders) <= _FEW_STUDIES
        return (", ".join(folder.name for folder in folders) if few else f"{len(folders)} studies") or _MISSING
    links = []
    for folder in folders:
        scores = folder / "tables" / "scores.md"
        path = Path(os.path.relpath(scores if scores.exists() else folder, place)).as_posix()
        links.append(f"[{folder.name}]({path})")
    return ", ".join(links) or _MISSING
