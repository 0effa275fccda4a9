"""Wanda: keep large weights on large inputs, then fine-tune for T steps.

Sun, Liu, Bair & Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024. A weight is
scored |w_ij| * ||x_j||_2, the norm of its input feature j over all tokens of some calibration batches. Only forward
passes are needed.

Inputs are found where a matrix product reads a weight (or a part of it, as queries, keys and values read theirs of
`nn.MultiheadAttention`), not by hooks on modules: `nn.MultiheadAttention` never calls its `out_proj`.

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
from isp.sparsity import Scope

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
                f"know its inputs; allowed are weights of nn.Linear and nn.MultiheadAttention (leave others out by "
                f"prunable or exclude)"
            )
        return {name: weight.abs() * inputs.squares[name].sqrt() for name, weight in probe.weights.items()}


class _Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the squared inputs of every known weight in the products x @ w' that run inside.

    Attributes:
        squares: for each entry of a weight, the sum of squares of the input feature that it multiplies.
        read: names of the weights that a product has read.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {weight.untyped_storage().data_ptr(): (name, weight) for name, weight in weights.items()}
        self.squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.read: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in _PRODUCTS:
            left, right = args[-2:]
            name, weight = self.weights.get(right.untyped_storage().data_ptr(), ("", right))
            if name:
                self._add(name, weight, left, right)
        return func(*args, **(kwargs or {}))

    def _add(self, name: str, weight: Tensor, left: Tensor, right: Tensor) -> None:
        """`left` (…, tokens, inputs) multiplies `right` (…, inputs, outputs), a view of (a part of) the weight."""
        squares = left.to(weight.dtype).square().sum(-2)
        if right.dim() == 3 and right.stride(0) == 0:  # one weight, expanded over the batch
            right, squares = right[0], squares.sum(0)
        offset = right.storage_offset() - weight.storage_offset()
        self.squares[name].as_strided(right.shape, right.stride(), offset).add_(squares.unsqueeze(-1))
        self.read.add(name)
