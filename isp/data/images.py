"""Images, stored once as uint8 tensors on the device, where they are resized and augmented in batches."""

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


def to_pixels(images: Column, chosen: Sequence[int] | np.ndarray, size: int, where: str) -> Tensor:
    """Decode images to bytes of one size.

    Small square images of one size, such as MNIST's, are stored as they are and enlarged in batches (`resized`),
    because at 224 pixels they would take up to 64 times the space. For others the shorter side is resized to `size`
    (bicubic) and the centre is cropped, as in CLIP's evaluation preprocessing.

    Returns:
        uint8, shape (n, channels, side, side) with side <= size; one channel if all images are grey, otherwise three.
    """
    first = decode(images[chosen[0]], f"{where}, image {chosen[0]}") if len(chosen) else np.zeros((1, 1))
    small = first.shape[0] == first.shape[1] <= size and all(
        _shape(images[index], f"{where}, image {index}") == first.shape[:2] for index in chosen
    )
    side = first.shape[0] if small else size
    pixels = torch.empty(len(chosen), 3, side, side, dtype=torch.uint8)
    grey = True
    for row, index in zip(pixels, chosen, strict=True):
        array = decode(images[index], f"{where}, image {index}")
        array = array if small else _fitted(array, size)
        grey = grey and array.ndim == 2
        row.copy_(torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)))
    return pixels[:, :1].contiguous() if grey else pixels


def _shape(image: bytes | np.ndarray, where: str) -> tuple[int, int]:
    """Return height and width, without decoding encoded images."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    with opened(image, where) as encoded:
        return encoded.height, encoded.width


def _fitted(array: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(array)
    width, height = (size * side // min(image.size) for side in image.size)  # rounded as in torchvision
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(image.crop((left, top, left + size, top + size)))


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images on a device.

    Attributes:
        pixels: Images, uint8 (n, 1 or 3, side, side); grey images get three equal channels in a batch.
        labels: Classes, int64 (n,).
        size: Side of the images in a batch.
        mean: Channel means of the backbone's preprocessing, in [0, 1].
        std: Channel standard deviations of the backbone's preprocessing.
        augmentation: "crop": random resized crop (see `random_crop`) of the prepared tensor, where the authors' code
            crops the original image (small images are prepared at their original size); "none" for evaluation.
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
        """Return normalised images, fp32 (b, 3, size, size), and labels, int64 (b,)."""
        indices = indices.to(self.pixels.device)
        images = self.pixels[indices].float().div_(255)
        images = random_crop(images, self.size) if self.augmentation == "crop" else resized(images, self.size)
        return normalise(images, self.mean, self.std), self.labels[indices]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (x - mean) / std for each channel; grey images become three-channel ones."""
    shift, scale = (images.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    return (images.expand(-1, 3, -1, -1) - shift).div_(scale)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize square images, (n, channels, side, side) in [0, 1].

    Bicubic as in Pillow, except that Pillow rounds and clips between its two passes.
    """
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp_(0, 1)


def random_crop(images: Tensor, size: int) -> Tensor:
    """Crop every image randomly and resize it, bicubic: area drawn from 0.9 to 1.0, aspect log-uniform from 3:4 to 4:3.

    A crop that would leave the image is cut to its sides, where torchvision's `RandomResizedCrop`, which the authors'
    code uses, draws area and aspect again and takes the whole image after ten attempts. Crops are therefore smaller and
    stretched more: areas from 0.82 with a mean of 0.905 (torchvision: from 0.90, 0.942), a mean |log aspect| of 0.095
    (0.032), and no image stays whole (11.5 %). Random numbers come from torch's generator of the images' device.

    Returns:
        Images (n, channels, size, size) in [0, 1].
    """
    num = len(images)
    area = images.new_empty(num).uniform_(0.9, 1.0)
    aspect = images.new_empty(num).uniform_(-1.0, 1.0).mul_(float(np.log(4 / 3))).exp_()
    width, height = (area * aspect).sqrt().clamp_(max=1), (area / aspect).sqrt().clamp_(max=1)
    centre_x, centre_y = (images.new_empty(num).uniform_(-1.0, 1.0) * (1 - extent) for extent in (width, height))
    across = _bicubic_weights(centre_x, width, images.shape[-1], size)
    down = _bicubic_weights(centre_y, height, images.shape[-2], size)
    return (down[:, None] @ images @ across[:, None].mT).clamp_(0, 1)


def _bicubic_weights(centre: Tensor, extent: Tensor, side: int, size: int) -> Tensor:
    """Return weights (n, size, side) that interpolate `size` points spread evenly over a part of an image's side.

    They equal those of `grid_sample` (a = -0.75, border repeated outside), which cannot exploit that the rows and
    columns of a crop can be resampled one after the other.

    Args:
        centre: Centre of the part, (n,), in the coordinates of `affine_grid`, where the side runs from -1 to 1.
        extent: Extent of the part, (n,), as a share of the side.
        side: Side of the image in pixels.
        size: Side of the crop in pixels.
    """
    points = (2 * torch.arange(size, device=centre.device, dtype=centre.dtype) + 1) / size - 1
    points = ((centre[:, None] + extent[:, None] * points + 1) * side - 1) / 2
    margin = 2  # reach of four taps beyond the border
    pixels = torch.arange(-margin, side + margin, device=centre.device, dtype=centre.dtype)
    distance = (points[:, :, None] - pixels).abs_()
    near = (1.25 * distance - 2.25) * distance * distance + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    inside = weights[:, :, margin:-margin]
    inside[:, :, 0] += weights[:, :, :margin].sum(2)
    inside[:, :, -1] += weights[:, :, -margin:].sum(2)
    return inside
