import torch
from torch import nn

from isp.costs import Cost, count_step_flops
from isp.training import default_loss
from tests.conftest import Noisy, tiny_model


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
    patches = 2 * 49 * 768 * 3 * 32 * 32  # the pictures need no gradient
    assert flops.total == (3 * (blocks + attention + projection) + 2 * patches,)
