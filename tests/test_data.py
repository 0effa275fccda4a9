from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

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
from isp.config import Study, parse_study
from isp.data import sources
from isp.data.glyphs import FONTS, GLYPHS, CaptionedGlyphs, captions, render
from isp.data.images import Images, normalise, random_crop, resized, to_pixels
from isp.data.sources import Digits, HubDataset, check, decode, manifest
from isp.data.splits import Rule, carve
from isp.definitions import task_of
from isp.errors import DataError
from isp.files import write_json
from isp.preparation import limited, split
from isp.workflow import reuse
from isp.workflow.reuse import check_reused
from tests.support.data import png, write_mnist

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
    with pytest.raises(DataError, match=r"incomplete split 'train'.*missing train-00001-of-00002.parquet"):
        MNIST.read("train", tmp_path)
    path = write_mnist(tmp_path, "test", list(range(10)))
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"test-00000-of-00001.parquet: not a complete parquet file"):
            MNIST.read("test", tmp_path)
    parquet.write_table(pa.table({"img": [1], "label": [1]}), path)
    with pytest.raises(DataError, match="with columns 'image'"):
        MNIST.read("test", tmp_path)


def test_other_names_of_files_on_the_hub(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [3], "00000-of-00001-0123456789abcdef")
    assert MNIST.read("train", tmp_path).labels.tolist() == [3]
    write_mnist(tmp_path, "train", [3], "00000-of-00002")
    with pytest.raises(
        DataError, match=r"more than one sharding .*train-00000-of-00001-0123456789abcdef.parquet, train"
    ):
        MNIST.read("train", tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["0-of-3", "2-of-3"],
            "incomplete split 'train' of ylecun/mnist, missing train-00001-of-00003.parquet; put exactly",
        ),
        (["0-of-2", "0-of-2-0123456789abcdef"], "missing train-00001-of-00002.parquet, present twice or not numbered"),
        (
            ["0-of-2", "1-of-2", "1-of-2-0123456789abcdef"],
            "present twice .*: train-00001-of-00002-0123456789abcdef.parquet",
        ),
        (["0-of-1", "1-of-1"], "not numbered below 1: train-00001-of-00001.parquet"),
        (["0-of-1", "0-of-2", "1-of-2"], "files of more than one sharding of split 'train'.*put exactly the hub's"),
    ],
)
def test_the_files_of_a_split_are_numbered(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        number, _, count, *digest = name.split("-")
        write_mnist(tmp_path, "train", [1], "-".join([f"{number:0>5}-of-{count:0>5}", *digest]))
    with pytest.raises(DataError, match=message):
        MNIST.read("train", tmp_path)


def test_files_of_a_split_are_in_the_order_of_their_numbers_and_others_are_left_alone(tmp_path: Path) -> None:
    for number in (10, *range(10), 11):
        write_mnist(tmp_path, "train", [number % 10, number // 10], f"{number:05d}-of-00012-{13 - number:016x}")
    write_mnist(tmp_path, "train-extra", [7])
    assert MNIST.read("train", tmp_path).labels.tolist() == [digit for n in range(12) for digit in (n % 10, n // 10)]


def state_classes(path: Path, features: object) -> None:
    """Write the names of the classes into a file as `datasets` does."""
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (["crow", "tawny owl", "kite"], None),
        (["Crow", "tawny_owl", "red kite"], None),  # the task may say it in other words, such as a prompt wants
        (
            ["tawny owl", "crow", "kite"],
            r"another class for label 0, 'tawny owl' and not 'crow'.* \['tawny owl', 'crow', 'kite'\] in the ",
        ),
        (["crow", "kite", "tawny owl"], r"another class for label 1.* \['crow', 'tawny owl', 'kite'\] in the task"),
        (["rook", "crow", "kite"], "another class for label 0, 'rook' and not 'crow'"),
        (["crow", "tawny owl"], "2 and not 3 classes"),
        ([], None),
        ({"crow": 0}, None),
        (["crow", 1, None], None),
    ],
)
def test_names_of_classes_that_the_files_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stated: object, message: str | None
) -> None:
    path = write_mnist(tmp_path, "train", [0, 1, 2] * 4)
    state_classes(path, {"label": {"names": stated, "_type": "ClassLabel"}})
    task = replace(registry.load("task", "mnist").TASK, num_examples=12, classes=("crow", "tawny owl", "kite"))
    if message:
        with pytest.raises(DataError, match=f"train split of 'birds': its files name {message}"):
            split("birds", task, tmp_path)
    else:
        assert len(split("birds", task, tmp_path)[0].train) == 11
        assert ("red kite" in capsys.readouterr().err) == ("red kite" in str(stated))


def test_files_of_a_split_that_name_other_classes_than_each_other(tmp_path: Path) -> None:
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        path = write_mnist(tmp_path, "train", [0, 1], f"{number:05d}-of-00002")
        state_classes(path, {"label": {"names": names}})
    with pytest.raises(DataError, match=r"00001-of-00002.parquet: names the classes \['b', 'a'\], but other files"):
        MNIST.read("train", tmp_path)
    state_classes(path, [])
    assert MNIST.read("train", tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("label", ["one", None, [1], 2**63])
def test_labels_that_are_no_numbers(tmp_path: Path, label: object) -> None:
    path = write_mnist(tmp_path, "train", [1])
    type_ = pa.uint64() if isinstance(label, int) else None
    table = parquet.read_table(path).set_column(1, "label", pa.array([label], type_))
    parquet.write_table(table, path)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: .* 'label' \(numbers\)"):
        MNIST.read("train", tmp_path)


def test_a_broken_picture_is_named() -> None:
    good = png(np.zeros((28, 28), np.uint8))
    for bad in (b"no picture", good[:40], good[:20] + b"xxxx" + good[24:]):
        with pytest.raises(DataError, match="mnist, image 1: not an image"):
            to_pixels([good, bad], [0, 1], 28, "mnist")


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> list[object]:
    return np.asarray(decode(content, "birds, picture 3")).tolist()


def test_deep_grey_levels_are_scaled_by_the_range_of_their_format() -> None:
    levels = np.array([[0, 257, 65535], [128 * 257, 128, 129]], np.uint16)  # 65535 / 255 = 257
    expected = [[0, 1, 255], [128, 0, 1]]
    for suffix in ("PNG", "TIFF", "PPM", "JPEG2000"):
        assert decoded(encoded(Image.fromarray(levels), suffix)) == expected, suffix
    inverted = encoded(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})  # white is zero
    assert decoded(inverted) == [[255 - level for level in row] for row in expected]
    assert decoded(b"P2 3 1 1023 0 1023 341") == [[0, 255, 85]]  # 10 bits
    assert decoded(encoded(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)), "TIFF")) == [[0, 51, 255]]


