"""torch, imported when it is used first.

Whoever only reads a study, such as every start of Snakemake, needs the settings of methods, backbones and protocols,
but no tensors, and torch takes seconds to import. So modules that hold settings import these names instead of torch's
own, import what only annotations need under `TYPE_CHECKING`, and use torch in functions only; a test sees to it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
else:

    class _Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

        def __setattr__(self, name: str, value: Any) -> None:
            """What is replaced for a while (`isp.replacing`) is replaced for everybody."""
            setattr(importlib.import_module(self.__name__), name, value)

    torch, F = _Lazy("torch"), _Lazy("torch.nn.functional")

__all__ = ["F", "torch"]
