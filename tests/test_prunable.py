"""What is prunable by default, what is refused, and what messages say about patterns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import isp
from isp import masks
from isp.errors import ConfigError
from isp.prunable import prunable_names
from tests.support.models import TiedHead


def old(norm: Callable[[nn.Module], nn.Module], layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(layer)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def halved(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Halved())


class Raw(nn.Module):
    """Matrices of no known layer."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        for index, shape in enumerate(shapes):
            self.register_parameter(f"w{index}", nn.Parameter(torch.zeros(shape)))


def transformers_conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(3, 2)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.ConvTranspose1d(2, 3, 2), ["weight"]),
        (nn.ConvTranspose2d(2, 3, 2), ["weight"]),
        (nn.ConvTranspose3d(2, 3, 2), ["weight"]),
        (nn.LSTM(2, 3, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (nn.GRU(2, 3, bidirectional=True), [f"weight_{i}_l0{d}" for d in ("", "_reverse") for i in ("ih", "hh")]),
        (nn.RNN(2, 3, 2), [f"weight_{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh")]),
        (nn.LSTMCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.GRUCell(2, 3), ["weight_ih", "weight_hh"]),
        (transformers_conv1d(), ["weight"]),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (parametrizations.weight_norm(nn.Linear(2, 3)), ["parametrizations.weight.original1"]),
        (parametrizations.weight_norm(nn.Linear(1, 3)), ["parametrizations.weight.original1"]),
        (parametrizations.spectral_norm(nn.Conv2d(2, 3, 2)), ["parametrizations.weight.original"]),
        (halved(nn.Linear(2, 3)), ["parametrizations.weight.original"]),
        (
            parametrizations.weight_norm(nn.GRU(2, 3), "weight_hh_l0"),
            ["weight_ih_l0", "parametrizations.weight_hh_l0.original1"],
        ),
        (old(nn.utils.weight_norm, nn.Linear(2, 3)), ["weight_v"]),
        (old(nn.utils.spectral_norm, nn.Linear(2, 3)), ["weight_orig"]),
    ],
)
def test_the_default_takes_the_weights_of_every_known_layer(layer: nn.Module, expected: list[str]) -> None:
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    model = nn.ModuleDict({"layer": layer, "norm": nn.LayerNorm((5, 50)), "embedding": nn.Embedding(50, 5)})
    generator = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prunable_names(model) == [f"layer.{name}" for name in expected]
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_zeros_of_the_chosen_tensor_are_zeros_of_the_computed_weight() -> None:
    torch.manual_seed(0)
    layers = [
        parametrizations.weight_norm(nn.Linear(6, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        old(nn.utils.weight_norm, nn.Linear(8, 3)),
    ]
    model, inputs = nn.Sequential(*layers), torch.randn(32, 6)
    protocol: dict[str, Any] = {"steps": 4, "batch_size": 16, "learning_rate": 1e-2}
    ticket = isp.prune(model, (inputs, torch.arange(32) % 3), sparsity=0.5, method="one_shot", **protocol)
    model(inputs)
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    assert zeros == 68 == masks.num_weights(ticket.mask) - masks.num_kept(ticket.mask)
    assert ticket.retraining.sparse_flops < 0.6 * ticket.retraining.flops


@pytest.mark.parametrize("parametrization", [Symmetric(), None])
def test_a_parametrization_that_does_not_keep_zeros_is_left_out(parametrization: nn.Module | None) -> None:
    layer = nn.Linear(5, 5)
    if parametrization is None:
        parametrizations.orthogonal(layer)
    else:
        parametrize.register_parametrization(layer, "weight", parametrization)
    with pytest.raises(ConfigError, match=r"leave out 25 of 50 .*'0.parametrizations.weight.original"):
        prunable_names(nn.Sequential(layer, nn.Linear(5, 5)))


def test_unknown_matrices_are_passed_over_up_to_a_share() -> None:
    """Of 1,000 weights 10, 200 and 201 in matrices of unknown modules."""
    known = nn.Linear(10, 99, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prunable_names(nn.Sequential(known, Raw((10,), (2, 5)))) == ["0.weight"]
    known = nn.Linear(10, 80, bias=False)
    with pytest.warns(
        UserWarning, match=r"leaves out 200 of 1,000 weights in trainable matrices \(20.0%\).*'1.w0' \(Raw"
    ):
        assert prunable_names(nn.Sequential(known, Raw((10, 10, 2)))) == ["0.weight"]
    model = nn.Sequential(nn.Linear(799, 1), Raw((1, 1), (10, 20)))
    message = r"would leave out 201 of 1,000 .* \(20.1%\).*: '1.w1' \(Raw\), '1.w0' \(Raw\); pass patterns of the"
    with pytest.raises(ConfigError, match=message):
        prunable_names(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prunable_names(model, exclude=["1.*"]) == ["0.weight"]
        assert prunable_names(model, ["1.w1"]) == ["1.w1"]
    model[1].requires_grad_(False)
    assert prunable_names(model) == ["0.weight"]


@pytest.mark.parametrize("first", [True, False])
def test_a_weight_that_is_tied_to_an_embedding_is_an_embedding(first: bool) -> None:
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5)
    head.weight = embedding.weight
    model = (
        nn.Sequential(embedding, nn.Linear(4, 4), head) if first else nn.Sequential(head, nn.Linear(4, 4), embedding)
    )
    assert prunable_names(model) == ["1.weight"]
    assert prunable_names(model, ["*.weight"]) == ["0.weight", "1.weight"]


def test_patterns_that_name_tied_or_frozen_parameters() -> None:
    model = TiedHead()
    tied = "parameter 'head.weight' is tied to 'embedding.weight', so both are one parameter; use that name"
    for pattern in ("head.weight", "head.*"):
        with pytest.raises(ConfigError, match=f"prunable pattern '{pattern.replace('*', '[*]')}': {tied}"):
            prunable_names(model, [pattern])
        with pytest.raises(ConfigError, match=f"exclude pattern '{pattern.replace('*', '[*]')}': {tied}"):
            prunable_names(model, exclude=[pattern])
    assert prunable_names(model, ["*.weight"], exclude=["embedding.*"]) == ["middle.weight"]
    model.middle.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"pattern 'middle[.][*]': parameter 'middle.weight' does not require grad"):
        prunable_names(model, ["middle.*"])
    model.middle.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"'middle.bias' has shape \(12,\); it must have two or more dimensions"):
        prunable_names(model, ["middle.bias"])


def test_a_parameter_is_excluded_by_any_of_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    assert prunable_names(model) == ["a.weight", "c.weight"]
    assert prunable_names(model, exclude=["b.*"]) == ["c.weight"]  # it also matches b.bias
    assert prunable_names(model, ["[bc].*"]) == ["a.weight", "c.weight"]


def test_what_is_left_if_nothing_is_prunable() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "body": nn.Linear(4, 4), "raw": Raw((2, 2))}
    )
    model["body"].weight.requires_grad_(False)
    message = (
        r"no prunable parameter is left: the model has 6 parameters: 1 embeddings \(such as 'embedding.weight'\), 3 of "
        r"fewer than two dimensions \(such as 'norm.weight'\), 1 not trained \(requires_grad is False\) \(such as "
        r"'body.weight'\), 1 of unknown layers \(such as 'raw.w0'\); a prunable"
    )
    with pytest.raises(ConfigError, match=message):
        prunable_names(model)
    with pytest.raises(ConfigError, match="the model has no parameters"):
        prunable_names(nn.ReLU())
    with pytest.raises(ConfigError, match=r"2 excluded \(such as 'weight'\)"):
        prunable_names(nn.Linear(2, 2), exclude=["*"])


