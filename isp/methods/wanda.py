"""Wanda: keep large weights on large inputs, then fine-tune for T steps.

Sun, Liu, Bair & Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024. The score of a
weight is |w_ij| * ||x_j||_2, where ||x_j||_2 is the norm of its input feature j over all tokens of some calibration
batches. Only forward passes are needed.

Inputs are observed where a matrix product reads a weight or a part of it (as queries, keys and values of
`nn.MultiheadAttention` do). Hooks on modules would not suffice, because `nn.MultiheadAttention` never calls its
`out_proj`. The product of a parametrized layer reads a scaled copy of the prunable tensor; |w_ij| refers to that tensor
itself, as for all methods.

Departures: weights are ranked within a layer, while the paper ranks them within each output row, which also prunes all
layers equally. (Ranking over all layers, `scope: global`, prunes layers with small inputs completely.) Inputs are those
of the dense model, while the paper prunes block by block and feeds each block the outputs of pruned ones. The model is
fine-tuned afterwards. Padding counts like any token, because a product cannot see the attention mask; batches of texts
of similar length contain little of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from isp.errors import ConfigError
from isp.lazy import torch
from isp.methods import Family, Probe, Scored
from isp.sparsity import Scope

if TYPE_CHECKING:
    from torch import Tensor

FAMILY: Family = "one_shot"
VERSION = 1


class Settings(Scored):
    """Scope and amount of data."""

    scope: Scope = Field(
        default="layer",
        description="how weights are ranked: 'layer', each tensor is pruned to the same sparsity; 'global', over all "
        "layers together; or an 'N:M' pattern such as '2:4', which keeps the N highest of every M consecutive weights "
        "along a layer's inputs, as in the paper's section on structured sparsity",
    )
    batches: int = Field(default=4, ge=1, description="number of training batches over which input norms are computed")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Return |w_ij| * ||x_j||_2.

    Raises:
        ConfigError: If no matrix product reads a weight, such as that of a convolution.
    """
    from isp.methods._inputs import Inputs

    inputs = Inputs(probe.weights)
    with torch.no_grad():
        for batch in probe.batches(settings.batches):
            with inputs:
                probe.loss(probe.model, batch)
        unread = [name for name in probe.weights if name not in inputs.read]
        if unread:
            raise ConfigError(
                f"parameter {unread[0]!r}: no matrix product of the forward pass reads it, so method 'wanda' cannot "
                f"observe its inputs; it supports weights of nn.Linear, nn.MultiheadAttention and recurrent layers "
                f"(leave others out with prunable or exclude)"
            )
        return {name: weight.abs() * inputs.squares(name).sqrt() for name, weight in probe.weights.items()}
