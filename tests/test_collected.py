"""CSV files of a study: no formula is written, and the columns and numbers that are read are checked."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isp import cli, stages
from isp.errors import IspError
from isp.files import read_csv, stream_csv, write_csv
from isp.reporting import FIGURES
from isp.reporting.collected import COLUMNS, read, stream
from isp.stages.figures import figures
from isp.stages.page import page
from isp.stages.tables import tables
from tests.support.records import Rows, study

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV files of a small study."""
    rows, folder = Rows(study(), tmp_path_factory.mktemp("rows")), tmp_path_factory.mktemp("collected")
    for name, columns in COLUMNS.items():
        write_csv(folder / f"{name}.csv", getattr(rows, name), columns)
    return folder


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("-inf", "'-inf"),
        ("-", "'-"),
        ("-0.5", "-0.5"),
        ("+1e-05", "+1e-05"),
        (-0.5, "-0.5"),
        (-3, "-3"),
        (float("-inf"), "-inf"),
        ("a=b", "a=b"),
        ("", ""),
        (None, ""),
    ],
)
def test_no_cell_is_a_formula(tmp_path: Path, value: Any, written: str) -> None:
    write_csv(tmp_path / "x.csv", [{"a": "x", "b": value}], ["a", "b"])
    assert read_csv(tmp_path / "x.csv", "test") == [{"a": "x", "b": written}]


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted((ROOT / "docs/results").glob("*/metrics.csv")), ids=lambda path: path.parent.name
)
def test_reference_studies_can_be_read(name: Path) -> None:
    for path in name.parent.glob("*.csv"):
        assert read(path, path.stem) == list(stream(path, path.stem)) == read_csv(path, "collect")  # type: ignore[arg-type]


def test_a_long_file_is_not_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n" + "3,4\n" * 10)
    rows = stream_csv(path, "test")
    assert isinstance(rows, Iterator)
    assert next(rows) == {"a": "1", "b": "2"}
    first, *_, last = rows
    assert first["a"] is last["a"]


