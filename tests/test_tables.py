from typing import Any

import pytest

from isp import tables

COST = {"steps": 100, "samples": 3200, "flops": 5_000_000_000, "sparse_flops": 1_000_000_000}


def row(seed: int, validation: float, sparsity: str = "0.9000", **more: Any) -> dict[str, Any]:
    record = {"changed": 0.012 + seed / 100}
    named = {"study": "s", "backbone": "b", "task": "t", "variant": "isp", "method": "isp"}
    counts = {"zero_weights": 9, "prunable_weights": 10, "measured": {"seconds": 4.4}}
    return {
        **named,
        **counts,
        "seed": seed,
        "sparsity": sparsity,
        "validation": validation,
        "finding": COST,
        "retraining": COST,
        "rounds": [record],
        **more,
    }


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (1.95e14, "195 T"), (2e9, "2 G"), (1.234e18, "1.23 E"), (0, "0")]
)
def test_counts(value: float, text: str) -> None:
    assert tables.si(value) == text


def test_mean_and_sample_deviation() -> None:
    assert tables.mean_and_deviation([1.0]) == "1.00"
    assert tables.mean_and_deviation([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


def test_a_line_by_hand() -> None:
    (line,) = tables.lines([row(0, 90.0), row(1, 92.0)])[("t", "b")]
    assert line == ["isp", "0.9", "2", "91.00 ± 1.41", "", "100", "100", "10 G", "2 G", "4", "1.2–2.2 %"]
    (line,) = tables.lines([row(0, 90.0, test=80.0)])[("t", "b")]
    assert line[3:5] == ["90.00", "80.00"]


def test_the_summary_and_the_text() -> None:
    rows = [row(0, 95.0, "0.8000"), row(0, 90.0)]
    assert tables.summary(rows).splitlines()[::2] == ["| b on t | 0.8 | 0.9 | steps |", "| isp | 95.00 | 90.00 | 200 |"]
    first, header, *_ = tables.text(rows).splitlines()
    assert first == "b on t"
    assert "test" not in header.split()  # an empty column


def test_metrics_hold_nothing_that_was_measured() -> None:
    flat = tables.flat(row(0, 90.0))
    assert flat["finding_steps"] == 100
    assert not {"measured", "rounds", "seconds"} & flat.keys()
