"""Validation is carved from the official training split by rule; the official test split is never touched here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isp.errors import DataError


@dataclass(frozen=True)
class Split:
    """Numbers of the examples of the official training split, sorted and disjoint (int64)."""

    train: np.ndarray
    validation: np.ndarray


def validation_size(num_examples: int, num_validation: int | None) -> int:
    """How many of a training split's examples are validation: the rule, or min(10 %, 5000)."""
    return min(num_examples // 10, 5000) if num_validation is None else num_validation


def carve(
    num_examples: int, num_validation: int | None = None, num_train: int | None = None, limit: int | None = None
) -> Split:
    """Carve a validation split off, by a permutation from a fixed seed (0, as in task vectors), the same for all seeds.

    Which examples are validation depends on `num_examples` and the rule only, so that limiting either side never moves
    an example from one to the other.

    Args:
        num_examples: size of the official training split.
        num_validation: the rule; None: min(10 %, 5000).
        num_train: how many of the rest to train on, the first of the permutation; None: all.
        limit: how many of the validation examples to use; None: all.

    Raises:
        DataError: more asked for than there is.
    """
    size = validation_size(num_examples, num_validation)
    order = np.random.Generator(np.random.PCG64(0)).permutation(num_examples)
    validation, train = order[:size], order[size:]
    for key, wanted, part in (("num_train", num_train, train), ("num_validation", limit, validation)):
        if wanted is not None and not 0 < wanted <= len(part):
            raise DataError(
                f"{key} = {wanted}: allowed are 1 to {len(part)}, of {num_examples} examples in the training split"
            )
    return Split(np.sort(train[:num_train]), np.sort(validation[:limit]))
