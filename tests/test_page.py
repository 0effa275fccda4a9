"""The page of a study: whole in itself, true to its tables, safe, the same for the same inputs."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from isp.errors import IspError
from isp.files import read_csv, write_csv, write_json
from isp.reporting import FIGURES, alt, drawing, tables
from isp.reporting import page as page_module
from isp.reporting.collected import COLUMNS
from isp.reporting.grids import Cell, grids, of_markdown
from isp.reporting.page import SECTIONS, Contents, caption_of, render
from isp.reporting.tabular import Row
from isp.reporting.verdict import Score, Verdict, seeds_note, verdicts
from isp.stages.page import page
from isp.stages.tables import tables as write_tables
from tests.support.records import LAYERS, Rows, cost, record, study

ROOT = Path(__file__).parent.parent
CAPTIONS = {path.stem: path.read_text() for path in (ROOT / "workflow" / "report").glob("*.rst")}
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"
DESCRIPTION = {
    "study": {"study": "s", "device": "cpu", "threads": 1, "training": {"b": {"steps": 200}}, "reference": "isp_n4"},
    "question": "Does it help?",
    "variants": {
        "dense": {"method": "dense", "family": "dense", "summary": "The dense model.", "settings": {}},
        "isp_n4": {"method": "isp", "family": "denoised", "settings": {"denoisers": 4}, "initial": "pretrained"},
    },
    "tasks": {"t": {"summary": "A task.", "num_train": 900, "metrics": ["accuracy"]}},
    "provenance": {"command": "snakemake --configfile s.yaml", "commit": "abc", "packages": {"torch": "2"}},
}
PLAN = """| rule | jobs | FLOP | taken / planned |
| --- | --- | --- | --- |
| retrain | 1,400 | 1.2 T | 1.10 |
| all | 2 |  | 0.90 |

Hours of all jobs.
"""
VOID = {"meta", "img", "br", "rect"}


class Parsed(HTMLParser):
    """Elements of a page; checks on the way that tags are balanced and ids distinct."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [values["id"] for _, values in self.elements if "id" in values]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [values for name, values in self.elements if name == tag]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(study(), tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def contents(rows: Rows) -> Contents:
    """Everything there can be."""
    drawings = rows.drawings()
    made = {
        "scores": tables.scores_csv(rows.metrics),
        "spending": tables.spending_csv(rows.metrics, rows.timings),
        "similarity": tables.similarity_csv(rows.similarity),
        "anything": [{"a": "x", "b": 1}],
    }
    return Contents(
        rows.metrics,
        DESCRIPTION,
        rows.layers,
        {name: text(rows) for name, rows in made.items()},
        {"spending": "not used", "plan": PLAN},
        {name: drawing.render(figure, "png") for name, (figure, _) in drawings.items()},
        {name: text(drawn) for name, (_, drawn) in drawings.items()},
        {"figures/denoisers": "What they do."},
        ["metrics.csv", "figures/denoisers.pdf", "tables/any thing?.csv"],
    )


def text(rows: list[dict[str, Any]]) -> list[Row]:
    return [{key: str(value) for key, value in row.items()} for row in rows]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_it_needs_nothing_but_itself(contents: Contents) -> None:
    found = render(contents)
    parsed = Parsed(found)
    assert not re.search(r"(src|href|action|poster|data)=\"?(https?:)?//|url\(|@import|fetch\(", found)
    assert not {tag for tag, _ in parsed.elements} & {"link", "iframe", "object", "embed", "base", "form"}
    assert {values["src"][:22] for values in parsed.all("img")} == {"data:image/png;base64,"}
    assert parsed.all("meta")[1]["content"].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not [values for _, values in parsed.elements if "style" in values or "onclick" in values]


def test_it_is_a_whole_document(contents: Contents) -> None:
    found = render(contents)
    parsed = Parsed(found)
    assert found.startswith("<!DOCTYPE html>")
    assert parsed.all("html") == [{"lang": "en"}]
    assert "<title>s: a study of pruning with isp</title>" in found
    for landmark in ("header", "nav", "main", "h1"):
        assert len(parsed.all(landmark)) == 1
    targets = {values.get("id") for _, values in parsed.elements}
    inside = {values["href"][1:] for values in parsed.all("a") if values["href"].startswith("#")}
    named = {values["aria-labelledby"] for _, values in parsed.elements if "aria-labelledby" in values}
    assert inside | named <= targets
    assert all(values["scope"] in ("col", "row") for values in parsed.all("th"))


