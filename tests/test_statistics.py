"""Intervals, paired differences and ranks, every number compared with scipy or computed by hand."""

from __future__ import annotations

import itertools
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from isp.metrics import value_range
from isp.reporting import statistics as s
from isp.reporting import tables
from tests.support.records import Rows, only, record

SCORES = {
    "dense": {"0.0000": [97.0, 98.0, 96.5]},
    "isp": {"0.8000": [95.0, 96.0, 94.0], "0.9000": [93.0, 95.0, 92.0]},
    "lth": {"0.8000": [96.0, 96.5, 96.0], "0.9000": [92.5, 96.0, 94.0]},
    "late": {"0.9000": [90.0, 91.0]},
}


@pytest.fixture
def metrics(tmp_path: Path) -> list[dict[str, str]]:
    return rows_of({"t": SCORES}, tmp_path)


def rows_of(tasks: dict[str, dict[str, dict[str, list[float]]]], folder: Path) -> list[dict[str, str]]:
    """Rows of validation scores by task, variant, sparsity and seed; those of the test are two points lower."""
    records = [
        record(variant, sparsity, seed, score, task=task)
        for task, variants in tasks.items()
        for variant, by_sparsity in variants.items()
        for sparsity, scores in by_sparsity.items()
        for seed, score in enumerate(scores)
    ]
    return Rows(records, folder).metrics


@pytest.mark.parametrize("count", [3, 5, 30])
def test_intervals_and_p_values_are_scipys(count: int) -> None:
    generator = random.Random(count)
    values = [generator.gauss(1, 2) for _ in range(count)]
    expected = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert s.interval(values) == pytest.approx(expected)
    others = [generator.gauss(0, 2) for _ in range(count)]
    differences = [value - other for value, other in zip(values, others, strict=True)]
    assert s.p_value(differences) == pytest.approx(stats.ttest_rel(values, others).pvalue)


@pytest.mark.parametrize("count", [3, 4, 10, 50])
def test_the_detectable_difference_has_80_percent_power(count: int) -> None:
    """By the noncentral t distribution of scipy; the chance that T is significant with the wrong sign is below 1e-4."""
    generator = random.Random(count)
    differences = [generator.gauss(1, 2) for _ in range(count)]
    found = s.detectable_difference(differences)
    assert found is not None
    noncentrality = found / stats.sem(differences)
    assert stats.nct.sf(stats.t.ppf(0.975, count - 1), count - 1, noncentrality) == pytest.approx(0.8, abs=1e-6)


def test_the_detectable_difference_by_hand() -> None:
    """The legend's 5.65 for three differences; 1, 2 and 3 have the standard error 1 / sqrt(3)."""
    assert s.detectable_difference([1.0, 2.0, 3.0]) == pytest.approx(5.65349 / 3**0.5, abs=1e-4)
    assert s.detectable_difference([-1.0, 0.0, 1.0, 0.0, 0.0]) == pytest.approx(3.76106 * (0.5 / 5) ** 0.5, abs=1e-4)


def test_intervals_stay_within_the_range_of_a_metric() -> None:
    low, high = s.interval([95.0, 99.0, 100.0], (0.0, 100.0)) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(98 - 4.30265 * 7**0.5 / 3**0.5, abs=1e-4), 100.0)
    assert s.interval([-95.0, 90.0, 80.0], value_range("matthews")) == (-100.0, 100.0)
    assert s.interval([2.0, 0.0, 10.0], value_range("accuracy")) == (0.0, pytest.approx(17.145, abs=1e-3))
    assert s.prediction_interval([99.0, 100.0], (0.0, 100.0)) == (pytest.approx(99.5 - 11.0039, abs=1e-3), 100.0)


