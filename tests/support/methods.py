"""Trainers of the tiny model, and tickets of a method with settings that make it fast."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from isp import registry
from isp.costs import StepFlops
from isp.evaluation import validation_by
from isp.families import Method, find_tickets, make_method
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.sparsity import parse_sparsity
from isp.tickets import Ticket, Validation
from isp.training import Trainer, Training, make_trainer, state_of
from tests.support.models import Noisy, Still, tiny_model

QUICK: dict[str, dict[str, Any]] = {
    "denoised": {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 2, "look_ahead_steps": 3},
    "iterative": {"rate": 0.4},
    "pooled": {"rate": 0.4},
    "souped": {"members": 3},
    "instant": {"subnetworks": 3, "look_ahead_steps": 5, "coefficients": [0, 0.5, 1]},
    "synflow": {"rounds": 5},
    "lth_rewind": {"rewind_steps": 3},
}
"""Settings that make families and single methods fast."""


_step_flops: dict[Any, StepFlops] = {}
"""Counted FLOPs of a step of the tiny model, by batch size and what is not pruned."""


def tiny_trainer(seed: int = 0, exclude: Sequence[str] = ("head.*",), **training: Any) -> Trainer:
    """Make a trainer of the tiny model that does not prune `exclude`; the other arguments are those of `Training`."""
    protocol = Training(**{"steps": 30, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 3} | training)
    model = tiny_model()
    names, key = prunable_names(model, exclude=exclude), (protocol.batch_size, *exclude)
    flops = _step_flops.get(key)
    trainer = make_trainer(model, Noisy(), default_loss, protocol, names, seed, flops=flops)
    _step_flops[key] = trainer.flops
    return trainer


def quick(method: str, **settings: Any) -> Method:
    family = QUICK.get(registry.load("method", method).FAMILY, {})
    return make_method(method, family | QUICK.get(method, {}) | settings)


def find(trainer: Trainer, method: str, *sparsities: str, **settings: Any) -> list[Ticket]:
    asked = [parse_sparsity(s) for s in sparsities]
    chosen = quick(method, **settings)
    return list(find_tickets(chosen, trainer, state_of(tiny_model()), asked, held_out(trainer)))


def held_out(trainer: Trainer) -> Validation:
    """Accuracy on separate examples; the cost of scoring is counted."""
    return validation_by(copy.deepcopy(trainer.model), Still(30), "accuracy")
