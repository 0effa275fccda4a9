"""Origins of examples and models: the hub, a folder with its layout, or data shipped inside an installed package.

Files are at `<data root>/<id>/<name in the repository>`. Only `fetch` (the download stage) uses a network, and only for
missing files.
"""

from __future__ import annotations

import glob
import io
import json
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from isp.data.hub import COMMITS, Repo, fetch
from isp.errors import ConfigError, DataError
from isp.files import locked, read_json, sha256, write_json
from isp.untrusted import check_file_name

Split = Literal["train", "test"]
Column = Sequence[Any]
"""Images (encoded, or as arrays) or texts."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""TIFF tags; a photometric interpretation of 0 means that 0 is white."""


@dataclass(frozen=True)
class Raw:
    """Examples as the source provides them.

    Attributes:
        columns: One column of images (encoded files, or uint8 arrays of shape (height, width) or (height, width, 3)),
            or one or two of texts; none if only labels were requested.
        labels: Labels, (n,), int64 classes or float32 numbers for a regression.
        groups: Groups, (n,), int64, of examples that training and validation must not share; None: unknown.
        classes: Names of the classes in the order of the labels, as given in the files; empty if they give none.
    """

    columns: tuple[Column, ...]
    labels: np.ndarray
    groups: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Files:
    """Result of a search for files.

    Attributes:
        paths: Paths of the files.
        commit: Commit on the hub to which they belong; empty if they were copied by hand or belong to no repository.
    """

    paths: list[Path]
    commit: str = ""


