"""CLIP of any architecture with open_clip: construction, zero-shot head, preprocessing, prunable parameters."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isp.backbones import Pretrained
from isp.backbones._files import buildable, read_config, read_safetensors
from isp.data.images import Augmentation, Images, to_pixels
from isp.data.sources import Column, HubModel
from isp.errors import ConfigError, DataError, shown, unknown
from isp.lazy import F, torch
from isp.rng import forked_rng
from isp.seeds import seed as named_seed
from isp.tasks import ImageTask, Inputs, Task
from isp.training import holding, load_weights

if TYPE_CHECKING:
    import open_clip
    from torch import Tensor

    from isp.backbones._classifiers import ImageClassifier
    from isp.exported import Library

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
VOCABULARY_SIZE = 49_408
_IMAGE_SIZE = 224
"""Default image size of open_clip, in pixels."""
_SUPPORTED = "only open_clip's own image and text transformers are supported"
PRUNABLE = (
    "visual.transformer.resblocks.*.attn.in_proj_weight",
    "visual.transformer.resblocks.*.attn.out_proj.weight",
    "visual.transformer.resblocks.*.mlp.c_fc.weight",
    "visual.transformer.resblocks.*.mlp.c_proj.weight",
)


@dataclass(frozen=True, kw_only=True)
class ClipBackbone:
    """A CLIP architecture and its preprocessing.

    Attributes:
        architecture: Name of an open_clip architecture, or its configuration (as in open_clip's JSON files); None: that
            of `open_clip_config.json` in the folder of the weights.
        source: Origin of the weights; None: pre-training in this package.
        mean: Channel means of the preprocessing; the default is OpenAI's.
        std: Channel standard deviations of the preprocessing; the default is OpenAI's.
        prunable: Patterns of the prunable parameters of the classifier.
        version: Version, raised when the backbone's behaviour changes.
    """

    architecture: str | Mapping[str, Any] | None
    source: HubModel | None = None
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    prunable: tuple[str, ...] = PRUNABLE
    version: int = 3

    @property
    def inputs(self) -> Inputs:
        """Kind of inputs: images."""
        return "pictures"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of the weights and, if it is not given here, of the configuration."""
        return (WEIGHTS,) if self.architecture else (WEIGHTS, CONFIG)

    def described(self) -> dict[str, Any]:
        """Return the architecture named or given here as artifacts contain it: open_clip's `model`, `mean` and `std`.

        Raises:
            ConfigError: If open_clip has no architecture of that name.
        """
        model = self.architecture
        if isinstance(model, str):
            import open_clip

            if model not in open_clip.list_models():
                raise ConfigError(unknown("open_clip architecture", self.architecture, open_clip.list_models()))
            model = open_clip.get_model_config(model)
        assert model is not None
        check_model(f"architecture {self.architecture!r:.100}", model)
        return {"model": dict(model), "mean": list(self.mean), "std": list(self.std)}

    def convert(self, folder: Path) -> Pretrained:
        """Load both towers from open_clip's files.

        Raises:
            ConfigError: If the files have another architecture, were trained with another activation, or need a
                preparation of texts or images that is not supported here.
            DataError: If a file cannot be read.
        """
        path = folder / CONFIG
        architecture = self.described() if self.architecture else self._beside(path)
        for name, published in _published(self.source.id if self.source else ""):
            architecture |= _statistics(path, published)
            _check_preprocessing(path, published)
            self._check_activation(architecture["model"], name, published)
        weights = read_safetensors(folder / WEIGHTS)
        clip = holding(weights, partial(buildable, path, partial(build, architecture, 0)), str(folder / WEIGHTS))
        return Pretrained(weights=dict(clip.state_dict()), architecture=architecture)

    def _beside(self, path: Path) -> dict[str, Any]:
        config = read_config(path)
        model, preprocessing = config.get("model_cfg"), config.get("preprocess_cfg") or {}
        if not isinstance(model, dict) or not isinstance(preprocessing, dict):
            raise DataError(f"{path}: not an open_clip configuration of a model, because it has no 'model_cfg'")
        check_model(str(path), model)
        _check_preprocessing(path, preprocessing)
        defaults = {"model": model, "mean": list(self.mean), "std": list(self.std)}
        return defaults | _statistics(path, preprocessing)

    def _check_activation(self, model: Mapping[str, Any], name: str, published: Mapping[str, Any]) -> None:
        """Refuse weights trained with another activation, which run but score badly; open_clip only warns."""
        has, wants = ("QuickGELU" if settings.get("quick_gelu") else "GELU" for settings in (model, published))
        if has != wants:
            raise ConfigError(
                f"the weights {name} were trained with {wants}, but architecture {self.architecture!r} has {has}; "
                f"OpenAI's ViT-B/32 is ViT-B-32-quickgelu"
            )

    def prepare(
        self, columns: Sequence[Column], chosen: np.ndarray, pretrained: Pretrained, where: str
    ) -> dict[str, Tensor]:
        """Return `pixels`: uint8, (n, 1 or 3, side, side)."""
        return {"pixels": to_pixels(columns[0], chosen, image_size(pretrained.architecture), where)}

    def examples(
        self, tensors: Mapping[str, Tensor], architecture: Mapping[str, Any], augmentation: Augmentation
    ) -> Images:
        """Make examples from images and labels, on the device of the tensors."""
        return Images(
            pixels=tensors["pixels"],
            labels=tensors["labels"],
            size=image_size(architecture),
            mean=tuple(architecture["mean"]),
            std=tuple(architecture["std"]),
            augmentation=augmentation,
        )

    def initial(self, pretrained: Pretrained, task: Task, seed: int, random: bool) -> ImageClassifier:
        """Build the pre-trained image tower, or a random one, under the pre-trained zero-shot head."""
        assert isinstance(task, ImageTask)
        clip = holding(pretrained.weights, partial(build, pretrained.architecture, 0), "the pre-trained weights")
        model = classifier(clip, task.classes, task.templates)
        if random:
            load_weights(model.visual, build(pretrained.architecture, 1 + seed).visual.state_dict())
        return model

    def blank(
        self, task: Task, num_examples: int, data_root: Path
    ) -> tuple[ImageClassifier, dict[str, Any], dict[str, Tensor]]:
        """Return a random model, its architecture and black images; raise DataError if its file is missing."""
        from isp.backbones._classifiers import ImageClassifier

        if self.architecture is None:
            assert self.source is not None
            architecture = self._beside(self.source.where(data_root) / CONFIG)
        else:
            architecture = self.described()
        side = image_size(architecture)
        model = ImageClassifier(
            build(architecture, 0).visual, torch.zeros(task.num_outputs, architecture["model"]["embed_dim"])
        )
        pixels = torch.zeros(num_examples, 3, side, side, dtype=torch.uint8)
        return model, architecture, {"pixels": pixels, "labels": torch.zeros(num_examples, dtype=torch.int64)}

    def restore(self, weights: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> ImageClassifier:
        """Build a classifier with these weights.

        Raises:
            ConfigError: If they belong to another model; the message names the first tensor that differs.
        """
        from isp.backbones._classifiers import ImageClassifier

        if "head" not in weights:
            raise ConfigError("weights without 'head' do not belong to a CLIP classifier (stage: initialise)")
        # The text tower is not used, so it is built as small as possible.
        model = architecture["model"]
        text = {**model["text_cfg"], "layers": 1}
        towers = {**architecture, "model": {**model, "text_cfg": text}}
        return holding(weights, lambda: ImageClassifier(build(towers, 0).visual, torch.empty_like(weights["head"])))

    @property
    def library(self) -> Library:
        """Library open_clip: `create_model_and_transforms("local-dir:<folder>")` loads the folder."""
        return "open_clip"

    def export(
        self, folder: Path, weights: Mapping[str, Tensor], pretrained: Pretrained, task: Task, plain: bool
    ) -> None:
        """Write `open_clip_config.json` and `classes.json` and, if `plain`, both towers and, separately, the head.

        The text tower is the pre-trained one, because fine-tuning does not change it.

        Raises:
            ConfigError: If the weights belong to another model, or the head to another text tower.
        """
        from safetensors.torch import save_file

        from isp.exported import CLASSES, HEAD

        architecture = pretrained.architecture
        (folder / CONFIG).write_text(json.dumps(config_of(architecture), indent=1) + "\n", encoding="utf-8")
        classes = json.dumps(task.classes, indent=1, ensure_ascii=False)
        (folder / CLASSES).write_text(classes + "\n", encoding="utf-8")
        if plain:
            visual = {name: tensor for name, tensor in weights.items() if name != "head"}
            clip = holding({**pretrained.weights, **visual}, partial(build, architecture, 0), "the ticket's weights")
            assert isinstance(task, ImageTask)
            first = classifier(clip, task.classes[:1], task.templates).head
            if not torch.allclose(first, weights["head"][:1], rtol=1e-3, atol=1e-3):
                raise ConfigError("the zero-shot head was made with another text tower than the pre-trained backbone's")
            tensors = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
            save_file(tensors, folder / WEIGHTS, {"format": "pt"})
            save_file({"head": weights["head"].contiguous()}, folder / HEAD, {"format": "pt"})


def build(architecture: Mapping[str, Any], seed: int) -> open_clip.CLIP:
    """Build both towers with random weights drawn from `seed`.

    Raises:
        ConfigError: If `check_model` refuses the architecture.
    """
    import open_clip

    model = architecture["model"]
    check_model("the architecture", model)
    with forked_rng():
        torch.manual_seed(named_seed("build", seed=seed))
        return open_clip.CLIP(**{key: value for key, value in model.items() if key != "custom_text"})


def config_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `open_clip_config.json` for an architecture."""
    preprocessing = {
        **{"mode": "RGB", "mean": architecture["mean"], "std": architecture["std"]},
        **{"interpolation": "bicubic", "resize_mode": "shortest"},
    }
    return {"model_cfg": architecture["model"], "preprocess_cfg": preprocessing}


def check_model(where: str, model: Mapping[str, Any]) -> None:
    """Check that open_clip builds a CLIP from a configuration with its own two transformers and no other library.

    Towers from timm or transformers, which open_clip would build or download by name, are refused, as is every key that
    open_clip's classes do not have.

    Args:
        where: Description of the configuration, which begins error messages.
        model: Content of `model_cfg` in open_clip's files.

    Raises:
        ConfigError: If a key is refused; the message names it, its value and the allowed ones.
    """
    import open_clip

    classes = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg}
    keys = {*inspect.signature(open_clip.CLIP).parameters, "custom_text"} - {"cast_dtype", "output_dict"}
    for key in model:
        if key not in keys:
            raise ConfigError(f"{where}: {unknown('key of model_cfg', key, keys)}")
    for part, cls in classes.items():
        if not isinstance(model.get(part), Mapping):
            raise ConfigError(f"{where}: model_cfg has no {part}; it must have embed_dim, vision_cfg and text_cfg")
        known = {each.name for each in dataclasses.fields(cls)}
        for key in model[part]:
            if key not in known:
                raise ConfigError(f"{where}: {unknown(f'key of {part}', key, known)}")
    vision, text = model["vision_cfg"], model["text_cfg"]
    if vision.get("timm_model_name"):
        raise ConfigError(f"{where}: the image tower is timm's {shown(vision['timm_model_name'])}; {_SUPPORTED}")
    if not _is_count(vision.get("layers", 1)):
        raise ConfigError(
            f"{where}: layers of vision_cfg is {shown(vision['layers'])}, which describes a ResNet; {_SUPPORTED}"
        )
    if model.get("custom_text"):
        raise ConfigError(f"{where}: custom_text renames the parameters of the text tower; {_SUPPORTED}")
    if not _is_count(model.get("embed_dim")):
        raise ConfigError(f"{where}: embed_dim must be a positive integer, got {shown(model.get('embed_dim'))}")
    foreign = [key for key in ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs") if text.get(key)]
    if foreign or text.get("vocab_size", VOCABULARY_SIZE) != VOCABULARY_SIZE:
        raise ConfigError(
            f"{where}: this CLIP has its own tokenizer ({', '.join(foreign) or 'vocab_size'}); it must be OpenAI's, of "
            f"{VOCABULARY_SIZE} tokens"
        )
    size = vision.get("image_size", _IMAGE_SIZE)
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    if len(sides) != 2 or not all(map(_is_count, sides)) or sides[0] != sides[1]:
        raise ConfigError(f"{where}: image_size must be the side of square images, or that twice, got {shown(size)}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def image_size(architecture: Mapping[str, Any]) -> int:
    """Return the side of the images, in pixels; open_clip accepts a number or a list of two."""
    size: int | Sequence[int] = architecture["model"]["vision_cfg"].get("image_size", _IMAGE_SIZE)
    return size if isinstance(size, int) else size[0]


def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
    """Return CLIP's byte-pair tokens, int64 (n, context length)."""
    tokens: Tensor = _tokenizer()(list(texts), context_length=context_length)
    return tokens


def symmetric_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute CLIP's symmetric loss for batches with several images per caption, which are not negatives.

    Images are classified among all captions, and each caption in the batch spreads its target evenly over its images.

    Args:
        logits: Similarity of each image and each caption, (images, captions).
        labels: Index of the caption of each image, int64 (images,).
    """
    present, where = torch.unique(labels, return_inverse=True)
    targets = F.one_hot(where, len(present)).T.float()
    to_images = F.cross_entropy(logits.T[present], targets / targets.sum(1, keepdim=True))
    return (F.cross_entropy(logits, labels) + to_images) / 2


def classifier(clip: open_clip.CLIP, classes: Sequence[str], templates: Sequence[str]) -> ImageClassifier:
    """Build the image tower of `clip` under the zero-shot head from its text tower.

    A class's row is the mean over the templates of the unit text features, normalised again.
    """
    from isp.backbones._classifiers import ImageClassifier

    mode = clip.training
    clip.eval()
    rows = []
    with torch.no_grad():
        for name in classes:
            tokens = tokenize([template.replace("{}", name) for template in templates], clip.context_length)
            rows.append(clip.encode_text(tokens, normalize=True).mean(dim=0))
        head = F.normalize(torch.stack(rows), dim=-1) * clip.logit_scale.exp()
    clip.train(mode)
    return ImageClassifier(clip.visual, head)


def _published(id_: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield names and settings of the published weights that open_clip lists for a repository on the hub."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    for name, tag in list_pretrained() if id_ else ():
        settings = get_pretrained_cfg(name, tag)
        if settings.get("hf_hub", "").rstrip("/") == id_:
            yield f"{id_} ({name}, {tag})", settings


def _check_preprocessing(path: Path, settings: Mapping[str, Any]) -> None:
    for key, offered in (("resize_mode", "shortest"), ("interpolation", "bicubic"), ("mode", "RGB")):
        if settings.get(key) not in (None, offered):
            value = shown(settings[key])
            raise ConfigError(f"{path}: {key} of the preprocessing must be {offered!r}, got {value}")


def _statistics(path: Path, settings: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return `mean` and `std` if the settings contain them; as in open_clip, one number applies to all three channels.

    Like open_clip, this function treats 0 and null as absent.

    Raises:
        ConfigError: If a value is neither a number nor one number for each channel, or a std is not positive.
    """
    statistics = {}
    for key in ("mean", "std"):
        stated = settings.get(key)
        if not stated:
            continue
        values = list(stated) if isinstance(stated, (list, tuple)) else [stated] * 3
        numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if len(values) != 3 or not numbers or (key == "std" and min(values) <= 0):
            raise ConfigError(
                f"{path}: {key} must be a number or one for each of three channels"
                f"{', above 0' if key == 'std' else ''}, got {shown(stated)}"
            )
        statistics[key] = values
    return statistics


@cache
def _tokenizer() -> Any:
    """Return CLIP's tokenizer, cached because reading its vocabulary takes a tenth of a second."""
    import open_clip

    return open_clip.SimpleTokenizer()
