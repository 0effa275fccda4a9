"""Run the cells of a study in this process: the backbones, tasks and methods by name, put together.

Every ticket has a folder, `results/<study>/runs/<backbone>/<task>/seed<k>/<variant>/<sparsity>/`, with
`ticket.safetensors`, `metrics.json` (validation) and, once asked for, `test.json`. A cell whose `metrics.json` was made
under the same settings is not run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isp import artifacts, masks, registry
from isp.api import save_ticket
from isp.backbones._open_clip import ClipBackbone, classification_loss
from isp.config import Group, Study, TaskLimits
from isp.costs import Stopwatch
from isp.data.images import Images, to_pixels
from isp.data.sources import RawImages
from isp.data.splits import carve
from isp.errors import ArtifactError, IspError, TrainingDiverged
from isp.evaluation import evaluate
from isp.families import Ticket, find_tickets, planned_steps
from isp.prunable import prunable_names
from isp.tasks import ImageTask
from isp.training import load_weights, make_trainer, state_of

Progress = Callable[[int], None]
Reporter = Callable[[str, int], Progress]
"""Told what begins and how many steps it takes; returns what is called with 1 after every step."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where results go, and where pre-trained weights are kept for all studies."""

    results: Path = Path("results")
    resources: Path = Path("resources")


def silent(title: str, total: int) -> Progress:
    """Reports nothing."""
    return lambda _: None


# --- data -------------------------------------------------------------------------------------------------------------


def training_data(study: Study, task_name: str, backbone: ClipBackbone) -> tuple[Images, Images]:
    """Training examples (augmented) and validation examples; both from the official training split."""
    task: ImageTask = registry.load("task", task_name).TASK
    limits = study.tasks.get(task_name, TaskLimits())
    raw = task.source.read("train", study.data_root)
    split = carve(len(raw.labels), task.num_validation, limits.num_train, limits.num_validation)
    train = _images(raw, split.train, backbone, study.device, task_name, limits.augmentation)
    return train, _images(raw, split.validation, backbone, study.device, task_name)


def load_test_data(study: Study, task_name: str, backbone: ClipBackbone) -> Images:
    """The official test split. Only `score_on_test` calls this."""
    task: ImageTask = registry.load("task", task_name).TASK
    raw = task.source.read("test", study.data_root)
    return _images(raw, range(len(raw.labels)), backbone, study.device, task_name)


def _images(
    raw: RawImages, chosen: Any, backbone: ClipBackbone, device: str, where: str, augmentation: Any = "none"
) -> Images:
    return Images(
        pixels=to_pixels(raw, chosen, backbone.image_size, where).to(device),
        labels=torch.from_numpy(raw.labels[chosen]).to(device),
        mean=backbone.mean,
        std=backbone.std,
        augmentation=augmentation,
    )


# --- models -----------------------------------------------------------------------------------------------------------


def pretrained(name: str, resources: Path, report: Reporter = silent) -> nn.Module:
    """The pre-trained model of a backbone: from `resources`, or pre-trained now and kept there.

    All studies share it, so it is always pre-trained by one thread, whatever a study says.
    """
    module = registry.load("backbone", name)
    about = {"backbone": name, "version": module.BACKBONE.version, "pretraining": module.PRETRAINING.model_dump()}
    path = resources / "backbones" / f"{name}.safetensors"
    model: nn.Module = module.BACKBONE.build(0)
    if path.exists():
        weights, found = artifacts.load_weights(path)
        if {key: found.get(key) for key in about} == about:
            load_weights(model, weights, str(path))
            return model
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = module.pretrain(0, report(f"pre-training {name}", module.PRETRAINING.steps))
    torch.set_num_threads(threads)
    artifacts.save_weights(path, model.state_dict(), about)
    return model


def initial_model(study: Study, group: Group, clip: nn.Module) -> nn.Module:
    """What a group begins from: `clip`'s picture tower, or a random one, under the zero-shot head of `clip`."""
    module = registry.load("backbone", group.backbone)
    task: ImageTask = registry.load("task", group.task).TASK
    model: nn.Module = module.BACKBONE.classifier(clip, task.classes, task.templates)
    if study.variants[group.variant].initial == "random":
        load_weights(model.visual, module.BACKBONE.build(1 + group.seed).visual.state_dict())  # type: ignore[arg-type]
    return model.to(study.device)


# --- cells ------------------------------------------------------------------------------------------------------------


def cell_folder(folders: Folders, study: Study, group: Group, sparsity: Decimal) -> Path:
    """The folder of a ticket."""
    path = folders.results / study.study / "runs" / group.backbone / group.task / f"seed{group.seed}"
    return path / group.variant / str(sparsity)


