"""The lock file, the conda environment and the project's own requirements say the same."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import isp

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in LOCK]
    return {normal(requirement.name): requirement for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_holds_exact_versions_and_no_addresses() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+( ; .*)?", line) for line in LOCK)


def test_the_lock_covers_what_the_project_needs() -> None:
    optional = PROJECT["optional-dependencies"]
    extras = [
        line for name, lines in optional.items() if name != "accelerate" for line in lines
    ]  # no bit depends on it
    for line in PROJECT["dependencies"] + extras:
        needed = Requirement(line)
        (version,) = locked()[normal(needed.name)].specifier
        assert needed.specifier.contains(version.version), line


def test_the_conda_environment_is_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": LOCK}
    assert environment["dependencies"][0] == "python=3.11"


def test_the_version_is_the_same_everywhere() -> None:
    assert isp.__version__ == PROJECT["version"]
    assert f"## {isp.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == isp.__version__


def test_every_file_of_the_package_is_installed() -> None:
    """What is not Python is in a wheel only if it is named."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    named = {
        path
        for package, globs in data.items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    found = {path for path in (ROOT / "isp").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert found == named


@pytest.mark.parametrize("name", ["torch", "torchvision", "open_clip_torch", "numpy"])
def test_what_is_installed_is_what_is_locked(name: str) -> None:
    """The results of this project depend on these versions; on other machines the code may run with others."""
    (wanted,) = locked()[normal(name)].specifier
    if Path(metadata.distribution(name).locate_file("")).is_relative_to(ROOT / ".venv"):
        assert metadata.version(name).split("+")[0] == wanted.version
    else:
        pytest.skip("not the environment that the Makefile makes")


@pytest.mark.parametrize(
    ("study", "page"),
    [
        *(("quick", "README"), ("glue", "README"), ("mnist", "README")),
        *(("full", "docs/explanation/full"), ("ablation_rule", "docs/explanation/superposition")),
        *(("soups", "docs/explanation/soups"), ("code", "docs/explanation/code")),
    ],
)
def test_pages_show_the_reference_results(study: str, page: str) -> None:
    """No number is typed into a table of scores."""
    assert (ROOT / "docs" / "results" / study / "tables" / "scores.md").read_text() in (ROOT / f"{page}.md").read_text()
    assert (ROOT / "docs" / "results" / study / "figures" / "score_by_sparsity.png").exists()
