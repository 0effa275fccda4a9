"""English prose from installed packages: sentences of the docstrings of pandas, scipy and scikit-learn, and tasks.

The files are parsed, never imported. A hash of its text assigns every docstring to one part: pre-training, or the train
or test split of the tasks. A sentence that occurs again in any part counts only once, at its first occurrence.
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
"""Parts, with the upper bound of the share of hashes that each covers."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

MARKUP = re.compile(r":[\w:.-]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`|`{1,2}([^`]+)`{1,2}_{0,2}|\*{1,2}([^*\s]+)\*{1,2}")
NO_PROSE = re.compile(r"^(\.\. |[-*+\[] ?|\d+[.)] )|>>>|\.\.\. |----|====|~~~~|\|| : ")
SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!cf\.)(?<!vs\.)(?<=[.!?])\s+(?=[A-Z])")
WORD = re.compile(r"\(?['\"]?\w+(?:['\-/.]\w+)*['\"]?\)?[,;:]?")


SIZES: dict[Split, int] = {"train": 3400, "test": 1000}
"""Number of examples of each task."""

INNER = re.compile(r"[,;:()\"']")
"""Marks that reveal the position of a word in a sentence."""


class Sentence(NamedTuple):
    """A sentence, the number of its docstring, and the part to which the docstring belongs."""

    text: str
    docstring: int
    part: str


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of a package's .py files in order of path and position, without tests and vendored code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package {package!r} is not installed, but the embedded prose needs it")
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
    """Yield paragraphs of prose: blocks of equally indented lines that are not code, lists, tables or directives."""
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
    """Yield whole sentences of 6 to 28 plain words (not formulas, paths or operators), without markup."""
    plain = MARKUP.sub(lambda match: next(group for group in match.groups() if group is not None), paragraph)
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
    """Disable garbage collection in this context: syntax trees have no cycles, and searching takes half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@cache
def sentences() -> tuple[Sentence, ...]:
    """Return every sentence once (ignoring case, digits and punctuation), ordered by package, path and position."""
    first: dict[str, Sentence] = {}
    with _no_garbage_collection():
        all_docstrings = [text for package in PACKAGES for text in docstrings(package)]
    for number, docstring in enumerate(all_docstrings):
        share = int.from_bytes(hashlib.blake2b(docstring.encode(), digest_size=8).digest(), "big") / 2**64
        part = next(part for part, bound in PARTS.items() if share < bound)
        for paragraph in paragraphs(docstring):
            for text in prose(paragraph):
                first.setdefault(re.sub(r"[\d\W]+", " ", text.lower()), Sentence(text, number, part))
    return tuple(first.values())


def checksum() -> str:
    """Return BLAKE2b (32 hex digits) of all sentences, docstrings and parts, on which a study's data depend."""
    lines = "\n".join("\t".join(map(str, sentence)) for sentence in sentences())
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def corpus() -> list[str]:
    """Return the sentences of the pre-training part."""
    return [sentence.text for sentence in sentences() if sentence.part == "pretraining"]


def vocabulary(size: int) -> list[str]:
    """Return a lower-cased WordPiece vocabulary of `corpus()`: special tokens, characters, then pieces as merged.

    The library's WordPiece trainer numbers pieces in the order of a randomly seeded hash map and so breaks ties
    differently in every process. Its byte-pair trainer does not if the beginning of a word is marked by a character.
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
    """Return the words of every sentence of the split with at most `longest` words and no punctuation inside."""
    texts = (sentence.text for sentence in sentences() if sentence.part == split)
    return [text.split() for text in texts if len(text.split()) <= longest and not INNER.search(text)]


def _draw(rng: np.random.Generator, available: int, split: Split) -> list[int]:
    """Draw the numbers of the split's examples, in random order."""
    if available < SIZES[split]:
        raise DataError(
            f"the installed docstrings of {', '.join(PACKAGES)} contain only {available} {split} examples of the "
            f"required {SIZES[split]}; install the versions in requirements.lock"
        )
    return [int(index) for index in rng.permutation(available)[: SIZES[split]]]


def word_order(split: Split) -> tuple[list[str], list[int]]:
    """Make the examples of the task: is the order of this sentence's words intact?

    Half of the sentences contain a deranged span of (up to) six words, none of which stays in place. The first and the
    last word stay, and no sentence has punctuation inside, so neither reveals the order.

    Returns:
        Sentences of 6 to 16 words, each held-out sentence at most once, as many as `SIZES` gives for the split; labels,
        1 intact, 0 not.
    """
    plain = _plain(split, 16)
    rng = _generator(split)
    chosen = [plain[index] for index in _draw(rng, len(plain), split)]
    labels = [number % 2 for number in range(len(chosen))]
    texts = [words if label else _deranged(words, rng) for words, label in zip(chosen, labels, strict=True)]
    return [" ".join(words) for words in texts], labels


def _deranged(words: list[str], rng: np.random.Generator) -> list[str]:
    """Derange a random span of six words, or all words except the first and the last."""
    length = min(6, len(words) - 2)
    start = int(rng.integers(1, len(words) - length))
    places = np.arange(length)
    span = [word.lower() for word in words[start : start + length]]
    order = places
    while (order == places).any() or [span[place] for place in order] == span:
        order = rng.permutation(length)
    return [*words[:start], *(words[start + place] for place in order), *words[start + length :]]


def half_order(split: Split) -> tuple[list[str], list[str], list[int]]:
    """Make the examples of the task: are these two fragments, in this order, the beginning and end of one sentence?

    Returns:
        First and second fragments, of at least three words each, lower-cased and without the full stop, as many pairs
        as `SIZES` gives for the split, from sentences of 6 to 18 words without punctuation inside; labels, 1 in order,
        0 swapped.
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
    """Examples of one of the tasks above, made from the installed packages at every read (12 s).

    Attributes:
        make: Function that makes the columns and the labels of a split.
        inputs: Names of the columns.
    """

    make: Callable[[Split], tuple[list[Any], ...]]
    inputs: tuple[str, ...]

    def fetch(self, data_root: Path) -> Files:
        """Return no files, because the examples are made from installed packages."""
        return Files([])

    def checksum(self) -> str:
        """Return the checksum of all sentences, including those of pre-training."""
        return checksum()

    def labels(self, data_root: Path) -> Raw:
        """Return the labels of the training split, in which every second example is intact."""
        return Raw((), np.arange(SIZES["train"], dtype=np.int64) % 2)

    def read(self, split: Split, data_root: Path) -> Raw:
        """Return the texts and labels of a split; `data_root` is not used."""
        *columns, labels = self.make(split)
        return Raw(tuple(columns), np.array(labels, dtype=np.int64))
