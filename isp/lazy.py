"""torch, imported on first use.

Code that only reads a study, such as every start of Snakemake, needs the settings of methods, backbones and protocols
but no tensors, and torch takes seconds to import. Modules with settings therefore import these names instead of torch's
own, import names for annotations under `TYPE_CHECKING`, and use torch only in functions. A test verifies this.
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
            try:
                module = _modules[self.__name__]
            except KeyError:
                module = _modules[self.__name__] = importlib.import_module(self.__name__)
            return getattr(module, name)

        def __setattr__(self, name: str, value: Any) -> None:
            """Set an attribute of the real module, so that `isp.replacing` affects all its users."""
            setattr(importlib.import_module(self.__name__), name, value)

    _modules: dict[str, ModuleType] = {}  # because an import statement takes longer than some functions of torch

    torch, F = _Lazy("torch"), _Lazy("torch.nn.functional")

__all__ = ["F", "torch"]
