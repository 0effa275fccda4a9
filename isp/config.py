"""Study files: which variants are run on which backbones, tasks, sparsities and seeds, under which training.

A study file is complete, it inherits nothing. The keys of a method's settings stand in its file in `isp/methods/`,
those of a training protocol in `isp.training.Training`, those of a task's limits in `isp.tasks.TaskLimits`; everything
else in a study file is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from isp import registry
from isp.backbones import Backbone
from isp.definitions import Definitions, backbone_of, task_of
from isp.errors import ConfigError, unknown
from isp.families import Method, check_sparsities, make_method, planned_steps, sparsities_of
from isp.files import LARGEST_STUDY, read_text
from isp.parsing import load_yaml
from isp.runtime import instructions
from isp.runtime.instructions import InstructionSet
from isp.settings import Settings, parse
from isp.sparsity import parse_sparsity
from isp.tasks import Task, TaskLimits
from isp.training import COMPILED_ON_A_GPU, Training

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=200)]
Initial = Literal["pretrained", "random"]
RESERVED = ("initial", "similarity.json", "similarity.log")
"""What else is in the folder of a run, or of its logs, beside those of variants; `dense` holds the dense run, too."""
CHAIN = ".rounds"
"""Ending of the workflow's own variants, the chains of rounds of pooled ones; no variant of a study may have it."""


class Variant(Settings):
    """A method under certain settings, by a name of its own."""

    method: str = Field(description="a file's name in `isp/methods/`, or the path of a file elsewhere")
    settings: dict[str, Any] = Field(default={}, description="of the method; keys in its file")
    by_backbone: dict[str, dict[str, Any]] = Field(
        default={}, description="settings that are others on a backbone; what makes other jobs must not be among them"
    )
    initial: Initial = Field(
        default="pretrained", description="weights to begin from; the head is the pre-trained one's"
    )
    steps_of: str | None = Field(
        default=None,
        description="a variant to which T is raised: all steps that its ticket of the same sparsity takes, finding "
        "included; for methods that train in one run",
    )


