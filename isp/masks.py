"""Masks, which say what prunable weights are kept, as pure functions on tensors.

A mask maps parameter names to bool tensors of the parameters' shapes; True = kept. An order over all weights of a mask
(for ties and packing) always means names sorted, then the flat index inside each tensor.

Some or all parameters, scores and masks may be sharded (DTensors) once `isp.sharded` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from isp.errors import ConfigError, MaskError
from isp.lazy import torch
from isp.sparsity import Pattern, Scope, num_pruned, parse_scope
from isp.tensors import is_dtensor

if TYPE_CHECKING:
    from torch import Tensor

Mask: TypeAlias = "dict[str, Tensor]"
Weights: TypeAlias = "Mapping[str, Tensor]"

_LOWEST, _HIGHEST = -(2**31), 2**31 - 1
"""Bounds below and above every sort key."""
_BLOCK = 2**18
"""Number of weights of a block in `compress` and in rankings on a CPU, which its cache holds."""
_JOINED = 2**26
"""Largest number of weights that are joined for a ranking on a GPU, at six bytes each; on a CPU, `_BLOCK`."""


def is_sharded(*several: Weights | None) -> bool:
    """Return whether there is a DTensor among the tensors."""
    return any(
        is_dtensor(tensor) for weights in several if weights is not None for tensor in shapes_of(weights).values()
    )


SHARDED: Any = None
"""Module `isp.sharded`, which handles DTensors. It needs this module and registers itself here when it is imported."""


def _sharded() -> Any:
    """Return the module that implements these functions for DTensors."""
    if SHARDED is None:
        raise MaskError("DTensors among the weights need isp.sharded; import it first")
    return SHARDED


def shapes_of(weights: Weights) -> Weights:
    """Return tensors with the shapes, devices and layouts of `weights`, without unpacking anything."""
    return weights.like if isinstance(weights, Packed) else weights


# --- counting and comparing -------------------------------------------------------------------------------------------


def num_weights(weights: Weights) -> int:
    """Return the number of entries of `weights` (a mask, scores, parameters)."""
    return sum(tensor.numel() for tensor in weights.values())


def num_kept(mask: Weights) -> int:
    """Return the number of weights that the mask keeps, or of nonzero entries."""
    return sum(num_kept_each(mask).values())


def num_kept_each(mask: Weights) -> dict[str, int]:
    """Return the number of weights of each parameter that the mask keeps."""
    if is_sharded(mask):
        result: dict[str, int] = _sharded().num_kept_each(mask)
        return result
    if _on_one_gpu(shapes_of(mask).values()):  # wait for the device once
        counts = torch.stack([torch.count_nonzero(tensor) for tensor in mask.values()]).tolist()
        return dict(zip(mask, counts, strict=True))
    return {name: _count(tensor) for name, tensor in mask.items()}


def sparsity(mask: Weights) -> float:
    """Return the fraction of entries that are zero (False), in [0, 1]; 0 if there are none."""
    return 1 - num_kept(mask) / num_weights(mask) if num_weights(mask) else 0.0


def check_fits(mask: Weights, other: Weights, what: str = "the model") -> None:
    """Check that `mask` covers the same parameters with the same shapes as `other`.

    Raises:
        MaskError: If they differ; the message names the first parameter that does.
    """
    for name in sorted({*mask, *other}):
        ours, theirs = mask.get(name), other.get(name)
        if ours is None:
            raise MaskError(f"the mask does not fit {what}: it has no parameter {name!r}")
        if theirs is None:
            raise MaskError(f"the mask does not fit {what}: it has a parameter {name!r} that {what} lacks")
        if ours.shape != theirs.shape:
            shapes = f"{tuple(ours.shape)}, in {what} {tuple(theirs.shape)}"
            raise MaskError(f"the mask does not fit {what}: parameter {name!r} has shape {shapes}")


def ones(weights: Weights) -> Mask:
    """Return the mask that keeps everything."""
    return {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in weights.items()}


def union(*masks: Weights) -> Mask:
    """Keep the weights that any of the masks keeps."""
    return _combine(partial(reduce, torch.logical_or), masks)


def intersection(*masks: Weights) -> Mask:
    """Keep the weights that all of the masks keep."""
    return _combine(partial(reduce, torch.logical_and), masks)


def votes(masks: Sequence[Weights]) -> dict[str, Tensor]:
    """Count the masks that keep each weight, as int16 tensors."""
    return _combine(lambda kept: reduce(torch.add, (each.to(torch.int16) for each in kept)), masks)


def _combine(operation: Callable[[Iterable[Tensor]], Tensor], several: Sequence[Weights]) -> dict[str, Tensor]:
    """Combine several masks by an elementwise operation on the tensors of each parameter."""
    if is_sharded(*several):
        result: dict[str, Tensor] = _sharded().locally(partial(_combine, operation), several)
        return result
    return {name: operation(mask[name] for mask in several) for name in several[0]}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Overlap of two masks as counts, from which every similarity follows. Overlaps of layers can be added.

    Attributes:
        weights: Number of weights that the masks cover.
        kept_a: Number of weights that the first mask keeps.
        kept_b: Number of weights that the second mask keeps.
        kept_both: Number of weights that both keep.
    """

    weights: int = 0
    kept_a: int = 0
    kept_b: int = 0
    kept_both: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            weights=self.weights + other.weights,
            kept_a=self.kept_a + other.kept_a,
            kept_b=self.kept_b + other.kept_b,
            kept_both=self.kept_both + other.kept_both,
        )

    @property
    def cosine(self) -> float:
        """Cosine similarity of the masks as 0/1 vectors (Fig. 3, right), in [0, 1]; 0 if one of them is empty."""
        norms = (self.kept_a * self.kept_b) ** 0.5
        return self.kept_both / norms if norms else 0.0

    @property
    def jaccard(self) -> float:
        """Number kept by both over number kept by any, in [0, 1]; 1 for two empty masks."""
        any_ = self.kept_a + self.kept_b - self.kept_both
        return self.kept_both / any_ if any_ else 1.0

    @property
    def hamming(self) -> float:
        """Fraction of weights on which the masks differ, in [0, 1]."""
        return (self.kept_a + self.kept_b - 2 * self.kept_both) / self.weights