@pytest.mark.parametrize(("metric", "low"), [("accuracy", 95.0), ("matthews", -95.0)])
def test_no_interval_of_a_table_leaves_the_range(metric: str, low: float, tmp_path: Path) -> None:
    """Scores near the ends of the range, differences near its width."""
    scores = {"isp": {"0.8000": [low, low + 4, low + 2]}, "lth": {"0.8000": [99.5, 97.0, 100.0]}}
    records = [
        record(variant, "0.8000", seed)
        | {"metrics": [metric]}
        | {part: {metric: score, "majority": 10.0} for part in ("validation", "test")}
        for variant, by_sparsity in scores.items()
        for seed, score in enumerate(by_sparsity["0.8000"])
    ]
    least, most = value_range(metric)
    rows = Rows(records, tmp_path).metrics
    for row in (*s.cells_csv(rows, "isp"), *s.runs_csv(rows, "isp")):
        assert row["low"] == "" or least <= row["low"] <= row["high"] <= most
        assert row["difference_low"] == "" or least - most <= row["difference_low"] <= row["difference_high"]
        assert row["difference_high"] == "" or row["difference_high"] <= most - least


@pytest.mark.parametrize(
    "values", [[], [3.0], [1.0, 2.0], [2.0] * 3, [0.1 + 0.2, 0.3, 0.3], [-1.3334, -1.3333, -1.3333]]
)
def test_few_or_equal_values_have_no_interval(values: list[float]) -> None:
    """Two values have one of 18 times their distance, which says nothing that the two do not say better."""
    assert s.interval(values) is None
    assert s.p_value(values) is None
    assert s.detectable_difference(values) is None


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0], [1.0, 1.0, 2.0, 0.0], [5.0] * 4, [7.0]])
def test_ranks_are_scipys(scores: list[float]) -> None:
    assert s.ranks(scores) == stats.rankdata([-score for score in scores], method="average").tolist()


def test_cells_by_scipy(metrics: list[dict[str, str]]) -> None:
    found = s.cells_csv(metrics, "isp")
    assert all(tuple(row) == s.COLUMNS for row in found)
    row = only(found, part="validation", variant="lth", sparsity="0.9000")
    own, theirs = SCORES["lth"]["0.9000"], SCORES["isp"]["0.9000"]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(own), scale=stats.sem(own))
    assert (row["n"], row["mean"], row["sd"]) == (3, round(statistics.fmean(own), 4), round(statistics.stdev(own), 4))
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    paired = stats.ttest_rel(own, theirs)
    interval = paired.confidence_interval(0.95)
    assert (row["reference"], row["pairs"], row["difference"]) == ("isp", 3, pytest.approx(2.5 / 3, abs=1e-4))
    assert row["difference_low"] == pytest.approx(interval.low, abs=1e-4)
    assert row["difference_high"] == pytest.approx(interval.high, abs=1e-4)
    assert row["p"] == pytest.approx(paired.pvalue, rel=1e-2)
    differences = [a - b for a, b in zip(own, theirs, strict=True)]
    assert row["difference_values"] == "-0.5 1.0 2.0" == " ".join(map(str, differences))
    assert row["detectable"] == pytest.approx(5.65349 * stats.sem(differences), abs=1e-3)
    assert row["to_dense"] == pytest.approx(np.mean(own) - np.mean(SCORES["dense"]["0.0000"]), abs=1e-4)
    assert only(found, part="test", variant="lth", sparsity="0.9000")["mean"] == pytest.approx(row["mean"] - 2)


def test_pairs_are_seeds_that_both_have(metrics: list[dict[str, str]]) -> None:
    row = only(s.cells_csv(metrics, "isp"), part="test", variant="late")
    assert (row["n"], row["pairs"], row["difference"]) == (2, 2, -3.5)  # -3 and -4
    assert row["to_dense"] == -7.0  # over the same two seeds
    shuffled = random.Random(0).sample(metrics, len(metrics))
    assert only(s.cells_csv(shuffled, "isp"), part="test", variant="late") == row


def test_dense_and_the_reference_are_compared_with_nothing(metrics: list[dict[str, str]]) -> None:
    found = s.cells_csv(metrics, "isp")
    for variant in ("dense", "isp"):
        assert {row["pairs"] for row in found if row["variant"] == variant} == {""}
    assert only(found, part="test", variant="dense")["to_dense"] == ""
    assert {row["variant"] for row in s.runs_csv(metrics, "isp")} == {"isp", "lth", "late"}