@pytest.mark.parametrize("patterns", [None, ["*weight_orig"]])
def test_the_masks_of_torch_are_refused(patterns: list[str] | None) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    message = r"'0.weight_orig' has a mask of torch.nn.utils.prune.*: torch.nn.utils.prune.remove\(module, 'weight'"
    with pytest.raises(ConfigError, match=message):
        prunable_names(model, patterns)
    assert prunable_names(model, exclude=["0.*"]) == ["1.weight"]
    torch_prune.remove(model[0], "weight")
    assert prunable_names(model) == ["0.weight", "1.weight"]


def test_parameters_without_a_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parameter '0.weight' has no shape yet; call the model once on a batch"):
        prunable_names(nn.Sequential(nn.LazyLinear(3)))


def test_most_of_a_gpt2_is_prunable_by_default() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    size = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 3}
    model = GPT2ForSequenceClassification(GPT2Config(**size, pad_token_id=0))
    ids = torch.randint(1, 50, (32, 8), generator=torch.Generator().manual_seed(0))
    data = {"input_ids": ids, "labels": torch.arange(32) % 3}
    ticket = isp.prune(model, data, sparsity=0.9, method="one_shot", steps=2, batch_size=16, learning_rate=1e-3)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "wte" not in n and "wpe" not in n]
    assert len(ticket.mask) == len(matrices) == 9
    total = 2 * 12 * 16 * 16 + 3 * 16
    assert sum(int((matrix == 0).sum()) for matrix in matrices) == round(0.9 * total)


