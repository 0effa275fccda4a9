"""Masks over DTensors, and `isp.Pruner` under FSDP2, compared with those of the whole tensors."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

import isp
from isp import masks, sharded, superposition
from isp.errors import ConfigError, MaskError
from isp.families import denoised
from isp.losses import default_loss
from isp.ranks import Ranks
from isp.sparsity import num_pruned
from isp.superposition import Superposition
from tests.support.loops import BATCH, PEAK, STEPS, Loop
from tests.support.models import Still, tiny_model
from tests.support.naive import naive
from tests.support.ranks import run_checks

SHAPES = {"d.plain": (5, 8), "b.even": (6, 16), "c.uneven": (7, 8), "a.vector": (9,), "e.one_row": (1, 24)}
"""Of two ranks, the second holds no part of `e.one_row`."""
VALUES: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda shape, generator: torch.randn(shape, generator=generator),
    "few values": lambda shape, generator: torch.randint(-2, 3, shape, generator=generator).float(),
    "zeros of both signs": lambda shape, generator: torch.randn(shape, generator=generator).sign().mul(0.0),
    "mostly zero": lambda shape, generator: torch.randn(shape, generator=generator).sub(1.5).relu(),
    "bf16": lambda shape, generator: torch.randn(shape, generator=generator).bfloat16(),
    "far apart": lambda shape, generator: (
        torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator).mul(80).sub(40).exp()
    ),
}
SCOPES = ("global", "layer")
SPARSITIES = [Decimal(text) for text in ("0", "0.5", "0.8", "0.9999")]


def draw(values: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: VALUES[values](shape, generator) for name, shape in SHAPES.items()}


def draw_mask(density: float, seed: int = 0) -> masks.Mask:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()}


@cache
def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def distributed(tensor: Tensor, placement: Placement) -> DTensor:
    """The DTensor of a tensor that every rank has; nothing is communicated."""
    return distribute_tensor(tensor.clone(), mesh(), [placement], src_data_rank=None)


def shard(weights: dict[str, Tensor], plain: tuple[str, ...] = ("d.plain",), replicated: tuple[str, ...] = ()) -> Any:
    """The same as DTensors, all but some of them."""
    return {
        name: tensor.clone() if name in plain else distributed(tensor, Replicate() if name in replicated else Shard(0))
        for name, tensor in weights.items()
    }


def assert_equal(several: Any, whole: Any) -> None:
    """The same names in the same order, and this rank's parts of the same bits."""
    assert list(several) == list(whole)
    for name, tensor in whole.items():
        split = several[name]
        expected = distributed(tensor, split.placements[0]).to_local() if isinstance(split, DTensor) else tensor
        assert split.shape == tensor.shape, name
        assert split.dtype == tensor.dtype, name
        assert torch.equal(sharded.local(split), expected), name


def is_sharded(mask: Any) -> bool:
    return [name for name in mask if not isinstance(mask[name], DTensor)] == ["d.plain"] and all(
        tensor.placements == (Shard(0),) for tensor in mask.values() if isinstance(tensor, DTensor)
    )


# --- on two ranks -----------------------------------------------------------------------------------------------------


def check_selection() -> None:
    """Every kind of values, at every sparsity and scope; by magnitude or not, with ties or not, within half or all."""
    variants = [(values, sparsity, scope) for values in VALUES for sparsity in SPARSITIES for scope in SCOPES]
    for index, (values, sparsity, scope) in enumerate(variants):
        scores, ties, half = draw(values), draw("few values", 1), draw_mask(0.5)
        options: dict[str, Any] = {"sparsity": sparsity, "scope": scope, "absolute": index % 3 > 0}
        with_ties, limited = index % 4 > 1, index % 5 > 2 and sparsity >= Decimal("0.8")
        whole = masks.keep_top(scores, ties=ties if with_ties else None, within=half if limited else None, **options)
        kept = masks.keep_top(
            shard(scores), ties=shard(ties) if with_ties else None, within=shard(half) if limited else None, **options
        )
        assert_equal(kept, whole)
        assert is_sharded(kept)


