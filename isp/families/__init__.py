"""Families of methods and how each is run in process, the reference for every other way of running it.

A family is one file. Its docstring lists the definitions that a method needs, and `TRAITS` the properties that its
methods share. The file contains the steps of these methods, `planned_steps`, and `tickets`, which composes the steps.
`find_tickets` runs a method through its family.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import ConfigDict

from isp import masks, registry
from isp.copies import LookAhead, Member
from isp.costs import Cost
from isp.errors import ConfigError, shown, unknown
from isp.masks import Mask, Weights
from isp.settings import Settings, parse
from isp.sparsity import Scope, num_pruned, parse_scope
from isp.tickets import Ticket, Validation, check_ticket
from isp.training import VERSION as TRAINING_VERSION
from isp.training import BatchOrder, State, Trainer, Training

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties that the methods of a family share, so that no other code depends on a family's name.

    Attributes:
        settings: Base class of the settings of its methods.
        prunes: Whether its tickets are sparse: always, never (their only sparsity is 0), or also at sparsity 0.
        chooses: Whether every method of the family chooses by validation examples.
        one_run: Whether a ticket is one run of T steps, so that T may be raised to the steps of another variant.
        mathematics: Version of the code that its methods share, under the name that workflow jobs use for it.
        route: Function from a method to the name of the workflow rules for its tickets; None: the family's name.
        patterns: Whether its tickets can have N:M sparsity.
        defines: Functions that a method must define, each as the names of which it must define at least one.
    """

    settings: type[Settings] = Settings
    prunes: Literal["always", "never", "optionally"] = "always"
    chooses: bool = False
    one_run: bool = False
    mathematics: Mapping[str, int] = field(default_factory=dict)
    route: Callable[[Method], str] | None = None
    patterns: bool = False
    defines: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method with its settings.

    Attributes:
        name: Stem of its file.
        source: Name under which the user asked for it, or path of a file outside the package.
        module: Module of its file.
        settings: Validated settings.
    """

    name: str
    source: str
    module: ModuleType
    settings: Settings

    @property
    def family(self) -> ModuleType:
        """Module in `isp.families` that runs the method."""
        return load_family(self.module.FAMILY)

    @property
    def traits(self) -> Traits:
        """Traits of the method's family."""
        return traits_of(self.module)

    @property
    def route(self) -> str:
        """Name of the workflow rules that make the method's tickets."""
        return self.traits.route(self) if self.traits.route else str(self.module.FAMILY)


@cache
def load_family(name: str) -> ModuleType:
    """Import the module of a family.

    Raises:
        ConfigError: If there is no such family.
    """
    if name not in registry.names("family"):
        raise ConfigError(unknown("family", name, registry.names("family")))
    return importlib.import_module(f"isp.families.{name}")


def traits_of(module: ModuleType) -> Traits:
    """Return the traits of a method's family, given the method's module."""
    traits: Traits = load_family(module.FAMILY).TRAITS
    return traits


def make_method(name: str, settings: Mapping[str, Any] | None = None, where: str = "") -> Method:
    """Load a method by name or by the path of its file, and validate its settings.

    Raises:
        ConfigError: If the method or a setting is unknown, a value is invalid, or the method's file lacks a definition
            that its family needs.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"method = {shown(name)}: must be a text, the name of a method (`isp list methods` lists them) or the path "
            "of its file"
        )
    if not isinstance(settings, Mapping | None):
        raise ConfigError(
            f"settings = {shown(settings)}: must be a dict from names of settings of method {name!r} to values"
        )
    module = registry.load("method", name)
    check_definitions(module, name)
    where = f"{where}: settings of method {name!r}" if where else f"settings of method {name!r}"
    method = Method(name=Path(name).stem, source=name, module=module, settings=parse(module.Settings, settings, where))
    if parse_scope(scope_of(method)) and not method.traits.patterns:
        raise ConfigError(
            f"{where}: scope = {scope_of(method)!r}: must be 'global' or 'layer', because this method mixes weights of "
            "several models, which do not share an N:M pattern"
        )
    return method


def check_definitions(module: ModuleType, name: str) -> None:
    """Refuse a method's module without the definitions that its family needs.

    Args:
        module: Module of the method.
        name: Name or path of the method, for messages.

    Raises:
        ConfigError: If a definition is missing or of the wrong kind; the message names it and the family.
    """
    traits, where = traits_of(module), f"method {name!r} (family {module.FAMILY!r})"
    missing = [
        " or ".join(functions)
        for functions in traits.defines
        if not any(callable(getattr(module, function, None)) for function in functions)
    ]
    if missing:
        raise ConfigError(f"{where}: must define the function {' and '.join(missing)}")
    base = traits.settings
    if not issubclass(module.Settings, base):
        raise ConfigError(f"{where}: Settings must be a class derived from {base.__module__}.{base.__qualname__}")


def patterns_of(key: str, value: Any) -> tuple[str, ...]:
    """Return the patterns of parameters that a caller passes as `prunable` or `exclude`.

    Raises:
        ConfigError: If the value is a single text or anything else but a list of texts.
    """
    patterns = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        example = [value] if isinstance(value, str) else ["encoder.*"]
        raise ConfigError(f"{key} = {shown(value)}: must be a list of patterns, such as {shown(example)}")
    return patterns


def check_function(key: str, value: Any, takes: str) -> None:
    """Refuse an argument that is neither a function nor None.

    Raises:
        ConfigError: If the value cannot be called; the message says what the function takes.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"{key} = {shown(value)}: must be a function of {takes}, or None")