class Source(Protocol):
    """Origin of a task's examples. Separate calls return its training split and its test split."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns of an example: one of images, or one or two of texts."""
        ...

    def fetch(self, data_root: Path) -> Files:
        """Download missing files."""
        ...

    def labels(self, data_root: Path) -> Raw:
        """Return labels and groups of the training split, without columns."""
        ...

    def read(self, split: Split, data_root: Path) -> Raw:
        """Return all examples of a split."""
        ...


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A dataset of parquet files on the Hugging Face hub, or in a folder that mirrors its layout.

    Attributes:
        id: Name on the hub, "owner/name".
        folder: Folder of its files in the repository; the hub names it after the configuration.
        revision: Commit or branch to download.
        inputs: Names of the columns: one of images (structs with `bytes`), or one or two of texts.
        label: Name of the column of labels.
        train: Name of the official training split.
        test: Name of the official test split.
        group: Pattern over an image's file name; images whose names have the same text in its first group must stay
            together.
        group_within_class: Whether equal texts mean the same only within a class, as numbers that restart in each.
        group_optional: Whether there are no groups if a name does not match, instead of an error.
    """

    id: str
    folder: str
    revision: str = "main"
    inputs: tuple[str, ...] = ("image",)
    label: str = "label"
    train: str = "train"
    test: str = "test"
    group: str = ""
    group_within_class: bool = False
    group_optional: bool = False

    def __post_init__(self) -> None:
        if self.train == self.test:
            raise ConfigError(f"{self.id}: train and test must be different splits, got {self.train!r} for both")

    def labels(self, data_root: Path) -> Raw:
        """Return labels and groups of the training split, without columns; images and texts are not read.

        Raises:
            DataError: If a file is missing, truncated or lacks a column, or an image's name does not match `group`.
        """
        names = [f"{self.inputs[0]}.path"] if self.group else []
        (*paths, labels), classes = self._columns("train", [*names, self.label], data_root)
        groups = self._groups(paths[0], labels) if paths else None
        return Raw((), _numbers(labels), groups, classes)

    def read(self, split: Split, data_root: Path) -> Raw:
        """Return all examples of a split.

        Raises:
            DataError: If a file is missing, truncated or lacks a column.
        """
        (*columns, labels), classes = self._columns(split, [*self.inputs, self.label], data_root)
        return Raw(tuple(columns), _numbers(labels), None, classes)

    def _columns(self, split: Split, names: Sequence[str], data_root: Path) -> tuple[list[list[Any]], tuple[str, ...]]:
        """Return columns of a split, the labels last, and the names of the classes given in its files."""
        from pyarrow import parquet

        columns: list[list[Any]] = [[] for _ in names]
        classes: tuple[str, ...] = ()
        for path in self._files(self.train if split == "train" else self.test, data_root):
            try:
                with parquet.ParquetFile(path) as file:  # read_table would extract a field from its struct
                    table = file.read(columns=list(names))
                    stated = _class_names(file.schema_arrow.metadata, self.label)
                for column, name in zip(columns, names, strict=True):
                    # Of a field in a struct, such as image.path, the struct is read; other names may also have dots.
                    values = table[name if name in table.column_names else name.split(".")[0]].to_pylist()
                    column.extend(map(_number if name == self.label else _content, values))
            except (OSError, ValueError, KeyError, TypeError) as error:
                expected = f"{', '.join(map(repr, self.inputs))} (texts, or images as structs with bytes)"
                again = (
                    "" if isinstance(error, TypeError) else f"; delete it and fetch {self.id} again (stage: download)"
                )
                raise DataError(
                    f"{path}: not a complete parquet file with columns {expected} and {self.label!r} (numbers) "
                    f"({error}){again}"
                ) from None
            if classes and stated and stated != classes:
                raise DataError(
                    f"{path}: names the classes {_listing(stated)}, but other files of split {split!r} name "
                    f"{_listing(classes)}; fetch {self.id} again (stage: download)"
                )
            classes = classes or stated
        return columns, classes

    def fetch(self, data_root: Path) -> Files:
        """Return the files of both splits, after downloading missing ones from the hub into `data_root`.

        Raises:
            DataError: If files are missing and cannot be downloaded.
        """
        patterns = [f"{self.folder}/{split}-*.parquet" for split in (self.train, self.test)]

        def find() -> list[Path]:
            return [path for split in (self.train, self.test) for path in self._files(split, data_root)]

        return _found_or_fetched("dataset", self.id, self.revision, patterns, data_root, find)

    def _groups(self, names: list[str], labels: list[Any]) -> np.ndarray | None:
        together: list[str] = []
        for index, (name, label) in enumerate(zip(names, labels, strict=True)):
            match = re.search(self.group, name)
            if match is None or match[1] is None:  # an optional group may take no part in a match
                if self.group_optional:
                    return None
                raise DataError(
                    f"{self.id}: the file name {name!r} (example {index} of split {self.train!r}) has no text for the "
                    f"first group of the pattern {self.group!r}; correct `group`, or choose another `split`"
                )
            together.append(f"{label} {match[1]}" if self.group_within_class else match[1])
        return np.unique(together, return_inverse=True)[1]

    def _files(self, split: str, data_root: Path) -> list[Path]:
        """Return the files of a split in the order of their numbers, each number exactly once."""
        folder = data_root / self.id / self.folder
        numbered: dict[Path, tuple[int, int]] = {}  # number and count from the file's name
        for path in folder.glob(f"{glob.escape(split)}-*-of-*.parquet"):
            if match := re.fullmatch(rf"{re.escape(split)}-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet", path.name):
                numbered[path] = int(match[1]), int(match[2])
        paths = sorted(numbered, key=lambda path: (numbered[path], path.name))
        counts = {count for _, count in numbered.values()}
        if len(counts) == 1 and [numbered[path][0] for path in paths] == list(range(*counts)):
            return paths
        if not paths:
            problem = f"missing split {split!r} of {self.id} (looked for {split}-00000-of-00001.parquet, …)"
        elif len(counts) > 1:
            names = ", ".join(path.name for path in paths)
            problem = f"files of more than one sharding of split {split!r} of {self.id} ({names})"
        else:
            (count,), numbers = counts, [numbered[path][0] for path in paths]
            missing = [f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)
                       if number not in numbers][:9]  # fmt: skip
            surplus = [
                path.name for path in paths if numbers.count(numbered[path][0]) > 1 or numbered[path][0] >= count
            ]
            problem = f"incomplete split {split!r} of {self.id}" + (
                f", missing {', '.join(missing)}" if missing else ""
            )
            problem += f", present twice or not numbered below {count}: {', '.join(surplus[:9])}" if surplus else ""
        raise DataError(
            f"{folder}: {problem}; put exactly the hub's parquet files into this folder, or set --data-root or the key "
            f"data_root to the folder that contains {self.id}/ (stage: download)"
        )


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """Files of a model on the Hugging Face hub or in a local folder.

    Attributes:
        id: Name on the hub, "owner/name", whose files are first sought in `<data root>/<id>`; empty: see `folder`.
        revision: Commit or branch to download.
        folder: Local folder of the files.
    """

    id: str = ""
    revision: str = "main"
    folder: str = ""

    def where(self, data_root: Path) -> Path:
        """Return the folder of the files."""
        return Path(self.folder) if self.folder else data_root / self.id

    def fetch(self, names: Sequence[str], data_root: Path) -> Files:
        """Return the files, after downloading missing ones from the hub into `data_root`.

        Raises:
            DataError: If files are missing, and there is no hub id or they cannot be downloaded.
        """

        def find() -> list[Path]:
            paths = [self.where(data_root) / name for name in names]
            missing = [str(path) for path in paths if not path.is_file()]
            if missing:
                raise DataError(f"missing: {', '.join(missing)}; copy the files to these paths (stage: download)")
            return paths

        if self.folder:
            return Files(find())
        return _found_or_fetched("model", self.id, self.revision, names, data_root, find)


def _found_or_fetched(
    kind: Literal["dataset", "model"],
    id_: str,
    revision: str,
    patterns: Sequence[str],
    data_root: Path,
    find: Callable[[], list[Path]],
) -> Files:
    """Return existing files unless they were downloaded at another commit than the requested one; otherwise the hub's.

    A record in the folder of downloaded files gives the commit of each. Files without an entry were copied by hand and
    are used as they are.
    """
    folder = data_root / id_
    record = folder / COMMITS
    commits: dict[str, str] = read_json(record, "download", dict[str, str]) if record.is_file() else {}
    try:
        paths = find()
        known = {commits.get(str(path.relative_to(folder)), "") for path in paths}
        if not re.fullmatch(r"[0-9a-f]{40}", revision) or known <= {"", revision}:
            return Files(paths, known.pop() if len(known) == 1 else "")
        problem = f"{folder}: contains {id_} at another commit than {revision}"
    except DataError as error:
        problem = str(error)
    try:
        commit, fetched = fetch(Repo(id=id_, kind=kind, revision=revision), patterns, folder)
    except DataError as error:
        raise DataError(f"{problem}. Downloading from the hub failed: {error}") from None
    names = [str(each.path.relative_to(folder)) for each in fetched]
    with locked(folder):  # tasks of one repository, such as GLUE's, are downloaded at the same time
        commits = read_json(record, "download", dict[str, str]) if record.is_file() else {}
        write_json(record, {**commits, **dict.fromkeys(names, commit)})
    return Files(find(), commit)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8, 16 grey levels, shipped with the package.

    They have no official test split. Ours consists of 597 images drawn by a fixed seed, the same for every study.
    """

    num_test: int = 597
    inputs: tuple[str, ...] = ("image",)

    def fetch(self, data_root: Path) -> Files:
        """Return no files, because the package contains the images."""
        return Files([])

    def labels(self, data_root: Path) -> Raw:
        """Return the labels of the training split."""
        return Raw((), self.read("train", data_root).labels)

    def read(self, split: Split, data_root: Path) -> Raw:
        """Return images scaled to uint8 and labels of a split; `data_root` is not used."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.Generator(np.random.PCG64(1797)).permutation(len(digits.target))
        chosen = order[: self.num_test] if split == "test" else order[self.num_test :]
        images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        return Raw((list(images),), digits.target[chosen].astype(np.int64))


# --- manifests: records of downloaded files --------------------------------------------------------------------------


def manifest(paths: Sequence[Path], data_root: Path) -> list[dict[str, Any]]:
    """Return path (below `data_root`, or absolute), size and SHA-256 (the hub's name for a large file) of files.

    Raises:
        DataError: If a file cannot be read.
    """
    names = [path.relative_to(data_root) if path.is_relative_to(data_root) else path.absolute() for path in paths]
    return [
        {"file": str(name), "bytes": path.stat().st_size, "sha256": _checksum(path)}
        for name, path in zip(names, paths, strict=True)
    ]


def check(recorded: Sequence[Mapping[str, Any]], data_root: Path) -> None:
    """Verify files against their manifest.

    Raises:
        DataError: If a file is missing, has changed since it was downloaded, or cannot be read.
    """
    for entry in recorded:
        if not Path(entry["file"]).is_absolute():  # a file of a local folder
            try:
                check_file_name(entry["file"])
            except ValueError as error:
                raise DataError(f"manifest: {error}; fetch it again (stage: download)") from None
        path = data_root / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"] or _checksum(path) != entry["sha256"]:
            raise DataError(f"{path}: missing, or changed since it was downloaded; fetch it again (stage: download)")


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


# --- names of classes ------------------------------------------------------------------------------------------------


def check_classes(where: str, classes: Sequence[str], stated: Sequence[str]) -> None:
    """Compare a task's classes with the names given in its files, both in the order of the labels.

    Other words for a class are fine, since a prompt may need them; a line on standard error then shows both.

    Raises:
        DataError: If the number of classes differs, or the files give the name of a class to another label.
    """
    if not classes or not stated:
        return
    expected, named = ([_plain(name) for name in names] for names in (classes, stated))
    moved = [
        index
        for index, name in enumerate(expected[: len(named)])
        if name != named[index] and (name in named or named[index] in expected)
    ]
    if len(expected) != len(named) or moved:
        what = f"{len(named)} and not {len(expected)} classes" if not moved else f"another class for label {moved[0]}"
        shown = "" if not moved else f", {stated[moved[0]]!r} and not {classes[moved[0]]!r}"
        raise DataError(
            f"{where}: its files name {what}{shown}. In the order of the labels they are {_listing(stated)} in the "
            f"files, {_listing(classes)} in the task; correct `classes`"
        )
    if expected != named:
        print(f"{where}: the task calls the classes {_listing(classes)}, its files {_listing(stated)}", file=sys.stderr)


def _plain(name: str) -> str:
    """Normalise a name to lower case with single spaces between words."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.40}" for name in names[:10])
    return f"[{shown}{', …' if len(names) > 10 else ''}]"


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Return the names of the classes in the schema of a parquet file by `datasets`, or () if there are none."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


