"""`isp.Pruner` in loops that are not ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import isp
from isp import registry
from isp.families import attachable
from tests.support.loops import BATCH, PEAK, STEPS, Loop
from tests.support.models import Noisy, equal, tiny_model

DATA = Noisy()
HEAD = ["head.*"]
ROUNDS = {"rate": 0.4, "segment_fraction": 0.2}
SETTINGS: dict[str, dict[str, Any]] = {
    "isp": {**ROUNDS, "denoisers": 2, "look_ahead_steps": 3},
    "isp_mean": {**ROUNDS, "denoisers": 2, "look_ahead_steps": 3},
    "isp_literal": {**ROUNDS, "denoisers": 1, "look_ahead_steps": 2},
    "isp_code": {"denoisers": 2, "look_ahead_fraction": 0.5},
}
"""Of methods whose defaults are for longer runs."""


def pruned(method: str, **changed: Any) -> tuple[nn.Module, isp.Ticket]:
    model = tiny_model()
    arguments = {"settings": SETTINGS.get(method, {}), "sparsity": "0.8", "steps": STEPS, "batch_size": BATCH}
    arguments |= {"learning_rate": PEAK, "exclude": HEAD, **changed}
    return model, isp.prune(model, DATA, method=method, **arguments)


def looped(method: str, **changed: Any) -> Loop:
    arguments = {"settings": SETTINGS.get(method, {}), "sparsity": "0.8", "exclude": HEAD, **changed}
    return Loop(tiny_model(), DATA, method=method, **arguments)


def same(ours: isp.Ticket, theirs: isp.Ticket) -> None:
    assert equal(ours.mask, theirs.mask)
    assert equal(ours.weights, theirs.weights)
    assert (ours.method, ours.sparsity, ours.rounds) == (theirs.method, theirs.sparsity, theirs.rounds)
    assert (ours.finding, ours.retraining) == (theirs.finding, theirs.retraining)


@pytest.mark.parametrize("method", attachable())
def test_a_loop_like_that_of_prune_gives_its_ticket_to_the_bit(method: str) -> None:
    model, ticket = pruned(method)
    loop = looped(method).run()
    same(loop.pruner.ticket(), ticket)
    assert equal(dict(loop.model.state_dict()), dict(model.state_dict()))