def changed(folder: Path, tmp_path: Path, name: str, column: str, value: str) -> Path:
    """The folder's files, linked, one of them with another value in its last row."""
    for path in folder.glob("*.csv"):
        os.symlink(path, tmp_path / path.name)
    rows = read_csv(folder / f"{name}.csv", "collect")
    rows[-1][column] = value
    (tmp_path / f"{name}.csv").unlink()
    columns = list(rows[0])
    lines = [",".join(columns), *(",".join(row[each] for each in columns) for row in rows)]
    (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def figure(folder: Path, name: str) -> None:
    files = [folder / f"{each}.csv" for each in COLUMNS if each != "timings"]
    figures(name, *files, folder / "figures")


def all_tables(folder: Path) -> None:
    files = [folder / f"{each}.csv" for each in ("metrics", "timings", "rounds", "layers", "similarity")]
    tables(*files, "one_shot", folder / "tables")


def the_page(folder: Path) -> None:
    page(sorted(folder.glob("*.csv")), folder / "report.html")


@pytest.mark.parametrize(
    ("name", "column", "value", "wanted", "report"),
    [
        ("metrics", "validation", "nan", "a finite number", the_page),
        ("metrics", "validation", "", "a finite number", all_tables),
        ("metrics", "test", "inf", "a finite number", all_tables),
        ("metrics", "sparsity", "half", "a finite number", the_page),
        ("metrics", "sparsity", "1.5", r"a number in \[0, 1\)", the_page),
        ("metrics", "seed", "-1", "a whole number", all_tables),
        ("metrics", "finding_steps", "=1+1", "a finite number", the_page),
        ("timings", "finding_seconds", "1e999", "a finite number", all_tables),
        ("rounds", "round", "x", "a whole number", lambda folder: figure(folder, "denoisers")),
        ("rounds", "changed", "NaN", "a finite number", all_tables),
        ("layers", "weights", "0", "a number above 0", the_page),
        ("layers", "zero_weights", "many", "a finite number", all_tables),
        ("agreement", "agreement", "nan", "a finite number", lambda folder: figure(folder, "agreement_by_layer")),
        ("similarity", "cosine", "\x1b[2J", "a finite number", lambda folder: figure(folder, "mask_similarity")),
        (
            "similarity_layers",
            "kept_a",
            "",
            "a finite number",
            lambda folder: figure(folder, "mask_similarity_by_layer"),
        ),
    ],
)
def test_a_value_that_is_wrong_is_named(
    folder: Path, tmp_path: Path, name: str, column: str, value: str, wanted: str, report: Any
) -> None:
    changed(folder, tmp_path, name, column, value)
    with pytest.raises(IspError, match=rf"{name}.csv: line \d+: {column} must be {wanted}, got ") as caught:
        report(tmp_path)
    assert "stage: collect" in str(caught.value)
    assert not list(tmp_path.glob("figures/*"))
    assert not list(tmp_path.glob("tables/*"))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "no column 'study'"),
        ("a,b\n1,2\n", "no column 'study'"),
        ("study,study\n1,2\n", "no column 'backbone'"),
        ("[1, 2]", "no column 'study'"),
        (",".join(COLUMNS["layers"]) + "\n1,2\n", "line 2 has not as many fields"),
        (",".join((*COLUMNS["layers"], "layer")) + "\n", "a column twice"),
        (",".join(COLUMNS["layers"]) + "\n" + "x" * 200_000, "field larger than field limit"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_files_of_another_shape(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = tmp_path / "layers.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(IspError, match=rf"layers.csv: .*{problem}"):
        read(path, "layers")


@pytest.mark.parametrize("column", ["validation_mean", "sparsity", "variant"])
def test_a_figures_rows_that_are_wrong(folder: Path, tmp_path: Path, column: str) -> None:
    (tmp_path / "figures").mkdir()
    columns = ["task", "backbone", "variant", "sparsity", "validation_mean"]
    values = ["t", "b", "isp", "0.5", "90"]
    path = tmp_path / "figures/score_by_sparsity.csv"
    if column == "variant":
        columns[2], problem = "other", "has no column 'variant'"
    else:
        values[columns.index(column)], problem = "nan", f"line 2: {column} must be a finite number, got 'nan'"
    path.write_text(f"{','.join(columns)}\n{','.join(values)}\n")
    with pytest.raises(IspError, match=rf"score_by_sparsity.csv: .*{problem}"):
        page([folder / "metrics.csv", path], tmp_path / "report.html")


# --- only what is needed is read --------------------------------------------------------------------------------------

NEEDED = {
    "score_by_sparsity": {"metrics"},
    "score_by_cost": {"metrics"},
    "denoisers": {"metrics", "rounds"},
    "agreement_by_layer": {"agreement"},
    "mask_similarity": {"similarity"},
    "mask_similarity_by_sparsity": {"metrics", "similarity"},
    "layer_sparsity": {"layers"},
    "mask_similarity_by_layer": {"metrics", "similarity_layers"},
    "paper_figure_1": {"metrics"},
    "paper_figure_3": {"metrics", "similarity"},
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_reads_what_it_draws(folder: Path, tmp_path: Path, name: str) -> None:
    for each in NEEDED[name]:
        os.symlink(folder / f"{each}.csv", tmp_path / f"{each}.csv")
    figure(tmp_path, name)
    assert (tmp_path / f"figures/{name}.png").exists()


def test_the_page_reads_metrics_and_layers(folder: Path, tmp_path: Path) -> None:
    for name in COLUMNS:
        (tmp_path / f"{name}.csv").write_text("not read")
    for name in ("metrics", "layers"):
        (tmp_path / f"{name}.csv").unlink()
        os.symlink(folder / f"{name}.csv", tmp_path / f"{name}.csv")
    the_page(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert all(f'href="{name}.csv"' in html for name in COLUMNS)


def test_the_page_needs_no_captions(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["page", str(folder / "metrics.csv"), "--output", str(tmp_path / "report.html")])
    assert not caught.value.code
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("stage", stages.NAMES)
def test_an_option_that_is_parsed_has_no_parsed_default(stage: str) -> None:
    """Typer also parses defaults."""
    function = getattr(importlib.import_module(f"isp.stages.{stage}"), stage)
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        [*options] = getattr(parameter.annotation, "__metadata__", ())
        if any(getattr(option, "parser", None) for option in options):
            assert parameter.default in (inspect.Parameter.empty, None), name
