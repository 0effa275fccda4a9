"""Selection by rank in two counting passes over the bits of the scores: the former implementation, as a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from isp.masks import Mask, Weights


def keep_by_counting(
    scores: Weights, ties: Weights | None, within: Mask | None, wanted: int, absolute: bool
) -> dict[str, Tensor]:
    """Keep the `wanted` highest scores, ties by |ties| and then by position, of all tensors together."""
    names = sorted(scores)
    kept = {name: torch.zeros(scores[name].shape, dtype=torch.bool) for name in names}
    candidates = {name: torch.ones_like(kept[name]) if within is None else within[name] for name in names}
    for ranking, by_magnitude in [(scores, absolute)] + ([(ties, True)] if ties is not None else []):
        threshold, num_above = _threshold(names, ranking, by_magnitude, candidates, wanted)
        for name in names:
            key = _key(ranking[name], by_magnitude)
            kept[name] |= (key > threshold) & candidates[name]
            candidates[name] = (key == threshold) & candidates[name]
        wanted -= num_above
    for name in names:
        places = candidates[name].reshape(-1).nonzero().squeeze(1)[: max(wanted, 0)]
        kept[name].view(-1)[places] = True
        wanted -= len(places)
    return kept


def _threshold(
    names: list[str], ranking: Weights, by_magnitude: bool, candidates: Mask, wanted: int
) -> tuple[int, int]:
    if wanted <= 0:
        return 2**31 - 1, 0
    keys = torch.cat([_key(ranking[name], by_magnitude)[candidates[name]] for name in names])
    high, above = _bin(torch.bincount((keys >> 16) + 2**15, minlength=2**16), wanted)
    high -= 2**15
    low, more = _bin(torch.bincount(keys[keys >> 16 == high] & 0xFFFF, minlength=2**16), wanted - above)
    return (high << 16) | low, above + more


def _bin(counts: Tensor, wanted: int) -> tuple[int, int]:
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, wanted))
    return len(counts) - 1 - place, int(from_top[place - 1]) if place else 0


def _key(score: Tensor, by_magnitude: bool) -> Tensor:
    score = score.float().abs() if by_magnitude else score.float() + 0.0
    bits = score.contiguous().view(torch.int32)
    return bits if by_magnitude else bits ^ ((bits >> 31) & 0x7FFFFFFF)