def scope_of(method: Method) -> Scope:
    """Return how a method ranks weights; "global" for a method without that setting."""
    return str(getattr(method.settings, "scope", "global"))


def describe_method(family: str) -> ModuleType:
    """Return a substitute for a method's file where its code must not run, sufficient to know its jobs.

    Its settings accept any keys in addition to those that the family's methods share. Its steps are those of its
    family, but the steps at which a single-pass method looks at the weights are unknown.

    Raises:
        ConfigError: If there is no such family.
    """
    base: type[Settings] = load_family(family).TRAITS.settings

    class Described(base):  # type: ignore[valid-type, misc]
        model_config = ConfigDict(extra="allow")

    module = ModuleType(f"isp_method_of_family_{family}")
    functions = {first: lambda *_: () for first, *_ in load_family(family).TRAITS.defines}
    vars(module).update(FAMILY=family, VERSION=0, Settings=Described, **functions)
    return module


def chooses(method: Method) -> bool:
    """Return whether a method uses validation examples to choose weights, coefficients or members of a soup."""
    return method.traits.chooses or hasattr(method.module, "choose")


def sparsities_of(method: Method, asked: Sequence[Decimal]) -> tuple[Decimal, ...]:
    """Return the sparsities of a method's tickets: the requested ones, or 0 if it never prunes or none is requested."""
    prunes = method.traits.prunes
    dense = prunes == "never" or (prunes == "optionally" and not asked)
    return (Decimal("0.0000"),) if dense else tuple(asked)


def check_sparsities(method: Method, sparsities: Sequence[Decimal]) -> None:
    """Refuse sparsities that a method cannot have.

    A method that never prunes has only sparsity 0. Others need at least one sparsity, most of them above 0, each given
    once. With an N:M scope, the only sparsity is that of the pattern.

    Raises:
        ConfigError: If a value is wrong; the message names it.
    """
    prunes = method.traits.prunes
    if prunes == "never":
        if any(sparsity != 0 for sparsity in sparsities):
            raise ConfigError(f"method {method.name!r} does not prune: its only sparsity is 0, not {max(sparsities)}")
    elif prunes == "optionally":
        if not sparsities:
            raise ConfigError(f"method {method.name!r}: give at least one sparsity; 0 is that of a dense model")
    elif not sparsities or min(sparsities) <= 0:
        raise ConfigError(f"method {method.name!r} prunes: give sparsities above 0 (method 'dense' is sparsity 0)")
    pattern = parse_scope(scope_of(method))
    for sparsity in sparsities:
        if pattern and sparsity != pattern.sparsity:
            raise ConfigError(
                f"method {method.name!r}: scope {scope_of(method)!r} keeps {pattern.n} of every {pattern.m} weights, "
                f"so its only sparsity is {pattern.sparsity}, not {sparsity}"
            )
    if len(set(sparsities)) != len(sparsities):
        raise ConfigError(f"sparsities {', '.join(map(str, sparsities))}: each must be given only once")


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return the number of steps that `find_tickets` will train, counting once what tickets share.

    This is an upper bound if the number of rounds depends on measured sparsities (`rounds: measured`).

    Args:
        method: Method from `make_method`.
        training: Training protocol.
        num_examples: Size of the training set.
        sparsities: Target sparsities from `parse_sparsity`.

    Raises:
        ConfigError: If the schedule exceeds the budget.
    """
    check_sparsities(method, sparsities)
    BatchOrder(num_examples, training.batch_size, seed=0)  # refuses a batch larger than the training set
    return int(method.family.planned_steps(method, training, num_examples, sorted(sparsities)))


def find_tickets(
    method: Method,
    trainer: Trainer,
    initial: State,
    sparsities: Sequence[Decimal],
    validation: Validation | None = None,
) -> Iterator[Ticket]:
    """Yield the method's tickets at the given sparsities, ascending; shared steps are computed once.

    A ticket does not depend on the other requested sparsities.

    Args:
        method: Method from `make_method`.
        trainer: Model, training examples, protocol and seed.
        initial: Pre-trained weights and head, at step 0.
        sparsities: Target sparsities from `parse_sparsity`.
        validation: Validation scores for a method that `chooses`; other methods do not use them.

    Raises:
        ConfigError: If the schedule exceeds the budget, a sparsity keeps no weight, a layer cannot be divided into the
            groups of an N:M scope, or validation examples are missing.
        MaskError: If a method's own mask does not have the pattern of its N:M scope.
        TrainingDiverged: If a loss is not finite.
    """
    planned_steps(method, trainer.training, len(trainer.examples), sparsities)
    for sparsity in sparsities:
        check_reachable(sparsity, sum(initial.weights[name].numel() for name in trainer.prunable))
    pattern = parse_scope(scope_of(method))
    check_layers(method, trainer, initial)
    origin = {
        "version": method.module.VERSION,
        "training_version": TRAINING_VERSION,
        "settings": method.settings.model_dump(mode="json"),
        "training": trainer.training.model_dump(mode="json"),
        "seed": trainer.seed,
        "device": str(next(iter(initial.weights.values())).device),
    }
    choice = {}
    if chooses(method):
        if validation is None:
            raise ConfigError(f"method {method.name!r} chooses by validation examples: pass some as `validation`")
        choice = {"validation": validation}
    for ticket in method.family.tickets(method, trainer, initial, sorted(sparsities), **choice):
        check_ticket(ticket)
        if pattern is not None:
            masks.check_pattern(ticket.mask, pattern, trainer.input_dims)
        yield replace(ticket, origin=origin)


def check_reachable(sparsity: Decimal, total: int) -> None:
    """Refuse a sparsity that would keep none of `total` prunable weights.

    Raises:
        ConfigError: If the sparsity keeps no weight.
    """
    if num_pruned(sparsity, total) == total:
        raise ConfigError(f"sparsity {sparsity} is not reachable: it would keep none of {total} prunable weights")


class Loop(Protocol):
    """The part of an existing training loop that an attached method may use.

    Attributes:
        trainer: The model, the names of its prunable parameters, the seed, T, and the examples. It is never run.
        steps_per_epoch: Optimizer updates per epoch.
    """

    trainer: Trainer
    steps_per_epoch: int

    def spend(self, cost: Cost) -> None:
        """Count the cost of work in addition to the loop's own steps."""
        ...

    def look_ahead(
        self, settings: LookAhead, members: Mapping[str, Member], contribute: Callable[[Weights], Weights]
    ) -> Iterator[Weights]:
        """Train copies with the loop's own step, then restore the model, the optimizer and everything else.

        Args:
            settings: Settings of the copies.
            members: Protocols and data of the copies, by the copies' names in error messages.
            contribute: Function from a copy's prunable weights, which are those of the model, to its contribution.

        Yields:
            Contribution of each copy, in the order of the members.
        """
        ...