def settings_of(study: Study, group: Group) -> dict[str, Any]:
    """Everything that decides a group's results, as JSON values."""
    task, backbone = registry.load("task", group.task).TASK, registry.load("backbone", group.backbone)
    method = study.method(group.variant)
    return {
        "method": method.name,
        "settings": method.settings.model_dump(mode="json"),
        "initial": study.variants[group.variant].initial,
        "training": study.training[group.backbone].model_dump(mode="json"),
        "limits": study.tasks.get(group.task, TaskLimits()).model_dump(mode="json"),
        "task_version": task.version,
        "backbone_version": backbone.BACKBONE.version,
        "pretraining": backbone.PRETRAINING.model_dump(mode="json"),
        "threads": study.threads,
        "device": study.device,
    }


def read_cell(path: Path) -> dict[str, Any] | None:
    """A cell's `metrics.json`; None if it has not been run or its file is damaged."""
    try:
        found = artifacts.read_json(path / "metrics.json", "run the study")
    except ArtifactError:
        return None
    return found if isinstance(found, dict) else None


def run_group(study: Study, group: Group, folders: Folders, report: Reporter = silent) -> list[dict[str, Any]]:
    """Run what is missing of a group and return the row of every cell, in rising order of sparsity.

    Raises:
        IspError: bad input; cells that were finished stay.
    """
    settings = settings_of(study, group)
    rows = {}
    for sparsity in group.sparsities:
        row = read_cell(cell_folder(folders, study, group, sparsity))
        if row is not None and row["settings"] == settings:
            rows[sparsity] = row
    todo = [sparsity for sparsity in group.sparsities if sparsity not in rows]
    if not todo:
        return [rows[sparsity] for sparsity in sorted(rows)]
    torch.set_num_threads(study.threads)
    module = registry.load("backbone", group.backbone)
    train, validation = training_data(study, group.task, module.BACKBONE)
    method, training = study.method(group.variant), study.training[group.backbone]
    steps = planned_steps(method, training, len(train), todo)  # refuses an impossible schedule before any work
    model = initial_model(study, group, pretrained(group.backbone, folders.resources, report))
    trainer = make_trainer(
        model,
        train,
        classification_loss,
        training,
        prunable_names(model, module.BACKBONE.prunable),
        group.seed,
    )
    title = f"{group.backbone} {group.task} seed {group.seed} {group.variant}"
    trainer = replace(trainer, progress=report(title, steps))
    watch = Stopwatch(study.device)
    metric = registry.load("task", group.task).TASK.metric
    try:
        for ticket in find_tickets(method, trainer, state_of(model), todo):
            folder = cell_folder(folders, study, group, ticket.sparsity)
            load_weights(model, ticket.weights)
            row = _row(study, group, ticket, model, evaluate(model, validation, metric), watch)
            row["settings"] = settings
            save_ticket(folder / "ticket.safetensors", ticket)
            artifacts.write_json(folder / "metrics.json", row)
            rows[ticket.sparsity] = row
    except TrainingDiverged as error:
        path = cell_folder(folders, study, group, todo[0]).parent / "last_good_state.safetensors"
        artifacts.save_state(path, error.state, {"settings": settings})
        raise IspError(f"{error} It was written to {path}.") from None
    return [rows[sparsity] for sparsity in sorted(rows)]


def _row(
    study: Study, group: Group, ticket: Ticket, model: nn.Module, score: float, watch: Stopwatch
) -> dict[str, Any]:
    parameters = dict(model.named_parameters())
    zeros = {name: parameters[name] != 0 for name in ticket.mask}
    return {
        "study": study.study,
        "backbone": group.backbone,
        "task": group.task,
        "seed": group.seed,
        "variant": group.variant,
        "method": ticket.method,
        "sparsity": str(ticket.sparsity),
        "zero_weights": masks.num_weights(zeros) - masks.num_kept(zeros),  # counted on the evaluated weights
        "prunable_weights": masks.num_weights(zeros),
        "validation": round(score, 4),
        "finding": asdict(ticket.finding),
        "retraining": asdict(ticket.retraining),
        "rounds": ticket.rounds,
        "measured": {"seconds": round(watch.lap(), 2), "peak_memory_mb": round(watch.peak_memory_mb())},
    }


def score_on_test(study: Study, group: Group, sparsity: Decimal, folders: Folders) -> float:
    """Score a finished ticket on the official test split, once; the score is kept in `test.json`.

    Raises:
        ArtifactError: the ticket is missing or damaged.
    """
    folder = cell_folder(folders, study, group, sparsity)
    settings = settings_of(study, group)
    if (folder / "test.json").exists():
        found = artifacts.read_json(folder / "test.json", "run the study with --test")
        if found["settings"] == settings:
            return float(found["test"])
    torch.set_num_threads(study.threads)
    module = registry.load("backbone", group.backbone)
    weights, _, _ = artifacts.load_ticket(folder / "ticket.safetensors")
    model = initial_model(study, group, module.BACKBONE.build(0))
    load_weights(model, weights, str(folder / "ticket.safetensors"))
    task: ImageTask = registry.load("task", group.task).TASK
    result = round(evaluate(model, load_test_data(study, group.task, module.BACKBONE), task.metric), 4)
    artifacts.write_json(folder / "test.json", {"test": result, "metric": task.metric, "settings": settings})
    return result
