"""Study files: variants to run on backbones, tasks, sparsities and seeds, and their training protocols.

A study file is complete and inherits nothing. The keys of a method's settings are defined in its file in
`isp/methods/`, those of a training protocol in `isp.training.Training`, those of a task's limits in
`isp.tasks.TaskLimits`, and all others here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

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
"""Other names in the folder of a run or of its logs, besides those of variants; `dense` is also the dense run's."""
CHAIN = ".rounds"
"""Suffix of the workflow's own variants, the chains of rounds of pooled ones; variants of a study must not have it."""


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Begin the message of a ConfigError with the place in the study file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


class Variant(Settings):
    """A method with certain settings under its own name."""

    method: str = Field(description="name of a file in `isp/methods/`, or path of a file elsewhere")
    settings: dict[str, Any] = Field(default={}, description="settings of the method; keys in its file")
    by_backbone: dict[str, dict[str, Any]] = Field(
        default={}, description="per-backbone overrides of settings; they must not change which jobs run"
    )
    initial: Initial = Field(
        default="pretrained", description="initial weights; the head always comes from the pre-trained ones"
    )
    steps_of: str | None = Field(
        default=None,
        description="variant to whose number of steps T is raised: all steps that its ticket of the same sparsity "
        "takes, finding included; for methods that train in one run",
    )


