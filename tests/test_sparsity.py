from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isp.errors import ConfigError
from isp.sparsity import nominal, num_pruned, parse_sparsity, sparsities_to


@pytest.mark.parametrize("value", ["0.9", 0.9, Decimal("0.90"), "0.9000"])
def test_parsing(value: object) -> None:
    assert str(parse_sparsity(value)) == "0.9000"  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["-0", "-0.0", -0.0, 0, "0e5"])
def test_zero_has_one_form(value: object) -> None:
    assert str(parse_sparsity(value)) == "0.0000"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "outside"),
        (-0.1, "outside"),
        ("ninety", "not a number"),
        ("nan", "not a number"),
        (0.12345, "four decimals"),
        ("0." + "5" * 9999, r"^.{0,300}$"),
        ("9" * 9999, r"^.{0,300}$"),
        ("x" * 9999, r"^.{0,300}$"),
    ],
)
def test_what_is_no_sparsity(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sparsity(value)  # type: ignore[arg-type]


def test_counts_are_exact() -> None:
    assert num_pruned(Decimal("0.9000"), 84_934_656) == 76_441_190  # 76,441,190.4
    assert num_pruned(Decimal("0.5"), 3) == 2  # 1.5, to even
    assert 6 * 0.15 < 0.9  # what binary floating point would make of it
    assert nominal(5, 0.15, "original") == Decimal("0.9")


def test_nominal_by_hand() -> None:
    assert [str(nominal(i, 0.2, "remaining")) for i in range(3)] == ["0.2000", "0.3600", "0.4880"]
    assert [str(nominal(i, 0.4, "original")) for i in range(3)] == ["0.4000", "0.8000", "1.0000"]


def test_chains_by_hand() -> None:
    assert sparsities_to(Decimal("0.5"), 0.2, "remaining") == [Decimal(s) for s in ("0.2", "0.36", "0.488", "0.5")]
    assert sparsities_to(Decimal("0.36"), 0.2, "remaining") == [Decimal("0.2"), Decimal("0.36")]
    assert sparsities_to(Decimal("0"), 0.2, "remaining") == []


@given(st.integers(1, 9999), st.integers(1, 99), st.sampled_from(["remaining", "original"]))
def test_chains_rise_and_end_at_the_target(target: int, rate: int, rate_of: str) -> None:
    wanted = Decimal(target) / 10_000
    chain = sparsities_to(wanted, Decimal(rate) / 100, rate_of)  # type: ignore[arg-type]
    assert chain[-1] == wanted
    assert all(before < wanted for before in chain[:-1])
    # Near sparsity 1 a round may prune less than the fourth decimal shows, but never fewer weights than the one before.
    smallest_step = Decimal(rate) / 100 * (1 if rate_of == "original" else 1 - wanted)
    strict = smallest_step > Decimal("0.0001")
    assert all(a < b if strict else a <= b for a, b in pairwise(chain))


def test_a_round_may_be_too_small_for_the_fourth_decimal() -> None:
    chain = sparsities_to(Decimal("0.9909"), 0.01, "remaining")
    assert len(set(chain)) < len(chain)
    assert chain == sorted(chain)
