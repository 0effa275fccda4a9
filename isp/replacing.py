"""Temporary replacement of functions and settings of torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from isp.lazy import torch


@contextmanager
def replaced(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """A context in which attributes have other values.

    Args:
        changes: triples of an object, the name of its attribute, and the value.
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
    """A context in which the parameters of modules that are built get no data: no random numbers, no memory.

    Buffers are as they would be anyway; some are computed, and in no state dict.
    """
    register = torch.nn.Module.register_parameter
    known: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}  # tied parameters stay tied

    def register_empty(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty = torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            parameter = known.setdefault(id(parameter), (parameter, empty))[1]
        register(module, name, parameter)

    with replaced([(torch.nn.Module, "register_parameter", register_empty)]):
        yield


def weight_norm_as(function: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Changes under which weight norms, parametrizations and the old hooks alike, are computed by another function.

    Args:
        function: maps the direction v, the scale g and the dimension that keeps its norm to the weight.
    """
    hooks = importlib.import_module("torch.nn.utils.weight_norm")  # torch.nn.utils has a function of that name
    return [(torch, "_weight_norm", function), (hooks, "_weight_norm", function)]
