"""Files of published models: JSON and safetensors only, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from isp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, floating-point ones as fp32.

    Raises:
        DataError: no such file, or not a whole one.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); fetch it again (stage: download)") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_config(path: Path) -> dict[str, Any]:
    """A model's configuration.

    Raises:
        DataError: no such file, or not keys and values as JSON.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); fetch it again (stage: download)") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: a {type(config).__name__}, not the keys and values of a model's configuration")
    return config


def buildable(path: Path, build: Callable[[], T]) -> T:
    """Return what a library builds from a configuration.

    Raises:
        ConfigError: Nothing can be built, for which the libraries raise all kinds of errors, or `build` says so itself.
    """
    try:
        return build()
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: no model can be built from it ({type(error).__name__}: {reason:.300})") from None
