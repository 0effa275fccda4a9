from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn

from isp.costs import Cost
from isp.counting import count_step_flops, counting
from isp.losses import default_loss
from tests.support.models import Noisy, tiny_model


def test_costs_add_up() -> None:
    assert Cost(steps=1, samples=2, flops=3) + Cost(steps=10, sparse_flops=4) == Cost(
        steps=11, samples=2, flops=3, sparse_flops=4
    )


def test_flops_of_a_linear_network_by_hand() -> None:
    """Two layers, batch 5: 2 * 5 * 3 * 4 and 2 * 5 * 4 * 2 forward; the first layer's input needs no gradient."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    flops = count_step_flops(model, default_loss, batch, ["2.weight"])
    assert flops.total == (2 * 120 + 3 * 80,)
    assert flops.by_weight == {"2.weight": (3 * 80,)}
    half = {"2.weight": torch.tensor([[True] * 4, [False] * 4])}
    assert flops.steps({0: 1}, half) == (480, 480 - 3 * 40)
    assert flops.steps({0: 7}) == (7 * 480, 7 * 480)


def test_flops_of_a_first_layer_whose_input_needs_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    flops = count_step_flops(model, default_loss, batch, ["0.weight", "2.weight"])
    assert flops.by_weight == {"0.weight": (2 * 120,), "2.weight": (3 * 80,)}
    nothing = {name: torch.zeros_like(model.get_parameter(name)).bool() for name in flops.by_weight}
    assert flops.steps({0: 1}, nothing) == (480, 0)


class Growing(nn.Module):
    """A network that assigns a larger table of positions when it first needs one, beside an expanded buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("table", torch.zeros(1), persistent=False)
        self.register_buffer("scale", torch.ones(1).expand(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < len(x):
            self.table = torch.arange(float(len(x)))
        return self.layer(x) * self.scale + self.table[: len(x), None]


def test_counting_restores_buffers_that_the_forward_pass_replaces() -> None:
    model = Growing()
    before = model.table
    count_step_flops(model, default_loss, (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)), ["layer.weight"])
    assert model.table is before
    assert torch.equal(before, torch.zeros(1))


def test_counting_leaves_the_buffers_of_norms_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    count_step_flops(model, default_loss, (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)), [])
    assert model[1].num_batches_tracked == 0
    assert not model[1].running_mean.any()


def test_flops_of_attention_projections_are_found() -> None:
    """`nn.MultiheadAttention` never calls its `out_proj`; hook-based counters miss it. 16 * 5 tokens."""
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = ["attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight"]
    flops = count_step_flops(model, default_loss, Noisy().batch(torch.arange(16)), names)
    products = dict.fromkeys(names, 3) | {names[0]: 2}  # the first layer's input needs no gradient
    assert flops.by_weight == {name: (products[name] * 2 * 80 * model.get_parameter(name).numel(),) for name in names}
    products_of_weights = sum(coefficients[0] for coefficients in flops.by_weight.values())
    assert products_of_weights < flops.total[0] < 1.3 * products_of_weights
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flops_of_vit_b32_by_hand() -> None:
    """50 tokens through 84,934,656 prunable weights, attention, patches and projection; no weights are allocated."""
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")).visual
        pictures = torch.empty(1, 3, 224, 224)
    flops = count_step_flops(model, lambda model, batch: model(batch).sum(), pictures, [])
    blocks, projection = 2 * 50 * 84_934_656, 2 * 768 * 512
    attention = 12 * 12 * 2 * (2 * 50 * 50 * 64)  # layers, heads, two products
    patches = 2 * 49 * 768 * 3 * 32 * 32  # the images need no gradient
    assert flops.total == (3 * (blocks + attention + projection) + 2 * patches,)


