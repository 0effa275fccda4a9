"""MNIST as batches of 224-pixel images: prepared tensors, compared with Pillow transforms in a DataLoader.

    python benchmarks/preparation.py --data-root FOLDER [--pictures 6000] [--batch-size 128] [--workers 2] [--threads 2]

The DataLoader decodes, crops, resizes and normalises every image in every epoch, in worker processes. Our way decodes
once (`isp prepare`), keeps uint8 tensors, and crops, enlarges and normalises whole batches on the model's device. Both
give the same kind of batch, fp32 (batch, 3, 224, 224), with the same augmentation (random resized crop, area 0.9 to
1.0, bicubic). Without FOLDER, random images of that size are used.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from isp.backbones.clip_vit_b32 import BACKBONE
from isp.data.images import Images, to_pixels
from isp.tasks.mnist import TASK

SIZE = 224


class UsualWay(Dataset[tuple[torch.Tensor, int]]):
    """Encoded images, decoded and transformed one by one."""

    def __init__(self, pictures: list[bytes], labels: np.ndarray) -> None:
        self.pictures, self.labels = pictures, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    SIZE, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.ToTensor(),
                transforms.Normalize(BACKBONE.mean, BACKBONE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.open(io.BytesIO(self.pictures[index])).convert("RGB")
        return self.transform(picture), int(self.labels[index])


def made_up(num: int) -> tuple[list[bytes], np.ndarray]:
    """Return random grey images as PNG."""
    random = np.random.Generator(np.random.PCG64(0))
    pictures = []
    for picture in random.integers(0, 256, (num, 28, 28), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        pictures.append(file.getvalue())
    return pictures, np.arange(num) % 10


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Return the seconds and the result of some work."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def main() -> None:
    """Run both ways, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.data_root:
        raw = TASK.source.read("train", arguments.data_root)
        pictures, labels = list(raw.columns[0])[: arguments.pictures], raw.labels[: arguments.pictures]
    else:
        pictures, labels = made_up(arguments.pictures)
    num = len(labels)

    loader = DataLoader(
        UsualWay(pictures, labels), arguments.batch_size, shuffle=True, num_workers=arguments.workers, drop_last=True
    )
    theirs, seen = timed(lambda: sum(len(batch) for batch, _ in loader))

    once, _ = timed(lambda: len(pixels := to_pixels(pictures, np.arange(num), SIZE, "mnist")) or pixels.numel())
    images = Images(
        pixels=to_pixels(pictures, np.arange(num), SIZE, "mnist"),
        labels=torch.from_numpy(labels),
        size=SIZE,
        mean=BACKBONE.mean,
        std=BACKBONE.std,
        augmentation="crop",
    )
    order = torch.randperm(num).split(arguments.batch_size)[: seen // arguments.batch_size]
    ours, again = timed(lambda: sum(len(images.batch(indices)[0]) for indices in order))
    assert again == seen
    print(f"an epoch of {seen} images at {SIZE} px, fp32 batches of {arguments.batch_size}:")
    print(f"  DataLoader, {arguments.workers} workers: {theirs:.2f} s, {seen / theirs:,.0f} images per second")
    print(f"  prepared tensors, {arguments.threads} threads: {ours:.2f} s, {seen / ours:,.0f} images per second")
    print(f"  ratio: {theirs / ours:.1f} times faster; preparing took {once:.2f} s, once")
    kept = images.pixels.nbytes / 2**20
    print(f"  kept: {kept:.1f} MB of uint8 for {num} images ({num * 3 * SIZE**2 / 2**20:,.0f} MB at full size)")


if __name__ == "__main__":
    main()
