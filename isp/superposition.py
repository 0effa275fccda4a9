"""Superposition: the noisy masks of look-ahead copies, combined into one mask of an exact sparsity.

Jaiswal et al., ICML 2023, Algorithm 2 (DenoisedPrune) and section 2.2.1. Pure functions on tensors;
docs/superposition.md compares the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Literal

from isp import masks
from isp.lazy import torch
from isp.masks import Mask, Weights
from isp.sparsity import Scope

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["mean_score", "votes", "union", "literal"]
Contribution = Literal["mask", "magnitudes"]


def weak(
    contribution: Contribution, copy: Weights, sparsity: Decimal, within: Mask | None, scope: Scope = "global"
) -> Weights:
    """What a look-ahead copy contributes: its magnitude mask at the event's sparsity, or its magnitudes."""
    if contribution == "magnitudes":
        return masks.magnitudes(copy)
    return masks.prune_by_magnitude(copy, sparsity, within, scope=scope)


def superpose(
    rule: Rule,
    weights: Weights,
    contributions: Sequence[Weights],
    sparsity: Decimal,
    within: Mask | None,
    scope: Scope = "global",
    adjust: bool = True,
    plain: Mask | None = None,
) -> Mask:
    """Superpose the contributions of the look-ahead copies into one mask of exactly `sparsity`.

    Every rule is exchangeable (the order of the copies does not matter), and with no copies each is magnitude pruning.

    - mean_score: keep the largest mean look-ahead |w|, ties by current |w| (`isp_mean`).
    - votes: keep the weights that most look-ahead masks keep, ties by current |w|.
    - union: keep the largest current |w| inside the union of the look-ahead masks (the default; section 2.2.1).
    - literal: the same with the current weights' own mask in the union, the text of Algorithm 2. It equals magnitude
      pruning: the union contains the k largest current weights, and the adjustment takes the k largest inside it.

    Args:
        rule: one of the above.
        weights: the run's current prunable weights.
        contributions: from `weak`, one a copy.
        sparsity: of the event, over all prunable weights.
        within: the run's current mask; what it dropped stays dropped.
        scope: whether layers are ranked together.
        adjust: False leaves a union as it is, with more weights than `sparsity` says.
        plain: the mask of magnitude pruning, where it is known.
    """
    if plain is None and (not contributions or rule == "literal"):
        plain = masks.prune_by_magnitude(weights, sparsity, within, scope=scope)
    if plain is not None and not contributions:
        return plain
    keep_top = partial(masks.keep_top, sparsity=sparsity, ties=weights, within=within, scope=scope)
    if rule == "votes":
        return keep_top(masks.votes(contributions))  # type: ignore[arg-type]
    if rule == "mean_score":
        return keep_top({name: _mean([copy[name] for copy in contributions]) for name in weights}, absolute=True)
    superposed = masks.union(*contributions)  # type: ignore[arg-type]
    if rule == "literal" and plain is not None:
        superposed = masks.union(superposed, plain)
    return masks.prune_by_magnitude(weights, sparsity, superposed, scope=scope) if adjust else superposed


def _mean(magnitudes: Sequence[Tensor]) -> Tensor:
    """The mean of the copies' magnitudes of one parameter, in the fp32 that it is ranked in.

    Summed in fp64, where fp32 magnitudes add up exactly enough for the order of the copies not to show.
    """
    total = magnitudes[0].to(torch.float64, copy=True)
    for each in magnitudes[1:]:
        total += each
    return total.div_(len(magnitudes)).float()


def changed(mask: Mask, plain: Mask) -> float:
    """Share of the kept weights that the denoisers changed: those that plain magnitude pruning would have dropped."""
    both = masks.overlap(mask, plain)
    return 1 - both.kept_both / max(1, both.kept_a)


def agreement(contributions: Sequence[Mask]) -> tuple[float, dict[str, float | None]] | None:
    """Mean Jaccard index over all pairs of weak masks, in all and by layer; None with fewer than two masks.

    A layer of which no mask keeps a weight has None, for there is nothing to agree on.
    """
    pairs = masks.overlaps_by_layer(contributions)
    if not pairs:
        return None
    total = _mean_jaccard([sum(layers.values(), masks.Overlap()) for layers in pairs])
    by_layer = {name: [layers[name] for layers in pairs] for name in pairs[0]}
    some = {name: any(pair.kept_a or pair.kept_b for pair in found) for name, found in by_layer.items()}
    return total, {name: _mean_jaccard(found) if some[name] else None for name, found in by_layer.items()}


def _mean_jaccard(pairs: Sequence[masks.Overlap]) -> float:
    return sum(pair.jaccard for pair in pairs) / len(pairs)
