"""Count and measure the needs of a training step, a scored example and a job before a study runs.

FLOPs are counted on a model with the backbone's architecture and random weights. Seconds are derived from a given
throughput, or measured with that model on this machine.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isp import artifacts, masks
from isp.config import Study
from isp.costs import StepFlops
from isp.data.texts import estimate_lengths
from isp.definitions import backbone_of, task_of
from isp.errors import ConfigError, IspError
from isp.evaluation import outputs_of
from isp.families import scope_of
from isp.losses import default_loss
from isp.preparation import limited
from isp.prunable import prunable_names
from isp.rng import forked_rng
from isp.sparsity import parse_scope
from isp.training import BatchOrder, State, Trainer, Training, lengths_of, make_trainer, state_of
from isp.workflow import paths
from isp.workflow.rates import Rates, selection_seconds
from isp.workflow.rule import FORWARD

COUNTED = 2
"""Number of examples in the batch whose FLOPs are counted; FLOPs of other batches are proportional."""
CALIBRATION = 3.0
"""Maximum time for which steps are timed, in seconds."""
ENOUGH = 25
"""Maximum number of repetitions of timed work, within the time limit."""
FEW = 4
"""Number of training steps from whose duration the number of timed steps is chosen."""
SAMPLED = 5000
"""Number of texts whose lengths are estimated if the texts are not prepared yet."""
SCORED = 512
"""Number of examples whose scoring is timed."""


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A model with a backbone's architecture, and the FLOPs of a step on `COUNTED` examples."""

    model: nn.Module
    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    prunable: tuple[str, ...]
    flops: StepFlops
    activations: int


@lru_cache(maxsize=2)  # limited because a study may have many backbones, and these are whole models
def _shape(backbone: str, task: str, data_root: Path) -> _Shape:
    definition = backbone_of(backbone)
    model, architecture, tensors = definition.blank(task_of(task), 4 * COUNTED, data_root)
    training = Training(steps=1, batch_size=COUNTED, learning_rate=1e-3)
    examples = definition.examples(tensors, architecture, "none")
    counted = make_trainer(model, examples, default_loss, training, prunable_names(model, definition.prunable), 0)
    return _Shape(
        model=model,
        architecture=architecture,
        tensors=tensors,
        prunable=counted.prunable,
        flops=counted.flops,
        activations=_kept_for_backward(model, examples.batch(torch.arange(COUNTED))) // COUNTED,
    )


