"""Recorder of the inputs of weights, which `wanda` needs: it observes the matrix products that read a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isp.memory import Memory
from isp.methods.snip import sum_type

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}


class Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode that accumulates the squared inputs of every known weight over the products x @ w' that run inside it."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = Memory(weights)
        self._squares: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in weights}

    @property
    def read(self) -> set[str]:
        """Names of the weights that at least one product has read."""
        return {name for name, parts in self._squares.items() if parts}

    def squares(self, name: str) -> Tensor:
        """Return, for each entry of a weight, the sum of squares of the input feature that it multiplies."""
        first, *others = (squares for _, squares in self._squares[name])
        return sum(others, start=first)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in _PRODUCTS:
            left, right = args[-2:]
            if owner := self._memory.owner(right):
                self._add(*owner, left, right)
        else:
            self._memory.follow(func._overloadpacket, args, out)
        return out

    def _add(self, name: str, whole: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the product of `left` (…, tokens, inputs) and `right` (…, inputs, outputs), a view of part of `whole`."""
        squares = left.to(sum_type(whole)).square().sum(-2)
        if right.dim() == 3 and right.stride(0) == 0:  # one weight, expanded over the batch
            right, squares = right[0], squares.sum(0)
        offset = right.storage_offset() - whole.storage_offset()
        self._sums(name, whole).as_strided(right.shape, right.stride(), offset).add_(squares.unsqueeze(-1))

    def _sums(self, name: str, whole: Tensor) -> Tensor:
        """Return the sums of squares for a weight or for a scaled copy of it, in the same memory layout."""
        for known, sums in self._squares[name]:
            if known.data_ptr() == whole.data_ptr():
                return sums
        sums = torch.empty_strided(whole.shape, whole.stride(), dtype=sum_type(whole), device=whole.device).zero_()
        self._squares[name].append((whole, sums))
        return sums
