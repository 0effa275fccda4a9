from __future__ import annotations

import numpy as np
import pytest

import isp
from isp.errors import ConfigError
from isp.lazy import torch
from isp.seeds import integer, seed


def test_golden_value() -> None:
    """Seeds must never change between machines or versions: every result depends on them."""
    assert seed("look-ahead", seed=0, round=3, member=2) == seed("look-ahead", member=2, round=3, seed=0)
    assert seed("step", seed=0, step=0) == GOLDEN


def test_axes_matter() -> None:
    seeds = {
        seed("a", x=1),
        seed("b", x=1),
        seed("a", y=1),
        seed("a", x=2),
        seed("a", x="1"),
        seed("a"),
        seed("a", x=1, y=1),
    }
    assert len(seeds) == 7
    assert all(0 <= value < 2**63 for value in seeds)


def test_integers_of_any_kind_are_the_same_seed() -> None:
    for kind in (np.int64, np.int32, np.uint8, torch.tensor):
        assert seed("step", seed=kind(0), step=kind(0)) == GOLDEN
        assert seed("a", x=kind(3)) == seed("a", x=3)
    order, other = isp.BatchOrder(20, 5, 3), isp.BatchOrder(np.int64(20), np.int64(5), np.int64(3))
    for step in range(9):
        assert order(step).tolist() == other(np.int64(step)).tolist()
    drawn = []
    with torch.random.fork_rng():
        for values in ((3, 4), (np.int64(3), np.int32(4))):
            isp.seed_step(*values)
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("value", [1.5, "a", None, True, [1]])
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"seed = .*: must be an integer"):
        isp.BatchOrder(20, 5, value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"seed = .*: must be an integer"):
        isp.seed_step(value, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"step = .*: must be an integer"):
        isp.BatchOrder(20, 5, 0)(value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"n = .*: must be an integer of at least 1"):
        integer("n", value, least=1)
    with pytest.raises(ConfigError, match="n = 0: must be an integer of at least 1"):
        integer("n", 0, least=1)


GOLDEN = 8994605417712677018
