"""Tensors of a model, each under one name: the names of tied parameters, and the memory that a tensor reads.

A parameter that several modules share (tied embeddings and output layers, repeated blocks) has several names in a
model's state dict. This package always uses the first of them, the one in `named_parameters`.

A wrapper of modules may give its tensors other names in the state dict than in `named_parameters`, as torch's
`checkpoint_wrapper` does. This package uses those of `named_parameters` and accepts both.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from isp.errors import ConfigError, expect
from isp.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


_CHECKPOINTED = "_checkpoint_wrapped_module."
"""Part of the names in `named_parameters` of what torch's `checkpoint_wrapper` contains, but not in a state dict."""


def first_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each tensor of the model's state dict, by each of its names in `named_parameters`."""
    return _first_names(_state(model)[0])


def saved_names(model: nn.Module) -> dict[str, str]:
    """Return the name of each tensor in the model's state dict, by its name in `named_parameters` or `named_buffers`.

    The two differ only in modules that rename their state. Tensors are therefore compared by identity.
    """
    return _state(model)[1]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by their first name, detached but not copied."""
    return tensors_beside({}, model, "")[0]


def by_first_name(tensors: Mapping[str, Tensor], model: nn.Module, what: str) -> dict[str, Tensor]:
    """Return tensors of the model's parameters (weights, a mask) under the first name of each parameter only.

    Names of its state dict are accepted as well, also those with the prefix of a `checkpoint_wrapper` that the model
    does not have. Other names that the model lacks stay unchanged.

    Args:
        tensors: Tensors by name; a tied parameter may be present under one or several of its names.
        model: Model to whose parameters they belong.
        what: Description of `tensors` for the error message.

    Raises:
        ConfigError: If the tensors under two names of one parameter differ; the message names both.
    """
    return tensors_beside(tensors, model, what)[1]


def tensors_beside(
    tensors: Mapping[str, Tensor], model: nn.Module, what: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return `tensors_of(model)` and `by_first_name(tensors, model, what)`, for which the model is searched once."""
    state, saved_as = _state(model)
    first = _first_names(state)
    own = {name: tensor.detach() for name, tensor in state.items() if first[name] == name}
    first = {saved_name: first[name] for name, saved_name in saved_as.items()} | first
    merged: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = first.get(name) or first.get(name.replace(_CHECKPOINTED, ""), name)
        other = merged.setdefault(key, tensor)
        if other is not tensor and not torch.equal(other, tensor.to(other.device)):
            raise ConfigError(
                f"{what}: {source[key]!r} and {name!r} are one parameter of the model, but they differ here; give it "
                f"once, or the same values under both names"
            )
        source.setdefault(key, name)
    return own, merged


def by_all_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors under every name in `named_parameters`.

    These are the names that `nn.Module.load_state_dict` expects, unless modules rename their state.
    """
    return {name: tensors[first] for name, first in first_names(model).items()}


def check_dtypes(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Check that tensors have the types of those of the model, so that none is rounded when it is copied there.

    Tensors that the model lacks are not checked.

    Args:
        model: Model to which they belong.
        tensors: Tensors by name, see `by_first_name`.
        what: Description of `tensors` for the error message.

    Raises:
        ConfigError: If one has another type; the message names it and both types.
    """
    own, tensors = tensors_beside(tensors, model, what)
    for name, tensor in tensors.items():
        if name in own and own[name].dtype != tensor.dtype:
            given, has = (str(each.dtype).removeprefix("torch.") for each in (tensor, own[name]))
            way = f": model.to(torch.{given})" if tensor.is_floating_point() or tensor.is_complex() else ""
            raise ConfigError(
                f"{what}: {name!r} is {given}, but {has} in the model; first convert the model, or its tensor{way}"
            )


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


