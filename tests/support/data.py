"""Small data in the layouts of their sources, and their prepared forms."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from isp import artifacts
from isp.data.sources import HubDataset
from isp.stages.download import download
from isp.stages.prepare import prepare
from isp.stages.split import split
from isp.tasks import Task


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_mnist(root: Path, split: str, labels: list[int], shard: str = "00000-of-00001") -> Path:
    """Write grey images in which every pixel is ten times the label, in the hub's layout."""
    path = root / "ylecun" / "mnist" / "mnist" / f"{split}-{shard}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(np.full((28, 28), 10 * label, np.uint8)), "path": None} for label in labels]
    parquet.write_table(pa.table({"image": images, "label": labels}), path)
    return path


NUM_TRAIN, NUM_TEST = 120, 30
WORDS = ("a", "b", "c", "d")


def imitate(task: Task, data_root: Path) -> Task:
    """Write small data in the layout of a task's source, and shrink the task; embedded tasks are unchanged."""
    if not isinstance(task.source, HubDataset):
        return task
    source, random = task.source, np.random.Generator(np.random.PCG64(0))
    folder = data_root / source.id / source.folder
    folder.mkdir(parents=True)
    classes = len(task.classes)
    for name, num in ((source.train, NUM_TRAIN), (source.test, NUM_TEST)):
        labels = random.integers(0, classes, num) if classes else random.uniform(0, 5, num).astype(np.float32)
        columns: dict[str, Any] = {source.label: labels.tolist()}
        for column in source.inputs:
            if task.inputs == "texts":
                columns[column] = [" ".join(random.choice(WORDS, 1 + number % 9)) for number in range(num)]
            else:
                sides = random.integers(20, 60, (num, 2))
                pictures = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
                columns[column] = [
                    {"bytes": png(picture), "path": f"{number // 30:05d}_{number % 30:05d}.png"}
                    for number, picture in enumerate(pictures)
                ]
        parquet.write_table(pa.table(columns), folder / f"{name}-00000-of-00001.parquet")
    return replace(task, num_examples=NUM_TRAIN)


PARTS: tuple[artifacts.Part, ...] = ("train", "validation", "test")


def prepared(resources: Path, here: Path) -> None:
    """The digits, in the current folder."""
    download(here, here / "manifest", task="digits")
    split("digits", here, here / "manifest", here / "split")
    weights = resources / "backbones" / "clip_tiny.safetensors"
    prepare("clip_tiny", "digits", here, here / "manifest", here / "split", weights, *(here / part for part in PARTS))
