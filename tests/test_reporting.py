import csv
import io
import itertools
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from isp.errors import IspError
from isp.files import write_csv
from isp.reporting import FIGURES, collect, drawing, figures, mask_figures, paper_figures, tables, verdict
from isp.reporting import statistics as how_sure
from isp.reporting.tabular import by_chance, chain, percent, seeds_note, short_names, summary
from tests.support.records import LAYERS, Rows, cost, only, overlap, record, study, way


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(study(), tmp_path)


@pytest.mark.process
def test_reporting_imports_no_torch() -> None:
    names = (
        "collect",
        "tables",
        "statistics",
        "paper",
        "figures",
        "mask_figures",
        "paper_figures",
        "page",
        "evidence",
        "regime",
    )
    modules = ", ".join(f"isp.reporting.{name}" for name in names)
    heavy = "{'torch', 'open_clip', 'typer', 'matplotlib.pyplot'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"import {modules}, sys; assert not {heavy}, {heavy}"], check=True)


# --- collect ----------------------------------------------------------------------------------------------------------


def test_metrics_hold_costs_and_nothing_that_was_measured() -> None:
    (row,) = collect.metrics([record("isp", "0.9000", finding=cost(7))])
    assert row["finding_steps"] == 7
    assert row["finding_flops"] == 7 * 10**9
    assert row["retraining_samples"] == 6400
    assert not {"measured", "rounds", "device", "finding_seconds"} & row.keys()


def test_majority_and_a_second_metric() -> None:
    (row,) = collect.metrics([record("isp", "0.9000")])
    assert (row["metric"], row["majority_validation"], row["majority_test"]) == ("accuracy", 10.0, 11.0)
    assert (row["second_metric"], row["second_validation"]) == ("", "")
    both = {part: {"accuracy": 90.0, "f1": 80.0, "majority": 60.0} for part in ("validation", "test")}
    (row,) = collect.metrics([{**record("isp", "0.9000", metrics=["accuracy", "f1"]), **both}])
    assert (row["second_metric"], row["second_validation"], row["second_test"]) == ("f1", 80.0, 80.0)


def test_rounds_that_tickets_share_come_once() -> None:
    records = [record("lth", "0.4000", rounds=[{"round": 0, "sparsity": "0.2000", "steps": 3}])]
    records += [record("pools", "0.4000", rounds=[{"steps": 3}])]  # other families record what they like
    records += [record("isp", target, rounds=way(target)) for target in ("0.4000", "0.5000")]
    found = [(row["round"], row["sparsity"]) for row in collect.rounds(records)]
    assert found == [(0, "0.2000"), (1, "0.3600"), (2, "0.4000"), (2, "0.4880"), (3, "0.5000")]
    other_seed = [record("isp", "0.4000", seed=1, rounds=way("0.4000"))]
    assert len(collect.rounds(records + other_seed)) == 5 + 3


def test_rows_keep_the_order_of_the_records() -> None:
    records = [record(variant, "0.9000") for variant in ("z", "a", "m")]
    for made in (collect.metrics(records), collect.timings(records)):
        assert [row["variant"] for row in made] == ["z", "a", "m"]
    assert [row["layer"] for row in collect.layers(records)][:4] == LAYERS


def test_agreement_has_a_row_for_each_event_and_layer(rows: Rows) -> None:
    own = [row for row in rows.agreement if row["seed"] == "1"]
    assert {row["variant"] for row in rows.agreement} == {"isp_n4"}  # without look-aheads there is none
    assert [row["layer"] for row in own[:4]] == LAYERS  # the model's order, not the record's
    assert len(own) == 5 * 4  # rounds 0 and 1, round 2 twice, round 3
    assert only(own, round="1", layer=LAYERS[3])["agreement"] == str(0.5 + 0.01 + 0.02)


def test_pairs_of_masks_have_a_row_each_and_one_a_layer(rows: Rows) -> None:
    pairs = [(row["variant_a"], row["variant_b"]) for row in rows.similarity if row["seed"] == "0"]
    at_40 = list(itertools.combinations(["one_shot", "isp_n0", "isp_n4", "lth"], 2))
    assert pairs == [*at_40, ("isp_n0", "isp_n4")]  # and the pair of 50 %
    row = only(rows.similarity, seed="1", variant_b="lth", variant_a="isp_n0")
    assert [float(row[name]) for name in ("weights", "kept_a", "kept_b", "kept_both")] == [400, 240, 240, 124]
    assert float(row["cosine"]) == pytest.approx(124 / 240, abs=1e-6)
    assert float(row["jaccard"]) == pytest.approx(124 / 356, abs=1e-6)
    assert [each["layer"] for each in rows.similarity_layers[:4]] == LAYERS
    assert len(rows.similarity_layers) == 4 * len(rows.similarity)