def check_mixtures() -> None:
    """Inputs of which some are plain or replicated where others are sharded; a parameter is sharded where any is."""
    scores, ties, half, options = draw("few values"), draw("normal", 1), draw_mask(0.5), {"sparsity": Decimal("0.8")}
    whole = masks.keep_top(scores, ties=ties, within=half, **options)
    for kept in (
        masks.keep_top(shard(scores), ties=ties, within=half, **options),
        masks.keep_top(scores, ties=shard(ties), within=half, **options),
        masks.keep_top(scores, ties=ties, within=shard(half), **options),
        masks.keep_top(shard(scores, replicated=tuple(SHAPES)), ties=shard(ties), within=half, **options),
    ):
        assert_equal(kept, whole)
        assert is_sharded(kept)
    replicated = masks.keep_top(shard(scores, replicated=tuple(SHAPES)), ties=ties, within=half, **options)
    assert_equal(replicated, whole)
    assert replicated["b.even"].placements == (Replicate(),)
    some = masks.keep_top(shard(scores, replicated=("b.even", "a.vector")), ties=ties, within=half, **options)
    assert_equal(some, whole)


def check_many() -> None:
    """So many weights, in shards of unequal size, that the plain selection brackets the threshold by a sample."""
    generator = torch.Generator().manual_seed(0)
    scores = {"x": torch.randn(501, 60, generator=generator), "a": torch.randn(33, 100, generator=generator)}
    scores["x"][:200] = scores["x"][:200].mul(4).round().div(4)
    for sparsity in SPARSITIES:
        kept = masks.prune_by_magnitude(shard(scores), sparsity)
        assert_equal(kept, masks.prune_by_magnitude(scores, sparsity))
        total = masks.num_weights(scores)
        assert masks.num_kept(kept) == total - num_pruned(sparsity, total)


