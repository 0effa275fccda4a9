from decimal import Decimal
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import hamming
from sklearn.metrics import jaccard_score
from sklearn.metrics.pairwise import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from isp import masks
from isp.errors import MaskError
from isp.sparsity import num_pruned
from tests.support.counting import keep_by_counting
from tests.support.naive import naive

T, F = True, False


def mask(**tensors: list[bool]) -> masks.Mask:
    return {name: torch.tensor(values) for name, values in tensors.items()}


A = mask(x=[T, T, F, F], y=[T, F])
B = mask(x=[T, F, T, F], y=[T, F])


def test_counts_by_hand() -> None:
    assert masks.num_weights(A) == 6
    assert masks.num_kept(A) == 3
    assert masks.sparsity(A) == 0.5
    assert [masks.sparsity({name: kept}) for name, kept in A.items()] == [0.5, 0.5]


def test_set_operations_by_hand() -> None:
    assert masks.union(A, B)["x"].tolist() == [T, T, T, F]
    assert masks.intersection(A, B)["x"].tolist() == [T, F, F, F]
    assert masks.votes([A, B, B])["x"].tolist() == [3, 1, 2, 0]


def test_similarities_by_hand() -> None:
    assert masks.hamming(A, B) == 2 / 6
    assert masks.jaccard(A, B) == 2 / 4
    assert masks.cosine(A, B) == pytest.approx(2 / 3)
    assert masks.jaccard(A, A) == masks.cosine(A, A) == 1
    empty = mask(x=[F])
    assert masks.jaccard(empty, empty) == 1
    assert masks.cosine(empty, empty) == 0


def test_overlap_by_hand() -> None:
    x, y = masks.overlap_by_layer(A, B).values()
    assert (x.weights, x.kept_a, x.kept_b, x.kept_both) == (4, 2, 2, 1)
    assert (x.cosine, x.jaccard, x.hamming) == (1 / 2, 1 / 3, 2 / 4)
    assert (y.cosine, y.jaccard, y.hamming) == (1, 1, 0)
    assert x + y == masks.overlap(A, B)
    with pytest.raises(MaskError, match="no parameter 'y'"):
        masks.overlap(A, {"x": B["x"]})


