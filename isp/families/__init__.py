"""How the methods of each family are run, in process: the reference for every other way of running them.

A family is one file: what a method of it defines (its docstring), what is true of all of them (`TRAITS`), the steps
that they are made of, `planned_steps`, and `tickets`, which composes the steps. `find_tickets` picks the family of a
method.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import ConfigDict

from isp import masks, registry
from isp.copies import LookAhead, Member
from isp.costs import Cost
from isp.errors import ConfigError, unknown
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
    """What a family says of its methods, so that nothing else asks for a family by name.

    Attributes:
        settings: Base class of the settings of its methods.
        prunes: Whether its tickets are sparse: always, never (their only sparsity is 0), or also at sparsity 0.
        chooses: Whether it chooses by validation examples, whatever the method.
        one_run: Whether a ticket is one run of T steps, so that T may be raised to the steps of another variant.
        mathematics: The version of what its methods share, by the name under which workflow jobs know it.
        route: How the workflow makes the tickets of a method: the name of its rules, if it is not that of the family.
        patterns: Whether its tickets can have N:M sparsity.
    """

    settings: type[Settings] = Settings
    prunes: Literal["always", "never", "optionally"] = "always"
    chooses: bool = False
    one_run: bool = False
    mathematics: Mapping[str, int] = field(default_factory=dict)
    route: Callable[[Method], str] | None = None
    patterns: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method with its settings.

    Attributes:
        name: the stem of its file.
        source: what it is asked for by: its name, or the path of a file that is not in the package.
        module: its file.
        settings: of it.
    """

    name: str
    source: str
    module: ModuleType
    settings: Settings

    @property
    def family(self) -> ModuleType:
        """The module in `isp.families` that runs it."""
        return load_family(self.module.FAMILY)

    @property
    def traits(self) -> Traits:
        """What its family says of it."""
        return traits_of(self.module)

    @property
    def route(self) -> str:
        """How the workflow makes its tickets."""
        return self.traits.route(self) if self.traits.route else str(self.module.FAMILY)


def load_family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        ConfigError: There is no such family.
    """
    if name not in registry.names("family"):
        raise ConfigError(unknown("family", name, registry.names("family")))
    return importlib.import_module(f"isp.families.{name}")


def traits_of(module: ModuleType) -> Traits:
    """What its family says of a method, given the method's file."""
    traits: Traits = load_family(module.FAMILY).TRAITS
    return traits


def make_method(name: str, settings: dict[str, Any] | None = None, where: str = "") -> Method:
    """A method by name, or by the path of its file, its settings validated.

    Raises:
        ConfigError: unknown method or setting, or a value that is not allowed.
    """
    module = registry.load("method", name)
    where = f"{where}: settings of method {name!r}" if where else f"settings of method {name!r}"
    method = Method(name=Path(name).stem, source=name, module=module, settings=parse(module.Settings, settings, where))
    if parse_scope(scope_of(method)) and not method.traits.patterns:
        raise ConfigError(
            f"{where}: scope = {scope_of(method)!r}: this method mixes weights of several models, which have no N:M "
            "pattern in common; scope must be 'global' or 'layer'"
        )
    return method


def scope_of(method: Method) -> Scope:
    """How a method ranks weights; "global" for one without that setting."""
    return str(getattr(method.settings, "scope", "global"))


def describe_method(family: str) -> ModuleType:
    """Return a module that stands in for a method's file where its code must not run: enough to know its jobs.

    Its settings may have any keys beside those that the family's methods share. Its steps are those of its family; at
    which of them a single-pass method looks at the weights is not known.

    Raises:
        ConfigError: There is no such family.
    """
    base: type[Settings] = load_family(family).TRAITS.settings

    class Described(base):  # type: ignore[valid-type, misc]
        model_config = ConfigDict(extra="allow")

    module = ModuleType(f"isp_method_of_family_{family}")
    vars(module).update(FAMILY=family, VERSION=0, Settings=Described, events=lambda *_: ())
    return module


def chooses(method: Method) -> bool:
    """Whether a method chooses by validation examples: weights, coefficients or members of a soup."""
    return method.traits.chooses or hasattr(method.module, "choose")


def sparsities_of(method: Method, asked: Sequence[Decimal]) -> tuple[Decimal, ...]:
    """The sparsities of a method's tickets where these are asked for: 0 if it never prunes, or may and none is."""
    prunes = method.traits.prunes
    dense = prunes == "never" or (prunes == "optionally" and not asked)
    return (Decimal("0.0000"),) if dense else tuple(asked)


