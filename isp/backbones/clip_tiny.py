"""Tiny CLIP (4 layers of width 64, 28-pixel images), pre-trained here on captioned images of glyphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from isp.backbones import Pretrained
from isp.backbones._open_clip import ClipBackbone, build, image_size, symmetric_loss, tokenize
from isp.training import Training, make_trainer, state_of

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKBONE = ClipBackbone(
    architecture={
        "embed_dim": 64,
        "vision_cfg": {"layers": 4, "width": 64, "head_width": 32, "patch_size": 7, "image_size": 28},
        "text_cfg": {"layers": 2, "width": 64, "heads": 2, "context_length": 16, "vocab_size": 49408},
    },
    mean=(0.2, 0.2, 0.2),
    std=(0.35, 0.35, 0.35),
)

PRETRAINING = Training(steps=400, batch_size=124, learning_rate=2e-3, warmup_steps=100, weight_decay=0.1)

TRAINING = Training(steps=600, batch_size=32, learning_rate=5e-4, weight_decay=0.1)
"""Protocol with which `isp run` fine-tunes; on digits, T is 21 epochs (22 in the paper)."""


def contrastive_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute CLIP's symmetric loss with one caption per glyph; see `symmetric_loss`."""
    images, glyphs, tokens = batch
    features = model.encode_image(images, normalize=True)  # type: ignore[operator]
    texts = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    logits = model.logit_scale.exp() * features @ texts.T  # type: ignore[operator]
    return symmetric_loss(logits, glyphs)


def pretrain(seed: int = 0, progress: Callable[[int], None] = lambda _: None) -> Pretrained:
    """Pre-train both towers for `PRETRAINING.steps` steps from random weights.

    The token embeddings stay random. Training their 49,408 rows would take half the time of a step, and 62 glyphs are
    too few to teach them.
    """
    from isp.data.glyphs import CaptionedGlyphs

    architecture = BACKBONE.described()
    model = build(architecture, seed)
    model.token_embedding.weight.requires_grad_(False)
    glyphs = CaptionedGlyphs.render(
        image_size(architecture), partial(tokenize, context_length=model.context_length), BACKBONE.mean, BACKBONE.std
    )
    trainer = make_trainer(model, glyphs, contrastive_loss, PRETRAINING, [], seed, progress)
    state, _ = trainer.run(state_of(model), PRETRAINING.steps)
    return Pretrained(weights=state.weights, architecture=architecture)
