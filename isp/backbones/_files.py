"""Files of published models: safetensors only, never a pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isp.errors import DataError


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, floating-point ones as fp32.

    Raises:
        DataError: no such file, or not a whole one.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); fetch it again (stage: download)") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
