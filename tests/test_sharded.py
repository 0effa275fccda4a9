"""Masks over DTensors, compared to the bit with those of the whole tensors."""

from __future__ import annotations

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
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from isp import masks, sharded, superposition
from isp.errors import ConfigError, MaskError
from isp.families import denoised
from isp.sparsity import num_pruned
from isp.superposition import Superposition
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
    whole = sharded.gathered(shard(weights))
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
    with pytest.raises(ConfigError, match="sharded and the weights are not"):
        masks.apply_(shard(mask), draw("normal"))
    with pytest.raises(ConfigError, match=r"parameter 'b.even': the mask is sharded and the weights are not"):
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
                for copy in copies:
                    contribution = superposition.contribution_to(rule)
                    superposed.add(
                        superposition.weak(contribution, form(copy), superposed.sparsity, superposed.within, scope)
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
    with pytest.raises(MaskError, match=r"^the mask differs between ranks: that of rank 1 is not that of rank 0"):
        sharded.check_same_everywhere(other)
    with pytest.raises(MaskError, match=r"^the mask of round 3 differs between ranks"):
        sharded.check_same_everywhere(
            {**shard(mask), "d.plain": other["d.plain"] ^ bool(rank)}, what="the mask of round 3"
        )
    split = shard(mask)
    with pytest.raises(MaskError, match="differs"):
        sharded.check_same_everywhere(split if rank else mask)


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