def test_pixels_without_a_defined_range_are_refused() -> None:
    where = "birds, picture 3: "
    whole = encoded(Image.fromarray(np.array([[-5, 70_000]], np.int32)), "TIFF")
    with pytest.raises(DataError, match=where + r"32-bit integer pixels \(TIFF\) .* got -5 to 70000; .* 8 or 16 bits"):
        decode(whole, "birds, picture 3")
    for value in (1.5, -0.1, float("nan")):
        content = encoded(Image.fromarray(np.array([[0.5, value]], np.float32)), "TIFF")
        with pytest.raises(DataError, match=where + r"floating-point pixel values must be in \[0, 1\]"):
            decode(content, "birds, picture 3")


def test_pictures_are_taken_as_stored() -> None:
    """No rotation and no blending, as in `datasets` and torchvision."""
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    image = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    assert decoded(encoded(image, "PNG", exif=exif)) == colours.tolist()
    transparent = Image.fromarray(np.dstack([colours, np.zeros((2, 4), np.uint8)]))
    assert decoded(encoded(transparent, "PNG")) == colours.tolist()
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    assert decoded(encoded(palette, "PNG", transparency=0)) == np.asarray(palette.convert("RGB")).tolist()
    ink = image.convert("CMYK")
    assert decoded(encoded(ink, "TIFF")) == np.asarray(ink.convert("RGB")).tolist()
    grey = Image.fromarray(colours[:, :, 0])
    assert decoded(encoded(grey.convert("LA"), "PNG")) == np.repeat(colours[:, :, :1], 3, 2).tolist()
    assert (
        decoded(encoded(grey, "GIF", save_all=True, append_images=[grey.rotate(180)]))
        == np.repeat(colours[:, :, :1], 3, 2).tolist()
    )