def check_patterns() -> None:
    """N:M along the inputs, which are whole on every rank, or of which shards hold whole groups."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"linear": (5, 8), "conv1d": (16, 3), "one_row": (1, 4), "plain": (2, 4)}
    input_dims = {"conv1d": 0}
    scores = {name: torch.randint(-2, 3, shape, generator=generator).float() for name, shape in shapes.items()}
    ties = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for scope, sparsities in {"2:4": ("0.3", "0.5"), "1:4": ("0.5", "0.75")}.items():
        within: Any = None
        for sparsity in sparsities:
            options: dict[str, Any] = {"sparsity": Decimal(sparsity), "scope": scope, "input_dims": input_dims}
            whole = masks.keep_top(scores, ties=ties, within=within, absolute=True, **options)
            kept = masks.keep_top(
                shard(scores, ("plain",)), ties=shard(ties, ("plain",)), within=within, absolute=True, **options
            )
            assert_equal(kept, whole)
            within = whole
        pattern = masks.parse_scope(scope)
        assert pattern is not None
        masks.check_pattern(kept, pattern, input_dims)
        whole["linear"] = torch.ones_like(whole["linear"])
        with pytest.raises(MaskError, match="of parameter 'linear'"):
            masks.check_pattern(shard(whole, ("plain",)), pattern, input_dims)
    with pytest.raises(ConfigError, match=r"a shard of parameter 'x' of shape \(12, 3\) ends after input 6, within"):
        masks.keep_top(shard({"x": torch.ones(12, 3)}), sparsity=Decimal("0.5"), scope="2:4", input_dims={"x": 0})
    one = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    one["linear"][4, :7] = False
    with pytest.raises(MaskError, match="'linear': only 0 of 4 weights of a group are alive"):
        masks.keep_top(
            shard(scores, ("plain",)),
            sparsity=Decimal("0.5"),
            within=shard(one, ("plain",)),
            scope="2:4",
            input_dims=input_dims,
        )


def check_counts_and_sets() -> None:
    """What is counted over all ranks, set operations, and masks that are packed."""
    several = [draw_mask(density, seed) for seed, density in enumerate((0.3, 0.6, 0.5))]
    split = [shard(mask) for mask in several]
    assert masks.num_weights(split[0]) == masks.num_weights(several[0])
    assert masks.num_kept(split[0]) == masks.num_kept(several[0])
    assert masks.num_kept_each(split[0]) == masks.num_kept_each(several[0])
    assert masks.sparsity(split[0]) == masks.sparsity(several[0])
    weights = draw("normal")
    whole = masks.gathered(shard(weights))
    assert list(whole) == list(weights)
    assert all(torch.equal(whole[name], weights[name]) for name in weights)
    assert_equal(masks.ones(shard(weights)), masks.ones(weights))
    assert_equal(masks.magnitudes(shard(weights)), masks.magnitudes(weights))
    packed = [masks.Packed(masks.pack_each(mask), shard(weights)) for mask in split]
    bits = sum(len(each) for each in packed[0].bits.values())
    assert bits <= masks.num_weights(weights) // 8 // 2 + 2 + len(SHAPES) + SHAPES["d.plain"][0]
    for operands in (split, packed, [split[0], several[1], packed[2]]):
        assert_equal(masks.union(*operands), masks.union(*several))
        assert_equal(masks.intersection(*operands), masks.intersection(*several))
        assert_equal(masks.votes(operands), masks.votes(several))
        assert masks.overlaps_by_layer(operands) == masks.overlaps_by_layer(several)
        assert masks.overlap(operands[0], operands[1]) == masks.overlap(several[0], several[1])
        assert superposition.agreement(operands) == superposition.agreement(several)
        assert superposition.changed(operands[0], operands[1]) == superposition.changed(several[0], several[1])
    with pytest.raises(MaskError, match="gather it first"):
        masks.pack(split[0])


def check_apply() -> None:
    """Dropped weights are +0.0 in place; a plain mask applies to sharded weights, and not the other way round."""
    mask = draw_mask(0.5)
    for values in ("normal", "bf16"):
        weights = draw(values)
        split, again = shard(weights), shard(weights)
        masks.apply_(shard(mask), split)
        masks.apply_(mask, again)
        masks.apply_(mask, weights)
        assert_equal(split, weights)
        assert_equal(again, weights)
    with pytest.raises(ConfigError, match="sharded but the weights are not"):
        masks.apply_(shard(mask), draw("normal"))
    with pytest.raises(ConfigError, match=r"parameter 'b.even': the mask is sharded but the weights are not"):
        masks.apply_(shard(mask), shard(draw("normal"), replicated=("b.even",)))


def check_superposition() -> None:
    """Each rule, with what is recorded of a round, by `aggregate`."""
    weights, within = draw("normal"), draw_mask(0.8)
    copies = [{n: w + draw("normal", 5 + i)[n] for n, w in weights.items()} for i in range(3)]
    for rule in ("mean_score", "votes", "union", "literal"):
        for scope in ("global", "layer"):
            events = []
            for form in (lambda each: each, shard):
                superposed = Superposition(
                    rule=rule,
                    sparsity=Decimal("0.7"),
                    within=form(within),
                    scope=scope,  # type: ignore[no-untyped-call]
                )
                for each in copies:
                    contribution = superposition.contribution_to(rule)
                    superposed.add(
                        superposition.weak(contribution, form(each), superposed.sparsity, superposed.within, scope)
                    )
                events.append(denoised.aggregate(superposed, form(weights), {"round": 0}))
            assert_equal(events[1].mask, events[0].mask)
            assert events[1].record == events[0].record
            assert 0 < events[1].record["agreement"] < 1


def check_errors() -> None:
    """On every rank, wherever the reason is; the same texts as of whole tensors where these have them."""
    scores, options = draw("normal"), {"sparsity": Decimal("0.5")}
    for where in ((0, 0), (-1, -1)):
        scores["c.uneven"][where] = float("nan")
        with pytest.raises(MaskError, match=r"the scores of parameter 'c.uneven' contain NaN"):
            masks.keep_top(shard(scores), **options)
        scores["c.uneven"][where] = 0.0
    with pytest.raises(MaskError) as whole:
        masks.keep_top(scores, within=draw_mask(0.2), **options)
    with pytest.raises(MaskError) as split:
        masks.keep_top(shard(scores), within=shard(draw_mask(0.2)), **options)
    assert str(split.value) == str(whole.value)
    with pytest.raises(MaskError, match=r"has no parameter 'b.even'"):
        masks.keep_top(
            shard(scores), within=shard({n: m for n, m in draw_mask(0.9).items() if n != "b.even"}), **options
        )
    on, square = mesh(), init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("a", "b"))
    weight = torch.ones(4, 4)
    for tensor, shown in (
        (distribute_tensor(weight, on, [Shard(1)]), r"\(Shard\(dim=1\),\) on a mesh of 1 dim"),
        (DTensor.from_local(weight, on, [Partial()]), r"\(Partial\(sum\),\) on a mesh of 1 dim"),
        (distribute_tensor(weight, square, [Shard(0), Replicate()]), "on a mesh of 2 dim"),
    ):
        with pytest.raises(ConfigError, match=rf"parameter 'x' has the placements .*{shown}.*must be \(Shard\(0\),\)"):
            masks.keep_top({"a": weight, "x": tensor}, **options)
        with pytest.raises(ConfigError, match="parameter 'x'"):
            masks.num_kept({"x": tensor})
    first = DeviceMesh("cpu", [0])
    if dist.get_rank() == 0:
        with pytest.raises(ConfigError, match=r"parameter 'y' is on .*same mesh"):
            sharded.layout(
                {"x": distribute_tensor(weight, on, [Replicate()], src_data_rank=None)},
                {"y": distribute_tensor(weight, first, [Shard(0)], src_data_rank=None)},
            )


def check_communication() -> None:
    """What is summed over the ranks does not grow with the number of weights."""
    sizes = []
    real = sharded.Layout.reduce

    def reduce(self: sharded.Layout, counts: Tensor, *arguments: Any) -> Tensor:
        sizes[-1] += counts.numel() * counts.element_size()
        return real(self, counts, *arguments)

    sharded.Layout.reduce = reduce  # type: ignore[method-assign]
    try:
        for rows in (10, 1000):
            sizes.append(0)
            masks.prune_by_magnitude(shard({"x": torch.arange(10.0 * rows).view(rows, 10)}), Decimal("0.5"))
    finally:
        sharded.Layout.reduce = real  # type: ignore[method-assign]
    assert sizes == [8 * (2048 + 2048 + 1024) + 8] * 2  # the histograms, and a count of NaN


def check_same_mask() -> None:
    """Ranks whose replicated bits or layout differ are named; sharded bits differ by nature."""
    mask, rank = draw_mask(0.5), dist.get_rank()
    sharded.check_same_everywhere(mask)
    sharded.check_same_everywhere(shard(mask))
    other = {**mask, "b.even": ~mask["b.even"]} if rank else mask
    with pytest.raises(MaskError, match=r"^the mask differs between ranks: rank 1 and rank 0 have different ones"):
        sharded.check_same_everywhere(other)
    with pytest.raises(MaskError, match=r"^the mask of round 3 differs between ranks"):
        sharded.check_same_everywhere(
            {**shard(mask), "d.plain": other["d.plain"] ^ bool(rank)}, what="the mask of round 3"
        )
    split = shard(mask)
    with pytest.raises(MaskError, match="differs"):
        sharded.check_same_everywhere(split if rank else mask)


# --- isp.Pruner under FSDP2 -------------------------------------------------------------------------------------------


class Fp64(Still):
    """Examples for a model in double precision, in which the order of a sum hardly shows."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = super().batch(indices)
        return inputs.double(), labels