def test_each_backbone_and_task_has_its_own_dense_model(tmp_path: Path) -> None:
    cells: dict[str, Any] = {
        "t": {"dense": {"0.0000": [97.0]}, "isp": {"0.8000": [90.0]}},
        "u": {"dense_late": {"0.0000": [80.0]}, "isp": {"0.8000": [75.0]}},
    }
    found = s.cells_csv(rows_of(cells, tmp_path), "isp")
    differences = {row["task"]: row["to_dense"] for row in found if (row["part"], row["variant"]) == ("test", "isp")}
    assert differences == {"t": -7.0, "u": -5.0}


def test_one_seed_says_so(tmp_path: Path) -> None:
    metrics = rows_of({"t": {"isp": {"0.8000": [90.0]}, "lth": {"0.8000": [92.0]}}}, tmp_path)
    row = only(s.cells_csv(metrics, "isp"), part="test", variant="lth")
    assert (row["n"], row["difference"]) == (1, 2.0)
    assert {row[name] for name in ("sd", "low", "high", "difference_sd", "difference_low", "difference_high", "p")} == {
        ""
    }
    ((_, body),) = s.cells(metrics, "isp")
    assert body[1] == ["lth", "0.8", "1", "90.00", "one seed", "", "1", "+2.00", "one seed", "", ""]


def test_two_seeds_show_both_values(tmp_path: Path) -> None:
    metrics = rows_of({"t": {"isp": {"0.8000": [90.0, 91.0]}, "lth": {"0.8000": [92.0, 94.5]}}}, tmp_path)
    row = only(s.cells_csv(metrics, "isp"), part="test", variant="lth")
    assert (row["mean"], row["values"], row["difference"], row["difference_values"]) == (
        91.25,
        "90.0 92.5",
        2.75,
        "2.0 3.5",
    )
    empty = ("sd", "low", "high", "difference_sd", "difference_low", "difference_high", "p", "detectable")
    assert {row[name] for name in empty} == {""}
    ((_, body),) = s.cells(metrics, "isp")
    assert body[1][3:] == ["90.00 / 92.50", "two seeds", "", "2", "+2.00 / +3.50", "two seeds", "", ""]
    _, (_, over_all) = s.runs(metrics, "isp")
    assert over_all[1][1:-2] == ["2", "1", "+2.00 / +3.50", "two seeds", "", ""]


def test_equal_differences_say_so(tmp_path: Path) -> None:
    metrics = rows_of({"t": {"isp": {"0.8": [90.0, 91.0, 92.0]}, "lth": {"0.8": [92.0, 93.0, 94.0]}}}, tmp_path)
    row = only(s.cells_csv(metrics, "isp"), part="test", variant="lth")
    assert (row["difference"], row["difference_sd"], row["difference_low"], row["p"]) == (2.0, 0.0, "", "")
    ((_, body),) = s.cells(metrics, "isp")
    assert body[1][-3:] == ["all equal", "", ""]


def test_runs_by_hand(tmp_path: Path) -> None:
    """A run's value is a mean over the sparsities that both have; the sample is the means of the tasks."""
    other = {"isp": {"0.5000": [80.0, 82.0]}, "lth": {"0.5000": [81.0, 85.0], "0.7000": [1.0, 1.0]}}
    third = {"isp": {"0.5000": [70.0]}, "lth": {"0.5000": [70.5]}}
    metrics = rows_of({"t": SCORES, "u": other, "v": third}, tmp_path)
    # first task: (1 - 0.5) / 2, (0.5 + 1) / 2, (2 + 2) / 2; second task, at 50 % only: 1, 3; third task: 0.5
    differences = [statistics.fmean([0.25, 0.75, 2.0]), 2.0, 0.5]
    row = only(s.runs_csv(metrics, "isp"), part="validation", variant="lth")
    assert (row["of"], row["pairs"], row["tasks"]) == ("runs", 6, 3)
    assert (row["difference"], row["difference_values"]) == (round(statistics.fmean(differences), 4), "1.0 2.0 0.5")
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(0.95)
    assert row["difference_low"] == pytest.approx(interval.low, abs=1e-4)
    assert row["difference_high"] == pytest.approx(interval.high, abs=1e-4)
    assert row["p"] == pytest.approx(expected.pvalue, rel=1e-2)
    late = only(s.runs_csv(metrics, "isp"), part="validation", variant="late")
    assert (late["pairs"], late["tasks"], late["difference"]) == (2, 1, -3.5)  # at 90 % only