def overlap_by_layer(a: Mask, b: Mask) -> dict[str, Overlap]:
    """Return the overlap of two masks in each tensor, in the order of `a`.

    Raises:
        MaskError: If the masks cover different weights; the message names the first parameter that differs.
    """
    check_fits(b, a, "the other mask")
    (pair,) = overlaps_by_layer([b, a])
    return pair


def overlaps_by_layer(several: Sequence[Weights]) -> list[dict[str, Overlap]]:
    """Return the overlap of each mask with each earlier one, in each tensor; the later mask is the first of the two.

    Bits are counted eight weights at a time, and every mask is packed once.
    """
    if is_sharded(*several):
        result: list[dict[str, Overlap]] = _sharded().overlaps_by_layer(several)
        return result
    sizes = {name: tensor.numel() for name, tensor in shapes_of(several[-1]).items()} if several else {}
    return overlaps_of_bits(several, sizes)


def overlaps_of_bits(several: Sequence[Weights], sizes: Mapping[str, int]) -> list[dict[str, Overlap]]:
    """Return the overlaps of masks, each with every earlier one, given the number of weights in each tensor."""
    pairs: list[dict[str, Overlap]] = [{} for i in range(len(several)) for _ in range(i)]
    for name, weights in sizes.items():
        bits = [_bits(mask, name) for mask in several]
        kept = [_ones(packed) for packed in bits]
        both = [(i, j, _ones(bits[i] & bits[j])) for i in range(len(several)) for j in range(i)]
        for pair, (i, j, num) in zip(pairs, both, strict=True):
            pair[name] = Overlap(weights=weights, kept_a=kept[i], kept_b=kept[j], kept_both=num)
    return pairs


def _bits(mask: Weights, name: str) -> np.ndarray:
    """Return a parameter's mask in packed form, without repacking a `Packed` one."""
    return mask.bits[name].numpy() if isinstance(mask, Packed) else np.packbits(mask[name].cpu().numpy())


def _ones(packed: np.ndarray) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def overlap(a: Mask, b: Mask) -> Overlap:
    """Return the overlap of two masks over all their weights.

    Raises:
        MaskError: If the masks cover different weights.
    """
    return sum(overlap_by_layer(a, b).values(), Overlap())


