from __future__ import annotations

import math
import random
import sys
from collections import UserDict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isp
from isp.errors import ConfigError
from isp.prunable import prunable_names
from isp.rng import seed_all
from isp.training import TrainingDiverged, state_of
from tests.support.methods import find, tiny_trainer
from tests.support.models import Noisy, equal, tiny_model

QUICK: dict[str, Any] = {
    "settings": {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 2, "look_ahead_steps": 3},
    "steps": 30,
    "batch_size": 16,
    "learning_rate": 1e-2,
}
DATA = Noisy()
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 16, "learning_rate": 1e-2}


def test_five_lines(tmp_path: Path) -> None:
    model = tiny_model()
    model.eval()
    ticket = isp.prune(model, (DATA.inputs, DATA.labels), sparsity=0.9, **QUICK)
    isp.save_ticket(tmp_path / "ticket.safetensors", ticket)
    assert not model.training
    assert equal(dict(model.state_dict()), ticket.weights)

    fresh = tiny_model()
    back = isp.load_ticket(tmp_path / "ticket.safetensors", fresh)
    assert equal(dict(fresh.state_dict()), ticket.weights)
    assert equal(back.mask, ticket.mask)
    assert (back.sparsity, back.cost, back.rounds) == (Decimal("0.9"), ticket.cost, ticket.rounds)
    assert back.origin == ticket.origin
    assert (back.origin["seed"], back.origin["training"]["steps"], back.origin["settings"]["rate"]) == (0, 30, 0.4)
    zeros = sum(int((fresh.get_parameter(name) == 0).sum()) for name in back.mask)
    # the head is pruned here: by default every linear layer is
    assert zeros == round(Decimal("0.9") * (592 + 24))


class WithBatch(torch.utils.data.TensorDataset):
    """Hugging Face datasets have a method `batch` of another meaning."""

    def batch(self, batch_size: int) -> None:
        raise AssertionError


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "mapping", "dataset", "with_batch", "examples"])
def test_every_kind_of_training_data(kind: str) -> None:
    pairs = (DATA.inputs, DATA.labels)
    data = {
        "tuple": pairs,
        "list": list(pairs),
        "dict": {"x": DATA.inputs, "y": DATA.labels},
        "mapping": UserDict({"x": DATA.inputs, "y": DATA.labels}),  # as tokenizers return
        "with_batch": WithBatch(*pairs),
        "dataset": torch.utils.data.TensorDataset(*pairs),
        "examples": Noisy(),
    }[kind]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch.values() if isinstance(batch, dict) else batch
        return nn.functional.cross_entropy(model(inputs), labels)

    model = tiny_model()
    ticket = isp.prune(model, data, sparsity="0.5", method="one_shot", loss=loss, **SHORT)
    assert ticket.cost.steps == 3
    if kind in ("list", "dict", "mapping", "dataset", "with_batch"):
        other = tiny_model()
        same = isp.prune(other, pairs, sparsity="0.5", method="one_shot", **SHORT)
        assert equal(ticket.weights, same.weights)


def test_hugging_face_style_models() -> None:
    class Output:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()

        def forward(self, inputs: Tensor, labels: Tensor) -> Output:
            return Output(nn.functional.cross_entropy(self.inner(inputs), labels))

    data = {"inputs": DATA.inputs, "labels": DATA.labels}
    ticket = isp.prune(Model(), data, sparsity=0.5, method="one_shot", exclude=["*head*"], **SHORT)
    assert "inner.head.weight" not in ticket.mask


def test_the_default_prunes_layers_and_neither_embeddings_nor_norms() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "norm": nn.LayerNorm(4),
            "conv": nn.Conv2d(1, 2, 3),
            "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
            "head": nn.Linear(4, 2),
        }
    )
    assert prunable_names(model) == [
        "conv.weight",
        *(f"attention.{part}_proj_weight" for part in "qkv"),
        "attention.out_proj.weight",
        "head.weight",
    ]
    assert prunable_names(model, ["attention.*weight"], exclude=["*out*"]) == [
        f"attention.{part}_proj_weight" for part in "qkv"
    ]
    with pytest.raises(ConfigError, match=r"unknown prunable pattern 'atention.\*'"):
        prunable_names(model, ["atention.*"])
    with pytest.raises(ConfigError, match=r"unknown exclude pattern 'heed.\*'"):
        prunable_names(model, exclude=["heed.*"])
    with pytest.raises(ConfigError, match="no prunable parameter is left"):
        prunable_names(model, exclude=["*"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.0}, "outside"),
        ({"method": "ispp"}, "did you mean 'isp'"),
        ({"settings": {"rates": 0.1}}, "settings of method 'isp_mean': unknown key 'rates'; did you mean 'rate'"),
        ({"learning_rat": 0.1}, "training: unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"learning_rate": 0}, "training: learning_rate = 0: input should be greater than 0"),
        ({"steps": 5}, "exceed the budget"),
        ({"batch_size": 81}, "batch_size = 81: larger than the 80"),
        ({"prunable": ["encoder.*"]}, "unknown prunable pattern"),
        ({"prunable": "*.weight"}, r"prunable = '\*.weight': must be a list of patterns"),
        ({"exclude": "head.*"}, r"exclude = 'head.\*': must be a list of patterns, such as \['head.\*'\]"),
        ({"method": None}, "method = None: must be a text, the name of a method"),
        ({"settings": [1]}, r"settings = \[1\]: must be a dict"),
        ({"loss": 5}, r"loss = 5: must be a function of \(model, batch\)"),
        ({"seed": "a"}, "seed = 'a': must be an integer"),
        ({"seed": None}, "seed = None: must be an integer"),
    ],
)
def test_bad_input_leaves_the_model_alone(change: dict[str, Any], message: str) -> None:
    model = tiny_model()
    before = state_of(model)
    with pytest.raises(ConfigError, match=message):
        isp.prune(model, Noisy(), **{"sparsity": 0.9, **QUICK, **change})
    assert equal(dict(model.state_dict()), before.weights)