def test_digits_have_fixed_sizes_and_splits_share_nothing() -> None:
    train, test = Digits().read("train", Path()), Digits().read("test", Path())
    assert (len(train.labels), len(test.labels)) == (1200, 597)
    pictures = np.concatenate([np.stack(train.columns[0]), np.stack(test.columns[0])])
    from sklearn.datasets import load_digits

    everything = load_digits()
    order = np.random.Generator(np.random.PCG64(1797)).permutation(1797)
    assert np.array_equal(pictures, np.round(everything.images * (255 / 16)).astype(np.uint8)[np.roll(order, -597)])
    assert np.array_equal([*train.labels, *test.labels], everything.target[np.roll(order, -597)])
    assert np.bincount(train.labels).min() > 100


# --- splits -----------------------------------------------------------------------------------------------------------


def test_validation_is_carved_by_the_rule() -> None:
    assert [len(carve(np.zeros(n)).validation) for n in (1000, 50_000, 60_000)] == [100, 5000, 5000]
    split = carve(np.zeros(1000))
    assert sorted([*split.train, *split.validation]) == list(range(1000))
    assert np.array_equal(carve(np.zeros(1000)).train, split.train)
    for size in (0, 1000):
        with pytest.raises(DataError, match=f"num_validation = {size}: must be in 1 to 999"):
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


