"""Running statistics: of averages they are those of torch's `update_bn`; frozen norms stay as they are."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import isp
from isp import soups
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import find_tickets, make_method
from isp.losses import default_loss
from isp.norms import BATCHES, Reestimation, check_no_statistics, norms_of, reestimation
from isp.sparsity import parse_sparsity
from isp.tickets import Validation
from isp.training import Trainer, Training, load_weights, make_trainer, state_of
from tests.support.models import equal, tiny_model

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Fixed:
    """80 examples of 6 features and 3 classes."""

    def __init__(self) -> None:
        self.inputs = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
        self.labels = torch.arange(80) % 3

    def __len__(self) -> int:
        return 80

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.labels[indices]


def normed() -> nn.Sequential:
    """A norm that is used once, and one that is used twice in a forward pass."""
    torch.manual_seed(0)
    twice = nn.BatchNorm1d(12)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12), twice, nn.Tanh(), twice, nn.Linear(12, 3)
    )


def trainer_of(model: nn.Module, **training: Any) -> Trainer:
    protocol = Training(**{"steps": 12, "batch_size": 16, "learning_rate": 1e-2, **training})
    names = ["0.weight", "3.weight", "7.weight"]
    return make_trainer(model, Fixed(), default_loss, protocol, names, seed=0)


def naive(trainer: Trainer, weights: Any) -> dict[str, Tensor]:
    """The weights with statistics from torch's own function, over the first epoch."""
    model = normed()
    load_weights(model, weights)
    update_bn([trainer.examples.batch(trainer.order(step))[0] for step in range(5)], model)
    return state_of(model).weights


def test_statistics_are_those_of_update_bn_to_the_bit() -> None:
    trainer = trainer_of(normed())
    estimating = Reestimation(trainer)
    momenta = [norm.momentum for norm in norms_of(trainer.model).values()]
    assert estimating.cost == Cost()
    before = state_of(normed()).weights
    generator = torch.get_rng_state()
    found = estimating(before)
    assert equal(found, naive(trainer, before))
    assert {name for name in found if not torch.equal(found[name], before[name])} == {
        f"{norm}.{name}" for norm in (1, 4) for name in STATISTICS
    }
    assert found["1.num_batches_tracked"] == 5
    assert [norm.momentum for norm in norms_of(trainer.model).values()] == momenta == [0.1, 0.1]
    assert torch.equal(torch.get_rng_state(), generator)
    assert equal(estimating(found), found)
    forward = 2 * 80 * (6 * 12 + 12 * 12 + 12 * 3)
    assert estimating.cost == Cost(samples=2 * 80, flops=2 * forward, sparse_flops=2 * forward)


def test_an_instance_norm_averages_over_batches_and_an_epoch_is_cut_at_a_number_of_batches() -> None:
    model = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3))

    class Signals(Fixed):
        def __len__(self) -> int:
            return 80

        def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            return self.inputs[indices].view(-1, 2, 3), self.labels[indices]

    training = Training(steps=3, batch_size=1, learning_rate=1e-2)
    trainer = make_trainer(model, Signals(), default_loss, training, ["2.weight"], seed=0)
    found = Reestimation(trainer)(state_of(model).weights)
    inputs = torch.stack([trainer.examples.batch(trainer.order(step))[0][0] for step in range(BATCHES)])
    torch.testing.assert_close(found["0.running_mean"], inputs.mean((0, 2)))
    torch.testing.assert_close(found["0.running_var"], inputs.var(2).mean(0))


METHODS: list[tuple[str, str, dict[str, Any]]] = [
    ("uniform_soup", "0", {"members": 3}),
    ("uniform_soup", "0.6", {"members": 3, "masks": "own"}),
    ("greedy_soup", "0.6", {"members": 3}),
    ("lottery_pools", "0.6", {"rate": 0.4, "coefficients": [0.3, 0.7]}),
    ("instant_model_soup", "0", {"subnetworks": 2, "look_ahead_steps": 2, "coefficients": [0, 0.5, 1]}),
]


