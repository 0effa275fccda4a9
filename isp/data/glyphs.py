"""Captioned images of glyphs, rendered from matplotlib's fonts; the pre-training data of the tiny CLIP."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isp.data.images import normalise
from isp.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

GLYPHS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
TEMPLATES = (
    'a photo of the {kind}: "{glyph}".',
    'the {kind} "{glyph}".',
    'a picture of the {kind}: "{glyph}".',
    "the {kind} {glyph}, written by hand.",
    "a small picture of the {kind} {glyph}.",
)


def captions(glyph: str) -> list[str]:
    """Return all captions of a glyph; "capital" and "small" distinguish letters, because tokens ignore case."""
    kind = "number" if glyph.isdigit() else "capital letter" if glyph.isupper() else "small letter"
    return [template.format(kind=kind, glyph=glyph) for template in TEMPLATES]


@cache
def render(size: int) -> np.ndarray:
    """Render every glyph in every font, white on black.

    Returns:
        uint8, shape (glyphs, fonts, size, size); glyphs fill four fifths of the image's height or width.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images = np.zeros((len(GLYPHS), len(FONTS), size, size), dtype=np.uint8)
    for column, font_name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{font_name}.ttf"), size=8 * size)
        for row, glyph in enumerate(GLYPHS):
            left, top, right, bottom = font.getbbox(glyph)
            canvas = Image.new("L", (int(right - left), int(bottom - top)))
            ImageDraw.Draw(canvas).text((-left, -top), glyph, font=font, fill=255)
            scale = 0.8 * size / max(canvas.size)
            width, height = (max(1, round(side * scale)) for side in canvas.size)
            small = np.asarray(canvas.resize((width, height), Image.Resampling.LANCZOS))
            y, x = (size - height) // 2, (size - width) // 2
            images[row, column, y : y + height, x : x + width] = small
    return images


@dataclass(frozen=True)
class CaptionedGlyphs:
    """Contrastive training examples, one for each glyph and font, with a new random distortion at every step.

    Attributes:
        pixels: Images, uint8 (glyphs * fonts, 1, size, size).
        tokens: Captions, int64 (glyphs, captions, context length).
        mean: Channel means of the backbone's preprocessing.
        std: Channel standard deviations of the backbone's preprocessing.
    """

    pixels: Tensor
    tokens: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def render(
        cls, size: int, tokenize: Callable[[list[str]], Tensor], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> CaptionedGlyphs:
        """Render all images and tokenize all captions once."""
        pixels = torch.from_numpy(render(size)).view(-1, 1, size, size)
        tokens = torch.stack([tokenize(captions(glyph)) for glyph in GLYPHS])
        return cls(pixels, tokens, mean, std)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, fp32 (b, 3, size, size); glyph ids, int64 (b,); one caption per glyph, (glyphs, context)."""
        images = distort(self.pixels[indices].float().div_(255))
        glyphs = indices // len(FONTS)
        template = torch.randint(self.tokens.shape[1], (len(GLYPHS),))
        return normalise(images, self.mean, self.std), glyphs, self.tokens[torch.arange(len(GLYPHS)), template]


def distort(images: Tensor) -> Tensor:
    """Apply random rotation, scale, shear and shift (as in handwriting), then blur, contrast and noise to images."""
    num = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(num, dtype=torch.float32).uniform_(low, high)

    angle, shear = uniform(-0.25, 0.25), uniform(-0.35, 0.35)
    scale_x, scale_y = uniform(0.75, 1.35), uniform(0.75, 1.35)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * scale_x, (shear * cos - sin) * scale_y, uniform(-0.2, 0.2)]
    rows += [sin * scale_x, (shear * sin + cos) * scale_y, uniform(-0.2, 0.2)]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(num, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    blurred = F.avg_pool2d(F.avg_pool2d(moved, 3, 1, 1), 3, 1, 1)
    softness = uniform(0, 1).view(-1, 1, 1, 1)
    mixed = (softness * blurred + (1 - softness) * moved) * uniform(0.8, 1.6).view(-1, 1, 1, 1)
    return (mixed + 0.05 * torch.randn_like(mixed)).clamp_(0, 1)