class Protocol(Training):
    """A training protocol whose T may be said in epochs, and so depend on the task."""

    steps: int = Field(default=0, ge=1, le=10**9, description="T in optimizer updates; or else `epochs`")
    epochs: float | None = Field(default=None, gt=0, le=10**6, description="T in epochs of whole batches")

    @model_validator(mode="after")
    def _check(self) -> Protocol:
        if ("steps" in self.model_fields_set) == (self.epochs is not None):
            raise ValueError("steps, epochs: a protocol has one of them")
        if self.epochs is None:
            self.of(0)
        return self

    def of(self, num_examples: int) -> Training:
        """The protocol on a training set of `num_examples`.

        Raises:
            ConfigError: T is no longer than the warm-up.
        """
        steps = self.steps if self.epochs is None else round(self.epochs * (num_examples // self.batch_size))
        values = self.model_dump(exclude={"epochs"}) | {"steps": max(1, steps)}
        return parse(Training, values, "training")


GPU_THROUGHPUT = 1e13
CPU_THROUGHPUT = 5e9
"""FLOPs a second of a job, and of a thread of one."""


class Block(Settings):
    """A block of the grid: every combination of its lists is a cell.

    Variants that do not prune (`dense`, `instant_model_soup`) run at sparsity 0 only; soups do where none is given.
    """

    backbone: str
    tasks: list[str] = Field(min_length=1)
    variants: list[str] = Field(min_length=1)
    sparsities: list[str | float] = Field(default=[], description="decimals in [0, 1); none for dense models")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


class Study(Settings):
    """A study file."""

    study: Name = Field(description="name of the study and of its folder in results/")
    question: str = Field(default="", description="what the study asks; the report begins with it")
    data_root: Path = Field(
        default=Path("resources/data"), description="folder of data sets and models in the hub's layout"
    )
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(default=1, ge=1, le=1024, description="torch threads of a process; the bits depend on it")
    instruction_set: InstructionSet = Field(
        default_factory=instructions.default,
        description="kernels of float32 jobs on a CPU. avx2: results have the same bits on all Intel CPUs with AVX2; "
        "native: the libraries choose by the CPU, so bits depend on its type. Default: avx2 where the CPU has it",
    )
    look_aheads: Literal["together", "apart"] | None = Field(
        default=None,
        description="whether the look-ahead copies of a round run one after another in one process, or side by side in "
        "processes of their own, where cores are free; the bits are the same (default: apart where there are cores for "
        "it that the study's other chains of rounds leave idle, never on a GPU or a cluster)",
    )
    keep_weak_masks: bool = Field(
        default=False, description="whether what each look-ahead contributes stays beside the mask of its round"
    )
    throughput: float | None = Field(
        default=None,
        ge=1,
        description="FLOPs a second that a job sustains on the device; planned hours and time limits on a cluster "
        "follow from it (default: 1e13 on a GPU, 5e9 a thread on a CPU)",
    )
    define: Definitions = Field(default=Definitions(), description="backbones and tasks of one's own")
    training: dict[str, Protocol] = Field(description="the protocol of each backbone")
    tasks: dict[str, TaskLimits] = Field(default={}, description="limits of tasks")
    variants: dict[Name, Variant]
    reference: str | None = Field(
        default=None, description="the variant that statistics and verdict compare with others; see `reference_variant`"
    )
    grid: list[Block] = Field(min_length=1)

    def sustained(self) -> float:
        """FLOPs a second that a job is taken to sustain: as the file says, else less than was seen anywhere."""
        return self.throughput or (CPU_THROUGHPUT * self.threads if self.device == "cpu" else GPU_THROUGHPUT)

    def instructions(self, backbone: str) -> InstructionSet:
        """The instruction set of jobs of a backbone; native on a GPU, and where bf16 needs units that AVX2 lacks."""
        if self.device != "cpu" or self.training[backbone].precision != "fp32":
            return "native"
        return self.instruction_set

    @property
    def served_instructions(self) -> InstructionSet:
        """The instruction set of the fork server: that of most jobs; others start in processes of their own."""
        return "avx2" if any(self.instructions(backbone) == "avx2" for backbone in self.training) else "native"

    @model_validator(mode="after")
    def _check(self) -> Study:
        seen: set[tuple[object, ...]] = set()
        if self.look_aheads == "apart" and self.device != "cpu":
            raise ConfigError(
                f"look_aheads = 'apart' with device = {self.device!r}: a job has one GPU, on which copies run one "
                "after another; write together, or leave it out"
            )
        for backbone, protocol in self.training.items():
            self.backbone(backbone)
            if protocol.compile and self.device == "cpu":
                raise ConfigError(f"training.{backbone}: {COMPILED_ON_A_GPU}; set device to cuda, or leave it out")
        for index, block in enumerate(self.grid):
            where = f"grid.{index}"
            taken = self.backbone(block.backbone).inputs
            for name in block.tasks:
                has = self.task(name).inputs
                if has != taken:
                    raise ConfigError(
                        f"{where}: task {name!r} has {has}, but backbone {block.backbone!r} takes {taken}"
                    )
            if block.backbone not in self.training:
                raise ConfigError(f"{where}: {unknown('backbone under training', block.backbone, self.training)}")
            for name in block.variants:
                if name not in self.variants:
                    raise ConfigError(f"{where}: {unknown('variant', name, self.variants)}")
        for name, variant in self.variants.items():
            if name in RESERVED or (name == "dense" and self.method(name).module.FAMILY != "dense"):
                raise ConfigError(f"variants.{name}: runs have a file or folder of this name; choose another one")
            if name.endswith(CHAIN):
                raise ConfigError(
                    f"variants.{name}: names ending in {CHAIN} are the workflow's own; choose another one"
                )
            self.method(name)
            for backbone in variant.by_backbone:
                if backbone not in self.training:
                    where = f"variants.{name}.by_backbone"
                    raise ConfigError(f"{where}: {unknown('backbone under training', backbone, self.training)}")
                if self.method(name, backbone).route != self.method(name).route:
                    raise ConfigError(
                        f"variants.{name}.by_backbone.{backbone}: other jobs than on other backbones; make it a variant"
                    )
            if variant.steps_of is not None:
                self._check_steps_of(name, variant.steps_of)
        for name in self.tasks:
            self.task(name)
        used = {name for block in self.grid for name in block.variants}
        used |= {variant.steps_of for variant in self.variants.values() if variant.steps_of}
        for name in self.variants.keys() - used:
            raise ConfigError(f"variants.{name}: no block of the grid uses it; name it in one, or leave it out")
        for group in self.groups():
            for sparsity in group.sparsities:
                cell = (group.backbone, group.task, group.variant, group.seed, sparsity)
                if cell in seen:
                    raise ConfigError(f"grid: the cell {'/'.join(map(str, cell))} is there twice")
                seen.add(cell)
            self._check_schedule(group)
        self.reference_variant()
        return self

    def _check_schedule(self, group: Group) -> None:
        """Refuse a schedule that cannot run, such as rounds that overrun the budget."""
        try:
            num_train = self.num_train(group.task)
        except ConfigError as error:
            raise ConfigError(f"tasks.{group.task}: {error}") from None
        try:
            for sparsity in group.sparsities:
                protocol = self.protocol(group.backbone, group.task, group.variant, sparsity)
                planned_steps(self.method(group.variant, group.backbone), protocol, num_train, [sparsity])
        except ConfigError as error:
            raise ConfigError(f"variants.{group.variant}, on task {group.task!r}: {error}") from None

    def _check_steps_of(self, name: str, other: str) -> None:
        """Equal budgets are for methods that train in one run; the other's steps must be known beforehand."""
        where = f"variants.{name}.steps_of"
        if other not in self.variants:
            raise ConfigError(f"{where}: {unknown('variant', other, self.variants)}")
        if not self.method(name).traits.one_run:
            raise ConfigError(f"{where}: method {self.variants[name].method!r} does not train in one run of T steps")
        if self.method(other).traits.prunes == "never":
            raise ConfigError(f"{where}: {other!r} has no ticket of the same sparsity, it does not prune; name another")
        rounds = {getattr(self.method(other, backbone).settings, "rounds", "nominal") for backbone in self.training}
        if self.variants[other].steps_of or "measured" in rounds:
            raise ConfigError(f"{where}: the steps of {other!r} are not known beforehand; name another variant")

    def protocol(
        self, backbone: str, task: str, variant: str | None = None, sparsity: Decimal | None = None
    ) -> Training:
        """The protocol of a backbone on a task; for a variant with `steps_of` T is what the other's ticket takes."""
        own = self.training[backbone].of(self.num_train(task))
        other = self.variants[variant].steps_of if variant in self.variants else None
        if other is None or sparsity is None:
            return own
        steps = planned_steps(self.method(other, backbone), own, self.num_train(task), [sparsity])
        return own.model_copy(update={"steps": max(own.steps, steps)})

    def method(self, variant: str, backbone: str = "") -> Method:
        """The method of a variant with its settings on a backbone."""
        own = self.variants[variant]
        special = own.by_backbone.get(backbone)
        where = f"variants.{variant}" + (f".by_backbone.{backbone}" if special else "")
        return make_method(own.method, {**own.settings, **(special or {})}, where)

    def reference_variant(self) -> str:
        """The variant that the others are compared with.

        `reference`; else the variant named "isp", the first whose method is isp, or the first one. Where any variant is
        pruned, it is a pruned one: scores are compared at equal sparsity.

        Raises:
            ConfigError: `reference` is no such variant.
        """
        groups = list(self.groups())
        found = {group.variant for group in groups if any(group.sparsities)} or {group.variant for group in groups}
        names = [name for name in self.variants if name in found]
        if self.reference is None:
            return min(names, key=lambda name: (name != "isp", self.variants[name].method != "isp"))
        if self.reference not in names:
            raise ConfigError(f"reference: {unknown('variant to compare with', self.reference, names)}")
        return self.reference

    def limits(self, task: str) -> TaskLimits:
        """How much of a task is used."""
        return self.tasks.get(task, TaskLimits())

    def num_train(self, task: str) -> int:
        """How many examples of a task are trained on."""
        return self.task(task).num_train(self.limits(task))

    def backbone(self, name: str) -> Backbone:
        """A backbone of the package, or one that the study defines."""
        return backbone_of(self.defined("backbone", name))

    def is_embedded(self, name: str) -> bool:
        """Whether a backbone is pre-trained here; else its files are downloaded."""
        return self.backbone(name).source is None

    def task(self, name: str) -> Task:
        """A task of the package, or one that the study defines."""
        return task_of(self.defined("task", name))

    def defined(self, kind: registry.Kind, name: str) -> str:
        """What stages are told of a backbone or task: its name, or as JSON what the study defines.

        Raises:
            ConfigError: no such name.
        """
        own: Mapping[str, Settings] = self.define.backbones if kind == "backbone" else self.define.tasks
        if name in own:
            return own[name].model_dump_json(exclude_defaults=True)
        if name not in registry.names(kind):
            raise ConfigError(unknown(kind, name, [*registry.names(kind), *own]))
        return name

    def groups(self) -> Iterator[Group]:
        """Cells that differ in sparsity only, which a family computes together, in the order of the file."""
        for index, block in enumerate(self.grid):
            asked = [parse_sparsity(value) for value in block.sparsities]
            for task in block.tasks:
                for seed in block.seeds:
                    for variant in block.variants:
                        method = self.method(variant, block.backbone)
                        sparsities = sparsities_of(method, asked)
                        try:
                            check_sparsities(method, sparsities)
                        except ConfigError as error:
                            raise ConfigError(f"grid.{index}: {error} (variant {variant!r})") from None
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


def read_study_file(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: no such file, not a regular file or a huge one, not YAML, a key that is there twice (YAML would
            take the last one), or no mapping.
    """
    try:
        values = load_yaml(read_text(path, limit=LARGEST_STUDY))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a study file is a mapping of keys to values, this is a {type(values).__name__}")
    return values


def load_study(path: Path) -> Study:
    """A study from a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or a key or value that is not allowed.
    """
    return parse_study(read_study_file(path), str(path))
