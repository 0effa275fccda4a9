"""For people with a model and data of their own: `prune`, `save_ticket`, `load_ticket`. No files, no workflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from isp import artifacts
from isp.costs import Cost, counting
from isp.errors import ConfigError, TrainingDiverged
from isp.families import Ticket, Validation, find_tickets, make_method, planned_steps
from isp.prunable import prunable_names
from isp.settings import parse
from isp.sparsity import parse_sparsity
from isp.tensors import by_all_names, by_first_name
from isp.training import (
    Examples,
    LossFunction,
    Trainer,
    Training,
    default_loss,
    load_weights,
    make_trainer,
    state_of,
)


def prune(
    model: nn.Module,
    train: Any,
    *,
    sparsity: float | str | Decimal,
    method: str = "isp_mean",
    settings: Mapping[str, Any] | None = None,
    loss: LossFunction | None = None,
    prunable: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
    validation: Any = None,
    progress: Callable[[int], None] = lambda _: None,
    **training: Any,
) -> Ticket:
    """Fine-tune `model` and prune it to `sparsity` on the way; afterwards the model holds the ticket's weights.

    Args:
        model: any module, with the weights to begin from. Parameters with `requires_grad` are trained.
        train: training examples: a tensor or a tuple, list or dict of tensors with one first dimension; or a map-style
            dataset; or anything with `__len__` and `batch(indices)`. Tensors are used where they lie: put them and the
            model on the same device.
        sparsity: fraction of the prunable weights that are zero in the end, in [0, 1), at most four decimals; 0 for
            methods that give dense models: `dense`, `instant_model_soup`, `uniform_soup`, `greedy_soup`.
        method: a file's name in `isp/methods/`; `isp list methods` shows them. The default is Instant Soup Pruning with
            averaged magnitudes; the paper's own rule, a union of masks, is `isp`.
        settings: of the method; see its file.
        loss: maps (model, batch) to a scalar. Default: cross-entropy of `model(inputs)` for a batch (inputs, labels),
            mean squared error if the labels are floating-point and the model has one output; `model(**batch).loss` for
            a dict, as Hugging Face models give it.
        prunable: patterns of prunable parameters; default: the weights of all known layers, as
            `isp.prunable.prunable_names` lists them.
        exclude: patterns of parameters that are never pruned, such as "classifier.*".
        seed: of everything random.
        validation: what `lottery_pools`, `greedy_soup` and `instant_model_soup` choose by: a function that scores the
            model, higher is better, on examples that it holds; or such examples in any form that `train` may have,
            whose mean loss is taken.
        progress: called with 1 after every training step.
        **training: the protocol; keys as in `isp.training.Training`, `steps` and `learning_rate` are required.

    Returns:
        The ticket: mask, weights, what it cost, a record of every round.

    Raises:
        ConfigError: an unknown or impossible setting; the model is untouched.
        TrainingDiverged: the loss stopped being finite; the model holds its initial weights again, and the error's
            `state` the last good ones.
    """
    chosen = make_method(method, dict(settings or {}))
    target = parse_sparsity(sparsity)
    protocol = parse(Training, training, "training")
    names = prunable_names(model, prunable, exclude)
    examples = _examples(train)
    planned_steps(chosen, protocol, len(examples), [target])  # refuses an impossible schedule before any work
    initial, modes = state_of(model), {module: module.training for module in model.modules()}
    final = initial.weights
    try:
        trainer = make_trainer(model, examples, loss or default_loss, protocol, names, seed, progress)
        chooses = None if validation is None else _validation(trainer, validation)
        (ticket,) = find_tickets(chosen, trainer, initial, [target], chooses)
        final = ticket.weights
    except TrainingDiverged as error:
        error.state = replace(error.state, weights=by_all_names(error.state.weights, model))
        raise
    finally:
        load_weights(model, final)
        for module, mode in modes.items():
            module.training = mode
    return replace(ticket, weights=by_all_names(final, model))


def save_ticket(path: str | Path, ticket: Ticket) -> None:
    """Write a ticket to one safetensors file; the mask takes one bit a weight.

    Raises:
        IspError: the file cannot be written; nothing is left half-written.
    """
    about = {
        "method": ticket.method,
        "sparsity": str(ticket.sparsity),
        "finding": asdict(ticket.finding),
        "retraining": asdict(ticket.retraining),
        "rounds": ticket.rounds,
        "origin": ticket.origin,
    }
    artifacts.save_ticket(Path(path), ticket.weights, ticket.mask, about)


def load_ticket(path: str | Path, model: nn.Module | None = None) -> Ticket:
    """Read a ticket and, if a model is given, load its weights into the model.

    Raises:
        ArtifactError: missing, truncated or altered file.
        ConfigError: the ticket is of another model, or has two values for a parameter that is tied in the model; the
            model is untouched.
    """
    weights, mask, about = artifacts.load_ticket(Path(path))
    if model is not None:
        mask = by_first_name(mask, model, f"the mask of {path}")
        load_weights(model, weights, f"the ticket {path}")
    return Ticket(
        method=about["method"],
        sparsity=Decimal(about["sparsity"]),
        mask=mask,
        weights=weights,
        finding=Cost(**about["finding"]),
        retraining=Cost(**about["retraining"]),
        rounds=about["rounds"],
        origin=about["origin"],
    )


def _validation(trainer: Trainer, chooses: Any) -> Validation:
    """The score that a function gives the model, or minus the mean loss over examples."""
    model = trainer.model

    def score(weights: Mapping[str, Tensor]) -> float:
        load_weights(model, weights)
        model.eval()
        return float(chooses(model)) if given else -_mean_loss(trainer, examples)

    given = callable(chooses)
    examples = trainer.examples if given else _examples(chooses)
    with counting(model) as counter:
        score(state_of(model).weights)
    return Validation(score=score, cost=counter.cost())


def _mean_loss(trainer: Trainer, examples: Examples) -> float:
    parts = torch.split(torch.arange(len(examples)), trainer.training.batch_size)
    with torch.no_grad():
        losses = [float(trainer.loss(trainer.model, examples.batch(part))) * len(part) for part in parts]
    return sum(losses) / len(examples)


class _Tensors:
    """Examples held as tensors with one first dimension, in a tuple or a dict."""

    def __init__(self, tensors: Sequence[Tensor] | Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        lengths = {len(tensor) for tensor in (tensors.values() if isinstance(tensors, Mapping) else tensors)}
        if len(lengths) != 1:
            raise ConfigError(f"train: its tensors have different numbers of examples: {sorted(lengths)}")
        (self.length,) = lengths

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Tensor) -> Any:
        if isinstance(self.tensors, Mapping):
            return {key: tensor[indices.to(tensor.device)] for key, tensor in self.tensors.items()}
        return tuple(tensor[indices.to(tensor.device)] for tensor in self.tensors)


class _Dataset:
    """Examples of a map-style dataset, collated as a DataLoader does."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> Any:
        return default_collate([self.dataset[index] for index in indices.tolist()])


def _examples(train: Any) -> Examples:
    if isinstance(train, Tensor):
        return _Tensors([train])
    if isinstance(train, (tuple, list)) and train and all(isinstance(part, Tensor) for part in train):
        return _Tensors(train)
    if isinstance(train, Mapping) and train and all(isinstance(part, Tensor) for part in train.values()):
        return _Tensors(train)
    if hasattr(train, "__getitem__") and hasattr(train, "__len__") and not isinstance(train, (str, bytes, Mapping)):
        return _Dataset(train)
    if hasattr(train, "batch") and hasattr(train, "__len__"):
        return train  # type: ignore[no-any-return]
    raise ConfigError(
        f"train: a {type(train).__name__} is no training data; allowed: tensors with one first dimension in a tuple, "
        f"list or dict, a map-style dataset, or anything with __len__ and batch(indices)"
    )