class Protocol(Training):
    """A training protocol whose T may be given in epochs and therefore depend on the task."""

    steps: int = Field(default=0, ge=1, le=10**9, description="T in optimizer updates; an alternative to `epochs`")
    epochs: float | None = Field(default=None, gt=0, le=10**6, description="T in epochs of whole batches")

    @model_validator(mode="after")
    def _check(self) -> Protocol:
        if ("steps" in self.model_fields_set) == (self.epochs is not None):
            raise ValueError("steps, epochs: a protocol must have exactly one of them")
        if self.epochs is None:
            self.of(0)
        return self

    def of(self, num_examples: int) -> Training:
        """Return the protocol for a training set of `num_examples`.

        Raises:
            ConfigError: If T is not longer than the warm-up.
        """
        steps = self.steps if self.epochs is None else round(self.epochs * (num_examples // self.batch_size))
        values = self.model_dump(exclude={"epochs"}) | {"steps": max(1, steps)}
        return parse(Training, values, "training")


GPU_THROUGHPUT = 1e13
CPU_THROUGHPUT = 5e9
"""FLOPs per second of a job on a GPU, and of a thread of a job on a CPU."""


class Block(Settings):
    """A block of the grid, which contains one cell for every combination of its lists.

    Variants that do not prune (`dense`, `instant_model_soup`) run at sparsity 0 only; soups do so if none is given.
    """

    backbone: str = Field(description="name of a backbone, from `isp list backbones` or `define.backbones`")
    tasks: list[str] = Field(min_length=1, description="names of tasks, from `isp list tasks` or `define.tasks`")
    variants: list[str] = Field(min_length=1, description="names under `variants`")
    sparsities: list[str | float] = Field(default=[], description="decimals in [0, 1); none for dense models")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="seeds, one cell for each")


class Study(Settings):
    """A study file."""

    study: Name = Field(description="name of the study and of its folder in results/")
    question: str = Field(default="", description="question of the study, with which the report begins")
    data_root: Path = Field(
        default=Path("resources/data"), description="folder of datasets and models in the hub's layout"
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="`cpu`, `cuda` (any GPU that is free) or `cuda:N`; the bits depend on it",
    )
    threads: int = Field(default=1, ge=1, le=1024, description="torch threads per process; the bits depend on it")
    instruction_set: InstructionSet = Field(
        default_factory=instructions.default,
        description="kernels of float32 jobs on a CPU. avx2: results have the same bits on all Intel CPUs with AVX2; "
        "native: the libraries choose, so bits depend on the type of CPU. Default: avx2 if the CPU supports it",
    )
    look_aheads: Literal["together", "apart"] | None = Field(
        default=None,
        description="together: the look-ahead copies of a round run one after another in one process, and so do all "
        "rounds up to the next one at which a ticket leaves; apart: the copies run in parallel in separate processes "
        "where cores are free, and each round is a job; the bits are the same (default: together on a GPU; on a CPU "
        "each round is a job, and its copies are apart if the study's other chains of rounds leave enough cores idle, "
        "never on a cluster)",
    )
    keep_weak_masks: bool = Field(
        default=False, description="whether the contribution of each look-ahead is kept with the mask of its round"
    )
    throughput: float | None = Field(
        default=None,
        ge=1,
        description="FLOPs per second that a job sustains on the device, from which planned hours and time limits on a "
        "cluster follow (default: 1e13 on a GPU, 5e9 per thread on a CPU)",
    )
    define: Definitions = Field(default=Definitions(), description="additional backbones and tasks")
    training: dict[str, Protocol] = Field(description="training protocol of each backbone")
    tasks: dict[str, TaskLimits] = Field(default={}, description="limits of tasks")
    variants: dict[Name, Variant] = Field(
        description="the methods to compare, each with its settings under a name. The dense model that others are "
        "compared with is the variant named dense, otherwise the first of that method"
    )
    reference: str | None = Field(
        default=None, description="variant that statistics and verdict compare with others; see `reference_variant`"
    )
    grid: list[Block] = Field(min_length=1, description="blocks of cells; a cell may occur only once")

    def sustained(self) -> float:
        """Return the assumed FLOPs per second of a job: the given value, otherwise less than measured anywhere."""
        return self.throughput or (CPU_THROUGHPUT * self.threads if self.device == "cpu" else GPU_THROUGHPUT)

    def instructions(self, backbone: str) -> InstructionSet:
        """Return the instruction set of a backbone's jobs: native on a GPU and for bf16, which needs more than AVX2."""
        if self.device != "cpu" or self.training[backbone].precision != "fp32":
            return "native"
        return self.instruction_set

    @property
    def served_instructions(self) -> InstructionSet:
        """Instruction set of the fork server, that of most jobs; others start in separate processes."""
        return "avx2" if any(self.instructions(backbone) == "avx2" for backbone in self.training) else "native"

    @model_validator(mode="after")
    def _check(self) -> Study:
        seen: set[tuple[object, ...]] = set()
        schedules: dict[tuple[object, ...], Group] = {}
        if self.look_aheads == "apart" and self.device != "cpu":
            raise ConfigError(
                f"look_aheads = 'apart' with device = {self.device!r}: a job has one GPU, on which copies run one "
                "after another; use 'together' or leave it out"
            )
        for backbone, protocol in self.training.items():
            with _naming(f"training.{backbone}"):
                self.backbone(backbone)
            if protocol.compile and self.device == "cpu":
                raise ConfigError(f"training.{backbone}: {COMPILED_ON_A_GPU}; set device to cuda, or leave it out")
        for index, block in enumerate(self.grid):
            where = f"grid.{index}"
            with _naming(f"{where}.backbone"):
                inputs = self.backbone(block.backbone).inputs
            for name in block.tasks:
                with _naming(f"{where}.tasks"):
                    has = self.task(name).inputs
                if has != inputs:
                    raise ConfigError(
                        f"{where}: task {name!r} has {has}, but backbone {block.backbone!r} takes {inputs}"
                    )
            if block.backbone not in self.training:
                raise ConfigError(f"{where}: {unknown('backbone under training', block.backbone, self.training)}")
            for name in block.variants:
                if name not in self.variants:
                    raise ConfigError(f"{where}: {unknown('variant', name, self.variants)}")
        for name, variant in self.variants.items():
            if name in RESERVED or (name == "dense" and self.method(name).module.FAMILY != "dense"):
                raise ConfigError(f"variants.{name}: this name is reserved for files of a run; choose another one")
            if name.endswith(CHAIN):
                raise ConfigError(
                    f"variants.{name}: names ending in {CHAIN} are reserved for the workflow; choose another one"
                )
            self.method(name)
            for backbone in variant.by_backbone:
                if backbone not in self.training:
                    where = f"variants.{name}.by_backbone"
                    raise ConfigError(f"{where}: {unknown('backbone under training', backbone, self.training)}")
                if self.method(name, backbone).route != self.method(name).route:
                    raise ConfigError(
                        f"variants.{name}.by_backbone.{backbone}: this override changes which jobs run; define a "
                        "separate variant instead"
                    )
            if variant.steps_of is not None:
                self._check_steps_of(name, variant.steps_of)
        for name in self.tasks:
            with _naming(f"tasks.{name}"):
                self.task(name)
        used = {name for block in self.grid for name in block.variants}
        used |= {variant.steps_of for variant in self.variants.values() if variant.steps_of}
        for name in self.variants.keys() - used:
            raise ConfigError(f"variants.{name}: no block of the grid uses it; add it to one, or leave it out")
        for group in self.groups():
            for sparsity in group.sparsities:
                cell = (group.backbone, group.task, group.variant, group.seed, sparsity)
                if cell in seen:
                    raise ConfigError(f"grid: the cell {'/'.join(map(str, cell))} occurs twice")
                seen.add(cell)
            schedules.setdefault((group.backbone, group.task, group.variant, group.sparsities), group)
        for group in schedules.values():  # seeds do not matter
            self._check_schedule(group)
        self.reference_variant()
        return self

    def _check_schedule(self, group: Group) -> None:
        """Refuse a schedule that cannot run, such as rounds that exceed the budget."""
        with _naming(f"tasks.{group.task}"):
            num_train = self.num_train(group.task)
        with _naming(f"variants.{group.variant}, on task {group.task!r}"):
            for sparsity in group.sparsities:
                protocol = self.protocol(group.backbone, group.task, group.variant, sparsity)
                planned_steps(self.method(group.variant, group.backbone), protocol, num_train, [sparsity])

    def _check_steps_of(self, name: str, other: str) -> None:
        """Refuse equal budgets unless the method trains in one run and the other's steps are known in advance."""
        where = f"variants.{name}.steps_of"
        if other not in self.variants:
            raise ConfigError(f"{where}: {unknown('variant', other, self.variants)}")
        if not self.method(name).traits.one_run:
            raise ConfigError(f"{where}: method {self.variants[name].method!r} does not train in one run of T steps")
        if self.method(other).traits.prunes == "never":
            raise ConfigError(f"{where}: {other!r} does not prune, so it has no ticket of the same sparsity")
        rounds = {getattr(self.method(other, backbone).settings, "rounds", "nominal") for backbone in self.training}
        if self.variants[other].steps_of or "measured" in rounds:
            raise ConfigError(f"{where}: the steps of {other!r} are not known in advance; name another variant")

    def protocol(
        self, backbone: str, task: str, variant: str | None = None, sparsity: Decimal | None = None
    ) -> Training:
        """Return the protocol of a backbone on a task; with `steps_of`, T is the steps of the other's ticket."""
        training = self.training[backbone].of(self.num_train(task))
        other = self.variants[variant].steps_of if variant in self.variants else None
        if other is None or sparsity is None:
            return training
        steps = planned_steps(self.method(other, backbone), training, self.num_train(task), [sparsity])
        return training.model_copy(update={"steps": max(training.steps, steps)})

    def method(self, variant: str, backbone: str = "") -> Method:
        """Return the method of a variant with its settings on a backbone."""
        entry = self.variants[variant]
        special = entry.by_backbone.get(backbone)
        where = f"variants.{variant}" + (f".by_backbone.{backbone}" if special else "")
        return make_method(entry.method, {**entry.settings, **(special or {})}, where)

    def reference_variant(self) -> str:
        """Return the variant with which the others are compared.

        It is `reference` if set, otherwise the variant named "isp", the first whose method is isp, or the first one. If
        any variant is pruned, it is a pruned one, because scores are compared at equal sparsity.

        Raises:
            ConfigError: If `reference` is not such a variant.
        """
        groups = list(self.groups())
        pruned = {group.variant for group in groups if any(group.sparsities)} or {group.variant for group in groups}
        names = [name for name in self.variants if name in pruned]
        if self.reference is None:
            return min(names, key=lambda name: (name != "isp", self.variants[name].method != "isp"))
        if self.reference not in names:
            raise ConfigError(f"reference: {unknown('variant to compare with', self.reference, names)}")
        return self.reference

    def limits(self, task: str) -> TaskLimits:
        """Return the limits on a task's training split."""
        return self.tasks.get(task, TaskLimits())

    def num_train(self, task: str) -> int:
        """Return the number of training examples of a task."""
        return self.task(task).num_train(self.limits(task))

    def backbone(self, name: str) -> Backbone:
        """Return a backbone of the package, or one that the study defines."""
        return backbone_of(self.defined("backbone", name))

    def is_embedded(self, name: str) -> bool:
        """Return whether a backbone is pre-trained in this package instead of downloaded."""
        return self.backbone(name).source is None

    def task(self, name: str) -> Task:
        """Return a task of the package, or one that the study defines."""
        return task_of(self.defined("task", name))

    def defined(self, kind: registry.Kind, name: str) -> str:
        """Return the argument by which stages identify a backbone or task: its name, or the study's definition as JSON.

        Raises:
            ConfigError: If there is no such name.
        """
        defined: Mapping[str, Settings] = self.define.backbones if kind == "backbone" else self.define.tasks
        if name in defined:
            return defined[name].model_dump_json(exclude_defaults=True)
        if name not in registry.names(kind):
            raise ConfigError(unknown(kind, name, [*registry.names(kind), *defined]))
        return name

    def groups(self) -> Iterator[Group]:
        """Yield groups of cells that differ only in sparsity, which a family computes together, in the file's order."""
        for index, block in enumerate(self.grid):
            with _naming(f"grid.{index}.sparsities"):
                asked = [parse_sparsity(value) for value in block.sparsities]
            by_variant: dict[str, tuple[Decimal, ...]] = {}
            for variant in block.variants:
                method = self.method(variant, block.backbone)
                by_variant[variant] = sparsities_of(method, asked)
                try:
                    check_sparsities(method, by_variant[variant])
                except ConfigError as error:
                    raise ConfigError(f"grid.{index}: {error} (variant {variant!r})") from None
            for task, seed, variant in product(block.tasks, block.seeds, block.variants):
                yield Group(
                    backbone=block.backbone, task=task, seed=seed, variant=variant, sparsities=by_variant[variant]
                )


class Group(NamedTuple):
    """Cells of one backbone, task, seed and variant."""

    backbone: str
    task: str
    seed: int
    variant: str
    sparsities: tuple[Decimal, ...]


def parse_study(values: Mapping[str, Any], where: str) -> Study:
    """Make a study from keys and values.

    Raises:
        ConfigError: If a value is invalid; the message names the key, the value and the allowed values.
    """
    return parse(Study, values, where)


def read_study_file(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        ConfigError: If the file does not exist, is not a regular file, is huge, is not UTF-8 or YAML, has a duplicate
            key (of which YAML would use the last), or is not a mapping.
    """
    try:
        values = load_yaml(read_text(path, limit=LARGEST_STUDY), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}); save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        kind = "an empty file" if values is None else type(values).__name__
        raise ConfigError(f"{path}: a study file must be a mapping of keys to values, got {kind}")
    return values


def load_study(path: Path) -> Study:
    """Read a study from a YAML file.

    Raises:
        ConfigError: If the file does not exist or is not YAML, or a key or value is invalid.
    """
    return parse_study(read_study_file(path), str(path))
