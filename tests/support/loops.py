"""A typical training loop that does the same as `isp.prune`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import isp
from isp.losses import default_loss
from isp.training import Examples

STEPS, BATCH, PEAK = 30, 16, 1e-2


class Loop:
    """A model, its optimizer and a `Pruner`; `run` trains to a step.

    Args:
        pruning: Arguments of `Pruner`, in addition to those that the loop defines.
        optimizer: Function that makes the optimizer of the parameters.
        accumulate: Number of parts into which each batch is split.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        *,
        clip_norm: float | None = 1.0,
        accumulate: int = 1,
        set_to_none: bool = True,
        **pruning: Any,
    ) -> None:
        self.model, self.examples = model, examples
        make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=PEAK, weight_decay=0.1, fused=True))
        self.optimizer = make([p for p in model.parameters() if p.requires_grad])
        self.clip_norm, self.accumulate, self.set_to_none = clip_norm, accumulate, set_to_none
        self.scheduled = 0  # the step whose learning rate is next
        self.scaler = pruning.get("scaler")
        self.factor: float | None = None  # factor of copies, instead of Pruner's
        self.rates: list[float] = []
        self.optimizer.register_step_post_hook(lambda *_: self.rates.append(self.optimizer.param_groups[0]["lr"]))
        self.seed = pruning.get("seed", 0)
        model.train()
        self.pruner = isp.Pruner(
            model,
            self.optimizer,
            steps=STEPS,
            **{
                "train_step": self.train_step,
                "data": examples,
                "batch_size": BATCH,
                "loss": default_loss,
                "scale_learning_rate": False,
                "scheduler": self,
                **pruning,
            },
        )

    def state_dict(self) -> dict[str, int]:
        return {"scheduled": self.scheduled}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.scheduled = state["scheduled"]

    def train_step(self, batch: Any) -> None:
        """Make an update; the learning rate decays linearly to zero at T."""
        inputs, labels = batch
        parts = zip(inputs.chunk(self.accumulate), labels.chunk(self.accumulate), strict=True)
        for part in parts:
            loss = default_loss(self.model, part) / self.accumulate
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.set_learning_rate(self.pruner.learning_rate_factor if self.factor is None else self.factor)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        self.scheduled += 1
        self.set_learning_rate()

    def set_learning_rate(self, factor: float = 1.0) -> None:
        """Set the learning rate of the next update, as a scheduler does after each update."""
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK * factor * max(0.0, (STEPS - self.scheduled) / STEPS)

    def run(self, until: int = STEPS) -> Loop:
        order = isp.BatchOrder(len(self.examples), BATCH, self.seed)
        for step in range(self.pruner.steps_done, until):
            isp.seed_step(self.seed, step)
            self.train_step(self.examples.batch(order(step)))
            self.pruner.step()
        return self