def test_a_run_of_one_variant_has_no_pairs(tmp_path: Path) -> None:
    rows = Rows([record("isp", "0.8000", rounds=way("0.8000")), record("dense", "0.0000")], tmp_path)
    assert rows.similarity == rows.similarity_layers == []
    assert tables.similarity(rows.similarity) == []
    for name, (figure, drawn) in rows.drawings().items():
        if name.startswith("mask_similarity"):
            assert drawn == []
            assert "No two pruned tickets of one sparsity" in figure.texts[0].get_text()


def test_collapsed_layers_are_counted() -> None:
    (row,) = collect.metrics([record("isp", "0.9000", collapsed=LAYERS[1:])])
    assert row["collapsed_layers"] == 3


def test_the_way_of_a_ticket_leaves_out_other_targets(rows: Rows) -> None:
    events = [row for row in rows.rounds if row["variant"] == "isp_n4" and row["seed"] == "0"]
    assert [row["sparsity"] for row in chain(events, "0.4000")] == ["0.2000", "0.3600", "0.4000"]
    assert [row["sparsity"] for row in chain(events, "0.5000")] == ["0.2000", "0.3600", "0.4880", "0.5000"]
    assert chain(events) == chain(events, "0.5000")


def test_the_rest_that_is_pruned_at_once_belongs_to_its_own_target() -> None:
    """`isp_code` at 80 % prunes the rest in round 2, where the run to 95 % has a round with look-aheads."""
    events = [
        {"round": "0", "sparsity": "0.3000", "agreement": "0.9"},
        {"round": "1", "sparsity": "0.5100", "agreement": "0.9"},
        {"round": "2", "sparsity": "0.8000", "agreement": ""},
        {"round": "2", "sparsity": "0.7941", "agreement": "0.8"},
        {"round": "3", "sparsity": "0.8780", "agreement": "0.8"},
        {"round": "4", "sparsity": "0.9500", "agreement": ""},
    ]
    assert [row["sparsity"] for row in chain(events, "0.8000")] == ["0.3000", "0.5100", "0.8000"]
    assert [row["sparsity"] for row in chain(events)] == ["0.3000", "0.5100", "0.7941", "0.8780", "0.9500"]
    plain = [{**row, "agreement": ""} for row in events]  # without look-aheads, the sparsest of a round counts
    assert [row["sparsity"] for row in chain(plain)] == ["0.3000", "0.5100", "0.8000", "0.8780", "0.9500"]


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(999, "999"), (1.95e14, "195 T"), (2e9, "2 G"), (1.234e18, "1.23 E"), (0, "0")],
        *[(1000, "1 k"), (123_456, "123 k"), (999.6, "1 k"), (999_499, "999 k"), (999_500, "1 M"), (999.6e12, "1 P")],
    ],
)
def test_counts(value: float, text: str) -> None:
    assert tables.si(value) == text


