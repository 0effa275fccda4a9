"""Whose memory a tensor reads: weights, followed through views and scaled copies into the operations that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isp.tensors import extent

_aten = torch.ops.aten
_SCALED_COPIES = {_aten.mul, _aten.div, _aten._weight_norm_interface, _aten._to_copy, _aten.clone}
"""Operations whose result, if it has the shape of their argument, is zero where that is."""


class Memory:
    """Finds the weight that a tensor is a view of, also where several weights share one storage."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._parts: dict[int, list[tuple[int, int, str, Tensor]]] = {}
        for name, weight in weights.items():
            self.add(name, weight)

    def add(self, name: str, tensor: Tensor) -> None:
        """Attribute the memory of another tensor (a scaled copy, say) to a weight; the tensor is kept alive."""
        place, begin, end = extent(tensor)
        if place:
            self._parts.setdefault(place, []).append((begin, end, name, tensor))

    def owner(self, tensor: Any) -> tuple[str, Tensor] | None:
        """Name of the weight in whose memory a tensor lies, and the tensor that was added for it; None: no weight."""
        if not isinstance(tensor, Tensor) or not (parts := self._parts.get(tensor.untyped_storage().data_ptr())):
            return None
        _, begin, end = extent(tensor)
        return next(
            ((name, added) for first, last, name, added in parts if first <= begin and end <= last and begin < end),
            None,
        )

    def follow(self, operation: Any, args: Any, out: Any) -> list[str]:
        """Attribute the result of an operation to a weight if it is a scaled copy of the whole of it.

        So parametrized layers, which compute their weight from a parameter, are followed to the product.

        Args:
            operation: the operator, as `torch.ops` gives it.
            args: its arguments.
            out: what it returned.

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
