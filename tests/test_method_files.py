"""Methods in files outside the package: the definitions that are required."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from isp import registry
from isp.errors import ConfigError
from isp.families import check_definitions, describe_method, load_family, make_method, traits_of
from tests.support.studies import ROOT

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
