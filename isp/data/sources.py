"""Where examples come from: a folder that mirrors the hub's layout, or data shipped inside an installed package.

A source hands out its official training split and its official test split by separate functions; nothing that trains
or chooses calls the second.
"""

from __future__ import annotations

import io
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from isp.errors import DataError

Split = Literal["train", "test"]


@dataclass(frozen=True)
class RawImages:
    """Pictures as the source has them.

    Attributes:
        pictures: encoded files (bytes) or arrays of shape (height, width) or (height, width, 3), uint8.
        labels: int64, shape (n,).
    """

    pictures: Sequence[bytes | np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """A dataset on the Hugging Face hub, read from a local copy of its parquet files.

    The files lie at `<data root>/<id>/<config>/<split>-00000-of-00001.parquet`.

    Attributes:
        id: "owner/name".
        config: its configuration.
        image, label: column names; pictures are structs with a `bytes` field.
        train, test: names of the official splits.
    """

    id: str
    config: str
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"

    def read(self, split: Split, data_root: Path) -> RawImages:
        """All pictures and labels of a split.

        Raises:
            DataError: a file is missing, truncated or lacks a column.
        """
        from pyarrow import parquet

        pictures: list[bytes] = []
        labels: list[int] = []
        for path in self._files(self.train if split == "train" else self.test, data_root):
            try:
                table = parquet.read_table(path, columns=[self.image, self.label])
                pictures.extend(entry["bytes"] for entry in table[self.image].to_pylist())
                labels.extend(map(operator.index, table[self.label].to_pylist()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                columns = f"{self.image!r} (struct with bytes) and {self.label!r} (integers)"
                raise DataError(
                    f"{path}: not a whole parquet file with columns {columns} ({error}); "
                    f"delete it and fetch {self.id} again (stage: download)"
                ) from None
        return RawImages(pictures, np.asarray(labels, dtype=np.int64))

    def fetch(self, data_root: Path) -> list[Path]:
        """The files of both splits; those that are missing are fetched from the hub into `data_root`.

        Raises:
            DataError: files are missing and the hub did not give them.
        """
        try:
            return [*self._files(self.train, data_root), *self._files(self.test, data_root)]
        except DataError as error:
            problem = error
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            patterns = [f"{self.config}/{split}-*.parquet" for split in (self.train, self.test)]
            snapshot_download(self.id, repo_type="dataset", local_dir=data_root / self.id, allow_patterns=patterns)
        except (OSError, HfHubHTTPError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{problem}. The Hugging Face hub did not give them: {reason}") from None
        return [*self._files(self.train, data_root), *self._files(self.test, data_root)]

    def _files(self, split: str, data_root: Path) -> list[Path]:
        folder = data_root / self.id / self.config
        found = sorted(folder.glob(f"{split}-*-of-*.parquet"))
        counts = {int(match[1]) for path in found if (match := re.search(r"-of-(\d+)\.parquet$", path.name))}
        if not found or counts != {len(found)}:
            problem = "incomplete" if found else "missing"
            expected = f"{split}-00000-of-{max(counts, default=1):05d}.parquet, …"
            raise DataError(
                f"{folder}: {problem} split {split!r} of {self.id} (looked for {expected}); "
                f"put the hub's parquet files there, or name the folder that holds {self.id}/ by --data-root or the "
                f"key data_root (stage: download)"
            )
        return found


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: 1,797 pictures of 8 x 8, 16 grey levels, shipped with the package.

    It has no official test split. Ours: 597 pictures drawn by a fixed seed, the same for every study.
    """

    num_test: int = 597

    def fetch(self, data_root: Path) -> list[Path]:
        """No files: the package holds them."""
        return []

    def read(self, split: Split, data_root: Path) -> RawImages:
        """Pictures scaled to uint8 and labels of a split; `data_root` is not used."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.Generator(np.random.PCG64(1797)).permutation(len(digits.target))
        chosen = order[: self.num_test] if split == "test" else order[self.num_test :]
        pictures = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        return RawImages(list(pictures), digits.target[chosen].astype(np.int64))


def decode(picture: bytes | np.ndarray, where: str) -> np.ndarray:
    """A picture as a uint8 array of shape (height, width) if grey, else (height, width, 3).

    Raises:
        DataError: the bytes are no picture.
    """
    if isinstance(picture, np.ndarray):
        return picture
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture)) as image:
            grey = image.mode in ("1", "L")
            return np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three for damaged files
        raise DataError(f"{where}: not a picture ({error}); fetch the dataset again (stage: download)") from None
