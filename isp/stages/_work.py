"""Functions shared by the stages that train or prune: measuring a stage, and building a trainer from artifacts."""

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
"""Interval between two progress lines of a stage, in seconds."""


class Work:
    """A running stage. Measures it and reports its progress in its log.

    Args:
        device: Device that the stage computes on.

    Attributes:
        checkpoint: Checkpoint of a stage that trains for a long time; None for other stages.
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
        """Count training steps, and report the number every `REPORT_EVERY` seconds."""
        self._steps += steps
        now = time.monotonic()
        if now - self._reported > REPORT_EVERY:
            self._reported = now
            print(f"{self._steps} steps in {now - self._begun:.0f} s", file=sys.stderr, flush=True)

    def measured(self) -> Measured:
        """Return what this job took so far, including the work of earlier attempts up to its checkpoint."""
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
    """Run the body of a stage: mark it as running, reserve a GPU, set threads, prepare the outputs, log a summary.

    Raises:
        ConfigError: torch was imported with kernels of another instruction set.
        IspError: The device does not exist, the folder is not writable, or training diverged. If training diverged,
            the last good state is saved beside the output.
    """
    instructions.check_in_force(instruction_set)
    with (
        showing(outputs[0]) as shown,
        devices.reserve(device, str(outputs[0])),
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
    """Run the body of a stage that trains for a long time: `working`, with a checkpoint from which the stage resumes.

    Args:
        output: Artifact that the stage writes.
        stage: Name of the stage.
        version: Version of the stage.
        setup: The options that all training stages share.
        made_from: Result of `inputs`. Files are equal if their headers, which contain digests of the tensors, differ
            only in measurements.
        threads: Number of torch threads.
        instruction_set: Requested instruction set; None means any.
        methods: Modules whose versions are part of the checkpoint's identity.
        grouped: Whether a cluster job may run this stage in a group with later members. If one of them fails, Snakemake
            deletes the outputs of the whole group and reruns it, so on a cluster the checkpoint outlives this stage.
            Readers of the output in other groups start after this group has succeeded, and delete the checkpoint with
            `checkpoints.forget`. No member of this group may do so, except the last one, `evaluate`. For example,
            `prune_denoised` leaves the checkpoint of its state, because the same group may contain another mask.
        options: All other options that determine the result.

    Raises:
        IspError: As for `working`; or ISP_CHECKPOINT_SECONDS is not a number of seconds.
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
        name: _checksum(Path(path)) if isinstance(path, str) else [_checksum(Path(each)) for each in path]
        for name, path in named.items()
    }


def _checksum(path: Path) -> str | None:
    """Return a checksum of an artifact's header that does not depend on measurements; None if it is unreadable.

    A restarted group makes its first outputs again, with equal contents but other seconds. Its later members must still
    resume from their checkpoints.
    """
    header = lineage.read_header(path)
    if header is None:
        return None
    about = _unmeasured(header["about"])
    if isinstance(origin := about.get("origin"), dict):
        about["origin"] = _unmeasured(origin)
    rest = {key: value for key, value in header.items() if key != "checksum"}
    return str(lineage.sealed({**rest, "about": about})["checksum"])


def _unmeasured(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != "measured"}


