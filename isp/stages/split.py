"""Carve a validation split from a task's training split, once, for all backbones, seeds and studies."""

from __future__ import annotations

from isp import artifacts, preparation
from isp.definitions import label_of, task_of
from isp.stages._options import DataRoot, Manifest, Output, Task
from isp.stages._work import check_manifest, working

VERSION = 1


def split(task: Task, data_root: DataRoot, manifest: Manifest, output: Output) -> None:
    """Write which examples of the official training split are used for training and which for validation."""
    with working(output):
        check_manifest(manifest, data_root)
        definition = task_of(task)
        parts, rule = preparation.split(label_of(task), definition, data_root)
        about = {"stage": "split", "version": VERSION, "task": task, "rule": rule}
        artifacts.save_split(output, parts, about)
