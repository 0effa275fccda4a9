"""Masks over sharded parameters: exact global selection in which no rank sees more than its own shards.

Under FSDP2 (`torch.distributed.fsdp.fully_shard`) parameters are DTensors. The functions of `isp.masks` call this
module if a DTensor is among their inputs. The results equal those for the whole tensors to the bit and are DTensors of
the same layout. Every rank of the mesh must call the functions, with the same names in its dicts.

Meshes must have one dimension, and placements must be Shard(0), of any size including empty shards, or Replicate. Plain
tensors may be among the inputs and are assumed to be equal on all ranks. The result for a parameter is sharded if any
of its inputs is.

A selection ranks int32 keys, as for plain tensors. The wanted key is determined digit by digit, from three histograms
of 2048, 2048 and 1024 counts that are summed over the ranks. This communicates 40 KB per ranking, whatever the number
of weights (with scope "layer" 40 KB per tensor, in three messages). Remaining ties are counted per tensor and rank, 8
bytes each. Counts of NaN, of candidates and of kept weights take 8 bytes per tensor each. No weight, score or mask
leaves its rank, and temporary memory is a few times the largest shard.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard

from isp import masks
from isp.errors import ConfigError, MaskError
from isp.masks import Mask, Weights
from isp.sparsity import Pattern

Rankings: TypeAlias = "Sequence[tuple[Weights, bool]]"

_DIGITS = ((21, 11), (10, 11), (0, 10))
"""Lowest bit and number of bits of each digit of a sort key, the highest digit first."""


@dataclass(frozen=True)
class Layout:
    """Distribution of the weights of each parameter over ranks.

    Attributes:
        mesh: Mesh of ranks.
        like: DTensor with the layout of each parameter; parameters without one are plain.
    """

    mesh: DeviceMesh
    like: Mapping[str, DTensor] = field(repr=False)

    @property
    def rank(self) -> int:
        """Position of this rank in the mesh, from 0."""
        return self.mesh.get_local_rank()

    def splits(self, name: str) -> bool:
        """Return whether each rank has a different part of the parameter."""
        return name in self.like and _is_split(self.like[name])

    def counts(self, name: str) -> bool:
        """Return whether sums over the ranks must include this rank's part; a replicated parameter counts once."""
        return self.splits(name) or self.rank == 0

    def bounds(self, name: str) -> list[int]:
        """Return the first row of each part of a split parameter, followed by the number of rows."""
        rows, ranks = self.like[name].shape[0], self.mesh.size()
        return [min(rows, rank * -(-rows // ranks)) for rank in range(ranks)] + [rows]

    def local(self, name: str, tensor: Tensor) -> Tensor:
        """Return this rank's part of a tensor, as a view.

        Raises:
            ConfigError: If the tensor is split but the parameter is not.
        """
        tensor = tensor.detach()
        part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not self.splits(name):
            if _is_split(tensor):
                raise ConfigError(
                    f"parameter {name!r}: the mask is sharded but the weights are not; gather the mask first "
                    "(`isp.masks.gathered`)"
                )
            return part
        if _is_split(tensor):
            return part
        start, stop = self.bounds(name)[self.rank : self.rank + 2]
        return part[start:stop]

    def parts(self, weights: Weights) -> Mapping[str, Tensor]:
        """Return this rank's part of each tensor, computed when it is read."""
        return _Parts(self, weights)

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors whose parts on this rank are given."""
        return {name: wrap(part, self.like[name]) if name in self.like else part for name, part in parts.items()}

    def reduce(self, counts: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
        """Sum (or otherwise reduce) counts over the ranks, and return them on the CPU."""
        reduced = counts.to(self.mesh.device_type)
        dist.all_reduce(reduced, op=operation, group=self.mesh.get_group())
        return reduced.cpu()


class _Parts(Mapping[str, Tensor]):
    """A rank's parts of a dict of tensors."""

    def __init__(self, layout: Layout, weights: Weights) -> None:
        self._layout, self._weights = layout, weights

    def __getitem__(self, name: str) -> Tensor:
        return self._layout.local(name, self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _is_split(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and isinstance(tensor.placements[0], Shard)


def layout(*several: Weights | None) -> Layout:
    """Return the common layout of dicts of which some contain DTensors.

    Raises:
        ConfigError: If a placement or mesh is not supported; the message names the first such parameter.
    """
    like: dict[str, DTensor] = {}
    for weights in filter(None, several):
        for name, tensor in masks.shapes_of(weights).items():
            if isinstance(tensor, DTensor):
                _check_supported(name, tensor)
                if name not in like or (_is_split(tensor) and not _is_split(like[name])):
                    like[name] = tensor
    meshes = {name: tensor.device_mesh for name, tensor in like.items()}
    first = next(iter(meshes), None)
    if first is None:
        raise ConfigError("the mask is sharded but the weights are not; gather it first (`isp.masks.gathered`)")
    for name, mesh in meshes.items():
        if mesh != meshes[first]:
            raise ConfigError(
                f"parameter {name!r} is on {mesh}, and {first!r} on {meshes[first]}; all sharded parameters must be on "
                "the same mesh"
            )
    return Layout(meshes[first], like)


def _check_supported(name: str, tensor: DTensor) -> None:
    mesh, placements = tensor.device_mesh, tensor.placements
    if tensor.device.type != mesh.device_type:
        raise ConfigError(
            f"parameter {name!r} is on {tensor.device}, but its mesh on {mesh.device_type}; both must be on the same "
            "device, so CPU offload is not supported"
        )
    if mesh.ndim == 1 and type(placements[0]) in (Shard, Replicate) and placements[0] in (Shard(0), Replicate()):
        return
    raise ConfigError(
        f"parameter {name!r} has the placements {placements} on a mesh of {mesh.ndim} dimensions; must be (Shard(0),) "
        "or (Replicate(),) on a mesh of one dimension, as from fully_shard(model) without explicit mesh and placement"
    )


def wrap(part: Tensor, like: Tensor) -> DTensor:
    """Return the DTensor with the layout of `like` whose part on this rank is `part`."""
    assert isinstance(like, DTensor)
    shape, stride = like.shape, torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, or a plain tensor unchanged."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(weights: Weights) -> dict[str, Tensor]:
    """Copy the whole tensors to every rank, communicating one after the other."""
    whole = {name: tensor.detach() for name, tensor in weights.items()}
    return {
        name: each.full_tensor() if isinstance(each, DTensor) and _is_split(each) else local(each).clone()
        for name, each in whole.items()
    }


def locally(function: Callable[[Sequence[Weights]], Mapping[str, Tensor]], several: Sequence[Weights]) -> Mask:
    """Apply a function of each weight alone to dicts of which some are sharded, without communication."""
    common = layout(*several)
    return common.whole(function([common.parts(weights) for weights in several]))


# --- counting ---------------------------------------------------------------------------------------------------------


def num_kept_each(mask: Weights) -> dict[str, int]:
    """Count the entries of each tensor that are not zero."""
    common = layout(mask)
    return _summed(common, {name: int(torch.count_nonzero(part)) for name, part in common.parts(mask).items()})


def _summed(common: Layout, counts: Mapping[str, int]) -> dict[str, int]:
    """Sum a count of each parameter over the ranks."""
    local_counts = [count if common.counts(name) else 0 for name, count in counts.items()]
    return dict(zip(counts, common.reduce(torch.tensor(local_counts, dtype=torch.int64)).tolist(), strict=True))


def overlaps_by_layer(several: Sequence[Weights]) -> list[dict[str, masks.Overlap]]:
    """Compute `isp.masks.overlaps_by_layer`, summed over the ranks."""
    common = layout(*several)
    sizes = {name: tensor.numel() for name, tensor in masks.shapes_of(several[-1]).items()}
    pairs = masks.overlaps_of_bits(
        [mask if isinstance(mask, masks.Packed) else common.parts(mask) for mask in several], sizes
    )
    counts = [[[each.kept_a, each.kept_b, each.kept_both] for each in pair.values()] for pair in pairs]
    counted = torch.tensor([int(common.counts(name)) for name in sizes]).unsqueeze(1)
    summed = common.reduce(torch.tensor(counts, dtype=torch.int64).reshape(len(pairs), len(sizes), 3) * counted)
    return [
        {
            name: masks.Overlap(weights=sizes[name], kept_a=a, kept_b=b, kept_both=both)
            for name, (a, b, both) in zip(sizes, pair, strict=True)
        }
        for pair in summed.tolist()
    ]


def first_not_finite(tensors: Weights) -> str | None:
    """Return the name of the first tensor with NaN or an infinity on any rank, or None if all are finite."""
    common = layout(tensors)
    broken = {name: int(not bool(part.isfinite().all())) for name, part in common.parts(tensors).items()}
    return next((name for name, ranks in _summed(common, broken).items() if ranks), None)


def reshard(model: nn.Module) -> None:
    """Make the parameters of an FSDP2 model the sharded ones, which a forward pass may have replaced.

    Raises:
        ConfigError: If the model uses the first FSDP.
    """
    for name, module in model.named_modules():
        if isinstance(module, FullyShardedDataParallel):
            raise ConfigError(
                f"model: {name or 'it'!r} is wrapped by FullyShardedDataParallel, whose flat parameters cannot be "
                "pruned; use torch.distributed.fsdp.fully_shard"
            )
        if isinstance(module, FSDPModule):
            module.reshard()


# --- exact selection by rank ------------------------------------------------------------------------------------------


def keep_top(
    rankings: Rankings,
    within: Weights | None,
    wanted: int,
    scope: str,
    pattern: Pattern | None,
    input_dims: Mapping[str, int],
) -> Mask:
    """Compute the mask of `isp.masks.keep_top`, which checks its arguments before it calls this function.

    Args:
        rankings: Scores, followed by the tensors that break ties; each with whether it is ranked by magnitude.
        within: Mask of the candidates; None: all weights.
        wanted: Total number of weights to keep.
        scope: Scope "global", "layer" or that of the pattern.
        pattern: The N:M pattern, if any.
        input_dims: Input dimension of each parameter, for a pattern.

    Raises:
        MaskError: For the reasons of `isp.masks.keep_top`, on every rank.
        ConfigError: If a layout is not supported, or a shard cuts a group.
    """
    scores = rankings[0][0]
    common, names = layout(within, *(ranking for ranking, _ in rankings)), sorted(scores)
    shards = {name: common.local(name, scores[name]) for name in names}
    device = {name: shards[name].device for name in names}

    def on_device(weights: Weights) -> dict[str, Tensor]:
        return {name: common.local(name, weights[name]).to(device[name]) for name in names}

    parts = [(shards, rankings[0][1]), *((on_device(ranking), by) for ranking, by in rankings[1:])]
    for ranking, _ in parts:
        _check_numbers(common, ranking)
    candidates = None if within is None else on_device(within)
    kept = {name: torch.zeros(shards[name].shape, dtype=torch.bool, device=device[name]) for name in names}
    if pattern is not None:
        check_whole_groups(common, names, pattern, input_dims)
        if candidates is not None:
            _check_alive(common, candidates, pattern, input_dims)
        for name in names:
            if shards[name].numel():
                kept[name] = masks.best_of_groups(name, parts, candidates, pattern, input_dims.get(name, 1))
        wanted -= sum(num_kept_each(common.whole(kept)).values())
        candidates = {name: ~kept[name] if candidates is None else candidates[name] & ~kept[name] for name in names}
    if scope == "layer":
        alive = None if within is None else num_kept_each(common.whole(candidates or {}))
        sizes = {name: scores[name].numel() for name in names}
        counts = masks.counts_by_layer(sizes, alive, wanted)
        _keep(common, kept, parts, candidates, {name: index for index, name in enumerate(names)}, list(counts.values()))
    else:
        _keep(common, kept, parts, candidates, dict.fromkeys(names, 0), [wanted])
    return common.whole({name: kept[name] for name in scores})


def _keep(
    common: Layout,
    kept: Mask,
    rankings: Rankings,
    candidates: Mask | None,
    groups: Mapping[str, int],
    wanted: list[int],
) -> None:
    """Mark the highest weights of each group of tensors in `kept`, by successive rankings, then by position.

    Args:
        common: Common layout.
        kept: This rank's parts of the mask, which are changed.
        rankings: This rank's parts of the rankings.
        candidates: This rank's parts of the mask of candidates; None: all weights.
        groups: Group of each tensor; names in order.
        wanted: Number of weights to mark in each group.
    """
    for ranking, by_magnitude in rankings:
        tied: Mask = {}

        def keys(
            name: str, ranking: Weights = ranking, by: bool = by_magnitude, only: Mask | None = candidates
        ) -> Tensor:
            key = masks.sort_key(ranking[name], by)
            return key.reshape(-1) if only is None else key[only[name]]

        thresholds = _thresholds(common, keys, groups, wanted)
        for name, group in groups.items():
            threshold, above, equal = thresholds[group]
            key = masks.sort_key(ranking[name], by_magnitude)
            candidate = None if candidates is None else candidates[name]
            settled = above + equal == wanted[group]
            kept[name] |= masks.among(candidate, key >= threshold if settled else key > threshold)
            tied[name] = torch.zeros_like(kept[name]) if settled else masks.among(candidate, key == threshold)
        wanted = [
            0 if above + equal == num else num - above
            for num, (_, above, equal) in zip(wanted, thresholds, strict=True)
        ]
        candidates = tied
        if not any(wanted):
            return
    ranks = torch.zeros(common.mesh.size(), len(groups), dtype=torch.int64)
    ranks[common.rank] = torch.tensor([int(torch.count_nonzero(tied[name])) for name in groups])
    ranks = common.reduce(ranks)
    for (name, group), counts in zip(groups.items(), ranks.T.tolist(), strict=True):
        split = common.splits(name)
        before, total = (sum(counts[: common.rank]), sum(counts)) if split else (0, counts[common.rank])
        places = tied[name].reshape(-1).nonzero().squeeze(1)[: max(wanted[group] - before, 0)]
        kept[name].view(-1)[places] = True
        wanted[group] = max(wanted[group] - total, 0)


def _thresholds(
    common: Layout, keys: Callable[[str], Tensor], groups: Mapping[str, int], wanted: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Return the `wanted`-th largest sort key of each group over all ranks, and the counts above and at it.

    A key is determined digit by digit. If none is wanted, it is one above all keys.

    Args:
        common: Common layout.
        keys: Function from a tensor's name to the int32 keys of this rank's candidates, a vector.
        groups: Group of each tensor.
        wanted: Wanted rank in each group, from 0 to its number of candidates.
    """
    prefixes, above, equal = [0] * len(wanted), [0] * len(wanted), [0] * len(wanted)
    for low, bits in _DIGITS:
        histograms = torch.zeros(len(wanted), 1 << bits, dtype=torch.int64)
        for name, group in groups.items():
            if common.counts(name):
                histograms[group] += _histogram(keys(name), low, bits, prefixes[group]).cpu()
        histograms = common.reduce(histograms)
        for group, histogram in enumerate(histograms):
            digit, more, equal[group] = _digit(histogram, wanted[group] - above[group])
            above[group] += more
            prefixes[group] = (prefixes[group] << bits) | digit
    return [
        (prefix - (1 << 31), num_above, num_equal)
        for prefix, num_above, num_equal in zip(prefixes, above, equal, strict=True)
    ]


def _histogram(key: Tensor, low: int, bits: int, prefix: int) -> Tensor:
    """Count the values of one digit (`bits` bits from bit `low`) of the keys whose higher digits are `prefix`.

    Digits are those of the key plus 2^31, so that they have the order of the keys.
    """
    if low + bits < 32:
        key = key[(key >> (low + bits)) == prefix - (1 << (31 - low - bits))]
        digit = (key >> low) & ((1 << bits) - 1)
    else:
        digit = (key >> low) + (1 << (bits - 1))
    return torch.bincount(digit, minlength=1 << bits)


def _digit(histogram: Tensor, wanted: int) -> tuple[int, int, int]:
    """Return the digit of the `wanted`-th largest entry, and the counts of entries with a higher and the same digit."""
    downward = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(downward, wanted))
    equal = int(histogram[-1 - place])
    return len(histogram) - 1 - place, int(downward[place]) - equal, equal


def _check_numbers(common: Layout, scores: Weights) -> None:
    """Refuse NaN on every rank, even if it is on another one."""
    nan = {
        name: int(part.is_floating_point() and part.numel() > 0 and bool(part.amax().isnan()))
        for name, part in scores.items()
    }
    for name, ranks in _summed(common, nan).items():
        if ranks:
            raise MaskError(f"the scores of parameter {name!r} contain NaN")


# --- patterns ---------------------------------------------------------------------------------------------------------


def check_whole_groups(common: Layout, names: Sequence[str], pattern: Pattern, input_dims: Mapping[str, int]) -> None:
    """Refuse a parameter of which a shard ends within a group.

    Raises:
        ConfigError: If there is one; the message names it.
    """
    for name in names:
        if common.splits(name) and input_dims.get(name, 1) == 0:
            cut = [row for row in common.bounds(name) if row % pattern.m]
            if cut:
                raise ConfigError(
                    f"scope {pattern.n}:{pattern.m}: a shard of parameter {name!r} of shape "
                    f"{tuple(common.like[name].shape)} ends after input {cut[0]}, within a group of {pattern.m}; use a "
                    "number of ranks that cuts no group, exclude the parameter from pruning, or choose another scope"
                )


def _check_alive(common: Layout, candidates: Mask, pattern: Pattern, input_dims: Mapping[str, int]) -> None:
    """Refuse, on every rank, a group with fewer candidates than the pattern keeps."""
    fewest = [
        int(masks.groups(part, pattern, input_dims.get(name, 1)).sum(-1).min()) if part.numel() else pattern.m
        for name, part in candidates.items()
    ]
    alive = common.reduce(torch.tensor(fewest, dtype=torch.int64), dist.ReduceOp.MIN).tolist()
    for name, num in zip(candidates, alive, strict=True):
        masks.check_alive(name, num, pattern)


def wrong_groups(mask: Weights, pattern: Pattern, input_dims: Mapping[str, int]) -> dict[str, int]:
    """Count the groups of each parameter that do not keep exactly N weights.

    Raises:
        ConfigError: If a shard cuts a group.
    """
    common = layout(mask)
    check_whole_groups(common, sorted(mask), pattern, input_dims)
    wrong = {
        name: masks.wrong_groups(common.local(name, mask[name]), pattern, input_dims.get(name, 1))
        for name in sorted(mask)
    }
    return _summed(common, wrong)


# --- the same mask on every rank --------------------------------------------------------------------------------------


def check_same_everywhere(mask: Weights, group: dist.ProcessGroup | None = None, what: str = "the mask") -> None:
    """Check that every rank has the same mask: the same bits where it is replicated, the same layout where sharded.

    A digest of 32 bytes per rank is communicated. All ranks of the group must call this function. Without a process
    group, or with one of a single rank, there is nothing to compare.

    Args:
        mask: Bool tensors or DTensors.
        group: Process group; None: the default group.
        what: Description of the mask in the error message.

    Raises:
        MaskError: If masks differ, on every rank; the message names the ranks that differ from rank 0.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return
    digests: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest(mask), group=group)
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise MaskError(
            f"{what} differs between ranks: rank{'s' * (len(others) > 1)} {', '.join(map(str, others))} and rank 0 "
            "have different ones; all ranks must start with the same weights and prune at the same steps and data"
        )


def digest(mask: Weights) -> str:
    """Return the SHA-256 of a mask, over names, shapes, layout and the bits of everything that is not sharded."""
    digest_ = hashlib.sha256()
    for name in sorted(mask):
        kept = mask[name]
        placements = kept.placements if isinstance(kept, DTensor) else ()
        digest_.update(repr((name, tuple(kept.shape), placements)).encode())
        if not _is_split(kept):
            digest_.update(masks.pack({name: local(kept)}).numpy().tobytes())
    return digest_.hexdigest()


masks.SHARDED = sys.modules[__name__]