def _kept_for_backward(model: nn.Module, batch: Any) -> int:
    """Return the bytes that a forward pass saves for the backward pass, except weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with forked_rng(torch.device("cpu")), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = default_loss(model.train(), batch)  # the saved tensors live as long as the loss
    del loss
    return sum(kept.values())


def check_layers(study: Study) -> None:
    """Refuse variants whose N:M scope does not fit the layers of their backbone.

    Raises:
        ConfigError: A scope does not fit. The message names the variant and the parameter.
    """
    for group in {(group.backbone, group.variant): group for group in study.groups()}.values():
        pattern = parse_scope(scope_of(study.method(group.variant, group.backbone)))
        if pattern is None:
            continue
        shape = _shape(study.defined("backbone", group.backbone), study.defined("task", group.task), study.data_root)
        try:
            masks.check_groups({name: shape.model.get_parameter(name) for name in shape.prunable}, pattern)
        except ConfigError as error:
            raise ConfigError(f"variants.{group.variant}: {error}") from None


def rates_at(study: Study, backbone: str, task: str, throughput: float, overhead: float) -> Rates:
    """Return the rates at a given throughput.

    Args:
        study: The study.
        backbone: Name of the backbone.
        task: Name of the task. Its head, a millionth of the model, may be counted as that of another task.
        throughput: Sustained FLOPs per second of a job.
        overhead: Overhead of a job in seconds.
    """
    same = next(group.task for group in study.groups() if group.backbone == backbone)
    rates = count_rates(study, backbone, task, same)
    return replace(
        rates,
        step_seconds=rates.step_flops / throughput,
        example_seconds=rates.example_flops / throughput,
        selection_seconds=selection_seconds(study.device, rates.prunable),
        job_seconds=overhead,
    )


def measure_rates(study: Study, backbone: str, task: str, overhead: float) -> Rates:
    """Measure the rates on this machine, with the study's device and threads.

    The weights are random. Prepared examples are used if they exist, and otherwise texts of estimated lengths.

    Args:
        study: The study.
        backbone: Name of the backbone.
        task: Name of the task.
        overhead: Overhead of a job in seconds.
    """
    definition, training = study.backbone(backbone), study.protocol(backbone, task)
    shape = _shape(study.defined("backbone", backbone), study.defined("task", task), study.data_root)
    torch.set_num_threads(study.threads)
    tensors = _prepared(study, backbone, task) or _estimated(study, backbone, task, shape)
    rates = _counted(study, backbone, task, shape, tensors)
    if tensors is None:
        times = -(-training.batch_size // len(shape.tensors["labels"]))
        tensors = {name: torch.cat([tensor] * times) for name, tensor in shape.tensors.items()}
    model = shape.model.to(study.device)
    tensors = {name: tensor.to(study.device) for name, tensor in tensors.items()}
    examples = definition.examples(tensors, shape.architecture, study.limits(task).augmentation)
    trainer = make_trainer(model, examples, default_loss, training, list(shape.prunable), 0, flops=shape.flops)
    scored = definition.examples(limited(tensors, SCORED), shape.architecture, "none")
    return _add_times(replace(rates, job_seconds=overhead), trainer, scored)


def count_rates(study: Study, backbone: str, task: str, of: str, prepared: bool = True) -> Rates:
    """Count FLOPs and sizes with the head of the task `of`, at the lengths of the prepared examples if they exist.

    Without prepared examples, lengths of texts are estimated from the dataset. Without the dataset, all texts are
    assumed to have the maximum length.
    """
    shape = _shape(study.defined("backbone", backbone), study.defined("task", of), study.data_root)
    tensors = (_prepared(study, backbone, task) or _estimated(study, backbone, task, shape)) if prepared else None
    return _counted(study, backbone, task, shape, tensors)


def _counted(study: Study, backbone: str, task: str, shape: _Shape, tensors: Mapping[str, Tensor] | None) -> Rates:
    """Count FLOPs and sizes at the lengths of the given examples; None: at the maximum length."""
    training = study.protocol(backbone, task)
    examples = study.backbone(backbone).examples(tensors or shape.tensors, shape.architecture, "none")
    lengths = lengths_of(examples)
    if lengths is None:
        of_batches = {0: 1}
    elif tensors is None:
        of_batches = {int(lengths.max()): 1}
    else:
        of_batches = _lengths_of_batches(lengths, training.batch_size)
    flops, _ = shape.flops.steps(of_batches)
    step_flops = flops * training.batch_size // COUNTED // sum(of_batches.values())
    weights = shape.model.state_dict()
    return Rates(
        step_flops=step_flops,
        example_flops=step_flops // training.batch_size // FORWARD,
        step_seconds=0.0,
        example_seconds=0.0,
        selection_seconds=0.0,
        job_seconds=0.0,
        weights=sum(4 * tensor.numel() for tensor in weights.values()),
        prunable=sum(weights[name].numel() for name in shape.prunable),
        activations=shape.activations,
        example=sum(tensor.nbytes // len(tensor) for tensor in shape.tensors.values()),
        known_lengths=lengths is None or tensors is not None,
    )


def _lengths_of_batches(lengths: Tensor, batch_size: int) -> Counter[int]:
    """Return the number of batches per epoch by length, which is that of the longest example of a batch."""
    order = BatchOrder(len(lengths), batch_size, 0, lengths=lengths)
    return Counter(int(lengths[order(step)].max()) for step in range(order.steps_per_epoch))


def _estimated_lengths(study: Study, backbone: str, task: str) -> Tensor | None:
    """Estimate the lengths of all training texts from a sample of the dataset; None if the dataset is missing."""
    max_length = getattr(study.backbone(backbone), "max_length", None)
    if max_length is None:
        return None
    try:
        columns = study.task(task).source.read("train", study.data_root).columns
    except IspError:  # not downloaded yet, or damaged, which the stage that needs it reports
        return None
    rows = len(columns[0])
    some = torch.linspace(0, rows - 1, min(rows, SAMPLED)).round().to(torch.int64).tolist()
    sample = estimate_lengths(columns, some, max_length)
    generator = torch.Generator().manual_seed(0)
    return sample[torch.randint(len(sample), (study.num_train(task),), generator=generator)]


def _estimated(study: Study, backbone: str, task: str, shape: _Shape) -> Mapping[str, Tensor] | None:
    """Return training examples of estimated lengths, all of one text; None if lengths are unknown or do not exist."""
    if "length" not in shape.tensors or (lengths := _estimated_lengths(study, backbone, task)) is None:
        return None
    repeated = {name: tensor[:1].expand(len(lengths), *tensor.shape[1:]) for name, tensor in shape.tensors.items()}
    lengths = lengths.to(shape.tensors["length"].dtype)
    return {**repeated, "length": lengths, "second": lengths}


def _prepared(study: Study, backbone: str, task: str) -> Mapping[str, Tensor] | None:
    path = Path(paths.PREPARED.format(backbone=backbone, task=task, split="train"))
    if not path.exists():
        return None
    return limited(artifacts.load_examples(path, "train")[0], study.limits(task).num_train)


def _add_times(rates: Rates, trainer: Trainer, scored: Any) -> Rates:
    """Add the measured seconds of a step, of scoring an example, and of selecting a mask."""
    state, _ = trainer.run(state_of(trainer.model), 2)  # the first steps warm up
    step = _repeated(lambda: trainer.run(state, state.step + FEW), 0.0) / FEW
    # Entering and leaving a run takes as long as several of a GPU's steps, so fast steps are timed in one long run.
    steps = min(int(CALIBRATION / step), ENOUGH * FEW, trainer.training.steps - state.step)
    if steps > FEW:
        step = _repeated(lambda: trainer.run(state, state.step + steps), 0.0) / steps
    example = _repeated(lambda: outputs_of(trainer.model, scored), CALIBRATION / 3)
    weights = trainer.prunable_weights(state)
    within = masks.prune_by_magnitude(weights, Decimal("0.5"))

    def select() -> None:
        masks.keep_top(weights, sparsity=Decimal("0.6"), ties=weights, within=within)

    return replace(
        rates,
        step_seconds=step,
        example_seconds=example / len(scored),
        selection_seconds=_repeated(select, CALIBRATION / 3),
    )


def time_overhead(study: Study, backbone: str, task: str) -> dict[str, Any]:
    """Measure the overhead of jobs: building a model, reading and writing artifacts and masked values, ranking weights.

    It is measured with random weights and on the CPU, where jobs do all of this except the ranking. Files are read from
    the page cache. The shortest of several times counts, because other work on the machine only adds to it.

    Returns:
        Fields of `Rates`.
    """
    definition = study.backbone(backbone)
    shape = _shape(study.defined("backbone", backbone), study.defined("task", task), study.data_root)
    torch.set_num_threads(study.threads)
    weights = {name: tensor.cpu() for name, tensor in shape.model.state_dict().items()}
    prunable, each = {name: weights[name] for name in shape.prunable}, CALIBRATION / 3
    mask = masks.prune_by_magnitude(prunable, Decimal("0.5"))
    pruned = weights | {name: torch.where(kept, weights[name], 0.0) for name, kept in mask.items()}
    writing, reading, size = _time_files(weights, None, each)
    masked_writing, masked_reading, masked_size = _time_files(pruned, mask, each)
    values = 3 * masks.num_weights(mask)  # weights and two moments, which share the positions of the mask
    return {
        "build_seconds": _shortest(lambda: definition.restore(weights, shape.architecture), each),
        "read_seconds": reading / size,
        "write_seconds": writing / size,
        "ranking_seconds": _shortest(lambda: masks.prune_by_magnitude(prunable, Decimal("0.5")), each),
        "compress_seconds": max(0.0, masked_writing - writing * masked_size / size) / values,
        "expand_seconds": max(0.0, masked_reading - reading * masked_size / size) / values,
    }


def _time_files(weights: Mapping[str, Tensor], mask: masks.Mask | None, seconds: float) -> tuple[float, float, int]:
    """Return the seconds of writing and of reading a state under a mask, with Adam's moments, and the bytes of it."""
    moments = {name: {"exp_avg": weights[name], "exp_avg_sq": weights[name]} for name in mask or weights}
    state = State(step=0, weights=dict(weights), optimizer=moments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        # Each write makes a new file, as a stage does. To replace one would take longer, because ext4 then flushes it.
        unlink = partial(path.unlink, missing_ok=True)
        writing = _shortest(lambda: artifacts.save_state(path, state, {}, mask), seconds, before=unlink)
        reading = _shortest(lambda: artifacts.load_state(path), seconds)
        return writing, reading, path.stat().st_size


def _repeated(work: Callable[[], Any], seconds: float) -> float:
    """Return the mean seconds of a call over `ENOUGH` repetitions, or as many as fit into `seconds`."""
    times, begun = 0, time.perf_counter()
    while times == 0 or (times < ENOUGH and time.perf_counter() - begun < seconds):
        work()
        times += 1
    return (time.perf_counter() - begun) / times


def _shortest(work: Callable[[], Any], seconds: float, before: Callable[[], Any] = lambda: None) -> float:
    """Return the shortest time of a call in seconds, over two repetitions, or as many as fit into `seconds`.

    Args:
        work: Call to time.
        seconds: Limit of the total time.
        before: Call before each repetition, which is not timed.
    """
    times: list[float] = []
    while len(times) < 2 or (len(times) < ENOUGH and sum(times) < seconds):
        before()
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
