"""JSON files of another shape than they should be: an error that names file and key, never a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from isp.errors import IspError
from isp.files import read_json, write_json
from isp.shapes import Comparison, Description, Manifest, Plan, Record, mismatch
from isp.stages._work import check_manifest
from isp.stages.collect import Blocks, collect
from isp.stages.page import page
from tests.support.records import record, way

ROOT = Path(__file__).parent.parent
EVENTS = {"rounds": way("0.9000")}
OVERLAP = {"weights": 9, "kept_a": 1, "kept_b": 1, "kept_both": 1, "cosine": 1.0, "jaccard": 1, "hamming": 0}
PAIR = {"variant_a": "a", "variant_b": "b", "sparsity": "0.9000", **OVERLAP, "layers": [{"layer": "l", **OVERLAP}]}
WHOLE: dict[Any, Any] = {
    Record: record("isp", "0.9000", **EVENTS),
    Comparison: {"study": "s", "backbone": "b", "task": "t", "seed": 0, "pairs": [PAIR]},
    Plan: json.loads((ROOT / "docs/results/quick/plan.json").read_text()),
    Description: json.loads((ROOT / "docs/results/quick/study.json").read_text()),
    Manifest: {"files": [{"file": "me/x/a.parquet", "bytes": 3, "sha256": "0" * 64}]},
}


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a value, of lists to the first only."""
    if isinstance(content, dict):
        return [path, *(each for key, value in content.items() for each in places(value, (*path, key)))]
    return [path, *(places(content[0], (*path, 0)) if isinstance(content, list) and content else [])]


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return value
    changed = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize("shape", WHOLE)
def test_what_is_whole_is_accepted(shape: Any) -> None:
    assert mismatch(WHOLE[shape], shape) == ""
    assert mismatch({**WHOLE[shape], "more": 1}, shape) == ""


@pytest.mark.parametrize(
    ("shape", "path", "value"),
    [
        *((shape, (), value) for shape in WHOLE for value in ([], None, 7, "text")),
        (Record, ("seed",), "0"),
        (Record, ("seed",), True),
        (Record, ("seed",), -1),
        (Record, ("sparsity",), 0.9),
        (Record, ("sparsity",), "../../0.9"),
        (Record, ("validation", "accuracy"), float("nan")),
        (Record, ("test", "accuracy"), float("inf")),
        (Record, ("test", "accuracy"), "=1+1"),
        (Record, ("test",), {"majority": 1.0}),
        (Record, ("validation",), {"accuracy": 1.0}),
        (Record, ("metrics",), []),
        (Record, ("metrics",), "accuracy"),
        (Record, ("finding", "flops"), None),
        (Record, ("retraining",), []),
        (Record, ("layers",), {}),
        (Record, ("layers", 0, "weights"), 0),
        (Record, ("layers", 0), {"layer": "a"}),
        (Record, ("rounds", 0), {"changed": 0.1}),
        (Record, ("rounds", 0, "agreement"), float("nan")),
        (Record, ("rounds", 0, "agreement_by_layer"), []),
        (Record, ("collapsed",), 3),
        (Record, ("measured", "device"), 3),
        (Comparison, ("pairs", 0, "cosine"), float("nan")),
        (Comparison, ("pairs", 0, "layers", 0), 1),
        (Plan, ("rules", 0, "jobs"), 1.5),
        (Plan, ("parallel",), 0),
        (Plan, ("total",), None),
        (Description, ("study",), []),
        (Description, ("variants", "isp"), "isp"),
        (Description, ("provenance",), 3),
        (Manifest, ("files", 0, "sha256"), "0" * 63),
        (Manifest, ("files", 0, "bytes"), "3"),
        (Manifest, ("files", 0), "a.parquet"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, shape: Any, path: tuple[Any, ...], value: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(put(WHOLE[shape], path, value)))
    with pytest.raises(IspError) as caught:
        read_json(tmp_path / "x.json", "stage", shape)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/x.json: ")
    assert all(str(key) in text for key in path)
    assert text.endswith("delete it and remake it (stage: stage)")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "nul", "\x00", '{"a": 1} x'])
def test_what_is_no_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(IspError, match=r"x.json: cannot be read"):
        read_json(tmp_path / "x.json", "stage")


# Whatever is at a place, a report is made or an error names the file.
ODD = (None, [], {}, "text", -1, float("nan"), [[]], {"a": []})


def test_records_with_anything_anywhere(tmp_path: Path) -> None:
    whole = record("isp", "0.9000", **EVENTS)
    path = tmp_path / "runs/b/t/seed0/isp/0.9000/metrics.json"
    cells = Blocks([{"backbone": "b", "tasks": ["t"], "seeds": [0], "variants": {"isp": ["0.9000"]}}])
    write_json(path, whole)
    collect(tmp_path / "runs", cells, tmp_path / "whole")
    refused = []
    for place in places(whole):
        for value in ODD:
            write_json(path, put(whole, place, value))
            try:
                collect(tmp_path / "runs", cells, tmp_path / "out")
            except IspError as error:
                refused.append(str(error))
    assert len(refused) > 200
    assert all("metrics.json: " in text for text in refused)


def test_descriptions_with_anything_anywhere(tmp_path: Path) -> None:
    metrics = ROOT / "docs/results/quick/metrics.csv"
    whole = {key: value for key, value in WHOLE[Description].items() if key != "variants"}
    whole["variants"] = {"isp": next(iter(WHOLE[Description]["variants"].values()))}
    few = tmp_path / "metrics.csv"
    few.write_text("\n".join(metrics.read_text().splitlines()[:3]) + "\n")
    refused = []
    for place in places(whole)[::4]:
        write_json(tmp_path / "study.json", put(whole, place, [[]]))
        try:
            page([few, tmp_path / "study.json"], tmp_path / "report.html")
        except IspError as error:
            refused.append(str(error))
    assert refused
    assert all("study.json: " in text for text in refused)


def test_a_comparison_of_layers_that_no_record_has(tmp_path: Path) -> None:
    path = tmp_path / "runs/b/t/seed0/similarity.json"
    write_json(path, WHOLE[Comparison])
    write_json(tmp_path / "runs/b/t/seed0/isp/0.9000/metrics.json", record("isp", "0.9000"))
    cells = Blocks([{"backbone": "b", "tasks": ["t"], "seeds": [0], "variants": {"isp": ["0.9000"]}}])
    with pytest.raises(IspError, match=r"similarity.json: compares layer 'l', which no record of b on t has"):
        collect(tmp_path / "runs", cells, tmp_path / "out", [path])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../secret", "a/../../secret", "a\0b", ""])
def test_a_manifest_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "m.json", {"files": [{"file": name, "bytes": 1, "sha256": "0" * 64}]})
    with pytest.raises(IspError, match=r"manifest: file name .*; fetch it again"):
        check_manifest(tmp_path / "m.json", tmp_path / "data")
