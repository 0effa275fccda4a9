from __future__ import annotations

import hashlib
import io
import math
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from isp import registry
from isp.backbones._open_clip import tokenize
from isp.backbones.clip_tiny import BACKBONE
from isp.data.glyphs import FONTS, GLYPHS, CaptionedGlyphs, captions, render
from isp.data.images import Images, normalise, random_crop, resized, to_pixels
from isp.data.preparation import limited
from isp.data.sources import Digits, HubDataset, check, manifest
from isp.data.splits import Rule, carve
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


MNIST: HubDataset = registry.load("task", "mnist").TASK.source


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [3, 1], "00000-of-00002")
    write_mnist(tmp_path, "train", [4], "00001-of-00002")
    write_mnist(tmp_path, "test", [9])
    raw = MNIST.read("train", tmp_path)
    assert raw.labels.tolist() == [3, 1, 4]
    assert to_pixels(raw.columns[0], [0, 2], 28, "mnist")[:, 0, 0, 0].tolist() == [30, 40]
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


def test_other_names_of_files_on_the_hub(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [3], "00000-of-00001-0123456789abcdef")
    assert MNIST.read("train", tmp_path).labels.tolist() == [3]
    write_mnist(tmp_path, "train", [3], "00000-of-00002")
    with pytest.raises(DataError, match=r"incomplete .*there are train-00000-of-00001-0123456789abcdef.parquet, train"):
        MNIST.read("train", tmp_path)


@pytest.mark.parametrize("label", ["one", None, [1]])
def test_labels_that_are_no_numbers(tmp_path: Path, label: object) -> None:
    path = write_mnist(tmp_path, "train", [1])
    table = parquet.read_table(path).set_column(1, "label", pa.array([label]))
    parquet.write_table(table, path)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: .* 'label' \(numbers\)"):
        MNIST.read("train", tmp_path)


def test_a_broken_picture_is_named() -> None:
    good = png(np.zeros((28, 28), np.uint8))
    for bad in (b"no picture", good[:40], good[:20] + b"xxxx" + good[24:]):
        with pytest.raises(DataError, match="mnist, picture 1: not a picture"):
            to_pixels([good, bad], [0, 1], 28, "mnist")


def test_digits_have_fixed_sizes_and_splits_share_nothing() -> None:
    train, test = Digits().read("train", Path()), Digits().read("test", Path())
    assert (len(train.labels), len(test.labels)) == (1200, 597)
    pictures = np.concatenate([np.stack(train.columns[0]), np.stack(test.columns[0])])
    from sklearn.datasets import load_digits

    everything = np.sort(np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1), axis=0)
    assert np.array_equal(np.sort(pictures.reshape(1797, -1), axis=0), everything)
    assert np.bincount(train.labels).min() > 100


# --- splits -----------------------------------------------------------------------------------------------------------


