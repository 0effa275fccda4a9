"""Which module may import which: the table of the architecture, no circles, the order of the workflow, and of tests."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "isp").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

WORKFLOW = (
    ("paths",),
    ("rule",),
    ("dag",),
    ("rules",),
    ("jobs", "rates"),
    ("measuring", "starts"),
    ("plan", "resources", "status", "reuse", "slurm", "pinning"),
    ("running", "cleaning"),
)
"""The modules of `isp.workflow`; one imports from its own line and those before it."""


def rows() -> dict[str, int]:
    """The row of each module and package of `isp`, by its name."""
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    table = page.split("| module | content |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    names = [(name, number) for number, cell in enumerate(first) for name in re.findall(r"`(\w+)/?`", cell)]
    assert len(names) == len(dict(names)), "a module is in the table twice"
    return dict(names)


def below(path: Path) -> str:
    """The module or package directly below `isp` that a file belongs to."""
    return path.relative_to(ROOT / "isp").parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """The dotted name of the module in a file; a package's is that of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imported(text: str, for_checkers: bool = False) -> list[tuple[str, tuple[str, ...]]]:
    """Modules that a file imports, wherever in it, and the names that it takes from them.

    Args:
        text: Content of the file.
        for_checkers: Whether imports for type checkers count.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if not for_checkers and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.append((str(node.module), tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
    return found


def used(text: str, modules: set[str], for_checkers: bool = False) -> set[str]:
    """The modules, of some, that a file imports; where it takes names from a package, the modules of these names."""
    found: set[str] = set()
    for module, names in imported(text, for_checkers):
        inner = {f"{module}.{name}" for name in names} & modules
        found |= inner
        if module in modules and (not names or len(inner) < len(names)):
            found.add(module)
    return found


def graph(files: list[Path]) -> dict[str, set[str]]:
    """The modules that each one imports, also within functions and for type checkers."""
    modules = {module_of(path) for path in files}
    return {module_of(path): used(path.read_text(encoding="utf-8"), modules, True) for path in files}


def circle(modules: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    try:
        graphlib.TopologicalSorter(modules).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_is_in_the_table() -> None:
    assert rows().keys() == {below(path) for path in FILES} - {"__init__"}


def test_a_module_imports_only_from_its_row_and_those_above() -> None:
    row, modules = rows(), {module_of(path) for path in FILES}
    downwards = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in FILES
        if below(path) != "__init__"
        for module in used(path.read_text(encoding="utf-8"), modules)
        if module != "isp" and row[module.split(".")[1]] > row[below(path)]
    ]
    assert downwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(graph(FILES)) == []


@pytest.mark.parametrize(
    ("texts", "circular"),
    [
        ({"p": "", "p.a": "import p.b", "p.b": "import os"}, False),
        ({"p": "", "p.a": "import p.b", "p.b": "def f():\n    from p import a"}, True),
        ({"p": "", "p.a": "from p.b import x", "p.b": "if TYPE_CHECKING:\n    from p.a import y"}, True),
        ({"p": "from p.a import x", "p.a": "from p import b", "p.b": ""}, False),  # the module, not the package
        ({"p": "from p.a import x", "p.a": "from p import b, x", "p.b": ""}, True),
    ],
)
def test_circles_are_seen(texts: dict[str, str], circular: bool) -> None:
    assert bool(circle({name: used(text, set(texts), True) for name, text in texts.items()})) == circular


def test_the_workflow_is_in_its_order() -> None:
    place = {name: number for number, line in enumerate(WORKFLOW) for name in line}
    files = [path for path in FILES if below(path) == "workflow" and path.parent.name != "isp"]
    inside = {path: module_of(path).split(".")[2:3] for path in files}
    assert {name for names in inside.values() for name in names} == place.keys()
    modules = {module_of(path) for path in files}
    backwards = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, name in inside.items()
        for module in used(path.read_text(encoding="utf-8"), modules, True)
        if name and module.count(".") > 1 and place[module.split(".")[2]] > place[name[0]]
    ]
    assert backwards == []


def test_test_files_share_helpers_in_support_only() -> None:
    """No test file imports from another test file; what fixtures of `conftest.py` are, pytest hands out."""
    tests = {module_of(path) for path in TESTS}
    allowed = {name for name in tests if name == "tests.support" or name.startswith("tests.support.")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in TESTS
        for module in used(path.read_text(encoding="utf-8"), tests, True) - allowed
        if path.parent.name != "slurm"  # the cluster's helpers are beside its tests
    ]
    assert wrong == []
    assert len(tests) > 50
