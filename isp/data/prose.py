"""English prose that is already installed: sentences of the docstrings of pandas, scipy and scikit-learn, and tasks.

The files are parsed, never imported. Every docstring belongs, by a hash of its text, to one part: pre-training, or the
train or the test split of the tasks; a sentence that occurs again, in any part, counts once, where it comes first.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("pandas", "scipy", "sklearn")
LEFT_OUT = {"tests", "conftest.py", "externals", "_external", "array_api_compat", "array_api_extra", "_vendored"}
PARTS = {"pretraining": 0.68, "train": 0.9, "test": 1.0}
"""The parts, and up to which share of the hashes each reaches."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

MARKUP = re.compile(r":[\w:.-]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`|`{1,2}([^`]+)`{1,2}_{0,2}|\*{1,2}([^*\s]+)\*{1,2}")
NO_PROSE = re.compile(r"^(\.\. |[-*+\[] ?|\d+[.)] )|>>>|\.\.\. |----|====|~~~~|\|| : ")
SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!cf\.)(?<!vs\.)(?<=[.!?])\s+(?=[A-Z])")
WORD = re.compile(r"\(?['\"]?\w+(?:['\-/.]\w+)*['\"]?\)?[,;:]?")


class Sentence(NamedTuple):
    """A sentence, the number of its docstring, and the part that the docstring belongs to."""

    text: str
    docstring: int
    part: str


def docstrings(package: str) -> Iterator[str]:
    """All docstrings of a package's .py files, by path and by place in the file; tests and vendored code left out."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the embedded prose needs the package {package!r}, which is not installed")
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        if LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            stack: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
            while stack:
                node = stack.pop()
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    if text := ast.get_docstring(node):
                        yield text
                    stack.extend(reversed(node.body))


def paragraphs(docstring: str) -> Iterator[str]:
    """Its paragraphs of prose: blocks of lines of one indentation that are no code, list, table, header or directive."""
    blocks: list[tuple[int, list[str]]] = []
    indentation = -1
    for line in docstring.splitlines():
        before, indentation = indentation, len(line) - len(line.lstrip()) if line.strip() else -1
        if indentation >= 0:
            if indentation != before:
                blocks.append((indentation, []))
            blocks[-1][1].append(line.strip())
    code = 1000  # blocks indented deeper than this belong to a directive or a literal block
    for indentation, lines in blocks:
        if indentation <= code:
            text = " ".join(lines)
            code = indentation if text.startswith(".. ") or text.endswith("::") else 1000
            if not NO_PROSE.search(text):
                yield text


def prose(paragraph: str) -> Iterator[str]:
    """Its whole sentences of 6 to 28 plain words (a formula, a path or an operator is none), without markup."""
    plain = MARKUP.sub(lambda found: next(group for group in found.groups() if group is not None), paragraph)
    for sentence in SENTENCE_END.split(plain):
        words = sentence.rstrip(".!?").split()
        if (
            6 <= len(words) <= 28
            and sentence[0].isupper()
            and sentence[-1] in ".!?"
            and all(WORD.fullmatch(word) for word in words)
        ):
            yield sentence


@cache
def sentences() -> tuple[Sentence, ...]:
    """Every sentence once (case and digits aside), in the order of packages, paths and places."""
    found: dict[str, Sentence] = {}
    for package in PACKAGES:
        for number, docstring in enumerate(docstrings(package)):
            digest = hashlib.blake2b(docstring.encode(), digest_size=8).digest()
            share = int.from_bytes(digest, "big") / 2**64
            part = next(part for part, bound in PARTS.items() if share < bound)
            for paragraph in paragraphs(docstring):
                for text in prose(paragraph):
                    key = re.sub(r"\d+|\W+", " ", text.lower())
                    found.setdefault(key, Sentence(text, number, part))
    return tuple(found.values())
