"""Soups: interpolation and averages of the weights of several models of one architecture. Pure functions on tensors.

Weights map names to all parameters and buffers of a model. Only floating-point tensors are mixed; others, such as
counters, are those of the first model. Uniform and greedy soups: Wortsman et al. 2022, "Model soups"; interpolation
with a coefficient chosen on held-out data: Ilharco et al. 2022, "Patching open-vocabulary models by interpolating
weights".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from isp import masks
from isp.lazy import torch
from isp.masks import Mask, Weights
from isp.sparsity import Scope

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")
Score: TypeAlias = "Callable[[Mapping[str, Tensor]], float]"
"""Of all weights of a model on held-out examples; higher is better."""


# --- mixing -----------------------------------------------------------------------------------------------------------


def interpolated(new: Weights, current: Weights, share: float) -> dict[str, Tensor]:
    """Floating-point tensors share * new + (1 - share) * current; others are the current ones.

    Args:
        new: weights.
        current: weights of the same names and shapes.
        share: of the new ones, in [0, 1]; 0 and 1 give the ends to the bit.
    """
    if share == 0:
        return dict(current)
    return {
        name: (new[name] if share == 1 else tensor.lerp(new[name], share)) if tensor.is_floating_point() else tensor
        for name, tensor in current.items()
    }


def average(members: Sequence[Weights]) -> dict[str, Tensor]:
    """The uniform average, summed in fp64; of one member the member, to the bit."""
    return {
        name: reduce(operator.add, (member[name].double() for member in members)).div(len(members)).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in members[0].items()
    }


def pruned(
    weights: Weights, prunable: Iterable[str], sparsity: Decimal, scope: Scope = "global"
) -> tuple[dict[str, Tensor], Mask]:
    """The weights, the smallest of the prunable ones set to zero, and the mask."""
    mask = masks.prune_by_magnitude({name: weights[name] for name in prunable}, sparsity, scope=scope)
    sparse = {
        name: tensor.masked_fill(~mask[name], 0.0) if name in mask else tensor for name, tensor in weights.items()
    }
    return sparse, mask


def sparse_average(
    members: Sequence[Weights], own: Sequence[Mask], sparsity: Decimal, scope: Scope = "global"
) -> tuple[dict[str, Tensor], Mask]:
    """The uniform average of sparse members, exactly `sparsity` of its prunable weights zero, and its mask.

    Under one mask that all members share it is exactly sparse as it is. An average of members under different masks
    keeps what any of them keeps, so it is pruned again by magnitude.

    Args:
        members: all weights of each; what its mask drops is zero.
        own: the mask of each, over the prunable weights.
        sparsity: of every member and of the result.
        scope: whether layers are ranked together when it is pruned again.
    """
    mixed, first = average(members), own[0]
    if all(torch.equal(mask[name], kept) for mask in own[1:] for name, kept in first.items()):
        assert not any(mixed[name][~kept].any() for name, kept in first.items()), "a member has weights off its mask"
        return mixed, first
    return pruned(mixed, first, sparsity, scope)


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A member that a greedy soup tried.

    Attributes:
        member: its number.
        alone: its own score.
        soup: the score of the average of what was taken before and this member.
        taken: whether that was strictly better.
    """

    member: int
    alone: float
    soup: float
    taken: bool


def greedy(members: Sequence[T], blend: Callable[[Sequence[T]], Weights], score: Score) -> list[Tried]:
    """Which members a greedy soup takes: by falling score, those with which the average is strictly better.

    So the soup scores no less than its best member, with which it begins. Members of equal score come in the order of
    their numbers. Wortsman et al., Recipe 1, also add a member with which the average is as good as before; their code
    does not, and neither does this.

    Args:
        members: of any kind.
        blend: makes the weights of the average of some of them; of one member its own weights.
        score: chooses. It is asked once a member, and once for every average of two or more.

    Returns:
        All members in the order in which they were tried; the first one is always taken.
    """
    alone = [score(blend([member])) for member in members]
    best, *others = sorted(range(len(members)), key=lambda index: -alone[index])  # stable
    tried, taken, reached = [Tried(best, alone[best], alone[best], True)], [best], alone[best]
    for index in others:
        found = score(blend([members[each] for each in [*taken, index]]))
        tried.append(Tried(index, alone[index], found, found > reached))
        if found > reached:
            reached = found
            taken.append(index)
    return tried


@dataclass(frozen=True)
class Merged:
    """One step of `merge`.

    Attributes:
        coefficient: the share of the new weights that was taken; 0: none.
        score: of the weights after it.
    """

    coefficient: float
    score: float


def merge(
    start: T,
    others: Iterable[U],
    score: Callable[[T], float],
    coefficients: Iterable[float],
    mix: Callable[[U, T, float], T],
) -> tuple[T, float, list[Merged]]:
    """Mix what there is with one model after another, each at the coefficient that scores best.

    A model that makes it no better at any coefficient is left out, so the score never falls.

    Args:
        start: what there is at the beginning.
        others: one model after another.
        score: chooses. It is asked once for the start, and once for every coefficient but 0 and every other model.
        coefficients: shares of the other model; of equally good ones the first is taken.
        mix: of the other model, what there is, and a share; such as `interpolated`.

    Returns:
        What there is in the end, the score of the start, and a step for each of the others.
    """
    running, begun = start, score(start)
    reached, steps, shares = begun, list[Merged](), list(filter(None, coefficients))
    for other in others:
        base, taken = running, 0.0
        for share in shares:
            mixed = mix(other, base, share)
            if (found := score(mixed)) > reached:
                running, reached, taken = mixed, found, share
        steps.append(Merged(taken, reached))
    return running, begun, steps
