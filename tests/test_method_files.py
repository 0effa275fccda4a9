"""Methods in files outside the package: required definitions, and edits while a study runs."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from isp import registry
from isp.config import Study, parse_study
from isp.errors import ConfigError
from isp.families import check_definitions, describe_method, load_family, make_method, traits_of
from isp.workflow.running import load
from tests.support.reruns import jobs
from tests.support.studies import ROOT, STUDY

RANDOM = (ROOT / "isp" / "methods" / "random.py").read_text()
HEAD = "from isp.settings import Settings\nVERSION = 1\n"

# --- definitions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import sys\nsys.exit(3)", "cannot be loaded (SystemExit: 3)"),
        ("exit()", "cannot be loaded (SystemExit: None)"),
        ("raise SystemExit", "cannot be loaded (SystemExit)"),
        ("FAMILY, VERSION, Settings = 'dense', 1, 3", "Settings must be a class derived from isp.settings.Settings"),
        ("FAMILY, VERSION = 'dense', 1\nclass Settings: pass", "Settings must be a class derived from isp.settings."),
        ("from isp.settings import Settings\nFAMILY, VERSION = 'dense', True", "VERSION = True: must be an integer or"),
        ("from isp.settings import Settings\nFAMILY, VERSION = 'dense', 1.5", "VERSION = 1.5: must be an integer or"),
    ],
)
def test_a_file_that_is_no_method(content: str, message: str, tmp_path: Path) -> None:
    """`sys.exit` ended the command without a message; a wrong `Settings` or `VERSION` gave a traceback."""
    (tmp_path / "wrong.py").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"wrong.py': {message}")):
        make_method(str(tmp_path / "wrong.py"))
    assert not [name for name in sys.modules if name.startswith("isp_method_wrong_")]


def test_an_interrupted_load_leaves_no_module(tmp_path: Path) -> None:
    """Otherwise the next load in the same process would return the half-loaded module."""
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        make_method(str(tmp_path / "slow.py"))
    assert not [name for name in sys.modules if name.startswith("isp_method_slow_")]


@pytest.mark.parametrize(
    ("family", "content", "message"),
    [
        ("one_shot", "from isp.methods import Scored as Settings", "must define the function scores or mask"),
        ("one_shot", "scores = mask = 3", "must define the function scores or mask"),
        ("one_shot", "def scores(): ...", "Settings must be a class derived from isp.methods.Scored"),
        ("single_pass", "", "must define the function events and prune"),
        ("single_pass", "def events(): ...", "must define the function prune"),
        ("souped", "", "Settings must be a class derived from isp.methods.uniform_soup.Settings"),
        ("denoised", "", "Settings must be a class derived from isp.methods.isp.Settings"),
    ],
)
def test_a_file_without_the_definitions_of_its_family(family: str, content: str, message: str, tmp_path: Path) -> None:
    """It was planned, and failed in its own job."""
    (tmp_path / "mine.py").write_text(f"{HEAD}FAMILY = {family!r}\n{content}\n")
    with pytest.raises(ConfigError, match=re.escape(f"mine.py' (family {family!r}): {message}")):
        make_method(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", registry.names("method"))
def test_each_method_has_the_definitions_of_its_family(name: str, tmp_path: Path) -> None:
    """Each of them is required, so a copy of the method without one is refused."""
    module = registry.load("method", name)
    check_definitions(module, name)
    for functions in traits_of(module).defines:
        other = ModuleType("other")
        vars(other).update({key: value for key, value in vars(module).items() if key not in functions})
        with pytest.raises(ConfigError, match=f"must define the function {' or '.join(functions)}$"):
            check_definitions(other, name)


@pytest.mark.parametrize("name", registry.names("family"))
def test_each_family_requires_the_functions_that_it_calls(name: str) -> None:
    source = (ROOT / "isp" / "families" / f"{name}.py").read_text()
    called = set(re.findall(r"\bmodule\.([a-z]\w*)", source))
    optional = set(re.findall(r'hasattr\([\w.]*module, "(\w+)"\)', source)) | {"choose"}  # see `isp.families.chooses`
    required = {function for functions in load_family(name).TRAITS.defines for function in functions}
    assert called - optional <= required <= called
    check_definitions(describe_method(name), "described")


# --- edits while a study runs -----------------------------------------------------------------------------------------


def started(values: Mapping[str, Any], main: bool = True) -> Study:
    """Read a study as a process of Snakemake does: the main one, or that of a cluster job."""
    settings = SimpleNamespace(nodes=None)
    return load(SimpleNamespace(configfiles=[], resource_settings=settings, is_main_process=main), values)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A study of one method in a file of the current folder; what `load` sets is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in (registry.PINNED, "ISP_STUDY", "ISP_DATA_ROOT", "PYTHONSAFEPATH", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handler = signal.getsignal(signal.SIGUSR1)
    Path("mine.py").write_text(RANDOM)
    grid = [{**STUDY["grid"][0], "variants": ["mine"]}]
    yield {**STUDY, "variants": {"mine": {"method": "./mine.py"}}, "grid": grid}
    signal.signal(signal.SIGUSR1, handler)


def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the loaded methods as if another process had inherited the environment."""
    for name in [name for name in sys.modules if name.startswith("isp_method_mine_")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_job_refuses_a_file_that_was_edited_since_the_study_started(
    own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used the new file, but Snakemake recorded the old one, so nothing noticed."""
    before = started(own)
    Path("mine.py").write_text(f"{RANDOM}\n# edited\n")
    assert jobs(before) == jobs(parse_study(own, "again in the process that started it"))

    in_a_new_process(monkeypatch)
    for path in ("./mine.py", "mine.py", str(Path("mine.py").absolute())):
        with pytest.raises(
            ConfigError, match=r"mine\.py': was edited while the study runs .* run the same command again"
        ):
            make_method(path)
    with pytest.raises(ConfigError, match="was edited while the study runs"):
        started(own, main=False)  # a cluster job
    Path("mine.py").write_text(RANDOM)
    make_method("mine.py")
    started(own, main=False)


def test_the_next_run_reads_an_edited_file(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = jobs(started(own))
    Path("mine.py").write_text(f"{RANDOM}\n# edited\n")
    in_a_new_process(monkeypatch)
    assert jobs(started(own)) != first
    in_a_new_process(monkeypatch)
    make_method("mine.py")


def test_a_pinned_file_of_one_folder_says_nothing_about_another(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(own)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    Path("mine.py").write_text(f"{RANDOM}\n# another\n")
    make_method("mine.py")


def test_what_a_study_was_started_with_is_no_param(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a finished study reruns because of it."""
    plain = jobs(parse_study(own, "without a run"))
    assert jobs(started(own)) == plain
    assert registry.PINNED not in str(plain)
