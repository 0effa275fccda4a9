"""Tensors of a model, each under one name: the names of tied parameters, and the memory that a tensor reads.

A parameter that several modules share (tied embeddings and output layers, repeated blocks) has several names in a
model's state dict. This package always uses the first of them, the one in `named_parameters`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isp.errors import ConfigError
from isp.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def first_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each tensor of the model's state dict, by every name that it has there."""
    names: dict[Any, str] = {}
    return {name: names.setdefault(_identity(tensor), name) for name, tensor in _state(model).items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by their first name, detached but not copied."""
    first = first_names(model)
    return {name: tensor.detach() for name, tensor in _state(model).items() if first[name] == name}


def by_first_name(tensors: Mapping[str, Tensor], model: nn.Module, what: str) -> dict[str, Tensor]:
    """Return tensors of the model's parameters (weights, a mask) under the first name of each parameter only.

    Names that the model lacks stay unchanged.

    Args:
        tensors: Tensors by name; a tied parameter may be present under one or several of its names.
        model: Model to whose parameters they belong.
        what: Description of `tensors` for the error message.

    Raises:
        ConfigError: If the tensors under two names of one parameter differ; the message names both.
    """
    first = first_names(model)
    merged: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = first.get(name, name)
        other = merged.setdefault(key, tensor)
        if other is not tensor and not torch.equal(other, tensor.to(other.device)):
            raise ConfigError(
                f"{what}: {source[key]!r} and {name!r} are one parameter of the model, but they differ here; give it "
                f"once, or the same values under both names"
            )
        source.setdefault(key, name)
    return merged


def by_all_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors under every name of the model's state dict, as `nn.Module.load_state_dict` expects them."""
    return {name: tensors[first] for name, first in first_names(model).items()}


def first_names_by_place(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter and buffer, by the name of each module attribute that refers to it.

    A module that is registered twice has its attributes here once, so `torch.func.functional_call` can receive all of
    them with `tie_weights=False`; with True it does not restore the values that it replaced in such a module.
    """
    names: dict[int, str] = {}
    return {
        name: names.setdefault(id(tensor), name)
        for prefix, module in model.named_modules()
        for tensors in (module.named_parameters, module.named_buffers)
        for name, tensor in tensors(prefix, recurse=False, remove_duplicate=False)
    }


def overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors share memory."""
    (place_a, begin_a, end_a), (place_b, begin_b, end_b) = extent(a), extent(b)
    if not place_a or place_a != place_b or begin_a >= end_b or begin_b >= end_a:
        return False
    if a.dtype != b.dtype:
        return True
    used = torch.zeros(max(end_a, end_b) // a.itemsize, dtype=torch.bool)  # interleaved views may still be disjoint
    used.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(used.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def is_half(dtype: torch.dtype) -> bool:
    """Return whether a dtype has half precision; weights of such dtypes are trained through fp32 master weights."""
    return dtype in (torch.float16, torch.bfloat16)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `DistributedDataParallel` and `torch.compile`."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded over processes, without importing the module that defines such tensors."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)}


def _identity(tensor: Tensor) -> Any:
    """Return a key that is equal for two tensors if they are the same view of the same memory."""
    place, begin, end = extent(tensor)
    return (place, begin, end, tensor.shape, tensor.stride(), tensor.dtype) if place else id(tensor)


def extent(tensor: Tensor) -> tuple[int, int, int]:
    """Return the address of a tensor's storage (0 if it has none or is sharded), and its first and last byte there."""
    place = tensor.untyped_storage().data_ptr() if tensor.numel() and not is_dtensor(tensor) else 0
    begin = int(tensor.storage_offset())
    end = begin + 1 + sum((size - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return place, begin * tensor.itemsize, end * tensor.itemsize
