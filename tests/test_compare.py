"""`isp compare`: verdicts by hand on small files, and bad input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from isp import cli
from isp.errors import ArtifactError, IspError
from isp.files import write_csv, write_json
from isp.reporting.collect import METRICS
from isp.reporting.compare import Comparison, Side, as_json, compare, explain, notes, read_side, summarise, tables
from isp.reporting.statistics import prediction_interval


def row(variant: str = "isp", seed: int = 0, test: float = 90.0, **values: Any) -> dict[str, str]:
    """A row of metrics.csv; 1 where nothing else is given."""
    names = {"study": "s", "backbone": "b", "task": "t", "method": variant, "sparsity": "0.9000", "metric": "accuracy"}
    texts = {"second_metric": "", "chosen_on": ""}
    return {key: str(value) for key, value in (dict.fromkeys(METRICS, 1) | names | texts | values).items()} | {
        **{"variant": variant, "seed": str(seed), "test": str(test)},
        **{key: str(value) for key, value in values.items()},
    }


def seeds(*tests: float, variant: str = "isp", **values: Any) -> list[dict[str, str]]:
    return [row(variant, seed, test, **values) for seed, test in enumerate(tests)]


def compared(run: Iterable[dict[str, str]], reference: Iterable[dict[str, str]]) -> Comparison:
    return compare(Side(name="run", metrics=[*run]), Side(name="reference", metrics=[*reference]))


def put(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    write_csv(folder / "metrics.csv", [*rows], METRICS)
    return folder


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_equal_rows_are_equal_whatever_the_study_is_called() -> None:
    comparison = compared(seeds(90, 91), seeds(90, 91, study="other"))
    assert comparison.counts == {"equal": 2, "within": 0, "outside": 0, "unjudged": 0}
    assert summarise(comparison) == "your run against the reference: 2 of 2 cells equal to the bit"
    assert notes(comparison) == [summarise(comparison)]
    assert tables(comparison)[0][1] == [
        ["isp", "0.9", "2", "equal to the bit", "90.00 / 91.00", "90.00 / 91.00", ""],
    ]


@pytest.mark.parametrize("column", [c for c in METRICS if c not in {"study", "seed", "backbone", "task", "variant"}])
def test_any_other_column_counts(column: str) -> None:
    other = row(**{column: "0.8000" if column == "sparsity" else "2"})
    comparison = compared([row(), row("lth")], [other, row("lth")])
    if column in ("method", "sparsity", "metric"):  # another cell, so not to be compared
        assert (len(comparison.only_in_run), len(comparison.only_in_reference)) == (1, 1)
        assert comparison.counts["equal"] == 1
    else:
        assert comparison.counts == {"equal": 1, "within": 0, "outside": 0, "unjudged": 1}


def test_texts_are_compared_not_numbers() -> None:
    assert compared([row(validation="95.0")], [row(validation="95.00")]).counts["equal"] == 0


def test_the_prediction_interval_by_hand() -> None:
    """90 and 91: t(0.975, 1) = 12.7062, sd 0.7071, sqrt(1 + 1/2) = 1.2247. Three: 4.3027, 1 and 1.1547."""
    low, high = prediction_interval([90, 91]) or (0, 0)
    assert (low, high) == pytest.approx((90.5 - 11.0039, 90.5 + 11.0039), abs=1e-3)
    low, high = prediction_interval([89, 90, 91]) or (0, 0)
    assert (low, high) == pytest.approx((90 - 4.9683, 90 + 4.9683), abs=1e-3)
    assert prediction_interval([90]) is None
    assert prediction_interval([90, 90]) is None


def test_the_range_of_a_seed_stays_within_that_of_the_metric() -> None:
    (found,) = compared([row(test=97)], seeds(98, 99)).groups
    assert found.interval == (pytest.approx(98.5 - 11.0039, abs=1e-3), 100.0)
    assert found.verdicts == {"0": "within"}


@pytest.mark.parametrize(
    ("score", "verdict"), [(85.03, "outside"), (85.04, "within"), (90, "within"), (94.96, "within"), (94.97, "outside")]
)
def test_within_the_deviation_over_seeds(score: float, verdict: str) -> None:
    """The reference's 89, 90, 91 allow 90 ± 4.9683; all of its seeds count, not only those that the run has."""
    (found,) = compared([row(test=score, validation=2)], seeds(89, 90, 91)).groups
    assert found.verdicts == {"0": verdict}