def test_frozen_layers_that_outweigh_the_chosen_ones_are_named() -> None:
    """Of 12, 30 and 18 weights, 18 and then 30 are frozen."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6), nn.Linear(6, 3), nn.Embedding(50, 9).requires_grad_(False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[2].requires_grad_(False)
        assert prunable_names(model) == ["0.weight", "1.weight"]
    model[2].requires_grad_(True)
    model[1].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prunable_names(model) == ["0.weight", "2.weight"]  # 30 frozen, 30 chosen
        assert prunable_names(model, ["0.weight"]) == ["0.weight"]
        assert prunable_names(model, exclude=["1.*", "2.*"]) == ["0.weight"]
    with pytest.warns(
        UserWarning, match=r"30 weights of 1 layers, such as '1.weight', .* only 12 others, .*'0.weight'"
    ):
        prunable_names(model, exclude=["2.*"])


def test_complex_parameters_are_not_pruned() -> None:
    model = nn.ModuleDict({"wave": nn.Linear(2, 3, dtype=torch.cfloat), "body": nn.Linear(40, 40)})
    assert prunable_names(model) == ["body.weight"]
    assert prunable_names(model, ["*.weight"]) == ["body.weight"]
    with pytest.raises(
        ConfigError, match=r"pattern 'wave.\*': parameter 'wave.weight' is complex \(complex64\), and only"
    ):
        prunable_names(model, ["wave.*"])
    with pytest.raises(ConfigError, match=r"1 complex \(such as 'wave.weight'\).*1 excluded"):
        prunable_names(nn.ModuleDict({"wave": model["wave"], "body": nn.Linear(4, 4, bias=False)}), exclude=["body.*"])
    model["wave"] = nn.Linear(40, 40, dtype=torch.cfloat)
    message = r"leave out 1,600 of 3,200 weights .*unknown or their weights complex: 'wave.weight' \(Linear\)"
    with pytest.raises(ConfigError, match=message):
        prunable_names(model)
    assert prunable_names(model, exclude=["wave.*"]) == ["body.weight"]


def test_parameters_without_entries_are_not_pruned() -> None:
    model = nn.ModuleDict({"empty": nn.Linear(0, 4), "body": nn.Linear(4, 4)})
    assert prunable_names(model) == ["body.weight"]
    assert prunable_names(model, ["*.weight"]) == ["body.weight"]
    with pytest.raises(
        ConfigError, match=r"no prunable parameter is left: .* 1 without entries \(such as 'empty.weight'\)"
    ):
        prunable_names(model, ["empty.*"])
    with pytest.raises(ConfigError, match=r"no prunable parameter is left: .*1 without entries \(such as 'weight'\)"):
        prunable_names(nn.Linear(0, 4, bias=False))
