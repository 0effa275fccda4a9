"""Re-estimation of running statistics (BatchNorm) for models that are averages of others.

The mean of several models' statistics is not the statistics of their mean. An average or interpolation of weights is
therefore scored and returned with statistics of its own activations, as in `torch.optim.swa_utils.update_bn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isp.costs import Cost
from isp.errors import ConfigError
from isp.lazy import torch
from isp.rng import forked_rng, seed_all
from isp.seeds import seed as named_seed
from isp.tensors import first_names, tensors_of
from isp.training import Trainer, load_weights, set_training

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn.modules.batchnorm import _NormBase

BATCHES = 50
"""Number of training batches for the estimate: the first ones of the training order, at most an epoch."""


def norms_of(model: nn.Module) -> dict[str, _NormBase]:
    """Return the modules that keep running statistics, by their first name."""
    from torch.nn.modules.batchnorm import _NormBase

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    }


@dataclass
class Reestimation:
    """Function that estimates the running statistics of averaged models and counts its cost.

    Attributes:
        trainer: Trainer whose model is overwritten, and whose examples, order and loss make the forward passes.
        count: Number of models estimated so far.
    """

    trainer: Trainer
    count: int = 0
    _once: Cost | None = field(default=None, repr=False)

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all weights of a model with running statistics of its own activations; nothing else changes.

        All batches have equal weight (a cumulative average). Modules are in the modes in which they are trained.
        """
        model = self.trainer.model
        load_weights(model, weights)
        self._estimate()
        self.count += 1
        names, tensors = first_names(model), tensors_of(model)
        every = (f"{name}.{buffer}" for name in self._norms() for buffer in ("running_mean", "running_var", _TRACKED))
        return {
            **weights,
            **{n: tensors[n].to(weights[n].device, copy=True) for each in every if (n := names.get(each))},
        }

    @property
    def cost(self) -> Cost:
        """Cost of the forward passes of all estimates so far."""
        from isp.counting import counting

        if self.count and self._once is None:
            with counting(self.trainer.model) as counter:
                self._estimate(counter.paused)
            self._once = counter.cost()
        return sum([self._once or Cost()] * self.count, Cost())

    def _norms(self) -> dict[str, _NormBase]:
        norms = norms_of(self.trainer.model)
        return {name: norm for name, norm in norms.items() if name not in self.trainer.evaluating}

    def _estimate(self, preparing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        trainer, order, norms = self.trainer, self.trainer.order, list(self._norms().values())
        set_training(trainer.model, trainer.evaluating)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
        hooks = [norm.register_forward_pre_hook(_averaging()) for norm in norms]
        try:
            with torch.no_grad(), forked_rng(next(trainer.model.parameters()).device):
                for step in range(min(BATCHES, order.steps_per_epoch)):
                    seed_all(named_seed("running statistics", seed=trainer.seed, step=step))
                    with preparing():
                        batch = trainer.examples.batch(order(step))
                    trainer.loss(trainer.model, batch)
        finally:
            for norm, hook, momentum in zip(norms, hooks, momenta, strict=True):
                hook.remove()
                norm.momentum = momentum


_TRACKED = "num_batches_tracked"


def _averaging() -> Callable[[nn.Module, Any], None]:
    """Return a hook that gives a norm's n-th call momentum 1 / n; `momentum = None` does not average InstanceNorm."""
    calls = 0

    def set_momentum(norm: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        norm.momentum = 1 / calls  # type: ignore[assignment]

    return set_momentum


def check_no_statistics(weights: Mapping[str, Tensor]) -> None:
    """Refuse models with running statistics in stages that cannot estimate the statistics of averages.

    Raises:
        ConfigError: If a weight is a running statistic; the message names the first one.
    """
    statistic = next((name for name in weights if name.rpartition(".")[2] == "running_mean"), None)
    if statistic:
        raise ConfigError(
            f"{statistic!r}: an average of models with running statistics needs them estimated on training data, which "
            f"this stage does not read; use isp.prune for such models, or a backbone without BatchNorm"
        )


def reestimation(trainer: Trainer) -> Reestimation | None:
    """Return the re-estimation for averages of a trainer's models, or None if they have no running statistics."""
    estimating = Reestimation(trainer)
    return estimating if estimating._norms() else None
