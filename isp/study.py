"""Run the cells of a study in this process: the backbones, tasks and methods by name, put together.

Every ticket has a folder, `results/<study>/runs/<backbone>/<task>/seed<k>/<variant>/<sparsity>/`, with
`ticket.safetensors`, `metrics.json` (validation) and, once asked for, `test.json`. A cell whose ticket and
`metrics.json` were made under the same settings is not run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isp import artifacts, masks, registry
from isp.api import load_ticket, save_ticket
from isp.backbones._open_clip import ClipBackbone, classification_loss
from isp.config import Group, Study, TaskLimits
from isp.costs import Stopwatch
from isp.data.images import Images, to_pixels
from isp.data.sources import RawImages, Split
from isp.data.splits import carve
from isp.errors import ArtifactError, ConfigError, DataError, IspError, TrainingDiverged
from isp.evaluation import evaluate
from isp.families import Ticket, find_tickets, planned_steps
from isp.prunable import prunable_names
from isp.tasks import ImageTask
from isp.training import VERSION as TRAINING_VERSION
from isp.training import load_weights, make_trainer, state_of

Row = dict[str, Any]
Progress = Callable[[int], None]
Reporter = Callable[[str, int], Progress]
"""Told what begins and how many steps it takes; returns what is called with 1 after every step."""

ROW_KEYS = {"study", "backbone", "task", "seed", "variant", "method", "sparsity", "zero_weights", "prunable_weights"}
ROW_KEYS |= {"validation", "finding", "retraining", "rounds", "measured", "settings"}


def silent(title: str, total: int) -> Progress:
    """Reports nothing."""
    return lambda _: None


@dataclass(kw_only=True)
class Runner:
    """Runs groups of cells of one study; what groups share (data, the pre-trained model) is made once and kept.

    Attributes:
        study: the study.
        results: folder that results go to.
        resources: folder of pre-trained weights, shared by all studies.
        report: told what begins.
    """

    study: Study
    results: Path = Path("results")
    resources: Path = Path("resources")
    report: Reporter = silent
    _training: dict[tuple[str, str], tuple[Images, Images]] = field(default_factory=dict, repr=False)
    _test: dict[tuple[str, str], Images] = field(default_factory=dict, repr=False)
    _pretrained: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def check(self, groups: Sequence[Group]) -> None:
        """Refuse before any work what would fail later: device, data, impossible schedules, a folder that is read-only.

        Raises:
            IspError: says what.
        """
        device = torch.device(self.study.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device = {self.study.device!r}: torch sees {torch.cuda.device_count()} CUDA devices here"
            )
        for group in groups:
            todo = [sparsity for sparsity in group.sparsities if self.finished(group, sparsity) is None]
            if todo:
                train, _ = self.training_data(group)
                method, training = self.study.method(group.variant), self.study.training[group.backbone]
                try:
                    planned_steps(method, training, len(train), todo)
                except ConfigError as error:
                    raise ConfigError(f"variant {group.variant!r} on {group.task!r}: {error}") from None
        artifacts.check_writable(self.folder)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.results / self.study.study

    def cell_folder(self, group: Group, sparsity: Decimal) -> Path:
        """The folder of a ticket."""
        path = self.folder / "runs" / group.backbone / group.task / f"seed{group.seed}"
        return path / group.variant / str(sparsity)

    def settings_of(self, group: Group) -> dict[str, Any]:
        """Everything that decides a group's results, as JSON values."""
        task, backbone = registry.load("task", group.task).TASK, registry.load("backbone", group.backbone)
        method = self.study.method(group.variant)
        return {
            "method": method.name,
            "version": method.module.VERSION,
            "training_version": TRAINING_VERSION,
            "settings": method.settings.model_dump(mode="json"),
            "initial": self.study.variants[group.variant].initial,
            "training": self.study.training[group.backbone].model_dump(mode="json"),
            "limits": self._limits(group).model_dump(mode="json"),
            "task_version": task.version,
            "backbone_version": backbone.BACKBONE.version,
            "pretraining": backbone.PRETRAINING.model_dump(mode="json"),
            "seed": group.seed,
            "threads": self.study.threads,
            "device": self.study.device,
        }

    # --- data ---------------------------------------------------------------------------------------------------------

    def training_data(self, group: Group) -> tuple[Images, Images]:
        """Training examples (augmented) and validation examples; both from the official training split."""
        key = (group.backbone, group.task)
        if key not in self._training:
            task, limits = _task(group), self._limits(group)
            raw = _read(group.task, "train", self.study.data_root)
            split = carve(len(raw.labels), task.num_validation, limits.num_train, limits.num_validation)
            train = self._images(raw, split.train, group)
            self._training[key] = (
                replace(train, augmentation=limits.augmentation),
                self._images(raw, split.validation, group),
            )
        return self._training[key]

    def _test_data(self, group: Group) -> Images:
        """The official test split. Only `score_on_test` calls this."""
        key = (group.backbone, group.task)
        if key not in self._test:
            raw = _read(group.task, "test", self.study.data_root)
            self._test[key] = self._images(raw, np.arange(len(raw.labels)), group)
        return self._test[key]

    def _limits(self, group: Group) -> TaskLimits:
        return self.study.tasks.get(group.task, TaskLimits())

    def _images(self, raw: RawImages, chosen: np.ndarray, group: Group) -> Images:
        backbone: ClipBackbone = registry.load("backbone", group.backbone).BACKBONE
        return Images(
            pixels=to_pixels(raw, chosen, backbone.image_size, group.task).to(self.study.device),
            labels=torch.from_numpy(raw.labels[chosen]).to(self.study.device),
            mean=backbone.mean,
            std=backbone.std,
        )

    # --- models -------------------------------------------------------------------------------------------------------

    def pretrained(self, name: str) -> nn.Module:
        """The pre-trained model of a backbone: from `resources`, or pre-trained now and kept there.

        All studies share it, so it is always pre-trained by one thread, whatever a study says.
        """
        if name in self._pretrained:
            return self._pretrained[name]
        module = registry.load("backbone", name)
        about = {"backbone": name, "version": module.BACKBONE.version, "pretraining": module.PRETRAINING.model_dump()}
        path = self.resources / "backbones" / f"{name}.safetensors"
        weights, found = artifacts.load_weights(path) if path.exists() else ({}, {})
        if {key: found.get(key) for key in about} == about:
            model: nn.Module = module.BACKBONE.build(0)
            load_weights(model, weights, str(path))
        else:
            torch.set_num_threads(1)
            model = module.pretrain(0, self.report(f"pre-training {name}", module.PRETRAINING.steps))
            artifacts.save_weights(path, model.state_dict(), about)
        self._pretrained[name] = model
        return model

    def initial_model(self, group: Group, clip: nn.Module) -> nn.Module:
        """What a group begins from: `clip`'s picture tower, or a random one, under the zero-shot head of `clip`."""
        module, task = registry.load("backbone", group.backbone), _task(group)
        model: nn.Module = module.BACKBONE.classifier(clip, task.classes, task.templates)
        if self.study.variants[group.variant].initial == "random":
            load_weights(model.visual, module.BACKBONE.build(1 + group.seed).visual.state_dict())  # type: ignore[arg-type]
        return model.to(self.study.device)

    # --- cells --------------------------------------------------------------------------------------------------------

    def finished(self, group: Group, sparsity: Decimal) -> Row | None:
        """The row of a cell that is done under the study's settings; None if it is not, or its files are damaged."""
        folder = self.cell_folder(group, sparsity)
        try:
            row = artifacts.read_json(folder / "metrics.json", "run the study")
        except ArtifactError:
            return None
        whole = isinstance(row, dict) and row.keys() >= ROW_KEYS and row["settings"] == self.settings_of(group)
        return row if whole and (folder / "ticket.safetensors").exists() else None

    def run(self, group: Group) -> list[Row]:
        """Run what is missing of a group and return the row of every cell, in rising order of sparsity.

        Raises:
            IspError: bad input; cells that were finished stay.
        """
        rows = {sparsity: self.finished(group, sparsity) for sparsity in sorted(group.sparsities)}
        todo = [sparsity for sparsity, row in rows.items() if row is None]
        if todo:
            rows |= self._run(group, todo)
        return [row for row in rows.values() if row is not None]

    def _run(self, group: Group, todo: list[Decimal]) -> dict[Decimal, Row]:
        train, validation = self.training_data(group)
        method, training = self.study.method(group.variant), self.study.training[group.backbone]
        title = f"{group.backbone} {group.task} seed {group.seed} {group.variant}"
        steps = planned_steps(method, training, len(train), todo)
        clip = self.pretrained(group.backbone)
        torch.set_num_threads(self.study.threads)
        model = self.initial_model(group, copy.deepcopy(clip))
        names = prunable_names(model, registry.load("backbone", group.backbone).BACKBONE.prunable)
        trainer = make_trainer(
            model, train, classification_loss, training, names, group.seed, self.report(title, steps)
        )
        rows: dict[Decimal, Row] = {}
        watch = Stopwatch(self.study.device)
        try:
            for ticket in find_tickets(method, trainer, state_of(model), todo):
                load_weights(model, ticket.weights)
                row = self._row(group, ticket, model, evaluate(model, validation, _task(group).metric), watch)
                self._save(group, ticket, row)
                rows[ticket.sparsity] = row
        except TrainingDiverged as error:
            kept = self.cell_folder(group, todo[0]).parent / "last_good_state.safetensors"
            artifacts.save_state(kept, error.state, {"settings": self.settings_of(group)})
            if error.mask is not None:
                artifacts.save_mask(kept.with_name("last_good_mask.safetensors"), error.mask, {})
            raise IspError(f"{title}: {error} It was written to {kept}.") from None
        return rows

    def _save(self, group: Group, ticket: Ticket, row: Row) -> None:
        """Ticket and row as a pair: the row is removed first and written last, so that it never speaks of another."""
        folder = self.cell_folder(group, ticket.sparsity)
        for name in ("metrics.json", "test.json"):
            (folder / name).unlink(missing_ok=True)
        save_ticket(folder / "ticket.safetensors", replace(ticket, origin=row["settings"]))
        artifacts.write_json(folder / "metrics.json", row)

    def _row(self, group: Group, ticket: Ticket, model: nn.Module, score: float, watch: Stopwatch) -> Row:
        parameters = dict(model.named_parameters())
        evaluated = {name: parameters[name] for name in ticket.mask}
        return {
            "study": self.study.study,
            "backbone": group.backbone,
            "task": group.task,
            "seed": group.seed,
            "variant": group.variant,
            "method": ticket.method,
            "sparsity": str(ticket.sparsity),
            "zero_weights": masks.num_weights(evaluated) - masks.num_kept(evaluated),
            "prunable_weights": masks.num_weights(evaluated),
            "validation": round(score, 4),
            "finding": asdict(ticket.finding),
            "retraining": asdict(ticket.retraining),
            "rounds": ticket.rounds,
            "measured": {"seconds": round(watch.lap(), 2), "peak_memory_mb": round(watch.peak_memory_mb())},
            "settings": self.settings_of(group),
        }

    def score_on_test(self, group: Group, sparsity: Decimal) -> float:
        """Score a finished ticket on the official test split, once; the score is kept in `test.json`.

        Raises:
            ArtifactError: the ticket is missing, damaged, or of other settings.
        """
        folder, settings = self.cell_folder(group, sparsity), self.settings_of(group)
        if (folder / "test.json").exists():
            found = artifacts.read_json(folder / "test.json", "run the study with --test")
            if isinstance(found, dict) and found.get("settings") == settings:
                return float(found["test"])
        ticket = load_ticket(folder / "ticket.safetensors")
        if ticket.origin != settings:
            raise ArtifactError(f"{folder}/ticket.safetensors: made under other settings; run the study again")
        torch.set_num_threads(self.study.threads)
        model = self.initial_model(group, registry.load("backbone", group.backbone).BACKBONE.build(0))
        load_weights(model, ticket.weights, f"the weights in {folder}/ticket.safetensors")
        task = _task(group)
        result = round(evaluate(model, self._test_data(group), task.metric), 4)
        artifacts.write_json(folder / "test.json", {"test": result, "metric": task.metric, "settings": settings})
        return result


def _task(group: Group) -> ImageTask:
    task: ImageTask = registry.load("task", group.task).TASK
    return task


def _read(name: str, split: Split, data_root: Path) -> RawImages:
    """A split of a task.

    Raises:
        DataError: missing or damaged files, or a label that is no class.
    """
    task: ImageTask = registry.load("task", name).TASK
    raw = task.source.read(split, data_root)
    wrong = (raw.labels < 0) | (raw.labels >= len(task.classes))
    if wrong.any():
        label = raw.labels[wrong][0]
        where = f"{split} split of {name!r}: label {label} at example {int(wrong.argmax())}"
        raise DataError(f"{where}; allowed are 0 to {len(task.classes) - 1}")
    return raw
