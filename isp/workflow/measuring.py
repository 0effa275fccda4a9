"""Count, and measure, what a training step, a scored example and a job take, before a study runs.

FLOPs are counted on a model of the backbone's shape with random weights. Seconds follow from a stated throughput, or
are measured on that model, here.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
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
"""Examples of the batch whose FLOPs are counted; those of others are in proportion."""
CALIBRATION = 3.0
"""Seconds that steps are timed for, at most."""
ENOUGH = 25
"""Times that work is repeated for its mean, if the seconds allow it."""
SAMPLED = 5000
"""Texts whose lengths are estimated, where they are not prepared yet."""
SCORED = 512
"""Examples whose scoring is timed."""


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A model of a backbone's shape, and the FLOPs of a step on `COUNTED` examples."""

    model: nn.Module
    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    prunable: tuple[str, ...]
    flops: StepFlops
    activations: int


@lru_cache(maxsize=2)  # a study may have many, and they are whole models
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
    """Bytes of what a forward pass keeps for the backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with forked_rng(torch.device("cpu")), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = default_loss(model.train(), batch)  # what it kept is alive as long as the loss is
    del loss
    return sum(kept.values())


def check_layers(study: Study) -> None:
    """Refuse a variant whose N:M scope does not fit into the layers of its backbone.

    Raises:
        ConfigError: names the variant and the parameter.
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


def stated(study: Study, backbone: str, task: str, throughput: float, overhead: float) -> Rates:
    """What work takes at a throughput.

    Args:
        study: the study.
        backbone: its name.
        task: its name; the head of another task's may be counted in its place, a millionth of the model.
        throughput: FLOPs a second that a job sustains.
        overhead: seconds of a job beside its work.
    """
    same = next(group.task for group in study.groups() if group.backbone == backbone)
    rates = counted(study, backbone, task, same)
    return replace(
        rates,
        step_seconds=rates.step_flops / throughput,
        example_seconds=rates.example_flops / throughput,
        selection_seconds=selection_seconds(study.device, rates.prunable),
        job_seconds=overhead,
    )


def measured(study: Study, backbone: str, task: str, overhead: float) -> Rates:
    """What work takes here, on the study's device and threads; on random weights, and prepared examples if any.

    Args:
        study: the study.
        backbone: its name.
        task: its name.
        overhead: seconds of a job beside its work.
    """
    definition, training = study.backbone(backbone), study.protocol(backbone, task)
    shape = _shape(study.defined("backbone", backbone), study.defined("task", task), study.data_root)
    torch.set_num_threads(study.threads)
    tensors = _prepared(study, backbone, task)
    if tensors is None:
        times = -(-training.batch_size // len(shape.tensors["labels"]))
        tensors = {name: torch.cat([tensor] * times) for name, tensor in shape.tensors.items()}
    model = shape.model.to(study.device)
    tensors = {name: tensor.to(study.device) for name, tensor in tensors.items()}
    examples = definition.examples(tensors, shape.architecture, study.limits(task).augmentation)
    trainer = make_trainer(model, examples, default_loss, training, list(shape.prunable), 0, flops=shape.flops)
    scored = definition.examples(limited(tensors, SCORED), shape.architecture, "none")
    return _timed(replace(counted(study, backbone, task, task), job_seconds=overhead), trainer, scored)


def counted(study: Study, backbone: str, task: str, of: str, prepared: bool = True) -> Rates:
    """FLOPs and sizes, counted under the head of the task `of`, at the lengths of the prepared examples if any.

    Else texts are as long as those of the data set seem to be, if it is there, or else as long as they may be.
    """
    shape = _shape(study.defined("backbone", backbone), study.defined("task", of), study.data_root)
    training, tensors = study.protocol(backbone, task), _prepared(study, backbone, task) if prepared else None
    examples = study.backbone(backbone).examples(tensors or shape.tensors, shape.architecture, "none")
    lengths, known = lengths_of(examples), None
    if lengths is None:
        of_batches = {0: 1}
    else:
        known = lengths if tensors is not None else _estimated_lengths(study, backbone, task) if prepared else None
        of_batches = {int(lengths.max()): 1} if known is None else _lengths_of_batches(known, training.batch_size)
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
        known_lengths=lengths is None or known is not None,
    )


