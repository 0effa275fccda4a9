"""Fixtures that tests share, loaded by `tests/conftest.py`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from isp.backbones import bert_tiny, clip_tiny
from isp.data import prose
from isp.stages.pretrain import pretrain
from isp.training import Trainer
from tests.support.methods import tiny_trainer
from tests.support.sharing import filled_once, shared_folder
from tests.support.workflow import snakemake

PROSE = (Path(prose.__file__).read_text(encoding="utf-8"), sys.version)
PROSE += tuple(version(name) for name in ("pandas", "scipy", "scikit-learn", "tokenizers"))
"""What the embedded prose and its vocabularies depend on."""


@pytest.fixture(scope="session", autouse=True)
def _prose(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Parse the embedded prose, thousands of files, and learn its vocabularies once for all workers and later runs."""
    parse, learn = prose.sentences, prose.vocabulary
    cached = getattr(pytestconfig, "cache", None)  # missing under `-p no:cacheprovider`
    known = Path(cached.mkdir("prose") if cached else tmp_path_factory.mktemp("prose"))
    known /= hashlib.sha256(repr(PROSE).encode()).hexdigest()

    def remembered(name: str, make: Callable[[], Any]) -> Any:
        def fill(folder: Path) -> None:
            (folder / "content.json").write_text(json.dumps(make()), encoding="utf-8")

        return json.loads((filled_once(known / name, fill) / "content.json").read_text(encoding="utf-8"))

    @cache
    def sentences() -> tuple[prose.Sentence, ...]:
        return tuple(prose.Sentence(*each) for each in remembered("sentences", parse))

    @cache
    def vocabulary(size: int) -> list[str]:
        words: list[str] = remembered(f"vocabulary{size}", lambda: learn(size))
        return words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "sentences", sentences)
        patch.setattr(prose, "vocabulary", vocabulary)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Write files without `fsync`, which only matters if the machine crashes, and costs tests 20 seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


torch.set_num_threads(1)  # results depend on the number of threads to the bit


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Set one thread again if a test changed their number."""
    yield
    torch.set_num_threads(1)


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
