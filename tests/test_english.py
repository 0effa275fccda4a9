"""The rules of STYLE.md that a machine can check, over docstrings, comments and messages."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("isp", "snakemake_logger_plugin_isp")
BESIDE = ("benchmarks", "examples", "tests", "tools")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

ELLIPSES = {"Of", "That", "Those", "What", "Which", "Whose", "Where", "How"}
"""First words of a docstring that continues the name it belongs to."""
NOT_IMPERATIVE = ELLIPSES | {"A", "All", "An", "As", "Each", "Every", "Its", "One", "The", "Their", "Whether"}
"""First words of a function's docstring that names a result instead of saying what the function does."""
SECTIONS = ("Args", "Attributes")
NOT_A_NOUN = {"as", "by", "from", "in", "is", "of", "that", "to", "what", "which", "with"}

COUNTED = "row|job|ticket|file|page|record|line|process|lock|child|figure|copy|column|entry|chain|model|thread"
WHAT = r"\bwhat (a|an|each|every|its|their|such) "
FORBIDDEN = {
    r"\ballowed (is|are)\b": "must be X, got Y",
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer|more|less|such|worse|better|greater|larger|smaller)": "is not a",
    rf"\b(a|an|one) ({COUNTED}) (a|an) (?!\w+ (of|from)\b)": "one X per Y",
    r"\b(held|holds?) (\w+ ){0,2}(to|against)\b": "check, compare, verify against",
    r"\b(go|goes|going|went) on\b": "continue, resume",
    r"\b(anew|beforehand|hitherto|therein|thereof)\b": "again, from scratch; in advance",
    r"\btaken for\b": "assumed to be",
    r"\bbut for\b": "except",
    r"[;,] (or )?else\b": "otherwise",
    r"\bor else\b": "otherwise",
    r", too\b": "also, as well",
    r"\bby itself\b": "on its own",
    r"\bof (its|their|one's|our) own(?=[.,;:)]| (and|or|in|for|with|under|which|that)\b|$)": "its own",
    r"\b(for|by) people\b": "user-facing",
    r"\b(somebody|someone)'s\b|\bwhoever\b|\bwhosever\b": "the user's, the caller's",
    r"(?<![\"'-])\bpictures?\b(?! of the \{)": "image",
    r"\bknows (of|no)\b": "contains, defines",
    r"\bin all[.,;]": "in total",
    WHAT: "name the thing",
}


@lru_cache(maxsize=1)
def walked(source: str) -> list[ast.AST]:
    """Return the nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(source)))


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of a module by their lines, strings of more than one word only."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    nodes = walked(source)
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if " " in text:
            yield node.lineno, " ".join(text.split())


def docstrings(source: str) -> Iterator[tuple[int, ast.AST, str]]:
    """Yield the docstrings of a module with their lines and owners; a property is not a function here."""
    for node in walked(source):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, node, text


def acts(node: ast.AST) -> bool:
    """Return whether a docstring's owner is a function that does something when it is called."""
    decorators = [ast.unparse(each) for each in node.decorator_list] if isinstance(node, ast.FunctionDef) else []
    attributes = any(name.endswith(("property", ".setter")) for name in decorators)
    return isinstance(node, ast.FunctionDef) and not attributes and not node.name.startswith("__")


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield the names and descriptions in the sections `Args` and `Attributes` of a docstring."""
    for section in re.findall(rf"^(?:{'|'.join(SECTIONS)}):\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE):
        yield from re.findall(r"^ {4}\**(\w+): (.*)", section, re.MULTILINE)


def faults(source: str) -> Iterator[str]:
    """Yield the faults of a module's English as "line: what is wrong"."""
    for line, node, text in docstrings(source):
        first = re.split(r"[\s,:]", text, maxsplit=1)[0]
        if first in (NOT_IMPERATIVE if acts(node) else ELLIPSES):
            yield f"{line}: docstring begins with {first!r}"
        for name, description in entries(text):
            if description[0].islower() or description.split()[0].lower() in NOT_A_NOUN:
                yield f"{line}: {name}: {description!r} is not a noun phrase that begins with a capital"
    yield from phrases(prose(source))


def phrases(texts: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield what FORBIDDEN lists in texts with their lines."""
    for line, text in texts:
        for pattern, cure in FORBIDDEN.items():
            if match := re.search(pattern, text):
                yield f"{line}: {text[max(0, match.start() - 20) : match.end() + 20]!r}: write {cure!r}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_english_follows_the_style(path: Path) -> None:
    assert not list(faults(path.read_text()))


def test_english_of_comments_and_docstrings_beside_the_package() -> None:
    """Strings are not looked at, because tests contain what they search for."""
    seen = []
    for path in (path for folder in BESIDE for path in sorted((ROOT / folder).rglob("*.py"))):
        source = path.read_text(encoding="utf-8")
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
        texts = [(line, " ".join(text.split())) for line, _, text in docstrings(source)]
        seen += [f"{path.relative_to(ROOT)}:{fault}" for fault in phrases([*comments, *texts])]
    assert seen == []


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "config/README.md")]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "tables" not in page.parts]
CODE = re.compile(r"^ *```.*?^ *```|`[^`]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_english_of_pages(page: Path) -> None:
    """Except for "what a", which is a fault only where a name exists; code and commands are not looked at."""
    text = CODE.sub(lambda code: re.sub(r"[^\n]+", "`", code[0]), page.read_text(encoding="utf-8"))
    seen = phrases(enumerate(text.splitlines(), 1))
    assert [fault for fault in seen if not fault.endswith(repr(FORBIDDEN[WHAT]))] == []


BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))], ids=str)
def test_code_on_pages_follows_the_style(page: Path) -> None:
    """A reader copies it into files to which these rules apply."""
    assert [fault for code in BLOCK.findall(page.read_text(encoding="utf-8")) for fault in faults(code)] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('def f():\n    """The mask."""', "begins with 'The'"),
        ('class A:\n    """Of a job."""', "begins with 'Of'"),
        ('def f():\n    """Return it.\n\n    Args:\n        a: of the event.\n    """', "not a noun phrase"),
        ('def f():\n    """Return it.\n\n    Args:\n        a: the event.\n    """', "not a noun phrase"),
        ('raise E(f"a = {b}: allowed are 1 and 2")', "must be X, got Y"),
        ("x = 1  # one row a variant", "one X per Y"),
        ("x = 1  # a job a ticket", "one X per Y"),
        ("x = 1  # records are held to their paths", "check, compare"),
        ("x = 1  # a killed run goes on", "resume"),
        ("x = 1  # all of them but for the last", "except"),
        ("x = 1  # this is no mask", "is not a"),
    ],
)
def test_a_fault_is_found(source: str, fault: str) -> None:
    assert any(fault in found for found in faults(source))


@pytest.mark.parametrize(
    "source",
    [
        'class A:\n    """The masks of a run."""',
        'class A:\n    @property\n    def f(self):\n        """The mask."""',
        'def f():\n    """Return the mask.\n\n    Args:\n        a: Target sparsity.\n    """',
        "x = 1  # there is no mask, and it is no longer needed",
        "x = 1  # holds the weights",
    ],
)
def test_english_without_fault_passes(source: str) -> None:
    assert not list(faults(source))
