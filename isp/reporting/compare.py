"""Compare a run with a reference, cell by cell: equal to the bit, within the deviation over seeds, or outside it.

A cell is a row of metrics.csv, identified by `IDENTITY` and its seed. Its verdict is

- equal: all columns of metrics.csv are equal as text. The file holds only reproducible values, so equal text means
  equal bits. The name of the study is not compared, nor is a column that only one of the files has.
- within: not equal, but the test score lies in the 95 % prediction interval of one further seed (Student's t) of the
  reference: |score - mean| <= t(0.975, n - 1) sd sqrt(1 + 1/n), where mean and sd are those of the reference's n seeds
  of the same backbone, task, variant and sparsity. On another type of CPU a seed acts like another seed, and such a
  score lies in this interval in 19 of 20 cells. The interval is wide where seeds are few: 15.6 sd on either side for
  two seeds, 5.0 for three, 3.0 for five.
- outside: the test score lies outside this interval.
- unjudged: not equal, and the reference has one seed, or seeds whose scores are all equal, so no deviation is known.

Cells that only one side has are listed.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from isp import files
from isp.errors import ArtifactError, ConfigError, IspError, remake
from isp.metrics import value_range
from isp.reporting.collected import read
from isp.reporting.statistics import LEVEL, prediction_interval
from isp.reporting.tables import Table, over_seeds, title
from isp.reporting.tabular import CELL, OVER_SEEDS, Row, cell, deviation, distinct, group, numbers
from isp.shapes import Description
from isp.tasks import TaskLimits

Verdict = Literal["equal", "within", "outside", "unjudged"]
VERDICTS: dict[Verdict, str] = {
    "equal": "equal to the bit",
    "within": "within",
    "outside": "outside",
    "unjudged": "no deviation known",
}
"""User-facing names of the verdicts, in the tables."""
IDENTITY = (*CELL, "variant", "method", "sparsity", "metric")
"""Columns that identify a cell, apart from its seed. Scores of another method or metric are not comparable."""
LEGEND = (
    "equal to the bit: all columns of metrics.csv are equal. within: the test score lies in the "
    "95 % prediction interval of one further seed of the reference (Student's t, cut to the metric's range), as 19 of "
    "20 scores of further seeds do. no deviation known: the reference has one seed, or equal scores. test, reference: "
    f"test scores in percent, {OVER_SEEDS}."
)
_SETTINGS = 3
"""Number of differing settings that are named."""
_NOT_COMPARED = {"study"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """The results of one study.

    Attributes:
        name: Its folder, as the user named it.
        metrics: Rows of metrics.csv.
        provenance: Type of CPU, versions of packages and commit, by name; empty if study.json does not exist.
        settings: Device, training protocols, settings of tasks and variants, and definitions, by their path, such as
            "training.clip_tiny.steps".
    """

    name: str
    metrics: Sequence[Row]
    provenance: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that both sides have and that differ only in their seed.

    Attributes:
        identity: Values of `IDENTITY`.
        verdicts: Verdict of each seed.
        scores: Test scores of the run, one per compared seed, in percent.
        reference_scores: Test scores of the reference, one per seed of the reference, in percent.
        interval: 95 % prediction interval of one further seed of the reference; None if no deviation is known.
    """

    identity: Mapping[str, str]
    verdicts: Mapping[str, Verdict]
    scores: Sequence[float]
    reference_scores: Sequence[float]
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run compared with a reference.

    Attributes:
        run: The run.
        reference: The reference.
        groups: Cells that both have.
        only_in_run: Rows of cells that the reference lacks.
        only_in_reference: Rows of cells that the run lacks.
        columns_left_out: Columns that only one of the files has, so that they were not compared.
    """

    run: Side
    reference: Side
    groups: Sequence[Group]
    only_in_run: Sequence[Row]
    only_in_reference: Sequence[Row]
    columns_left_out: Sequence[str]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Number of cells with each verdict."""
        counts = Counter(verdict for each in self.groups for verdict in each.verdicts.values())
        return {verdict: counts[verdict] for verdict in VERDICTS}