ISP = {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 2, "look_ahead_steps": 3}
OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=PEAK, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=PEAK, momentum=0.9, weight_decay=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=PEAK, fused=True),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=PEAK),
}


def fsdp_model() -> nn.Module:
    model = whole_model()
    for module in (model.up, model.down, model):
        fully_shard(module)
    return model


def whole_model() -> Any:
    model = tiny_model().double()
    model.dropout.p = 0.0  # else every rank draws other neurons
    return model


def loop(model: nn.Module, method: str, optimizer: Any = "AdamW", **changed: Any) -> Loop:
    """A loop of this rank, or, of a model that is not sharded, one of a single process."""
    split = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    arguments = {"sparsity": "0.8", "exclude": ["head.*"], "loss": None, **changed}
    if method.startswith("isp"):
        arguments["settings"] = ISP
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else lambda parameters: optimizer
    ranks = Ranks.here() if split else Ranks()
    arguments["batch_size"] = BATCH // ranks.size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "here", lambda: ranks)
        return Loop(model, Fp64(), make, method=method, **arguments)


def train(trained: Loop, steps: int = STEPS) -> Loop:
    """Train up to a step, each rank on its part of every batch."""
    for step in range(trained.pruner.steps_done, steps):
        update(trained, step)
        trained.pruner.step()
    return trained


def update(trained: Loop, step: int) -> None:
    indices = isp.BatchOrder(len(trained.examples), BATCH, 0)(step)
    trained.train_step(trained.examples.batch(trained.pruner._ranks.share(indices)))


def assert_zeros(trained: Loop) -> None:
    """Masked weights, and what the optimizer keeps for each of them, are zero."""
    mask = trained.pruner.mask
    assert mask is not None
    for name, kept in mask.items():
        parameter = trained.model.get_parameter(name)
        moments = [m for m in trained.optimizer.state[parameter].values() if m.shape == parameter.shape]
        for tensor in (parameter.detach(), *moments):
            assert type(tensor) is type(kept) is DTensor
            assert not tensor.to_local()[~kept.to_local()].any(), name