class Recurrent(nn.Module):
    """A recurrent layer from 4 features to 6, batch first."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.layer = kind(4, 6, batch_first=True, **settings)

    def forward(self, inputs: Any) -> Tensor:
        outputs = self.layer(inputs)[0]
        return outputs.data if isinstance(outputs, rnn.PackedSequence) else outputs


def squares(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().sum()


SHAPES: list[dict[str, Any]] = [{}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((kind, shape) for kind in (nn.RNN, nn.GRU, nn.LSTM) for shape in SHAPES), (nn.LSTM, {"proj_size": 2})],
)
def test_flops_of_recurrent_layers_by_hand(kind: type[nn.RNNBase], settings: dict[str, Any]) -> None:
    """3 sequences of 5 steps: every matrix multiplies each step's vector, forward and for its own gradient.

    The gradient of what it multiplies is not needed for the inputs of the first layer and for the first state.
    """
    model = Recurrent(kind, **settings)
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 2]
    flops = count_step_flops(model, squares, torch.randn(3, 5, 4), names)
    expected = {}
    for name in names:
        once = 2 * 3 * model.get_parameter(name).numel()
        gradients_of_inputs = 0 if "_ih_l0" in name else 4 if "_hh_" in name else 5
        expected[name] = (once * (2 * 5 + gradients_of_inputs),)
    assert flops.by_weight == expected
    assert flops.total == (sum(number for (number,) in expected.values()),)
    nothing = {name: torch.zeros_like(model.get_parameter(name)).bool() for name in names}
    assert flops.steps({0: 1}, nothing)[1] == 0


def test_flops_of_packed_sequences_and_of_cells_by_hand() -> None:
    """5 + 2 + 3 steps: no padding is multiplied; each sequence's first state needs no gradient."""
    packed = rnn.pack_padded_sequence(torch.randn(3, 5, 4), torch.tensor([5, 2, 3]), True, enforce_sorted=False)
    names = ["layer.weight_ih_l0", "layer.weight_hh_l0"]
    flops = count_step_flops(Recurrent(nn.LSTM), squares, packed, names)
    assert flops.by_weight == {names[0]: (2 * 10 * 2 * 96,), names[1]: ((2 * 10 + 7) * 2 * 144,)}

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 6)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.cell(inputs)

    flops = count_step_flops(Cell(), squares, torch.randn(3, 4), ["cell.weight_ih", "cell.weight_hh"])
    assert flops.by_weight == {"cell.weight_ih": (2 * 2 * 3 * 72,), "cell.weight_hh": (2 * 2 * 3 * 108,)}


def test_counting_leaves_the_fused_kernels_as_they_were() -> None:
    model, inputs = Recurrent(nn.LSTM), torch.randn(3, 5, 4)
    before = [torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled]
    with counting(model) as counter:
        model(inputs)
    assert counter.cost().flops == 2 * 3 * 5 * (96 + 144)
    with pytest.raises(ZeroDivisionError), counting(model):
        raise ZeroDivisionError
    assert [torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled] == before


def test_flops_of_weights_in_one_storage() -> None:
    """As views of one vector, which optimizers, task vectors and recurrent layers make of them, and side by side."""
    apart, together = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(apart.parameters()).detach(), together.parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in together.parameters()}) == 1
    batch = (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    names = ["0.weight", "2.weight"]
    a, b = (count_step_flops(model, default_loss, batch, names) for model in (apart, together))
    assert a == b
    nothing = {name: torch.zeros_like(together.get_parameter(name)).bool() for name in names}
    assert b.steps({0: 1}, nothing) == (480, 0)


@pytest.mark.parametrize("normalised", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_flops_of_a_computed_weight_are_those_of_what_it_is_computed_from(normalised: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), normalised(nn.Linear(4, 2)))
    name = next(name for name, parameter in model.named_parameters() if parameter.shape == (2, 4))
    batch = (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_step_flops(model, default_loss, batch, [name]).by_weight == {name: (3 * 80,)}


def test_a_layer_that_cannot_be_counted_is_named() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bilinear, self.unused = nn.Bilinear(3, 3, 2), nn.Linear(3, 3)
            self.embedding = nn.Embedding(3, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.bilinear(inputs, self.embedding(torch.arange(3))[: len(inputs)])

    names = ["bilinear.weight", "unused.weight", "embedding.weight"]
    with pytest.warns(
        UserWarning, match=r"only aten._trilinear reads parameter 'bilinear.weight', .*; costs may lack"
    ) as seen:
        flops = count_step_flops(Outer(), squares, torch.randn(2, 3), names)
    assert len(seen) == 1  # what is not used or only looked up costs nothing
    assert flops.by_weight == dict.fromkeys(names, (0,))