def test_training_without_gradients_is_refused() -> None:
    for without in (torch.no_grad(), torch.inference_mode()):
        with without, pytest.raises(ConfigError, match=r"called inside torch.no_grad\(\)"):
            isp.prune(tiny_model(), DATA, sparsity=0.5, method="one_shot", **SHORT)


def test_a_seed_of_numpy_is_that_integer() -> None:
    same = [isp.prune(tiny_model(), DATA, sparsity=0.5, method="random", seed=n, **SHORT) for n in (3, np.int64(3))]
    assert equal(same[0].mask, same[1].mask)
    assert equal(same[0].weights, same[1].weights)
    assert type(same[1].origin["seed"]) is int


@pytest.mark.parametrize("data", [3, "text", {}, None])
def test_what_is_no_training_data(data: Any) -> None:
    with pytest.raises(ConfigError, match=rf"train: must be tensors or .*; got a {type(data).__name__}"):
        isp.prune(tiny_model(), data, sparsity=0.5, method="one_shot", **SHORT)


def test_tensors_of_different_length() -> None:
    with pytest.raises(ConfigError, match=r"different numbers of examples: \[79, 80\]"):
        isp.prune(tiny_model(), (DATA.inputs, DATA.labels[1:]), sparsity=0.5, **SHORT)


def test_divergence_puts_the_initial_weights_back() -> None:
    model = tiny_model()
    before = state_of(model)
    with pytest.raises(TrainingDiverged) as caught:
        isp.prune(
            model, Noisy(), sparsity=0.9, method="one_shot", steps=30, batch_size=16,
            learning_rate=1e30, clip_norm=None,
        )  # fmt: skip
    assert equal(dict(model.state_dict()), before.weights)
    assert all(tensor.isfinite().all() for tensor in caught.value.state.weights.values())


def test_modes_are_put_back_and_a_loss_that_raises_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].eval()
    before = state_of(model)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        model(batch[0])
        raise RuntimeError("wrong device")

    with pytest.raises(RuntimeError, match="wrong device"):
        isp.prune(model, Noisy(), sparsity=0.5, method="one_shot", loss=loss, **SHORT)
    assert equal(dict(model.state_dict()), before.weights)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda path, ticket: isp.prune("bert", None, sparsity=0.5), "model: must be a torch.nn.Module, got 'bert'"),
        (lambda path, ticket: isp.prune(nn.Linear, None, sparsity=0.5), "model: must be .*, got the class Linear"),
        (lambda path, ticket: isp.Pruner(None, None, sparsity=0.5, steps=1), "model: must be .*, got None"),
        (lambda path, ticket: isp.accelerate(ticket, None), "model: must be .*, got an object of class Ticket"),
        (lambda path, ticket: isp.accelerate(nn.Linear(1, 1), None, tolerance="a"), "tolerance: must be a number in"),
        (lambda path, ticket: isp.save_ticket(ticket, path), "path: must be a path, got an object of class Ticket"),
        (lambda path, ticket: isp.save_ticket(path, nn.Linear(1, 1)), "ticket: must be an isp.Ticket, got an object"),
        (lambda path, ticket: isp.load_ticket(None), "path: must be a path, got None"),
        (lambda path, ticket: isp.load_ticket(path, "x"), "model: must be a torch.nn.Module, got 'x'"),
        (lambda path, ticket: isp.export(None, None, path), "ticket: must be an isp.Ticket or the path of its file"),
        (
            lambda path, ticket: isp.export(ticket, "x", path.with_name("x")),
            "model: must be a torch.nn.Module, got 'x'",
        ),
        (lambda path, ticket: isp.export(ticket, None, None), "folder: must be a path, got None"),
    ],
)
def test_arguments_of_other_types_are_named(
    call: Callable[[Path, isp.Ticket], Any], problem: str, tmp_path: Path
) -> None:
    (ticket,) = find(tiny_trainer(steps=4), "one_shot", "0.5")
    isp.save_ticket(tmp_path / "ticket", ticket)
    with pytest.raises(ConfigError, match=problem):
        call(tmp_path / "ticket", ticket)
    assert [path.name for path in tmp_path.iterdir()] == ["ticket"]


