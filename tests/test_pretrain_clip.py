"""The small CLIP that `benchmarks/pretrain_clip.py` pre-trains: captions, loss, augmentation, files, resuming."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from pyarrow import parquet

from isp import artifacts, checkpoints, files
from isp.backbones import _open_clip as clip
from isp.errors import DataError, IspError
from isp.runtime import instructions
from isp.stages.convert import convert
from isp.stages.download import download
from isp.training import Training
from tests.support.data import png

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "pretrain_clip.py"
SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"layers": 1, "width": 8, "heads": 1, "context_length": 16, "vocab_size": clip.VOCABULARY_SIZE},
}
SHORT = Training(steps=5, batch_size=8, learning_rate=1e-3, warmup_steps=2, weight_decay=0.1)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with a model that is smaller still."""
    spec = importlib.util.spec_from_file_location("pretrain_clip", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pretrain_clip", module)  # where its dataclass looks
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BACKBONE", clip.ClipBackbone(architecture=SMALL))
    monkeypatch.setattr(module, "commit", lambda: {"commit": "", "modified": False})  # asks git, in a process
    return module


def write_cifar100(root: Path, num: int = 24, coarse: int = 19) -> Path:
    """Noise in the layout of CIFAR-100, as many test images as training images, coarse labels up to a number."""
    random = np.random.Generator(np.random.PCG64(0))
    folder = root / "uoft-cs" / "cifar100" / "cifar100"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        images = [{"bytes": png(random.integers(0, 256, (32, 32, 3), np.uint8)), "path": None} for _ in range(num)]
        labels = {
            "fine_label": [(7 * i) % 100 for i in range(num)],
            "coarse_label": [coarse - i % 20 for i in range(num)],
        }
        parquet.write_table(pa.table({"img": images, **labels}), folder / f"{split}-00000-of-00001.parquet")
    return root


def test_the_files_are_those_of_open_clip_and_of_a_study(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open_clip loads the folder without isp, and a backbone defined by the id is found in it, without a hub."""
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    root = write_cifar100(tmp_path / "data")
    folder = script.pretrain(root, SHORT)
    assert folder == root / "isp" / "clip-cifar100"
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", clip.CONFIG, clip.WEIGHTS]
    about = json.loads((folder / "about.json").read_text())
    assert about["sha256"] == files.sha256(folder / clip.WEIGHTS)
    assert about["pretraining"]["steps"] == 5
    assert [entry["file"].split("/")[-1][:5] for entry in about["data"]] == ["train", "test-"]
    assert 0 <= about["zero_shot_accuracy"]["cifar100 test"] <= 100

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert isinstance(model.visual.patch_dropout, torch.nn.Identity)
    definition = "{family: clip, id: isp/clip-cifar100}"
    download(root, tmp_path / "manifest.json", backbone=definition)
    convert(definition, root, tmp_path / "manifest.json", tmp_path / "backbone.safetensors")
    read, _ = artifacts.load_backbone(tmp_path / "backbone.safetensors")
    theirs = model.state_dict()
    assert read.architecture == script.BACKBONE.described()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in read.weights.items())
    before = clip.build(script.BACKBONE.described(), script.SEED).state_dict()
    same = {name for name, tensor in theirs.items() if torch.equal(tensor, before[name])}
    assert "token_embedding.weight" in same
    assert not same & {"visual.conv1.weight", "visual.proj", "text_projection", "logit_scale"}

    with pytest.raises(IspError, match=r"about\.json: the backbone already exists"):
        script.pretrain(root, SHORT)


def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut by an error, as a kill would, two steps after its last checkpoint."""
    whole = script.pretrain(write_cifar100(tmp_path / "whole"), SHORT)
    root, original = write_cifar100(tmp_path / "cut"), script.captioned_loss
    calls = 0

    def failing(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # the first call counts FLOPs, so step 3
            raise KeyboardInterrupt
        return original(model, batch)

    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(script, "captioned_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        script.pretrain(root, SHORT)
    checkpoint = checkpoints.beside(root / script.ID / clip.WEIGHTS)
    assert [path.name for path in (root / script.ID).iterdir()] == [checkpoint.name]
    monkeypatch.setattr(script, "captioned_loss", original)
    again = script.pretrain(root, SHORT)
    assert "resuming from step 3 of a run to step 5" in capsys.readouterr().err
    assert (again / clip.WEIGHTS).read_bytes() == (whole / clip.WEIGHTS).read_bytes()
    assert not checkpoint.exists()


def test_the_loss_is_the_mean_of_clips_among_the_fine_and_among_the_coarse_captions(script: ModuleType) -> None:
    """Held against sums over images and captions; three images, two of one fine and all of one coarse class."""
    torch.manual_seed(0)
    fine, coarse, features = [4, 4, 99], [3, 3, 3], F.normalize(torch.randn(3, 5), dim=1)
    texts = F.normalize(torch.randn(120, 5), dim=1)

    class Fake(torch.nn.Module):
        logit_scale = torch.tensor(2.0).log()

        def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
            return features

        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            return texts

    expected = []
    for labels, captions in ((fine, texts[:100]), (coarse, texts[100:])):
        likely = torch.stack([(2 * captions @ feature).exp() for feature in features])  # (images, captions)
        to_texts = -torch.stack([(row[label] / row.sum()).log() for row, label in zip(likely, labels, strict=True)])
        of_captions = []
        for caption in sorted(set(labels)):
            column = likely[:, caption] / likely[:, caption].sum()
            of_captions.append(-torch.stack([column[i].log() for i in range(3) if labels[i] == caption]).mean())
        expected.append((to_texts.mean() + torch.stack(of_captions).mean()) / 2)
    batch = (torch.empty(3), torch.tensor([fine, coarse]).T, torch.empty(120))
    torch.testing.assert_close(script.captioned_loss(Fake(), batch), torch.stack(expected).mean())


def test_an_image_is_shifted_by_up_to_four_pixels_and_mirrored(script: ModuleType) -> None:
    torch.manual_seed(0)
    image = torch.arange(1, 193, dtype=torch.uint8).view(3, 8, 8)
    padded = F.pad(image, (4,) * 4)
    shifts = [(y, x, mirrored) for y in range(9) for x in range(9) for mirrored in (False, True)]
    allowed = {}
    for y, x, mirrored in shifts:
        shifted = padded[:, y : y + 8, x : x + 8]
        allowed[(shifted.flip(2) if mirrored else shifted).numpy().tobytes()] = y, x, mirrored
    assert len(allowed) == 162
    images = script.shifted_and_flipped(image.expand(4000, -1, -1, -1))
    assert images.dtype == torch.uint8
    seen = [allowed[each.contiguous().numpy().tobytes()] for each in images]  # a KeyError: none of these
    assert set(seen) == set(shifts)
    assert 1800 < sum(mirrored for _, _, mirrored in seen) < 2200


def test_captions_are_names_in_prompts(script: ModuleType, tmp_path: Path) -> None:
    """What is longer than 16 tokens loses its full stop, and one name its last syllables; no two become the same."""
    photographs = script.read(write_cifar100(tmp_path))
    templates, [stop] = script.TASK.templates, clip.tokenize(["."], 3)[0, 1:2].tolist()
    assert photographs.tokens.shape == (len(templates), 120, 16)
    shortened = set()
    for template, tokens in zip(templates, photographs.tokens, strict=True):
        whole = clip.tokenize([template.replace("{}", name) for name in script.NAMES], 40)
        ends, whole_ends = tokens.argmax(dim=1), whole.argmax(dim=1)  # the largest number marks the end
        for name, cut, full, end, whole_end in zip(script.NAMES, tokens, whole, ends, whole_ends, strict=True):
            assert torch.equal(cut[:end], full[:end])
            if full[end:whole_end].tolist() not in ([], [stop]):
                shortened.add(name)
        assert len(tokens.unique(dim=0)) == 120
    assert shortened == {"large omnivores and herbivores"}
    torch.manual_seed(0)
    images, labels, tokens = photographs.batch(torch.tensor([3, 0, 3]))
    assert images.shape == (3, 3, 32, 32)
    assert torch.equal(labels, torch.tensor([[21, 16], [0, 19], [21, 16]]))
    assert tokens.shape == (120, 16)
    assert len({int((photographs.tokens[:, i] == tokens[i]).all(1).nonzero()[0]) for i in range(120)}) > 9


def test_data_of_another_set_are_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels must be 0 to 19, got \[1, 2"):
        script.pretrain(write_cifar100(tmp_path, coarse=20), SHORT)
    assert not (tmp_path / "isp").exists()


@pytest.mark.process
def test_the_command_trains_with_kernels_of_avx2(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in instructions.VARIABLES}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1])

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(tmp_path), "--steps", "2"]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)

    missing = run()
    assert missing.returncode == 1
    assert missing.stderr.startswith("pretrain_clip: ")
    assert "missing split 'train' of uoft-cs/cifar100" in missing.stderr
    write_cifar100(tmp_path, num=130)
    done = run()
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "isp" / "clip-cifar100" / "about.json").read_text())
    assert about["instruction_set"] == instructions.default()
    assert done.stdout.startswith(f"wrote {tmp_path}/isp/clip-cifar100: ")
