"""API for users' own models and data: `prune`, `save_ticket`, `load_ticket`. No files, no workflow."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from isp import artifacts, attached
from isp.artifacts import save_ticket
from isp.counting import counting
from isp.divergence import first_not_finite
from isp.errors import ConfigError, expect
from isp.examples import Collate, Dataset, first_loss, make_examples
from isp.families import check_function, find_tickets, make_method, patterns_of, planned_steps
from isp.losses import default_loss
from isp.progress import advancing
from isp.prunable import check_saved, prunable_names
from isp.rng import forked_rng, seed_all
from isp.seeds import integer
from isp.seeds import seed as named_seed
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.tensors import (
    by_all_names,
    by_first_name,
    check_dtypes,
    check_module,
    has_gaps,
    is_expanded,
    remember_buffers,
    unwrapped,
)
from isp.tickets import Ticket, Validation
from isp.training import (
    Examples,
    LossFunction,
    Trainer,
    Training,
    TrainingDiverged,
    load_weights,
    make_trainer,
    state_of,
)

_OTHER_KEYS = {
    "optimizer": "isp.prune trains with AdamW; isp.Pruner prunes in a loop with any optimizer of torch",
    "lr": "the learning rate is learning_rate",
    "epochs": "the length of training is steps, the number of updates",
}
"""Advice for keys that training loops elsewhere have."""

__all__ = ["Ticket", "load_ticket", "prune", "save_ticket"]


def prune(
    model: nn.Module,
    train: Any,
    *,
    sparsity: float | str | Decimal,
    method: str = "isp_mean",
    settings: Mapping[str, Any] | None = None,
    loss: LossFunction | None = None,
    collate: Collate | None = None,
    prunable: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
    validation: Any = None,
    progress: Callable[[int], None] | bool | None = None,
    **training: Any,
) -> Ticket:
    """Fine-tune `model` and prune it to `sparsity` along the way; afterwards the model has the ticket's weights.

    Args:
        model: Any module, with its initial weights. Parameters with `requires_grad` are trained. Those in fp16 or bf16
            are trained through fp32 master weights: with gradients and both moments, that takes 18 bytes per weight
            instead of an fp32 model's 16. There is no loss scaling, so bf16 is the safer type.
            Modules in evaluation mode (frozen norms) stay in it if the model as a whole is in training mode; a model
            in evaluation mode is trained entirely in training mode. One wrapped by `DistributedDataParallel`,
            `DataParallel` or `torch.compile` is unwrapped; on a GPU, `compile=True` trains a compiled model. Gradients
            that its parameters have are deleted. A `Pruner` that is still attached to it is closed, with a warning if
            its run is not complete.
        train: Training examples: a tensor or array, or a tuple, list or dict of these with equal first dimensions; a
            map-style dataset; or an object with `__len__` and `batch(indices)`. Tensors stay on their device, which
            must be that of the model. NumPy arrays are moved there; float64 arrays get the model's dtype. Random
            numbers that form a batch must come from the global generators of torch, NumPy or `random`, which are
            seeded for every step and restored at the end. A dataset with its own generator makes runs differ.
        sparsity: Fraction of the prunable weights that are zero at the end, in [0, 1), at most four decimals; 0 for
            methods that produce dense models: `dense`, `instant_model_soup`, `uniform_soup`, `greedy_soup`.
        method: Name of a file in `isp/methods/`; `isp list methods` lists them. The default is Instant Soup Pruning
            with averaged magnitudes; the paper's own rule, a union of masks, is `isp`.
        settings: Settings of the method; see its file.
        loss: Function from (model, batch) to a scalar. Default for a batch (inputs, labels): cross-entropy of
            `model(inputs)` (or its `logits`), (n, classes), for integer labels; mean squared error for floating-point
            labels, (n,) or (n, 1), of a model with one output. Several outputs with floating-point labels may be
            targets or probabilities, so they need a loss. For a dict: `model(**batch).loss`, as in Hugging Face models.
        collate: Function that forms a batch from a list of items of a map-style dataset, for example by padding.
            Default: lists of numbers in a dict become tensors, followed by torch's `default_collate`.
        prunable: Patterns of prunable parameters; default: the weights of all known layers, as listed by
            `isp.prunable.prunable_names`.
        exclude: Patterns of parameters that are never pruned, such as "classifier.*".
        seed: Seed of all random numbers.
        validation: Criterion by which `lottery_pools`, `greedy_soup` and `instant_model_soup` choose: a function that
            scores the model on its own examples (higher is better), or examples in any form accepted for `train`,
            which are scored by their mean loss. The generators of torch, NumPy and `random` are seeded alike before
            every score, and restored after it.
        progress: Function called with 1 after every training step, and with more for skipped steps; or whether to draw
            a progress bar on standard error. None: draw it in a terminal and in a notebook.
        **training: Training protocol with the keys of `isp.training.Training`; `steps` and `learning_rate` are
            required.

    Returns:
        Ticket with mask, weights, cost and a record of every round. Exactly `sparsity` of the mask is False, and those
        weights are zero. A kept weight may also be zero, in fp16 if it is below 3e-8.

    Raises:
        ConfigError: If a setting is unknown or impossible, or data, labels or the model cannot be used for training.
            The model is unchanged. Nearly all such errors are raised before training.
        KeyboardInterrupt: If the user interrupts; the model has its initial weights and buffers again.
        TrainingDiverged: If the loss, a gradient or a weight is not finite. The model has its initial weights and
            buffers again, and the error's `state` contains the last good ones.
    """
    model = unwrapped(check_module("model", model))
    chosen = make_method(method, settings)
    target = parse_sparsity(sparsity)
    seed = integer("seed", seed)
    check_function("loss", loss, "(model, batch)")
    check_function("collate", collate, "a list of items")
    prunable = None if prunable is None else patterns_of("prunable", prunable)
    exclude = patterns_of("exclude", exclude)
    if not torch.is_grad_enabled():
        raise ConfigError(
            "isp.prune(): called inside torch.no_grad() or torch.inference_mode(), where a model cannot be trained; "
            "call it outside"
        )
    _check_keys(training)
    protocol = parse(Training, training, "training")
    artifacts.check_storable(model.state_dict())
    names = prunable_names(model, prunable, exclude)
    _check_model(model)
    examples = make_examples(train, model, "train", collate)
    if collate is not None and not isinstance(examples, Dataset):
        raise ConfigError(f"collate: train must be a map-style dataset, got {type(train).__name__}")
    planned = planned_steps(chosen, protocol, len(examples), [target])  # refuses impossible schedules in advance
    attached.detach(model.parameters(), "isp.prune()", stacklevel=2)
    initial, modes = state_of(model), {module: module.training for module in model.modules()}
    final = initial.weights
    restore_buffers = remember_buffers(model, unsaved_only=True)
    try:
        trainer = make_trainer(model, examples, first_loss(loss, examples), protocol, names, seed)
        _warn_of_dropout(trainer)
        with advancing(progress, planned, f"{chosen.name}, sparsity {float(100 * target):g} %") as advance:
            trainer = replace(trainer, loss=loss or default_loss, progress=advance)
            chooses = None if validation is None else _validation(trainer, validation, collate)
            (ticket,) = find_tickets(chosen, trainer, initial, [target], chooses)
        final = ticket.weights
    except TrainingDiverged as error:
        error.state = replace(error.state, weights=by_all_names(error.state.weights, model))
        raise
    finally:
        load_weights(model, final)
        if final is initial.weights:
            restore_buffers()
        for module, mode in modes.items():
            module.training = mode
    return replace(ticket, weights=by_all_names(final, model))


def load_ticket(path: str | Path, model: nn.Module | None = None) -> Ticket:
    """Read a ticket and, if a model is given, load its weights into the model.

    Args:
        path: File of the ticket.
        model: Model of the ticket; one wrapped by `DistributedDataParallel`, `DataParallel` or `torch.compile` is
            unwrapped.

    Raises:
        ArtifactError: If the file is missing, truncated or altered.
        ConfigError: If the ticket belongs to another model, has a tensor of another type than the model's, or has two
            values for a parameter that is tied in the model; the model is unchanged.
    """
    expect("path", path, "a path", str, os.PathLike)
    ticket = artifacts.load_ticket(path)
    if model is None:
        return ticket
    model = unwrapped(check_module("model", model))
    mask = by_first_name(ticket.mask, model, f"the mask of {path}")
    what = f"the weights of the ticket {path}"
    check_dtypes(model, ticket.weights, what)
    load_weights(model, ticket.weights, what)
    return replace(ticket, mask=mask)


def _check_keys(training: Mapping[str, Any]) -> None:
    """Refuse keys of other libraries' training loops, and name the key of this one.

    Raises:
        ConfigError: If one is present.
    """
    for key, advice in _OTHER_KEYS.items():
        if key in training:
            raise ConfigError(f"training: unknown key {key!r}; {advice}")


def _check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be trained.

    Raises:
        ConfigError: If a parameter or module is unsuitable; the message names it.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_complex() and parameter.requires_grad:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"parameter {name!r} is complex ({dtype}), and isp.prune() trains only real parameters; freeze it with "
                "requires_grad_(False), or store its real and imaginary parts in a real parameter"
            )
        if is_expanded(parameter):
            raise ConfigError(f"parameter {name!r} is expanded: several weights share memory; clone it")
        if parameter.requires_grad and has_gaps(parameter):
            raise ConfigError(
                f"parameter {name!r} is part of a larger tensor (shape {tuple(parameter.shape)}, strides "
                f"{parameter.stride()}), beside whose weights torch's fused AdamW would write; replace it by "
                "torch.nn.Parameter(parameter.detach().contiguous())"
            )
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True and any(p.requires_grad for p in module.parameters(recurse=False)):
            raise ConfigError(f"module {name!r} has sparse gradients, which AdamW cannot use; set its sparse to False")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_saved(model, trained)
    broken = first_not_finite(trained)
    if broken is not None:
        raise ConfigError(f"parameter {broken!r} contains NaN or infinite values; start from finite weights")


def _warn_of_dropout(trainer: Trainer) -> None:
    """Warn of dropout that is off during training, because modules from `from_pretrained` are in evaluation mode."""
    off = [
        name
        for name, module in trainer.model.named_modules()
        if name in trainer.evaluating and isinstance(module, _DropoutNd) and module.p > 0
    ]
    if off:
        warnings.warn(
            f"{len(off)} dropout modules, such as {off[0]!r}, are in evaluation mode and stay in it during training; "
            f"call model.train() first if this is not intended",
            stacklevel=3,
        )


def _validation(trainer: Trainer, chooses: Any, collate: Collate | None) -> Validation:
    """Return the validation score: the result of a function of the model, or minus the mean loss over examples."""
    model = trainer.model

    def score(weights: Mapping[str, Tensor]) -> float:
        load_weights(model, weights)
        model.eval()
        value = _seeded(trainer, chooses) if given else -_mean_loss(trainer, examples)
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):  # of a tensor of several numbers
            raise ConfigError(f"validation: must return a number, got {type(value).__name__} {value!r:.80}") from None
        if math.isnan(number):
            raise ConfigError("validation: the score of a model is NaN, so it cannot be used to choose")
        return number

    given = callable(chooses)
    examples = trainer.examples if given else make_examples(chooses, model, "validation", collate)
    with counting(model) as counter:
        score(state_of(model).weights)
    return Validation(score=score, cost=counter.cost())


def _seeded(trainer: Trainer, chooses: Callable[[nn.Module], Any]) -> Any:
    """Return a user's score of the model, with the same random numbers for every model and every process."""
    with forked_rng(next(trainer.model.parameters()).device):
        seed_all(named_seed("validation", seed=trainer.seed))
        return chooses(trainer.model)


def _mean_loss(trainer: Trainer, examples: Examples) -> float:
    parts = torch.split(torch.arange(len(examples)), trainer.training.batch_size)
    losses = []
    with torch.no_grad(), forked_rng(next(trainer.model.parameters()).device):
        for index, part in enumerate(parts):
            seed_all(named_seed("validation", seed=trainer.seed, batch=index))
            losses.append(float(trainer.loss(trainer.model, examples.batch(part))) * len(part))
    return sum(losses) / len(examples)