@pytest.mark.parametrize("reference", [seeds(90), seeds(90, 90), seeds(90, 90.0001)])
def test_without_a_spread_nothing_is_judged(reference: list[dict[str, str]]) -> None:
    comparison = compared([row(test=12)], reference)
    assert comparison.counts == {"equal": 0, "within": 0, "outside": 0, "unjudged": 1}


def test_verdicts_of_one_row_by_seed() -> None:
    run = seeds(90, 91, 50) + seeds(90, 91, variant="lth")
    reference = seeds(90, 91, 92) + seeds(90, 93, 95, 97, variant="lth")
    comparison = compared(run, reference)
    (header, body), *rest = tables(comparison)
    assert header[0] == "b on t"
    assert not rest
    assert [line[:4] for line in body] == [
        ["isp", "0.9", "3", "equal to the bit (seed 0 1), outside (seed 2)"],
        ["lth", "0.9", "2", "equal to the bit (seed 0), within (seed 1)"],
    ]
    assert body[0][6] == "86.03 to 95.97"  # 91 ± 4.9683
    assert summarise(comparison) == (
        "your run against the reference: 3 equal to the bit, 1 within the deviation over seeds, 1 outside, "
        "2 only in the reference: isp compare run reference shows them"
    )
    content = as_json(comparison)
    assert content["counts"] == {"equal": 3, "within": 1, "outside": 1, "unjudged": 0}
    assert content["groups"][0]["verdicts"] == {"0": "equal", "1": "equal", "2": "outside"}
    assert content["groups"][0]["interval"] == pytest.approx((86.0317, 95.9683), abs=1e-3)
    assert [each["seed"] for each in content["only_in_reference"]] == ["2", "3"]


def test_cells_of_one_side_are_listed() -> None:
    run = [row(), row("lth", 2), row("lth", 3), row("lth", 2, sparsity="0.5000"), row("lth", 3, sparsity="0.5000")]
    lines = notes(compared([*run, row("x", method="lth")], [row(), row("lth", 4)]))
    assert lines[:5] == [
        "Only in run (5 cells):",
        "  b on t: lth at 0.9, 0.5 (seeds 2, 3)",
        "  b on t: x (lth) at 0.9 (seed 0)",
        "Only in reference (1 cell):",
        "  b on t: lth at 0.9 (seed 4)",
    ]


def test_columns_of_earlier_versions_are_left_out_and_named() -> None:
    reference = [{key: value for key, value in row().items() if key != "collapsed_layers"}]
    comparison = compared([row(collapsed_layers=7)], reference)
    assert comparison.counts["equal"] == 1
    assert notes(comparison)[0] == "Not compared because only one side has them: collapsed_layers."


# --- why bits differ --------------------------------------------------------------------------------------------------


def test_what_differs_is_named() -> None:
    ours = {"cpu": "x86_64, AVX2", "torch": "2.15.0", "commit": "abc"}
    theirs = ours | {"cpu": "x86_64, AVX512", "commit": "abc with uncommitted changes"}
    settings = {f"training.b.s{index}": "1" for index in range(5)}
    sides = [
        Side(name="run", metrics=[row(test=1)], provenance=ours, settings=settings | {"training.b.new": "3"}),
        Side(name="reference", metrics=[row()], provenance=theirs, settings=dict.fromkeys(settings, "2")),
    ]
    assert explain(compare(*sides)) == (
        "Bits may differ because of: cpu x86_64, AVX2 (reference: x86_64, AVX512); "
        "commit abc (reference: abc with uncommitted changes); training.b.s0 1 (reference: 2); "
        "training.b.s1 1 (reference: 2); training.b.s2 1 (reference: 2); 2 more settings."
    )
    assert explain(compare(sides[0], sides[0])).startswith("CPU, versions, commit and settings are the same")
    unknown = compare(sides[0], Side(name="reference", metrics=[row()]))
    assert explain(unknown) == "It is not known why bits differ: reference has no provenance in a study.json."


