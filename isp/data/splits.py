"""Validation is carved from the official training split by rule; the official test split is never touched here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isp.errors import DataError

Rule = Literal["random", "stratified", "groups"]
"""How validation examples are chosen: at random; with the classes' shares kept; or groups (such as the frames of one
physical traffic sign) as a whole, so that nothing in validation was nearly seen in training."""


@dataclass(frozen=True)
class Split:
    """Numbers of the examples of the official training split, disjoint (int64), each part in a random order.

    So the first n of a part are a random choice of it, and which part an example is in does not depend on n.
    """

    train: np.ndarray
    validation: np.ndarray


def validation_size(num_examples: int, num_validation: int | None) -> int:
    """How many of a training split's examples are validation: as said, or (as in task vectors) min(10 %, 5000)."""
    return min(num_examples // 10, 5000) if num_validation is None else num_validation


def carve(
    labels: np.ndarray, num_validation: int | None = None, rule: Rule = "random", groups: np.ndarray | None = None
) -> Split:
    """Carve a validation split off, by a permutation from a fixed seed (0, as in task vectors), the same for all seeds.

    Args:
        labels: of the official training split, (n,); only the rule "stratified" looks at them.
        num_validation: how many; None: min(10 %, 5000).
        rule: how they are chosen. "groups" takes whole groups as long as they fit, so it may give a few less, and
            then trains on as many less than there would be.
        groups: group number of every example, for the rule "groups".

    Raises:
        DataError: more asked for than there is, or no groups.
    """
    num = len(labels)
    size = validation_size(num, num_validation)
    if not 0 < size < num:
        raise DataError(f"num_validation = {size}: allowed are 1 to {num - 1}, of {num} examples in the training split")
    order = np.random.Generator(np.random.PCG64(0)).permutation(num)
    if rule == "random":
        held = np.arange(num) < size
    elif rule == "stratified":
        held = _share_of_each(labels[order], size)
    elif groups is None:
        raise DataError("the split rule 'groups' needs a source that knows the group of each example")
    else:
        held = _whole_groups(groups[order], size)
        if not held.any():
            raise DataError(
                f"num_validation = {size}: smaller than every group; allowed are the sizes of groups and more"
            )
    return Split(order[~held][: num - size], order[held])


def _share_of_each(labels: np.ndarray, size: int) -> np.ndarray:
    """The first examples of each class, in proportion, rounded by largest remainders; bool (n,)."""
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * size / len(labels)
    wanted = np.floor(exact).astype(int)
    wanted[np.argsort(wanted - exact, kind="stable")[: size - wanted.sum()]] += 1
    rank = np.empty(len(labels), dtype=int)  # of an example within its class
    for number in range(len(counts)):
        rank[of == number] = np.arange(counts[number])
    return np.asarray(rank < wanted[of])


def _whole_groups(groups: np.ndarray, size: int) -> np.ndarray:
    """The first groups that fit into `size` together; bool (n,)."""
    _, first, of, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(counts), dtype=bool)
    for group in np.argsort(first):
        if counts[group] <= size:
            chosen[group] = True
            size -= counts[group]
    return np.asarray(chosen[of])
