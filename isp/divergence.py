"""Causes of a training step that is not finite: data, a weight that a layer computes, ignored labels, the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isp import masks
from isp.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

SLOWER = "Lower learning_rate, raise warmup_steps or set clip_norm."
"""Advice for divergence that the training protocol causes."""


IGNORED = -100
"""Label that torch's cross-entropy ignores."""


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first floating-point tensor with a NaN or infinite value, or None if all are finite.

    Sums over all tensors are checked first, which takes one synchronisation with the device and no temporary memory.
    """
    if masks.is_sharded(tensors):
        from isp import sharded

        return sharded.first_not_finite(tensors)
    sums = [tensor.detach().sum(dtype=torch.float32) for tensor in tensors.values() if tensor.is_floating_point()]
    if not sums or torch.stack(sums).isfinite().all():
        return None
    return next((name for name, tensor in tensors.items() if not tensor.detach().isfinite().all()), None)


def explain(model: nn.Module, batch: Any, indices: Tensor) -> tuple[str, str]:
    """Determine the likely cause of a loss or gradient that is not finite, and a remedy.

    Args:
        model: Model after the forward pass of that step, with finite parameters.
        batch: Batch of that step.
        indices: Indices of the training examples in the batch.

    Returns:
        Clause that continues "training diverged at step 3: loss nan, ..." (empty if only the protocol can be the
        cause), and the advice as a sentence.
    """
    for where, tensor in tensors_in(batch):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            rows = _rows(tensor)
            examples = indices[rows].tolist() if tensor.dim() and len(tensor) == len(indices) else []
            of = f" (training example {', '.join(map(str, examples[:5]))})" if examples else ""
            advice = f"Clean these data, or let the model handle such values. If it does: {SLOWER}"
            return f"; {where} of the batch contains NaN or infinite values{of}", advice
    clause, advice = explain_computed(model)
    if clause:
        return clause, advice
    labels = labels_of(batch)
    classes = None if labels is None or labels.is_floating_point() else labels.long()
    if classes is not None and classes.numel() and bool((classes == IGNORED).all()):
        return f"; all labels of the batch are {IGNORED}, which the loss ignores", "Give every batch some labels."
    return "", SLOWER


def explain_computed(model: nn.Module) -> tuple[str, str]:
    """Return clause and advice, as `explain` does, about a weight that a layer computes; empty if all are finite."""
    for layer, name, tensor in _computed(model):
        if not tensor.isfinite().all():
            first_rows = ", ".join(map(str, _rows(tensor).tolist()[:5]))
            clause = (
                f"; {name} of layer {layer!r} is NaN or infinite (rows {first_rows}) although the "
                "parameters from which it is computed are finite. A normalisation such as weight_norm divides zero by "
                "zero for a row that is completely pruned"
            )
            return clause, "Leave the layer out (exclude=), or remove the normalisation before pruning."
    return "", ""


def tensors_in(batch: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a batch with the keys and indices that lead to them, such as "part 0" or "'input_ids'"."""
    if isinstance(batch, torch.Tensor):
        yield where or "the tensor", batch
    elif isinstance(batch, Mapping):
        for key, part in batch.items():
            yield from tensors_in(part, f"{where}, {key!r}" if where else repr(key))
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for index, part in enumerate(batch):
            yield from tensors_in(part, f"{where}, part {index}" if where else f"part {index}")


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch (inputs, labels) or of a dict with "labels"."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    else:
        labels = batch[1] if isinstance(batch, Sequence) and len(batch) == 2 else None
    return labels if isinstance(labels, torch.Tensor) else None


def _rows(tensor: Tensor) -> Tensor:
    """Return the indices along the first dimension where a tensor is not finite."""
    flat = tensor.detach().reshape(len(tensor) if tensor.dim() else 1, -1)
    return (~flat.isfinite()).any(1).nonzero().squeeze(1).cpu()


def _computed(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield layer, name and value of tensors that layers compute from parameters.

    These are parametrizations, and the attributes in which hooks of the old `weight_norm` and `spectral_norm` store
    their last value. No other attribute counts, because an attention mask contains infinities on purpose.
    """
    from torch.nn.utils import parametrize
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    with torch.no_grad():
        for layer, module in model.named_modules():
            if parametrize.is_parametrized(module):
                for name in module.parametrizations:
                    yield layer, name, getattr(module, name)
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm | SpectralNorm):
                    yield layer, hook.name, getattr(module, hook.name)
