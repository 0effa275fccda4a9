"""A real Snakemake on the smoke study, and checks of its results."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml

import isp
from isp import artifacts, registry
from isp.config import Study
from isp.evaluation import evaluate as score
from isp.preparation import limited
from isp.tickets import Ticket
from tests.support.models import equal
from tests.support.studies import ROOT

SMOKE = ROOT / "config" / "smoke.yaml"
RUN = Path("results/smoke/runs/clip_tiny/digits/seed0")


COMMAND = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]


def snakemake(folder: Path, *options: str, study: Path = SMOKE) -> subprocess.CompletedProcess[str]:
    """Run a study in a folder until it is finished."""
    command = [*COMMAND, "--configfile", str(study), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def same_as_in_process(folder: Path, study: Study) -> set[str]:
    """Compare every ticket of a study in a folder with `isp.prune`, and return the methods."""
    methods = set()
    for group in study.groups():
        name, task, variant = group.backbone, group.task, study.variants[group.variant]
        backbone, limits = study.backbone(name), study.limits(task)
        run = folder / f"results/{study.study}/runs/{name}/{task}/seed{group.seed}"
        pretrained, _ = artifacts.load_backbone(folder / f"resources/backbones/{name}.safetensors")
        architecture = pretrained.architecture
        tensors, _ = artifacts.load_examples(folder / f"resources/prepared/{name}/{task}/train.safetensors", "train")
        train = backbone.examples(limited(tensors, limits.num_train), architecture, limits.augmentation)
        assert len(train) == study.num_train(task)
        initial, _ = artifacts.load_state(run / "initial" / f"{variant.initial}.safetensors")
        held_out, _ = artifacts.load_examples(
            folder / f"resources/prepared/{name}/{task}/validation.safetensors", "validation"
        )
        examples = backbone.examples(limited(held_out, limits.num_validation), architecture, "none")
        metric = study.task(task).metrics[0]
        for sparsity in group.sparsities:
            model = backbone.restore(initial.weights, architecture)
            protocol = study.protocol(name, task, group.variant, sparsity)
            expected = isp.prune(
                model,
                train,
                sparsity=sparsity,
                method=variant.method,
                settings=variant.settings,
                prunable=backbone.prunable,
                seed=group.seed,
                validation=lambda model: score(model, examples, [metric])[metric],  # noqa: B023
                **protocol.model_dump(),
            )
            dense = run / "dense" / f"{variant.initial}.safetensors"
            own = run / group.variant / str(sparsity) / "ticket.safetensors"
            path = dense if registry.load("method", variant.method).FAMILY == "dense" else own
            assert_same(isp.load_ticket(path), expected)
            methods.add(variant.method)
    return methods


def assert_same(found: Ticket, expected: Ticket) -> None:
    """Check that two tickets are equal to the bit, with their costs and rounds."""
    assert equal(found.weights, expected.weights)
    assert equal(found.mask, expected.mask)
    assert found.finding == expected.finding
    assert found.retraining == expected.retraining
    assert found.rounds == expected.rounds
    assert (found.method, found.sparsity) == (expected.method, expected.sparsity)


@cache
def _smoke_study() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    return values


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the smoke study with another value at a path of keys."""
    study = deepcopy(_smoke_study())
    *parents, last = path.split(".")
    at = study
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[last] = value
    return study


def processes(folder: Path) -> list[psutil.Process]:
    """Return all processes of a run in a folder: Snakemake, its shells and clients, the fork server, stages."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) or os.fspath(folder) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.pid != os.getpid()]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until a condition is true, and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def serves(process: psutil.Process, owner: int) -> bool:
    """Return whether a process is the fork server of a Snakemake."""
    command = process.info["cmdline"] or []
    return any("isp.runtime.warm" in word for word in command) and str(owner) in command


def link_results(smoke: Path, folder: Path) -> None:
    """Copy a folder in which a study was run, for a test that changes it.

    Artifacts are hard links, because they are only ever replaced; Snakemake's own files, which it modifies, are copied.
    """
    for part in ("resources", "results"):
        shutil.copytree(smoke / part, folder / part, copy_function=os.link)
    shutil.copytree(smoke / ".snakemake", folder / ".snakemake")
