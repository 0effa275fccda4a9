"""Describe a study: its file with all defaults, its methods, and its provenance."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import __version__, files, registry
from isp.artifacts import provenance
from isp.config import Study, parse_study
from isp.stages._options import InstructionSet, Output, mapping

VERSION = 1


def describe(
    study: Annotated[
        dict[str, Any], typer.Option(parser=mapping, metavar="YAML", help="The study, with the contents of its file.")
    ],
    command: Annotated[str, typer.Option(help="Command that runs the study.")],
    output: Output,
    instruction_set: InstructionSet = None,
) -> None:
    """Write study.json: the study, the settings of every variant, the tasks, and provenance.

    Given the instruction set of the study's jobs, the provenance equals that of the jobs on this machine.
    """
    study_ = parse_study(study, "--study")
    content = {
        "study": study_.model_dump(mode="json", exclude={"data_root"}),
        "question": study_.question,
        "variants": {name: _variant(study_, name) for name in study_.variants},
        "tasks": {name: _task(study_, name) for name in dict.fromkeys(group.task for group in study_.groups())},
        "provenance": {"command": command, "isp": __version__, **commit(), **_machine(), "packages": provenance()},
    }
    files.ready(output)
    files.write_json(output, content)


def _variant(study: Study, name: str) -> dict[str, Any]:
    method, entry = study.method(name), study.variants[name]
    summary = (method.module.__doc__ or "").strip().split("\n")[0]
    return {
        "method": method.name,
        "family": method.module.FAMILY,
        "summary": summary,
        "settings": method.settings.model_dump(mode="json"),
        "by_backbone": entry.by_backbone,
        "initial": entry.initial,
        "steps_of": entry.steps_of,
    }


def _task(study: Study, name: str) -> dict[str, Any]:
    task, known = study.task(name), name in registry.names("task")
    return {
        "summary": registry.summary("task", name) if known else "",
        "metrics": list(task.metrics),
        "num_train": study.num_train(name),
        "steps": {
            backbone: study.protocol(backbone, name).steps
            for backbone in dict.fromkeys(group.backbone for group in study.groups() if group.task == name)
        },
    }


def commit() -> dict[str, Any]:
    """Return the commit of the repository that contains this package, and whether its files were modified."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "--short=12", "HEAD"), "modified": bool(changed)}


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
