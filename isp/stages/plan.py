"""Estimate a study before it runs: jobs, steps, FLOPs, hours, disk space, and the savings by sharing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import files
from isp.config import load_study, parse_study
from isp.costs import check_device
from isp.errors import IspError
from isp.reporting.plan_tables import lines
from isp.runtime import devices
from isp.stages._options import mapping
from isp.workflow.plan import make_plan
from isp.workflow.starts import Starts, measure_starts

VERSION = 2
FLAT = 20.0
"""Default overhead of a job in seconds, if it is neither measured nor given."""


def plan(
    configfile: Annotated[Path | None, typer.Option(help="The study file.")] = None,
    study: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=mapping, metavar="YAML", help="Contents of the study file, instead of its path."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of datasets and models in the hub's layout.")] = None,
    throughput: Annotated[
        float | None,
        typer.Option(
            min=1, help="Sustained FLOPs per second of a job, which determines the hours. Default: as in the study."
        ),
    ] = None,
    overhead: Annotated[
        float | None,
        typer.Option(min=0, help="Overhead of a job in seconds: start, reading, writing. Default: 20."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure on this machine: starts, reading, writing and ranking (unless --overhead is given), and "
            "training steps on the study's device and threads (unless --throughput is given).",
        ),
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of parallel jobs. Default: one on a GPU, otherwise as many as the cores allow."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write the plan to, in addition to printing it.")
    ] = None,
) -> None:
    """Print the plan of a study.

    The lengths of texts that are not prepared yet are estimated from the dataset; without the dataset, all texts are
    assumed to have the maximum length.
    """
    if (configfile is None) == (study is None):
        raise IspError("isp plan: a study must be given, by --configfile FILE")
    study_ = load_study(configfile) if configfile else parse_study(study or {}, "--study")
    if data_root:
        study_ = study_.model_copy(update={"data_root": data_root})
    side_by_side = parallel or (1 if study_.device != "cpu" else max(1, _usable_cores() // study_.threads))
    beside: float | Starts = FLAT if overhead is None else overhead
    if calibrate and overhead is None:
        beside = measure_starts(study_, configfile)
    if calibrate and throughput is None:
        with devices.reserve(study_.device, "isp plan"):
            check_device(study_.device)
            content = make_plan(study_, None, beside, side_by_side).as_json()
    else:
        content = make_plan(study_, throughput or study_.sustained(), beside, side_by_side).as_json()
    if output:
        files.ready(output)
        files.write_json(output, content)
    print(lines(content))


def _usable_cores() -> int:
    """Return how many cores this process may use, which an allocation or taskset may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
