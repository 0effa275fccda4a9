"""One-shot methods: a mask from the initial weights, then T steps under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from isp import masks
from isp.costs import Cost
from isp.families import Method, Ticket
from isp.masks import Mask, Weights
from isp.methods import Probe
from isp.rng import forked_rng
from isp.seeds import seed as named_seed
from isp.training import State, Trainer, Training, load_weights


def planned_steps(method: Method, training: Training, num_examples: int, sparsities: Sequence[Decimal]) -> int:
    """T a ticket."""
    return len(sparsities) * training.steps


def score(method: Method, trainer: Trainer, initial: State) -> tuple[dict[str, Tensor], Cost]:
    """The method's scores at the initial weights, and what the batches it looked at cost."""
    load_weights(trainer.model, initial.weights)
    trainer.model.eval()
    parameters = dict(trainer.model.named_parameters())
    num_batches, order = 0, trainer.order

    def batches(count: int) -> Iterator[Any]:
        nonlocal num_batches
        for step in range(count):
            num_batches += 1
            yield trainer.examples.batch(order(step))

    probe = Probe(
        weights={name: parameters[name] for name in trainer.prunable},
        model=trainer.model,
        loss=trainer.loss,
        batches=batches,
    )
    with forked_rng(next(trainer.model.parameters()).device):
        torch.manual_seed(named_seed("one-shot scores", seed=trainer.seed))
        scores = method.module.scores(probe, method.settings, trainer.seed)
    trainer.model.zero_grad(set_to_none=True)
    return scores, replace(trainer.cost(range(num_batches)), steps=0)


def prune(scores: Weights, trainer: Trainer, initial: State, sparsity: Decimal) -> Mask:
    """The mask that keeps the highest scores, ties by |w|."""
    return masks.keep_top(scores, sparsity=sparsity, ties=trainer.prunable_weights(initial))


def tickets(method: Method, trainer: Trainer, initial: State, sparsities: Sequence[Decimal]) -> Iterator[Ticket]:
    """One ticket a sparsity; the scores are shared."""
    scores, finding = score(method, trainer, initial)
    for sparsity in sparsities:
        mask = prune(scores, trainer, initial, sparsity)
        state, retraining = trainer.run(initial, trainer.training.steps, mask)
        yield Ticket(
            method=method.name,
            sparsity=sparsity,
            mask=mask,
            weights=state.weights,
            finding=finding,
            retraining=retraining,
        )
