"""Training data in the forms that people have them, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import isp
from isp.errors import ConfigError, IspError
from isp.training import state_of
from tests.support.models import Noisy, equal, tiny_model

X, Y = Noisy().inputs, Noisy().labels
SHORT: dict[str, Any] = {"method": "one_shot", "sparsity": 0.5, "steps": 3, "batch_size": 16, "learning_rate": 1e-2}


class Items:
    """A map-style dataset of the same examples; `form` makes an item of inputs and label."""

    def __init__(self, form: Any) -> None:
        self.form = form

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return self.form(X[index], Y[index])


def pruned(data: Any, model: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    return isp.prune(model or tiny_model(), data, **{**SHORT, **options}).weights


@pytest.mark.parametrize(
    "data",
    [
        (X.numpy(), Y.numpy()),
        (X.double().numpy(), Y.int().numpy()),
        [X.numpy()[::-1][::-1], Y],
        (X, Y.tolist()),
        (X, Y.int()),
        (X, Y[:, None]),
        (X.numpy().astype(">f4"), Y.numpy().astype(np.int16)),
        list(zip(X, Y, strict=True)),
        TensorDataset(X, Y),
        Items(lambda x, y: (x.numpy(), int(y))),
        Items(lambda x, y: (x.double().numpy(), y)),
    ],
    ids=range(11),
)
def test_the_same_examples_in_other_forms_train_to_the_same_bits(data: Any) -> None:
    assert equal(pruned(data), pruned((X, Y)))


class Named(nn.Module):
    """Takes its inputs by name and gives its own loss, as Hugging Face models do, in one of their forms."""

    def __init__(self, kind: str = "object") -> None:
        super().__init__()
        self.inner, self.kind = tiny_model(), kind

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.inner(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        if self.kind == "tuple":
            return loss, logits
        return SimpleNamespace(loss=loss, logits=logits) if self.kind == "object" else {"loss": loss, "logits": logits}


@pytest.mark.parametrize("kind", ["object", "dict"])
@pytest.mark.parametrize(
    "data",
    [
        {"x": X, "labels": Y},
        {"x": X.numpy(), "labels": Y.tolist()},
        Items(lambda x, y: {"x": x.tolist(), "labels": int(y)}),
        (X, Y),  # then the loss is made of `logits`
    ],
    ids=range(4),
)
def test_models_that_return_an_object_or_a_dict(kind: str, data: Any) -> None:
    expected = {f"inner.{name}": tensor for name, tensor in pruned((X, Y)).items()}
    assert equal(pruned(data, Named(kind)), expected)


def test_items_of_unequal_length_are_collated_by_the_user() -> None:
    """Here cut to the shortest."""
    data = Items(lambda x, y: (x[: 3 + int(y)], y))

    def cut(items: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([x[:3] for x, _ in items]), torch.stack([y for _, y in items])

    assert equal(pruned(data, collate=cut), pruned((X[:, :3], Y)))
    held_out = {"validation": data, "collate": cut, "method": "lottery_pools", "settings": {"rate": 0.4}}
    assert equal(
        pruned(data, **held_out), pruned((X[:, :3], Y), **{**held_out, "validation": (X[:, :3], Y), "collate": None})
    )


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


REFUSED: dict[str, tuple[Any, str]] = {
    "unequal": (Items(lambda x, y: (x[: 3 + int(y)], y)), "items cannot be collated into one batch .* Give collate="),
    "unequal lists": (Items(lambda x, y: {"x": x[: 3 + int(y)].tolist(), "labels": 0}), "Give collate="),
    "loader": (DataLoader(TensorDataset(X, Y), 16), "must not be a DataLoader.*pass its dataset"),
    "stream": (Stream(), r"a Stream cannot be indexed by number; pass a list of its examples"),
    "generator": (iter([(X[0], Y[0])]), "cannot be indexed by number"),
    "lengths": ((X, Y[1:]), r"different numbers of examples: \[79, 80\]"),
    "ragged": ((X, [[1], [1, 2]]), "part 1 has rows of unequal length; pad them"),
    "strings": ((X, ["a"] * 80), "part 1 contains strings"),
    "lists": ((X.tolist(), Y.tolist()), "lists in a tuple may be columns or examples"),
    "scalar": ((X, torch.tensor(3)), "part 1 is a single value"),
    "empty": ((X[:0], Y[:0]), "train: contains no examples"),
    "one part": (X, r"the default loss takes batches of \(inputs, labels\).*got \(Tensor\)"),
    "three parts": ((X, Y, Y), r"got \(Tensor, Tensor, Tensor\). Give loss="),
    "inputs float64": ((X.double(), Y), r"the model fails on the first batch .*part 0: float64 \(16, 5, 8\) on cpu"),
    "labels from 1": ((X, Y + 1), "labels: range from 1 to 3, but the model has 3 outputs, so labels must be 0 to 2"),
    "labels late": ((X, torch.where(torch.arange(80) == 79, 9, Y)), "labels: range from 0 to 9"),
    "ignored": ((X, torch.full_like(Y, -100)), "labels: all are -100"),
    "one-hot": ((X, nn.functional.one_hot(Y)), r"labels of classes must have shape \(16,\)"),
    "soft": ((X, torch.rand(80, 3)), "several targets of a regression or probabilities of classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused_and_leaves_the_model_alone(case: str) -> None:
    data, message = REFUSED[case]
    model, steps = tiny_model(), list[int]()
    before = state_of(model)
    with pytest.raises(ConfigError, match=message):
        pruned(data, model, progress=steps.append)
    assert equal(dict(model.state_dict()), before.weights)
    assert not steps
    assert model.training


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"x": X}, "object", r"the model returns no loss for a batch with 'x'.*Add 'labels'"),
        ({"x": X, "labels": Y}, "tuple", r"\(its output is a tuple\).*give loss="),
        ((X, Y), "tuple", "got a tuple. Give loss="),
        ({"x": X, "label": Y}, "dict", r"column 'label' is not an argument of the model's forward \(x, labels\)"),
        (Items(lambda x, y: {"x": x, "labels": y, "text": "a"}), "dict", "column 'text' contains strings"),
    ],
)
def test_what_a_model_with_its_own_loss_cannot_take(data: Any, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pruned(data, Named(kind))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch[0]).square().mean(1), r"must return one value as a tensor.*got .*\(16,\)"),
        (lambda model, batch: float(model(batch[0]).detach().mean()), "got a float"),
        (lambda model, batch: batch[0].mean(), "does not depend on any trainable parameter"),
    ],
)
def test_what_is_no_loss(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pruned((X, Y), loss=loss)


def test_collate_without_items() -> None:
    with pytest.raises(ConfigError, match="collate: train must be a map-style dataset, got tuple"):
        pruned((X, Y), collate=list)


def with_lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


def with_gaps() -> nn.Module:
    layer = nn.Linear(40, 3)
    layer.weight = nn.Parameter(torch.rand(3, 50)[:, :40])
    return nn.Sequential(nn.Flatten(), layer)


def with_expanded() -> nn.Module:
    layer = nn.Linear(40, 3)
    layer.weight = nn.Parameter(torch.rand(1, 40).expand(3, 40))
    return nn.Sequential(nn.Flatten(), layer)


def with_nan() -> nn.Module:
    model = tiny_model()
    nn.init.constant_(model.up.bias, float("nan"))
    return model


def with_quantized() -> nn.Module:
    model = tiny_model()
    model.register_buffer("table", torch.ones(3).to_sparse())
    return model


class WithAdapter(nn.Module):
    """A frozen layer and what PEFT adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.base(inputs) + self.lora_B["default"](self.lora_A["default"](inputs))).mean(1)


