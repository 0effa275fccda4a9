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
    """Scope, and how much data is looked at."""

    scope: Scope = Field(
        default="layer",
        description="how weights are ranked: 'layer', each tensor is pruned to the same sparsity; 'global', all "
        "together; or a pattern 'N:M' such as '2:4', of every M consecutive weights along a layer's inputs the N "
        "highest, as in the paper's section on structured sparsity",
    )
    batches: int = Field(default=4, ge=1, description="training batches that the norms of the inputs are over")


def scores(probe: Probe, settings: Settings, seed: int) -> dict[str, Tensor]:
    """|w_ij| * ||x_j||_2.

    Raises:
        ConfigError: a weight that no matrix product reads, such as a convolution's.
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
                f"parameter {unread[0]!r}: no matrix product of the forward pass reads it, so method 'wanda' does not "
                f"know its inputs; allowed are weights of nn.Linear and nn.MultiheadAttention, or of recurrent layers "
                f"(leave others out by prunable or exclude)"
            )
        return {name: weight.abs() * inputs.squares(name).sqrt() for name, weight in probe.weights.items()}