def check_sparsities(method: Method, sparsities: Sequence[Decimal]) -> None:
    """A method that never prunes has no sparsity but 0; others need at least one, most above 0, each only once.

    With an N:M scope the only one is that of the pattern.

    Raises:
        ConfigError: says which value is wrong.
    """
    prunes = method.traits.prunes
    if prunes == "never":
        if any(sparsity != 0 for sparsity in sparsities):
            raise ConfigError(f"method {method.name!r} does not prune: its only sparsity is 0, not {max(sparsities)}")
    elif prunes == "optionally":
        if not sparsities:
            raise ConfigError(f"method {method.name!r}: give sparsities; 0 is one of a dense model")
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
        raise ConfigError(f"sparsities {', '.join(map(str, sparsities))}: one is given twice")


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Steps that `find_tickets` will train, what the tickets share counted once.

    At most, where the number of rounds follows from what is measured on the way (`rounds: measured`).

    Args:
        method: from `make_method`.
        training: the protocol.
        num_examples: size of the training set.
        sparsities: from `parse_sparsity`.

    Raises:
        ConfigError: the schedule overruns the budget.
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
    """The method's tickets at the given sparsities, in rising order; what they have in common is computed once.

    A ticket does not depend on which others are asked for.

    Args:
        method: from `make_method`.
        trainer: model, training examples, protocol and seed.
        initial: the pre-trained weights and head, step 0.
        sparsities: from `parse_sparsity`.
        validation: what a method that `chooses` does it by; no other looks at it.

    Raises:
        ConfigError: the schedule overruns the budget, a sparsity keeps no weight, the groups of an N:M scope do not fit
            into a layer, or there is nothing to choose by.
        MaskError: a method's own mask has not the pattern of its N:M scope.
        TrainingDiverged: a loss that is not finite.
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
    chosen_by = {}
    if chooses(method):
        if validation is None:
            raise ConfigError(f"method {method.name!r} chooses by validation examples: give some (validation)")
        chosen_by = {"validation": validation}
    for ticket in method.family.tickets(method, trainer, initial, sorted(sparsities), **chosen_by):
        check_ticket(ticket)
        if pattern is not None:
            masks.check_pattern(ticket.mask, pattern, trainer.input_dims)
        yield replace(ticket, origin=origin)


def check_reachable(sparsity: Decimal, total: int) -> None:
    """Refuse a sparsity at which none of `total` prunable weights is kept.

    Raises:
        ConfigError: says so.
    """
    if num_pruned(sparsity, total) == total:
        raise ConfigError(f"sparsity {sparsity} is not reachable: it keeps none of {total} prunable weights")


class Loop(Protocol):
    """What a method that is attached to somebody else's training loop may ask of that loop.

    Attributes:
        trainer: The model, the names of its prunable parameters, the seed, T, and the examples; it is never run.
        steps_per_epoch: Optimizer updates of an epoch.
    """

    trainer: Trainer
    steps_per_epoch: int

    def spend(self, cost: Cost) -> None:
        """Count the cost of work beside the loop's own steps."""
        ...

    def look_ahead(
        self, settings: LookAhead, members: Mapping[str, Member], contribute: Callable[[Weights], Weights]
    ) -> Iterator[Weights]:
        """Train copies by the loop's own step, and put everything back.

        Args:
            settings: Of the copies.
            members: Their protocols and data, by their names for errors.
            contribute: What is wanted of a copy, given its prunable weights, which are those of the model.

        Yields:
            What each copy contributes, in the order of the members.
        """
        ...


class Attached(Protocol):
    """A method that is attached to somebody else's training loop.

    Attributes:
        at: Where the run is: a dataclass of what `isp.checkpoints.pack` takes, whose `mask` is the current one.
    """

    at: Any

    @property
    def observes(self) -> bool:
        """Whether `observe` must be called before every update."""
        ...

    @property
    def rounds(self) -> Sequence[dict[str, Any]]:
        """A record of each round so far."""
        ...

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Look at the trained parameters and their gradients, masked and not clipped."""
        ...

    def prune(self, step: int, parameters: Mapping[str, Tensor]) -> Mask | None:
        """Return the new mask after `step` updates, 0 to T - 1, or None to keep the current one."""
        ...


def attach(method: Method, sparsity: Decimal, loop: Loop) -> Attached:
    """Return a method for a training loop that is not ours.

    Raises:
        ConfigError: methods of this family bring a loop of their own, or the schedule overruns T.
    """
    family = method.family
    if not hasattr(family, "attach"):
        raise ConfigError(
            f"method {method.name!r} (family {method.module.FAMILY!r}) trains the model more than once, which a loop "
            f"that trains it once cannot do; use isp.prune(…, method={method.name!r}), which brings its own loop, or "
            "one of the methods " + ", ".join(attachable())
        )
    attached: Attached = family.attach(method, sparsity, loop)
    return attached


def attachable() -> list[str]:
    """Names of the methods that can be attached to somebody else's training loop."""
    names = registry.names("method")
    return [name for name in names if hasattr(load_family(registry.load("method", name).FAMILY), "attach")]


def check_layers(method: Method, trainer: Trainer, initial: State) -> None:
    """Refuse a model whose layers the groups of a method's N:M scope, if it has one, do not fit into.

    Raises:
        ConfigError: names the parameter.
    """
    if (pattern := parse_scope(scope_of(method))) is None:
        return
    for name in trainer.prunable:
        if name not in trainer.input_dims:
            raise ConfigError(
                f"scope {scope_of(method)!r}: parameter {name!r} is not the weight of one known kind of layer, so the "
                "dimension of its inputs is not known; leave it out of what is pruned, or choose another scope"
            )
    masks.check_groups(trainer.prunable_weights(initial), pattern, trainer.input_dims)