def read_side(folder: Path) -> Side:
    """Read the results of one study.

    Raises:
        ConfigError: The folder does not exist, or does not contain the results of a study.
        ArtifactError: metrics.csv or study.json is damaged, or metrics.csv has no rows or duplicate cells.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        what = "has no metrics.csv, so it is not a folder of results, or its run is not finished"
        raise ConfigError(
            f"{folder}: {what if folder.is_dir() else 'no such folder'}; name the folder of a finished study, such as "
            "results/quick or docs/results/quick"
        )
    metrics = read(path, "metrics")
    again = remake("collect")
    if not metrics:
        raise ArtifactError(f"{path}: has no rows; {again}")
    for names, same in _by_cell(metrics).items():
        if len(same) > 1:
            raise ArtifactError(f"{path}: has {len(same)} rows of the cell {', '.join(names)}; {again}")
    path = folder / "study.json"
    description = files.read_json(path, "describe", Description) if path.exists() else {}
    return Side(
        name=str(folder),
        metrics=metrics,
        provenance=_provenance(description.get("provenance") or {}),
        settings=_settings(description),
    )


def _provenance(content: Mapping[str, Any]) -> dict[str, str]:
    if not content:
        return {}
    commit = str(content.get("commit") or "unknown")
    changed = " with uncommitted changes" if content.get("modified") else ""
    packages = {name: str(version) for name, version in (content.get("packages") or {}).items()}
    return {"cpu": packages.pop("cpu", "unknown"), **packages, "commit": commit + changed}


def _settings(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that scores may depend on, by their path.

    Summaries are prose, and steps of tasks follow from other settings, so both are left out.
    """
    study = description.get("study") or {}
    device = {"device": study["device"]} if "device" in study else {}
    content = {
        **device,
        "training": study.get("training") or {},
        "tasks": _tasks(study.get("tasks") or {}, description.get("tasks") or {}),
        "variants": {name: _variant_settings(each) for name, each in (description.get("variants") or {}).items()},
        "define": study.get("define") or {},
    }
    return dict(_flat(content))