def test_values_over_seeds() -> None:
    assert tables.over_seeds([]) == ""
    assert tables.over_seeds([1.0]) == "1.00"
    assert tables.over_seeds([3.0, 1.0]) == "3.00 / 1.00"
    assert tables.over_seeds([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


@pytest.mark.parametrize(
    ("seeds", "table", "bars", "means"),
    [
        ([1], "one seed, so no deviations", "one seed, so no deviations", "one seed"),
        ([2], "both values of two seeds", "mean and both values (bars) of two seeds", "mean over 2 seeds"),
        ([1, 2], "both values of two seeds, or one seed", None, "mean over 1 to 2 seeds"),
        ([3], "mean ± standard deviation over 3 seeds", "mean and standard deviation (bars) over 3 seeds", None),
        ([3, 2], "mean ± standard deviation over 2 to 3 seeds (of two seeds: both values)", None, None),
    ],
)
def test_notes_of_seeds(seeds: list[int], table: str, bars: str | None, means: str | None) -> None:
    rows = [{"seeds": count} for count in seeds]
    assert seeds_note(rows, "table") == table
    assert bars in (None, seeds_note(rows, "bars"))
    assert means in (None, seeds_note(rows))


def test_ends_of_error_bars() -> None:
    """Of two seeds both values, of more one deviation, within the range of the metric."""

    def row(*values: float, metric: str = "accuracy") -> dict[str, Any]:
        return {"metric": metric} | summary("test", values)

    assert drawing.ends(row(90.0), "test") == (90.0, 90.0)
    assert drawing.ends(row(92.0, 90.0), "test") == (90.0, 92.0)
    assert drawing.ends(row(90.0, 91.0, 92.0), "test") == (90.0, 92.0)
    assert drawing.ends(row(96.0, 99.0, 100.0), "test") == (pytest.approx(98.3333 - 2.0817, abs=1e-3), 100.0)
    assert drawing.ends(row(0.0, 6.0, 0.0), "test") == (0.0, pytest.approx(2 + 3.4641, abs=1e-3))
    assert drawing.ends(row(0.0, 6.0, 0.0, metric="matthews"), "test")[0] == pytest.approx(2 - 3.4641, abs=1e-3)


@pytest.mark.parametrize(("sparsity", "text"), [("0.9000", "90"), ("0.8322", "83.22"), ("0.0000", "0")])
def test_sparsities_in_percent(sparsity: str, text: str) -> None:
    assert percent(sparsity) == text


def test_scores_by_hand(rows: Rows) -> None:
    ((header, body),) = tables.scores(rows.metrics)
    assert header == ["b on t", "0", "0.4", "0.5", "steps"]
    assert body == [
        ["dense", "98.00 / 99.00", "", "", "200"],
        ["one_shot", "", "92.00 / 94.00", "", "200"],
        ["isp_n0", "", "95.00 / 98.00", "93.00 / 96.00", "300"],
        ["isp_n4", "", "95.00 / 98.00", "93.00 / 96.00", "300"],
        ["lth", "", "97.00 / 97.00", "", "300"],
    ]


def test_steps_are_those_of_the_sparsest_ticket(tmp_path: Path) -> None:
    records = [record("isp", sparsity, finding=cost(steps)) for sparsity, steps in (("0.9000", 4000), ("0.8000", 9))]
    ((_, body),) = tables.scores(Rows(records, tmp_path).metrics)
    assert body == [["isp", "90.00", "90.00", "4,200"]]


def test_costs_by_hand(rows: Rows) -> None:
    ((header, body),) = tables.costs(rows.metrics, rows.timings, rows.rounds)
    lines = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in body}
    assert lines["isp_n4", "0.4"] == {
        "b on t": "isp_n4",
        "sparsity": "0.4",
        "seeds": "2",
        "validation": "95.00 / 98.00",
        "test": "93.00 / 96.00",
        "finding": "100",
        "retraining": "200",
        "FLOP": "300 G",
        "sparse FLOP": "30 G",
        "seconds": "68",
        "changed": "1.0–3.1 %",  # rounds 0 to 2; 0.01 * (round + 1) + 0.001 * seed
    }
    assert lines["isp_n4", "0.5"]["changed"] == "1.0–4.1 %"
    assert lines["isp_n0", "0.5"]["changed"] == "0.0–0.0 %"
    assert lines["lth", "0.4"]["changed"] == ""
    assert list(lines)[:4] == [("dense", "0"), ("one_shot", "0.4"), ("isp_n0", "0.4"), ("isp_n0", "0.5")]


def test_spending_by_hand(rows: Rows) -> None:
    """100 steps of finding and 200 of retraining, of 32 samples and 1 GFLOP each; dense spends 200."""
    metrics, timings = rows.metrics, rows.timings
    ((header, body),) = tables.spending(metrics, timings)
    assert header == ["b on t", "sparsity", "steps", "samples", "FLOP", "sparse FLOP", "seconds", "of dense"]
    found = {(line[0], line[1]): line[2:] for line in body}
    assert found["dense", "0"] == ["0 + 200", "0 + 6,400", "0 + 200 G", "0 + 20 G", "60 + 8", "1.00"]
    assert found["lth", "0.4"] == ["100 + 200", "3,200 + 6,400", "100 G + 200 G", "10 G + 20 G", "60 + 8", "1.50"]
    (row,) = [row for row in tables.spending_csv(metrics, timings) if row["variant"] == "lth"]
    assert (row["finding_samples"], row["retraining_flops"], row["flops_of_dense"]) == (3200, 2 * 10**11, 1.5)
    assert tuple(row) == tables.SPENDING
    without = tables.spending_csv([row for row in metrics if row["variant"] != "dense"], timings)
    assert {row["flops_of_dense"] for row in without} == {""}


def test_tables_for_machines_have_numbers_apart(rows: Rows) -> None:
    found = tables.costs_csv(rows.metrics, rows.timings, rows.rounds)
    assert all(tuple(row) == tables.COSTS for row in found)
    row = only(found, variant="isp_n4", sparsity="0.5000")
    assert (row["validation_mean"], row["validation_sd"], row["validation_values"]) == (94.5, "", "93.0 96.0")
    assert (row["finding_steps"], row["flops"], row["seconds_mean"]) == (100, 300 * 10**9, 68)
    assert (row["changed_least"], row["changed_most"]) == (0.01, pytest.approx(0.041))
    assert all(tuple(row) == tables.SCORES for row in tables.scores_csv(rows.metrics))


def texts_of(figure: Figure) -> list[str]:
    """Return every text that a figure shows."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]


def test_methods_that_chose_by_the_shown_scores_are_marked(tmp_path: Path) -> None:
    """Pools and greedy soups record their evaluations; the mark is where validation scores are, not at test scores."""
    pooled = record("pools", "0.4000", 0, 99.0, rounds=[{"pooled": [0.5], "evaluations": 10}])
    rows = Rows([*study((0,)), pooled], tmp_path)
    assert [row["variant"] for row in rows.metrics if row["chosen_on"]] == ["pools"]
    (_, body), *_ = tables.scores(rows.metrics)
    assert [line[0] for line in body] == ["dense", "one_shot", "isp_n0", "isp_n4", "lth", "pools*"]
    assert only(tables.scores_csv(rows.metrics), variant="pools")["chosen_on"] == "validation"
    by_part = dict(zip(("validation", "test"), how_sure.runs(rows.metrics, "lth"), strict=True))
    assert {part: any(line[0] == "pools*" for line in table[1]) for part, table in by_part.items()} == {
        "validation": True,
        "test": False,
    }
    figure, _ = figures.score_by_sparsity(rows.metrics)
    assert "pools*" in texts_of(figure)
    assert "*: chose among models by these examples." in " ".join(texts_of(figure)).replace("\n", " ")
    assert "pools*" in texts_of(figures.score_by_sparsity(_more_sparsities(rows.metrics))[0])
    (found,) = verdict.verdicts(rows.metrics)
    marked = {line.variant: line.chosen for line in found.pruned}
    assert marked == {"one_shot": False, "isp_n0": False, "isp_n4": False, "lth": False, "pools": True}
    best = [line.variant for line in found.pruned if line.scores.get("0.4000") and line.scores["0.4000"].best]
    assert best == ["lth"]  # 97, although the pools have 99 on the examples that they chose by
    assert "pools" not in " ".join(found.sentences)


def test_similarity_by_hand(rows: Rows) -> None:
    ((header, body),) = tables.similarity(rows.similarity)
    assert header == ["b on t", "sparsity", "seeds", "cosine", "Jaccard", "Hamming"]
    # 120 and 124 of 240 kept weights are shared; chance: 0.6, 0.36 / 0.84, 2 * 0.4 * 0.6
    assert body[0] == [
        "one_shot, isp_n0",
        "0.4",
        "2",
        "0.500 / 0.517 (0.600)",
        "0.333 / 0.348 (0.429)",
        "0.600 / 0.580 (0.480)",
    ]
    assert [line[:2] for line in body[3:5]] == [["isp_n0, isp_n4", "0.4"], ["isp_n0, isp_n4", "0.5"]]
    found = tables.similarity_csv(rows.similarity)
    assert all(tuple(row) == tables.SIMILARITY for row in found)
    row = only(found, variant_a="isp_n0", variant_b="isp_n4", sparsity="0.5000")
    assert row["cosine_mean"] == pytest.approx(statistics.fmean([120 / 200, 124 / 200]))
    assert row["hamming_mean"] == pytest.approx(statistics.fmean([160 / 400, 152 / 400]))
    assert [row[f"{name}_by_chance"] for name in ("cosine", "jaccard", "hamming")] == [0.5, 0.333333, 0.5]


def test_chance_is_what_random_masks_have() -> None:
    generator = random.Random(0)
    kept = [{index for index in range(100_000) if generator.random() < share} for share in (0.3, 0.6)]
    both = len(kept[0] & kept[1])
    row = {key: str(value) for key, value in overlap(100_000, len(kept[0]), len(kept[1]), both).items()}
    found = by_chance([row])
    assert found == {name: pytest.approx(float(row[name]), abs=0.01) for name in ("cosine", "jaccard", "hamming")}


def test_a_warning_names_collapsed_layers(tmp_path: Path) -> None:
    def layers(*gone: int) -> list[dict[str, Any]]:
        return [{"layer": n, "weights": 9, "zero_weights": 9 if i in gone else 8} for i, n in enumerate(LAYERS)]

    records = [
        record("isp", "0.9000", seed=0, layers=layers(1, 3)),
        record("isp", "0.9000", seed=1, layers=layers(3)),
        record("isp", "0.8000", seed=0, layers=layers()),
        record("lth", "0.9500", seed=0, layers=layers(0)),
    ]
    rows = Rows(records, tmp_path)
    warning = tables.collapse(rows.layers)
    assert warning.splitlines()[2:] == [
        "- b on t, isp at 0.9, seed 0: 0 c_fc; seeds 0, 1: 1 c_fc",
        "- b on t, lth at 0.95, seed 0: 0 in_proj",
    ]
    assert tables.markdown(tables.scores(rows.metrics), "Legend.", warning).endswith(f"Legend.\n\n{warning}\n")
    assert tables.collapse(Rows(study(), tmp_path).layers) == ""
    figure, drawn = mask_figures.layer_sparsity(rows.layers)
    assert sum(row["collapsed_seeds"] for row in drawn) == 4
    assert "Cross: keeps no weight at all in some seed." in " ".join(texts_of(figure)).replace("\n", " ")
    crosses = {
        (axes.get_title(loc="left").split("\n")[1], column, line)
        for axes in figure.axes
        for cross in axes.get_lines()
        if cross.get_marker() == "X"
        for column, line in cross.get_xydata().astype(int).tolist()
    }
    assert crosses == {("90 %", 1, 0), ("90 %", 3, 0), ("95 %", 0, 1)}
    assert mask_figures.layer_sparsity(Rows(study(), tmp_path).layers)[0].legends == []


def test_many_collapsed_layers_are_not_all_named(tmp_path: Path) -> None:
    names = [f"blocks.{index}.fc.weight" for index in range(40)]
    gone = [{"layer": name, "weights": 9, "zero_weights": 9} for name in names]
    warning = tables.collapse(Rows([record("isp", "0.9000", layers=gone)], tmp_path).layers)
    assert warning.endswith("10 fc, 11 fc and 28 more")


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    rows = Rows(study(seeds=[0]), tmp_path)
    assert "±" not in tables.markdown(tables.scores(rows.metrics))
    assert {row["validation_sd"] for row in tables.scores_csv(rows.metrics)} == {""}
    for _, drawn in rows.drawings().values():
        assert all(value == "" for row in drawn for key, value in row.items() if key.endswith("_sd"))


def test_markdown_and_text(tmp_path: Path) -> None:
    rows = Rows([record("isp", "0.8000", validation=95.0), record("isp", "0.9000")], tmp_path)
    made = tables.scores(rows.metrics)
    assert tables.markdown(made, "What it says.").splitlines() == [
        "| b on t | 0.8 | 0.9 | steps |",
        "| --- | --- | --- | --- |",
        "| isp | 95.00 | 90.00 | 300 |",
        "",
        "What it says.",
    ]
    assert tables.text(made) == "b on t    0.8    0.9  steps\nisp     95.00  90.00    300\n"
    header, *_ = tables.text(tables.costs(rows.metrics, rows.timings, rows.rounds)).splitlines()
    assert "test" in header
    assert "changed" not in header  # an empty column


def test_each_task_and_backbone_has_its_own_table_and_panel(tmp_path: Path) -> None:
    records = [
        record("isp", "0.8000", task="first"),
        record("isp", "0.9000", task="second", test={"accuracy": None, "majority": 9}),
    ]
    rows = Rows(records, tmp_path)
    assert [header[:2] for header, _ in tables.scores(rows.metrics)] == [["b on first", "0.8"], ["b on second", "0.9"]]
    assert len(figures.score_by_sparsity(rows.metrics)[0].axes) == 2
    assert tables.costs_csv(rows.metrics, rows.timings, rows.rounds)[1]["test_mean"] == ""


def test_foreign_rows_are_named() -> None:
    with pytest.raises(IspError, match=r"no column 'backbone' \(it has: task\)"):
        tables.scores([{"task": "t"}])
    broken = dict.fromkeys(collect.METRICS, "x")
    with pytest.raises(IspError, match="'validation': could not convert"):
        tables.scores([{**broken, "sparsity": "0.5000"}])


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_say_what_they_draw(rows: Rows) -> None:
    drawings = rows.drawings()
    assert tuple(drawings) == FIGURES
    for name, (_, drawn) in drawings.items():
        (columns,) = (
            getattr(module, name.upper()) for module in (figures, mask_figures, paper_figures) if hasattr(module, name)
        )
        assert drawn
        assert all(tuple(row) == columns for row in drawn)


def test_deviations_of_three_seeds(tmp_path: Path) -> None:
    rows = Rows(study(seeds=[0, 1, 2]), tmp_path)
    row = only(tables.scores_csv(rows.metrics), variant="isp_n4", sparsity="0.5000")
    assert (row["validation_mean"], row["validation_sd"]) == (96.0, 3.0)
    (_, body), *_ = tables.scores(rows.metrics)
    assert body[3] == ["isp_n4", "", "98.00 ± 3.00", "96.00 ± 3.00", "300"]


def test_drawn_scores_are_means_and_both_values(rows: Rows) -> None:
    figure, drawn = figures.score_by_sparsity(rows.metrics)
    row = only(drawn, variant="isp_n4", sparsity="0.5000")
    assert row["validation_mean"] == statistics.fmean([93, 96])
    assert (row["validation_sd"], row["validation_values"]) == ("", "93.0 96.0")
    assert only(drawn, variant="dense")["seeds"] == 2
    at_40, at_50 = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["b on t\n40 %", "50 %"]
    means = [[line.get_xdata()[0] for line in axes.get_lines() if line.get_markersize() == 5.5] for axes in figure.axes]
    assert sorted(means[0]) == [93.0, 96.5, 96.5, 97.0, 98.5]
    assert sorted(means[1]) == [94.5, 94.5, 98.5]  # one_shot and lth have one of the two sparsities
    assert [98.5, 98.5] in [list(line.get_xdata()) for line in at_50.get_lines()]  # dense, across
    bars = [end for bar in at_50.collections if hasattr(bar, "get_segments") for end in bar.get_segments()]
    assert [93.0, 96.0] in [[float(score) for score, _ in bar] for bar in bars]  # of two seeds both scores
    seeds = [list(line.get_xdata()) for line in at_40.get_lines()]
    assert [92.0, 94.0] in seeds  # those of one_shot
    lines, _ = figures.score_by_sparsity(_more_sparsities(rows.metrics))
    (axes,) = lines.axes
    heights = [list(line.get_ydata()) for line in axes.get_lines()]
    assert [96.5, 94.5, 94.5, 94.5] in heights  # isp's line
    assert [98.5, 98.5] in heights  # dense, across
    assert [label.get_text() for label in axes.get_xticklabels()] == ["40", "50", "60", "70"]
    assert {text.get_text() for text in axes.texts} == {"dense", "one_shot", "isp_n0", "isp_n4", "lth"}


def _more_sparsities(metrics: list[dict[str, str]]) -> list[dict[str, str]]:
    """Repeat the tickets of 50 % at 60 and 70 %, so that there are too many sparsities for dots."""
    last = [row for row in metrics if row["sparsity"] == "0.5000"]
    return [*metrics, *({**row, "sparsity": sparsity} for sparsity in ("0.6000", "0.7000") for row in last)]


def test_drawn_costs_are_executed_flops(rows: Rows) -> None:
    figure, drawn = figures.score_by_cost(rows.metrics)
    assert only(drawn, variant="dense")["flops"] == 200 * 10**9
    assert only(drawn, variant="lth")["flops"] == 300 * 10**9
    assert figure.axes[0].get_xlabel().startswith("executed training FLOPs")


def test_colours_are_the_same_in_all_figures(rows: Rows) -> None:
    def colours(figure: Any) -> dict[str, Any]:
        texts = [text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())]
        return {text.get_text(): text.get_color() for text in texts if text.get_color() != "black"}

    by_sparsity = colours(figures.score_by_sparsity(rows.metrics)[0])
    assert by_sparsity.keys() == {"dense", "one_shot", "isp_n0", "isp_n4", "lth"}
    assert colours(figures.score_by_cost(rows.metrics)[0]) == by_sparsity
    assert colours(figures.denoisers(rows.rounds, rows.metrics)[0]) == {"isp_n4": by_sparsity["isp_n4"]}


def test_collapsed_tickets_get_a_coarser_scale(tmp_path: Path) -> None:
    good = [record(f"isp_{index}", "0.9000", validation=95 + 0.5 * index) for index in range(6)]
    (axes,) = figures.score_by_sparsity(Rows(good, tmp_path).metrics)[0].axes
    assert axes.get_xscale() == "linear"
    collapsed = record("random", "0.9000", validation=28.0)
    figure, _ = figures.score_by_sparsity(Rows([*good, collapsed], tmp_path).metrics)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    places = (axes.transScale + axes.transLimits).transform([(28, 0), (95, 0), (97.5, 0)])[:, 0]
    assert low < 28 < 97.5 < high
    assert places[2] - places[1] > 0.5  # two and a half points of 70 take more than half of the width
    (coarse,) = axes.patches
    assert coarse.get_x() + coarse.get_width() == pytest.approx(94)  # type: ignore[attr-defined]
    assert "coarser scale" in figure.get_suptitle().replace("\n", " ")


def test_drawn_rounds_by_hand(rows: Rows) -> None:
    figure, drawn = figures.denoisers(rows.rounds)
    assert {row["variant"] for row in drawn} == {"isp_n4"}
    assert [(row["round"], row["sparsity"], row["on_line"]) for row in drawn] == [
        (0, "0.2000", "yes"),
        (1, "0.3600", "yes"),
        (2, "0.4000", "no"),  # the ticket of 40 % leaves here
        (2, "0.4880", "yes"),
        (3, "0.5000", "yes"),
    ]
    assert drawn[1]["changed_mean"] == pytest.approx(statistics.fmean([0.02, 0.021]))
    assert (drawn[1]["changed_sd"], drawn[1]["changed_values"]) == ("", "0.02 0.021")
    assert drawn[1]["agreement_mean"] == pytest.approx(0.91)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["3\n50", "2\n49", "1\n36", "0\n20"]


def test_a_study_without_look_aheads_says_so(tmp_path: Path) -> None:
    records = [record("isp_n0", "0.5000", rounds=way("0.5000", look_aheads=False)), record("random", "0.5000")]
    figure, drawn = figures.denoisers(Rows(records, tmp_path).rounds)
    assert drawn == []
    assert "No variant of this study looks ahead" in figure.texts[0].get_text()
    assert drawing.render(figure, "png")


def test_masks_without_agreement_are_drawn(tmp_path: Path) -> None:
    rounds = [event | {"agreement": None} for event in way("0.5000")]
    figure, drawn = figures.denoisers(Rows([record("isp", "0.5000", rounds=rounds)], tmp_path).rounds)
    assert {row["agreement_mean"] for row in drawn} == {""}
    assert drawing.render(figure, "png")


def test_drawn_layers_by_hand(rows: Rows) -> None:
    figure, drawn = mask_figures.layer_sparsity(rows.layers)
    row = only(drawn, variant="isp_n4", sparsity="0.5000", layer=LAYERS[3])
    assert row["label"] == "1 c_fc"
    assert row["layer_sparsity_mean"] == pytest.approx(0.305)  # 30 and 31 of 100
    assert "dense" not in {row["variant"] for row in drawn}
    panel = figure.axes[0].get_images()[0].get_array()
    assert panel is not None
    assert panel.shape == (4, 4)  # four pruned variants, four layers
    assert list(panel[0].round(6)) == [0.5, 10.5, 20.5, 30.5]


def test_drawn_agreement_by_hand(rows: Rows) -> None:
    figure, drawn = mask_figures.agreement_by_layer(rows.agreement)
    assert len(drawn) == 4 * 4  # the ticket of 40 % leaves the way, so it is not drawn
    assert only(drawn, round=2, layer=LAYERS[0])["agreement_mean"] == pytest.approx(0.5 + 0.3 + 0.02 + 0.01)
    axes, *_ = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0: 20 %", "1: 36 %", "2: 48.8 %", "3: 50 %"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0 in_proj", "0 c_fc", "1 in_proj", "1 c_fc"]
    values = axes.get_images()[0].get_array()
    assert values is not None
    assert list(values[3].round(6)) == [0.84, 0.74, 0.64, 0.54]


def test_a_layer_without_weak_weights_is_crossed_out(tmp_path: Path) -> None:
    rounds = [
        event | {"agreement_by_layer": {name: None if name == LAYERS[2] else 0.5 for name in LAYERS}}
        for event in way("0.3000")
    ]
    rows = Rows([record("isp", "0.3000", rounds=rounds)], tmp_path)
    assert only(rows.agreement, round="0", layer=LAYERS[2])["agreement"] == ""
    figure, drawn = mask_figures.agreement_by_layer(rows.agreement)
    assert only(drawn, round=1, layer=LAYERS[2])["agreement_mean"] == ""
    crosses = [line.get_xydata().tolist() for line in figure.axes[0].get_lines() if line.get_marker() == "X"]
    assert crosses == [[[2, 0], [2, 1]]]
    values = figure.axes[0].get_images()[0].get_array()
    assert values is not None
    assert values.mask.tolist() == [[False, False, True, False]] * 2
    assert drawing.render(figure, "png")


def test_drawn_similarity_by_hand(rows: Rows) -> None:
    figure, drawn = mask_figures.mask_similarity(rows.similarity)
    assert len(drawn) == 6 + 1
    at_40, at_50, *_ = figure.axes
    assert at_40.get_title(loc="left") == "b on t\n40 %, chance 0.60"
    assert [label.get_text() for label in at_40.get_yticklabels()] == ["isp_n0", "isp_n4", "lth"]
    assert [label.get_text() for label in at_40.get_xticklabels()] == ["one_shot", "isp_n0", "isp_n4"]
    assert {text.get_position() for text in at_40.texts} == {(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)}
    assert [text.get_text() for text in at_50.texts] == [".61"]
    values = at_50.get_images()[0].get_array()
    assert values is not None
    assert values[0, 0] == pytest.approx((0.61 - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("cosine", "text"), [(1.0, "1"), (0.999999, ">.99"), (0.9949, ".99"), (0.5, ".50"), (0.0, ".00")]
)
def test_only_equal_masks_are_1(cosine: float, text: str) -> None:
    assert mask_figures._brief(cosine) == text


def test_similarity_to_the_reference(rows: Rows) -> None:
    figure, drawn = mask_figures.mask_similarity_by_sparsity(rows.similarity, rows.metrics)
    assert {row["reference"] for row in drawn} == {"one_shot"}
    assert [row["variant"] for row in drawn] == ["isp_n0", "isp_n4", "lth"]
    (axes,) = figure.axes
    assert "to the mask of one_shot" in axes.get_xlabel().replace("\n", " ")
    assert [0.6, 0.6] in [list(line.get_xdata()) for line in axes.get_lines()]  # chance at 40 %
    assert "line across all rows: random masks" in figure.get_suptitle().replace("\n", " ").lower()


def test_references(tmp_path: Path) -> None:
    records = [record(name, "0.8000", method=method) for name, method in (("a", "random"), ("b", "lth"))]
    assert mask_figures.references(Rows(records, tmp_path).metrics) == {("t", "b"): "a"}
    records = [record("dense", "0.0000", method="one_shot"), *records, record("c", "0.9000", method="one_shot")]
    assert mask_figures.references(Rows(records, tmp_path).metrics) == {("t", "b"): "c"}
    assert mask_figures.references(Rows(records[:1], tmp_path).metrics) == {}


def test_drawn_similarity_of_layers_by_hand(rows: Rows, tmp_path: Path) -> None:
    _, drawn = mask_figures.mask_similarity_by_layer(rows.similarity_layers, rows.metrics)
    row = only(drawn, variant="lth", layer=LAYERS[2])
    assert (row["label"], row["reference"], row["empty_seeds"]) == ("1 in_proj", "one_shot", 0)
    assert row["cosine_mean"] == pytest.approx(30.5 / 60, abs=1e-6)
    assert (row["cosine_by_chance"], row["above_chance"]) == (0.6, 0)  # less than chance
    alike = Rows(study(), tmp_path, both=54)
    figure, drawn = mask_figures.mask_similarity_by_layer(alike.similarity_layers, alike.metrics)
    assert only(drawn, variant="lth", layer=LAYERS[2])["above_chance"] == pytest.approx(
        (54.5 / 60 - 0.6) / 0.4, abs=1e-5
    )
    panel = figure.axes[0].get_images()[0].get_array()
    assert panel is not None
    assert panel.shape == (3, 4)


def test_an_empty_layer_is_not_compared(rows: Rows) -> None:
    """In the first seed one of the masks keeps nothing of a layer, in the other layer it does so in both."""
    pairs = [
        row | {"kept_a": "0", "kept_both": "0", "cosine": "0.0"}
        if row["layer"] == LAYERS[0] or (row["layer"], row["seed"]) == (LAYERS[1], "0")
        else row
        for row in rows.similarity_layers
    ]
    _, drawn = mask_figures.mask_similarity_by_layer(pairs, rows.metrics)
    gone, once, never = (only(drawn, variant="lth", layer=name) for name in LAYERS[:3])
    assert (gone["cosine_mean"], gone["above_chance"], gone["empty_seeds"]) == ("", "", 2)
    assert (once["cosine_mean"], once["empty_seeds"]) == (pytest.approx(31 / 60, abs=1e-6), 1)
    assert never["empty_seeds"] == 0


@pytest.mark.parametrize(
    ("layers", "short"),
    [
        (["a.0.attn.in_proj_weight", "a.0.attn.out_proj.weight"], ["0 in_proj", "0 out_proj"]),
        (
            ["l.0.attention.output.dense.weight", "l.0.intermediate.dense.weight", "l.0.output.dense.weight"],
            ["0 attention.output.dense", "0 intermediate.dense", "0 output.dense"],
        ),
        (["fc1.weight", "fc2.weight"], ["fc1", "fc2"]),
        (["weight"], ["weight"]),
        ([], []),
    ],
)
def test_short_names(layers: list[str], short: list[str]) -> None:
    assert list(short_names(layers).values()) == short


def test_the_same_rows_give_the_same_bytes(rows: Rows, tmp_path: Path) -> None:
    for turn in ("first", "second"):
        for name, (figure, _) in rows.drawings().items():
            drawing.save(figure, tmp_path / turn / f"{name}.v1")
    first = sorted((tmp_path / "first").iterdir())
    assert len(first) == 2 * len(FIGURES)
    for path in first:
        content = path.read_bytes()
        assert content == (tmp_path / "second" / path.name).read_bytes()
        assert content[:4] == (b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
        assert b"Date" not in content
        assert b"atplotlib" not in content


def test_without_tickets_there_is_a_figure_that_says_so(tmp_path: Path) -> None:
    rows = Rows([], tmp_path)
    assert tables.scores(rows.metrics) == tables.costs(rows.metrics, rows.timings, rows.rounds) == []
    for figure, drawn in rows.drawings().values():
        assert drawn == []
        assert "No " in figure.texts[0].get_text()


def test_what_is_drawn_can_be_written(rows: Rows, tmp_path: Path) -> None:
    _, drawn = figures.score_by_sparsity(rows.metrics)
    write_csv(tmp_path / "drawn.csv", drawn, figures.SCORE_BY_SPARSITY)
    read = list(csv.DictReader(io.StringIO((tmp_path / "drawn.csv").read_text())))
    assert [float(row["validation_mean"]) for row in read] == [row["validation_mean"] for row in drawn]
