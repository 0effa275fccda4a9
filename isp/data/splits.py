"""Validation splits, carved from the official training split by rule; the official test split is never touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isp.errors import DataError

Rule = Literal["random", "stratified", "groups"]
"""Rule by which validation examples are chosen: at random; with the shares of the classes preserved; or by whole groups
(such as the frames of one physical traffic sign), so that nothing in validation has a near-duplicate in training, and
the shares of the classes preserved as far as whole groups can."""


@dataclass(frozen=True)
class Split:
    """Indices of the official training split, disjoint (int64), each part in random order.

    The first n indices of a part are therefore a random choice, and the part of an example does not depend on n.
    """

    train: np.ndarray
    validation: np.ndarray


def validation_size(num_examples: int, num_validation: int | None) -> int:
    """Return the number of validation examples: the given one, or (as in task vectors) min(10 %, 5000)."""
    return min(num_examples // 10, 5000) if num_validation is None else num_validation


def carve(
    labels: np.ndarray, num_validation: int | None = None, rule: Rule = "random", groups: np.ndarray | None = None
) -> Split:
    """Carve off a validation split by a permutation from a fixed seed (0, as in task vectors), the same for all seeds.

    Args:
        labels: Labels of the official training split, (n,); the rule "random" does not use them.
        num_validation: Number of validation examples; None: min(10 %, 5000).
        rule: Rule by which they are chosen. "groups" takes whole groups as long as they fit, so it may give slightly
            fewer. The training part always has n - `num_validation` examples.
        groups: Group number of every example, for the rule "groups".

    Raises:
        DataError: If there are too few examples, or no groups.
    """
    num = len(labels)
    size = validation_size(num, num_validation)
    if not 0 < size < num:
        raise DataError(f"num_validation = {size}: must be in 1 to {num - 1}, of {num} examples in the training split")
    order = np.random.Generator(np.random.PCG64(0)).permutation(num)
    if rule == "random":
        held = np.arange(num) < size
    elif rule == "stratified":
        held = _share_of_each(labels[order], size)
    elif groups is None:
        raise DataError("the split rule 'groups' needs a source that provides the group of each example")
    else:
        held = _whole_groups(labels[order], groups[order], size)
        if not held.any():
            raise DataError(
                f"num_validation = {size}: smaller than every group; must be at least the size of one group"
            )
    return Split(order[~held][: num - size], order[held])


def _share_of_each(labels: np.ndarray, size: int) -> np.ndarray:
    """Choose the first examples of each class in proportion, rounded by largest remainders; bool (n,)."""
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * size / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: size - quota.sum()]] += 1
    rank = np.empty(len(labels), dtype=int)  # rank of an example within its class
    for number in range(len(counts)):
        rank[of == number] = np.arange(counts[number])
    return np.asarray(rank < quota[of])


def _whole_groups(labels: np.ndarray, groups: np.ndarray, size: int) -> np.ndarray:
    """Choose groups that fit into `size` together, classes in proportion as far as possible; bool (n,).

    The next group is always the first one that fits of the class that lacks most of its share. Classes of several
    groups that have none come first. A group of several classes is one of its most frequent class.
    """
    _, first, of, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    _, classes = np.unique(labels, return_inverse=True)
    held = np.zeros((len(counts), classes.max() + 1), dtype=int)  # examples by group and class
    np.add.at(held, (of, classes), 1)
    lacking = held.sum(0) * size / len(labels)
    chosen = np.zeros(len(counts), dtype=bool)
    waiting: dict[int, list[int]] = {number: [] for number in range(len(lacking))}
    for group in np.argsort(first):
        waiting[int(held[group].argmax())].append(int(group))
    without = {number for number, of_class in waiting.items() if len(of_class) > 1}
    while waiting:
        number = max(waiting, key=lambda each: (each in without, lacking[each]))
        group = next((each for each in waiting[number] if counts[each] <= size), None)
        if group is None:
            del waiting[number]
            continue
        waiting[number].remove(group)
        without.discard(number)
        chosen[group] = True
        size -= counts[group]
        lacking -= held[group]
    return np.asarray(chosen[of])
