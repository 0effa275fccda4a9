"""Training data in users' forms: columns of tensors or arrays, map-style datasets, or objects that form batches.

Unusable data are refused before any training, with an error that says what to pass instead.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from isp.divergence import tensors_in
from isp.errors import ConfigError, IspError
from isp.losses import check_labels, criterion, default_loss, kind_of, pair, predictions
from isp.training import Examples, LossFunction

Collate = Callable[[list[Any]], Any]
FORMS = (
    "tensors or NumPy arrays with one first dimension (in a tuple, list or dict), a map-style dataset, or an object "
    "with __len__ and batch(indices)"
)


class Columns:
    """Examples stored as tensors with equal first dimensions, in a tuple or a dict."""

    def __init__(self, tensors: Sequence[Tensor] | Mapping[str, Tensor], what: str) -> None:
        self.tensors = tensors
        lengths = {len(tensor) for tensor in (tensors.values() if isinstance(tensors, Mapping) else tensors)}
        if len(lengths) != 1:
            raise ConfigError(f"{what}: its tensors have different numbers of examples: {sorted(lengths)}")
        (self.length,) = lengths

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Tensor) -> Any:
        """Return the rows `indices` of every tensor, in the same container."""
        if isinstance(self.tensors, Mapping):
            return {key: tensor[indices.to(tensor.device)] for key, tensor in self.tensors.items()}
        return tuple(tensor[indices.to(tensor.device)] for tensor in self.tensors)


class Dataset:
    """Examples of a map-style dataset, collated as in a DataLoader or by a function of the user."""

    def __init__(self, dataset: Any, collate: Collate | None, like: Tensor, what: str) -> None:
        self.dataset, self.collate, self.like, self.what = dataset, collate, like, what

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> Any:
        """Return the collated items `indices`."""
        items = [self.dataset[index] for index in indices.tolist()]
        if self.collate is not None:
            return self.collate(items)
        try:
            return default_collate([self._item(item) for item in items])
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.what}: the items cannot be collated into one batch ({' '.join(str(error).split())}). Give "
                "collate=, a function from a list of items to a batch, such as one that pads them to equal length"
            ) from error

    def _item(self, item: Any) -> Any:
        """Convert the arrays of an item, and the lists in a dict (token ids, for example), to tensors."""
        if isinstance(item, Mapping):
            return {key: self._item(_to_array(value)) for key, value in item.items()}
        if isinstance(item, tuple) and not hasattr(item, "_fields"):
            return tuple(self._item(value) for value in item)
        if isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
            return _to_tensor(item, self.like, device="cpu")
        return item


def make_examples(
    data: Any, model: nn.Module, what: str, collate: Collate | None = None, *, by_item: bool = False
) -> Examples:
    """Make examples from any form of data that users may pass.

    NumPy arrays, and objects that convert to them, become tensors on the model's device. NumPy's default dtype float64
    becomes the dtype of the model's parameters.

    Args:
        data: Argument of the user.
        model: Model to train, whose device and dtype arrays get.
        what: Name of the argument in error messages.
        collate: Function from a list of items of a map-style dataset to a batch; None: `default_collate`.
        by_item: Whether `data` is the dataset of a DataLoader, which collates the items even of a tensor or a list of
            tensors instead of using them as columns.

    Raises:
        ConfigError: If the data cannot be used; the message says what to pass instead.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    examples = _make(data, like, what, collate, by_item)
    if not len(examples):
        raise ConfigError(f"{what}: contains no examples")
    return examples


def _make(data: Any, like: Tensor, what: str, collate: Collate | None, by_item: bool) -> Examples:
    if isinstance(data, DataLoader):
        raise ConfigError(
            f"{what}: must not be a DataLoader, because batches are formed here in a reproducible order; pass its "
            "dataset (loader.dataset), and its collate_fn as collate="
        )
    if isinstance(data, (IterableDataset, Iterator)):
        raise ConfigError(
            f"{what}: a {type(data).__name__} cannot be indexed by number; pass a list of its examples, list({what}), "
            "or a map-style dataset"
        )
    if by_item and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Dataset(data, collate, like, what)
    if _is_array(data):
        return Columns([_column(data, "the array", like, what)], what)
    if isinstance(data, Mapping) and data:
        return Columns({key: _column(part, repr(key), like, what) for key, part in data.items()}, what)
    if isinstance(data, (tuple, list)) and any(map(_is_array, data)):
        return Columns([_column(part, f"part {index}", like, what) for index, part in enumerate(data)], what)
    if isinstance(data, tuple) and data and all(isinstance(part, list) for part in data):
        raise ConfigError(f"{what}: lists in a tuple may be columns or examples; pass columns as tensors or arrays")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (str, bytes, Mapping)):
        return Dataset(data, collate, like, what)
    if hasattr(data, "batch") and hasattr(data, "__len__"):
        return data  # type: ignore[no-any-return]
    raise ConfigError(f"{what}: must be {FORMS}; got a {type(data).__name__}")