def test_every_picture_says_what_it_shows(contents: Contents) -> None:
    found = Parsed(render(contents)).all("img")
    assert len(found) == len(contents.figures)
    assert all(len(values["alt"]) > 60 for values in found)
    (shown,) = [values["alt"] for values in found if values["alt"].startswith("Validation scores of the variants")]
    assert "b on t: 0 % from 98.50 (dense)" in shown
    assert "40 % from 93.00 (one_shot) to 97.00 (lth)" in shown
    assert {"width", "height"} <= found[0].keys()


def test_the_parts_of_the_page(contents: Contents) -> None:
    found = render(contents)
    for words in (
        "Does it help?",
        "snakemake --configfile s.yaml",
        "git checkout abc",
        "denoisers: 4",
        "What they do.",
    ):
        assert words in found
    assert 'href="tables/any%20thing%3F.csv"' in found
    for name in contents.figures:
        assert f'id="figure-{name}"' in found
    assert 'id="table-anything"' in found  # no section knows it
    assert 'id="table-scores"' not in found  # the verdict has it
    modified = {**DESCRIPTION, "provenance": {"commit": "abc", "modified": True, "command": "snakemake"}}
    found = render(replace(contents, study=modified))
    assert "git checkout" not in found
    assert "abc, with uncommitted changes" in found


def test_little_is_enough(rows: Rows) -> None:
    found = render(Contents(rows.metrics))
    Parsed(found)
    assert "isp_n4" in found
    assert not re.search(r"None|Undefined|nan\b", re.sub(r"<(style|script)>.*?</\1>", "", found, flags=re.S))
    Parsed(render(Contents([])))
    for missing in DESCRIPTION:
        Parsed(render(Contents(rows.metrics, {key: DESCRIPTION[key] for key in DESCRIPTION if key != missing})))


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    records = [record("dense", "0.0000"), record(HOSTILE, "0.5000"), record("one_shot", "0.5000")]
    rows = Rows([{**each, "backbone": HOSTILE, "task": HOSTILE} for each in records], tmp_path)
    known = {
        "method": "isp",
        "summary": HOSTILE,
        "settings": {HOSTILE: HOSTILE},
        "by_backbone": {HOSTILE: {"a": HOSTILE}},
    }
    described = {"study": {"study": HOSTILE}, "question": HOSTILE, "variants": {HOSTILE: known}}
    described |= {"provenance": {"command": HOSTILE, "platform": HOSTILE, "packages": {HOSTILE: HOSTILE}}}
    drawn = {name: text(made) for name, (_, made) in rows.drawings().items()}
    picture = drawing.render(drawing.message("m"), "png")
    found = render(
        Contents(
            rows.metrics,
            described,
            rows.layers,
            {HOSTILE: [{HOSTILE: HOSTILE}], "spending": text(tables.spending_csv(rows.metrics, rows.timings))},
            {"plan": f"| {HOSTILE} |\n| --- |\n| {HOSTILE} |\n\n{HOSTILE}"},
            {HOSTILE: picture, "score_by_sparsity": picture},
            drawn,
            {f"figures/{HOSTILE}": HOSTILE},
            [HOSTILE, "javascript:alert(1)"],
        )
    )
    parsed = Parsed(found)
    assert len(parsed.all("script")) == 1
    assert HOSTILE not in found
    assert "49" not in re.sub(r"base64,[^\"]*", "", re.search(r"<main.*</main>", found, re.S)[0])  # type: ignore[index]
    assert all("alert" not in key for _, values in parsed.elements for key in values)
    assert 'href="javascript:' not in found


def test_control_characters_are_shown_as_escapes(contents: Contents) -> None:
    odd = "a\x1b[2J\u202eb\0\ud800"
    study = {**DESCRIPTION, "question": odd, "variants": {odd: {"summary": odd, "settings": {odd: odd}}}}
    html = render(replace(contents, study=study, markdown={"plan": f"| {odd} |\n| --- |\n| {odd} |\n"}))
    assert html.count(r"a\x1b[2J\u202eb\x00\ud800") >= 5
    assert all(line.isprintable() for line in html.replace("\N{NO-BREAK SPACE}", "").split("\n"))


def test_the_same_inputs_give_the_same_bytes(contents: Contents) -> None:
    first = render(contents)
    page_module._template.cache_clear()
    assert first == render(contents)
    pictures = re.findall(r"data:image/png;base64,([^\"]*)", first)
    assert sorted(map(base64.b64decode, pictures)) == sorted(contents.figures.values())


def test_a_long_part_of_a_table_is_only_linked(contents: Contents) -> None:
    """All runs of a long study are shown, whatever its cells are."""
    parts = [("runs", "", 3), *(("cell", task, 300) for task in "abc"), ("cell", "d", 401)]
    long = {
        "statistics": [{"of": of, "task": t, "a": f"{of} {t}{row}"} for of, t, count in parts for row in range(count)]
    }
    found = render(replace(contents, tables=long))
    assert "1,304 rows" in found
    assert re.findall(r">(?:runs|cell) [a-d]?(?:0|2|299|400)<", found) == [
        *(">runs 0<", ">runs 2<"),
        *(f">cell {task}{row}<" for task in "abc" for row in (0, 2, 299)),
    ]
    assert re.findall(r"<p>(.*), too many for this page; see the CSV file.</p>", found) == ["d, cell: 401 rows"]


def test_layers_that_collapsed_are_named(tmp_path: Path) -> None:
    gone = [{"layer": name, "weights": 9, "zero_weights": 9 if name == LAYERS[3] else 1} for name in LAYERS]
    rows = Rows([record("isp", "0.9000", layers=gone), record("lth", "0.9000")], tmp_path)
    found = render(
        Contents(rows.metrics, layers=rows.layers, tables={"similarity": text(tables.similarity_csv(rows.similarity))})
    )
    assert "b on t, isp at 0.9, seed 0: 1 c_fc" in found


def test_every_figure_and_section_has_its_place() -> None:
    placed = [name for section in SECTIONS for name in section.figures]
    assert set(FIGURES) == {
        name for name in FIGURES if any(name == key or name.startswith(f"{key}_") for key in placed)
    }
    assert (
        len({section.id for section in SECTIONS} | {"verdict", "settings", "provenance", "main", "more"})
        == len(SECTIONS) + 5
    )


# --- the verdict ------------------------------------------------------------------------------------------------------


def the(metrics: list[Row], reference: str = "isp_n4") -> Verdict:
    (found,) = verdicts(metrics, reference)
    return found


def test_the_verdict_has_the_numbers_of_the_table(rows: Rows, contents: Contents) -> None:
    ((header, body),) = tables.scores(rows.metrics)
    found = the(rows.metrics)
    shown = {line.variant: line for line in (*found.dense, *found.pruned)}
    for variant, *texts, steps in body:
        by_sparsity = dict(zip(header[1:-1], texts, strict=True))
        own = {f"{float(sparsity):g}": score.text for sparsity, score in shown[variant].scores.items()}
        assert own == {sparsity: text for sparsity, text in by_sparsity.items() if text}
        assert f"{shown[variant].steps:,.0f}" == steps
    page = render(contents)
    (table,) = re.findall(r"<table class=\"verdict.*?</table>", page, re.S)
    assert sorted(re.findall(r"\d+\.\d+ / \d+\.\d+", table)) == sorted(
        text for _, *texts, _ in body for text in texts if text
    )


