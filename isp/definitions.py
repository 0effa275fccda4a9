"""Backbones and tasks by name or by a study file's definition: any CLIP or BERT, any dataset in the hub's layout.

Stages receive a definition as JSON in place of a name, so that changing it reruns the jobs that depend on it.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from isp import registry
from isp.backbones import Backbone
from isp.data.sources import HubDataset, HubModel
from isp.data.splits import Rule
from isp.errors import ConfigError, shown, unknown
from isp.parsing import load_yaml
from isp.settings import Settings, parse
from isp.tasks import ImageTask, Task, TextTask
from isp.untrusted import check_file_name

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=200)]


def _check_relative(key: str, value: str) -> str:
    """Return a path below a repository, or a part of one, if it is relative, without `..`, and not a pattern."""
    try:
        check_file_name(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if re.search(r"[*?\[\]\s]", value):
        raise ValueError(f"{key}: {shown(value)} must be a name, without spaces, *, ?, [ and ]")
    return value


_FOREIGN = {"clip": ("pooler", "case", "max_length"), "bert": ("architecture",)}
"""Keys that a definition of a family does not have."""


class BackboneDefinition(Settings):
    """A CLIP in open_clip's files, or a BERT in transformers' files, from the hub or a local folder."""

    family: Literal["clip", "bert"] = Field(description="kind of model, and of the library whose files it has")
    id: str = Field(default="", pattern=r"^([\w.-]+/[\w.-]+)?$", description="name on the hub, owner/name")
    revision: str = Field(default="main", description="commit or branch on the hub")
    folder: str = Field(default="", description="local folder of the files, instead of an id")
    architecture: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+$",
        description="clip from the hub: open_clip's name; null: open_clip_config.json",
    )
    pooler: Literal["kept", "pruned", "random"] = Field(
        default="kept", description="bert: whether the pooler is prunable; random: it is not, and the weights lack one"
    )
    case: Literal["lower", "kept"] = Field(default="lower", description="bert: case of the texts")
    max_length: int = Field(default=128, ge=8, le=512, description="bert: maximum number of tokens of a text or pair")

    @model_validator(mode="after")
    def _check(self) -> BackboneDefinition:
        if bool(self.id) == bool(self.folder):
            raise ValueError("a backbone needs either an id (owner/name on the hub) or a folder")
        for key in ("id", "revision"):
            if key in self.model_fields_set and getattr(self, key):
                _check_relative(key, getattr(self, key))
        for key in self.model_fields_set.intersection(_FOREIGN[self.family]):
            raise ValueError(f"{key}: not a key of family {self.family!r}")
        if self.architecture and self.folder:
            raise ValueError("architecture: must be left out with a folder, whose open_clip_config.json specifies it")
        if self.architecture and self.architecture not in _architectures():
            raise ValueError(unknown("architecture", self.architecture, _architectures()))
        if self.architecture:
            model = _architectures()[self.architecture]
            vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
            borrowed = "timm_model_name" in vision or bool({"hf_model_name", "hf_tokenizer_name"} & set(text))
            if borrowed or {"custom_text", "multimodal_cfg"} & set(model) or not isinstance(vision.get("layers"), int):
                raise ValueError(
                    f"architecture: {self.architecture!r} has a tower or tokenizer of another library, a ResNet or a "
                    f"decoder; only open_clip's own image and text transformers are supported"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_foreign(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys of the other family, so that the result, such as study.json, can be read again."""
        return {key: value for key, value in dumped(self).items() if key not in _FOREIGN[self.family]}

    def build(self) -> Backbone:
        """Build the backbone."""
        from isp.backbones._bert import BertBackbone
        from isp.backbones._open_clip import ClipBackbone

        source = HubModel(id=self.id, revision=self.revision, folder=self.folder)
        if self.family == "clip":
            return ClipBackbone(architecture=self.architecture, source=source)
        return BertBackbone(
            source=source,
            prune_pooler=self.pooler == "pruned",
            random_pooler=self.pooler == "random",
            lower_case=self.case == "lower",
            max_length=self.max_length,
        )


