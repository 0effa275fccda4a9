"""Install a wheel of this clone into fresh environments and use it there: `python tools/wheel.py [EXTRA …]`.

One environment has no extras, and one each of the extras; arguments choose among them (`none`: no extras). It needs the
package index. `make test-wheel` calls it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOKE = Path(__file__).with_name("smoke.py")
NONE = "none"
"""Name of the environment without extras."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "isp", "snakemake_logger_plugin_isp")
"""Files and folders from which a wheel is built."""


def choices() -> list[str]:
    """Return the names of the environments: `none`, and the extras of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [NONE, *project["optional-dependencies"]]


def copy_sources(folder: Path) -> Path:
    """Copy the sources of a wheel to a new folder in `folder`, and return it.

    A build in the clone itself would leave files there, and take over those of deleted modules from earlier builds.
    """
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


def main(names: list[str]) -> None:
    """Build a wheel, and test it in one environment after the other.

    Args:
        names: Names of the environments; empty: all.
    """
    unknown = [name for name in names if name not in choices()]
    if unknown:
        raise SystemExit(f"tools/wheel.py: must be {', '.join(choices())}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", scratch, str(copy_sources(folder)))
        (wheel,) = folder.glob("*.whl")
        for name in names or choices():
            extras = [] if name == NONE else [name]
            venv.create(folder / name, with_pip=True)
            python = str(folder / name / "bin" / "python")
            _run(python, "-m", "pip", "install", "-q", f"{wheel}[{name}]" if extras else str(wheel))
            _run(python, "-P", str(SMOKE), *extras)
            shutil.rmtree(folder / name)


def _run(*command: str) -> None:
    # Modules of this clone must not be found in the place of those that are installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
