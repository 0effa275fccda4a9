"""Compare a study's plan with the measurements of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isp import files
from isp.config import parse_study
from isp.errors import IspError
from isp.reporting import plan_tables
from isp.reporting.collected import read
from isp.reporting.tables import markdown
from isp.runtime.watch import took
from isp.shapes import Plan
from isp.stages._options import Metrics, mapping
from isp.workflow.jobs import Jobs
from isp.workflow.paths import STUDY, log

VERSION = 2


def compare_plan(
    plan: Annotated[Path, typer.Option(help="The plan, from `isp plan --output`.")],
    study: Annotated[
        dict[str, Any], typer.Option(parser=mapping, metavar="YAML", help="The study, with the contents of its file.")
    ],
    metrics: Metrics,
    output: Annotated[Path, typer.Option(help="The table to write, as Markdown.")],
) -> None:
    """Write the table. The durations of jobs are read from their logs below the current folder."""
    study_ = parse_study(study, "--study")
    planned, rows = files.read_json(plan, "plan", Plan), read(metrics, "metrics")
    seconds: dict[str, list[float]] = {rule["rule"]: [] for rule in planned["rules"]}
    folder = STUDY.format(study=study_.study)
    for job in Jobs(study_).by_output.values():
        path = Path(log(job.output.replace(folder, STUDY, 1)).format(study=study_.study))
        try:
            times = took(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise IspError(
                f"{path}: cannot be read ({error.strerror}); the duration of the job is read from it"
            ) from None
        if times is None:
            raise IspError(f"{path}: does not contain the duration of the job; make {job.output} again")
        seconds.setdefault(job.rule, []).append(times[0])  # with another `look_aheads`, jobs are of other rules
    files.ready(output)
    tables = plan_tables.comparison(planned, seconds, rows)
    files.write_bytes(output, markdown(tables, plan_tables.COMPARISON_LEGEND).encode())