@cache
def _architectures() -> dict[str, dict[str, Any]]:
    """Return open_clip's architectures by name, without importing it, which takes seconds."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    paths = [path for folder in folders for path in (Path(folder) / "model_configs").glob("*.json")]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


class TaskDefinition(Settings):
    """Images or texts in parquet files, from the hub or a folder in its layout (`<data_root>/<id>/<folder>/`)."""

    kind: Literal["pictures", "texts"] = Field(description="'pictures' (one input column) or texts (one or two)")
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name on the hub or below data_root")
    revision: str = Field(default="main", description="commit or branch on the hub")
    folder: str = Field(default="data", pattern=r"^\w[\w./-]*$", description="folder of the parquet files")
    inputs: tuple[str, ...] = Field(default=("image",), min_length=1, max_length=2, description="input columns")
    label: str = Field(default="label", description="name of the label column")
    train: str = Field(default="train", description="name of the training split")
    test: str = Field(default="test", description="name of the split that is scored once")
    num_examples: int = Field(ge=2, le=10**12, description="size of the training split")
    classes: tuple[str, ...] = Field(description="names in the order of the labels; [] for a regression on texts")
    templates: tuple[str, ...] = Field(default=("a photo of a {}.",), min_length=1, description="prompts for images")
    metrics: tuple[str, ...] = Field(
        min_length=1, max_length=2, description="metrics, of which the first decides; see isp.metrics"
    )
    num_validation: int | None = Field(default=None, ge=1, description="validation examples; null: min(10 %, 5000)")
    split: Rule = Field(
        default="random",
        description="how validation examples are chosen: at random, with the frequencies of the classes (stratified), "
        "or whole groups of files (groups)",
    )
    group: str = Field(default="", description="pattern over file names, for split: groups")

    @model_validator(mode="after")
    def _check(self) -> TaskDefinition:
        for key in ("id", "revision", "folder", "train", "test"):
            _check_relative(key, getattr(self, key))
        if self.kind == "pictures" and (len(self.inputs) != 1 or len(self.classes) < 2):
            raise ValueError("kind 'pictures' needs one column of inputs and two or more classes")
        if len(self.classes) == 1:
            raise ValueError("classes: must be two or more, or none for a regression")
        repeated = [name for name, number in Counter(self.classes).items() if number > 1]
        if repeated:
            raise ValueError(f"classes: each name must occur once, got {', '.join(map(shown, repeated))} repeatedly")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"templates: {shown(template)} needs one {{}}")
        if self.num_validation is not None and self.num_validation >= self.num_examples:
            raise ValueError(f"num_validation = {self.num_validation}: must be in 1 to {self.num_examples - 1}")
        if (self.split == "groups") != bool(self.group) or (self.group and self.kind == "texts"):
            raise ValueError("group: needs split: groups, and vice versa, and works only for kind 'pictures'")
        try:
            if self.group and not re.compile(self.group).groups:
                raise ValueError(f"group: {shown(self.group)} has no group, such as (\\d+)")
        except re.error as error:
            raise ValueError(f"group: {shown(self.group)} is not a regular expression ({error})") from None
        self.build()
        return self

    def build(self) -> Task:
        """Build the task."""
        source = HubDataset(
            **{key: getattr(self, key) for key in ("id", "revision", "folder", "inputs", "label", "group")},
            **{key: getattr(self, key) for key in ("train", "test")},
        )
        common: dict[str, Any] = {
            key: getattr(self, key) for key in ("num_examples", "classes", "metrics", "num_validation", "split")
        }
        # Version 1 let training and validation share a group if its images were of different classes.
        common["version"] = 3 if self.split == "groups" else 1
        if self.kind == "texts":
            return TextTask(source=source, **common)
        return ImageTask(source=source, templates=self.templates, **common)


class Definitions(Settings):
    """Backbones and tasks that a study file adds to those of `isp list`."""

    backbones: dict[Name, BackboneDefinition] = Field(default={}, description="additional backbones by name")
    tasks: dict[Name, TaskDefinition] = Field(default={}, description="additional tasks by name")

    @model_validator(mode="after")
    def _check(self) -> Definitions:
        for kind, names in (("backbone", self.backbones), ("task", self.tasks)):
            for name in names:
                if name in registry.names(kind):
                    raise ConfigError(f"define.{kind}s.{name}: a {kind} of this name exists; choose another one")
        return self


def backbone_of(text: str) -> Backbone:
    """Return a backbone by name, or by its definition as YAML (which includes JSON).

    Raises:
        ConfigError: If there is no such backbone, or its definition is invalid.
    """
    values = _mapping(text)
    if values is not None:
        return parse(BackboneDefinition, values, "backbone").build()
    backbone: Backbone = registry.load("backbone", text).BACKBONE
    return backbone


def task_of(text: str) -> Task:
    """Return a task by name, or by its definition as YAML.

    Raises:
        ConfigError: If there is no such task, or its definition is invalid.
    """
    values = _mapping(text)
    if values is not None:
        return parse(TaskDefinition, values, "task").build()
    task: Task = registry.load("task", text).TASK
    return task


def label_of(text: str) -> str:
    """Return the name of a backbone or task in messages: its name, or the id or folder in its definition."""
    values = _mapping(text)
    return text if values is None else str(values.get("id") or values.get("folder") or "defined in the study")


def _mapping(text: str) -> Mapping[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        values = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown(text)}: not YAML ({' '.join(str(error).split())})") from None
    return values if isinstance(values, dict) else {}
