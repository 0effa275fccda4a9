"""What tests share: a tiny model with dropout, augmented examples, trainers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from isp.backbones import bert_tiny, clip_tiny
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.stages.pretrain import pretrain
from isp.training import Trainer, Training, make_trainer
from tests.support.models import Noisy, tiny_model

# CI checks the same examples every time; anywhere else new ones are drawn.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
