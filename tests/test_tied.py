"""A parameter under several names (tied layers, repeated blocks) is one parameter wherever names of weights occur."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import isp
from isp import masks
from isp.errors import ConfigError
from isp.examples import make_examples
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.tensors import by_all_names, by_first_name, first_names, overlap, saved_names, tensors_of
from isp.training import Training, TrainingDiverged, load_weights, make_trainer, state_of
from tests.support.models import DATA, WIDTH, WORDS, TiedHead, equal


class Repeated(nn.Module):
    """One block under three names, with a norm that has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))] * 3)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embedding(inputs).mean(1)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.head(hidden)


def build(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def test_names_of_a_tied_parameter() -> None:
    assert first_names(TiedHead()) == {
        "embedding.weight": "embedding.weight",
        **{f"middle.{name}": f"middle.{name}" for name in ("weight", "bias")},
        "head.weight": "embedding.weight",
    }
    repeated = first_names(Repeated())
    assert {first for name, first in repeated.items() if name.endswith("running_mean")} == {"layers.0.1.running_mean"}
    assert list(tensors_of(TiedHead())) == ["embedding.weight", "middle.weight", "middle.bias"]
    assert set(state_of(Repeated()).weights) == set(repeated.values())
    views = nn.Module()
    views.a = nn.Parameter(torch.ones(2, 3))
    views.b = nn.Parameter(views.a.detach())  # another parameter, the same memory
    views.c = nn.Parameter(views.a.detach().view(3, 2))  # the same memory, but another tensor
    views.empty, views.nothing = nn.Parameter(torch.ones(0, 2)), nn.Parameter(torch.ones(0, 2))
    assert first_names(views) == {"a": "a", "b": "a", "c": "c", "empty": "empty", "nothing": "nothing"}


def test_weights_under_any_name_are_loaded_and_two_values_for_one_parameter_refused() -> None:
    model = TiedHead()
    before = state_of(model)
    one = {name: torch.full_like(tensor, 2.0) for name, tensor in before.weights.items()}
    other_name = {**one, "head.weight": one["embedding.weight"]}
    del other_name["embedding.weight"]
    for weights in (one, other_name, by_all_names(one, model)):
        load_weights(model, before.weights)
        load_weights(model, weights)
        assert all((tensor == 2).all() for tensor in model.state_dict().values())
    load_weights(model, before.weights)
    message = "the weights: 'embedding.weight' and 'head.weight' are one parameter of the model, but they differ here"
    with pytest.raises(ConfigError, match=message):
        load_weights(model, {**one, "head.weight": torch.zeros(WORDS, WIDTH)})
    with pytest.raises(ConfigError, match=r"'embedding.weight' has shape missing, in the model \(30, 12\)"):
        load_weights(model, {name: tensor for name, tensor in one.items() if name != "embedding.weight"})
    assert equal(state_of(model).weights, before.weights)


POOLED: list[tuple[str, dict[str, Any]]] = [
    ("uniform_soup", {"members": 3, "masks": "own"}),
    ("uniform_soup", {"members": 3}),
    ("greedy_soup", {"members": 3, "masks": "own"}),
    ("lottery_pools", {"rate": 0.3, "coefficients": [0.5, 0.9]}),
    ("isp", {"rate": 0.4, "denoisers": 1, "look_ahead_steps": 2}),
    ("synflow", {"rounds": 3}),
    ("snip", {}),
]


@pytest.mark.parametrize("kind", [TiedHead, Repeated])
@pytest.mark.parametrize(("method", "settings"), POOLED)
def test_tickets_of_tied_weights_are_exactly_sparse_on_the_model_and_on_disk(
    kind: Callable[[], nn.Module], method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    def small(model: nn.Module) -> float:  # interpolation makes weights smaller, so this takes candidates
        return -sum(float(parameter.detach().square().sum()) for parameter in model.parameters())

    patterns = ["embedding.weight", "middle.weight"] if kind is TiedHead else ["layers.*.weight", "head.weight"]
    model = build(kind)
    protocol = {"steps": 30, "batch_size": 16, "learning_rate": 5e-2}
    ticket = isp.prune(
        model, DATA, sparsity=0.5, method=method, settings=settings, prunable=patterns, validation=small, **protocol
    )
    assert set(ticket.weights) == set(model.state_dict())
    assert equal(ticket.weights, model.state_dict())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    model.load_state_dict(ticket.weights)
    total = sum(model.get_parameter(name).numel() for name in prunable_names(model, patterns))
    assert masks.num_weights(ticket.mask) == total == WIDTH * (WORDS + WIDTH)
    isp.save_ticket(tmp_path / "ticket", ticket)
    fresh = build(kind)
    isp.load_ticket(tmp_path / "ticket", fresh)
    for each in (model, fresh):
        assert sum(int((each.get_parameter(name) == 0).sum()) for name in ticket.mask) == total // 2


def test_a_ticket_file_with_two_values_or_two_masks_of_one_parameter_is_refused(tmp_path: Path) -> None:
    class Apart(TiedHead):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight = nn.Parameter(self.embedding.weight.detach() + 1)

    protocol = {"steps": 2, "batch_size": 16, "learning_rate": 1e-2, "method": "one_shot", "sparsity": 0.5}
    apart = isp.prune(Apart(), DATA, prunable=["*.weight"], **protocol)
    isp.save_ticket(tmp_path / "apart", apart)
    tied = build(TiedHead)
    before = state_of(tied)
    with pytest.raises(
        ConfigError, match=r"the mask of .*apart: 'embedding.weight' and 'head.weight' are one parameter"
    ):
        isp.load_ticket(tmp_path / "apart", tied)
    middle = {"middle.weight": apart.mask["middle.weight"]}
    isp.save_ticket(tmp_path / "apart", replace(apart, mask=middle))
    with pytest.raises(ConfigError, match=r"the ticket .*: 'embedding.weight' and 'head.weight' are one parameter of"):
        isp.load_ticket(tmp_path / "apart", tied)
    assert equal(state_of(tied).weights, before.weights)
    together = isp.prune(build(TiedHead), DATA, prunable=["*.weight"], **protocol)
    isp.save_ticket(tmp_path / "together", together)
    untied = Apart()
    isp.load_ticket(tmp_path / "together", untied)  # the file has both names
    assert equal(untied.state_dict(), together.weights)


def test_a_mask_under_another_name_of_a_tied_parameter() -> None:
    model = build(TiedHead)
    training = Training(steps=4, batch_size=16, learning_rate=1e-2)
    trainer = make_trainer(
        model, make_examples(DATA, model, "train", None), default_loss, training, ["embedding.weight"], seed=0
    )
    kept = torch.arange(WORDS * WIDTH).view(WORDS, WIDTH) % 2 == 0
    expected, cost = trainer.run(state_of(model), 4, {"embedding.weight": kept})
    for mask in ({"head.weight": kept}, {"head.weight": kept, "embedding.weight": kept.clone()}):
        state, same_cost = trainer.run(state_of(build(TiedHead)), 4, mask)
        assert equal(state.weights, expected.weights)
        assert same_cost == cost
    with pytest.raises(ConfigError, match=r"the mask: 'head.weight' and 'embedding.weight' are one parameter"):
        trainer.run(expected, 4, {"head.weight": kept, "embedding.weight": ~kept})
    mask = by_first_name({"head.weight": kept, "elsewhere": kept}, model, "the mask")
    assert list(mask) == ["embedding.weight", "elsewhere"]


def test_the_last_good_state_of_a_tied_model_has_all_names() -> None:
    with pytest.raises(TrainingDiverged) as caught:
        isp.prune(
            build(TiedHead), DATA, sparsity=0.5, method="one_shot", steps=5, batch_size=16, learning_rate=1e30,
            clip_norm=None,
        )  # fmt: skip
    TiedHead().load_state_dict(caught.value.state.weights)


def test_two_parameters_over_one_memory_are_refused() -> None:
    def model(view: Callable[[Tensor], Tensor]) -> nn.Module:
        layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        layers[1].weight = nn.Parameter(view(layers[0].weight.detach()))
        return layers

    for view in (lambda weight: weight, Tensor.t):
        with pytest.raises(ConfigError, match=r"'0.weight' and '1.weight' are two parameters over the same memory"):
            prunable_names(model(view))
    frozen = model(Tensor.t)
    frozen[1].requires_grad_(False)
    assert prunable_names(frozen) == ["0.weight"]


def test_memory_that_tensors_share() -> None:
    whole = torch.zeros(4, 6)
    assert overlap(whole[:2], whole[1:])
    assert not overlap(whole[:2], whole[2:])
    assert not overlap(whole[:, :3], whole[:, 3:])  # interleaved
    assert overlap(whole[:, :4], whole[:, 3:])
    assert not overlap(whole, torch.zeros(4, 6))
    assert not overlap(whole[:0], whole)


# --- modules that rename their state ----------------------------------------------------------------------------------


def checkpointed(wrap: Callable[[nn.Module], nn.Module] = checkpoint_wrapper) -> nn.Sequential:
    """Two layers, the first of them in a block that saves memory by computing its activations twice."""
    torch.manual_seed(0)
    return nn.Sequential(wrap(nn.Sequential(nn.Linear(8, 16), nn.ReLU())), nn.Linear(16, 3))


INPUTS = (torch.randn(64, 8, generator=torch.Generator().manual_seed(2)), torch.arange(64) % 3)
HALF: dict[str, Any] = {"sparsity": 0.5, "steps": 6, "learning_rate": 1e-2, "batch_size": 16}


def test_names_of_a_checkpointed_block() -> None:
    names = saved_names(checkpointed())
    assert names["0._checkpoint_wrapped_module.0.weight"] == "0.0.weight"
    assert names["1.weight"] == "1.weight"
    assert list(names.values()) == list(checkpointed().state_dict())
    assert list(names) == list(dict(checkpointed().named_parameters()))


@pytest.mark.parametrize("method", ["gradual", "one_shot", "synflow", "snip", "wanda", "movement"])
def test_a_checkpointed_block_is_pruned_like_a_plain_one(method: str, tmp_path: Path) -> None:
    model, plain = checkpointed(), checkpointed(lambda block: block)
    settings = {"rounds": 5} if method == "synflow" else {}
    ticket, expected = (isp.prune(each, INPUTS, method=method, settings=settings, **HALF) for each in (model, plain))
    assert list(ticket.mask) == prunable_names(model) == ["0._checkpoint_wrapped_module.0.weight", "1.weight"]
    assert ticket.mask.keys() <= ticket.weights.keys()
    assert equal(by_first_name(ticket.mask, plain, "the mask"), dict(expected.mask))
    assert equal(model.state_dict(), plain.state_dict())

    isp.save_ticket(tmp_path / "ticket", ticket)
    isp.save_ticket(tmp_path / "plain", expected)
    for path in (tmp_path / "ticket", tmp_path / "plain"):
        for wrap in (checkpoint_wrapper, lambda block: block):
            other = checkpointed(wrap)
            nn.init.zeros_(other[1].weight)
            read = isp.load_ticket(path, other)
            assert equal(other.state_dict(), plain.state_dict())
            assert list(read.mask) == prunable_names(other)


def test_a_checkpointed_block_is_excluded_by_either_name() -> None:
    for pattern in ("0.0.*", "0._checkpoint_wrapped_module.0.*"):
        assert prunable_names(checkpointed(), exclude=[pattern]) == ["1.weight"]
        assert prunable_names(checkpointed(), [pattern]) == ["0._checkpoint_wrapped_module.0.weight"]


class Forgetful(nn.Linear):
    """A layer whose state dict lacks its weight."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}weight"]


@pytest.mark.parametrize("exclude", [[], ["0.*"]])
def test_a_trained_parameter_that_no_state_contains_is_refused(exclude: list[str]) -> None:
    model = nn.Sequential(Forgetful(8, 8), nn.Linear(8, 3))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match=r"parameter '0.weight' is trained, but the model's state_dict\(\) does not"):
        isp.prune(model, INPUTS, exclude=exclude, method="gradual", **HALF)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