@pytest.mark.parametrize("study", ["quick", "full", "code", "ablation_rule", "soups"])
def test_reference_studies(study: str, tmp_path: Path) -> None:
    folder = ROOT / "docs" / "results" / study
    metrics = read_csv(folder / "metrics.csv", "collect")
    for found, (_, body) in zip(verdicts(metrics), tables.scores(list(metrics)), strict=True):
        texts = {score.text for line in (*found.dense, *found.pruned) for score in line.scores.values()}
        assert texts == {text for _, *cells, _ in body for text in cells if text}
    found_files = (path for pattern in ("*.*", "tables/*.*", "figures/*.*") for path in folder.glob(pattern))
    # of plan.json only what the page shows of it, tables/plan.md, is an input
    inputs = sorted(path for path in found_files if path.suffix != ".html" and path.name != "plan.json")
    page(inputs, tmp_path / "report.html", CAPTIONS)
    Parsed((tmp_path / "report.html").read_text())


def test_marks_by_hand(rows: Rows) -> None:
    found = the(rows.metrics)
    assert found.sparsities == ("0.4000", "0.5000")
    assert [line.variant for line in found.dense] == ["dense"]
    best = {(line.variant, sparsity) for line in found.pruned for sparsity, score in line.scores.items() if score.best}
    assert best == {("lth", "0.4000"), ("isp_n0", "0.5000"), ("isp_n4", "0.5000")}
    assert not any(score.matching for line in found.pruned for score in line.scores.values())
    assert (found.level_bar, found.pruned[0].scores["0.4000"].bar) == (100, 0)
    assert {line.variant: line.of_dense for line in found.pruned} == {
        **{"one_shot": 1, "isp_n0": 1.5, "isp_n4": 1.5, "lth": 1.5},
    }


def test_what_reaches_the_dense_model(tmp_path: Path) -> None:
    scores = {"a": 97.9, "b": 97.9999, "c": 99.0}  # recorded to four decimals: b is as good
    records = [record("dense", "0.0000", validation=98.0, finding=cost(0))]
    records += [record(name, "0.5000", validation=score) for name, score in scores.items()]
    rows = Rows([record("scratch", "0.0000", validation=70.0, method="dense"), *records], tmp_path)
    (found,) = verdicts(rows.metrics)
    assert [line.scores["0.5000"].matching for line in found.pruned] == [False, True, True]
    assert found.level is not None
    assert found.level.variant == "dense"
    assert "1.00 points above <code>dense</code> (98.00)" in found.sentences[0]


def numbers(sentence: str) -> list[str]:
    """The scores and differences that a sentence names."""
    return re.findall(r"[+−]?\d+\.\d\d|\d+ %", sentence)


def named(sentence: str) -> list[str]:
    """The variants that a sentence names."""
    return re.findall(r"<code>(.*?)</code>", sentence)