class Attached(Protocol):
    """A method attached to an existing training loop.

    Attributes:
        at: Progress of the run, a dataclass that `isp.checkpoints.pack` accepts, whose `mask` is the current one.
    """

    at: Any

    @property
    def observes(self) -> bool:
        """Whether `observe` must be called before every update."""
        ...

    @property
    def rounds(self) -> Sequence[dict[str, Any]]:
        """Records of the rounds so far."""
        ...

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Read the trained parameters and their gradients, masked and not clipped."""
        ...

    def prune(self, step: int, parameters: Mapping[str, Tensor]) -> Mask | None:
        """Return the new mask after `step` updates, 0 to T - 1, or None to keep the current one."""
        ...


def attach(method: Method, sparsity: Decimal, loop: Loop) -> Attached:
    """Attach a method to an existing training loop.

    Raises:
        ConfigError: If methods of this family need their own loop, or the schedule exceeds T.
    """
    family = method.family
    if not hasattr(family, "attach"):
        raise ConfigError(
            f"method {method.name!r} (family {method.module.FAMILY!r}) trains the model more than once, which is not "
            f"possible in a loop that trains it once; use isp.prune(…, method={method.name!r}), which has its own "
            "loop, or one of the methods " + ", ".join(attachable())
        )
    attached: Attached = family.attach(method, sparsity, loop)
    return attached


def attachable() -> list[str]:
    """Return the names of the methods that can be attached to an existing training loop."""
    names = registry.names("method")
    return [name for name in names if hasattr(load_family(registry.load("method", name).FAMILY), "attach")]


def check_layers(method: Method, trainer: Trainer, initial: State) -> None:
    """Refuse a model with a layer that cannot be divided into the groups of a method's N:M scope, if it has one.

    Raises:
        ConfigError: If a layer does not fit; the message names the parameter.
    """
    if (pattern := parse_scope(scope_of(method))) is None:
        return
    for name in trainer.prunable:
        if name not in trainer.input_dims:
            raise ConfigError(
                f"scope {scope_of(method)!r}: parameter {name!r} does not belong to exactly one known kind of layer, "
                "so the dimension of its inputs is unknown; exclude it from pruning or choose another scope"
            )
    masks.check_groups(trainer.prunable_weights(initial), pattern, trainer.input_dims)
