"""Which parameters of a model are prunable.

The paper prunes the 2-D weights inside the transformer blocks; embeddings, norms, biases and heads are never pruned. A
backbone says so by name patterns. For any other module the default is the weight matrices of linear, convolution and
attention layers, and a user narrows it by patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from isp.errors import ConfigError, unknown


def prunable_names(model: nn.Module, patterns: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the prunable parameters of `model`, in the model's order.

    Args:
        model: any module.
        patterns: shell-style patterns over parameter names ("encoder.*.weight"); every one must match a trainable
            parameter of two or more dimensions. None: the weights of all `nn.Linear`, `nn.Conv*` and
            `nn.MultiheadAttention` modules.
        exclude: patterns of names that are left out in any case, such as "head.*".

    Raises:
        ConfigError: a pattern of either kind matches nothing, or nothing is left to prune.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = [name for name, parameter in model.named_parameters() if name in trainable and parameter.dim() >= 2]
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name, _ in model.named_parameters()):
            raise ConfigError(unknown("exclude pattern", pattern, (name for name, _ in model.named_parameters())))
    if patterns is None:
        layer_weights = _layer_weights(model)
        chosen = [name for name in matrices if name in layer_weights]
    else:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise ConfigError(unknown("prunable pattern", pattern, matrices))
        chosen = [name for name in matrices if any(fnmatchcase(name, pattern) for pattern in patterns)]
    chosen = [name for name in chosen if not any(fnmatchcase(name, pattern) for pattern in exclude)]
    if not chosen:
        raise ConfigError(
            "no prunable parameter is left; a prunable parameter is trainable and has two or more dimensions"
        )
    return chosen


def _layer_weights(model: nn.Module) -> set[str]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    attention = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    found = set()
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, kinds):
            found.add(f"{dot}weight")
        elif isinstance(module, nn.MultiheadAttention):
            found.update(f"{dot}{name}" for name in attention)
    return found