def test_runs_of_one_task_are_no_sample_of_tasks(tmp_path: Path) -> None:
    """Twelve seeds of two tasks give no interval; one task alone has that of its seeds."""
    scores = {"isp": {"0.5": [80.0] * 12}, "lth": {"0.5": [81.0 + seed % 3 for seed in range(12)]}}
    two = only(s.runs_csv(rows_of({"t": scores, "u": scores}, tmp_path), "isp"), part="test", variant="lth")
    assert (two["pairs"], two["tasks"], two["difference_values"], two["difference_low"]) == (24, 2, "2.0 2.0", "")
    one = only(s.runs_csv(rows_of({"t": scores}, tmp_path), "isp"), part="test", variant="lth")
    assert (one["pairs"], one["tasks"]) == (12, 1)
    expected = stats.ttest_1samp([1.0, 2.0, 3.0] * 4, 0).confidence_interval(0.95)
    assert one["difference_low"] == pytest.approx(expected.low, abs=1e-4)
    _, (_, body) = s.runs(rows_of({"t": scores, "u": scores}, tmp_path), "isp")
    assert body[1][1:5] == ["24", "2", "+2.00 / +2.00", "two tasks"]


def test_ranks_by_hand(tmp_path: Path) -> None:
    cells: dict[str, Any] = {
        "t": {"isp": {"0.8": [90.0], "0.9": [80.0]}, "a": {"0.8": [91.0], "0.9": [80.0]}, "b": {"0.8": [70.0]}},
        "u": {"isp": {"0.5": [60.0]}, "a": {"0.5": [50.0]}, "b": {"0.5": [60.0]}},
    }
    found = s.runs_csv(rows_of(cells, tmp_path), "isp")
    ranks = {row["variant"]: row["mean_rank"] for row in found if row["part"] == "test"}
    # only 0.8 of t (2, 1, 3) and 0.5 of u (1.5, 3, 1.5) have all three
    assert ranks == {"isp": 1.75, "a": 2.0, "b": 2.25}
    assert {row["ranked_cells"] for row in found} == {2}


def test_an_ablation_takes_no_rank_from_the_others(tmp_path: Path) -> None:
    """Four variants share six cells; a fifth has one of them, and the reference has two that no other has."""
    places = [(task, sparsity) for task in "tuv" for sparsity in ("0.8", "0.9")]
    cells: dict[str, Any] = {task: {} for task in "tuv"}
    for index, name in enumerate(("lth", "isp", "one_shot", "random")):
        for task, sparsity in places:
            cells[task].setdefault(name, {})[sparsity] = [90.0 - index]
    cells["v"]["lth"]["0.9"] = [10.0]  # last there
    cells["t"]["n16"] = {"0.8": [99.0]}
    cells["t"]["isp"] |= {"0.1": [95.0], "0.2": [95.0]}
    metrics = rows_of(cells, tmp_path)
    found = {row["variant"]: row for row in s.runs_csv(metrics, "isp") if row["part"] == "test"}
    assert {name: (row["mean_rank"], row["ranked_cells"]) for name, row in found.items()} == {
        "lth": (1.5, 6),  # (5 x 1 + 4) / 6
        "isp": (round((5 * 2 + 1) / 6, 4), 6),
        "one_shot": (round((5 * 3 + 2) / 6, 4), 6),
        "random": (round((5 * 4 + 3) / 6, 4), 6),
        "n16": ("", ""),
    }
    assert [line[-2:] for line in s.runs(metrics, "isp")[1][1]][-2:] == [["3.83", "6"], ["", ""]]


