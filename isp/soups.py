"""Soups: interpolations and averages of the weights of several models of one architecture, as pure functions.

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
"""Function from all weights of a model to a score on held-out examples; higher is better."""


# --- mixing -----------------------------------------------------------------------------------------------------------


def interpolated(new: Weights, current: Weights, share: float) -> dict[str, Tensor]:
    """Interpolate floating-point tensors, share * new + (1 - share) * current; others are the current ones.

    Args:
        new: New weights.
        current: Current weights with the same names and shapes.
        share: Share of the new weights, in [0, 1]; 0 and 1 give the current and new ones to the bit.
    """
    if share == 0:
        return dict(current)
    return {
        name: (new[name] if share == 1 else tensor.lerp(new[name], share)) if tensor.is_floating_point() else tensor
        for name, tensor in current.items()
    }


def average(members: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the uniform average, summed in fp64; the average of one member equals it to the bit."""
    return {
        name: reduce(operator.add, (member[name].double() for member in members)).div(len(members)).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in members[0].items()
    }


def pruned(
    weights: Weights, prunable: Iterable[str], sparsity: Decimal, scope: Scope = "global"
) -> tuple[dict[str, Tensor], Mask]:
    """Set the smallest prunable weights to zero, and return all weights and the mask."""
    mask = masks.prune_by_magnitude({name: weights[name] for name in prunable}, sparsity, scope=scope)
    sparse = {
        name: tensor.masked_fill(~mask[name], 0.0) if name in mask else tensor for name, tensor in weights.items()
    }
    return sparse, mask


def sparse_average(
    members: Sequence[Weights], member_masks: Sequence[Mask], sparsity: Decimal, scope: Scope = "global"
) -> tuple[dict[str, Tensor], Mask]:
    """Return the uniform average of sparse members with exactly `sparsity` of its prunable weights zero, and its mask.

    If all members share one mask, their average is exactly sparse. An average of members under different masks keeps
    the weights that any of them keeps, so it is pruned again by magnitude.

    Args:
        members: All weights of each member, zero where its mask prunes.
        member_masks: Mask of each member, over the prunable weights.
        sparsity: Sparsity of every member and of the result.
        scope: Scope of the ranking if the average is pruned again.
    """
    mixed, first = average(members), member_masks[0]
    if all(torch.equal(mask[name], kept) for mask in member_masks[1:] for name, kept in first.items()):
        assert not any(mixed[name][~kept].any() for name, kept in first.items()), "a member has weights off its mask"
        return mixed, first
    return pruned(mixed, first, sparsity, scope)


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A member that a greedy soup tried.

    Attributes:
        member: Number of the member.
        alone: Score of the member alone.
        soup: Score of the average of this member and those taken before.
        taken: Whether the member was added because that average was strictly better.
    """

    member: int
    alone: float
    soup: float
    taken: bool


def greedy(members: Sequence[T], blend: Callable[[Sequence[T]], Weights], score: Score) -> list[Tried]:
    """Choose the members of a greedy soup: in order of decreasing score, those that strictly improve the average.

    The soup therefore scores no less than its best member, with which it begins. Members of equal score are tried in
    the order of their numbers. Wortsman et al., Recipe 1, also add a member if the average stays equally good; their
    code does not, and neither does this function.

    Args:
        members: Members of any type.
        blend: Function from some members to the weights of their average; for one member, its own weights.
        score: Function from weights to a score, called once per member, and once for every average of two or more.

    Returns:
        All members in the order in which they were tried; the first one is always taken.
    """
    alone = [score(blend([member])) for member in members]
    best, *others = sorted(range(len(members)), key=lambda index: -alone[index])  # stable
    tried, chosen, reached = [Tried(best, alone[best], alone[best], True)], [best], alone[best]
    for index in others:
        value = score(blend([members[each] for each in [*chosen, index]]))
        tried.append(Tried(index, alone[index], value, value > reached))
        if value > reached:
            reached = value
            chosen.append(index)
    return tried


@dataclass(frozen=True)
class Merged:
    """One step of `merge`.

    Attributes:
        coefficient: Chosen share of the new weights; 0 if they were left out.
        score: Score of the weights after the step.
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
    """Mix one model after another into the current weights, each with the coefficient that scores best.

    A model that improves the score at no coefficient is left out, so the score never falls.

    Args:
        start: Initial weights.
        others: Models to mix in, in this order.
        score: Function from weights to a score, called once for the start, and once for every model and every
            coefficient except 0.
        coefficients: Shares of the model that is mixed in; ties go to the first.
        mix: Function of the model, the current weights and a share, such as `interpolated`.

    Returns:
        Final weights, score of the start, and a step for each model.
    """
    running, begun = start, score(start)
    reached, steps, shares = begun, list[Merged](), list(filter(None, coefficients))
    for other in others:
        base, used = running, 0.0
        for share in shares:
            mixed = mix(other, base, share)
            if (value := score(mixed)) > reached:
                running, reached, used = mixed, value, share
        steps.append(Merged(used, reached))
    return running, begun, steps