def _is_array(part: Any) -> bool:
    return hasattr(part, "__array__")  # tensors, NumPy arrays, pandas' columns


def _to_array(value: Any) -> Any:
    """Convert a list of numbers to an array, and return anything else unchanged."""
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        return value
    return array if array.dtype.kind in "biuf" else value


def _column(part: Any, name: str, like: Tensor, what: str) -> Tensor:
    if not isinstance(part, Tensor):
        try:
            array = np.asarray(part)
        except ValueError:
            raise ConfigError(
                f"{what}: {name} has rows of unequal length; pad them, or pass a list of examples and collate="
            ) from None
        if array.dtype.kind not in "biufc":
            kind = "strings" if array.dtype.kind in "US" else f"values of type {array.dtype}"
            raise ConfigError(f"{what}: {name} contains {kind}; leave it out, or convert it to numbers")
        part = _to_tensor(array, like, like.device)
    if not part.dim():
        raise ConfigError(f"{what}: {name} is a single value; its first dimension must be that of the examples")
    column: Tensor = part
    return column


def _to_tensor(array: np.ndarray, like: Tensor, device: torch.device | str) -> Tensor:
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a read-only array, which is never written to
        tensor: Tensor = torch.from_numpy(array)
    dtype = like.dtype if tensor.dtype == torch.float64 else tensor.dtype
    return tensor.to(device=torch.device(device), dtype=dtype)


# --- the first batch --------------------------------------------------------------------------------------------------


def first_loss(loss: LossFunction | None, examples: Examples) -> LossFunction:
    """Return a loss for the first batch only, which checks for later failures and meaningless training.

    Args:
        loss: Loss of the user; None: `default_loss`.
        examples: Training examples; if they are columns, all their labels are checked.
    """

    def look(model: nn.Module, batch: Any) -> Tensor:
        value = _by_default(model, batch, examples) if loss is None else loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise ConfigError(f"loss: must return one value as a tensor, the mean over the batch, got {got}")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ConfigError("loss: its value does not depend on any trainable parameter of the model")
        return value

    return look


def _by_default(model: nn.Module, batch: Any, examples: Examples) -> Tensor:
    """Compute `default_loss` of the first batch, and explain its failures."""
    if isinstance(batch, Mapping):
        _check_columns(model, batch)
    try:
        if isinstance(batch, Mapping):
            return default_loss(model, batch)
        inputs, labels = pair(batch)
        outputs = predictions(model(inputs))
        tensors = getattr(examples, "tensors", None)
        check_labels(tensors[1] if isinstance(examples, Columns) and tensors else labels, outputs)
        return criterion(outputs, labels)
    except IspError:
        raise
    except Exception as error:
        parts = "; ".join(f"{where}: {_kind(tensor)}" for where, tensor in tensors_in(batch))
        kinds = " and ".join(sorted({f"{_type(p)} on {p.device}" for p in model.parameters()}))
        raise ConfigError(
            f"the model fails on the first batch ({type(error).__name__}: {' '.join(str(error).split())}). The batch "
            f"contains {parts or 'no tensors'}; the model's parameters are {kinds}. Dtypes and devices must agree. If "
            "the model is called in another way, give loss="
        ) from error


def _check_columns(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse columns of a dict that `model(**batch)` cannot accept."""
    for key, value in batch.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (str, bytes)):
            raise ConfigError(f"the batch's column {key!r} contains strings; remove it from the data, or give loss=")
    try:
        arguments = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return
    if any(argument.kind == argument.VAR_KEYWORD for argument in arguments.values()):
        return
    unknown = [key for key in batch if key not in arguments]
    if unknown:
        raise ConfigError(
            f"the batch's column {unknown[0]!r} is not an argument of the model's forward ({', '.join(arguments)}), "
            "to which a dict is passed by name; rename or remove the column, or give loss="
        )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(tensor: Tensor) -> str:
    return f"{kind_of(tensor)} on {tensor.device}"
