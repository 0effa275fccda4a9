"""What a study will take, before it runs: jobs, steps, FLOPs, hours, disk, and what sharing saves."""

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
"""Seconds of a job beside its work, where nothing is measured and nothing said."""


def plan(
    configfile: Annotated[Path | None, typer.Option(help="The study file.")] = None,
    study: Annotated[
        dict[str, Any] | None, typer.Option(parser=mapping, metavar="YAML", help="Or what it says.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of models in the hub's layout.")] = None,
    throughput: Annotated[
        float | None,
        typer.Option(
            min=1, help="FLOPs a second that a job sustains; hours follow from it. Left out: as the study says."
        ),
    ] = None,
    overhead: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds of a job beside its work: start, reading, writing. Left out: 20."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure on this machine: starts, reading, writing, ranking (without --overhead), and steps, on the "
            "study's device and threads (without --throughput).",
        ),
    ] = False,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Jobs side by side; left out: one GPU, or as many as there are cores.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write it here, as JSON.")] = None,
) -> None:
    """Print the plan of a study.

    Texts that are not prepared yet are as long as those of the data set seem to be, or the longest if it is not there.
    """
    if (configfile is None) == (study is None):
        raise IspError("isp plan: give a study by --configfile FILE")
    found = load_study(configfile) if configfile else parse_study(study or {}, "--study")
    if data_root:
        found = found.model_copy(update={"data_root": data_root})
    side_by_side = parallel or (1 if found.device != "cpu" else max(1, (os.cpu_count() or 1) // found.threads))
    beside: float | Starts = FLAT if overhead is None else overhead
    if calibrate and overhead is None:
        beside = measure_starts(found, configfile)
    if calibrate and throughput is None:
        with devices.taken(found.device, "isp plan"):
            check_device(found.device)
            content = make_plan(found, None, beside, side_by_side).as_json()
    else:
        content = make_plan(found, throughput or found.sustained(), beside, side_by_side).as_json()
    if output:
        files.ready(output)
        files.write_json(output, content)
    print(lines(content))