@pytest.mark.parametrize(("method", "sparsity", "settings"), METHODS)
def test_whatever_is_averaged_has_statistics_of_its_own(method: str, sparsity: str, settings: dict[str, Any]) -> None:
    trainer, judged = trainer_of(normed()), []

    def score(weights: Any) -> float:
        judged.append({name: tensor.clone() for name, tensor in weights.items()})
        return float(len(judged))  # every later one is better, so all are taken

    validation = Validation(score=score, cost=Cost(samples=1000))
    start = state_of(normed())
    (ticket,) = find_tickets(make_method(method, settings), trainer, start, [parse_sparsity(sparsity)], validation)
    members = settings.get("members", 0)
    own = {"uniform_soup": 0, "greedy_soup": members, "lottery_pools": 1, "instant_model_soup": 1}[method]
    averages = judged[own:]
    mixed = averages[::2] if method == "instant_model_soup" else averages  # every second one is a subnetwork itself
    assert all(equal(weights, naive(trainer, weights)) for weights in mixed)
    if method != "instant_model_soup":
        assert equal(ticket.weights, naive(trainer, ticket.weights))
    estimates = {"uniform_soup": 1, "greedy_soup": members, "lottery_pools": 2 * 2 * 2, "instant_model_soup": 2}[method]
    if method == "lottery_pools":
        estimates = 2 * len(ticket.rounds[-1]["pooled"])
    trained = ticket.cost.steps * 16
    assert ticket.cost.samples == trained + 1000 * len(judged) + 80 * estimates


def test_one_member_and_models_without_statistics_are_left_alone() -> None:
    trainer = trainer_of(normed())
    zero = parse_sparsity("0")
    (alone,) = find_tickets(make_method("uniform_soup", {"members": 1}), trainer, state_of(normed()), [zero])
    (dense,) = find_tickets(make_method("dense"), trainer, state_of(normed()), [zero])
    assert equal(alone.weights, dense.weights)
    assert alone.cost == dense.cost
    plain = nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    training = Training(steps=3, batch_size=16, learning_rate=1e-2)
    assert reestimation(make_trainer(plain, Fixed(), default_loss, training, ["0.weight"], seed=0)) is None


def test_frozen_norms_stay_frozen_and_modes_come_back() -> None:
    data = Fixed()
    protocol: dict[str, Any] = {"steps": 6, "batch_size": 16, "learning_rate": 1e-2, "sparsity": 0.5}
    methods: dict[str, dict[str, Any]] = {
        "one_shot": {},
        "snip": {},
        "isp": {"rate": 0.5, "denoisers": 1, "look_ahead_steps": 2},
        "uniform_soup": {"members": 2},
    }
    for method, settings in methods.items():
        model = normed()
        model(data.inputs)  # statistics of some data
        model[1].eval()
        before = copy.deepcopy(model.state_dict())
        ticket = isp.prune(model, (data.inputs, data.labels), method=method, settings=settings, **protocol)
        assert all(torch.equal(ticket.weights[f"1.{name}"], before[f"1.{name}"]) for name in STATISTICS)
        assert not torch.equal(ticket.weights["4.running_mean"], before["4.running_mean"])
        assert [module.training for module in model] == [index != 1 for index in range(8)]


def test_a_model_in_evaluation_mode_is_trained_in_training_mode() -> None:
    data = Fixed()
    protocol: dict[str, Any] = {
        "steps": 6,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "sparsity": 0.5,
        "method": "one_shot",
    }
    a, b = (isp.prune(model, (data.inputs, data.labels), **protocol) for model in (normed(), normed().eval()))
    assert equal(a.weights, b.weights)
    model = nn.Sequential(nn.Dropout(0.5).eval(), normed())
    with pytest.warns(UserWarning, match="1 dropout modules, such as '0', are in evaluation mode and stay in it"):
        isp.prune(model, (data.inputs, data.labels), **protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isp.prune(model.eval(), (data.inputs, data.labels), **protocol)


def test_stages_that_average_refuse_statistics() -> None:
    check_no_statistics(state_of(tiny_model()).weights)
    with pytest.raises(ConfigError, match=r"'1.running_mean': an average of models with running statistics needs them"):
        check_no_statistics(soups.average([state_of(normed()).weights]))