@pytest.mark.parametrize("seed", range(5))
def test_similarities_equal_those_of_scikit_learn_and_scipy(seed: int) -> None:
    """In all and by layer; masks of unequal sparsity."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b": (7, 30), "a": (50,)}
    one, two = ({n: torch.rand(s, generator=generator) < p for n, s in shapes.items()} for p in (0.3, 0.6))
    flat = [np.concatenate([found[name].numpy().ravel() for name in shapes]) for found in (one, two)]
    layers = masks.overlap_by_layer(one, two)
    for overlap, (a, b) in [
        (masks.overlap(one, two), flat),
        *((layers[name], (one[name].numpy().ravel(), two[name].numpy().ravel())) for name in shapes),
    ]:
        assert overlap.cosine == pytest.approx(cosine_similarity([a.astype(float)], [b.astype(float)])[0, 0])
        assert overlap.jaccard == pytest.approx(jaccard_score(a, b))
        assert overlap.hamming == pytest.approx(hamming(a, b))
    assert list(layers) == ["b", "a"]
    assert (masks.cosine(one, two), masks.hamming(one, two)) == (
        masks.overlap(one, two).cosine,
        masks.overlap(one, two).hamming,
    )


def test_rank_by_hand() -> None:
    weights = {"b": torch.tensor([0.5, -3.0]), "a": torch.tensor([[1.0, -2.0], [0.0, 0.1]])}
    kept = masks.prune_by_magnitude(weights, Decimal("0.5"))
    assert kept["a"].tolist() == [[T, T], [F, F]]
    assert kept["b"].tolist() == [F, T]
    assert list(kept) == ["b", "a"]  # the order of the scores


def test_ties_go_to_the_second_key_then_to_position() -> None:
    scores = {"a": torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])}
    by_position = masks.keep_top(scores, sparsity=Decimal("0.4"))
    assert by_position["a"].tolist() == [T, T, F, F, T]
    by_magnitude = masks.keep_top(scores, sparsity=Decimal("0.4"), ties={"a": torch.tensor([0.0, 0.0, -9.0, 1.0, 0.0])})
    assert by_magnitude["a"].tolist() == [F, F, T, T, T]


def test_averaged_binary_masks_hit_the_exact_count() -> None:
    """Thresholding the mean of five random masks at 0.5 misses by 30 points."""
    generator = torch.Generator().manual_seed(0)
    drawn = [{"a": torch.rand(10_000, generator=generator) < 0.5} for _ in range(5)]
    votes = {name: tensor / 5 for name, tensor in masks.votes(drawn).items()}
    assert masks.num_kept(masks.keep_top(votes, sparsity=Decimal("0.5"))) == 5_000


VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), -float("inf"), 1e-45, -1e-45]),
    st.floats(width=32, allow_nan=False),
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_selection_equals_a_sort(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    draw = lambda values: {  # noqa: E731
        f"p{i}": torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float32)
        for i, n in enumerate(sizes)
    }
    scores, ties = draw(VALUES), data.draw(st.none() | st.builds(lambda: draw(VALUES)))
    within = {name: tensor > 0.2 for name, tensor in draw(st.sampled_from([0.0, 1.0, 1.0])).items()}
    within = data.draw(st.sampled_from([None, within]))
    sparsity = Decimal(data.draw(st.integers(0, 9999))) / 10_000
    absolute = data.draw(st.booleans())
    scope = data.draw(st.sampled_from(["global", "layer"]))
    total = masks.num_weights(scores)
    wanted = total - num_pruned(sparsity, total)
    if within is not None and masks.num_kept(within) < wanted:
        with pytest.raises(MaskError, match="not reachable"):
            masks.keep_top(scores, sparsity=sparsity, ties=ties, within=within, absolute=absolute, scope=scope)
        return
    as_on_gpu = data.draw(st.booleans())  # in one piece, and not in blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_on_one_gpu", lambda tensors: as_on_gpu)
        kept = masks.keep_top(scores, sparsity=sparsity, ties=ties, within=within, absolute=absolute, scope=scope)
    expected = naive(scores, ties, within, sparsity, absolute, scope)
    assert masks.num_kept(kept) == wanted
    assert all(torch.equal(kept[name], expected[name]) for name in scores)


LAYOUTS = {
    "normal": lambda n, generator: torch.randn(n, generator=generator),
    "many ties": lambda n, generator: torch.randint(-3, 4, (n,), generator=generator).float(),
    "one value": lambda n, generator: torch.full((n,), -2.0),
    "mostly zero": lambda n, generator: torch.randn(n, generator=generator).relu().sub(1).relu(),
    "rising": lambda n, generator: torch.arange(n).float(),
    "columns of other size": lambda n, generator: (
        torch.arange(n).remainder(64).float() + torch.rand(n, generator=generator)
    ),
    "few large at the end": lambda n, generator: (torch.arange(n) > 0.999 * n) * torch.rand(n, generator=generator),
    "far apart": lambda n, generator: (
        torch.rand(n, generator=generator).mul(70).sub(40).exp() * torch.randn(n, generator=generator).sign()
    ),
}


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("with_ties", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_selection_among_many_equals_two_counting_passes(
    as_on_gpu: bool, layout: str, with_ties: bool, absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so many that a sample brackets the threshold; some layouts mislead it. Within half of them, and of all."""
    monkeypatch.setattr(masks, "_on_one_gpu", lambda tensors: as_on_gpu)
    generator = torch.Generator().manual_seed(0)
    shapes = {"c": (150, 100), "a": (90, 64), "b": (5000,)}
    values = LAYOUTS[layout](sum(map(prod, shapes.values())), generator).split(list(map(prod, shapes.values())))
    scores = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), values, strict=True)}
    ties = {n: torch.randint(0, 9, t.shape, generator=generator).float() for n, t in scores.items()}
    half = {name: torch.rand(tensor.shape, generator=generator) < 0.5 for name, tensor in scores.items()}
    total = masks.num_weights(scores)
    for within in (None, half):
        for sparsity in ("0.0001", "0.5001", "0.6", "0.9", "0.9999"):
            wanted = total - num_pruned(Decimal(sparsity), total)
            if within is not None and wanted > masks.num_kept(within):
                continue
            chosen = ties if with_ties else None
            kept = masks.keep_top(scores, sparsity=Decimal(sparsity), ties=chosen, within=within, absolute=absolute)
            expected = keep_by_counting(scores, chosen, within, wanted, absolute)
            assert masks.num_kept(kept) == wanted
            assert all(torch.equal(kept[name], expected[name]) for name in scores)