def test_sentences_by_hand(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    """Of seeds 0, 1 and 2: dense 98, 99, 100; one_shot 92, 94, 96; isp 95, 98, 101 and 93, 96, 99; lth 97."""
    sentences = the(Rows(study([0, 1, 2]), tmp_path).metrics).sentences
    assert [numbers(sentence) for sentence in sentences] == [
        ["40 %", "98.00", "3.00", "1.00", "99.00", "1.00"],
        ["50 %", "96.00", "3.00", "3.00", "99.00", "1.00"],
        ["40 %", "98.00", "3.00", "+4.00", "+1.00", "−1.00"],
        ["50 %", "96.00", "3.00", "−3.00"],
    ]
    assert [named(sentence) for sentence in sentences] == [
        ["isp_n0", "isp_n4", "dense", "lth"],
        ["isp_n0", "isp_n4", "dense"],
        ["isp_n4", "one_shot", "lth", "dense"],
        ["isp_n4", "dense"],
    ]
    golden("page_sentences", "\n".join(sentences) + "\n")


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_one_or_two_seeds_claim_nothing(seeds: list[int], tmp_path: Path) -> None:
    found = the(Rows(study(seeds), tmp_path).metrics)
    assert not any("deviations" in sentence or "±" in sentence for sentence in found.sentences)
    assert not Score((90.0, 91.0)).level_with(Score((90.0, 91.0, 92.0)))
    assert Score((90.0, 91.0, 92.0)).level_with(Score((92.0, 92.0, 92.0)))
    assert not Score((90.0, 91.0, 92.0)).level_with(Score((92.1, 92.1, 92.1)))


def test_seeds_are_counted(rows: Rows, tmp_path: Path) -> None:
    assert seeds_note(rows.metrics, False).startswith("n = 2 seeds, whose scores are shown")
    assert seeds_note(rows.metrics, False).endswith("No intervals are given.")
    assert seeds_note(rows.metrics, True).endswith("Intervals are under Statistics.")
    uneven = Rows([*study([0]), record("lth", "0.4000", seed=1)], tmp_path).metrics
    assert seeds_note(uneven, False).startswith("n = 1 to 2 seeds")
    assert seeds_note(Rows(study([3]), tmp_path).metrics, False).startswith("n = 1 seed: ")
    assert "±" not in seeds_note(rows.metrics, False)
    assert seeds_note(Rows(study([0, 1, 2]), tmp_path).metrics, False).startswith(
        "n = 3 seeds; ± is one sample standard "
    )


def test_the_reference(rows: Rows) -> None:
    assert "<code>isp_n4</code> at 40 %: 95.00 / 98.00" in render(Contents(rows.metrics, reference="isp_n4"))
    assert "</code> at 40 %: 9" not in render(Contents(rows.metrics))


SOUPS = (
    *(("finetuned", "0.0000", 96.0, "dense"), ("finetuned", "0.0000", 97.0, "dense")),
    *(("soup", "0.0000", 97.5, "soup"), ("soup", "0.0000", 98.5, "soup")),
    *(("instant", "0.0000", 96.0, "instant"), ("instant", "0.0000", 97.2, "instant")),
    *(("soup", "0.8000", 90.0, "soup"), ("soup", "0.8000", 91.0, "soup")),
    *(("one_shot", "0.8000", 88.0, "one_shot"), ("one_shot", "0.8000", 89.0, "one_shot")),
)


def test_dense_soups_are_compared_at_0(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    """A soup that also ran sparse is there twice."""
    records = [
        record(name, sparsity, index % 2, score, method=method)
        for index, (name, sparsity, score, method) in enumerate(SOUPS)
    ]
    rows = Rows(records, tmp_path)
    found = the(rows.metrics, "soup")
    assert found.sparsities == ("0.8000",)
    assert [(line.variant, list(line.scores)) for line in found.dense] == [
        *(("finetuned", ["0.0000"]), ("soup", ["0.0000"]), ("instant", ["0.0000"]))
    ]
    assert [(line.variant, list(line.scores)) for line in found.pruned] == [
        *(("soup", ["0.8000"]), ("one_shot", ["0.8000"]))
    ]
    marks = [(score.best, score.matching) for line in found.dense for score in line.scores.values()]
    assert marks == [(False, False), (True, True), (False, True)]  # the lower of two is 96; instant has 96.6
    dense, pruned, *_ = found.sentences
    assert (named(dense), numbers(dense)) == (
        ["soup", "finetuned"],
        ["0 %", "97.50", "98.50", "1.50", "96.00", "97.00"],
    )
    assert (named(pruned)[0], numbers(pruned)[:3]) == ("soup", ["80 %", "90.00", "91.00"])
    golden("page_dense_soups", "\n".join(found.sentences) + "\n")
    page = render(Contents(rows.metrics))
    assert re.search(r"★ best</span> <span class=\"mark matching\">= dense</span>\s*97.50 / 98.50", page)


def test_a_model_from_scratch_is_no_rival_of_the_dense_one(tmp_path: Path) -> None:
    dense = [record("dense", "0.0000", validation=90.0), record("dense_from_scratch", "0.0000", validation=80.0)]
    found = the(Rows([*dense, record("isp", "0.5000", validation=85.0)], tmp_path).metrics)
    assert not any(score.best or score.matching for line in found.dense for score in line.scores.values())
    assert not any("at 0 %" in sentence for sentence in found.sentences)


@pytest.mark.parametrize(("score", "guessed"), [(50.0, True), (50.2, True), (50.3, False)])
def test_guessing_is_named_and_nothing_marked(
    tmp_path: Path, score: float, guessed: bool, golden: Callable[[str, str], None]
) -> None:
    """The most frequent label is 50.2 % of the examples."""
    records = [
        record(name, sparsity) | {"validation": {"accuracy": value, "majority": 50.2}}
        for name, sparsity, value in (("dense", "0.0000", score), ("isp", "0.5000", 60.0), ("lth", "0.5000", 40.0))
    ]
    rows = Rows(records, tmp_path)
    found = the(rows.metrics, "isp")
    assert (found.majority, found.guessed) == (50.2, guessed)
    marks = {(mark.best, mark.matching) for line in found.pruned for mark in line.scores.values()}
    assert marks == ({(False, False)} if guessed else {(True, True), (False, False)})
    assert len(found.sentences) == (1 if guessed else 2)
    first = found.sentences[0]
    assert ((named(first), numbers(first)) == (["dense"], [f"{score:.2f}", "50.20"])) == guessed
    golden(f"page_guessing_at_{score:.1f}", "\n".join(found.sentences) + "\n")
    assert '50.20 <span class="unit">always answered</span>' in render(Contents(rows.metrics))
    before = [{key: row[key] for key in row if not key.startswith("majority")} for row in rows.metrics]
    assert not the(before).guessed
    assert "always answered" not in render(Contents(before))


# --- tables and words -------------------------------------------------------------------------------------------------


def test_any_table_by_hand() -> None:
    rows: list[Row] = [
        {"task": "t", "backbone": "b", "variant": name, "sparsity": sparsity, "seeds": "2", "test_mean": mean}
        | {"test_sd": sd, "low": low, "high": "3.5", "finding_flops": flops, "retraining_flops": "2e9", "empty": ""}
        for name, sparsity, mean, sd, low, flops in (
            ("a", "0.0000", "95.0", "0.2", "-1.25", "0"),
            ("b", "0.9000", "-1400.5", "", "", "1e9"),
            ("c", "0.9500", "", "", "", ""),
        )
    ]
    (found,) = grids(rows)
    assert found.title == "b on t"
    assert found.notes == (("seeds", "2"), ("sums", "finding + retraining"))
    assert [column.name for column in found.columns] == ["variant", "sparsity", "test", "interval", "GFLOPs"]
    assert [column.numeric for column in found.columns] == [False, True, True, True, True]
    assert found.body == (
        (
            *(Cell("a"), Cell("0 %", 0), Cell("95.00 ± 0.20", 95), Cell("[−1.250, 3.500]", -1.25)),
            Cell("0.00 + 2.00", 2e9),
        ),
        (
            *(Cell("b"), Cell("90 %", 90), Cell("−1,400.50", -1400.5, " ± 0000"), Cell("—", space=", 000000")),
            Cell("1.00 + 2.00", 3e9),
        ),
        (
            *(Cell("c"), Cell("95 %", 95), Cell("—", space=" ± 0000"), Cell("—", space=", 000000")),
            Cell("—", space=" + 0000"),
        ),
    )


def test_numbers_of_a_column_are_on_one_grid() -> None:
    """One unit, one number of decimals; the first numbers end, and the second begin, at the same distance."""
    costs = ("5.2e10", "1.4e12", "138e9")
    scores, sds = ("95.0", "100.0", "7.25"), ("0.2", "12.5", "")
    rows: list[Row] = [
        {"variant": str(index), "sparsity": sparsity, "score_mean": score, "score_sd": sd, "flops": flops}
        for index, (sparsity, score, sd, flops) in enumerate(
            zip(("0.8000", "0.8322", "0.9375"), scores, sds, costs, strict=True)
        )
    ]
    (found,) = grids(rows)
    assert [column.name for column in found.columns] == ["variant", "sparsity", "score", "GFLOPs"]
    columns = list(zip(*found.body, strict=True))[1:]
    assert [cell.text for cell in columns[0]] == ["80.00 %", "83.22 %", "93.75 %"]
    assert [cell.text for cell in columns[2]] == ["52.0", "1,400.0", "138.0"]
    assert [cell.text for cell in columns[1]] == ["95.00 ± \N{FIGURE SPACE}0.20", "100.00 ± 12.50", "7.25"]
    assert [len(cell.text.partition(".")[2]) + len(cell.space) for cell in columns[1]] == [10, 10, 10]


@pytest.mark.parametrize("study", sorted((ROOT / "docs/results").glob("*/")), ids=lambda path: path.name)
def test_tables_of_committed_results_are_on_one_grid(study: Path, tmp_path: Path) -> None:
    """Check that the numbers of each column have equally many decimals, and end at the same distance from its end."""
    given = {name: study / f"{name}.csv" for name in ("metrics", "timings", "rounds", "layers", "similarity")}
    for name in [name for name, path in given.items() if not path.exists()]:  # too large to be committed
        given[name] = tmp_path / "none" / f"{name}.csv"
        write_csv(given[name], [], COLUMNS[name])
    variants = {row["variant"] for row in read_csv(study / "metrics.csv", "collect")}
    write_tables(**given, reference=min(variants, key=lambda name: (name == "dense", name)), output=tmp_path)
    written = sorted(tmp_path.glob("*.csv"))
    assert len(written) == 6
    for grid in itertools.chain.from_iterable(grids(read_csv(path, "tables")) for path in written):
        for index, column in enumerate(grid.columns):
            cells = [line[index] for line in grid.body if line[index].value is not None]
            firsts = [re.match(r"[\[−]*[\d,]+(\.\d+)?", cell.text) for cell in cells]
            if column.numeric and all(firsts):
                assert len({len(first[1] or "") for first in firsts if first}) == 1, column.name
                rests = {
                    len(cell.text) - first.end() + len(cell.space)
                    for cell, first in zip(cells, firsts, strict=True)
                    if first
                }
                assert len(rests) == 1, column.name


class Boxes(HTMLParser):
    """Elements that may be wider than the screen, and whether each is in a box that scrolls."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[bool] = []
        self.wide: list[tuple[str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("table", "img", "pre"):
            self.wide.append((tag, any(self.open)))
        if tag not in VOID:
            self.open.append("scroll" in (dict(attrs).get("class") or "").split())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # such as a rectangle of a bar

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()


def test_whatever_may_be_wider_than_the_screen_scrolls_and_says_so(contents: Contents) -> None:
    """The script writes a hint above each box that is wider than the screen; without it, there is one for all."""
    found = render(contents)
    wide = Boxes(found).wide
    assert {tag for tag, _ in wide} == {"table", "img", "pre"}
    assert all(inside for _, inside in wide)
    script, style = (
        re.findall(r"<script>(.*?)</script>", found, re.S)[0],
        re.findall(r"<style>(.*?)</style>", found, re.S)[0],
    )
    assert 'querySelectorAll(".scroll, nav ul")' in script
    assert "hint.hidden = box.scrollWidth <= box.clientWidth + 1" in script
    assert all(name in style for name in (".more-right", ".more-below", ".hint"))
    assert re.search(r"<noscript><p class=\"hint\">[^<]*scroll sideways", found)


def test_two_values_are_shown_themselves() -> None:
    rows: list[Row] = [
        {"task": "t", "variant": name, "test_mean": mean, "test_sd": sd, "test_values": values}
        for name, mean, sd, values in (
            ("a", "95.0", "", "94.5 95.5"),
            ("b", "91.0", "1.0", "90 91 92"),
            ("c", "90.0", "", "90"),
            ("d", "", "", ""),
            ("e", "1.0", "", "1 <b>"),
        )
    ]
    (found,) = grids(rows)
    assert [column.name for column in found.columns] == ["variant", "test"]
    assert [line[1] for line in found.body] == [
        Cell("94.50 / 95.50", 95),
        Cell("91.00 ± \N{FIGURE SPACE}1.00", 91),
        *(Cell("90.00", 90, " / 00000"), Cell("—", None, " / 00000"), Cell("1.00", 1, " / 00000")),
    ]


def test_a_table_of_each_task(rows: Rows) -> None:
    made = text(tables.spending_csv(rows.metrics, rows.timings))
    two = grids([*made, *({**row, "task": "u"} for row in made)])
    assert [grid.title for grid in two] == ["b on t", "b on u"]
    assert grids([]) == []
    (one,) = grids([{"variant": "a", "best": "yes"}, {"variant": "b", "best": ""}, {"variant": "c", "best": ""}])
    assert [line[1].text for line in one.body] == ["yes", "—", "—"]


def test_a_table_that_is_only_text(contents: Contents) -> None:
    (found,), legend = of_markdown(PLAN)
    assert [(column.name, column.numeric) for column in found.columns] == [
        *(("rule", False), ("jobs", True), ("FLOP", True), ("taken / planned", True))
    ]
    assert found.body[0] == (Cell("retrain"), Cell("1,400", 1400), Cell("1.2 T", 1.2e12), Cell("1.10", 1.1))
    assert found.body[1][2] == Cell("—")
    assert legend == "Hours of all jobs."
    found_page = render(contents)
    assert 'id="table-plan"' in found_page
    assert "Hours of all jobs." in found_page
    assert "not used" not in found_page
    assert of_markdown("") == ([], "")


def test_numbers_sort_as_numbers(contents: Contents) -> None:
    """The script sorts by data-value, which every cell that is a number has."""
    found = render(contents)
    for value, shown in re.findall(r'<td class="number" data-value="([^"]*)">([^<]*)</td>', found):
        float(value)
        assert shown.strip() not in ("", "—")
    assert 'data-value="300.0">300<' in found


def test_words_for_figures(contents: Contents) -> None:
    for name in FIGURES:
        found = alt.describe(name, contents.drawn.get(name, ()))
        assert found.endswith(".")
        assert "None" not in found
    assert alt.describe("denoisers", []) == "An empty figure: this study has no data for it."
    assert alt.describe("new", [{"a": "1", "b": "2"}]) == "Figure new: 1 values by a, b; see the CSV file."
    assert "300 GFLOPs" in alt.describe("score_by_cost", contents.drawn["score_by_cost"])


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_has_a_caption(figure: str) -> None:
    captions = CAPTIONS["figures"]
    assert len(caption_of(captions, figure=figure)) > 100
    assert caption_of(captions, figure="none") == ""


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage(contents: Contents, tmp_path: Path) -> None:
    """Captions come from Snakemake's report; links lead to the files from where the page is."""
    folder = tmp_path / "of a study"
    (folder / "figures").mkdir(parents=True)
    for name, picture in contents.figures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
        drawn = contents.drawn[name]
        write_csv(folder / "figures" / f"{name}.csv", drawn, list(drawn[0]))
    write_csv(folder / "tables" / "spending.csv", contents.tables["spending"], tables.SPENDING)
    write_csv(folder / "metrics.csv", contents.metrics, list(contents.metrics[0]))
    write_json(folder / "study.json", DESCRIPTION)
    inputs = sorted(path for path in folder.rglob("*.*"))
    page(inputs, folder / "report.html", CAPTIONS)
    found = (folder / "report.html").read_text()
    assert "Effect of the look-ahead copies (denoisers) in each round." in found
    links = {values["href"] for values in Parsed(found).all("a") if not values["href"].startswith("#")}
    assert links == {path.relative_to(folder).as_posix() for path in inputs}
    page(inputs, tmp_path / "elsewhere" / "report.html", CAPTIONS)
    assert 'href="../of%20a%20study/metrics.csv"' in (tmp_path / "elsewhere" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", "{}", "the inputs of a page must include metrics.csv"),
        ("figure.gif", "", "figure.gif: a file of a page must be .json"),
        ("study.json", "{", "study.json: cannot be read"),
        ("a.png", None, "a.png: cannot be read"),
        ("metrics.csv", None, "metrics.csv: no such file; make it first"),
    ],
)
def test_what_is_no_input(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(IspError, match=re.escape(message)):
        page([tmp_path / name], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_settings_are_shown_as_json(contents: Contents) -> None:
    described = json.loads(json.dumps(DESCRIPTION))
    described["variants"]["isp_n4"] |= {"by_backbone": {"b": {"rate": 0.4}}, "steps_of": "lth"}
    found = render(replace(contents, study=described))
    assert "as many steps as <code>lth</code> takes in total" in found
    assert "rate" in found