def _lengths_of_batches(lengths: Tensor, batch_size: int) -> Counter[int]:
    """How many batches of an epoch have which length, that of their longest example."""
    order = BatchOrder(len(lengths), batch_size, 0, lengths=lengths)
    return Counter(int(lengths[order(step)].max()) for step in range(order.steps_per_epoch))


def _estimated_lengths(study: Study, backbone: str, task: str) -> Tensor | None:
    """Lengths of as many texts as are trained on, estimated from some of the data set; None: it is not there."""
    max_length = getattr(study.backbone(backbone), "max_length", None)
    if max_length is None:
        return None
    try:
        columns = study.task(task).source.read("train", study.data_root).columns
    except IspError:  # not downloaded yet, or damaged, which the stage that needs it will say
        return None
    rows = len(columns[0])
    some = torch.linspace(0, rows - 1, min(rows, SAMPLED)).round().to(torch.int64).tolist()
    sample = estimate_lengths(columns, some, max_length)
    generator = torch.Generator().manual_seed(0)
    return sample[torch.randint(len(sample), (study.num_train(task),), generator=generator)]


def _prepared(study: Study, backbone: str, task: str) -> Mapping[str, Tensor] | None:
    path = Path(paths.PREPARED.format(backbone=backbone, task=task, split="train"))
    if not path.exists():
        return None
    return limited(artifacts.load_examples(path, "train")[0], study.limits(task).num_train)


def _timed(counted: Rates, trainer: Trainer, scored: Any) -> Rates:
    """With the seconds of a step, of scoring an example, and of selecting a mask."""
    state, _ = trainer.run(state_of(trainer.model), 2)  # the first steps warm up
    step = _repeated(lambda: trainer.run(state, state.step + 4), CALIBRATION)
    example = _repeated(lambda: outputs_of(trainer.model, scored), CALIBRATION / 3)
    weights = trainer.prunable_weights(state)
    within = masks.prune_by_magnitude(weights, Decimal("0.5"))

    def select() -> None:
        masks.keep_top(weights, sparsity=Decimal("0.6"), ties=weights, within=within)

    return replace(
        counted,
        step_seconds=step / 4,
        example_seconds=example / len(scored),
        selection_seconds=_repeated(select, CALIBRATION / 3),
    )


def time_overhead(study: Study, backbone: str, task: str) -> dict[str, Any]:
    """Measure what jobs do beside their work: build a model, read and write a byte of an artifact, rank the weights.

    On random weights and on the CPU, where all of this but the ranking is done. A file is read while it is in memory.
    The shortest of several times counts, for other work on the machine only adds.

    Returns:
        Fields of `Rates`.
    """
    definition = study.backbone(backbone)
    shape = _shape(study.defined("backbone", backbone), study.defined("task", task), study.data_root)
    torch.set_num_threads(study.threads)
    weights = {name: tensor.cpu() for name, tensor in shape.model.state_dict().items()}
    state, prunable = State(step=0, weights=weights), {name: weights[name] for name in shape.prunable}
    size, each = sum(tensor.nbytes for tensor in weights.values()), CALIBRATION / 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        writing = _shortest(lambda: artifacts.save_state(path, state, {}), each)
        reading = _shortest(lambda: artifacts.load_state(path), each)
    return {
        "build_seconds": _shortest(lambda: definition.restore(weights, shape.architecture), each),
        "read_seconds": reading / size,
        "write_seconds": writing / size,
        "ranking_seconds": _shortest(lambda: masks.prune_by_magnitude(prunable, Decimal("0.5")), each),
    }


def _repeated(work: Callable[[], Any], seconds: float) -> float:
    """Measure the seconds of doing something once: the mean over `ENOUGH` times, or as many as fit into `seconds`."""
    times, begun = 0, time.perf_counter()
    while times == 0 or (times < ENOUGH and time.perf_counter() - begun < seconds):
        work()
        times += 1
    return (time.perf_counter() - begun) / times


def _shortest(work: Callable[[], Any], seconds: float) -> float:
    """Measure the seconds of doing something once: the shortest of twice, or of as often as it fits into `seconds`."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < ENOUGH and sum(times) < seconds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
