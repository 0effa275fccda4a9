"""Golden checksums of what is trained under the kernels of AVX2."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from isp import lineage
from isp.runtime import instructions
from tests.support.golden import FOLDER

needs_avx2 = pytest.mark.skipif(not instructions.is_supported(), reason=f"{platform.machine()} CPU without AVX2")


def content(path: Path) -> str:
    """Return the digest of an artifact's tensors."""
    header = lineage.read_header(path)
    assert header is not None
    return str(header["content"])


def compare_bits(name: str, lines: Sequence[str], golden: Callable[[str, str], None]) -> None:
    """Compare digests with those of a golden file; skip if they are of another torch, or MKL ignores its variable."""
    version = f"torch {torch.__version__.partition('+')[0]}"
    text = "".join(f"{line}\n" for line in (version, *lines))
    known = FOLDER / f"{name}.txt"
    before = known.read_text(encoding="utf-8") if known.is_file() else text
    if before.splitlines()[0] != version:
        pytest.skip(f"the golden bits are of {before.splitlines()[0]}, this is {version}")
    if instructions.mkl_branch() != "AVX2" and text != before:
        pytest.skip(f"MKL ignores MKL_CBWR on this CPU (its branch: {instructions.mkl_branch()}); bits differ")
    golden(name, text)
