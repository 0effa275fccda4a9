from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from isp.config import load_study, parse_study
from isp.errors import ConfigError
from isp.families import make_method

GOOD: dict[str, Any] = {
    "study": "tiny",
    "training": {"clip_tiny": {"steps": 300, "batch_size": 32, "learning_rate": 5e-4}},
    "variants": {
        "dense": {"method": "dense"},
        "isp": {"method": "isp", "settings": {"rate": 0.2}},
        "one_shot": {"method": "one_shot"},
    },
    "grid": [
        {
            "backbone": "clip_tiny",
            "tasks": ["digits"],
            "variants": ["dense", "isp"],
            "sparsities": ["0.8", 0.9],
            "seeds": [0, 1],
        }
    ],
}


def change(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path replaced, or deleted if it is `...`."""
    changed = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = changed
    for part in parents:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return changed


def test_the_cells_of_a_study() -> None:
    groups = list(parse_study(GOOD, "test").groups())
    assert [(g.seed, g.variant, [str(s) for s in g.sparsities]) for g in groups] == [
        (0, "dense", ["0.0000"]),
        (0, "isp", ["0.8000", "0.9000"]),
        (1, "dense", ["0.0000"]),
        (1, "isp", ["0.8000", "0.9000"]),
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sutdy", "x", r"unknown key 'sutdy'; did you mean 'study'\? \(allowed: .*data_root"),
        ("study", ..., "missing key 'study'"),
        ("study", "a/b", "study = 'a/b'"),
        ("threads", 0, "threads = 0: input should be greater than or equal to 1"),
        ("device", "tpu", "device = 'tpu'"),
        ("training.clip_tiny.steps", "many", "training.clip_tiny.steps = 'many'"),
        ("training.clip_tiny.step", 3, r"unknown key training.clip_tiny 'step'; did you mean 'steps'\?"),
        ("training.clip_tiny", ..., "grid.0: unknown backbone under training 'clip_tiny'"),
        ("training.clip_tyni", {"steps": 1, "learning_rate": 1}, "unknown backbone 'clip_tyni'; did you mean"),
        ("variants.isp.settings.rate", 1e-9, "rate = 1e-09: input should be greater than or equal to 0.001"),
        ("variants.isp.method", "ips", r"unknown method 'ips'; did you mean 'isp'\? \(allowed: dense, isp, "),
        (
            "variants.isp.settings.rate",
            1.5,
            r"variants.isp: settings of method 'isp': rate = 1.5: input should be less",
        ),
        ("variants.isp.settings.rates", 0.1, r"unknown key 'rates'; did you mean 'rate'\?"),
        ("variants.isp.settings.rule", "vote", r"rule = 'vote': input should be 'votes', 'mean_score', 'union' or"),
        ("variants.isp.settings.learning_rate_factors", [2, 1], "allowed are two numbers with 0 < low <= high"),
        ("variants.dense.settings", {"rate": 0.1}, r"unknown key 'rate' \(allowed: none\)"),
        ("variants.dense.initial", "imagenet", "variants.dense.initial = 'imagenet'"),
        ("grid.0.backbone", "clip_tyni", r"unknown backbone 'clip_tyni'; did you mean 'clip_tiny'\?"),
        ("grid.0.tasks", ["minst"], r"unknown task 'minst'; did you mean 'mnist'\? \(allowed: digits, mnist\)"),
        ("grid.0.tasks", [], "grid.0.tasks = \\[\\]"),
        ("grid.0.variants", ["isp", "lth"], r"grid.0: unknown variant 'lth' \(allowed: dense, isp, one_shot\)"),
        ("grid.0.sparsities", [1.0], r"sparsity 1.0: outside \[0, 1\)"),
        ("grid.0.sparsities", [0.0], "grid.0: method 'isp' prunes: give sparsities above 0"),
        ("grid.0.sparsities", [0.9, "0.90"], "grid.0: sparsities 0.9000, 0.9000: one is given twice"),
        ("grid.0.seeds", [-1], "grid.0.seeds.0 = -1"),
        ("grid.0.seeds", [0, 0], "the cell clip_tiny/digits/dense/0/0.0000 is there twice"),
        ("tasks", {"digit": {}}, r"unknown task 'digit'; did you mean 'digits'\?"),
        ("tasks", {"digits": {"num_train": 0}}, "tasks.digits.num_train = 0"),
        ("grid", [], "grid = \\[\\]"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_study(change(path, value), "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_study(path) == parse_study(GOOD, "test")
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load_study(tmp_path / "none.yaml")
    for text, message in ((b"a: [", "not YAML"), (b"\xff\xfe", "not YAML"), (b"- a", "a mapping of keys to values")):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            load_study(path)


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_the_study_files_of_the_repository_are_valid(path: Path) -> None:
    assert list(load_study(path).groups())


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_method("isp").settings.rate = 0.5  # type: ignore[attr-defined]