# --- values of columns ------------------------------------------------------------------------------------------------


def _content(value: Any) -> bytes | str:
    """Return a text, the bytes of an image, or (if nothing else was read) its file name, which may be missing."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        content: bytes = value["bytes"]
        return content
    if isinstance(value, dict) and value.keys() == {"path"}:
        return value["path"] or ""
    raise TypeError(f"neither a text nor an image: {value!r:.40}")


def _number(value: Any) -> int | float:
    number = value if isinstance(value, float) else operator.index(value)
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise TypeError(f"{number} does not fit into 64 bits")
    return number


def _numbers(labels: Sequence[int | float]) -> np.ndarray:
    return np.asarray(labels, dtype=np.int64 if all(isinstance(label, int) for label in labels) else np.float32)


@contextmanager
def opened(image: bytes, where: str) -> Iterator[Any]:
    """Open an encoded image with Pillow, without decoding it yet.

    Raises:
        DataError: If the bytes are not an image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as encoded:
            yield encoded
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # damaged or malicious
        raise DataError(f"{where}: not an image ({error}); fetch the dataset again (stage: download)") from None


def decode(image: bytes | np.ndarray, where: str) -> np.ndarray:
    """Decode an image to a uint8 array of shape (height, width) if it is grey, otherwise (height, width, 3).

    The pixels are those of the first frame, as stored: an EXIF orientation is not applied, as in `datasets` and
    torchvision. Palettes, CMYK and other colour spaces are converted to RGB, and transparency is dropped. Grey levels
    of more than 8 bits are scaled by the range of their format.

    Raises:
        DataError: If the bytes are not an image, or its pixel values have no defined range.
    """
    if isinstance(image, np.ndarray):
        return image
    with opened(image, where) as encoded:
        if encoded.mode[0] in "IF":
            return _scaled(encoded, where)
        grey = encoded.mode in ("1", "L")
        return np.array(encoded.convert("L" if grey else "RGB"))