def assert_close(ours: isp.Ticket, theirs: isp.Ticket) -> None:
    """The same masks and records, and weights that differ by rounding only."""
    assert ours.rounds == theirs.rounds
    for name, kept in theirs.mask.items():
        assert torch.equal(ours.mask[name], kept), name
    assert list(ours.weights) == list(theirs.weights)
    for name, weight in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=0, atol=1e-9)


def check_pruner() -> None:
    """At every event the mask of an unsharded run; its weights to 1e-9 (fp64)."""
    for method, optimizer in {"one_shot": "SGD", "gradual": "Adam", "movement": "NAdam", "isp": "AdamW"}.items():
        whole, split = loop(whole_model(), method, optimizer), loop(fsdp_model(), method, optimizer)
        for step in range(STEPS):
            for each in (whole, split):
                update(each, step)
            assert split.pruner.step() == whole.pruner.step()
            if whole.pruner.mask is not None:
                assert_equal(split.pruner.mask, whole.pruner.mask)
                assert_zeros(split)
            assert split.pruner.sparsity == whole.pruner.sparsity
        assert_close(split.pruner.ticket(), whole.pruner.ticket())


def check_gradients() -> None:
    """Gradients of masked weights are zero before they are clipped, also when several passes are accumulated."""
    split = loop(fsdp_model(), "one_shot")
    inputs, labels = split.examples.batch(torch.arange(4) + 4 * dist.get_rank())
    for set_to_none in (True, False):
        for _ in range(2):
            default_loss(split.model, (inputs, labels)).backward()
        for name, kept in (split.pruner.mask or {}).items():
            gradient: Any = split.model.get_parameter(name).grad
            assert not gradient.to_local()[~kept.to_local()].any()
        gradients = {name: split.model.get_parameter(name).grad for name in split.pruner.mask or {}}
        assert masks.num_kept(gradients) > 0  # type: ignore[arg-type]
        split.optimizer.zero_grad(set_to_none=set_to_none)


def check_resume() -> None:
    """A new model and optimizer that load the states continue to the bit, within the ramp and between rounds."""
    for method, stop in (("movement", 10), ("isp", 5)):
        through, first = (loop(fsdp_model(), method) for _ in range(2))
        train(through)
        train(first, stop)
        second = loop(fsdp_model(), method)
        second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        second.load_state_dict(first.state_dict())
        second.pruner.load_state_dict(copy.deepcopy(first.pruner.state_dict()))
        train(second)
        ours, theirs = second.pruner.ticket(), through.pruner.ticket()
        assert all(torch.equal(ours.mask[name], theirs.mask[name]) for name in theirs.mask)
        assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
        assert ours.rounds == theirs.rounds
    fresh = loop(fsdp_model(), "isp")
    fresh.pruner.load_state_dict(first.pruner.state_dict())
    with pytest.raises(ConfigError, match=r"weights of parameter .* that the loaded mask drops are not zero"):
        train(fresh, stop + 1)
    state = loop(whole_model(), "isp").pruner.state_dict()
    with pytest.raises(ConfigError, match="world_size is 1 in the state and 2 here"):
        fresh.pruner.load_state_dict(state)


def check_after_an_evaluation() -> None:
    """A forward pass without a backward one leaves whole parameters in the root module; the pruner reshards them."""
    model, whole = fsdp_model(), loop(whole_model(), "one_shot")
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    with torch.no_grad():
        model(whole.examples.batch(torch.arange(4))[0])
    split = loop(model, "one_shot", optimizer=optimizer)
    assert_equal(split.pruner.mask, whole.pruner.mask)
    with torch.no_grad():
        model(whole.examples.batch(torch.arange(4))[0])
    assert_close(train(split).pruner.ticket(), train(whole).pruner.ticket())


def check_refused() -> None:
    """What is not supported, in the constructor, on all ranks."""
    for method in ("snip", "wanda", "synflow"):
        with pytest.raises(ConfigError, match="not supported for sharded parameters"):
            loop(fsdp_model(), method)
    for size, names in (((1, 2), ("outer", "inner")), ((2, 1), ("outer", "inner"))):
        model = whole_model()
        fully_shard(model, mesh=init_device_mesh("cpu", size, mesh_dim_names=names))
        with pytest.raises(ConfigError, match=r"'attention.in_proj_weight' has .* on a mesh of 2 dimensions"):
            loop(model, "one_shot")
    model = whole_model()
    fully_shard(
        model, shard_placement_fn=lambda parameter: Shard(parameter.dim() - 1) if parameter.shape[-1] == 8 else None
    )
    with pytest.raises(ConfigError, match=r"has the placements \(Shard\(dim=1\),\)"):
        loop(model, "one_shot")
    flat: Any = FullyShardedDataParallel(nn.Sequential(nn.Linear(8, 8)), device_id=torch.device("cpu"))
    with pytest.raises(ConfigError, match="FullyShardedDataParallel, whose flat parameters cannot be pruned"):
        isp.Pruner(flat, torch.optim.SGD(flat.parameters()), sparsity="0.5", steps=3, method="one_shot")


