"""Where examples and models come from: the hub, a folder in its layout, or data shipped inside an installed package.

Files lie at `<data root>/<id>/<name in the repository>`. `fetch` (the download stage) is the only thing here that uses
a network, and only for files that are not there.
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
from isp.files import read_json, sha256, write_json
from isp.untrusted import check_file_name

Split = Literal["train", "test"]
Column = Sequence[Any]
"""Pictures (encoded, or as arrays) or texts."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF; a photometric interpretation of 0 means that 0 is white."""


@dataclass(frozen=True)
class Raw:
    """Examples as the source has them.

    Attributes:
        columns: one of pictures (encoded files, or uint8 arrays of shape (height, width) or (height, width, 3)), or one
            or two of texts; none where only labels were asked for.
        labels: (n,), int64 numbers of classes, or float32 for a regression.
        groups: (n,), int64, examples that must not be divided between training and validation; None: not known.
        classes: Names of the classes in the order of the labels, as the files state them; empty: they state none.
    """

    columns: tuple[Column, ...]
    labels: np.ndarray
    groups: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Files:
    """Files that were looked for.

    Attributes:
        paths: where they are.
        commit: on the hub, that they are of; empty if they were put there by hand, or are of no repository.
    """

    paths: list[Path]
    commit: str = ""


