"""English prose that is already installed: sentences of the docstrings of pandas, scipy and scikit-learn, and tasks.

The files are parsed, never imported. Every docstring belongs, by a hash of its text, to one part: pre-training, or the
train or the test split of the tasks; a sentence that occurs again, in any part, counts once, where it comes first.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isp.data.sources import Files, Raw, Split
from isp.errors import DataError

PACKAGES = ("pandas", "scipy", "sklearn")
LEFT_OUT = {"tests", "conftest.py", "externals", "_external", "array_api_compat", "array_api_extra", "_vendored"}
PARTS = {"pretraining": 0.68, "train": 0.9, "test": 1.0}
"""The parts, and up to which share of the hashes each reaches."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

MARKUP = re.compile(r":[\w:.-]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`|`{1,2}([^`]+)`{1,2}_{0,2}|\*{1,2}([^*\s]+)\*{1,2}")
NO_PROSE = re.compile(r"^(\.\. |[-*+\[] ?|\d+[.)] )|>>>|\.\.\. |----|====|~~~~|\|| : ")
SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!cf\.)(?<!vs\.)(?<=[.!?])\s+(?=[A-Z])")
WORD = re.compile(r"\(?['\"]?\w+(?:['\-/.]\w+)*['\"]?\)?[,;:]?")


SIZES: dict[Split, int] = {"train": 3400, "test": 1000}
"""Examples of each task."""

INNER = re.compile(r"[,;:()\"']")
"""Marks that show where in a sentence a word belongs."""


class Sentence(NamedTuple):
    """A sentence, the docstring that it is from (as a number), and the part that the docstring belongs to."""

    text: str
    docstring: int
    part: str


def docstrings(package: str) -> Iterator[str]:
    """All docstrings of a package's .py files, by path and by place in the file; tests and vendored code left out."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the embedded prose needs the package {package!r}, which is not installed")
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
    """Its paragraphs of prose: blocks of lines of one indentation that are no code, list, table or directive."""
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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A context in which no cycles are looked for: syntax trees have none, and the search takes half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@cache
def sentences() -> tuple[Sentence, ...]:
    """Every sentence once (case, digits and punctuation aside), in the order of packages, paths and places."""
    found: dict[str, Sentence] = {}
    with _no_garbage_collection():
        all_docstrings = [text for package in PACKAGES for text in docstrings(package)]
    for number, docstring in enumerate(all_docstrings):
        share = int.from_bytes(hashlib.blake2b(docstring.encode(), digest_size=8).digest(), "big") / 2**64
        part = next(part for part, bound in PARTS.items() if share < bound)
        for paragraph in paragraphs(docstring):
            for text in prose(paragraph):
                found.setdefault(re.sub(r"[\d\W]+", " ", text.lower()), Sentence(text, number, part))
    return tuple(found.values())


def checksum() -> str:
    """BLAKE2b of all sentences with their docstrings and parts: what the study's data depend on, in 32 hex digits."""
    lines = "\n".join("\t".join(map(str, sentence)) for sentence in sentences())
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def corpus() -> list[str]:
    """The sentences of the pre-training part."""
    return [sentence.text for sentence in sentences() if sentence.part == "pretraining"]


def vocabulary(size: int) -> list[str]:
    """A WordPiece vocabulary of `corpus()`, lower-cased: special tokens, characters, then pieces as they were merged.

    The library's trainer for WordPiece numbers pieces in the order of a randomly seeded hash map, and so breaks ties
    differently in every process. Its trainer for byte pairs does not, where the beginning of a word is a character.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    lower_case, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    marked = [
        " ".join("▁" + word for word, _ in words.pre_tokenize_str(lower_case.normalize_str(text))) for text in corpus()
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=2 * size, show_progress=False)
    tokenizer.train_from_iterator(marked, trainer)
    numbers = tokenizer.get_vocab()
    pieces = sorted(numbers, key=numbers.__getitem__)
    characters = [piece for piece in pieces if len(piece) == 1 and piece != "▁"]
    merged = [piece[1:] if piece[0] == "▁" else "##" + piece for piece in pieces if len(piece) > 1]
    singles = [*characters, *("##" + character for character in characters)]
    return list(dict.fromkeys([*SPECIAL, *singles, *merged]))[:size]


def _generator(split: Split) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(SIZES).index(split)))


def _plain(split: Split, longest: int) -> list[list[str]]:
    """The words of every sentence of the split that has at most so many and no punctuation inside."""
    texts = (sentence.text for sentence in sentences() if sentence.part == split)
    return [text.split() for text in texts if len(text.split()) <= longest and not INNER.search(text)]


def _draw(rng: np.random.Generator, available: int, split: Split) -> list[int]:
    """Numbers of the split's examples, in random order."""
    if available < SIZES[split]:
        raise DataError(
            f"the docstrings of {', '.join(PACKAGES)} that are installed give {available} {split} examples, "
            f"{SIZES[split]} are needed; install the versions in requirements.lock"
        )
    return [int(index) for index in rng.permutation(available)[: SIZES[split]]]