def check_ranks_that_drift_apart() -> None:
    """Parameters that nobody shards or synchronises differ after an update, and the next mask with them."""
    model = whole_model()
    fully_shard(model.up)
    split = loop(model, "gradual", clip_norm=None)
    with pytest.raises(MaskError, match=r"^the mask differs between ranks: rank 1 "):
        train(split)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_checks(CHECKS, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.process
@pytest.mark.parametrize("name", CHECKS)
def test_on_two_ranks(name: str, results: dict[str, str]) -> None:
    assert not results[name], results[name]


# --- on one -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), -float("inf"), 1e-45, -1e-45, 3.4028234663852886e38]),
    st.floats(width=32, allow_nan=False),
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
@pytest.mark.usefixtures("one_rank")
def test_selection_equals_a_sort(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    draw = lambda values: {  # noqa: E731
        f"p{i}": torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float32)
        for i, n in enumerate(sizes)
    }
    scores, ties = draw(NUMBERS), data.draw(st.none() | st.builds(lambda: draw(NUMBERS)))
    within = data.draw(st.none() | st.builds(lambda: draw(st.booleans())))
    within = within and {name: tensor.bool() for name, tensor in within.items()}
    scope, absolute = data.draw(st.sampled_from(["global", "layer"])), data.draw(st.booleans())
    total = masks.num_weights(scores)
    most = total if within is None else masks.num_kept(within)
    wanted = data.draw(st.integers(min(1, most), most))
    sparsity = (Decimal(total - wanted) / total).quantize(Decimal("0.0001"))
    if total - num_pruned(sparsity, total) != wanted or sparsity >= 1:
        return
    kept = masks.keep_top(
        shard(scores, ()), sparsity=sparsity, ties=ties, within=within, absolute=absolute, scope=scope
    )
    assert_equal(kept, naive(scores, ties, within, sparsity, absolute, scope))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 2), min_size=1, max_size=40), st.data())
def test_the_digits_of_a_key_lead_to_it(numbers: list[int], data: st.DataObject) -> None:
    keys, wanted = torch.tensor(numbers, dtype=torch.int32), data.draw(st.integers(0, len(numbers)))
    prefix, above = 0, 0
    for low, bits in sharded._DIGITS:
        digit, more, equal = sharded._digit(sharded._histogram(keys, low, bits, prefix), wanted - above)
        prefix, above = (prefix << bits) | digit, above + more
    found = prefix - 2**31
    assert found == (sorted(numbers, reverse=True)[wanted - 1] if wanted else 2**31 - 1)
    assert (above, equal) == (sum(each > found for each in numbers), numbers.count(found))


@pytest.mark.parametrize(("rows", "ranks"), [(7, 2), (1, 2), (6, 4), (5, 4), (8, 4)])
def test_bounds_are_those_of_chunks(rows: int, ranks: int) -> None:
    class Mesh:
        def size(self) -> int:
            return ranks

    class Like:
        shape = (rows, 3)

    layout = sharded.Layout(Mesh(), {"x": Like()})  # type: ignore[arg-type, dict-item]
    sizes = [len(chunk) for chunk in torch.ones(rows, 3).chunk(ranks)]
    bounds = layout.bounds("x")
    assert [stop - start for start, stop in pairwise(bounds)] == sizes + [0] * (ranks - len(sizes))


def test_without_processes_there_is_nothing_to_compare() -> None:
    sharded.check_same_everywhere(draw_mask(0.5))


@pytest.mark.process
def test_masks_import_nothing_distributed() -> None:
    code = (
        "import sys, isp.masks, torch; print('torch.distributed.tensor' in sys.modules, 'isp.sharded' in sys.modules)"
    )
    kept = "from decimal import Decimal; isp.masks.prune_by_magnitude({'x': torch.ones(4)}, Decimal('0.5'))"
    code = f"import isp.masks, torch; {kept}; {code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
