"""The table of modules in CONTRIBUTING.md: complete, and every import leads to its own row or one above it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "isp").rglob("*.py"))


def rows() -> dict[str, int]:
    """The row of each module and package of `isp`, by its name."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| module | holds |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in text.splitlines()[2:]]
    names = [(name, number) for number, cell in enumerate(first) for name in re.findall(r"`(\w+)/?`", cell)]
    assert len(names) == len(dict(names)), "a module is in the table twice"
    return dict(names)


def below(path: Path) -> str:
    """The module or package directly below `isp` that a file belongs to."""
    return path.relative_to(ROOT / "isp").parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Names of the modules of `isp` that a file imports, wherever in it, except for type checkers only."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module == "isp":
            yield from (f"isp.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isp."):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("isp."))


def test_every_module_is_in_the_table() -> None:
    assert rows().keys() == {below(path) for path in FILES} - {"__init__"}


def test_a_module_imports_only_from_its_row_and_those_above() -> None:
    row = rows()  # what is not in it, such as `__version__`, is no module
    downwards = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in FILES
        if below(path) != "__init__"
        for module in imported(path)
        if row.get(module.split(".")[1], 0) > row[below(path)]
    ]
    assert downwards == []
