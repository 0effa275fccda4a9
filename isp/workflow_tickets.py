"""A ticket of the workflow: what its header and its place in a study lead to.

The file holds a model's weights. Its backbone's vocabulary or text tower is in the pre-trained weights that the study
began from, its scores are in records beside it, and the settings of its method in the study's description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isp import artifacts, lineage
from isp.backbones import Backbone, Pretrained
from isp.definitions import backbone_of, label_of, task_of
from isp.errors import ArtifactError, ConfigError, IspError
from isp.files import read_json
from isp.lazy import torch
from isp.shapes import Description, Record
from isp.tasks import Task
from isp.tickets import Ticket
from isp.workflow.paths import WEIGHTS

if TYPE_CHECKING:
    from torch import nn

NEEDED = ("backbone", "task", "architecture")
"""Entries of the origin of a ticket of the workflow."""


@dataclass(frozen=True)
class WorkflowTicket:
    """A ticket, and the file that it was read from.

    Attributes:
        path: The file.
        ticket: Its content.
    """

    path: Path
    ticket: Ticket

    @staticmethod
    def read(path: Path) -> WorkflowTicket:
        """Read a ticket of the workflow.

        Raises:
            ArtifactError: A missing, truncated or altered file, or another artifact.
            ConfigError: The ticket is of a model outside of the workflow, or of a backbone or task that this version of
                the package does not have.
        """
        try:
            read = WorkflowTicket(path, artifacts.load_ticket(path))
        except ArtifactError as error:
            raise ArtifactError(str(error)) from None  # without its kind: no list of the stages that make tickets
        missing = [key for key in NEEDED if key not in read.origin]
        if missing:
            raise ConfigError(
                f"{path}: the ticket of a model of your own, its header has no {missing[0]}; load it into the model by "
                "isp.load_ticket(path, model), or export it by isp.export(path, model, folder)"
            )
        try:
            _ = read.backbone, read.task
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return read

    @property
    def origin(self) -> Mapping[str, Any]:
        """What the header says about how the ticket was made."""
        return self.ticket.origin

    @cached_property
    def backbone(self) -> Backbone:
        """Its backbone."""
        return backbone_of(self.origin["backbone"])

    @cached_property
    def task(self) -> Task:
        """Its task."""
        return task_of(self.origin["task"])

    @property
    def names(self) -> tuple[str, str]:
        """Names of the backbone and of the task: those in the study, or of their definitions."""
        backbone, task = (self._cell().get(key) or label_of(self.origin[key]) for key in ("backbone", "task"))
        return backbone, task

    def model(self) -> nn.Module:
        """The model, in evaluation mode.

        Raises:
            ConfigError: The weights are of another model than the header says.
        """
        try:
            return self.backbone.restore(self.ticket.weights, self.origin["architecture"]).eval()
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None

    def inputs(self, columns: Sequence[Sequence[Any]], pretrained: Pretrained, where: str) -> Any:
        """One batch of inputs of the model, prepared as in the study.

        Args:
            columns: Texts, or images as encoded files.
            pretrained: From `pretrained`; for images `architecture` is enough.
            where: Names the inputs in errors.
        """
        num = len(columns[0])
        tensors = self.backbone.prepare(columns, np.arange(num), pretrained, where)
        labels = {"labels": torch.zeros(num, dtype=torch.int64)}
        examples = self.backbone.examples({**tensors, **labels}, pretrained.architecture, "none")
        return examples.batch(torch.arange(num))[0]

    @property
    def architecture(self) -> Pretrained:
        """The backbone without its pre-trained weights and vocabulary."""
        return Pretrained(weights={}, architecture=self.origin["architecture"])

    def pretrained(self, weights: Path | None = None) -> Pretrained:
        """The pre-trained backbone that the study began from.

        Args:
            weights: Its file; None: `resources/backbones/<backbone>.safetensors` beside the `results/` of the ticket.

        Raises:
            ArtifactError: The file is missing, damaged, or not the one that the study used.
            ConfigError: The ticket is not in the folder of a study, and `weights` is None.
        """
        root = self._root()
        holds = "vocabulary" if self.backbone.inputs == "texts" else "text tower"
        name = f"name the pre-trained backbone that it began from by --weights FILE, whose {holds} is needed"
        if weights is None and root is None:
            raise ConfigError(f"{self.path}: the ticket is not in the folder of its study any more; {name}")
        path = weights or Path(root or "", WEIGHTS.format(backbone=self.names[0]))
        if weights is None and not path.exists():
            raise ArtifactError(f"{path}: no such file, but {self.path} began from it; {name}")
        pretrained, _ = artifacts.load_backbone(path)
        used = self._content_of_weights(root) if root else None
        header = lineage.read_header(path) or {}
        differ = pretrained.architecture != self.origin["architecture"]
        if differ or (used and "content" in header and used != header["content"]):
            raise ArtifactError(f"{path}: not the pre-trained backbone that {self.path} began from; name that one")
        return pretrained

    def records(self) -> list[dict[str, Any]]:
        """Records of this ticket and of those of other seeds beside it, by seed; empty if this one was not scored."""
        if not self._cell():
            return []
        variant, sparsity = self.path.parent.parent.name, self.path.parent.name
        paths = self.path.absolute().parents[3].glob(f"seed*/{variant}/{sparsity}/metrics.json")
        found = {path: read_json(path, "evaluate", Record) for path in paths}
        record = found.get(self.path.absolute().with_name("metrics.json"), {})
        header = lineage.read_header(self.path) or {}
        if record.get("ticket", {}).get("content") != header.get("content"):
            return []  # of an earlier ticket in this place
        return sorted(found.values(), key=lambda each: int(each["seed"]))

    def settings(self) -> dict[str, Any]:
        """Settings of the method, from the ticket or from the study's description; empty if neither has them."""
        if "settings" in self.origin:
            return dict(self.origin["settings"])
        cell = self._cell()
        path = self.path.absolute().parents[6] / "study.json" if "variant" in cell else None
        if path is None or not path.is_file():
            return {}
        try:
            variant = read_json(path, "describe", Description)["variants"][cell["variant"]]
        except (IspError, KeyError):
            return {}
        return {**variant["settings"], **variant["by_backbone"].get(cell["backbone"], {})}

    def _cell(self) -> dict[str, Any]:
        """Its cell in a study; empty if it was moved out of one."""
        cell = lineage.cell(self.path)
        return cell if "variant" in cell else {}

    def _root(self) -> Path | None:
        """The folder of `results/`; None if the ticket was moved out of it."""
        place, path = lineage.place(self.path), self.path.absolute().as_posix()
        return Path(path.removesuffix(place)) if place and place.startswith("results/") else None

    def _content_of_weights(self, root: Path) -> str | None:
        """The digest of the pre-trained weights, from the header of the training data if they are still those."""
        data = self.origin.get("inputs", {}).get("data")
        header = lineage.read_header(root / data) if data else None
        if header is None or header.get("content") != self.origin.get("contents", {}).get(data):
            return None
        contents = lineage.facts(header).get("contents", {})
        path = lineage.facts(header).get("inputs", {}).get("weights")
        return contents.get(path) if isinstance(path, str) else None
