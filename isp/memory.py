"""Ownership of memory: weights, followed through views and scaled copies into the operations that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isp.tensors import extent

_aten = torch.ops.aten
_SCALED_COPIES = {_aten.mul, _aten.div, _aten._weight_norm_interface, _aten._to_copy, _aten.clone}
"""Operations whose result is zero where their argument is, if both have the same shape."""


class Memory:
    """Map from memory to weights, which identifies views even if several weights share one storage."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._parts: dict[int, list[tuple[int, int, str, Tensor]]] = {}
        for name, weight in weights.items():
            self.add(name, weight)

    def add(self, name: str, tensor: Tensor) -> None:
        """Attribute the memory of another tensor (such as a scaled copy) to a weight; the tensor is kept alive."""
        place, begin, end = extent(tensor)
        if place:
            self._parts.setdefault(place, []).append((begin, end, name, tensor))

    def owner(self, tensor: Any) -> tuple[str, Tensor] | None:
        """Return the weight whose memory contains a tensor, and the tensor that was added for it; None if none does."""
        if not isinstance(tensor, Tensor) or not (parts := self._parts.get(tensor.untyped_storage().data_ptr())):
            return None
        _, begin, end = extent(tensor)
        return next(
            ((name, added) for first, last, name, added in parts if first <= begin and end <= last and begin < end),
            None,
        )

    def follow(self, operation: Any, args: Any, out: Any) -> list[str]:
        """Attribute the result of an operation to a weight if it is a scaled copy of the whole weight.

        Parametrized layers, which compute their weight from a parameter, can thus be followed to the product.

        Args:
            operation: Operator as in `torch.ops`.
            args: Arguments of the operation.
            out: Result of the operation.

        Returns:
            Names of the weights that the operation reads in other ways, except through views.
        """
        read = []
        result = out[0] if isinstance(out, tuple) else out
        for arg in tree_leaves(args):
            if isinstance(result, Tensor) and (owner := self.owner(arg)):
                name, whole = owner
                same = arg.shape == whole.shape == result.shape and arg.stride() == whole.stride()
                if same and operation in _SCALED_COPIES:
                    self.add(name, result)
                elif result.untyped_storage().data_ptr() != arg.untyped_storage().data_ptr():
                    read.append(name)
        return read