def test_a_path_may_be_any_object_of_the_protocol(tmp_path: Path) -> None:
    class Place:
        def __fspath__(self) -> str:
            return str(tmp_path / "ticket")

    (ticket,) = find(tiny_trainer(steps=4), "one_shot", "0.5")
    isp.save_ticket(Place(), ticket)  # type: ignore[arg-type]
    assert equal(isp.load_ticket(Place()).weights, ticket.weights)  # type: ignore[arg-type]


def test_a_ticket_of_another_model(tmp_path: Path) -> None:
    ticket = isp.prune(tiny_model(), Noisy(), sparsity=0.9, **QUICK)
    isp.save_ticket(tmp_path / "ticket", ticket)
    with pytest.raises(ConfigError, match=r"the ticket .*ticket are of another model: 'attention"):
        isp.load_ticket(tmp_path / "ticket", nn.Linear(2, 2))


def test_what_a_method_chooses_by() -> None:
    """A function that scores the model, or examples, of which the mean loss is taken."""
    protocol = {**SHORT, "sparsity": 0.7, "method": "lottery_pools", "settings": {"rate": 0.4, "coefficients": [0.5]}}
    held_out = (DATA.inputs[:40], DATA.labels[:40])

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return -nn.functional.cross_entropy(model(held_out[0]), held_out[1]).item()

    by_function = isp.prune(tiny_model(), DATA, validation=score, **protocol)
    by_examples = isp.prune(tiny_model(), DATA, validation=held_out, **protocol)
    assert equal(by_function.weights, by_examples.weights)
    assert by_function.finding == by_examples.finding
    assert by_function.rounds[-1]["evaluations"] == 4  # the ticket's own, and with dense and two rounds
    assert by_function.finding.samples == 4 * 3 * 16 + 4 * 40
    with pytest.raises(ConfigError, match=r"chooses by validation examples: pass some as `validation`"):
        isp.prune(tiny_model(), DATA, **protocol)


def test_a_score_with_random_numbers_depends_only_on_the_seed() -> None:
    """Neither on the state of the generators before the call, which stays as it was."""

    def score(model: nn.Module) -> float:
        seen.append(float(torch.rand(())) + random.random() + float(np.random.rand()))
        return seen[-1]

    seen: list[float] = []
    scores, models = [], {state: tiny_model() for state in (1, 2)}
    for state in models:
        seed_all(state)
        before = torch.get_rng_state(), random.getstate()
        seen.clear()
        isp.prune(models[state], DATA, sparsity=0, method="greedy_soup", validation=score, **SHORT)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        scores.append(list(seen))
    assert scores[0] == scores[1]
    assert len(set(scores[0])) == 1


@pytest.mark.parametrize("method", ["greedy_soup", "instant_model_soup"])
def test_soups(method: str) -> None:
    """Dense models, chosen by validation examples."""
    settings = {"members": 2} if method == "greedy_soup" else {"subnetworks": 2, "look_ahead_steps": 2}
    held_out = (DATA.inputs[:40], DATA.labels[:40])
    model = tiny_model()
    found = isp.prune(model, DATA, sparsity=0, method=method, settings=settings, validation=held_out, **SHORT)
    assert equal(found.weights, model.state_dict())
    assert all(kept.all() for kept in found.mask.values())
    assert found.rounds[-1]["evaluations"] == (3 if method == "greedy_soup" else 1 + 2 * 10)
    with pytest.raises(ConfigError, match=r"chooses by validation examples: pass some as `validation`"):
        isp.prune(tiny_model(), DATA, sparsity=0, method=method, settings=settings, **SHORT)


def test_a_method_from_a_file(tmp_path: Path) -> None:
    source = Path(isp.__file__).parent / "methods" / "one_shot.py"
    (tmp_path / "mine.py").write_text(source.read_text())
    mine = isp.prune(tiny_model(), DATA, sparsity=0.7, method=str(tmp_path / "mine.py"), **SHORT)
    known = isp.prune(tiny_model(), DATA, sparsity=0.7, method="one_shot", **SHORT)
    assert equal(mine.weights, known.weights)
    assert mine.method == "mine"