def _scaled(image: Any, where: str) -> np.ndarray:
    """Scale the grey levels of a deep image (Pillow's modes I;16*, I and F) to bytes; Pillow itself would clip at 255.

    I;16 has 16 bits, or in TIFF the number given in the file. I is either plain-text or binary PGM, whose plugin scales
    to 16 bits, or 32-bit TIFF, which has no defined white level. Floating-point levels are in [0, 1] by convention.

    Raises:
        DataError: If the values have no defined range, or floating-point values are outside [0, 1].
    """
    values = np.array(image)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError(
                f"{where}: floating-point pixel values must be in [0, 1], got {values.min():g} to {values.max():g}; "
                f"store the images with 8 or 16 bits per channel"
            )
        return np.round(values * 255).astype(np.uint8)
    if image.mode == "I" and image.format != "PPM":
        raise DataError(
            f"{where}: 32-bit integer pixels ({image.format}) have no defined range, got {values.min()} to "
            f"{values.max()}; store the images with 8 or 16 bits per channel"
        )
    bits, inverted = 16, False
    if image.format == "TIFF":
        tags: Any = image.tag_v2
        bits, inverted = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_PHOTOMETRIC) == 0
    white = 2**bits - 1
    levels: np.ndarray = np.round(values.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)
    return np.subtract(255, levels) if inverted else levels
