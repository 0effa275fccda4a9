"""Snapshots of a model, its optimizer and related objects, restored to the bit after user code has trained them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isp.errors import ConfigError
from isp.lazy import torch
from isp.rng import forked_rng
from isp.tensors import is_expanded, write

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def restored(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: Mapping[str, Any],
    whose: str,
) -> Iterator[None]:
    """Restore everything after this context, so that training continues as if nothing had happened.

    This restores weights, buffers, gradients and the mode of every module; the optimizer's state and the settings of
    its parameter groups; the `state_dict` of all `others`, and the stage of a gradient scaler's current step;
    and the generators of torch (of the CPU and of the model's device), NumPy and Python. The values of expanded
    buffers, to which nothing can be written in place, are not restored. At the start of the context no parameter has a
    gradient. The snapshot takes the memory of a copy of all trained weights, of the buffers and of the optimizer's
    state.

    Args:
        model: Model to restore.
        optimizer: Its optimizer.
        others: Objects with `state_dict` and `load_state_dict`, by name, such as a scheduler or a gradient scaler.
        whose: Name of the function that is called in the context, for error messages.

    Raises:
        ConfigError: If a change cannot be undone: a parameter was replaced, a parameter or buffer was added or removed,
            a frozen parameter was written to, or the optimizer has other parameters.
    """
    parts = _parts(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {id(p): p for p in (*trained.values(), *held)}
    frozen = {name: (p, p._version) for name, p in model.named_parameters() if id(p) not in kept}
    gradients = {key: p.grad for key, p in kept.items()}
    written = (buffer for buffer in model.buffers() if buffer.layout != torch.strided or not is_expanded(buffer))
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*kept.values(), *written)]
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in model.modules()}
    memory = {p: {key: _clone(value) for key, value in state.items()} for p, state in optimizer.state.items()}
    groups = [
        {key: _clone(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    states = {name: copy.deepcopy(other.state_dict()) for name, other in others.items()}
    stages = {name: copy.deepcopy(_stages(other)) for name, other in others.items()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for p in kept.values():
        p.grad = None
    try:
        with forked_rng(device):
            yield
    finally:
        for tensor, saved in tensors:
            write(tensor, saved)
        for key, p in kept.items():
            p.grad = gradients[key]
        for module, mode in modes.items():
            module.training = mode
            module._buffers.update(buffers[module])  # in case one was replaced
        _restore_optimizer(optimizer, memory, groups)
        for name, other in others.items():
            other.load_state_dict(states[name])
            _stages(other).clear()
            _stages(other).update(stages[name])
    _check_parts(parts, _parts(model), whose)
    for name, (parameter, version) in frozen.items():
        if parameter._version != version:
            raise ConfigError(f"{whose}: wrote to parameter {name!r}, which is not trained, so it was not restored")
    if [id(p) for group in optimizer.param_groups for p in group["params"]] != [id(p) for p in held]:
        raise ConfigError(
            f"{whose}: changed the parameters of the optimizer; it must leave the parameter groups unchanged"
        )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore the gradients and the mode of every module after this context."""
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _stages(other: Any) -> dict[int, dict[str, Any]]:
    """Return the stage of a gradient scaler's step for each optimizer, for example whether gradients are unscaled.

    No state dict contains it, and without it, a step that an error interrupted could not be repeated.
    """
    stages: dict[int, dict[str, Any]] = getattr(other, "_per_optimizer_states", {})
    return stages


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, memory: Mapping[Tensor, dict[str, Any]], groups: list[dict[str, Any]]
) -> None:
    """Restore an optimizer's state, in place if the tensors are the same ones, because other code may refer to them."""
    for parameter in [p for p in optimizer.state if p not in memory]:
        del optimizer.state[parameter]
    for parameter, saved in memory.items():
        optimizer.state[parameter] = _merged(optimizer.state.get(parameter, {}), saved)
    for group, settings in zip(optimizer.param_groups, groups, strict=False):  # additional groups are refused later
        merged = _merged(group, settings) | {"params": group["params"]}
        group.clear()
        group.update(merged)


def _merged(now: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    merged = {}
    for key, value in saved.items():
        tensor = now.get(key)
        fits = isinstance(value, torch.Tensor) and isinstance(tensor, torch.Tensor) and tensor.shape == value.shape
        if fits and isinstance(tensor, torch.Tensor):
            with torch.no_grad():
                tensor.copy_(value)
        merged[key] = tensor if fits else value
    return merged


def _parts(model: nn.Module) -> dict[str, tuple[int, bool]]:
    """Return the identity of each parameter and buffer, and whether it is trained, by every name."""
    parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)}
    return parameters | {name: (id(b), False) for name, b in model.named_buffers(remove_duplicate=False)}


def _check_parts(before: Mapping[str, tuple[int, bool]], after: Mapping[str, tuple[int, bool]], whose: str) -> None:
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        if name not in after:
            change = "removed"
        elif name not in before:
            change = "added"
        else:
            change = "replaced" if before[name][0] != after[name][0] else "froze or unfroze"
        raise ConfigError(
            f"{whose}: {change} {name!r} of the model, which cannot be undone; it must train the model in place and "
            "change nothing else"
        )
