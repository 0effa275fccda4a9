"""How the methods of each family are run, in process: the reference for every other way of running them.

A family is one file with the steps that its methods are made of, and `tickets`, which composes them. `find_tickets`
picks the family of a method.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ConfigDict
from torch import Tensor

from isp import masks, registry
from isp.costs import Cost
from isp.errors import ConfigError, unknown
from isp.masks import Mask
from isp.settings import Settings, parse
from isp.sparsity import num_pruned
from isp.training import VERSION as TRAINING_VERSION
from isp.training import BatchOrder, State, Trainer, Training

SETTINGS = {
    "dense": "isp.settings:Settings",
    "one_shot": "isp.methods:Scored",
    "single_pass": "isp.settings:Settings",
    "iterative": "isp.methods.lth:Settings",
    "pooled": "isp.methods.lottery_pools:Settings",
    "denoised": "isp.methods.isp:Settings",
    "souped": "isp.methods.uniform_soup:Settings",
    "instant": "isp.methods.instant_model_soup:Settings",
}
"""Base class of the settings of each family's methods."""
NEVER_PRUNE = ("dense", "instant")
"""Families whose only sparsity is 0."""
MAY_PRUNE = ("souped",)
"""Families that have tickets of sparsity 0, too."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A trained, sparse model: the state at step T and the mask it was trained under.

    Attributes:
        method: name of the method that found it.
        sparsity: as asked for, a decimal with four places.
        mask: over the prunable parameters.
        weights: all parameters and buffers; the masked ones are exactly zero.
        finding: what was spent until the mask was known (for single-pass methods this is part of the training).
        retraining: what was spent under the final mask.
        rounds: One record per round of a method that has rounds; one in total of a method that prunes within one run.
        origin: what made it: the method's settings, the protocol, seed and device.
    """

    method: str
    sparsity: Decimal
    mask: Mask
    weights: dict[str, Tensor]
    finding: Cost = field(default_factory=Cost)
    retraining: Cost = field(default_factory=Cost)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """All that the ticket cost by itself, nothing shared with others taken off."""
        return self.finding + self.retraining


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a method that `chooses` does it by: validation examples, never test ones.

    Attributes:
        score: of all weights of a model; higher is better.
        cost: of scoring once.
    """

    score: Callable[[Mapping[str, Tensor]], float]
    cost: Cost


@dataclass
class Evaluations:
    """Scores by validation examples, counted.

    Attributes:
        validation: what is asked.
        count: how often it was.
    """

    validation: Validation
    count: int = 0

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """The score of all weights of a model."""
        self.count += 1
        return self.validation.score(weights)

    @property
    def cost(self) -> Cost:
        """Of all evaluations until now."""
        return sum([self.validation.cost] * self.count, Cost())


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
        return importlib.import_module(f"isp.families.{self.module.FAMILY}")


def make_method(name: str, settings: dict[str, Any] | None = None, where: str = "") -> Method:
    """A method by name, or by the path of its file, its settings validated.

    Raises:
        ConfigError: unknown method or setting, or a value that is not allowed.
    """
    module = registry.load("method", name)
    prefix = f"{where}: " if where else ""
    return Method(
        name=Path(name).stem,
        source=name,
        module=module,
        settings=parse(module.Settings, settings, f"{prefix}settings of method {name!r}"),
    )


def describe_method(family: str) -> ModuleType:
    """Return a module that stands in for a method's file where its code must not run: enough to know its jobs.

    Its settings may have any keys beside those that the family's methods share. Its steps are those of its family; at
    which of them a single-pass method looks at the weights is not known.

    Raises:
        ConfigError: There is no such family.
    """
    if family not in SETTINGS:
        raise ConfigError(unknown("family", family, SETTINGS))
    module, _, name = SETTINGS[family].partition(":")
    base: type[Settings] = getattr(importlib.import_module(module), name)

    class Described(base):  # type: ignore[valid-type, misc]
        model_config = ConfigDict(extra="allow")

    found = ModuleType(f"isp_method_of_family_{family}")
    vars(found).update(FAMILY=family, VERSION=0, Settings=Described, events=lambda *_: ())
    return found


def chooses(method: Method) -> bool:
    """Whether a method chooses by validation examples: weights, coefficients or members of a soup."""
    return method.module.FAMILY in ("pooled", "instant") or hasattr(method.module, "choose")


def sparsities_of(method: Method, asked: Sequence[Decimal]) -> tuple[Decimal, ...]:
    """The sparsities of a method's tickets where these are asked for: 0 if it never prunes, or may and none is."""
    family = method.module.FAMILY
    dense = family in NEVER_PRUNE or (family in MAY_PRUNE and not asked)
    return (Decimal("0.0000"),) if dense else tuple(asked)


def check_sparsities(method: Method, sparsities: Sequence[Decimal]) -> None:
    """A method that never prunes has no sparsity but 0; others need at least one, most above 0, each only once.

    Raises:
        ConfigError: says which value is wrong.
    """
    family = method.module.FAMILY
    if family in NEVER_PRUNE:
        if any(sparsity != 0 for sparsity in sparsities):
            raise ConfigError(f"method {method.name!r} does not prune: its only sparsity is 0, not {max(sparsities)}")
    elif family in MAY_PRUNE:
        if not sparsities:
            raise ConfigError(f"method {method.name!r}: give sparsities; 0 is one of a dense model")
    elif not sparsities or min(sparsities) <= 0:
        raise ConfigError(f"method {method.name!r} prunes: give sparsities above 0 (method 'dense' is sparsity 0)")
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
        ConfigError: the schedule overruns the budget, a sparsity keeps no weight, or there is nothing to choose by.
        TrainingDiverged: a loss that is not finite.
    """
    planned_steps(method, trainer.training, len(trainer.examples), sparsities)
    total = sum(initial.weights[name].numel() for name in trainer.prunable)
    for sparsity in sparsities:
        if num_pruned(sparsity, total) == total:
            raise ConfigError(f"sparsity {sparsity} is not reachable: it keeps none of {total} prunable weights")
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
        yield replace(ticket, origin=origin)


def check_ticket(ticket: Ticket) -> None:
    """Refuse a ticket that is not exact to one weight, counted on the weights: a bug in a method, not bad input."""
    total = masks.num_weights(ticket.mask)
    assert masks.num_kept(ticket.mask) == total - num_pruned(ticket.sparsity, total), ticket.method
    for name, kept in ticket.mask.items():
        assert not ticket.weights[name][~kept].any(), f"{ticket.method}: {name} has masked weights that are not zero"