def check_module(name: str, value: Any) -> nn.Module:
    """Return an argument that must be a module.

    Raises:
        ConfigError: If it is anything else; the message has the argument's name.
    """
    expect(name, value, "a torch.nn.Module", torch.nn.Module)
    module: nn.Module = value
    return module


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `DistributedDataParallel`, `DataParallel` and `torch.compile`."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded over processes, without importing the module that defines such tensors."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def copy_of(model: nn.Module, shared: bool = False) -> nn.Module:
    """Return a copy in evaluation mode, also of a model whose modules hold computed tensors.

    Examples are a weight under `torch.nn.utils.weight_norm` or `torch.nn.utils.prune`, which cannot be copied as it is.

    Args:
        model: Model to copy.
        shared: Whether the copy shares all tensors with the model; its parameters then need no gradients.

    Raises:
        ConfigError: If a module has an attribute that cannot be copied; the message names both.
    """
    memo: dict[int, Any] = {}
    if shared:
        memo |= {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        memo |= {id(buffer): buffer for buffer in model.buffers()}
    for module in model.modules():
        held = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        if shared:
            memo |= {id(value): value.detach() for value in held}
        else:
            memo |= {id(value): value.detach().clone() for value in held if not value.is_leaf}
    known = dict(memo)
    try:
        return copy.deepcopy(model, memo).eval()
    except TypeError as error:  # as raised for generators, locks and open files
        where = _uncopied(model, known)
        if where is None:
            raise
        raise ConfigError(
            f"{where} cannot be copied ({error}), but a copy of the model is needed; remove the attribute, or define "
            "__deepcopy__ or __getstate__ in the module's class"
        ) from None


def _uncopied(model: nn.Module, memo: Mapping[int, Any]) -> str | None:
    """Return the first attribute of a module that cannot be copied, other than its tensors and modules, in words."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except TypeError:
                return f"attribute {attribute!r} of module {name!r} ({type(module).__name__})"
    return None


def remember_buffers(model: nn.Module, unsaved_only: bool = False) -> Callable[[], None]:
    """Copy the model's buffers and return a function that restores them, also if others were assigned since.

    The values of sparse and of expanded buffers, in which elements share memory, are not copied.

    Args:
        model: The model.
        unsaved_only: Whether only buffers that are not persistent are copied, which no state dict contains.
    """

    def copied(buffer: Tensor | None) -> Tensor | None:
        if buffer is None or buffer.layout != torch.strided or is_expanded(buffer):
            return None
        return buffer.detach().clone()

    copies = [
        (module, name, buffer, copied(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if not unsaved_only or name in module._non_persistent_buffers_set
    ]

    def restore() -> None:
        for module, name, buffer, value in copies:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                write(buffer, value)

    return restore


def write(tensor: Tensor, value: Tensor) -> None:
    """Copy a value into a tensor, in place; into one made in inference mode, only code in that mode can write."""
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


def has_gaps(tensor: Tensor) -> bool:
    """Return whether memory between the tensor's elements belongs to others, as in a slice of columns."""
    begin, end = extent(tensor)[1:]
    return 0 < tensor.numel() * tensor.itemsize < end - begin


def is_expanded(tensor: Tensor) -> bool:
    """Return whether elements of the tensor share memory, as `expand` makes them."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of the model's state dict by their names in `named_parameters`, and `saved_names`."""
    saved = _saved(model)
    names = _saved_names(model, saved)
    return {name: saved[saved_name] for name, saved_name in names.items()}, names


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    names: dict[Any, str] = {}
    return {name: names.setdefault(_identity(tensor), name) for name, tensor in state.items()}


def _saved_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False))
    renamed: dict[int, list[str]] = defaultdict(list)
    for name, tensor in own.items():
        if name not in state:
            renamed[id(tensor)].append(name)
    return {
        renamed[id(tensor)].pop(0) if name not in own and renamed.get(id(tensor)) else name: name
        for name, tensor in state.items()
    }


def _saved(model: nn.Module) -> dict[str, Tensor]:
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
