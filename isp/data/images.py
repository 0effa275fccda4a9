"""Pictures: prepared once to uint8 tensors, kept on the device, resized and augmented there in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from isp.data.sources import Column, decode, opened
from isp.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

Augmentation = Literal["none", "crop"]


def to_pixels(pictures: Column, chosen: Sequence[int] | np.ndarray, size: int, where: str) -> Tensor:
    """Decode pictures, bring them to one size, and keep them as bytes.

    Small square pictures of one size, such as MNIST's, stay as they are and are enlarged in batches (`resized`): at 224
    pixels they would take up to 64 times the space. Of others the shorter side is resized to `size` (bicubic) and the
    centre is cut out, which is CLIP's evaluation preprocessing.

    Returns:
        uint8, shape (n, channels, side, side) with side <= size; one channel if all pictures are grey, else three.
    """
    first = decode(pictures[chosen[0]], f"{where}, picture {chosen[0]}") if len(chosen) else np.zeros((1, 1))
    small = first.shape[0] == first.shape[1] <= size and all(
        _shape(pictures[index], f"{where}, picture {index}") == first.shape[:2] for index in chosen
    )
    side = first.shape[0] if small else size
    pixels = torch.empty(len(chosen), 3, side, side, dtype=torch.uint8)
    grey = True
    for row, index in zip(pixels, chosen, strict=True):
        array = decode(pictures[index], f"{where}, picture {index}")
        array = array if small else _fitted(array, size)
        grey = grey and array.ndim == 2
        row.copy_(torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)))
    return pixels[:, :1].contiguous() if grey else pixels


def _shape(picture: bytes | np.ndarray, where: str) -> tuple[int, int]:
    """Height and width, of encoded pictures without decoding them."""
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    with opened(picture, where) as image:
        return image.height, image.width


def _fitted(array: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(array)
    width, height = (size * side // min(image.size) for side in image.size)  # rounded as in torchvision
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(image.crop((left, top, left + size, top + size)))


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled pictures on a device.

    Attributes:
        pixels: uint8, (n, 1 or 3, side, side); grey pictures are given three equal channels in the batch.
        labels: int64, (n,).
        size: side of the pictures of a batch.
        mean, std: of the backbone's preprocessing, in [0, 1], one a channel.
        augmentation: "crop": random resized crop, area 0.9 to 1.0, sides 3:4 to 4:3, bicubic, as in the authors' code
            (theirs crops the original picture, this one the prepared tensor, which for small pictures is the original);
            "none" for evaluation.
    """

    pixels: Tensor
    labels: Tensor
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = "none"

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures, fp32 (b, 3, size, size), and labels, int64 (b,)."""
        indices = indices.to(self.pixels.device)
        pictures = self.pixels[indices].float().div_(255)
        pictures = random_crop(pictures, self.size) if self.augmentation == "crop" else resized(pictures, self.size)
        return normalise(pictures, self.mean, self.std), self.labels[indices]


def normalise(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std a channel; grey pictures become three-channel ones."""
    shift, scale = (pictures.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    return (pictures.expand(-1, 3, -1, -1) - shift).div_(scale)


def resized(pictures: Tensor, size: int) -> Tensor:
    """Square pictures, (n, channels, side, side) in [0, 1], at another size.

    Bicubic as Pillow's, which rounds and clips between its two passes.
    """
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp_(0, 1)


def random_crop(pictures: Tensor, size: int) -> Tensor:
    """Random resized crop of every picture: area 0.9 to 1.0, log-uniform aspect 3:4 to 4:3, resampled bicubically.

    Returns:
        (n, channels, size, size), in [0, 1].

    Draws from torch's generator of the pictures' device. Crops that would leave the picture are cut to its sides.
    """
    num, device = len(pictures), pictures.device
    area = torch.empty(num, device=device).uniform_(0.9, 1.0)
    aspect = torch.empty(num, device=device).uniform_(-1.0, 1.0).mul_(float(np.log(4 / 3))).exp_()
    width, height = (area * aspect).sqrt().clamp_(max=1), (area / aspect).sqrt().clamp_(max=1)
    centre_x, centre_y = (
        torch.empty(num, device=device).uniform_(-1.0, 1.0) * (1 - extent) for extent in (width, height)
    )
    across = _bicubic_weights(centre_x, width, pictures.shape[-1], size)
    down = _bicubic_weights(centre_y, height, pictures.shape[-2], size)
    return (down[:, None] @ pictures @ across[:, None].mT).clamp_(0, 1)


def _bicubic_weights(centre: Tensor, extent: Tensor, side: int, size: int) -> Tensor:
    """Weights (n, size, side) by which `size` points spread evenly over a part of a picture's side are interpolated.

    The same as `grid_sample`'s (a = -0.75, the border repeated outside), which cannot know that a crop's rows and
    columns can be resampled one after the other.

    Args:
        centre: of the part, (n,), in the coordinates of `affine_grid`: the side runs from -1 to 1.
        extent: of the part, (n,), as a share of the side.
        side: pixels of the picture.
        size: pixels of the crop.
    """
    points = (2 * torch.arange(size, device=centre.device, dtype=centre.dtype) + 1) / size - 1
    points = ((centre[:, None] + extent[:, None] * points + 1) * side - 1) / 2
    margin = 2  # what four taps can reach outside
    pixels = torch.arange(-margin, side + margin, device=centre.device, dtype=centre.dtype)
    distance = (points[:, :, None] - pixels).abs_()
    near = (1.25 * distance - 2.25) * distance * distance + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    inside = weights[:, :, margin:-margin]
    inside[:, :, 0] += weights[:, :, :margin].sum(2)
    inside[:, :, -1] += weights[:, :, -margin:].sum(2)
    return inside
