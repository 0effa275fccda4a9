"""Study files: which variants are run on which backbones, tasks, sparsities and seeds, under which training.

A study file is complete, it inherits nothing. The keys of a method's settings stand in its file in `isp/methods/`,
those of a training protocol in `isp.training.Training`; everything else in a study file is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from isp import registry
from isp.data.images import Augmentation
from isp.errors import ConfigError, unknown
from isp.families import Method, check_sparsities, make_method
from isp.settings import Settings, parse
from isp.sparsity import parse_sparsity
from isp.training import Training

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Initial = Literal["pretrained", "random"]


class Variant(Settings):
    """A method under certain settings, by a name of its own."""

    method: str
    settings: dict[str, Any] = Field(default={}, description="of the method; keys in its file")
    initial: Initial = Field(
        default="pretrained", description="weights to begin from; the head is the pre-trained one's"
    )


class TaskLimits(Settings):
    """How much of a task's training split is used, and how it is augmented."""

    num_train: int | None = Field(default=None, ge=1, description="training examples; null: all")
    num_validation: int | None = Field(default=None, ge=1, description="validation examples used; null: all")
    augmentation: Augmentation = "crop"


class Block(Settings):
    """A block of the grid: every combination of its lists is a cell. `dense` variants run at sparsity 0 only."""

    backbone: str
    tasks: list[str] = Field(min_length=1)
    variants: list[str] = Field(min_length=1)
    sparsities: list[str | float] = Field(default=[], description="decimals in [0, 1); none for dense variants")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


class Study(Settings):
    """A study file."""

    study: Name = Field(description="name of the study and of its folder in results/")
    data_root: Path = Field(default=Path("resources/data"), description="folder of datasets in the hub's layout")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(default=1, ge=1, description="torch threads of a process; the bits depend on it")
    training: dict[str, Training] = Field(description="the protocol of each backbone")
    tasks: dict[str, TaskLimits] = Field(default={}, description="limits of tasks")
    variants: dict[Name, Variant]
    grid: list[Block] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Study:
        seen: set[tuple[object, ...]] = set()
        for backbone in self.training:
            registry.load("backbone", backbone)
        for index, block in enumerate(self.grid):
            where = f"grid.{index}"
            registry.load("backbone", block.backbone)
            if block.backbone not in self.training:
                raise ConfigError(f"{where}: {unknown('backbone under training', block.backbone, self.training)}")
            for name in block.variants:
                if name not in self.variants:
                    raise ConfigError(f"{where}: {unknown('variant', name, self.variants)}")
        for name, variant in self.variants.items():
            make_method(variant.method, variant.settings, f"variants.{name}")
        for task in {*self.tasks, *(task for block in self.grid for task in block.tasks)}:
            registry.load("task", task)
        for group in self.groups():
            for sparsity in group.sparsities:
                cell = (group.backbone, group.task, group.variant, group.seed, sparsity)
                if cell in seen:
                    raise ConfigError(f"grid: the cell {'/'.join(map(str, cell))} is there twice")
                seen.add(cell)
        return self

    def method(self, variant: str) -> Method:
        """The method of a variant with its settings."""
        return make_method(self.variants[variant].method, self.variants[variant].settings, f"variants.{variant}")

    def groups(self) -> Iterator[Group]:
        """Cells that differ in sparsity only, which a family computes together, in the order of the file."""
        for index, block in enumerate(self.grid):
            asked = [parse_sparsity(value) for value in block.sparsities]
            for task in block.tasks:
                for seed in block.seeds:
                    for variant in block.variants:
                        method = self.method(variant)
                        dense = method.module.FAMILY == "dense"
                        sparsities = tuple([Decimal("0.0000")] if dense else asked)
                        try:
                            check_sparsities(method, sparsities)
                        except ConfigError as error:
                            raise ConfigError(f"grid.{index}: {error}") from None
                        yield Group(
                            backbone=block.backbone, task=task, seed=seed, variant=variant, sparsities=sparsities
                        )


class Group(Settings):
    """The cells of one backbone, task, seed and variant."""

    backbone: str
    task: str
    seed: int
    variant: str
    sparsities: tuple[Decimal, ...]


def parse_study(values: Mapping[str, Any], where: str) -> Study:
    """A study from keys and values.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    return parse(Study, values, where)


def load_study(path: Path) -> Study:
    """A study from a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or a key or value that is not allowed.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a study file is a mapping of keys to values, this is a {type(values).__name__}")
    return parse_study(values, str(path))