def hamming(a: Mask, b: Mask) -> float:
    """Return the fraction of weights on which two masks differ, in [0, 1]."""
    return overlap(a, b).hamming


def jaccard(a: Mask, b: Mask) -> float:
    """Return the number kept by both over the number kept by any, in [0, 1]; 1 for two empty masks."""
    return overlap(a, b).jaccard


def cosine(a: Mask, b: Mask) -> float:
    """Return the cosine similarity of masks as 0/1 vectors (Fig. 3, right), in [0, 1]; 0 if one of them is empty."""
    return overlap(a, b).cosine


# --- exact selection by rank ------------------------------------------------------------------------------------------


def magnitudes(weights: Weights) -> dict[str, Tensor]:
    """Return |w| of every weight, fp32."""
    return {name: weights[name].detach().abs().float() for name in weights}


def prune_by_magnitude(
    weights: Weights,
    sparsity: Decimal,
    within: Mask | None = None,
    *,
    scope: Scope = "global",
    input_dims: Mapping[str, int] = {},
) -> Mask:
    """Prune by magnitude: keep the largest |w| so that exactly `sparsity` of all weights is zero.

    Args:
        weights: Prunable weights.
        sparsity: Sparsity over all of `weights`, not over the remaining ones.
        within: Mask of the weights that may be kept; None: all.
        scope: Scope of the ranking: all weights together, each tensor, or groups (see `keep_top`).
        input_dims: Input dimension of each tensor, for an N:M scope.
    """
    return keep_top(weights, sparsity=sparsity, within=within, absolute=True, scope=scope, input_dims=input_dims)


def keep_top(
    scores: Weights,
    *,
    sparsity: Decimal,
    ties: Weights | None = None,
    within: Mask | None = None,
    absolute: bool = False,
    scope: Scope = "global",
    input_dims: Mapping[str, int] = {},
) -> Mask:
    """Keep the weights of highest score so that exactly round(sparsity * n) weights are dropped.

    Weights are ranked in fp32, by score, then by |ties|, then by position (names sorted, flat index; the earlier is
    kept). Because this is a rank and not a threshold, ties never change the count. A sample brackets the k-th largest
    score, and only scores inside the bracket are ranked. The time is linear in n, and temporary memory is a few times
    the largest tensor; small tensors are joined, on a GPU up to `_JOINED` weights.

    With scope "global", all tensors are ranked together. With "layer", every tensor is ranked on its own and pruned to
    the same sparsity: it keeps its share, by size, of all kept weights, rounded by largest remainders (ties go to the
    earlier name), so that the total equals that of the global scope. If `within` leaves a tensor too few candidates for
    its share, the rest is divided among the others in the same way, by the number that they could still keep. Rounded
    counts may move by one against the trend, so masks of rising sparsity are nested only with `within`.

    With a pattern "N:M", each tensor is divided into groups of M consecutive weights along its input dimension. At the
    pattern's own sparsity, 1 - N/M, the N highest of every group are kept. A lower sparsity is a step on the way there:
    it keeps the N highest of every group and in addition the highest of all others over all tensors, so that every
    group can still be pruned to exactly N when the pattern is imposed.

    Args:
        scores: Score of each weight, of any real dtype; cast to fp32.
        sparsity: Fraction of all weights to drop, in [0, 1).
        ties: Tensors that break ties by magnitude, usually the current weights.
        within: Mask of the candidates; weights outside it are always dropped.
        absolute: Whether to rank by |score|.
        scope: Scope "global", "layer" or a pattern "N:M".
        input_dims: For a pattern, the dimension of each tensor over the inputs of its layer, from
            `isp.prunable.input_dims`; 1 if absent, as in (outputs, inputs).

    Raises:
        MaskError: If a score is NaN, names or shapes differ, `within` has too few candidates in a group or in total, or
            the sparsity is above that of the pattern.
        ConfigError: If a tensor cannot be divided into the groups of a pattern.
    """
    pattern = parse_scope(scope)
    if pattern is not None:
        check_groups(scores, pattern, input_dims)
        if sparsity > pattern.sparsity:
            raise MaskError(f"sparsity {sparsity} is not reachable: scope {scope!r} ends at {pattern.sparsity}")
    for other in (ties, within):
        if other is not None:
            check_fits(other, scores, "the scores")
    total = num_weights(scores)
    wanted = total - num_pruned(sparsity, total)
    available = total if within is None else num_kept(within)
    if wanted > available:
        raise MaskError(
            f"sparsity {sparsity} is not reachable: it keeps {wanted} of {total} weights, but only {available} are "
            f"alive (sparsity {1 - available / total:.4f}); masks never regain weights"
        )
    rankings = [(scores, absolute)] + ([(ties, True)] if ties is not None else [])
    if is_sharded(scores, ties, within):
        result: Mask = _sharded().keep_top(rankings, within, wanted, scope, pattern, input_dims)
        return result
    names = sorted(scores)
    if ties is not None:
        ties = {name: ties[name].to(scores[name].device) for name in names}
    if within is not None:
        within = {name: within[name].to(scores[name].device) for name in names}
    kept = {name: torch.zeros(scores[name].shape, dtype=torch.bool, device=scores[name].device) for name in names}
    rankings = [(scores, absolute)] + ([(ties, True)] if ties is not None else [])
    for ranking, _ in rankings:
        _check_numbers(ranking)
    if pattern is not None:
        for name in names:
            kept[name] = best_of_groups(name, rankings, within, pattern, input_dims.get(name, 1))
        others = {name: ~kept[name] if within is None else within[name] & ~kept[name] for name in names}
        _keep(kept, names, rankings, others, wanted - num_kept(kept))
    elif scope == "global":
        _keep(kept, names, rankings, within, wanted)
    else:
        alive = None if within is None else num_kept_each(within)
        counts = counts_by_layer({name: scores[name].numel() for name in names}, alive, wanted)
        for name in names:
            _keep(kept, [name], rankings, within, counts[name])
    return {name: kept[name] for name in scores}