def test_whole_groups_keep_the_shares_of_the_classes() -> None:
    """As in GTSRB: tracks of 30 frames, 5 to 40 tracks a class; every class is within one track of its share."""
    tracks = np.array([5, 5, 6, 7, 7, 8, 10, 14, 20, 26, 33, 40])
    labels = np.repeat(np.repeat(np.arange(12), tracks), 30)
    split = carve(labels, 540, "groups", groups=np.arange(len(labels)) // 30)
    held = np.bincount(labels[split.validation], minlength=12)
    assert held.sum() == 540
    assert held.min() >= 30
    assert np.abs(held - tracks * 30 * 540 / len(labels)).max() < 30


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


SCANS = {
    "kind": "pictures",
    "id": "me/scans",
    "num_examples": 40,
    "num_validation": 10,
    "classes": ["healthy", "ill"],
    "metrics": ["accuracy"],
    "split": "groups",
    "group": r"patient(\d+)_",
}
"""Ten patients, each with two scans of either class; the names of the files say whose they are."""


def scans(data_root: Path, names: list[str]) -> None:
    folder = data_root / "me/scans/data"
    folder.mkdir(parents=True)
    pictures = [{"bytes": png(np.zeros((8, 8, 3), np.uint8)), "path": name} for name in names]
    table = pa.table({"image": pictures, "label": [index // 2 % 2 for index in range(len(names))]})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")


def test_a_column_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    """It was looked up as a field of a struct, and the file was called incomplete."""
    folder = tmp_path / "me/notes/data"
    folder.mkdir(parents=True)
    table = pa.table({"text.body": [f"note {index}" for index in range(20)], "label": [0, 1] * 10})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    notes = {"kind": "texts", "id": "me/notes", "num_examples": 20, "inputs": ["text.body"], "metrics": ["accuracy"]}
    task = task_of(json.dumps({**notes, "classes": ["old", "new"]}))
    raw = task.source.read("train", tmp_path)
    assert raw.columns[0][:2] == ["note 0", "note 1"]


def test_images_of_several_classes_stay_together_if_their_names_say_so(tmp_path: Path) -> None:
    scans(tmp_path, [f"patient{index // 4:03d}_{index % 4}.png" for index in range(40)])
    parts, rule = split("scans", task_of(json.dumps(SCANS)), tmp_path)
    assert rule == "groups"
    assert (len(parts.train), len(parts.validation)) == (30, 8)
    assert not set(parts.train // 4) & set(parts.validation // 4)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("Patient003_0.png", r"patient(\d+)_"), ("", r"patient(\d+)_"), ("patient_0.png", r"patient(\d+)?_")],
)
def test_a_file_name_without_a_group_is_an_error_of_a_definition(tmp_path: Path, name: str, pattern: str) -> None:
    names = [f"patient{index // 4:03d}_{index % 4}.png" for index in range(40)]
    scans(tmp_path, [*names[:12], name, *names[13:30], "another", *names[31:]])
    with pytest.raises(DataError) as caught:
        split("scans", task_of(json.dumps(SCANS | {"group": pattern})), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"me/scans: the file name {name!r} (example 12 of split 'train') has no text for")
    assert repr(pattern) in message


def test_jobs_of_a_definition_with_groups_rerun_after_the_split_changed() -> None:
    """Version 1 split the images of a group by class, version 2 ignored the shares of the classes.

    Definitions without groups have the jobs that they had.
    """
    assert task_of(json.dumps(SCANS)).version == 3
    assert task_of(json.dumps(SCANS | {"split": "stratified", "group": ""})).version == 1
    assert registry.load("task", "gtsrb").TASK.version == 2


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
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: missing, or changed .*stage: download"):
        check(recorded, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="missing, or changed"):
        check(recorded, tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mnist(tmp_path, "train", [1, 2])
    recorded = manifest([path], tmp_path)

    def refuse(_: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sources, "sha256", refuse)
    for read in (lambda: manifest([path], tmp_path), lambda: check(recorded, tmp_path)):
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: cannot be read \(Permission denied\)"):
            read()


def test_what_is_reused_is_said_and_other_files_in_its_place_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training = {"clip_tiny": {"steps": 10, "batch_size": 16, "learning_rate": 1e-3}}
    grid = [{"backbone": "clip_tiny", "tasks": ["mnist", "digits"], "variants": ["dense"], "seeds": [0]}]
    values = {"study": "s", "training": training, "variants": {"dense": {"method": "dense"}}, "grid": grid}
    study = parse_study({**values, "data_root": "data"}, "here")
    moved = parse_study({**values, "data_root": "elsewhere"}, "here")

    def said(study: Study = study) -> str:
        return check_reused(study)

    assert said() == ""  # nothing was made yet
    paths = [write_mnist(Path("data"), split, [1, 2]) for split in ("train", "test")]
    record = Path("resources/manifests/task/mnist.json")
    write_json(record, {"files": manifest(paths, Path("data"))})
    write_json(record.with_name("digits.json"), {"files": []})
    assert said() == "reused as prepared before: mnist (2 files, unchanged, in data)"
    with monkeypatch.context() as patched:
        patched.setattr(reuse, "sha256", lambda path: pytest.fail(f"{path} was read"))
        assert "unchanged" in said()
        assert said(moved) == "reused as prepared before: mnist (2 of its files are missing in elsewhere)"
    shutil.copytree("data", "elsewhere")
    assert "unchanged, in elsewhere" in said(moved)
    write_mnist(Path("elsewhere"), "test", [1, 3])
    with pytest.raises(DataError, match=r"elsewhere/.*test-00000-of-00001.parquet: is another file than task 'mnist'"):
        said(moved)
    content, status = paths[0].read_bytes(), paths[0].stat()
    paths[0].write_bytes(content[:-9] + bytes(byte ^ 1 for byte in content[-9:-8]) + content[-8:])
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times
    with pytest.raises(
        DataError, match=r"point data_root to the old files; .* delete resources/manifests/task/mnist.js"
    ):
        said()
    with monkeypatch.context() as patched:
        patched.setattr(reuse, "sha256", Mock(side_effect=PermissionError(13, "Permission denied")))
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: cannot be read \(Permission denied\)"):
            said()
    paths[0].write_bytes(content)
    assert "unchanged" in said()
    paths[0].rename(paths[0].with_name("train-00000-of-00002.parquet"))
    with pytest.raises(
        DataError, match=r"train-00000-of-00001.parquet: is gone, and train-00000-of-00002.parquet is an"
    ):
        said()
    for damaged in ("[]", "{", '{"files": [1]}'):
        record.write_text(damaged)
        assert said() == ""


# --- images -----------------------------------------------------------------------------------------------------------


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
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(first, random_crop(picture, 28))
    finally:
        torch.set_default_dtype(torch.float32)
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