def test_validation_is_carved_by_the_rule() -> None:
    assert [len(carve(np.zeros(n)).validation) for n in (1000, 50_000, 60_000)] == [100, 5000, 5000]
    split = carve(np.zeros(1000))
    assert sorted([*split.train, *split.validation]) == list(range(1000))
    assert np.array_equal(carve(np.zeros(1000)).train, split.train)
    for size in (0, 1000):
        with pytest.raises(DataError, match=f"num_validation = {size}: allowed are 1 to 999"):
            carve(np.zeros(1000), size)


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    share=st.floats(0.05, 0.9),
    rule=st.sampled_from(["random", "stratified", "groups"]),
)
def test_a_split_is_disjoint_and_of_the_size_that_was_asked_for(counts: list[int], share: float, rule: Rule) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    size = max(1, int(share * len(labels)))
    assume(rule != "groups" or size >= 3)  # so that a group fits
    split = carve(labels, size, rule, groups=np.arange(len(labels)) // 3)
    both = [*split.train, *split.validation]
    assert len(set(both)) == len(both)
    assert len(split.train) == len(labels) - size
    assert size - 2 * (rule == "groups") <= len(split.validation) <= size
    if rule == "stratified":
        held = np.bincount(labels[split.validation], minlength=len(counts))
        assert np.abs(held - np.array(counts) * size / len(labels)).max() < 1
    if rule == "groups":
        assert not set(split.train // 3) & set(split.validation // 3)


def test_frames_of_one_traffic_sign_stay_together(tmp_path: Path) -> None:
    """GTSRB: names are <track>_<frame>, track numbers restart in every class."""
    task = registry.load("task", "gtsrb").TASK
    folder = tmp_path / task.source.id / task.source.folder
    folder.mkdir(parents=True)
    labels = [label for label in range(4) for _ in range(60)]
    names = [f"{track:05d}_{frame:05d}.ppm" for _ in range(4) for track in range(2) for frame in range(30)]
    pictures = [{"bytes": png(np.zeros((9, 9, 3), np.uint8)), "path": name} for name in names]
    parquet.write_table(pa.table({"image": pictures, "label": labels}), folder / "train-00000-of-00001.parquet")
    raw = task.source.labels(tmp_path)
    assert raw.groups is not None
    assert np.bincount(raw.groups).tolist() == [30] * 8
    split = carve(raw.labels, 60, "groups", raw.groups)
    assert len(split.validation) == 60
    assert not set(raw.groups[split.train]) & set(raw.groups[split.validation])
    nameless = [{**picture, "path": None} for picture in pictures]
    parquet.write_table(pa.table({"image": nameless, "label": labels}), folder / "train-00000-of-00001.parquet")
    assert task.source.labels(tmp_path).groups is None


def test_limits_take_the_first_and_never_move_an_example_to_the_other_side() -> None:
    split = carve(np.zeros(1000))
    tensors = {"index": torch.from_numpy(split.train)}
    assert limited(tensors, 50)["index"].tolist() == split.train[:50].tolist()
    assert limited(tensors, None)["index"] is tensors["index"]
    assert not set(split.train[:50].tolist()) & set(split.validation)


def test_files_are_held_to_their_manifest(tmp_path: Path) -> None:
    path = write_mnist(tmp_path, "train", [1, 2])
    recorded = manifest([path], tmp_path)
    assert recorded[0]["file"] == "ylecun/mnist/mnist/train-00000-of-00001.parquet"
    assert recorded[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    check(recorded, tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: gone, or altered .*stage: download"):
        check(recorded, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="gone"):
        check(recorded, tmp_path)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_preparation_resizes_the_shorter_side_and_cuts_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20, 0] = 200
    grey = np.full((8, 8), 7, np.uint8)
    pixels = to_pixels([wide, grey], [0, 1], 10, "x")
    assert pixels.shape == (2, 3, 10, 10)
    assert pixels.dtype == torch.uint8
    assert pixels[0, 0].min() == 200
    assert pixels[1].unique().tolist() == [7]


def test_resizing_and_cropping_are_torchvisions() -> None:
    from torchvision import transforms

    random = np.random.Generator(np.random.PCG64(0))
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose([transforms.Resize(20, bicubic), transforms.CenterCrop(20), transforms.PILToTensor()])
    pictures = [random.integers(0, 256, (*random.integers(15, 60, 2), 3), dtype=np.uint8) for _ in range(30)]
    ours = to_pixels(pictures, np.arange(30), 20, "x")
    for picture, pixels in zip(pictures, ours, strict=True):
        assert torch.equal(pixels, theirs(Image.fromarray(picture)))


def test_small_pictures_of_one_size_stay_as_they_are() -> None:
    pictures = [np.full((8, 8), value, np.uint8) for value in (3, 7)]
    assert to_pixels(pictures, [1, 0], 28, "x").shape == (2, 1, 8, 8)
    assert to_pixels([png(picture) for picture in pictures], [0], 8, "x").shape == (1, 1, 8, 8)
    assert to_pixels(pictures, [0, 1], 6, "x").shape == (2, 1, 6, 6)  # larger than wanted
    assert to_pixels([*pictures, pictures[0][:7, :7]], [0, 1, 2], 28, "x").shape == (3, 1, 28, 28)  # two sizes
    assert to_pixels([np.zeros((8, 9), np.uint8)], [0], 28, "x").shape == (1, 1, 28, 28)  # not square


def test_enlarged_pictures_are_pillows_but_for_rounding() -> None:
    """Of middle grey, so that nothing is clipped."""
    picture = np.random.Generator(np.random.PCG64(0)).integers(64, 192, (8, 8), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(picture).resize((28, 28), Image.Resampling.BICUBIC))
    ours = resized(torch.from_numpy(picture).view(1, 1, 8, 8).float().div(255), 28) * 255
    assert np.abs(ours[0, 0].numpy() - theirs).max() < 1.01


def test_batches_are_normalised_and_grey_becomes_three_channels() -> None:
    images = Images(
        pixels=torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4),
        labels=torch.tensor([5, 6]),
        size=4,
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
    first = random_crop(picture, 28)
    torch.manual_seed(0)
    assert torch.equal(first, random_crop(picture, 28))
    assert random_crop(picture, 56).shape == (50, 1, 56, 56)
    assert 0 < (first - picture).abs().mean() < 0.1
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 32), (28, 28, 28), (3, 5, 16), (40, 40, 28)])
def test_random_crops_are_those_of_grid_sample(height: int, width: int, size: int) -> None:
    pictures = torch.rand(20, 3, height, width)
    torch.manual_seed(0)
    crops = random_crop(pictures, size)
    torch.manual_seed(0)
    area = torch.empty(20).uniform_(0.9, 1.0)
    aspect = torch.empty(20).uniform_(-math.log(4 / 3), math.log(4 / 3)).exp()
    extent_x, extent_y = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    centre_x, centre_y = ((2 * torch.rand(20) - 1) * (1 - extent) for extent in (extent_x, extent_y))
    zeros = torch.zeros(20)
    affine = torch.stack([extent_x, zeros, centre_x, zeros, extent_y, centre_y], dim=1).view(20, 2, 3)
    grid = F.affine_grid(affine, [20, 3, size, size], align_corners=False)
    reference = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    assert torch.allclose(crops, reference, atol=1e-5)


# --- glyphs -----------------------------------------------------------------------------------------------------------


def test_glyphs() -> None:
    pictures = render(28)
    assert pictures.shape == (62, len(FONTS), 28, 28)
    assert (pictures.max(axis=(2, 3)) > 100).all()  # none is empty
    same_font = pictures[:, 0].reshape(62, -1)
    assert len(np.unique(same_font, axis=0)) == 62
    assert len({text for glyph in GLYPHS for text in captions(glyph)}) == 5 * 62


def test_a_batch_of_captioned_glyphs() -> None:
    glyphs = CaptionedGlyphs.render(28, partial(tokenize, context_length=16), BACKBONE.mean, BACKBONE.std)
    assert len(glyphs) == 62 * len(FONTS)
    pictures, numbers, tokens = glyphs.batch(torch.tensor([0, len(FONTS), 61 * len(FONTS) + 3]))
    assert pictures.shape == (3, 3, 28, 28)
    assert numbers.tolist() == [0, 1, 61]
    assert tokens.shape == (62, 16)
    assert (tokens == 49407).any(dim=1).all()  # no caption is cut off
