"""What stages that train or prune share: measuring themselves, and a trainer made of artifacts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from isp import artifacts, checkpoints, files, lineage
from isp.costs import Cost, Measured, StepFlops, Stopwatch, check_device
from isp.data.sources import check
from isp.definitions import backbone_of, task_of
from isp.errors import IspError
from isp.evaluation import validation_by
from isp.losses import default_loss
from isp.preparation import limited
from isp.prunable import prunable_names
from isp.runtime import devices, instructions
from isp.runtime.watch import showing
from isp.settings import parse
from isp.shapes import Manifest
from isp.tasks import TaskLimits
from isp.tickets import Validation
from isp.training import VERSION as TRAINING_VERSION
from isp.training import Checkpoint, State, Trainer, Training, TrainingDiverged, make_trainer

REPORT_EVERY = 30.0
"""Seconds between two lines about the progress of a stage."""


class Work:
    """A running stage: measures it and says in its log how far it is.

    Args:
        device: that the stage works on.

    Attributes:
        checkpoint: of a stage that trains for long.
    """

    checkpoint: checkpoints.FileCheckpoint | None = None

    def __init__(self, device: str) -> None:
        self.device = device
        now = time.time()
        self.startup = max(now - float(os.environ.get("ISP_STARTED") or now), 0.0)
        self.watch = Stopwatch(device)
        self._begun = self._reported = time.monotonic()
        self._steps = 0

    def progress(self, steps: int) -> None:
        """Count training steps; now and then say how many there were."""
        self._steps += steps
        now = time.monotonic()
        if now - self._reported > REPORT_EVERY:
            self._reported = now
            print(f"{self._steps} steps in {now - self._begun:.0f} s", file=sys.stderr, flush=True)

    def measured(self) -> Measured:
        """What this job took until now; with what was worked, before it was begun again, for what it went on from."""
        earlier = self.checkpoint.earlier if self.checkpoint else 0.0
        return Measured(
            seconds=round(earlier + self.watch.lap(), 3),
            startup_seconds=round(self.startup, 3),
            jobs=1,
            peak_memory_mb=round(self.watch.peak_memory_mb()),
            device=self.device,
        )


@contextmanager
def working(
    *outputs: Path, threads: int = 1, device: str = "cpu", instruction_set: str | None = None
) -> Iterator[Work]:
    """The frame of a stage: it shows itself and has a GPU of its own; threads, a writable folder, no leftovers, a log.

    Raises:
        ConfigError: torch was imported with other kernels than those of the instruction set.
        IspError: the device is not there, the folder cannot be written, or training diverged; then the last good state
            is kept beside the output.
    """
    instructions.check_in_force(instruction_set)
    with (
        showing(outputs[0]) as shown,
        devices.taken(device, str(outputs[0])),
        _measuring(*outputs, threads=threads, device=device) as work,
    ):
        shown.steps = lambda: work._steps
        yield work


@contextmanager
def _measuring(*outputs: Path, threads: int, device: str) -> Iterator[Work]:
    check_device(device)
    kept = {kind: outputs[0].with_name(f"{outputs[0].stem}.last_good_{kind}.safetensors") for kind in ("state", "mask")}
    files.ready(*outputs)
    for path in kept.values():
        path.unlink(missing_ok=True)
    torch.set_num_threads(threads)
    work, begun = Work(device), time.monotonic()
    try:
        yield work
    except TrainingDiverged as error:
        artifacts.save_state(kept["state"], error.state, {})
        if error.mask is not None:
            artifacts.save_mask(kept["mask"], error.mask, {})
        raise IspError(f"{error} It was written to {kept['state']}.") from None
    took = f"{time.monotonic() - begun:.2f} s after {work.startup:.2f} s of start-up"
    peak = work.watch.peak_memory_mb()
    print(f"wrote {', '.join(map(str, outputs))} in {took}, peak memory {peak:,.0f} MB", file=sys.stderr, flush=True)


@contextmanager
def resumable(
    output: Path,
    stage: str,
    version: int,
    setup: Setup,
    made_from: Mapping[str, Any],
    threads: int,
    instruction_set: str | None,
    methods: Sequence[ModuleType] = (),
    grouped: bool = False,
    **options: Any,
) -> Iterator[Work]:
    """The frame of a stage that trains for long: `working`, with a checkpoint that the same stage goes on from.

    Args:
        output: that the stage writes.
        stage: its name.
        version: of it.
        setup: what it is told, as all of them.
        made_from: from `inputs`; files are the same if the checksums in their headers are.
        threads: of torch.
        instruction_set: that it is asked to compute with; None: any.
        methods: whose versions count, too.
        grouped: whether a cluster's job may hold a later stage, too. Fails that one, Snakemake deletes what this one
            wrote and begins it again, so its checkpoint stays until the later one calls `checkpoints.forget`.
        options: what else decides what is computed.

    Raises:
        IspError: as `working`; or ISP_CHECKPOINT_SECONDS is no number of seconds.
    """
    path, seconds = checkpoints.beside(output), checkpoints.period()
    with working(output, threads=threads, device=setup.device, instruction_set=instruction_set) as work:
        files.ready(path)
        identity = {"stage": stage, "version": version, **setup.described(), **options, "threads": threads}
        identity |= {"inputs": _checksums(made_from["inputs"]), "packages": artifacts.versions()}
        identity |= {"instruction_set": instructions.in_force()}
        identity |= {"methods": {module.__name__: module.VERSION for module in methods}}
        work.checkpoint = checkpoints.FileCheckpoint(path, identity, seconds, work.watch.elapsed)
        with work.checkpoint.stopping():
            yield work
        if not (grouped and "SLURM_JOB_ID" in os.environ):
            work.checkpoint.remove()


def _checksums(named: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    return {
        name: artifacts.checksum(Path(path))
        if isinstance(path, str)
        else [artifacts.checksum(Path(each)) for each in path]
        for name, path in named.items()
    }


def check_manifest(path: Path, data_root: Path) -> None:
    """Hold downloaded files to what they were.

    Raises:
        DataError: one is gone or altered.
    """
    check(files.read_json(path, "download", Manifest)["files"], data_root)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every stage that trains is told, as its options."""

    backbone: str
    task: str
    seed: int
    data: Path
    training: Mapping[str, Any]
    limits: Mapping[str, Any]
    device: str

    def trainer(
        self,
        state: State,
        about: Mapping[str, Any],
        progress: Callable[[int], None] = lambda _: None,
        checkpoint: Checkpoint | None = None,
    ) -> Trainer:
        """A trainer of the model that `state` is of; the FLOPs of its step are known from `about` or counted."""
        backbone, architecture = backbone_of(self.backbone), about["architecture"]
        model = backbone.restore(state.weights, architecture).to(self.device)
        limits = parse(TaskLimits, self.limits, "--limits")
        protocol = parse(Training, self.training, "--training")
        tensors, _ = artifacts.load_examples(self.data, "train")
        tensors = {name: part.to(self.device) for name, part in limited(tensors, limits.num_train).items()}
        examples = backbone.examples(tensors, architecture, limits.augmentation)
        known = about.get("step_flops")
        flops = step_flops_of(known) if known and known["batch_size"] == protocol.batch_size else None
        names = prunable_names(model, backbone.prunable)
        made = make_trainer(model, examples, default_loss, protocol, names, self.seed, progress, flops)
        return replace(made, checkpoint=checkpoint)

    def told(self) -> dict[str, Any]:
        """Facts that the headers of its input artifacts must agree with."""
        return {key: getattr(self, key) for key in ("backbone", "task", "seed", "training", "limits")}

    def described(self) -> dict[str, Any]:
        """The same for headers of artifacts."""
        kept = {key: value for key, value in asdict(self).items() if key != "data"}
        return {**kept, "training_version": TRAINING_VERSION}


