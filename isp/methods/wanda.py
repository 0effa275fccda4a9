"""Wanda: keep large weights on large inputs, then fine-tune for T steps.

Sun, Liu, Bair & Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024. A weight is
scored |w_ij| * ||x_j||_2, the norm of its input feature j over all tokens of some calibration batches. Only forward
passes are needed.

Inputs are found where a matrix product reads a weight (or a part of it, as queries, keys and values read theirs of
`nn.MultiheadAttention`), not by hooks on modules: `nn.MultiheadAttention` never calls its `out_proj`. A parametrized
layer's product reads a scaled copy of the prunable tensor; |w_ij| is of that tensor itself, as for all methods.

Departures: weights are ranked inside a layer, the paper ranks them inside each output row, which also prunes every
layer alike (over all layers, `scope: global`, those of small inputs are pruned completely); inputs are those of the
dense model, the paper prunes block by block and feeds each the outputs of pruned ones; afterwards the model is
fine-tuned. Padding counts like any token, because a product knows no attention mask; batches of
texts of similar length have little of it.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isp.errors import ConfigError
from isp.methods import Family, Probe, Scored
from isp.methods.snip import sum_type
from isp.sparsity import Scope
from isp.tensors import Memory

FAMILY: Family = "one_shot"
VERSION = 1

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}


class Settings(Scored):
    """Scope, and how much data is looked at."""

    scope: Scope = Field(
        default="layer", description="prune each tensor (layer) to the same sparsity, or rank all weights together"
    )
    batches: int = Field(default=4, ge=1, description="training batches that the norms of the inputs are over")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """|w_ij| * ||x_j||_2.

    Raises:
        ConfigError: a weight that no matrix product reads, such as a convolution's.
    """
    inputs = _Inputs(probe.weights)
    with torch.no_grad():
        for batch in probe.batches(settings.batches):
            with inputs:
                probe.loss(probe.model, batch)
        unread = [name for name in probe.weights if name not in inputs.read]
        if unread:
            raise ConfigError(
                f"parameter {unread[0]!r}: no matrix product of the forward pass reads it, so method 'wanda' does not "
                f"know its inputs; allowed are weights of nn.Linear and nn.MultiheadAttention, or of recurrent layers "
                f"(leave others out by prunable or exclude)"
            )
        return {name: weight.abs() * inputs.squares(name).sqrt() for name, weight in probe.weights.items()}


class _Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the squared inputs of every known weight in the products x @ w' that run inside."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = Memory(weights)
        self._squares: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in weights}

    @property
    def read(self) -> set[str]:
        """Names of the weights that a product has read."""
        return {name for name, parts in self._squares.items() if parts}

    def squares(self, name: str) -> Tensor:
        """For each entry of a weight that was read, the sum of squares of the input feature that it multiplies."""
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
        """`left` (…, tokens, inputs) multiplies `right` (…, inputs, outputs), a view of (a part of) `whole`."""
        squares = left.to(sum_type(whole)).square().sum(-2)
        if right.dim() == 3 and right.stride(0) == 0:  # one weight, expanded over the batch
            right, squares = right[0], squares.sum(0)
        offset = right.storage_offset() - whole.storage_offset()
        self._sums(name, whole).as_strided(right.shape, right.stride(), offset).add_(squares.unsqueeze(-1))

    def _sums(self, name: str, whole: Tensor) -> Tensor:
        """Where the squares for a weight, or for a scaled copy of it, are added up; laid out in memory as that is."""
        for known, sums in self._squares[name]:
            if known.data_ptr() == whole.data_ptr():
                return sums
        sums = torch.empty_strided(whole.shape, whole.stride(), dtype=sum_type(whole), device=whole.device).zero_()
        self._squares[name].append((whole, sums))
        return sums
