"""CLIP of any architecture, by open_clip: build, zero-shot head, preprocessing, prunable parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp.data.images import Augmentation, Images, to_pixels
from isp.data.sources import RawImages
from isp.errors import ConfigError
from isp.rng import forked_rng
from isp.seeds import seed as named_seed
from isp.tasks import ImageTask
from isp.training import LossFunction, load_weights

if TYPE_CHECKING:
    import open_clip

PRUNABLE = (
    "visual.transformer.resblocks.*.attn.in_proj_weight",
    "visual.transformer.resblocks.*.attn.out_proj.weight",
    "visual.transformer.resblocks.*.mlp.c_fc.weight",
    "visual.transformer.resblocks.*.mlp.c_proj.weight",
)


class ImageClassifier(nn.Module):
    """CLIP's picture tower under a frozen zero-shot head (the paper, section 4).

    Attributes:
        visual: the picture tower; all its parameters are trained.
        head: (classes, features), unit rows times exp(logit_scale); a buffer, so never trained or pruned.
    """

    head: Tensor

    def __init__(self, visual: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("head", head)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits, (b, classes), of normalised pictures, (b, 3, size, size)."""
        return F.normalize(self.visual(pictures), dim=-1) @ self.head.T


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of (inputs, labels)."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


@dataclass(frozen=True, kw_only=True)
class ClipBackbone:
    """A CLIP architecture and its preprocessing.

    Attributes:
        architecture: name of an open_clip architecture, or its configuration (as in open_clip's JSON files).
        image_size: side of the pictures, in pixels.
        mean, std: of the preprocessing; the defaults are OpenAI's.
        prunable: patterns of the prunable parameters of the classifier.
        version: raised when the backbone's behaviour changes.
    """

    architecture: str | Mapping[str, Any]
    image_size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    prunable: tuple[str, ...] = PRUNABLE
    version: int = 1

    def build(self, seed: int) -> open_clip.CLIP:
        """Both towers with random weights drawn from `seed`."""
        import open_clip

        with forked_rng():
            torch.manual_seed(named_seed("build", seed=seed))
            return open_clip.CLIP(**self._config())

    def _config(self) -> Mapping[str, Any]:
        import open_clip

        if isinstance(self.architecture, str):
            config: Mapping[str, Any] = open_clip.get_model_config(self.architecture)
            return config
        return self.architecture

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """CLIP's byte-pair tokens, int64 (n, context length)."""
        length: int = self._config()["text_cfg"]["context_length"]
        tokens: Tensor = _tokenizer()(list(texts), context_length=length)
        return tokens

    @property
    def loss(self) -> LossFunction:
        """Mean cross-entropy."""
        return classification_loss

    def prepare(self, raw: RawImages, chosen: np.ndarray, where: str) -> dict[str, Tensor]:
        """`pixels`: uint8, (n, 1 or 3, size, size), after CLIP's evaluation preprocessing."""
        return {"pixels": to_pixels(raw, chosen, self.image_size, where)}

    def examples(self, tensors: Mapping[str, Tensor], augmentation: Augmentation) -> Images:
        """Pictures and labels on the device of the tensors."""
        return Images(
            pixels=tensors["pixels"], labels=tensors["labels"], mean=self.mean, std=self.std, augmentation=augmentation
        )

    def initial(self, pretrained: Mapping[str, Tensor], task: ImageTask, random_seed: int | None) -> ImageClassifier:
        """The pre-trained picture tower, or one with random weights, under the pre-trained zero-shot head."""
        clip = self.build(0)
        load_weights(clip, pretrained, "the pre-trained weights")
        model = self.classifier(clip, task.classes, task.templates)
        if random_seed is not None:
            load_weights(model.visual, self.build(1 + random_seed).visual.state_dict())
        return model

    def restore(self, weights: Mapping[str, Tensor]) -> ImageClassifier:
        """A classifier that holds these weights.

        Raises:
            ConfigError: they are of another model; names the first tensor that differs.
        """
        if "head" not in weights:
            raise ConfigError("weights without 'head' are not those of a CLIP classifier (stage: initialise)")
        model = ImageClassifier(self.build(0).visual, torch.empty_like(weights["head"]))
        load_weights(model, weights)
        return model

    def classifier(self, clip: open_clip.CLIP, classes: Sequence[str], templates: Sequence[str]) -> ImageClassifier:
        """The picture tower of `clip` under the zero-shot head from its text tower.

        A class's row is the mean over the templates of the unit text features, made a unit vector again.
        """
        clip.eval()
        with torch.no_grad():
            texts = self.tokenize([template.format(name) for name in classes for template in templates])
            features = clip.encode_text(texts, normalize=True).view(len(classes), len(templates), -1).mean(dim=1)
            head = F.normalize(features, dim=-1) * clip.logit_scale.exp()
        return ImageClassifier(clip.visual, head)


@cache
def _tokenizer() -> Any:
    """CLIP's tokenizer; reading its vocabulary takes a tenth of a second."""
    import open_clip

    return open_clip.SimpleTokenizer()
