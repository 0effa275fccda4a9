"""What every backbone and task must hold to (found by file name), and the tiny CLIP in particular."""

from __future__ import annotations

import pytest
import torch

from isp import registry
from isp.backbones import clip_tiny
from isp.backbones._open_clip import ClipBackbone, ImageClassifier, classification_loss
from isp.metrics import METRICS
from isp.prunable import prunable_names
from isp.training import Training

CLASSES, TEMPLATES = ("cat", "dog", "eel"), ("a photo of a {}.", "a drawing of a {}.")


@pytest.mark.parametrize("name", registry.names("backbone"))
def test_a_backbone_builds_a_classifier_that_trains(name: str) -> None:
    module = registry.load("backbone", name)
    backbone = module.BACKBONE
    assert isinstance(module.TRAINING, Training)
    clip = backbone.build(0)
    model = backbone.classifier(clip, CLASSES, TEMPLATES)
    again = backbone.classifier(backbone.build(0), CLASSES, TEMPLATES)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    pictures = torch.rand(4, 3, backbone.image_size, backbone.image_size)
    logits = model(pictures)
    assert logits.shape == (4, 3)
    assert logits.dtype == torch.float32
    names = prunable_names(model, backbone.prunable)
    classification_loss(model, (pictures, torch.tensor([0, 1, 2, 0]))).backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in names)  # type: ignore[union-attr]
    assert all(model.get_parameter(name).dim() == 2 for name in names)
    assert not any("head" in name or "text" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", registry.names("task"))
def test_a_task_is_complete(name: str) -> None:
    task = registry.load("task", name).TASK
    assert all(template.count("{}") == 1 for template in task.templates)
    assert len(set(task.classes)) == len(task.classes) > 1
    assert task.metric in METRICS
    assert registry.summary("task", name)


def test_vit_b32_has_the_papers_prunable_weights() -> None:
    """84,934,656, on the architecture without weights."""
    import open_clip

    backbone = ClipBackbone(architecture="ViT-B-32-quickgelu")
    with torch.device("meta"):
        visual = open_clip.CLIP(**open_clip.get_model_config(backbone.architecture)).visual
        model = ImageClassifier(visual, torch.zeros(10, 512))
    names = prunable_names(model, backbone.prunable)
    assert len(names) == 48
    assert sum(model.get_parameter(name).numel() for name in names) == 84_934_656


def test_the_zero_shot_head_equals_open_clips_own() -> None:
    import open_clip

    clip = clip_tiny.BACKBONE.build(0)
    head = clip_tiny.BACKBONE.classifier(clip, CLASSES, TEMPLATES).head
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    theirs = open_clip.build_zero_shot_classifier(clip, tokenizer, list(CLASSES), list(TEMPLATES))
    torch.testing.assert_close(head, theirs.T * clip.logit_scale.exp())
    assert not head.requires_grad


def test_contrastive_loss_by_hand() -> None:
    """Two pictures of glyph 0, one of glyph 2, of three glyphs; features along the axes, scale 1."""

    class Fake(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = torch.zeros(())

        def encode_image(self, pictures: torch.Tensor, normalize: bool) -> torch.Tensor:
            return pictures

        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            return tokens

    pictures = torch.eye(3)[[0, 0, 2]]
    loss = clip_tiny.contrastive_loss(Fake(), (pictures, torch.tensor([0, 0, 2]), torch.eye(3)))
    e = torch.e
    to_text = torch.tensor(e / (e + 2)).log()
    to_pictures = (torch.tensor(e / (2 * e + 1)).log() + torch.tensor(e / (e + 2)).log()) / 2
    torch.testing.assert_close(loss, -(to_text + to_pictures) / 2)


def test_pretraining_learns_and_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    from isp.data.glyphs import CaptionedGlyphs

    backbone = clip_tiny.BACKBONE
    short = clip_tiny.PRETRAINING.model_copy(update={"steps": 12, "warmup_steps": 0, "batch_size": 62})
    monkeypatch.setattr(clip_tiny, "PRETRAINING", short)
    a, b = clip_tiny.pretrain(0), clip_tiny.pretrain(0)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    glyphs = CaptionedGlyphs.render(backbone.image_size, backbone.tokenize, backbone.mean, backbone.std)
    torch.manual_seed(0)
    batch = glyphs.batch(torch.arange(0, len(glyphs), 9))
    with torch.no_grad():
        before, after = (clip_tiny.contrastive_loss(model, batch) for model in (backbone.build(0), a))
    assert after < before
    assert torch.equal(a.token_embedding.weight, backbone.build(0).token_embedding.weight)