class Waits(TorchDispatchMode):
    """Counts operations for whose result the host would wait for a GPU."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("aten._local_scalar_dense", "aten.nonzero", "aten.index.Tensor")
        self.number += str(func).startswith(names)
        return func(*args, **kwargs or {})


def test_on_a_gpu_the_host_waits_equally_often_for_a_few_weights_and_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_on_one_gpu", lambda tensors: True)
    waits = []
    for layers in (2, 40):
        generator = torch.Generator().manual_seed(0)
        weights = {f"w{index}": torch.randn(30, 20, generator=generator) for index in range(layers)}
        within = masks.prune_by_magnitude(weights, Decimal("0.3"))
        with Waits() as counted:
            masks.prune_by_magnitude(weights, Decimal("0.6"), within)
        waits.append(counted.number)
    assert waits[0] == waits[1]
    assert waits[1] < 15


@pytest.mark.parametrize("joined", [1, 600, 1500])
def test_on_a_gpu_weights_are_joined_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, joined: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{index}": torch.randn(30, 20, generator=generator) for index in range(5)}
    within = masks.prune_by_magnitude(weights, Decimal("0.3"))
    expected = masks.prune_by_magnitude(weights, Decimal("0.6"), within)
    monkeypatch.setattr(masks, "_on_one_gpu", lambda tensors: True)
    monkeypatch.setattr(masks, "_JOINED", joined)
    groups = list(masks._joined({name: tensor.numel() for name, tensor in weights.items()}, joined))
    assert [len(group) for group in groups] == {1: [1] * 5, 600: [1] * 5, 1500: [2, 2, 1]}[joined]
    assert [name for group in groups for name in group] == [*weights]
    ranked = masks.prune_by_magnitude(weights, Decimal("0.6"), within)
    assert all(torch.equal(ranked[name], expected[name]) for name in weights)


@pytest.mark.parametrize("block", [1, 600, 1500, 5000])
def test_on_a_cpu_small_weights_are_joined_to_the_same_mask(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Tensors of several types, one of them larger than most blocks; joined, in pieces, and within a mask."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{index}": torch.randn(30, 20, generator=generator) for index in range(5)}
    weights |= {"w5": torch.randn(40, 50, generator=generator).T, "w6": weights["w0"].double() + 1e-9}
    within = masks.prune_by_magnitude(weights, Decimal("0.3"))
    wanted = masks.num_weights(weights) - num_pruned(Decimal("0.6"), masks.num_weights(weights))
    monkeypatch.setattr(masks, "_BLOCK", block)
    ranked = masks.prune_by_magnitude(weights, Decimal("0.6"), within)
    expected = keep_by_counting(weights, None, within, wanted, True)
    assert all(torch.equal(ranked[name], expected[name]) for name in weights)


def test_masks_on_a_gpu_are_packed_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in (("b", (7, 3)), ("a", (5,)))}
    mask["c"] = mask["b"].T
    together, each = masks.pack(mask), masks.pack_each(mask)
    monkeypatch.setattr(masks, "_on_one_gpu", lambda tensors: True)
    assert torch.equal(masks.pack(mask), together)
    assert all(torch.equal(bits, each[name]) for name, bits in masks.pack_each(mask).items())


def test_scope_layer_by_hand() -> None:
    """Half of 3 and 5 weights: 1.5 and 2.5 are kept, of equal remainders the earlier name is rounded up."""
    weights = {"b": torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0]), "a": torch.tensor([1.0, -3.0, 2.0])}
    kept = masks.prune_by_magnitude(weights, Decimal("0.5"), scope="layer")
    assert kept["a"].tolist() == [F, T, T]
    assert kept["b"].tolist() == [T, T, F, F, F]


def test_what_a_layer_cannot_fill_goes_to_the_others_by_hand() -> None:
    """Half of 4, 4 and 8 weights is 2, 2 and 4; `a` has one left, `b` one and `c` three to spare: it goes to `c`."""
    weights = {name: torch.arange(size, 0.0, -1) for name, size in (("a", 4), ("b", 4), ("c", 8))}
    within = mask(a=[F, F, F, T], b=[T, F, T, T], c=[T] * 7 + [F])
    kept = masks.prune_by_magnitude(weights, Decimal("0.5"), within, scope="layer")
    assert kept["a"].tolist() == [F, F, F, T]
    assert kept["b"].tolist() == [T, F, T, F]
    assert kept["c"].tolist() == [T] * 5 + [F] * 3


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=6), st.integers(0, 9999))
def test_layers_keep_their_share(sizes: list[tuple[int, int]], per_myriad: int) -> None:
    """Without a mask each tensor is within one weight of its share; under one, below it only if all are kept."""
    sparsity = Decimal(per_myriad) / 10_000
    scores = {f"p{i}": torch.arange(float(size)) for i, (size, _) in enumerate(sizes)}
    alive = {f"p{i}": torch.arange(size) < left for i, (size, left) in enumerate(sizes)}
    total = masks.num_weights(scores)
    wanted = total - num_pruned(sparsity, total)
    counts = {n: int(k.sum()) for n, k in masks.keep_top(scores, sparsity=sparsity, scope="layer").items()}
    assert sum(counts.values()) == wanted
    assert all(abs(counts[n] - Fraction(wanted * len(scores[n]), total)) < 1 for n in scores)
    if masks.num_kept(alive) >= wanted:
        kept = masks.keep_top(scores, sparsity=sparsity, within=alive, scope="layer")
        assert masks.num_kept(kept) == wanted
        for n in scores:
            assert not (kept[n] & ~alive[n]).any()
            assert int(kept[n].sum()) >= min(counts[n], int(alive[n].sum()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16])
def test_other_types_are_ranked_as_fp32(dtype: torch.dtype) -> None:
    scores = {"a": torch.tensor([3, -1, 2, 0]).to(dtype)}
    assert masks.keep_top(scores, sparsity=Decimal("0.5"))["a"].tolist() == [T, F, T, F]


def test_masks_nest_when_sparsity_rises() -> None:
    weights = {"a": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    low = masks.prune_by_magnitude(weights, Decimal("0.3"))
    high = masks.prune_by_magnitude(weights, Decimal("0.7"), within=low)
    assert masks.num_kept(masks.intersection(low, high)) == masks.num_kept(high) == 300


def test_nan_scores_are_refused() -> None:
    with pytest.raises(MaskError, match="parameter 'a' contain NaN"):
        masks.keep_top({"a": torch.tensor([1.0, float("nan")])}, sparsity=Decimal("0.5"))


def test_a_mask_that_does_not_fit_names_the_first_difference() -> None:
    with pytest.raises(MaskError, match="no parameter 'y'"):
        masks.check_fits({"x": A["x"]}, A)
    with pytest.raises(MaskError, match="has a parameter 'y' that the model lacks"):
        masks.check_fits(A, {"x": A["x"]})
    with pytest.raises(MaskError, match=r"'y' has shape \(2,\), in the model \(3,\)"):
        masks.check_fits(A, mask(x=[T, T, F, F], y=[T, F, T]))


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4), st.integers(0, 9))
def test_packing_and_back(shapes: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    original = {f"p{i}": torch.rand(shape, generator=generator) < 0.5 for i, shape in enumerate(shapes)}
    bits = masks.pack(original)
    assert bits.numel() == -(-masks.num_weights(original) // 8)
    back = masks.unpack(bits, {name: tensor.shape for name, tensor in original.items()})
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_a_packed_mask_reads_like_the_mask() -> None:
    """One bit per weight: 2 x 9 weights take 3 bytes, an empty parameter none."""
    original = mask(x=[T, F, T]) | {"y": torch.zeros(0, 2, dtype=torch.bool), "z": torch.arange(18).view(2, 9) % 3 == 0}
    bits = masks.pack_each(original)
    assert {name: packed.nbytes for name, packed in bits.items()} == {"x": 1, "y": 0, "z": 3}
    packed = masks.Packed(bits, {name: kept.float() for name, kept in original.items()})
    assert list(packed) == list(original)
    assert all(torch.equal(packed[name], kept) for name, kept in original.items())
    assert len(packed) == 3


def test_packing_by_hand() -> None:
    assert masks.pack(mask(b=[T], a=[T, F, T, F, F, F, F, F])).tolist() == [0b10100000, 0b10000000]


def test_unpacking_too_few_bytes() -> None:
    with pytest.raises(MaskError, match="1 bytes cannot hold a mask of 9 weights"):
        masks.unpack(torch.zeros(1, dtype=torch.uint8), {"a": [9]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_applying_changes_what_is_dropped_and_nothing_else(dtype: torch.dtype) -> None:
    """As `masked_fill_` does, to the bit: also NaN, infinities and -0.0; and of a tensor that is not contiguous."""
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, -1.5, 1e-45, 3.0])
    values = values.nan_to_num(7, 7, -7) if dtype == torch.int32 else values
    weight = values.repeat(2).view(4, 4).to(dtype).T.requires_grad_(dtype.is_floating_point)
    kept = (torch.arange(16) < 8).view(4, 4).T
    expected = weight.detach().masked_fill(~kept, 0)
    masks.apply_({"x": kept}, {"x": weight})
    ours, theirs = (t.detach().contiguous().view(torch.uint8) for t in (weight, expected))
    assert torch.equal(ours, theirs)


def test_applying_sets_plus_zero() -> None:
    weights = {"x": torch.tensor([-1.0, 2.0, -3.0, 4.0])}
    masks.apply_({"x": torch.tensor([F, T, F, T])}, weights)
    assert weights["x"].tolist() == [0.0, 2.0, 0.0, 4.0]
    assert not np.signbit(weights["x"].numpy()).any()


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 1.0])
def test_compressed_values_are_those_that_the_mask_keeps(
    monkeypatch: pytest.MonkeyPatch, block: int, kept: float
) -> None:
    """In any number of blocks, of several types at once; a masked -0.0 is not lost."""
    monkeypatch.setattr(masks, "_BLOCK", block)
    generator = torch.Generator().manual_seed(block)
    mask = torch.rand(9, 7, generator=generator) < kept
    tensors = [
        torch.where(mask, torch.randn(9, 7, generator=generator).to(dtype), torch.zeros((), dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.complex128)
    ]
    vectors = masks.compress(tensors, mask)
    for tensor, vector, again in zip(
        tensors, vectors, masks.expand([each for each in vectors if each is not None], mask), strict=True
    ):
        assert vector is not None
        assert torch.equal(vector, tensor[mask])
        assert again.dtype == tensor.dtype
        assert torch.equal(again, tensor)
    negative = torch.where(mask, tensors[0], -0.0)
    assert (masks.compress([negative], mask)[0] is None) == bool((~mask).any())
