"""Tickets of the workflow, and the files found through their header and their place in a study.

The file contains a model's weights. Its backbone's vocabulary or text tower is in the pre-trained weights of the study,
its scores are in records in its folder, and the settings of its method are in the study's description.
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
    """A ticket and its file.

    Attributes:
        path: Path of the file.
        ticket: Content of the file.
    """

    path: Path
    ticket: Ticket

    @staticmethod
    def read(path: Path) -> WorkflowTicket:
        """Read a ticket of the workflow.

        Raises:
            ArtifactError: If the file is missing, truncated, altered or another artifact.
            ConfigError: If the ticket belongs to a model outside of the workflow, or to a backbone or task that this
                version of the package lacks.
        """
        try:
            source = WorkflowTicket(path, artifacts.load_ticket(path))
        except ArtifactError as error:
            raise ArtifactError(str(error)) from None  # without its kind, which would add a list of stages
        missing = [key for key in NEEDED if key not in source.origin]
        if missing:
            raise ConfigError(
                f"{path}: the ticket of your own model, because its header has no {missing[0]}; load it into the model "
                "with isp.load_ticket(path, model), or export it with isp.export(path, model, folder)"
            )
        try:
            _ = source.backbone, source.task
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return source

    @property
    def origin(self) -> Mapping[str, Any]:
        """Entries of the header about the origin of the ticket."""
        return self.ticket.origin

    @cached_property
    def backbone(self) -> Backbone:
        """Backbone of the ticket."""
        return backbone_of(self.origin["backbone"])

    @cached_property
    def task(self) -> Task:
        """Task of the ticket."""
        return task_of(self.origin["task"])

    @property
    def names(self) -> tuple[str, str]:
        """Names of the backbone and of the task, in the study or in their definitions."""
        backbone, task = (self._cell().get(key) or label_of(self.origin[key]) for key in ("backbone", "task"))
        return backbone, task

    def model(self) -> nn.Module:
        """Build the model, in evaluation mode.

        Raises:
            ConfigError: If the weights belong to another model than the header says.
        """
        try:
            return self.backbone.restore(self.ticket.weights, self.origin["architecture"]).eval()
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None

    def inputs(self, columns: Sequence[Sequence[Any]], pretrained: Pretrained, where: str) -> Any:
        """Return one batch of inputs of the model, prepared as in the study.

        Args:
            columns: Texts, or images as encoded files.
            pretrained: Result of `pretrained`; for images `architecture` is enough.
            where: Name of the inputs in error messages.
        """
        num = len(columns[0])
        tensors = self.backbone.prepare(columns, np.arange(num), pretrained, where)
        labels = {"labels": torch.zeros(num, dtype=torch.int64)}
        examples = self.backbone.examples({**tensors, **labels}, pretrained.architecture, "none")
        return examples.batch(torch.arange(num))[0]

    @property
    def architecture(self) -> Pretrained:
        """Backbone without its pre-trained weights and vocabulary."""
        return Pretrained(weights={}, architecture=self.origin["architecture"])

    def pretrained(self, weights: Path | None = None) -> Pretrained:
        """Load the pre-trained backbone of the study.

        Args:
            weights: Path of its file; None: `resources/backbones/<backbone>.safetensors` next to the ticket's
                `results/`.

        Raises:
            ArtifactError: If the file is missing, damaged, or not the one that the study used.
            ConfigError: If the ticket is not in the folder of a study, and `weights` is None.
        """
        root = self._root()
        holds = "vocabulary" if self.backbone.inputs == "texts" else "text tower"
        name = f"name its pre-trained backbone, whose {holds} is needed, by --weights FILE"
        if weights is None and root is None:
            raise ConfigError(f"{self.path}: the ticket is no longer in the folder of its study; {name}")
        path = weights or Path(root or "", WEIGHTS.format(backbone=self.names[0]))
        if weights is None and not path.exists():
            raise ArtifactError(f"{path}: no such file, but {self.path} was made from it; {name}")
        pretrained, _ = artifacts.load_backbone(path)
        used = self._content_of_weights(root) if root else None
        header = lineage.read_header(path) or {}
        differ = pretrained.architecture != self.origin["architecture"]
        if differ or (used and "content" in header and used != header["content"]):
            raise ArtifactError(f"{path}: not the pre-trained backbone of {self.path}; name the right one")
        return pretrained

    def records(self) -> list[dict[str, Any]]:
        """Return the records of this ticket and of other seeds, by seed; empty if this ticket was not scored."""
        if not self._cell():
            return []
        variant, sparsity = self.path.parent.parent.name, self.path.parent.name
        paths = self.path.absolute().parents[3].glob(f"seed*/{variant}/{sparsity}/metrics.json")
        records = {path: read_json(path, "evaluate", Record) for path in paths}
        record = records.get(self.path.absolute().with_name("metrics.json"), {})
        header = lineage.read_header(self.path) or {}
        if record.get("ticket", {}).get("content") != header.get("content"):
            return []  # the record belongs to an earlier ticket in this place
        return sorted(records.values(), key=lambda each: int(each["seed"]))

    def settings(self) -> dict[str, Any]:
        """Return the settings of the method from the ticket or the study's description; empty if neither has them."""
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
        """Return its cell in a study; empty if it was moved out of one."""
        cell = lineage.cell(self.path)
        return cell if "variant" in cell else {}

    def _root(self) -> Path | None:
        """Return the folder that contains `results/`, or None if the ticket was moved out of it."""
        place, path = lineage.place(self.path), self.path.absolute().as_posix()
        return Path(path.removesuffix(place)) if place and place.startswith("results/") else None

    def _content_of_weights(self, root: Path) -> str | None:
        """Return the digest of the pre-trained weights in the header of the training data, if that is unchanged."""
        data = self.origin.get("inputs", {}).get("data")
        header = lineage.read_header(root / data) if data else None
        if header is None or header.get("content") != self.origin.get("contents", {}).get(data):
            return None
        contents = lineage.facts(header).get("contents", {})
        path = lineage.facts(header).get("inputs", {}).get("weights")
        return contents.get(path) if isinstance(path, str) else None