class Source(Protocol):
    """Where a task's examples come from. Its training split and its test split are handed out by separate calls."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that an example has: one of pictures, or one or two of texts."""
        ...

    def fetch(self, data_root: Path) -> Files:
        """See to it that the files are there."""
        ...

    def labels(self, data_root: Path) -> Raw:
        """Labels and groups of the training split, without columns."""
        ...

    def read(self, split: Split, data_root: Path) -> Raw:
        """All examples of a split."""
        ...


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A dataset on the Hugging Face hub, or in a folder that mirrors its layout, as parquet files.

    Attributes:
        id: "owner/name".
        folder: of its files in the repository; the hub names it as the configuration.
        revision: commit to fetch from, or a branch.
        inputs: names of the columns: one of pictures (structs with `bytes`), or one or two of texts.
        label: name of the column of labels.
        train, test: names of the official splits.
        group: pattern over a picture's file name; pictures of one class with the same first group must stay together.
    """

    id: str
    folder: str
    revision: str = "main"
    inputs: tuple[str, ...] = ("image",)
    label: str = "label"
    train: str = "train"
    test: str = "test"
    group: str = ""

    def __post_init__(self) -> None:
        if self.train == self.test:
            raise ConfigError(f"{self.id}: train and test are both {self.train!r}; allowed are two different splits")

    def labels(self, data_root: Path) -> Raw:
        """Labels and groups of the training split, without columns; pictures and texts are not read.

        Raises:
            DataError: as `read`.
        """
        names = [f"{self.inputs[0]}.path"] if self.group else []
        (*paths, labels), classes = self._columns("train", [*names, self.label], data_root)
        groups = self._groups(paths[0], labels) if paths else None
        return Raw((), _numbers(labels), groups, classes)

    def read(self, split: Split, data_root: Path) -> Raw:
        """All examples of a split.

        Raises:
            DataError: a file is missing, truncated or lacks a column.
        """
        (*columns, labels), classes = self._columns(split, [*self.inputs, self.label], data_root)
        return Raw(tuple(columns), _numbers(labels), None, classes)

    def _columns(self, split: Split, names: Sequence[str], data_root: Path) -> tuple[list[list[Any]], tuple[str, ...]]:
        """Columns of a split, the labels last, and the names of the classes that its files state."""
        from pyarrow import parquet

        columns: list[list[Any]] = [[] for _ in names]
        classes: tuple[str, ...] = ()
        for path in self._files(self.train if split == "train" else self.test, data_root):
            try:
                with parquet.ParquetFile(path) as file:  # read_table would lift a field of a struct out of it
                    table = file.read(columns=list(names))
                    stated = _class_names(file.schema_arrow.metadata, self.label)
                for column, name in zip(columns, names, strict=True):
                    values = table[name.split(".")[0]].to_pylist()
                    column.extend(map(_number if name == self.label else _content, values))
            except (OSError, ValueError, KeyError, TypeError) as error:
                wanted = f"{', '.join(map(repr, self.inputs))} (texts, or pictures as structs with bytes)"
                again = (
                    "" if isinstance(error, TypeError) else f"; delete it and fetch {self.id} again (stage: download)"
                )
                raise DataError(
                    f"{path}: not a whole parquet file with columns {wanted} and {self.label!r} (numbers) ({error})"
                    f"{again}"
                ) from None
            if classes and stated and stated != classes:
                raise DataError(
                    f"{path}: names the classes {_listing(stated)}, but other files of split {split!r} name "
                    f"{_listing(classes)}; fetch {self.id} again (stage: download)"
                )
            classes = classes or stated
        return columns, classes

    def fetch(self, data_root: Path) -> Files:
        """The files of both splits; if some are missing they are fetched from the hub into `data_root`.

        Raises:
            DataError: files are missing and the hub did not give them.
        """
        patterns = [f"{self.folder}/{split}-*.parquet" for split in (self.train, self.test)]

        def find() -> list[Path]:
            return [path for split in (self.train, self.test) for path in self._files(split, data_root)]

        return _found_or_fetched("dataset", self.id, self.revision, patterns, data_root, find)

    def _groups(self, paths: list[str], labels: list[Any]) -> np.ndarray | None:
        found = [match[1] for path in paths if (match := re.search(self.group, path))]
        if len(found) != len(labels):
            return None
        together = [f"{label} {name}" for label, name in zip(labels, found, strict=True)]
        return np.unique(together, return_inverse=True)[1]

    def _files(self, split: str, data_root: Path) -> list[Path]:
        """The files of a split in the order of their numbers, each number exactly once."""
        folder = data_root / self.id / self.folder
        numbered: dict[Path, tuple[int, int]] = {}  # number and count, both from the file's name
        for path in folder.glob(f"{glob.escape(split)}-*-of-*.parquet"):
            if match := re.fullmatch(rf"{re.escape(split)}-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet", path.name):
                numbered[path] = int(match[1]), int(match[2])
        found = sorted(numbered, key=lambda path: (numbered[path], path.name))
        counts = {count for _, count in numbered.values()}
        if len(counts) == 1 and [numbered[path][0] for path in found] == list(range(*counts)):
            return found
        if not found:
            problem = f"missing split {split!r} of {self.id} (looked for {split}-00000-of-00001.parquet, …)"
        elif len(counts) > 1:
            names = ", ".join(path.name for path in found)
            problem = f"files of more than one sharding of split {split!r} of {self.id} ({names})"
        else:
            (count,), numbers = counts, [numbered[path][0] for path in found]
            missing = [f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)
                       if number not in numbers][:9]  # fmt: skip
            surplus = [
                path.name for path in found if numbers.count(numbered[path][0]) > 1 or numbered[path][0] >= count
            ]
            problem = f"incomplete split {split!r} of {self.id}" + (
                f", missing {', '.join(missing)}" if missing else ""
            )
            problem += f", there twice or not numbered below {count}: {', '.join(surplus[:9])}" if surplus else ""
        raise DataError(
            f"{folder}: {problem}; put exactly the hub's parquet files there, or name the folder that contains "
            f"{self.id}/ by --data-root or the key data_root (stage: download)"
        )


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """The files of a model on the Hugging Face hub, or in a local folder.

    Attributes:
        id: "owner/name"; its files are looked for in `<data root>/<id>` first. Empty: `folder` holds them.
        revision: commit to fetch from, or a branch.
        folder: a folder of one's own.
    """

    id: str = ""
    revision: str = "main"
    folder: str = ""

    def where(self, data_root: Path) -> Path:
        """The folder of the files."""
        return Path(self.folder) if self.folder else data_root / self.id

    def fetch(self, names: Sequence[str], data_root: Path) -> Files:
        """The files; if some are missing they are fetched from the hub into `data_root`.

        Raises:
            DataError: files are missing, and there is no hub id or the hub did not give them.
        """

        def find() -> list[Path]:
            paths = [self.where(data_root) / name for name in names]
            missing = [str(path) for path in paths if not path.is_file()]
            if missing:
                raise DataError(f"missing: {', '.join(missing)}; put the files there (stage: download)")
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
    """Files that are there, unless they were fetched at another commit than the one that is wanted; else the hub's.

    Beside fetched files stands a record of the commit that each is of; files without one were put there by hand, and
    are taken as they are.
    """
    folder = data_root / id_
    record = folder / COMMITS
    commits: dict[str, str] = read_json(record, "download", dict[str, str]) if record.is_file() else {}
    try:
        paths = find()
        known = {commits.get(str(path.relative_to(folder)), "") for path in paths}
        if not re.fullmatch(r"[0-9a-f]{40}", revision) or known <= {"", revision}:
            return Files(paths, known.pop() if len(known) == 1 else "")
        problem = f"{folder}: holds {id_} at another commit than {revision}"
    except DataError as error:
        problem = str(error)
    try:
        commit, fetched = fetch(Repo(id=id_, kind=kind, revision=revision), patterns, folder)
    except DataError as error:
        raise DataError(f"{problem}. The hub did not give them: {error}") from None
    names = [str(each.path.relative_to(folder)) for each in fetched]
    write_json(record, {**commits, **dict.fromkeys(names, commit)})
    return Files(find(), commit)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: 1,797 pictures of 8 x 8, 16 grey levels, shipped with the package.

    It has no official test split. Ours: 597 pictures drawn by a fixed seed, the same for every study.
    """

    num_test: int = 597
    inputs: tuple[str, ...] = ("image",)

    def fetch(self, data_root: Path) -> Files:
        """No files: the package holds them."""
        return Files([])

    def labels(self, data_root: Path) -> Raw:
        """Labels of the training split."""
        return Raw((), self.read("train", data_root).labels)

    def read(self, split: Split, data_root: Path) -> Raw:
        """Pictures scaled to uint8 and labels of a split; `data_root` is not used."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.Generator(np.random.PCG64(1797)).permutation(len(digits.target))
        chosen = order[: self.num_test] if split == "test" else order[self.num_test :]
        pictures = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        return Raw((list(pictures),), digits.target[chosen].astype(np.int64))


# --- manifests: which files there were --------------------------------------------------------------------------------


def manifest(paths: Sequence[Path], data_root: Path) -> list[dict[str, Any]]:
    """Path (below `data_root`, or whole), size and SHA-256 (what the hub names large files by) of files."""
    names = [path.relative_to(data_root) if path.is_relative_to(data_root) else path.absolute() for path in paths]
    return [
        {"file": str(name), "bytes": path.stat().st_size, "sha256": sha256(path)}
        for name, path in zip(names, paths, strict=True)
    ]


def check(recorded: Sequence[Mapping[str, Any]], data_root: Path) -> None:
    """Hold files to their manifest.

    Raises:
        DataError: a file is gone, or is not what was downloaded.
    """
    for entry in recorded:
        if not Path(entry["file"]).is_absolute():  # a file of a local folder
            try:
                check_file_name(entry["file"])
            except ValueError as error:
                raise DataError(f"manifest: {error}; fetch it again (stage: download)") from None
        path = data_root / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            raise DataError(f"{path}: gone, or altered since it was downloaded; fetch it again (stage: download)")


# --- names of classes ------------------------------------------------------------------------------------------------


def check_classes(where: str, classes: Sequence[str], stated: Sequence[str]) -> None:
    """Compare a task's classes with the names that its files state, both in the order of the labels.

    Other words for a class are fine, since a prompt may want them; a line on standard error then shows both.

    Raises:
        DataError: another number of classes, or a class whose name the files give to another label.
    """
    if not classes or not stated:
        return
    wanted, named = ([_plain(name) for name in names] for names in (classes, stated))
    moved = [
        index
        for index, name in enumerate(wanted[: len(named)])
        if name != named[index] and (name in named or named[index] in wanted)
    ]
    if len(wanted) != len(named) or moved:
        what = f"{len(named)} and not {len(wanted)} classes" if not moved else f"another class for label {moved[0]}"
        shown = "" if not moved else f", {stated[moved[0]]!r} and not {classes[moved[0]]!r}"
        raise DataError(
            f"{where}: its files name {what}{shown}. In the order of the labels they are {_listing(stated)} in the "
            f"files, {_listing(classes)} in the task; correct `classes`"
        )
    if wanted != named:
        print(f"{where}: the task calls the classes {_listing(classes)}, its files {_listing(stated)}", file=sys.stderr)


def _plain(name: str) -> str:
    """Normalise a name: no case, and single spaces between words."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.40}" for name in names[:10])
    return f"[{shown}{', …' if len(names) > 10 else ''}]"


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Names of the classes from the schema of a parquet file that `datasets` wrote; () if it states none."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