def choosing(
    weights: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    backbone: str,
    task: str,
    limits: Mapping[str, Any],
    validation: Path,
    device: str,
) -> Validation:
    """A choice by the first metric of a task over its validation examples, among weights like the given ones."""
    made, definition, allowed = backbone_of(backbone), task_of(task), parse(TaskLimits, limits, "--limits")
    model = made.restore(weights, architecture).to(device)
    tensors = limited(artifacts.load_examples(validation, "validation")[0], allowed.num_validation)
    examples = made.examples({name: each.to(device) for name, each in tensors.items()}, architecture, "none")
    return validation_by(model, examples, definition.metrics[0])


def inputs(
    output: Path, told: Mapping[str, Any] | None = None, **paths: Path | Sequence[Path] | None
) -> dict[str, Any]:
    """Check that the inputs of an artifact belong together, and return the entries of its header about them.

    Args:
        output: the artifact.
        told: facts about the inputs from the options of the stage, such as the backbone; see `isp.lineage.check`.
        paths: the files, by name.

    Raises:
        ArtifactError: one is in the place of another, or was made for another cell; names both.
    """
    named = {
        name: [str(each) for each in path] if isinstance(path, Sequence) else str(path)
        for name, path in paths.items()
        if path
    }
    files_ = [Path(each) for path in named.values() for each in ([path] if isinstance(path, str) else path)]
    return {"inputs": named, **lineage.trace(output, told or {}, files_)}


def model_facts(architecture: Mapping[str, Any], trainer: Trainer) -> dict[str, Any]:
    """What a state says of its model: how to build it, its prunable weights, and the FLOPs of a step.

    So no later stage need count them.
    """
    flops = {"batch_size": trainer.training.batch_size, "flops": asdict(trainer.flops)}
    return {"architecture": architecture, "prunable": list(trainer.prunable), "step_flops": flops}


def facts_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The same as the header of an earlier state of the model says it."""
    return {"architecture": about["architecture"], "prunable": prunable_of(about), "step_flops": about["step_flops"]}


def prunable_of(about: Mapping[str, Any]) -> list[str]:
    """Names of the prunable weights, as a state says them; those of earlier versions say them with the FLOPs."""
    return list(about["prunable"] if "prunable" in about else about["step_flops"]["flops"]["by_weight"])


def step_flops_of(known: Mapping[str, Any]) -> StepFlops:
    """FLOPs of a step as a state says them."""
    flops = known["flops"]
    by_weight = {name: tuple(coefficients) for name, coefficients in flops["by_weight"].items()}
    return StepFlops(total=tuple(flops["total"]), by_weight=by_weight)


def spent(about: Mapping[str, Any]) -> tuple[Cost, Measured]:
    """What was spent until and on an artifact."""
    return Cost(**about["cost"]), Measured(**about["measured"])


def spending(cost: Cost, measured: Measured) -> dict[str, Any]:
    """The same, as it is written."""
    return {"cost": asdict(cost), "measured": asdict(measured)}


def all_taken(origin: Mapping[str, Any]) -> Measured:
    """What a ticket of this origin took, finding and retraining together."""
    before = origin["measured"]
    return Measured(**before["finding"]) + Measured(**before["retraining"])


def taken(finding: Measured, retraining: Measured) -> dict[str, Any]:
    """The two parts of what a ticket took, as they are written."""
    return {"measured": {"finding": asdict(finding), "retraining": asdict(retraining)}}
