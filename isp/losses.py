"""The default loss, chosen by the outputs of a model and its labels, and the checks of these."""

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
    as Hugging Face models give it.

    Raises:
        ConfigError: the loss does not follow from the batch, the outputs or the labels; says what is expected.
    """
    if isinstance(batch, Mapping):
        outputs = model(**batch)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if not isinstance(loss, torch.Tensor):
            raise ConfigError(
                f"the model returns no loss for a batch with {', '.join(map(repr, batch))} (its output is a "
                f"{type(outputs).__name__}). Add 'labels' to the data if it computes a loss of them, or give loss="
            )
        return loss
    inputs, labels = pair(batch)
    return criterion(predictions(model(inputs)), labels)


def pair(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and labels of a batch.

    Raises:
        ConfigError: the batch has other parts.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], torch.Tensor):
        parts = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else [type(batch).__name__]
        raise ConfigError(
            f"the default loss takes batches of (inputs, labels), labels a tensor, or a dict for the model; got "
            f"({', '.join(parts)}). Give loss="
        )
    return batch[0], batch[1]


def predictions(outputs: Any) -> Tensor:
    """The tensor of a model's output: itself, or its `logits`.

    Raises:
        ConfigError: it is neither.
    """
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(found, torch.Tensor):
        raise ConfigError(
            f"the default loss takes models that return a tensor or an object with `logits`; the output is a "
            f"{type(outputs).__name__}. Give loss="
        )
    return found


def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error for floating-point labels, one an example; cross-entropy for integer ones, classes.

    Outputs in half precision are cast to fp32.

    Args:
        outputs: (n,) or (n, 1) for a regression; (n, classes, ...) for a classification.
        labels: (n,) or (n, 1), or (n, ...) for a classification; -100 is ignored there.

    Raises:
        ConfigError: shapes or types that do not fit, and floating-point labels (n, k), which may be k targets or the
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
    """Refuse labels that `criterion` cannot train on.

    Args:
        labels: of any number of examples.
        outputs: of a batch, for the number of classes.

    Raises:
        ConfigError: classes that the model has no output for, nothing but ignored labels, NaN or infinite targets.
    """
    if labels.is_floating_point():
        if not labels.isfinite().all():
            raise ConfigError("labels: some are NaN or infinite")
        return
    if labels.is_complex() or outputs.dim() < 2 or outputs.shape[1] < 2:
        return  # `criterion` refuses them
    labels = labels.long()  # -100 compared with uint8 labels would be their 156
    classes = labels[labels != IGNORED]
    if not len(classes):
        raise ConfigError(f"labels: all are {IGNORED}, which the loss ignores")
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < 0 or highest >= outputs.shape[1]:
        raise ConfigError(
            f"labels: go from {lowest} to {highest}; the model has {outputs.shape[1]} outputs, so labels must be 0 to "
            f"{outputs.shape[1] - 1} (or {IGNORED} to be ignored)"
        )


def kind_of(tensor: Tensor) -> str:
    """Type and shape of a tensor, such as "float32 (2, 3)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _without_last(tensor: Tensor) -> tuple[int, ...]:
    """The shape, without a last dimension of 1."""
    shape = tuple(tensor.shape)
    return shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape
