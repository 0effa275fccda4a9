"""Files of published models: JSON and safetensors only, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from isp.errors import ConfigError, DataError, reason

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, floating-point ones as fp32.

    Raises:
        DataError: If the file does not exist or is incomplete.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: not a complete safetensors file ({error}); run stage download again") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's configuration.

    Raises:
        DataError: If the file does not exist or is not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file. A model of the hub that is not downloaded yet is downloaded by `snakemake "
            "--configfile FILE --until download`; a model in a folder of its own must have this file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); run stage download again") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: must contain the keys and values of a configuration, got {type(config).__name__}")
    return config


def buildable(path: Path, build: Callable[[], T]) -> T:
    """Return the object that a library builds from a configuration.

    Raises:
        ConfigError: If building fails, for which the libraries raise all kinds of errors.
    """
    try:
        return build()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: no model can be built from it ({reason(error)})") from None