def test_a_layer_without_weights_changes_nothing() -> None:
    """As a model has that is configured down to a width of zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 3))
    model.register_parameter("empty", nn.Parameter(torch.zeros(3, 0)))
    names = ["1.weight", "empty"]
    assert int((pruned((X, Y), model, prunable=names)["1.weight"] == 0).sum()) == 60


def test_adapters_are_pruned_only_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'lora_A.default.weight' is one of 2 matrices of LoRA.*prunable="):
        pruned((X, Y), WithAdapter())
    model = WithAdapter()
    pruned((X, Y), model, prunable=["lora_*"])
    assert sum(int((p == 0).sum()) for name, p in model.named_parameters() if "lora" in name) == 16


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"count": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_lazy, "'1.weight' has no shape yet"),
        (with_expanded, "'1.weight' is expanded"),
        (with_gaps, r"'1.weight' is part of a larger tensor \(shape \(3, 40\), strides \(50, 1\)\)"),
        (with_nan, "'up.bias' contains NaN or infinite values"),
        (with_quantized, "'table' is a sparse_coo tensor"),
        (lambda: nn.Sequential(nn.Flatten(), Extra(40, 3)), r"1: has extra state \(get_extra_state, a dict\)"),
        (lambda: nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True), nn.Linear(3, 3)), "module '0' has sparse gradients"),
    ],
)
def test_models_that_cannot_be_trained_or_kept(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pruned((X, Y), make())


class Augmented:
    """Draws from NumPy's and Python's global generators."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + float(np.random.normal()) + random.random(), Y[index]


def test_augmentation_by_numpy_and_random_is_reproducible_and_leaves_their_generators_alone() -> None:
    np.random.seed(5)
    random.seed(5)
    expected = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)
    first = pruned(Augmented(), validation=Augmented())
    assert (np.random.random(), random.random()) == expected
    np.random.seed(6)
    random.seed(6)
    assert equal(pruned(Augmented()), first)
    assert not equal(pruned(Augmented(), seed=1), first)


def test_the_generators_are_put_back_after_errors_too() -> None:
    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    with pytest.raises(IspError):
        pruned(Augmented(), learning_rate=1e38, clip_norm=None)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[union-attr]
