"""Default loss, chosen by the outputs of a model and its labels, and checks of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isp.divergence import IGNORED
from isp.errors import ConfigError
from isp.lazy import F, torch
from isp.tensors import is_half

if TYPE_CHECKING:
    from torch import Tensor, nn


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the default loss of a model on a batch.

    For a batch (inputs, labels): `criterion` of `model(inputs)`. For a dict: the model's own loss for `model(**batch)`,
    as in Hugging Face models.

    Raises:
        ConfigError: If the loss does not follow from the batch, the outputs or the labels; the message says what is
            expected.
    """
    if isinstance(batch, Mapping):
        outputs = model(**batch)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if not isinstance(loss, torch.Tensor):
            raise ConfigError(
                f"the model returns no loss for a batch with {', '.join(map(repr, batch))} (its output is a "
                f"{type(outputs).__name__}). Add 'labels' to the data if it computes a loss from them, or give loss="
            )
        return loss
    inputs, labels = pair(batch)
    return criterion(predictions(model(inputs)), labels)


def pair(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and labels of a batch.

    Raises:
        ConfigError: If the batch has other parts.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], torch.Tensor):
        parts = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else [type(batch).__name__]
        raise ConfigError(
            f"the default loss takes batches of (inputs, labels), labels a tensor, or a dict for the model; got "
            f"({', '.join(parts)}). Give loss="
        )
    return batch[0], batch[1]


def predictions(outputs: Any) -> Tensor:
    """Return a model's output if it is a tensor, otherwise its `logits`.

    Raises:
        ConfigError: If the output is neither a tensor nor has `logits`.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"the default loss needs a model that returns a tensor or an object with `logits`, got a "
            f"{type(outputs).__name__}. Give loss="
        )
    return logits


def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
    """Compute mean squared error for floating-point labels, or cross-entropy for integer labels (classes).

    Outputs in half precision are cast to fp32.

    Args:
        outputs: Outputs, (n,) or (n, 1) for a regression; (n, classes, ...) for a classification.
        labels: Labels, (n,) or (n, 1); or (n, ...) for a classification, where -100 is ignored.

    Raises:
        ConfigError: If shapes or dtypes do not fit, or floating-point labels are (n, k), which may be k targets or the
            probabilities of k classes.
    """
    if is_half(outputs.dtype) and not torch.is_autocast_enabled(outputs.device.type):
        outputs = outputs.float()
    shapes = f"labels {kind_of(labels)} for outputs {kind_of(outputs)}"
    if labels.is_floating_point():
        if outputs.shape == labels.shape and labels.dim() > 1 and labels.shape[-1] > 1:
            raise ConfigError(
                f"{shapes}: may be several targets of a regression or probabilities of classes. Give loss=, such as "
                "lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])"
            )
        if _without_last(outputs) != _without_last(labels):
            raise ConfigError(
                f"{shapes}: floating-point labels are targets of a regression, and the model must return one value "
                "for each; labels of classes must be integers. Or give loss="
            )
        if labels.dtype != outputs.dtype and not torch.is_autocast_enabled(outputs.device.type):
            labels = labels.to(outputs.dtype)
        return F.mse_loss(outputs.reshape(labels.shape), labels)
    if labels.is_complex() or outputs.dim() < 2 or outputs.shape[1] < 2:
        raise ConfigError(
            f"{shapes}: integer labels are classes, and the model must return one value for each class, (n, classes); "
            "labels of a regression must be floating-point. Or give loss="
        )
    if labels.dim() == outputs.dim() and labels.shape[-1] == 1:
        labels = labels.squeeze(-1)
    expected = outputs.shape[:1] + outputs.shape[2:]
    if labels.shape != expected:
        raise ConfigError(f"{shapes}: labels of classes must have shape {tuple(expected)}. Or give loss=")
    labels = labels.long()
    try:
        return F.cross_entropy(outputs, labels)
    except IndexError:  # on a CPU
        check_labels(labels, outputs)
        raise


def check_labels(labels: Tensor, outputs: Tensor) -> None:
    """Refuse labels on which `criterion` cannot train.

    Args:
        labels: Labels of any number of examples.
        outputs: Outputs of a batch, which give the number of classes.

    Raises:
        ConfigError: If a class has no output, all labels are ignored, or a target is NaN or infinite.
    """
    if labels.is_floating_point():
        if not labels.isfinite().all():
            raise ConfigError("labels: some are NaN or infinite")
        return
    if labels.is_complex() or outputs.dim() < 2 or outputs.shape[1] < 2:
        return  # `criterion` refuses them
    labels = labels.long()  # otherwise uint8 labels would compare -100 as 156
    classes = labels[labels != IGNORED]
    if not len(classes):
        raise ConfigError(f"labels: all are {IGNORED}, which the loss ignores")
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < 0 or highest >= outputs.shape[1]:
        raise ConfigError(
            f"labels: range from {lowest} to {highest}, but the model has {outputs.shape[1]} outputs, so labels must "
            f"be 0 to {outputs.shape[1] - 1} (or {IGNORED} to be ignored)"
        )


def kind_of(tensor: Tensor) -> str:
    """Return the dtype and shape of a tensor, such as "float32 (2, 3)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _without_last(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape without a last dimension of 1."""
    shape = tuple(tensor.shape)
    return shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape
