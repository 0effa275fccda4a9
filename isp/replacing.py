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


def weight_norm_as(function: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Changes under which weight norms, parametrizations and the old hooks alike, are computed by another function.

    Args:
        function: maps the direction v, the scale g and the dimension that keeps its norm to the weight.
    """
    hooks = importlib.import_module("torch.nn.utils.weight_norm")  # torch.nn.utils has a function of that name
    return [(torch, "_weight_norm", function), (hooks, "_weight_norm", function)]