def _tasks(limits: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each task: its limits, or those of a task without any, and its size."""
    return {
        name: {
            **TaskLimits().model_dump(),
            **(limits.get(name) or {}),
            **{key: value for key, value in each.items() if key in ("num_train", "metrics")},
        }
        for name, each in described.items()
    }


def _variant_settings(described: Mapping[str, Any]) -> dict[str, Any]:
    more = {key: described[key] for key in ("initial", "steps_of", "by_backbone") if key in described}
    return {**(described.get("settings") or {}), **more}


def _flat(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each value that is not a mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)


def compare(run: Side, reference: Side) -> Comparison:
    """Compare two studies cell by cell, see the module's documentation.

    Raises:
        IspError: The studies have no cell in common.
    """
    run_cells, reference_cells = _by_cell(run.metrics), _by_cell(reference.metrics)
    common = [row for names, (row,) in run_cells.items() if names in reference_cells]
    if not common:
        raise IspError(_nothing_in_common(run, reference))
    shared = [column for column in run.metrics[0] if column in reference.metrics[0]]
    compared = [column for column in shared if column not in _NOT_COMPARED]
    all_seeds = group(reference.metrics, *IDENTITY)
    groups = []
    for identity, rows in group(common, *IDENTITY).items():
        reference_scores = numbers(all_seeds[identity], "test")
        interval = prediction_interval(reference_scores, value_range(cell(rows[0], "metric")))
        verdicts = {}
        for row in rows:
            seed = cell(row, "seed")
            (other,) = reference_cells[*identity, seed]
            verdicts[seed] = _judge(row, other, compared, interval)
        groups.append(
            Group(
                identity=dict(zip(IDENTITY, identity, strict=True)),
                verdicts=verdicts,
                scores=numbers(rows, "test"),
                reference_scores=reference_scores,
                interval=interval,
            )
        )
    return Comparison(
        run=run,
        reference=reference,
        groups=groups,
        only_in_run=[row for names, (row,) in run_cells.items() if names not in reference_cells],
        only_in_reference=[row for names, (row,) in reference_cells.items() if names not in run_cells],
        columns_left_out=[column for column in {**run.metrics[0], **reference.metrics[0]} if column not in shared],
    )


def _judge(row: Row, other: Row, columns: Sequence[str], interval: tuple[float, float] | None) -> Verdict:
    if all(row[column] == other[column] for column in columns):
        return "equal"
    if interval is None:
        return "unjudged"
    low, high = interval
    return "within" if low <= float(cell(row, "test")) <= high else "outside"


def _by_cell(metrics: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    return group(metrics, *IDENTITY, "seed")


def _nothing_in_common(run: Side, reference: Side) -> str:
    """Name the first axis on which the studies do not overlap, with the values of both."""
    problem = f"{run.name} and {reference.name} have no cell in common"
    for axis in ("backbone", "task", "variant", "sparsity", "seed", "method", "metric"):
        ours, theirs = distinct(run.metrics, axis), distinct(reference.metrics, axis)
        if not {*ours} & {*theirs}:
            values = f"the first has {', '.join(ours)}; the second has {', '.join(theirs)}"
            return f"{problem} because no {axis} is the same ({values}); compare runs of the same study"
    axes = ", ".join((*IDENTITY, "seed"))
    return f"{problem}: no two rows have the same {axes}; compare runs of the same study"


def summarise(comparison: Comparison) -> str:
    """Say in one line how a run compares with its reference."""
    counts = comparison.counts
    total = sum(counts.values())
    lacking = [
        f"{len(rows)} only in {name}"
        for rows, name in ((comparison.only_in_run, "the run"), (comparison.only_in_reference, "the reference"))
        if rows
    ]
    if counts["equal"] == total and not lacking:
        return f"your run against the reference: {total} of {total} cells equal to the bit"
    parts = [
        f"{counts['equal']} equal to the bit",
        f"{counts['within']} within the deviation over seeds",
        f"{counts['outside']} outside",
    ]
    parts += [f"{counts['unjudged']} with no deviation known"] if counts["unjudged"] else []
    names = shlex.join([comparison.run.name, comparison.reference.name])
    return f"your run against the reference: {', '.join([*parts, *lacking])}: isp compare {names} shows them"


def explain(comparison: Comparison) -> str:
    """Say in one line how CPU, versions, commit and settings of both sides differ, as reasons for differing bits."""
    run, reference = comparison.run, comparison.reference
    unknown = [side.name for side in (run, reference) if not side.provenance]
    if unknown:
        return f"It is not known why bits differ: {' and '.join(unknown)} has no provenance in a study.json."
    differing = _differences(run.provenance, reference.provenance, {**run.provenance, **reference.provenance})
    settings = _differences(run.settings, reference.settings, _comparable(run, reference), "not set")
    more = [f"{len(settings) - _SETTINGS} more settings"] if len(settings) > _SETTINGS else []
    differing += [*settings[:_SETTINGS], *more]
    if not differing:
        return "CPU, versions, commit and settings are the same in both study.json."
    return f"Bits may differ because of: {'; '.join(differing)}."


def _comparable(run: Side, reference: Side) -> list[str]:
    """Return the settings to compare: those of both sides, and those of one side about what both sides ran."""
    shared = {
        axis: {*distinct(run.metrics, axis)} & {*distinct(reference.metrics, axis)}
        for axis in ("variant", "task", "backbone")
    }
    owners = tuple(
        f"{kind}.{name}."
        for kind, axis in (
            ("variants", "variant"),
            ("tasks", "task"),
            ("define.tasks", "task"),
            ("define.backbones", "backbone"),
        )
        for name in shared[axis]
    )
    return [
        key
        for key in {**run.settings, **reference.settings}
        if (key in run.settings and key in reference.settings) or key.startswith(owners)
    ]


def _differences(
    run: Mapping[str, str], reference: Mapping[str, str], keys: Iterable[str], lacking: str = "unknown"
) -> list[str]:
    """Name the keys whose values differ, with both values; `lacking` is the text of a value that does not exist."""
    return [
        f"{key} {run.get(key, lacking)} (reference: {reference.get(key, lacking)})"
        for key in keys
        if run.get(key) != reference.get(key)
    ]


def tables(comparison: Comparison) -> list[Table]:
    """Return one table per backbone and task, with one row per variant and sparsity."""
    header = ["sparsity", "cells", "verdict", "test", "reference", "95 % range of a seed"]
    by_place: dict[tuple[str, ...], Table] = {}
    for each in comparison.groups:
        names = tuple(each.identity[column] for column in CELL)
        differs = set(each.verdicts.values()) != {"equal"}
        line = [
            _variant(each.identity),
            f"{float(each.identity['sparsity']):g}",
            str(len(each.verdicts)),
            _verdicts_text(each.verdicts),
            over_seeds(each.scores),
            over_seeds(each.reference_scores),
            f"{each.interval[0]:.2f} to {each.interval[1]:.2f}" if each.interval and differs else "",
        ]
        by_place.setdefault(names, ([title(names), *header], []))[1].append(line)
    return list(by_place.values())


def _verdicts_text(verdicts: Mapping[str, Verdict]) -> str:
    """Return the verdict of all seeds, or each verdict with its seeds."""
    by_verdict = {verdict: [seed for seed, own in verdicts.items() if own == verdict] for verdict in VERDICTS}
    texts = [(VERDICTS[verdict], seeds) for verdict, seeds in by_verdict.items() if seeds]
    if len(texts) == 1:
        return texts[0][0]
    return ", ".join(f"{text} (seed {' '.join(seeds)})" for text, seeds in texts)


def _variant(identity: Mapping[str, str]) -> str:
    variant, method = identity["variant"], identity["method"]
    return variant if variant == method else f"{variant} ({method})"


def notes(comparison: Comparison) -> list[str]:
    """Lines to print under the tables: cells and columns of one side only, legend, why bits may differ, summary."""
    lines = []
    for rows, side in (
        (comparison.only_in_run, comparison.run),
        (comparison.only_in_reference, comparison.reference),
    ):
        if rows:
            lines += [f"Only in {side.name} ({len(rows)} {'cell' if len(rows) == 1 else 'cells'}):", *_list_cells(rows)]
    if comparison.columns_left_out:
        lines.append(f"Not compared because only one side has them: {', '.join(comparison.columns_left_out)}.")
    if comparison.counts["equal"] < sum(comparison.counts.values()):
        lines += [LEGEND, explain(comparison)]
    return [*lines, summarise(comparison)]


def _list_cells(rows: Iterable[Row]) -> list[str]:
    """Return one line per backbone, task and variant, or more if its sparsities have different seeds."""
    sparsities: dict[tuple[str, ...], list[str]] = {}
    for names, same in group(rows, *CELL, "variant", "method", "sparsity").items():
        seeds = ", ".join(distinct(same, "seed"))
        sparsities.setdefault((title(names[:2]), _variant(same[0]), seeds), []).append(f"{float(names[4]):g}")
    return [
        f"  {place}: {variant} at {', '.join(values)} ({'seeds' if ',' in seeds else 'seed'} {seeds})"
        for (place, variant, seeds), values in sparsities.items()
    ]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        "run": comparison.run.name,
        "reference": comparison.reference.name,
        "counts": dict(comparison.counts),
        "groups": [
            {
                **each.identity,
                "verdicts": dict(each.verdicts),
                "test_mean": fmean(each.scores),
                "reference_mean": fmean(each.reference_scores),
                "reference_sd": deviation(each.reference_scores),
                "interval": each.interval,
            }
            for each in comparison.groups
        ],
        **{
            name: [{column: cell(row, column) for column in (*IDENTITY, "seed")} for row in rows]
            for name, rows in (
                ("only_in_run", comparison.only_in_run),
                ("only_in_reference", comparison.only_in_reference),
            )
        },
        "columns_left_out": list(comparison.columns_left_out),
        "level": LEVEL,
        "provenance": {"run": dict(comparison.run.provenance), "reference": dict(comparison.reference.provenance)},
        "summary": summarise(comparison),
    }
