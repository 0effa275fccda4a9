"""The bits of the pre-trained tiny backbones, from which every default result starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isp.runtime import instructions
from tests.support.bits import compare_bits, content, needs_avx2
from tests.support.studies import ROOT


@needs_avx2
@pytest.mark.process
@pytest.mark.parametrize("backbone", ["clip_tiny", "bert_tiny"])
def test_a_pretrained_backbone_has_the_golden_bits(
    backbone: str, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    """The command sets the variables of AVX2 itself and pre-trains in full, as `make run` does on a new machine."""
    path = tmp_path / f"{backbone}.safetensors"
    inherited = {key: value for key, value in os.environ.items() if key not in instructions.VARIABLES}
    command = [sys.executable, "-m", "isp", "pretrain", "--backbone", backbone, "--output", str(path)]
    done = subprocess.run(
        command, env=inherited | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    compare_bits(f"pretrained_{backbone}", [f"{backbone}, pre-trained: {content(path)}"], golden)