def test_study_json_is_read(tmp_path: Path) -> None:
    description = {
        "study": {"training": {"b": {"steps": 200}}},
        "variants": {"isp": {"settings": {"rate": 0.2}}},
        "provenance": {"commit": "abc", "modified": True, "packages": {"torch": "2", "cpu": "x"}},
    }
    write_json(put(tmp_path, [row()]) / "study.json", description)
    side = read_side(tmp_path)
    assert side.provenance == {"cpu": "x", "torch": "2", "commit": "abc with uncommitted changes"}
    assert side.settings == {"training.b.steps": "200", "variants.isp.rate": "0.2"}
    assert side.metrics == [row()]


def test_every_setting_that_scores_depend_on_is_compared(tmp_path: Path) -> None:
    """A task without limits has those of `TaskLimits`; what only one side has counts if both sides ran its owner."""
    ours: dict[str, Any] = {
        "study": {"device": "cpu", "training": {"b": {"steps": 200}}, "define": {"tasks": {"t": {"files": ["x"]}}}},
        "tasks": {"t": {"summary": "ours", "num_train": 900, "steps": {"b": 200}}},
        "variants": {
            "isp": {"settings": {"rate": 0.2}, "initial": "pretrained", "steps_of": None, "by_backbone": {}},
            "alone": {"settings": {"rate": 0.2}},
        },
        "provenance": {"commit": "abc"},
    }
    theirs = json.loads(json.dumps(ours))
    theirs["tasks"]["t"]["summary"] = "theirs"
    theirs["study"]["tasks"] = {"t": {"num_train": None, "num_validation": None, "augmentation": "crop"}}
    del theirs["variants"]["alone"]

    def reasons(**study: Any) -> str:
        write_json(put(tmp_path / "run", [row(test=1)]) / "study.json", ours)
        write_json(put(tmp_path / "reference", [row()]) / "study.json", theirs | study)
        return explain(compare(read_side(tmp_path / "run"), read_side(tmp_path / "reference")))

    assert reasons() == "CPU, versions, commit and settings are the same in both study.json."
    isp = theirs["variants"]["isp"]
    study = theirs["study"]
    task = theirs["tasks"]["t"]
    for changed, reason in (
        ({"study": study | {"device": "cuda"}}, "device cpu (reference: cuda)"),
        ({"study": study | {"tasks": {"t": {"augmentation": "none"}}}}, "tasks.t.augmentation crop (reference: none)"),
        ({"tasks": {"t": task | {"num_train": 300}}}, "tasks.t.num_train 900 (reference: 300)"),
        ({"study": study | {"define": {}}}, "define.tasks.t.files ['x'] (reference: not set)"),
        ({"variants": {"isp": isp | {"initial": "random"}}}, "variants.isp.initial pretrained (reference: random)"),
        ({"variants": {"isp": isp | {"steps_of": "lth"}}}, "variants.isp.steps_of None (reference: lth)"),
        (
            {"variants": {"isp": isp | {"by_backbone": {"b": {"denoisers": 16}}}}},
            "variants.isp.by_backbone.b.denoisers not set (reference: 16)",
        ),
        ({"variants": {"isp": isp | {"settings": {}}}}, "variants.isp.rate 0.2 (reference: not set)"),
    ):
        assert reasons(**changed) == f"Bits may differ because of: {reason}."


# --- the command ------------------------------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", *arguments])
    assert not end.value.code
    return capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, reference = str(put(tmp_path / "run", seeds(90, 12))), str(put(tmp_path / "other", seeds(90, 91)))
    text = printed(capsys, run, reference)
    assert text.startswith("b on t  sparsity  cells")
    assert text.endswith(f"1 outside: isp compare {run} {reference} shows them\n")
    assert printed(capsys, run, reference, "--summary") == text.splitlines()[-1] + "\n"
    content = json.loads(printed(capsys, run, reference, "--json"))
    assert content["summary"] == text.splitlines()[-1]
    assert printed(capsys, run, run, "--summary").endswith("2 of 2 cells equal to the bit\n")


