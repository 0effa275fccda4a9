"""The prunable parameters of a model that other code trains, with the mask that keeps some of their weights at zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isp import masks
from isp.divergence import first_not_finite
from isp.errors import ConfigError, MaskError
from isp.masks import Mask, Weights
from isp.ranks import Ranks

if TYPE_CHECKING:
    from isp.sharded import Layout

KEEPS_ZEROS = (torch.optim.Adafactor, torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimizers whose update of a weight is zero if the weight, its gradients and its moments are; see `keeps_zeros`."""
DIVERGED = "Return to an earlier checkpoint, and lower the optimizer's learning rate, warm it up or clip the gradients."
"""Advice for weights that are not finite."""


class MaskedParameters:
    """Prunable parameters of a model and their current mask.

    Other code trains the parameters, so it may write to them or replace them. The methods `check_…` find that, and
    `apply` and `mask_gradients` prevent what can be prevented.

    Args:
        model: Model in training, unwrapped.
        names: Names of its prunable parameters.
        optimizer: Its optimizer, unwrapped.
        ranks: Processes that train the model.

    Attributes:
        parameters: Prunable parameters by name.
        layout: How they are sharded; None if they are not.
        mask: Current mask, True = kept, on the devices and in the shards of the parameters; None before the first.
        num_dropped: Number of weights that it drops, on all ranks.
        sparsity: Their fraction, in [0, 1).
    """

    def __init__(self, model: nn.Module, names: Iterable[str], optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self._model, self._optimizer, self._ranks = model, optimizer, ranks
        self.parameters = {name: model.get_parameter(name) for name in names}
        self.layout = _layout(self.parameters)
        self.mask: Mask | None = None
        self.num_dropped, self.sparsity = 0, 0.0
        self._versions: list[int] = []  # numbers of writes to the parameters, when they were last known to be masked

    # --- the mask

    def set_mask(self, mask: Mask | None) -> None:
        """Set the mask, on the devices and in the shards of the parameters, without applying it."""
        if mask is None:
            self.mask, self.num_dropped, self.sparsity = None, 0, 0.0
            return
        mask = {name: kept.to(self.parameters[name].device) for name, kept in mask.items()}
        if self.layout is not None:
            mask = self.layout.whole(self.layout.parts(mask))
        self._ranks.check_same(mask)
        kept, total = masks.num_kept(mask), masks.num_weights(mask)  # counted once, on all ranks
        self.mask, self.num_dropped, self.sparsity = mask, total - kept, 1 - kept / total

    def current(self) -> tuple[Mask | None, int, float]:
        """Return mask, number of dropped weights and sparsity, for `restore`."""
        return self.mask, self.num_dropped, self.sparsity

    def restore(self, before: tuple[Mask | None, int, float]) -> None:
        """Set what `current` returned; weights that were dropped since then stay zero."""
        self.mask, self.num_dropped, self.sparsity = before

    @torch.no_grad()
    def apply(self) -> None:
        """Set masked weights, and their optimizer state and gradients, to +0.0."""
        if self.mask is None:
            return
        masks.apply_(self.mask, self.parameters)
        for name, kept in self.mask.items():
            parameter = self.parameters[name]
            for value in self._optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    masks.apply_({name: kept}, {name: value})
            if parameter.grad is not None:
                masks.apply_({name: kept}, {name: parameter.grad})

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of all masked weights to +0.0."""
        for name in self.mask or {}:
            self.mask_gradient(name)

    def mask_gradient(self, name: str) -> None:
        """Set those of one parameter to +0.0, in place unless other tensors share the memory of its gradient."""
        parameter = self.parameters[name]
        gradient = parameter.grad
        if self.mask is None or gradient is None:
            return
        if 0 in gradient.stride() or (self.layout is None and _is_shared(gradient)):
            parameter.grad = gradient = gradient.clone(memory_format=torch.contiguous_format)
        masks.apply_({name: self.mask[name]}, {name: gradient})

    def keeps_zeros(self) -> bool:
        """Return whether an update by the optimizer leaves weights at zero if their gradients and moments are zero.

        Then only a new mask must be applied to weights and moments, and to the gradients before every update. With any
        other optimizer, in several processes, where other code may add to the gradients, and after a step with a
        closure, weights and moments are masked again after every update.

        The update of such an optimizer is 0 / (0 + eps), which is NaN if `eps` rounds to zero in the type of the
        weights, as Adam's default does in fp16. A subnormal `eps` does not count, because a device may set it to zero.
        """
        if type(self._optimizer) not in KEEPS_ZEROS:
            return False
        types = {parameter.dtype for parameter in self.parameters.values()}
        least = max(torch.finfo(dtype).smallest_normal for dtype in types)
        for group in self._optimizer.param_groups:
            eps = group.get("eps")
            if isinstance(eps, Sequence):  # Adafactor, which adds the square of the first one; None: that of the type
                eps = None if eps[0] is None else eps[0] ** 2
            if eps is not None and eps < least:
                return False
        return True

    # --- what other code did

    def check_in_place(self, where: str) -> None:
        """Refuse to continue after a prunable parameter of the model was replaced.

        FSDP2 replaces parameters itself, so those of sharded models are not checked.

        Args:
            where: Name of the function that checks, for the message.

        Raises:
            ConfigError: If a parameter was replaced or removed.
        """
        if self.layout is not None:
            return
        for name, parameter in self.parameters.items():
            if not _is_at(self._model, name, parameter):
                raise ConfigError(
                    f"{where}: parameter {name!r} was replaced or removed after the Pruner was created, so the model "
                    "does not use the pruned one; create the Pruner after the last change of the model's modules"
                )

    def remember_writes(self) -> None:
        """Remember how often each parameter has been written to, now that masked weights are known to be zero.

        Writes are not watched in several processes, because an error on one rank would leave the others waiting.
        """
        if self._ranks.size == 1 and self.layout is None:
            self._versions = [parameter._version for parameter in self.parameters.values()]

    def forget_writes(self) -> None:
        """Do not compare with earlier writes any more."""
        self._versions = []

    def check_written(self, where: str, steps: int) -> None:
        """Refuse masked weights that are not zero, but look at them only if there was a write that is not remembered.

        Args:
            where: Name of the function that checks, for the message.
            steps: Number of steps of the run so far, for the message.

        Raises:
            ConfigError: If such a weight is not zero.
            MaskError: If one is NaN.
        """
        if self.mask is None or not self._versions:
            return
        if self._versions != [parameter._version for parameter in self.parameters.values()]:
            self.check_zeros(where, steps)

    def check_zeros(self, where: str, steps: int) -> None:
        """Refuse masked weights that are not zero, without looking at writes; see `check_written`."""
        if (revived := self.revived()) is None:
            return
        if (broken := first_not_finite(self.parameters)) is not None:
            raise MaskError(
                f"{where}: parameter {broken!r} contains NaN or infinite values after {steps} steps. {DIVERGED}"
            )
        name, alive = revived
        raise ConfigError(
            f"{where}: {alive} weights of parameter {name!r} that the mask drops are not zero; other code has written "
            "to them, such as load_state_dict of the model. Load the pruner's state together with those of the model "
            "and the optimizer (pruner.load_state_dict), and take the ticket before any training after pruner.close()"
        )

    def revived(self) -> tuple[str, int] | None:
        """Return a parameter with masked weights that are not zero, and their number; None if there is none."""
        dropped = {name: ~kept for name, kept in (self.mask or {}).items()}
        counts = masks.num_kept_each(masks.intersection(dropped, self.parameters))
        return next(((name, alive) for name, alive in counts.items() if alive), None)


def _layout(parameters: Weights) -> Layout | None:
    """Return the layout of sharded parameters, or None if they are plain."""
    if not masks.is_sharded(parameters):
        return None
    from isp import sharded

    return sharded.layout(parameters)


def _is_shared(gradient: Tensor) -> bool:
    """Return whether a gradient may share its whole memory with that of another parameter.

    Autograd gives parameters that were viewed and then added views of one gradient. Parts of a larger buffer are not
    shared in this sense: they belong to one parameter each, and the buffer's owner (DDP, for example) relies on them.
    """
    if gradient.layout != torch.strided:
        return False
    storage = gradient.untyped_storage()
    whole = storage.nbytes() == gradient.numel() * gradient.element_size()
    return whole and torch._C._storage_Use_Count(storage._cdata) > 2  # the gradient and `storage`


def _is_at(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Return whether the model has this parameter under the name."""
    try:
        return model.get_parameter(name) is parameter
    except AttributeError:
        return False
