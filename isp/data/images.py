"""Pictures: prepared once to uint8 tensors of the backbone's size, kept on the device, augmented there in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isp.data.sources import RawImages, decode

Augmentation = Literal["none", "crop"]


def to_pixels(raw: RawImages, chosen: Sequence[int] | np.ndarray, size: int, where: str) -> Tensor:
    """Decode, resize the shorter side to `size` (bicubic) and cut out the centre: CLIP's evaluation preprocessing.

    Returns:
        uint8, shape (n, channels, size, size); one channel if all pictures are grey, else three.
    """
    from PIL import Image

    arrays = []
    for index in chosen:
        image = Image.fromarray(decode(raw.pictures[index], f"{where}, picture {index}"))
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        arrays.append(np.asarray(image.crop((left, top, left + size, top + size))))
    grey = all(array.ndim == 2 for array in arrays)
    stacked = [array[None] if grey else np.broadcast_to(_rgb(array), (3, size, size)) for array in arrays]
    return torch.from_numpy(np.stack(stacked))


def _rgb(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled pictures on a device.

    Attributes:
        pixels: uint8, (n, 1 or 3, size, size); grey pictures are given three equal channels in the batch.
        labels: int64, (n,).
        mean, std: of the backbone's preprocessing, in [0, 1], one a channel.
        augmentation: "crop": random resized crop, area 0.9 to 1.0, sides 3:4 to 4:3, bicubic, as in the authors' code
            (theirs crops the original picture, this one the prepared tensor); "none" for evaluation.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = "none"

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures, fp32 (b, 3, size, size), and labels, int64 (b,)."""
        indices = indices.to(self.pixels.device)
        pictures = self.pixels[indices].float().div_(255)
        if self.augmentation == "crop":
            pictures = random_crop(pictures)
        return normalise(pictures, self.mean, self.std), self.labels[indices]


def normalise(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std a channel; grey pictures become three-channel ones."""
    shift, scale = (pictures.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    return (pictures.expand(-1, 3, -1, -1) - shift) / scale


def random_crop(pictures: Tensor) -> Tensor:
    """Random resized crop of every picture: area 0.9 to 1.0, log-uniform aspect 3:4 to 4:3, resampled bicubically.

    Draws from torch's generator of the pictures' device. Crops that would leave the picture are cut to its sides.
    """
    num, device = len(pictures), pictures.device
    area = torch.empty(num, device=device).uniform_(0.9, 1.0)
    aspect = torch.empty(num, device=device).uniform_(-1.0, 1.0).mul_(float(np.log(4 / 3))).exp_()
    width, height = (area * aspect).sqrt().clamp_(max=1), (area / aspect).sqrt().clamp_(max=1)
    centre_x, centre_y = (
        torch.empty(num, device=device).uniform_(-1.0, 1.0) * (1 - extent) for extent in (width, height)
    )
    zeros = torch.zeros_like(width)
    affine = torch.stack([width, zeros, centre_x, zeros, height, centre_y], dim=1).view(num, 2, 3)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    cropped = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return cropped.clamp_(0, 1)