def word_order(split: Split) -> tuple[list[str], list[int]]:
    """Is the order of this sentence's words intact?

    Half of the sentences have a span of (up to) six words inside them deranged: no word of the span stays in place.
    The first and the last word stay, and no sentence has punctuation inside it, so neither tells on the order.

    Returns:
        Sentences of 6 to 16 words, each held-out sentence at most once, as many as `SIZES` says for the split; labels,
        1 intact, 0 not.
    """
    plain = _plain(split, 16)
    rng = _generator(split)
    chosen = [plain[index] for index in _draw(rng, len(plain), split)]
    labels = [number % 2 for number in range(len(chosen))]
    texts = [words if label else _deranged(words, rng) for words, label in zip(chosen, labels, strict=True)]
    return [" ".join(words) for words in texts], labels


def _deranged(words: list[str], rng: np.random.Generator) -> list[str]:
    """The words with a random span of six of them, or all but the first and the last, deranged."""
    length = min(6, len(words) - 2)
    start = int(rng.integers(1, len(words) - length))
    places = np.arange(length)
    span = [word.lower() for word in words[start : start + length]]
    order = places
    while (order == places).any() or [span[place] for place in order] == span:
        order = rng.permutation(length)
    return [*words[:start], *(words[start + place] for place in order), *words[start + length :]]


def half_order(split: Split) -> tuple[list[str], list[str], list[int]]:
    """Do these two fragments come in this order, as the beginning and the end of one sentence?

    Returns:
        First and second fragments, of at least three words each, lower-cased and without the full stop, as many pairs
        as `SIZES` says for the split, of sentences of 6 to 18 words without punctuation inside; labels, 1 in order,
        0 the other way round.
    """
    plain = _plain(split, 18)
    rng = _generator(split)
    firsts, seconds, labels = [], [], []
    for number, index in enumerate(_draw(rng, len(plain), split)):
        words = [word.lower().rstrip(".!?") for word in plain[index]]
        cut = int(rng.integers(3, len(words) - 2))
        halves = [" ".join(words[:cut]), " ".join(words[cut:])]
        labels.append(number % 2)
        first, second = halves if labels[-1] else reversed(halves)
        firsts.append(first)
        seconds.append(second)
    return firsts, seconds, labels


@dataclass(frozen=True)
class Prose:
    """Examples of one of the tasks above, made anew from the installed packages (12 s).

    Attributes:
        make: Makes the columns and the labels of a split.
        inputs: Names of the columns.
    """

    make: Callable[[Split], tuple[list[Any], ...]]
    inputs: tuple[str, ...]

    def fetch(self, data_root: Path) -> Files:
        """No files: they are made from installed packages."""
        return Files([])

    def checksum(self) -> str:
        """Of all sentences, those of pre-training, too."""
        return checksum()

    def labels(self, data_root: Path) -> Raw:
        """Labels of the training split: every second example is intact."""
        return Raw((), np.arange(SIZES["train"], dtype=np.int64) % 2)

    def read(self, split: Split, data_root: Path) -> Raw:
        """Texts and labels of a split; `data_root` is not used."""
        *columns, labels = self.make(split)
        return Raw(tuple(columns), np.array(labels, dtype=np.int64))