def test_a_terminal_shows_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    run = put(tmp_path / "run", [row("[red]x\x1b[0m")])
    other = put(tmp_path / "other", [row("[red]x\x1b[0m", test=1)])
    monkeypatch.setattr(cli, "out", Console(force_terminal=True, width=200, no_color=True, highlight=False))
    text = printed(capsys, str(run), str(other))
    assert "[red]x\\x1b[0m" in text
    assert "no deviation known" in text
    assert "\x1b[0m\n" not in text.splitlines()[1]


def test_the_reference_of_the_default_study_equals_itself() -> None:
    """Its cells are those of config/config.yaml, two tasks of 57; that of full is under another protocol."""
    side = read_side(Path(__file__).parent.parent / "docs" / "results" / "quick")
    comparison = compare(side, side)
    assert comparison.counts == {"equal": 114, "within": 0, "outside": 0, "unjudged": 0}
    assert not comparison.only_in_run


# --- bad input --------------------------------------------------------------------------------------------------------


def test_studies_of_other_grids() -> None:
    with pytest.raises(IspError, match=r"run and reference have no cell in common because no task is the same \(the "):
        compared([row()], [row(task="other")])
    with pytest.raises(IspError, match=r"no seed is the same \(the first has 0; the second has 1, 2\)"):
        compared([row()], [row(seed=1), row(seed=2)])
    with pytest.raises(IspError, match="no two rows have the same task, backbone, variant"):
        compared([row(), row("x", 1)], [row(seed=1), row("x")])


def test_folders_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(IspError, match=r"nowhere: no such folder; name the folder of a finished study"):
        read_side(tmp_path / "nowhere")
    with pytest.raises(IspError, match=r"has no metrics.csv, so it is not a folder of results, or its run is not fini"):
        read_side(tmp_path)


@pytest.mark.parametrize("size", range(1, 40))
def test_a_truncated_file(tmp_path: Path, size: int) -> None:
    """Cut anywhere within its last line, the last number included."""
    path = put(tmp_path, seeds(90, 91)) / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-size])
    with pytest.raises(
        ArtifactError, match=r"metrics.csv: (ends within a line|line 3( has not as many fields|: .* must be))"
    ):
        read_side(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no column 'study'"),
        ("a,b\n1,2\n", "has no column 'study'"),
        (",".join(METRICS) + "\n", "has no rows"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: str | bytes, problem: str) -> None:
    (tmp_path / "metrics.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArtifactError, match=rf"metrics.csv: {problem}.*\(stage: collect\)"):
        read_side(tmp_path)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"test": "nan"}, "line 2: test must be a finite number, got 'nan'"),
        ({"seed": "x"}, "line 2: seed must be a whole number, got 'x'"),
        ({"sparsity": "1.5"}, "line 2: sparsity must be a number in"),
        ({"finding_flops": "1,000"}, "line 2: finding_flops must be a finite number"),
    ],
)
def test_wrong_values(tmp_path: Path, values: dict[str, str], problem: str) -> None:
    put(tmp_path, [row() | values])
    with pytest.raises(ArtifactError, match=problem):
        read_side(tmp_path)


def test_a_cell_twice(tmp_path: Path) -> None:
    put(tmp_path, [row(), row(test=3)])
    with pytest.raises(ArtifactError, match=r"metrics.csv: has 2 rows of the cell t, b, isp, isp, 0.9000, accuracy, 0"):
        read_side(tmp_path)


def test_a_damaged_study_json(tmp_path: Path) -> None:
    (put(tmp_path, [row()]) / "study.json").write_text('{"provenance": {"packages": 3}}')
    with pytest.raises(ArtifactError, match=r"study.json: provenance.packages = 3"):
        read_side(tmp_path)
    for key, value in (("tasks", '["a"]'), ("tasks", '{"a": 1}'), ("define", '{"tasks": []}'), ("training", "[]")):
        (tmp_path / "study.json").write_text(f'{{"study": {{"{key}": {value}}}}}')
        with pytest.raises(ArtifactError, match=rf"study.json: study.{key}"):
            read_side(tmp_path)


def test_one_form_of_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "a", "b", "--json", "--summary"])
    assert end.value.code == 2
    assert "--summary and --json are mutually exclusive" in capsys.readouterr().err
