"""Pre-train a small CLIP on the 50,000 photographs of CIFAR-100, the backbone of the studies in config/protocol_clip/.

    python benchmarks/pretrain_clip.py FOLDER

FOLDER contains uoft-cs/cifar100/… in the hub's layout. The output is written to isp/clip-cifar100/ in it: open_clip's
two files, and about.json, which describes how they were made. Every image has two captions, the names of its fine and
of its coarse class in a prompt. Half of an image's patches are dropped in every step, as in FLIP (Li et al. 2023),
which halves the cost; the written model sees all of them. One thread and AVX2 kernels give the same bits on the
machines listed in docs/explanation/reproducibility.md. A stopped or killed run resumes from its checkpoint, with the
same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isp.runtime import instructions

if __name__ == "__main__" and instructions.is_supported():
    os.environ |= instructions.VARIABLES  # before the imports below, each library reads them once

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors

from isp import artifacts, checkpoints, files
from isp.backbones import _open_clip as clip
from isp.data.images import normalise, to_pixels
from isp.data.sources import HubDataset, Raw, check_classes, manifest
from isp.errors import DataError, IspError
from isp.evaluation import evaluate
from isp.stages.describe import commit
from isp.tasks.cifar100 import TASK
from isp.training import VERSION as TRAINING_VERSION
from isp.training import Training, make_trainer, state_of

if TYPE_CHECKING:
    from torch import Tensor, nn

ID = "isp/clip-cifar100"
SEED = 0
BACKBONE = clip.ClipBackbone(
    architecture={
        "embed_dim": 128,
        "vision_cfg": {"layers": 4, "width": 96, "head_width": 32, "patch_size": 4, "image_size": 32},
        "text_cfg": {"layers": 2, "width": 64, "heads": 2, "context_length": 16, "vocab_size": clip.VOCABULARY_SIZE},
    }
)
PATCH_DROPOUT = 0.5
PRETRAINING = Training(steps=4000, batch_size=128, learning_rate=1.5e-3, warmup_steps=300, weight_decay=0.1)

COARSE = (
    "aquatic mammals",
    "fish",
    "flowers",
    "food containers",
    "fruit and vegetables",
    "household electrical devices",
    "household furniture",
    "insects",
    "large carnivores",
    "large man-made outdoor things",
    "large natural outdoor scenes",
    "large omnivores and herbivores",
    "medium mammals",
    "non-insect invertebrates",
    "people",
    "reptiles",
    "small mammals",
    "trees",
    "vehicles 1",
    "vehicles 2",
)
NAMES = (*TASK.classes, *COARSE)


@dataclass(frozen=True)
class CaptionedPhotographs:
    """Images, each with a fine and a coarse caption, augmented in batches.

    Attributes:
        pixels: uint8 (n, 3, side, side).
        labels: int64 (n, 2), the fine and the coarse class.
        tokens: int64 (templates, captions, context length); captions are those of the fine classes, then the coarse.
        mean: Means of the preprocessing.
        std: Standard deviations of the preprocessing.
    """

    pixels: Tensor
    labels: Tensor
    tokens: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, fp32 (b, 3, side, side), labels (b, 2), and all captions, each with a random template."""
        templates, captions, _ = self.tokens.shape
        tokens = self.tokens[torch.randint(templates, (captions,)), torch.arange(captions)]
        images = shifted_and_flipped(self.pixels[indices]).float().div_(255)
        return normalise(images, self.mean, self.std), self.labels[indices], tokens


