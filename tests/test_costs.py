from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from isp.costs import Cost
from isp.counting import count_step_flops, counting
from isp.errors import IspError
from isp.losses import default_loss
from isp.masks import Mask
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


CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
PASSES: list[tuple[bool, dict[str, int], int, int]] = [
    (False, {}, 9, 7),
    (False, {"stride": 2}, 5, 2),
    (False, {"padding": 1}, 11, 11),
    (False, {"dilation": 2}, 7, 3),
    (False, {"stride": 2, "padding": 1, "dilation": 2}, 5, 2),
    (True, {}, 11, 13),
    (True, {"stride": 2, "padding": 1, "output_padding": 1}, 11, 22),
    (True, {"dilation": 2}, 11, 15),
]
"""Whether two convolutions with kernels of width 3 are transposed, their settings, and at how many positions each
multiplies its kernel, if inputs have width 11: positions of the output, or of the input if it is transposed."""


def masked(model: nn.Module, names: Iterable[str], kept: int) -> Mask:
    """Keep the weights of the first outputs, or inputs if the layer is transposed."""
    mask = {name: torch.zeros_like(model.get_parameter(name)).bool() for name in names}
    for each in mask.values():
        each[:kept] = True
    return mask


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("transposed", "settings", "first", "second"), PASSES)
def test_flops_of_convolutions_by_hand(
    dims: int, groups: int, transposed: bool, settings: dict[str, int], first: int, second: int
) -> None:
    """Batch 2, 4 channels to 8 to 4; with 4 groups, each channel is convolved alone.

    A weight is multiplied at each position of each example: forward, for its gradient, and in the second layer for that
    of its input.
    """
    layer = CONVOLUTIONS[dims][transposed]
    model = nn.Sequential(layer(4, 8, 3, groups=groups, **settings), layer(8, 4, 3, groups=groups, **settings))
    flops = count_step_flops(model, squares, torch.randn(2, 4, *[11] * dims), ["0.weight", "1.weight"])
    once = [2 * 2 * positions**dims * (4 * 8 // groups) * 3**dims for positions in (first, second)]
    assert flops.by_weight == {"0.weight": (2 * once[0],), "1.weight": (3 * once[1],)}
    assert flops.total == (2 * once[0] + 3 * once[1],)
    executed = flops.total[0]
    assert flops.steps({0: 1}, masked(model, flops.by_weight, 0)) == (executed, 0)
    assert flops.steps({0: 1}, masked(model, flops.by_weight, 8)) == (executed, executed)
    assert 0 < flops.steps({0: 1}, masked(model, flops.by_weight, 1))[1] < executed / 2


def test_flops_of_a_separable_network_by_hand() -> None:
    """A depthwise and a pointwise convolution of 8 x 8 pixels, normalised; 5 examples, 32 channels, a linear head."""
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    names = ["0.weight", "3.weight", "6.weight"]
    flops = count_step_flops(model, squares, torch.randn(5, 32, 8, 8), names)
    depthwise, pointwise, head = 2 * 5 * 64 * 32 * 9, 2 * 5 * 64 * 32 * 16, 2 * 5 * 16 * 4
    assert flops.by_weight == {names[0]: (2 * depthwise,), names[1]: (3 * pointwise,), names[2]: (3 * head,)}
    assert flops.total == (2 * depthwise + 3 * pointwise + 3 * head,)


def test_flops_of_convolutions_that_need_only_one_gradient() -> None:
    """2 examples of 4 x 4 positions; two groups of 4 weights."""
    model, inputs = nn.Conv2d(4, 4, 1, groups=2, bias=False), torch.randn(2, 4, 4, 4)
    once = 2 * 2 * 16 * 8
    for trained, differentiable in [(True, False), (False, True), (True, True)]:
        model.weight.requires_grad_(trained)
        with counting(model) as counter:
            squares(model, inputs.detach().requires_grad_(differentiable)).backward()
        assert counter.cost().flops == (1 + trained + differentiable) * once


def convolved(inputs: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(inputs, weight, padding=1).tanh()


def convolved_internally(inputs: Tensor, weight: Tensor) -> Tensor:
    return torch._convolution(inputs, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False, True, True)


@pytest.mark.parametrize(
    ("convolve", "passes"),
    [
        (convolved, 2),
        (convolved_internally, 2),
        (lambda inputs, weight: F.conv2d(inputs, weight, padding="same", dilation=2), 2),
        (lambda inputs, weight: convolved(inputs[0], weight), 2 / 2),
        (lambda inputs, weight: convolved(inputs, 2 * weight), 2),
        (lambda inputs, weight: convolved(inputs.bfloat16(), weight.bfloat16()), 2),
        (lambda inputs, weight: checkpoint(convolved, inputs, weight, use_reentrant=False), 3),
        (lambda inputs, weight: convolved(weight, inputs), 2),
    ],
    ids=["padded", "internal", "same", "unbatched", "scaled", "cast", "checkpointed", "as input"],
)
def test_flops_of_convolutions_in_other_ways(convolve: Callable[[Tensor, Tensor], Tensor], passes: float) -> None:
    """2 images of 3 x 3 pixels under 2 kernels: forward and one gradient; a checkpoint repeats the forward pass."""

    class Convolving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, 3, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            return convolve(inputs, self.weight)

    model = Convolving()
    flops = count_step_flops(model, squares, torch.randn(2, 3, 3, 3), ["weight"])
    assert flops.total == (passes * 2 * 2 * 9 * 54,)
    assert flops.by_weight == {"weight": flops.total}


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


def a_step(model: nn.Module, inputs: Tensor) -> None:
    model(inputs).square().sum().backward()


def an_answer(model: nn.Module, inputs: Tensor) -> None:
    """In this mode, a linear layer is one operation, which consists of a transposition and a product."""
    with torch.inference_mode():
        model(inputs)


def a_choice(model: nn.Module, inputs: Tensor) -> Tensor:
    chosen: Tensor = torch.cond(inputs.sum() > 0, model, lambda each: model(each) + 1, (inputs,))
    return chosen


def a_branch(model: nn.Module, inputs: Tensor) -> None:
    """An operation that runs one of two functions."""
    a_choice(model, inputs)


@pytest.mark.parametrize("work", [a_step, an_answer, a_branch])
def test_the_flops_are_those_that_torch_counts(work: Callable[[nn.Module, Tensor], None]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 3))
    inputs = torch.randn(2, 5, 8)
    with counting(model) as counter:
        work(model, inputs)
    with counting(model), FlopCounterMode(display=False) as reference:
        work(model, inputs)
    assert counter.cost().flops == reference.get_total_flops() > 10_000


def test_a_step_whose_weights_cannot_be_followed_is_refused() -> None:
    """Torch's counter sees the products of a branch, but not whose weights they read."""
    model = nn.Linear(8, 8)
    with pytest.raises(IspError, match=r"FLOPs: the training step calls cond, whose .*such as torch\.where"):
        count_step_flops(model, lambda net, inputs: a_choice(net, inputs).sum(), torch.randn(3, 8), ["weight"])


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