# --- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradual", "isp", "lth"])
def test_an_interrupt_leaves_the_model_as_it_was(method: str) -> None:
    steps = 0

    def interrupt(done: int) -> None:
        nonlocal steps
        steps += done
        if steps == 17:
            raise KeyboardInterrupt

    model = tiny_model()
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    arguments = {**QUICK, "settings": QUICK["settings"] if method == "isp" else {}}
    with pytest.raises(KeyboardInterrupt):
        isp.prune(model, (DATA.inputs, DATA.labels), sparsity=0.9, method=method, progress=interrupt, **arguments)
    assert equal(before, dict(model.state_dict()))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("progress", "terminal", "drawn"), [(None, False, 0), (None, True, 1), (True, False, 1)])
def test_a_bar_is_drawn_for_whoever_watches(
    progress: bool | None, terminal: bool, drawn: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    arguments = {"sparsity": 0.5, "method": "one_shot", "progress": progress}
    isp.prune(tiny_model(), (DATA.inputs, DATA.labels), **arguments, **SHORT)
    text = capsys.readouterr().err
    assert text.count("one_shot, sparsity 50 %: 100%") >= drawn
    assert ("3/3" in text) == bool(drawn)
    assert bool(text) == bool(drawn)


# --- unusual parameters and buffers -----------------------------------------------------------------------------------


class Unusual(nn.Module):
    """A linear layer beside one with complex weights, one without weights, and a mean that no state contains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.empty = nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(0, 32)
        self.wave = nn.Linear(1, 1, dtype=torch.cfloat)
        self.register_buffer("mean", torch.zeros(32), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("links", torch.eye(2).to_sparse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x) + self.empty(x[:, :0])
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
            self.count += 1
        return self.head(torch.relu(hidden - self.mean)) * self.wave(x[:, :1].to(torch.cfloat)).abs()


UNUSUAL = (DATA.inputs[:, 0], DATA.labels)


def test_trained_complex_parameters_are_refused_and_frozen_ones_are_not() -> None:
    model = Unusual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ConfigError, match=r"parameter 'wave.weight' is complex \(complex64\), and isp.prune\(\) trains"
    ):
        isp.prune(model, UNUSUAL, sparsity=0.5, method="one_shot", **SHORT)
    assert equal(before, dict(model.state_dict()))
    model.wave.requires_grad_(False)
    ticket = isp.prune(model, UNUSUAL, sparsity=0.5, method="one_shot", **SHORT)
    assert torch.equal(ticket.weights["wave.weight"], before["wave.weight"])


@pytest.mark.parametrize("method", ["synflow", "wanda", "gradual"])
def test_a_layer_without_weights_is_left_out(method: str) -> None:
    model = Unusual()
    model.wave.requires_grad_(False)
    ticket = isp.prune(model, UNUSUAL, sparsity=0.5, method=method, **SHORT)
    assert list(ticket.mask) == ["body.weight", "head.weight"]
    assert float(sum((~kept).sum() for kept in ticket.mask.values())) == (8 * 32 + 32 * 3) / 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None], "validation: must return a number, got NoneType None"),
        (["high"], "validation: must return a number, got str 'high'"),
        ([torch.ones(2)], r"validation: must return a number, got Tensor tensor\(\[1., 1.\]\)"),
        ([math.nan], "validation: the score of a model is NaN"),
        ([0.5, 0.7, math.nan, 0.6], "validation: the score of a model is NaN"),
    ],
)
def test_validation_scores_that_cannot_choose(values: list[Any], message: str) -> None:
    given = iter(values)
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        isp.prune(model, DATA, sparsity=0, method="greedy_soup", validation=lambda model: next(given), **SHORT)
    assert equal(before, dict(model.state_dict()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingDiverged])
def test_a_failure_restores_buffers_that_no_state_contains(error: type[BaseException]) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    model = Unusual()
    model.wave.requires_grad_(False)
    mean = model.mean
    changes: dict[str, Any] = (
        {"progress": interrupt} if error is KeyboardInterrupt else {"learning_rate": 1e30, "steps": 10}
    )
    with pytest.raises(error):
        isp.prune(model, UNUSUAL, sparsity=0.5, **{**SHORT, "method": "gradual", **changes})
    assert model.mean is mean
    assert not model.mean.any()
    assert not model.count


@pytest.mark.parametrize(
    ("key", "advice"),
    [("optimizer", "trains with AdamW; isp.Pruner"), ("lr", "is learning_rate"), ("epochs", "is steps, the number of")],
)
def test_keys_of_other_loops_are_refused_with_the_key_to_use(key: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"training: unknown key '{key}'; .*{advice}"):
        isp.prune(tiny_model(), DATA, sparsity=0.5, method="gradual", **{key: 1}, **SHORT)