@pytest.mark.parametrize(
    ("cells", "block"),
    [
        ({"r": "abcd", "x": "ab", "y": "cd"}, (["r", "x"], "ab")),  # two comparisons each: the first
        ({"r": "abcd", "x": "abc", "y": "a"}, (["r", "x"], "abc")),  # three instead of two
        ({"r": "abcd", "x": "ab", "y": "a"}, (["r", "x"], "ab")),  # two each: more cells
        ({"r": "abcdefgh", "x": "axy", "y": "a", "z": "a"}, (["r", "x", "y", "z"], "a")),  # three; r alone has none
        ({"r": "abcde", "x": "abc", "y": "abd", "z": "abe"}, (["r", "x", "y", "z"], "ab")),  # no variant's own: six
        ({"r": "abcd", "x": "abc", "y": "abd", "z": "acd", "w": "bcd"}, (["r", "x", "y"], "ab")),  # four, not three
        ({}, ([], "")),
    ],
)
def test_the_largest_block(cells: dict[str, str], block: tuple[list[str], str]) -> None:
    assert s.largest_block(cells, "r") == (block[0], set(block[1]))


def test_no_subset_of_variants_has_a_larger_block() -> None:
    draw = random.Random(0)
    for _ in range(50):
        cells = {"r": {*range(12)}} | {name: {*draw.sample(range(12), draw.randint(1, 9))} for name in "abcdef"}
        subsets = [own for size in range(1, 7) for own in itertools.combinations("abcdef", size)]
        most = max(len(own) * len(set[int].intersection(*(cells[name] for name in own))) for own in subsets)
        variants, shared = s.largest_block(cells, "r")
        assert (len(variants) - 1) * len(shared) == most
        assert all(shared <= cells[name] for name in variants)


def test_many_variants_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2^n intersections only some are tried, but always the variants' own cells."""
    monkeypatch.setattr(s, "_CANDIDATES", 8)
    cells = {str(index): {*range(16)} - {index} for index in range(16)} | {"r": {*range(16)}, "z": {*range(16)}}
    variants, shared = s.largest_block(cells, "r")
    assert len(shared) * (len(variants) - 1) >= 30  # z and one other share 15 cells
    assert s.largest_block(cells, "r") == (variants, shared)


def test_dense_variants_are_compared_where_nothing_is_pruned(tmp_path: Path) -> None:
    metrics = rows_of({"t": {"dense": {"0.0000": [97.0]}, "soup": {"0.0000": [98.0]}}}, tmp_path)
    assert only(s.runs_csv(metrics, "dense"), part="test", variant="soup")["difference"] == 1.0


def test_the_legend_says_what_rows_are_over() -> None:
    legend = s.RUNS_LEGEND.format(reference="isp")
    for words in ("over different runs cannot be compared", "one of accuracy counts", "Runs of one task are not indep"):
        assert words in legend


def test_tables_for_people(metrics: list[dict[str, str]]) -> None:
    validation, test = s.runs(metrics, "isp")
    assert validation[0][0] == "all runs, validation"
    names = ["runs", "tasks", "difference to isp", "95 % interval", "p", "detectable", "rank", "cells"]
    assert test[0] == ["all runs, test", *names]
    assert [line[0] for line in test[1]] == ["isp", "lth", "late"]
    assert test[1][0] == ["isp", "", "", "", "", "", "", "2.00", "2"]
    assert [line[-2:] for line in test[1][1:]] == [["1.00", "2"], ["", ""]]  # late is at 90 % only
    low, high = stats.ttest_1samp([0.25, 0.75, 2.0], 0).confidence_interval(0.95)
    assert test[1][1][3:5] == ["+1.00", f"{tables.signed(low)} to {tables.signed(high)}"]
    ((header, body),) = s.cells(metrics, "isp")
    assert header[0] == "b on t"
    lth = next(line for line in body if line[:2] == ["lth", "0.9"])
    assert dict(zip(header, lth, strict=True))["test"] == "92.17 ± 1.76"
    assert tables.markdown(s.cells(metrics, "isp"))
    assert s.runs([], "isp") == s.cells([], "isp") == []


@pytest.mark.parametrize(("value", "text"), [(1, "+1.00"), (-0.25, "−0.25"), (0, "+0.00"), (-0.001, "+0.00")])
def test_signs(value: float, text: str) -> None:
    assert tables.signed(value) == text