def shifted_and_flipped(pixels: Tensor, padding: int = 4) -> Tensor:
    """Shift images, (n, channels, side, side), by up to `padding` pixels in each direction, and mirror half of them.

    Pixels from outside the image are black.
    """
    num, side = len(pixels), pixels.shape[-1]
    padded = F.pad(pixels, (padding,) * 4)
    rows, columns = (torch.randint(2 * padding + 1, (num, 1)) + torch.arange(side) for _ in range(2))
    columns = torch.where(torch.rand(num, 1) < 0.5, columns, columns.flip(1))
    images = torch.arange(num)[:, None, None]
    return padded.movedim(1, -1)[images, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def captioned_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the mean of CLIP's symmetric losses among the fine and among the coarse captions.

    They are separate, because the coarse caption of an image is not a negative of its fine one.
    """
    images, labels, tokens = batch
    features = model.encode_image(images, normalize=True)  # type: ignore[operator]
    texts = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    logits = model.logit_scale.exp() * features @ texts.T  # type: ignore[operator]
    parts = logits.split([len(TASK.classes), len(COARSE)], dim=1)
    losses = [clip.symmetric_loss(part, label) for part, label in zip(parts, labels.T, strict=True)]
    return torch.stack(losses).mean()


def read(data_root: Path) -> CaptionedPhotographs:
    """Read the training images and all captions.

    Raises:
        DataError: The dataset does not exist, or is not CIFAR-100.
    """
    source = TASK.source
    assert isinstance(source, HubDataset)
    fine = source.read("train", data_root)
    coarse = replace(source, label="coarse_label").labels(data_root)
    for names, raw in ((TASK.classes, fine), (COARSE, coarse)):
        _check(names, raw, f"{source.id} in {data_root}")
    architecture = BACKBONE.described()
    length = architecture["model"]["text_cfg"]["context_length"]
    prompts = [[template.replace("{}", name) for name in NAMES] for template in TASK.templates]
    return CaptionedPhotographs(
        pixels=to_pixels(fine.columns[0], np.arange(len(fine)), clip.image_size(architecture), source.id),
        labels=torch.from_numpy(np.stack([fine.labels, coarse.labels], axis=1)),
        tokens=torch.stack([clip.tokenize(texts, length) for texts in prompts]),
        mean=BACKBONE.mean,
        std=BACKBONE.std,
    )


def _check(names: tuple[str, ...], raw: Raw, where: str) -> None:
    if not len(raw) or not 0 <= raw.labels.min() <= raw.labels.max() < len(names):
        raise DataError(f"{where}: labels must be 0 to {len(names) - 1}, got {sorted(set(raw.labels.tolist()))[:9]}")
    check_classes(where, names, raw.classes)


def train(
    photographs: CaptionedPhotographs,
    training: Training,
    checkpoint: checkpoints.FileCheckpoint | None = None,
    progress: Callable[[int, float], None] = lambda steps, loss: None,
) -> dict[str, Tensor]:
    """Train both towers from random weights.

    The token embeddings stay random, as in `clip_tiny`: 49,408 rows are too many for 120 captions to teach.

    Args:
        photographs: Training data.
        training: Training protocol.
        checkpoint: Checkpoint from which an interrupted run resumes.
        progress: Called after every step with 1 (with more for steps that a checkpoint saved) and the last loss.
    """
    architecture = BACKBONE.described()
    model = clip.build(with_patch_dropout(architecture), SEED)
    model.token_embedding.weight.requires_grad_(False)
    last = torch.tensor(torch.nan)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal last
        found = captioned_loss(model, batch)
        last = found.detach()
        return found

    trainer = make_trainer(model, photographs, loss, training, [], SEED, lambda steps: progress(steps, last.item()))
    state, _ = replace(trainer, checkpoint=checkpoint).run(state_of(model), training.steps)
    return state.weights


def with_patch_dropout(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same architecture, with the same parameters, that drops patches in training."""
    model = architecture["model"]
    return {**architecture, "model": {**model, "vision_cfg": {**model["vision_cfg"], "patch_dropout": PATCH_DROPOUT}}}


def zero_shot(weights: Mapping[str, Tensor], data_root: Path) -> float:
    """Return the accuracy on the test images among the fine classes in percent, averaging the task's 18 templates."""
    architecture = BACKBONE.described()
    model = clip.build(architecture, SEED)
    model.load_state_dict(weights)
    raw = TASK.source.read("test", data_root)
    pixels = to_pixels(raw.columns[0], np.arange(len(raw)), clip.image_size(architecture), "test")
    tensors = {"pixels": pixels, "labels": torch.from_numpy(raw.labels)}
    examples = BACKBONE.examples(tensors, architecture, "none")
    return evaluate(clip.classifier(model, TASK.classes, TASK.templates), examples, ["accuracy"])["accuracy"]


def pretrain(data_root: Path, training: Training = PRETRAINING) -> Path:
    """Write the files of the backbone, unless they exist, and return their folder.

    Raises:
        IspError: The data cannot be read, or the files cannot be written.
    """
    folder = data_root / ID
    about = folder / "about.json"
    if about.exists():
        raise IspError(f"{about}: the backbone already exists; delete the folder to train it again")
    torch.set_num_threads(1)
    code = commit()
    photographs = read(data_root)
    sources = manifest(TASK.source.fetch(data_root).paths, data_root)
    described = {
        **{"architecture": BACKBONE.described(), "patch_dropout": PATCH_DROPOUT, "seed": SEED, "data": sources},
        **{"pretraining": training.model_dump(mode="json"), "training_version": TRAINING_VERSION},
        **{"instruction_set": instructions.in_force(), "packages": artifacts.versions()},
    }
    path = checkpoints.beside(folder / clip.WEIGHTS)
    files.ready(path)
    checkpoint = checkpoints.FileCheckpoint(path, described, checkpoints.period(), time.process_time)
    done = 0

    def progress(steps: int, loss: float) -> None:
        nonlocal done
        done += steps
        if done % 100 == 0 or steps > 1:
            seconds = checkpoint.earlier + time.process_time()
            print(f"step {done} of {training.steps}, loss {loss:.3f}, {seconds:.0f} CPU seconds", flush=True)

    with checkpoint.stopping():
        weights = train(photographs, training, checkpoint, progress)
    seconds = round(checkpoint.earlier + time.process_time())
    content = to_safetensors({name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"})
    for name, data in (
        (clip.WEIGHTS, content),
        (clip.CONFIG, json.dumps(clip.config_of(BACKBONE.described())).encode()),
    ):
        with files.writing(folder / name) as file:
            file.write(data)
    described |= {"cpu_seconds": seconds, **code, "sha256": files.sha256(folder / clip.WEIGHTS)}
    files.write_json(about, described | {"zero_shot_accuracy": {"cifar100 test": zero_shot(weights, data_root)}})
    checkpoint.remove()
    return folder


def main() -> None:
    """Pre-train the backbone, and print the location of its files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with uoft-cs/cifar100/…; isp/clip-cifar100/ is written to it")
    parser.add_argument("--steps", type=int, default=PRETRAINING.steps, help="default: %(default)s")
    options = parser.parse_args()
    warmup = min(PRETRAINING.warmup_steps, options.steps // 10)
    try:
        training = PRETRAINING.model_copy(update={"steps": options.steps, "warmup_steps": warmup})
        folder = pretrain(options.folder, training)
    except IspError as error:
        sys.exit(f"pretrain_clip: {error}")
    print(f"wrote {folder}: {(folder / 'about.json').read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()
