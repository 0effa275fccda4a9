"""What tests share: a tiny model with dropout, augmented examples, trainers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from isp.backbones import bert_tiny, clip_tiny
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.stages.pretrain import pretrain
from isp.training import Trainer, Training, make_trainer

# CI checks the same examples every time; anywhere else new ones are drawn.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TinyModel(nn.Module):
    """Attention, a norm, dropout and a head that is not pruned: 4 prunable tensors, 592 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 21)
        self.down = nn.Linear(21, 8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs + self.attention(inputs, inputs, inputs, need_weights=False)[0]
        hidden = hidden + self.down(self.dropout(torch.relu(self.up(self.norm(hidden)))))
        return self.head(hidden.mean(1))


class Noisy:
    """80 examples of 3 classes, (5, 8) each, augmented by noise from torch's generator."""

    def __init__(self, num: int = 80) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.arange(num) % 3
        centres = torch.randn(3, 5, 8, generator=generator)
        self.inputs = centres[self.labels] + torch.randn(num, 5, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.inputs[indices]
        return inputs + 0.1 * torch.randn(inputs.shape), self.labels[indices]


def tiny_model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel()


@pytest.fixture
def make() -> Callable[..., Trainer]:
    """Makes a trainer of the tiny model; keys are those of `Training`."""

    def make_(seed: int = 0, **training: Any) -> Trainer:
        protocol = {"steps": 30, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 3} | training
        model = tiny_model()
        names = prunable_names(model, exclude=["head.*"])
        return make_trainer(model, Noisy(), default_loss, Training(**protocol), names, seed)

    return make_


@pytest.fixture(scope="session")
def short_pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `resources/`, with tiny backbones that were pre-trained for three steps instead of hundreds."""
    folder = tmp_path_factory.mktemp("resources")
    with pytest.MonkeyPatch.context() as patch:
        for module in (clip_tiny, bert_tiny):
            short = module.PRETRAINING.model_copy(update={"steps": 3, "warmup_steps": 0, "batch_size": 31})
            patch.setattr(module, "PRETRAINING", short)
            name = module.__name__.rpartition(".")[2]
            pretrain(backbone=name, output=folder / "backbones" / f"{name}.safetensors")
    return folder
