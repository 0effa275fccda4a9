from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from isp import registry
from isp.backbones.clip_tiny import BACKBONE
from isp.data.glyphs import FONTS, GLYPHS, CaptionedGlyphs, captions, render
from isp.data.images import Images, normalise, random_crop, to_pixels
from isp.data.sources import Digits, HubFolder, RawImages
from isp.data.splits import carve
from isp.errors import DataError


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_mnist(root: Path, split: str, labels: list[int], shard: str = "00000-of-00001") -> Path:
    """Grey pictures whose every pixel is ten times the label, in the hub's layout."""
    path = root / "ylecun" / "mnist" / "mnist" / f"{split}-{shard}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(np.full((28, 28), 10 * label, np.uint8)), "path": None} for label in labels]
    parquet.write_table(pa.table({"image": images, "label": labels}), path)
    return path


MNIST: HubFolder = registry.load("task", "mnist").TASK.source


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [3, 1], "00000-of-00002")
    write_mnist(tmp_path, "train", [4], "00001-of-00002")
    write_mnist(tmp_path, "test", [9])
    raw = MNIST.read("train", tmp_path)
    assert raw.labels.tolist() == [3, 1, 4]
    assert to_pixels(raw, [0, 2], 28, "mnist")[:, 0, 0, 0].tolist() == [30, 40]
    assert MNIST.read("test", tmp_path).labels.tolist() == [9]


def test_missing_incomplete_truncated_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist/mnist: missing split 'train' of ylecun/mnist .*--data-root.*download"):
        MNIST.read("train", tmp_path)
    write_mnist(tmp_path, "train", [3], "00000-of-00002")
    with pytest.raises(DataError, match=r"incomplete split 'train'.*train-00000-of-00002"):
        MNIST.read("train", tmp_path)
    path = write_mnist(tmp_path, "test", list(range(10)))
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"test-00000-of-00001.parquet: not a whole parquet file"):
            MNIST.read("test", tmp_path)
    parquet.write_table(pa.table({"img": [1], "label": [1]}), path)
    with pytest.raises(DataError, match="with columns 'image'"):
        MNIST.read("test", tmp_path)


@pytest.mark.parametrize("label", [1.5, "one", None])
def test_labels_that_are_no_integers(tmp_path: Path, label: object) -> None:
    path = write_mnist(tmp_path, "train", [1])
    table = parquet.read_table(path).set_column(1, "label", pa.array([label]))
    parquet.write_table(table, path)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: .* 'label' \(integers\)"):
        MNIST.read("train", tmp_path)


def test_a_broken_picture_is_named() -> None:
    good = png(np.zeros((28, 28), np.uint8))
    for bad in (b"no picture", good[:40], good[:20] + b"xxxx" + good[24:]):
        raw = RawImages([good, bad], np.array([0, 1]))
        with pytest.raises(DataError, match="mnist, picture 1: not a picture"):
            to_pixels(raw, [0, 1], 28, "mnist")


def test_digits_have_fixed_sizes_and_splits_share_nothing() -> None:
    train, test = Digits().read("train", Path()), Digits().read("test", Path())
    assert (len(train.labels), len(test.labels)) == (1200, 597)
    pictures = np.concatenate([np.stack(list(train.pictures)), np.stack(list(test.pictures))])
    from sklearn.datasets import load_digits

    everything = np.sort(np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1), axis=0)
    assert np.array_equal(np.sort(pictures.reshape(1797, -1), axis=0), everything)
    assert np.bincount(train.labels).min() > 100


# --- splits -----------------------------------------------------------------------------------------------------------


def test_validation_is_carved_by_the_rule() -> None:
    assert [len(carve(n).validation) for n in (1000, 50_000, 60_000)] == [100, 5000, 5000]
    split = carve(1000)
    assert sorted([*split.train, *split.validation]) == list(range(1000))
    assert np.array_equal(carve(1000).train, split.train)


def test_limits_never_move_an_example_to_the_other_side() -> None:
    whole, limited = carve(1000), carve(1000, num_train=50, limit=20)
    assert (len(limited.train), len(limited.validation)) == (50, 20)
    assert set(limited.train) <= set(whole.train)
    assert set(limited.validation) <= set(whole.validation)
    with pytest.raises(DataError, match="num_train = 901: allowed are 1 to 900"):
        carve(1000, num_train=901)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_preparation_resizes_the_shorter_side_and_cuts_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20, 0] = 200
    grey = np.full((8, 8), 7, np.uint8)
    pixels = to_pixels(RawImages([wide, grey], np.array([0, 1])), [0, 1], 10, "x")
    assert pixels.shape == (2, 3, 10, 10)
    assert pixels.dtype == torch.uint8
    assert pixels[0, 0].min() == 200
    assert pixels[1].unique().tolist() == [7]


def test_batches_are_normalised_and_grey_becomes_three_channels() -> None:
    images = Images(
        pixels=torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4),
        labels=torch.tensor([5, 6]),
        mean=(0.5, 0.5, 0.0),
        std=(0.5, 0.25, 1.0),
    )
    pictures, labels = images.batch(torch.tensor([1, 0]))
    assert labels.tolist() == [6, 5]
    assert pictures[:, :, 0, 0].tolist() == [[1, 2, 1], [-1, -2, 0]]
    assert normalise(pictures[:, :1], (0.0,), (1.0,)).shape == (2, 3, 4, 4)


def test_random_crops_are_mild_and_come_from_the_generator() -> None:
    picture = torch.linspace(0, 1, 28).expand(50, 1, 28, 28).contiguous()
    torch.manual_seed(0)
    first = random_crop(picture)
    torch.manual_seed(0)
    assert torch.equal(first, random_crop(picture))
    assert 0 < (first - picture).abs().mean() < 0.1
    assert first.min() >= 0
    assert first.max() <= 1


# --- glyphs -----------------------------------------------------------------------------------------------------------


def test_glyphs() -> None:
    pictures = render(28)
    assert pictures.shape == (62, len(FONTS), 28, 28)
    assert (pictures.max(axis=(2, 3)) > 100).all()  # none is empty
    same_font = pictures[:, 0].reshape(62, -1)
    assert len(np.unique(same_font, axis=0)) == 62
    assert len({text for glyph in GLYPHS for text in captions(glyph)}) == 5 * 62


def test_a_batch_of_captioned_glyphs() -> None:
    glyphs = CaptionedGlyphs.render(BACKBONE.image_size, BACKBONE.tokenize, BACKBONE.mean, BACKBONE.std)
    assert len(glyphs) == 62 * len(FONTS)
    pictures, numbers, tokens = glyphs.batch(torch.tensor([0, len(FONTS), 61 * len(FONTS) + 3]))
    assert pictures.shape == (3, 3, 28, 28)
    assert numbers.tolist() == [0, 1, 61]
    assert tokens.shape == (62, 16)
    assert (tokens == 49407).any(dim=1).all()  # no caption is cut off