# --- values of columns ------------------------------------------------------------------------------------------------


def _content(value: Any) -> bytes | str:
    """A text, the bytes of a picture, or (where only that was read) its file name, which may be missing."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        content: bytes = value["bytes"]
        return content
    if isinstance(value, dict) and value.keys() == {"path"}:
        return value["path"] or ""
    raise TypeError(f"neither a text nor a picture: {value!r:.40}")


def _number(value: Any) -> int | float:
    number = value if isinstance(value, float) else operator.index(value)
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise TypeError(f"{number} does not fit into 64 bits")
    return number


def _numbers(labels: Sequence[int | float]) -> np.ndarray:
    return np.asarray(labels, dtype=np.int64 if all(isinstance(label, int) for label in labels) else np.float32)


@contextmanager
def opened(picture: bytes, where: str) -> Iterator[Any]:
    """An encoded picture, by Pillow, not decoded yet.

    Raises:
        DataError: the bytes are no picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # damaged, or made to do damage
        raise DataError(f"{where}: not a picture ({error}); fetch the dataset again (stage: download)") from None


def decode(picture: bytes | np.ndarray, where: str) -> np.ndarray:
    """Decode an image to a uint8 array of shape (height, width) if it is grey, else (height, width, 3).

    The pixels are those of the first frame, as stored: an EXIF orientation is not applied, as in `datasets` and
    torchvision. Palettes, CMYK and other colour spaces are converted to RGB, and transparency is dropped. Grey levels
    of more than 8 bits are scaled by the range of their format.

    Raises:
        DataError: the bytes are not an image, or its pixel values have no defined range.
    """
    if isinstance(picture, np.ndarray):
        return picture
    with opened(picture, where) as image:
        if image.mode[0] in "IF":
            return _scaled(image, where)
        grey = image.mode in ("1", "L")
        return np.array(image.convert("L" if grey else "RGB"))


def _scaled(image: Any, where: str) -> np.ndarray:
    """Grey levels of a deep image (Pillow's modes I;16*, I and F) as bytes; Pillow itself would cut them off at 255.

    I;16 holds 16 bits, or in TIFF as many as the file says. I is the plain text and binary PGM, whose plugin scales to
    16 bits, or 32-bit TIFF, which has no range that would be white. Floating-point levels lie in [0, 1] by convention.

    Raises:
        DataError: the values have no defined range, or floating-point values lie outside [0, 1].
    """
    values = np.array(image)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError(
                f"{where}: floating-point pixel values must lie in [0, 1], got {values.min():g} to {values.max():g}; "
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
