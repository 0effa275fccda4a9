"""Temporary replacement of functions and settings of torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from isp.lazy import torch


@contextmanager
def replaced(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give attributes other values in this context.

    Args:
        changes: Triples of an object, the name of its attribute, and the value.
    """
    changes = list(changes)
    before = [getattr(owner, name) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)


@contextmanager
def without_data() -> Iterator[None]:
    """Build modules in this context whose parameters have no data: no random numbers, no memory.

    Buffers are not affected, because some are computed and missing from state dicts. The functions of `torch.nn.init`
    return parameters as they are: on tensors without data they have no effect, but some take long.
    """
    register = torch.nn.Module.register_parameter
    known: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}  # tied parameters stay tied

    def register_empty(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty = torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            parameter = known.setdefault(id(parameter), (parameter, empty))[1]
        register(module, name, parameter)

    def only_with_data(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *args, **kwargs: tensor if tensor.is_meta else function(tensor, *args, **kwargs)

    init = importlib.import_module("torch.nn.init")
    inits = [(init, name, only_with_data(getattr(init, name))) for name in init.__all__ if name.endswith("_")]
    with replaced([(torch.nn.Module, "register_parameter", register_empty), *inits]):
        yield


def weight_norm_as(function: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Return changes that make another function compute weight norms, both parametrizations and the old hooks.

    Args:
        function: Function from the direction v, the scale g and the dimension that keeps its norm to the weight.
    """
    hooks = importlib.import_module("torch.nn.utils.weight_norm")  # torch.nn.utils has a function of that name
    return [(torch, "_weight_norm", function), (hooks, "_weight_norm", function)]
