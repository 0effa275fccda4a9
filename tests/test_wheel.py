"""A wheel: its content, and its use outside the repository; `make test-wheel` installs one with its requirements."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import isp
from tools import wheel

ROOT = Path(__file__).parents[1]
PACKAGES = ("isp", "snakemake_logger_plugin_isp")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this clone, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, cwd=wheel.copy_sources(folder), check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.process
def test_a_wheel_has_the_files_of_the_packages_and_no_others(built: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"isp-{isp.__version__}.dist-info"
    names = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert set(zipfile.ZipFile(built).namelist()) == files | {f"{about}/{name}" for name in names}


@pytest.mark.process
def test_a_wheel_works_without_the_repository(built: Path, tmp_path: Path) -> None:
    """The requirements are those of this environment; each extra in an environment of its own is `make test-wheel`."""
    zipfile.ZipFile(built).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    extras = ["workflow", "trainer", *(["accelerate"] if find_spec("numba") else [])]
    command = [sys.executable, "-P", str(wheel.SMOKE), *extras]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"isp {isp.__version__} in {tmp_path}/isp, with workflow, trainer")
