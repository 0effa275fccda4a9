"""Superposition of the noisy masks of look-ahead copies into one mask of an exact sparsity.

Jaiswal et al., ICML 2023, Algorithm 2 (DenoisedPrune) and section 2.2.1. Pure functions on tensors;
docs/explanation/superposition.md compares the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


def contribution_to(rule: Rule) -> Contribution:
    """Return the kind of tensors that a rule needs from a look-ahead copy."""
    return "magnitudes" if rule == "mean_score" else "mask"


def weak(
    contribution: Contribution,
    copy: Weights,
    sparsity: Decimal,
    within: Mask | None,
    scope: Scope = "global",
    input_dims: Mapping[str, int] = {},
) -> Weights:
    """Return a look-ahead copy's contribution: its magnitude mask at the event's sparsity, or its magnitudes."""
    if contribution == "magnitudes":
        return masks.magnitudes(copy)
    return masks.prune_by_magnitude(copy, sparsity, within, scope=scope, input_dims=input_dims)


@dataclass(kw_only=True, eq=False)
class Superposition:
    """Contributions of a round's look-ahead copies to one event, accumulated one by one.

    Contributions are not stored, only one bit per weight and copy, and for `mean_score` one fp64 sum per weight. Every
    rule is exchangeable (the order of the copies does not matter), and without copies each is magnitude pruning.

    - mean_score: keep the largest mean look-ahead |w|, ties by current |w| (`isp_mean`).
    - votes: keep the weights that most look-ahead masks keep, ties by current |w|.
    - union: keep the largest current |w| inside the union of the look-ahead masks (the default; section 2.2.1).
    - literal: like union, with the current weights' own mask in the union (the text of Algorithm 2). It equals
      magnitude pruning, because the union contains the k largest current weights, and the adjustment keeps the k
      largest inside it.

    Under an N:M scope the last round's weak masks have the pattern, and so has their superposition, which keeps the N
    highest of each group by the rule. Earlier masks keep at least N of each group, so this is always possible.

    Args:
        rule: One of the rules above.
        sparsity: Sparsity of the event, over all prunable weights.
        within: Current mask of the run, whose dropped weights stay dropped; None: all weights.
        scope: Scope in which weights are ranked (`masks.keep_top`).
        input_dims: Input dimension of each parameter, for an N:M scope.

    Attributes:
        weak: Packed masks of the copies so far; for `mean_score`, the mask to which each copy would be pruned.
        total: Sum of the copies' magnitudes in fp64, which is exact enough for fp32 magnitudes to make the order of the
            copies irrelevant; empty under the other rules.
    """

    rule: Rule
    sparsity: Decimal
    within: Mask | None
    scope: Scope = "global"
    input_dims: Mapping[str, int] = field(default_factory=dict)
    weak: list[dict[str, Tensor]] = field(default_factory=list)
    total: dict[str, Tensor] = field(default_factory=dict)

    def add(self, contribution: Weights) -> None:
        """Add the contribution of one copy, from `weak`, without changing or storing it."""
        if self.rule == "mean_score":
            for name, magnitude in contribution.items():
                if self.weak:
                    for total, part in masks.in_blocks(self.total[name], magnitude):
                        total += part
                else:
                    self.total[name] = magnitude.to(torch.float64, copy=True)
            contribution = self.largest(contribution)
        self.weak.append(masks.pack_each(contribution))

    def largest(self, weights: Weights, within: Mask | None = None) -> Mask:
        """Return the magnitude mask at the event's sparsity, within the run's current mask or a part of it."""
        within = self.within if within is None else within
        return masks.prune_by_magnitude(weights, self.sparsity, within, scope=self.scope, input_dims=self.input_dims)

    def mask(self, weights: Weights, *, adjust: bool = True, plain: Mask | None = None) -> Mask:
        """Superpose the contributions of the copies into one mask of exactly `sparsity`.

        Args:
            weights: Current prunable weights of the run.
            adjust: Whether to prune a union to `sparsity`; otherwise it may keep more weights.
            plain: Mask of magnitude pruning, if it is known.
        """
        if plain is None and (not self.weak or self.rule == "literal"):
            plain = self.largest(weights)
        if plain is not None and not self.weak:
            return plain
        keep_top = partial(
            masks.keep_top,
            sparsity=self.sparsity,
            ties=weights,
            within=self.within,
            scope=self.scope,
            input_dims=self.input_dims,
        )
        if self.rule == "votes":
            return keep_top(masks.votes(self._masks(weights)))
        if self.rule == "mean_score":
            mean = {name: self.total[name].div(len(self.weak)).float() for name in weights}  # the fp32 that is ranked
            return keep_top(mean, absolute=True)
        superposed = masks.union(*self._masks(weights))
        if self.rule == "literal" and plain is not None:
            superposed = masks.union(superposed, plain)
        return self.largest(weights, superposed) if adjust else superposed

    def agreement(self, weights: Weights) -> tuple[float, dict[str, float | None]] | None:
        """Return how far the copies' masks agree (see `agreement`); `weights` are the run's and give shapes."""
        return agreement(self._masks(weights))

    def _masks(self, weights: Weights) -> list[masks.Packed]:
        return [masks.Packed(bits, weights) for bits in self.weak]


def changed(mask: Mask, plain: Mask) -> float:
    """Return the share of kept weights that the denoisers changed, which plain magnitude pruning would have dropped."""
    both = masks.overlap(mask, plain)
    return 1 - both.kept_both / max(1, both.kept_a)


def agreement(weak_masks: Sequence[Weights]) -> tuple[float, dict[str, float | None]] | None:
    """Return the mean Jaccard index over all pairs of weak masks, overall and by layer, or None for fewer than two.

    A layer of which no mask keeps a weight has None, because there is nothing to agree on.
    """
    pairs = masks.overlaps_by_layer(weak_masks)
    if not pairs:
        return None
    total = _mean_jaccard([sum(layers.values(), masks.Overlap()) for layers in pairs])
    by_layer = {name: [layers[name] for layers in pairs] for name in pairs[0]}
    some = {name: any(pair.kept_a or pair.kept_b for pair in layer) for name, layer in by_layer.items()}
    return total, {name: _mean_jaccard(layer) if some[name] else None for name, layer in by_layer.items()}


def _mean_jaccard(pairs: Sequence[masks.Overlap]) -> float:
    return sum(pair.jaccard for pair in pairs) / len(pairs)