def check_manifest(path: Path, data_root: Path) -> None:
    """Verify downloaded files against their manifest.

    Raises:
        DataError: A file is missing or was changed.
    """
    check(files.read_json(path, "download", Manifest)["files"], data_root)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Options that all training stages share."""

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
        """Build a trainer of the model of `state`. The FLOPs of a step are read from `about`, or counted."""
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
        trainer = make_trainer(model, examples, default_loss, protocol, names, self.seed, progress, flops)
        return replace(trainer, checkpoint=checkpoint)

    def told(self) -> dict[str, Any]:
        """Return the facts with which the headers of all input artifacts must agree."""
        return {key: getattr(self, key) for key in ("backbone", "task", "seed", "training", "limits")}

    def described(self) -> dict[str, Any]:
        """Return the options in the form in which headers of artifacts contain them."""
        kept = {key: value for key, value in asdict(self).items() if key != "data"}
        return {**kept, "training_version": TRAINING_VERSION}


def make_validation(
    weights: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    backbone: str,
    task: str,
    limits: Mapping[str, Any],
    validation: Path,
    device: str,
) -> Validation:
    """Return a function that scores weights by the first metric of a task on its validation examples.

    Args:
        weights: Any weights of the model, which give it its form.
        architecture: Architecture of the model.
        backbone: Name or definition of the backbone.
        task: Name or definition of the task.
        limits: Limits of the task.
        validation: File of the prepared validation examples.
        device: Device to score on.
    """
    made, definition, allowed = backbone_of(backbone), task_of(task), parse(TaskLimits, limits, "--limits")
    model = made.restore(weights, architecture).to(device)
    tensors = limited(artifacts.load_examples(validation, "validation")[0], allowed.num_validation)
    examples = made.examples({name: each.to(device) for name, each in tensors.items()}, architecture, "none")
    return validation_by(model, examples, definition.metrics[0])


def inputs(
    output: Path, told: Mapping[str, Any] | None = None, **paths: Path | Sequence[Path] | None
) -> dict[str, Any]:
    """Check that the inputs of an artifact belong together, and return its header entries about them.

    Args:
        output: Path of the artifact.
        told: Facts about the inputs from the options of the stage, such as the backbone; see `isp.lineage.check`.
        paths: Input files, by name.

    Raises:
        ArtifactError: An input is in the place of another one, or was made for another cell. The message names both.
    """
    named = {
        name: [str(each) for each in path] if isinstance(path, Sequence) else str(path)
        for name, path in paths.items()
        if path
    }
    files_ = [Path(each) for path in named.values() for each in ([path] if isinstance(path, str) else path)]
    return {"inputs": named, **lineage.trace(output, told or {}, files_)}


def model_facts(architecture: Mapping[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Return the header entries of a state about its model: its architecture, prunable weights and FLOPs per step.

    With them, no later stage has to count FLOPs.
    """
    flops = {"batch_size": trainer.training.batch_size, "flops": asdict(trainer.flops)}
    return {"architecture": architecture, "prunable": list(trainer.prunable), "step_flops": flops}


def facts_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same entries as `model_facts`, read from the header of an earlier state of the model."""
    return {"architecture": about["architecture"], "prunable": prunable_of(about), "step_flops": about["step_flops"]}


def prunable_of(about: Mapping[str, Any]) -> list[str]:
    """Read the names of the prunable weights from a state's header; earlier versions stored them with the FLOPs."""
    return list(about["prunable"] if "prunable" in about else about["step_flops"]["flops"]["by_weight"])


def step_flops_of(known: Mapping[str, Any]) -> StepFlops:
    """Read the FLOPs of a step from the header entry of a state."""
    flops = known["flops"]
    by_weight = {name: tuple(coefficients) for name, coefficients in flops["by_weight"].items()}
    return StepFlops(total=tuple(flops["total"]), by_weight=by_weight)


def read_spending(about: Mapping[str, Any]) -> tuple[Cost, Measured]:
    """Read the cost and measurements of an artifact from its header, including everything it was made from."""
    return Cost(**about["cost"]), Measured(**about["measured"])


def spending(cost: Cost, measured: Measured) -> dict[str, Any]:
    """Return the header entries that `read_spending` reads."""
    return {"cost": asdict(cost), "measured": asdict(measured)}


def total_measured(origin: Mapping[str, Any]) -> Measured:
    """Return the measurements of a ticket of this origin, finding and retraining together."""
    before = origin["measured"]
    return Measured(**before["finding"]) + Measured(**before["retraining"])


def measurements(finding: Measured, retraining: Measured) -> dict[str, Any]:
    """Return the header entry with the two parts of a ticket's measurements."""
    return {"measured": {"finding": asdict(finding), "retraining": asdict(retraining)}}
