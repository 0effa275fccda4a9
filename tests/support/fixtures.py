"""Fixtures that tests share, loaded by `tests/conftest.py`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from isp.backbones import bert_tiny, clip_tiny
from isp.data import prose
from isp.stages.pretrain import pretrain
from isp.training import Trainer
from tests.support.methods import tiny_trainer
from tests.support.sharing import shared_folder
from tests.support.workflow import snakemake


@pytest.fixture(scope="session", autouse=True)
def _sentences(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Parse the embedded prose, thousands of files, once for all workers, and learn a vocabulary once in each."""
    parse = prose.sentences

    def fill(folder: Path) -> None:
        (folder / "sentences.json").write_text(json.dumps(parse()), encoding="utf-8")

    @cache
    def sentences() -> tuple[prose.Sentence, ...]:
        path = shared_folder(tmp_path_factory, "prose", fill) / "sentences.json"
        return tuple(prose.Sentence(*each) for each in json.loads(path.read_text(encoding="utf-8")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "sentences", sentences)
        patch.setattr(prose, "vocabulary", cache(prose.vocabulary))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Write files without `fsync`, which only matters if the machine crashes, and costs tests 20 seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Set one thread, because results depend on the number of threads to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make() -> Callable[..., Trainer]:
    """Return a function that makes a trainer of the tiny model."""
    return tiny_trainer


def _pretrain_shortly(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (clip_tiny, bert_tiny):
            short = module.PRETRAINING.model_copy(update={"steps": 3, "warmup_steps": 0, "batch_size": 31})
            patch.setattr(module, "PRETRAINING", short)
            name = module.__name__.rpartition(".")[2]
            pretrain(backbone=name, output=folder / "backbones" / f"{name}.safetensors")


@pytest.fixture(scope="session")
def short_pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like `resources/`, with tiny backbones that were pre-trained for only three steps."""
    return shared_folder(tmp_path_factory, "resources", _pretrain_shortly)


@pytest.fixture(scope="session")
def smoke(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a real Snakemake ran the smoke study, with a backbone pre-trained for three steps.

    All tests share it: a test that changes it must use a copy (`tests.support.workflow.link_results`).
    """

    def run(folder: Path) -> None:
        shutil.copytree(short_pretraining, folder / "resources")
        done = snakemake(folder)
        assert done.returncode == 0, done.stderr

    return shared_folder(tmp_path_factory, "smoke", run)
