"""One-shot methods: a mask from the initial weights, then T steps under that mask.

A method of this family defines `scores(probe, settings, seed)`, a score for every prunable weight; the highest scores
are kept. If scores depend on the sparsity, it defines `mask(probe, settings, seed, sparsity)` instead, which returns
the mask. Its `Settings` derive from `Scored`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from isp import masks
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import Loop, Method, Traits, check_layers, scope_of
from isp.masks import Mask
from isp.methods import Probe, Scored
from isp.rng import forked_rng, seed_all
from isp.seeds import seed as named_seed
from isp.snapshot import undisturbed
from isp.sparsity import parse_scope
from isp.tickets import Ticket
from isp.training import State, Trainer, Training, load_weights, state_of

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAITS = Traits(settings=Scored, one_run=True, patterns=True, defines=(("scores", "mask"),))

T = TypeVar("T")


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """Return T for each ticket."""
    return len(sparsities) * training.steps


def find(
    method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]
) -> Iterator[tuple[Mask, Cost]]:
    """Yield the method's mask at each sparsity, and the cost of finding that mask alone.

    Scores are computed once for all sparsities. The highest ones in the scope of the settings are kept, with ties
    broken by |w|.

    Raises:
        ConfigError: If a layer cannot be divided into the groups of an N:M scope.
        MaskError: If a method's own mask does not have the pattern of its N:M scope.
    """
    module, settings, seed, scope = method.module, method.settings, trainer.seed, scope_of(method)
    check_layers(method, trainer, initial)
    if hasattr(module, "mask"):
        for sparsity in sparsities:
            mask, cost = probe(trainer, initial, partial(module.mask, settings=settings, seed=seed, sparsity=sparsity))
            if pattern := parse_scope(scope):
                masks.check_pattern(mask, pattern, trainer.input_dims)
            yield mask, cost
        return
    scores, cost = probe(trainer, initial, partial(module.scores, settings=settings, seed=seed))
    ties = trainer.prunable_weights(initial)
    for sparsity in sparsities:
        mask = masks.keep_top(scores, sparsity=sparsity, ties=ties, scope=scope, input_dims=trainer.input_dims)
        yield mask, cost


def probe(trainer: Trainer, initial: State, look: Callable[[Probe], T]) -> tuple[T, Cost]:
    """Return the result of `look` for the model at the initial weights, and the cost of computing it.

    There are no optimizer steps. The model counts as dense: sparse FLOPs equal the executed ones even if a method
    prunes in rounds.
    """
    from isp.counting import counting

    model, order = trainer.model, trainer.order
    load_weights(model, initial.weights)
    model.eval()
    parameters = dict(model.named_parameters())
    with forked_rng(next(model.parameters()).device), counting(model) as counter:
        seed_all(named_seed("one-shot", seed=trainer.seed))

        def batches(count: int) -> Iterator[Any]:
            for step in range(count):
                with counter.paused():
                    seed_all(named_seed("one-shot batch", seed=trainer.seed, step=step))
                    batch = trainer.examples.batch(order(step))
                yield batch

        weights: dict[str, Tensor] = {name: parameters[name] for name in trainer.prunable}
        sharded = masks.is_sharded(weights)
        result = look(
            Probe(
                weights=weights,
                model=model,
                loss=_refused if sharded else trainer.loss,
                batches=_refused if sharded else batches,
                input_dims=trainer.input_dims,
            )
        )
    model.zero_grad(set_to_none=True)
    return result, counter.cost()


def _refused(*_: Any) -> Any:
    raise ConfigError(
        "method: scoring weights by training examples or by the loss is not supported for sharded parameters (FSDP2); "
        "choose a method that uses only the weights, such as 'one_shot' or 'gradual'"
    )


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """Yield one ticket per sparsity."""
    for sparsity, (mask, finding) in zip(sparsities, find(method, trainer, initial, sparsities), strict=True):
        state, retraining = trainer.run(initial, trainer.training.steps, mask)
        yield Ticket(
            method=method.name,
            sparsity=sparsity,
            mask=mask,
            weights=state.weights,
            finding=finding,
            retraining=retraining,
        )


@dataclass(kw_only=True)
class Progress:
    """Progress of a run: the mask, once it is computed."""

    mask: Mask | None = None

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.mask is not None


class Run:
    """A method in an existing training loop, whose mask is computed before the first update."""

    observes = False
    rounds: Sequence[dict[str, Any]] = ()

    def __init__(self, method: Method, sparsity: Decimal, loop: Loop) -> None:
        self.at = Progress()
        self._method, self._sparsity, self._loop = method, sparsity, loop

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Do nothing; the loop never calls this."""

    def prune(self, step: int, parameters: Mapping[str, Tensor]) -> Mask | None:
        """Return the mask at the first call, afterwards None."""
        if self.at.done:
            return None
        trainer = self._loop.trainer
        with undisturbed(trainer.model):
            ((self.at.mask, cost),) = find(self._method, trainer, state_of(trainer.model), [self._sparsity])
        self._loop.spend(cost)
        return self.at.mask


def attach(method: Method, sparsity: Decimal, loop: Loop) -> Run:
    """Attach the method to an existing training loop."""
    return Run(method, sparsity, loop)