def counts_by_layer(sizes: Mapping[str, int], alive: Mapping[str, int] | None, wanted: int) -> dict[str, int]:
    """Return the number of weights that each tensor keeps, `wanted` in total, by the rule of `keep_top`.

    Args:
        sizes: Number of weights of each tensor; names sorted.
        alive: Number of candidates of each tensor; None: all weights.
        wanted: Number of kept weights, from 0 to the number of candidates.
    """
    counts = _apportion(wanted, sizes)
    if alive is not None:
        counts = {name: min(counts[name], alive[name]) for name in sizes}
        more = _apportion(wanted - sum(counts.values()), {name: alive[name] - counts[name] for name in sizes})
        counts = {name: counts[name] + more[name] for name in sizes}
    return counts


def _apportion(amount: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Divide `amount` in proportion to `sizes`, by largest remainders; no share is larger than its size.

    Args:
        amount: Number to divide, from 0 to the sum of the sizes.
        sizes: Sizes, at least 0; their order decides between equal remainders.
    """
    total = max(1, sum(sizes.values()))
    shares = {name: amount * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: amount * sizes[name] % total, reverse=True)  # stable
    for name in by_remainder[: amount - sum(shares.values())]:
        shares[name] += 1
    return shares


def _check_numbers(scores: Weights) -> None:
    """Refuse NaN, which has no rank; the largest entry of a tensor with NaN is NaN."""
    numbers = {name: score.detach() for name, score in scores.items() if score.is_floating_point() and score.numel()}
    broken = {name: numbers[name].amax().isnan() for name in sorted(numbers)}
    if _on_one_gpu(broken.values()) and not torch.stack([*broken.values()]).any():
        return
    for name, is_broken in broken.items():
        if is_broken:
            raise MaskError(f"the scores of parameter {name!r} contain NaN")


def _keep(kept: Mask, names: list[str], rankings: list[tuple[Weights, bool]], within: Mask | None, wanted: int) -> None:
    """Mark in `kept` the `wanted` highest weights among the tensors `names`, by one ranking after the other."""
    if wanted <= 0:
        return
    (ranking, by_magnitude), *others = rankings
    candidates = {name: None if within is None else within[name] for name in names}
    threshold, num_above, num_equal = _threshold(names, ranking, by_magnitude, candidates, wanted)
    tied: Mask = {}
    every = num_above + num_equal == wanted
    for name in names:
        equal = []
        for score, candidate, chosen in in_blocks(ranking[name].detach(), candidates[name], kept[name]):
            key = sort_key(score, by_magnitude)
            chosen |= among(candidate, key >= threshold if every else key > threshold)
            if not every:
                equal.append(among(candidate, key == threshold))
        if not every:
            tied[name] = torch.cat(equal).view(kept[name].shape)
    wanted -= num_above
    if tied and others:
        chosen = {name: torch.zeros_like(tied[name][tied[name]]) for name in names}
        _keep(
            chosen, names, [({name: each[name][tied[name]] for name in names}, by) for each, by in others], None, wanted
        )
        for name in names:
            kept[name][tied[name]] = chosen[name]
    elif tied:
        for name in names:  # in the order of position
            places = tied[name].reshape(-1).nonzero().squeeze(1)[: max(wanted, 0)]
            kept[name].view(-1)[places] = True
            wanted -= len(places)


def best_of_groups(
    name: str, rankings: Sequence[tuple[Weights, bool]], within: Mask | None, pattern: Pattern, dim: int
) -> Tensor:
    """Return the mask of a tensor that keeps the N highest of each group, by successive rankings, then by position."""
    (score, by_magnitude), *others = rankings
    key = sort_key(score[name], by_magnitude).long() << 32
    for ties, _ in others:  # magnitudes, whose keys are not negative
        key |= sort_key(ties[name], True)
    if within is not None:
        check_alive(name, int(groups(within[name], pattern, dim).sum(-1).min()), pattern)
        key.masked_fill_(~within[name], torch.iinfo(torch.int64).min)
    grouped = groups(key, pattern, dim)
    highest = grouped.sort(dim=-1, descending=True, stable=True).indices[:, : pattern.n]
    kept = torch.zeros(grouped.shape, dtype=torch.bool, device=key.device).scatter_(1, highest, True)
    return kept.view(key.movedim(dim, -1).shape).movedim(-1, dim).contiguous()


def check_alive(name: str, alive: int, pattern: Pattern) -> None:
    """Refuse a parameter that has a group with fewer than N remaining weights.

    Args:
        name: Name of the parameter.
        alive: Smallest number of remaining weights in one of its groups.
        pattern: Pattern N:M.

    Raises:
        MaskError: If there are too few; the message names the parameter.
    """
    if alive < pattern.n:
        raise MaskError(
            f"parameter {name!r}: only {alive} of {pattern.m} weights of a group are alive, fewer than the "
            f"{pattern.n} that the pattern {pattern.n}:{pattern.m} keeps; masks never regain weights"
        )


def groups(tensor: Tensor, pattern: Pattern, dim: int) -> Tensor:
    """Return the groups of M consecutive entries along a dimension, (groups, M)."""
    return tensor.movedim(dim, -1).reshape(-1, pattern.m)


def among(candidate: Tensor | None, chosen: Tensor) -> Tensor:
    """Restrict `chosen`, in place, to the candidates; None: all are candidates."""
    return chosen if candidate is None else chosen.logical_and_(candidate)


def _threshold(
    names: Sequence[str],
    ranking: Weights,
    by_magnitude: bool,
    candidates: Mapping[str, Tensor | None],
    wanted: int,
) -> tuple[int, int, int]:
    """Return the `wanted`-th largest sort key among the candidates (at least `wanted`), and the counts above and at it.

    A regular sample gives two keys that almost surely bracket it. One pass counts the keys above the bracket and
    collects those inside. If the sample misled, this is repeated with a wider bracket.
    """
    total = sum(ranking[name].numel() for name in names)
    step = round(total ** (1 / 3)) | 1  # odd, so that it does not follow the columns of a matrix
    sample = _sampled(names, ranking, by_magnitude, candidates, step)
    margin = 2 * round(len(sample) ** 0.5) + 2
    while True:
        place = wanted // step
        low = int(sample[place + margin]) if place + margin < len(sample) else _LOWEST
        high = int(sample[min(place - margin, len(sample) - 1)]) if place >= margin and len(sample) else _HIGHEST
        above, at_high, at_low, between = 0, 0, 0, []
        for key, candidate in _keys(names, ranking, by_magnitude, candidates):
            over, upward = among(candidate, key > high), among(candidate, key >= low)
            above += int(torch.count_nonzero(over))
            inner_keys = key[upward.logical_xor_(over)]
            at_high += int(torch.count_nonzero(inner_keys == high))
            at_low += int(torch.count_nonzero(inner_keys == low))
            # without the many possible ties at the ends
            between.append(inner_keys[(inner_keys > low) & (inner_keys < high)].cpu())
        at_low = 0 if low == high else at_low
        inner = sum(map(len, between))
        if above < wanted <= above + at_high:
            return high, above, at_high
        above_inner = above + at_high
        if above_inner < wanted <= above_inner + inner:
            keys = torch.cat(between)
            threshold = int(keys.kthvalue(inner - (wanted - above_inner) + 1).values)
            higher = int(torch.count_nonzero(keys > threshold))
            return threshold, above_inner + higher, int(torch.count_nonzero(keys == threshold))
        if above_inner + inner < wanted <= above_inner + inner + at_low:
            return low, above_inner + inner, at_low
        margin *= 16


def _sampled(
    names: Sequence[str], ranking: Weights, by_magnitude: bool, candidates: Mapping[str, Tensor | None], step: int
) -> Tensor:
    """Return the sort keys of every `step`-th weight that is a candidate, on the CPU, in descending order."""
    parts = {name: ranking[name].reshape(-1)[::step] for name in names}
    some = {name: None if each is None else each.reshape(-1)[::step] for name, each in candidates.items()}
    chosen = [
        (key if candidate is None else key[candidate]).cpu()
        for key, candidate in _keys(names, parts, by_magnitude, some)
    ]
    return torch.cat(chosen).sort(descending=True).values


def _on_one_gpu(tensors: Iterable[Tensor]) -> bool:
    """Return whether there are tensors and all of them are on the same device, which is not the CPU."""
    devices = {tensor.device for tensor in tensors}
    return len(devices) == 1 and devices.pop().type != "cpu"


def _keys(
    names: Sequence[str], ranking: Weights, by_magnitude: bool, candidates: Mapping[str, Tensor | None]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield sort keys and the candidates among them, in pieces.

    Small tensors on one device are joined, because each piece takes many operations, and on a GPU it makes the host
    wait for the device several times.
    """
    ranked = [ranking[name] for name in names]
    limit = _JOINED if _on_one_gpu(ranked) else _BLOCK if all(each.device.type == "cpu" for each in ranked) else 0
    for group in _joined({name: ranking[name].numel() for name in names}, limit):
        if len(group) == 1:
            (name,) = group
            for score, candidate in in_blocks(ranking[name].detach(), candidates[name]):
                yield sort_key(score, by_magnitude), candidate
            continue
        sizes = [ranking[name].numel() for name in group]
        key = torch.empty(sum(sizes), dtype=torch.int32, device=ranking[group[0]].device)
        for name, part in zip(group, torch.split(key, sizes), strict=True):
            part.copy_(sort_key(ranking[name].reshape(-1), by_magnitude))
        given = [each.reshape(-1) for name in group if (each := candidates[name]) is not None]
        yield key, torch.cat(given) if given else None  # candidates are given for all or for none


def _joined(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Yield names in groups of at most `limit` weights; a larger tensor is alone in its group."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group


def in_blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield tensors of one shape in pieces for elementwise work, also in place; None stays None.

    Contiguous tensors on a CPU come as flat blocks that stay in its cache, like the temporary tensors computed from
    them; those of whole tensors would be new memory each time, which the system has to clear. Others come whole.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if any(is_dtensor(each) or each.device.type != "cpu" or not each.is_contiguous() for each in given):
        yield tensors
        return
    blocks = [None if tensor is None else torch.split(tensor.view(-1), _BLOCK) for tensor in tensors]
    for index in range(max(1, -(-given[0].numel() // _BLOCK))):
        yield tuple(None if each is None else each[index] for each in blocks)


def sort_key(score: Tensor, by_magnitude: bool) -> Tensor:
    """Return int32 keys in the order of the fp32 scores (the bits of a float, with negative ones reversed)."""
    score = score.detach().float()
    score = score.abs() if by_magnitude else score + 0.0  # both turn -0.0 into 0.0
    bits = score.contiguous().view(torch.int32)
    return bits if by_magnitude else bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


# --- patterns ---------------------------------------------------------------------------------------------------------


def check_groups(weights: Weights, pattern: Pattern, input_dims: Mapping[str, int] = {}) -> None:
    """Refuse a tensor whose input dimension is not a multiple of M.

    Raises:
        ConfigError: If there is one; the message names the first such parameter.
    """
    for name in sorted(weights):
        shape, dim = tuple(weights[name].shape), input_dims.get(name, 1)
        if len(shape) < 2 or shape[dim] % pattern.m:
            size = f"{shape[dim]} inputs (dimension {dim})" if len(shape) > 1 else "no inputs"
            raise ConfigError(
                f"scope {pattern.n}:{pattern.m}: parameter {name!r} of shape {shape} has {size}, which groups of "
                f"{pattern.m} do not divide; exclude the parameter from pruning, or choose another scope"
            )


def check_pattern(mask: Mask, pattern: Pattern, input_dims: Mapping[str, int] = {}) -> None:
    """Refuse a mask that does not keep exactly N of every M consecutive weights along the inputs.

    Raises:
        MaskError: If a parameter violates the pattern; the message names the first one.
    """
    if is_sharded(mask):
        wrong = _sharded().wrong_groups(mask, pattern, input_dims)
    else:
        wrong = {name: wrong_groups(mask[name], pattern, input_dims.get(name, 1)) for name in sorted(mask)}
    for name, num in wrong.items():
        if num:
            raise MaskError(
                f"the mask does not keep {pattern.n} of every {pattern.m} weights along the inputs of parameter "
                f"{name!r}; a method must pass `scope` and `input_dims` to `isp.masks.keep_top`"
            )


def wrong_groups(kept: Tensor, pattern: Pattern, dim: int) -> int:
    """Return the number of groups of a mask that do not keep exactly N weights."""
    return int((groups(kept, pattern, dim).sum(-1) != pattern.n).sum())


# --- applying and packing ---------------------------------------------------------------------------------------------


def gathered(weights: Weights) -> dict[str, Tensor]:
    """Copy tensors, gathering sharded ones completely on every rank."""
    if is_sharded(weights):
        result: dict[str, Tensor] = _sharded().gathered(weights)
        return result
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def apply_(mask: Mask, weights: Weights) -> None:
    """Set the dropped weights to +0.0, in place, by clearing their bits, which is faster than `masked_fill_`."""
    if is_sharded(mask, weights):
        layout = _sharded().layout(weights)
        mask, weights = dict(layout.parts(mask)), layout.parts(weights)
    for name, kept in mask.items():
        weight = weights[name].detach()
        if weight.is_floating_point():
            bits = getattr(torch, f"int{8 * weight.itemsize}")
            weight.view(bits).bitwise_and_(kept.view(torch.int8).neg().to(bits))  # all ones or all zeros
        else:
            weight.masked_fill_(~kept, 0.0)


def pack(mask: Weights) -> Tensor:
    """Pack a mask into a uint8 vector of ceil(n / 8) bytes, one bit per weight, names sorted, highest bit first.

    Raises:
        MaskError: If the mask is sharded.
    """
    if is_sharded(mask):
        raise MaskError("a sharded mask cannot be packed into one vector; gather it first (`isp.masks.gathered`)")
    mask = _fetched(mask)
    flat = torch.cat([torch.zeros(0, dtype=torch.bool), *(mask[name].reshape(-1).cpu() for name in sorted(mask))])
    return torch.from_numpy(np.packbits(flat.numpy()))


def unpack(bits: Tensor, shapes: Mapping[str, Sequence[int]]) -> Mask:
    """Invert `pack`, given the shape of every parameter.

    Raises:
        MaskError: If the number of bytes does not fit the shapes.
    """
    sizes = {name: int(np.prod(shapes[name], dtype=np.int64)) for name in sorted(shapes)}
    total = sum(sizes.values())
    if bits.numel() != -(-total // 8):
        raise MaskError(f"{bits.numel()} bytes cannot hold a mask of {total} weights ({-(-total // 8)} are needed)")
    flat = torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=total).view(np.bool_))
    parts = torch.split(flat, list(sizes.values()))
    return {name: part.view(tuple(shapes[name])).clone() for name, part in zip(sizes, parts, strict=True)}


def pack_each(mask: Weights) -> dict[str, Tensor]:
    """Pack each parameter's mask separately, for `Packed`; of a sharded mask, pack this rank's part."""
    if is_sharded(mask):
        mask = _sharded().layout(mask).parts(mask)
    return {name: pack({name: kept}) for name, kept in _fetched(mask).items()}


def _fetched(mask: Weights) -> Weights:
    """Return a mask that is on one GPU as a copy on the CPU, made in a single transfer; any other as it is."""
    shapes = shapes_of(mask)
    if not _on_one_gpu(shapes.values()):
        return mask
    flat = torch.cat([kept.reshape(-1) for kept in mask.values()]).cpu()
    parts = torch.split(flat, [kept.numel() for kept in shapes.values()])
    return {name: part.view(shapes[name].shape) for name, part in zip(shapes, parts, strict=True)}


class Packed(Mapping[str, "Tensor"]):
    """A mask stored at one bit per weight; a parameter's mask is unpacked whenever it is read.

    Args:
        bits: Packed mask of each parameter, from `pack_each`.
        weights: Tensors whose shapes, devices and layouts the masks get.
    """

    def __init__(self, bits: Weights, weights: Weights) -> None:
        self.bits = bits
        self.like: Weights = {name: weights[name] for name in bits}

    def __getitem__(self, name: str) -> Tensor:
        weight = self.like[name]
        if is_sharded({name: weight}):
            part = _sharded().local(weight)
            result: Tensor = _sharded().wrap(Packed(self.bits, {**self.like, name: part})[name], weight)
            return result
        return unpack(self.bits[name], {name: weight.shape})[name].to(weight.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)


def compress(tensors: Sequence[Tensor], kept: Tensor) -> list[Tensor | None]:
    """Return the values that a mask keeps of each tensor, as vectors in order of position.

    It goes block by block, so that the tensors share the positions of each block while these are in the cache.

    Args:
        tensors: Tensors of the mask's shape and of any dtypes, on the CPU.
        kept: Mask of a parameter, bool, on the CPU.

    Returns:
        A vector for each tensor; None if a masked value of the tensor is not +0.0.
    """
    num, words = _count(kept), [_words(tensor) for tensor in tensors]
    values = [np.empty((num, *each.shape[1:]), each.dtype) for each in words]
    for inside, block, part in _blocks(kept):
        for whole, vector in zip(words, values, strict=True):
            vector[part] = whole[block].take(inside, axis=0)
    return [
        torch.from_numpy(vector.view(np.uint8).reshape(-1)).view(tensor.dtype)
        if np.count_nonzero(whole) == np.count_nonzero(vector)
        else None
        for tensor, whole, vector in zip(tensors, words, values, strict=True)
    ]


def expand(vectors: Sequence[Tensor], kept: Tensor) -> list[Tensor]:
    """Invert `compress`: return tensors of the mask's shape, +0.0 where the mask is False."""
    values = [_words(vector) for vector in vectors]
    words = [np.zeros((kept.numel(), *each.shape[1:]), each.dtype) for each in values]
    for inside, block, part in _blocks(kept):
        for whole, vector in zip(words, values, strict=True):
            whole[block][inside] = vector[part]
    return [
        torch.from_numpy(whole.view(np.uint8).reshape(-1)).view(vector.dtype).view(kept.shape)
        for vector, whole in zip(vectors, words, strict=True)
    ]


def _count(tensor: Tensor) -> int:
    """Return the number of nonzero entries; of a mask on the CPU with NumPy, which is ten times faster than torch."""
    on_cpu = tensor.dtype == torch.bool and tensor.device.type == "cpu"
    return int(np.count_nonzero(tensor.numpy()) if on_cpu else torch.count_nonzero(tensor))


def _blocks(kept: Tensor) -> Iterator[tuple[np.ndarray, slice, slice]]:
    """Yield the positions that a mask keeps in each block, the block, and the place of its values in their vector."""
    flat, end = kept.reshape(-1).numpy(), 0
    for begin in range(0, len(flat), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        inside = np.flatnonzero(flat[block])
        end += len(inside)
        yield inside, block, slice(end - len(inside), end)


def _words(tensor: Tensor) -> np.ndarray:
    """Return the bits of each value as an unsigned integer, or as several of 64 bits."""
    size = tensor.element_size()
    words = tensor.reshape(-1).view(torch.uint8).numpy().view(f"u{min(size, 8)}")
    return words.reshape(-1, size // 8) if size > 8 else words
