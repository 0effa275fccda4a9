"""The reference of environment variables, and the search for those that the code uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isp.checkpoints import SECONDS
from isp.registry import PINNED
from isp.runtime.instructions import SERVED, VARIABLES
from isp.workflow import pinning
from tools.docs.markdown import code, table


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        name: Its name.
        set_by: Who sets it: a user, isp itself for its processes, or the system.
        meaning: What it does, in Markdown.
        default: What holds where it is not set, in Markdown.
    """

    name: str
    set_by: Literal["you", "isp", "system"]
    meaning: str
    default: str = ""


TABLE = (
    Variable("CUDA_VISIBLE_DEVICES", "you", "GPUs that a run may use, as for any CUDA program", "all GPUs"),
    Variable("HF_ENDPOINT", "you", "address of a mirror of the Hugging Face hub", "`https://huggingface.co`"),
    Variable("HF_TOKEN", "you", "token that opens gated repositories on the hub; read by huggingface_hub", "none"),
    Variable(
        "ISP_CHECKPOINT_SECONDS",
        "you",
        "seconds of work between two checkpoints of a job that trains; 0: after every step",
        code(str(SECONDS)),
    ),
    Variable("ISP_GPUS", "you", "GPUs that a run may use, among those of `CUDA_VISIBLE_DEVICES`", "all of them"),
    Variable(
        "ISP_GPU_LOCKS", "you", "folder of the locks of GPUs, such as one that containers share", "`/tmp/isp-gpus`"
    ),
    Variable(
        "ISP_JOBS_PER_GPU",
        "you",
        "number of jobs that use a GPU at the same time; more than one suits small models",
        "1",
    ),
    Variable(
        "ISP_LONGEST_MINUTES",
        "you",
        "upper bound in minutes on the time that a job asks of a cluster: the partition's limit",
        "none",
    ),
    Variable("ISP_DATA_ROOT", "isp", "the study's `data_root`, for the jobs of a run"),
    Variable(
        PINNED,
        "isp",
        "contents of methods' files with which a study was started; its jobs refuse a file that was edited since",
    ),
    Variable("ISP_OWNER", "isp", "PID of the process with which a job, or the fork server, ends"),
    Variable(
        pinning.PINNED,
        "isp",
        "digests of the settings with which a study was started; a cluster job refuses a setting that was edited since",
    ),
    Variable("ISP_STARTED", "isp", "time at which a stage's process began, for its `startup_seconds`"),
    Variable("ISP_STUDY", "isp", "name of the study, for the lines that a run prints"),
    Variable("ISP_WARM", "isp", "path of the fork server's socket; a stage is handed over to it"),
    Variable(SERVED, "isp", "instruction set of the fork server"),
    Variable("HF_HUB_OFFLINE", "isp", "set to 1 in every stage but `download`, so that no library uses a network"),
    Variable("TOKENIZERS_PARALLELISM", "isp", "set to false unless you set it, so that a job keeps to its threads"),
    *(
        Variable(name, "isp", f"set to `{value}` where `instruction_set` is `avx2`")
        for name, value in VARIABLES.items()
    ),
    Variable("SLURM_JOB_ID", "system", "tells a job that Slurm started it; it then takes the GPU that Slurm gave it"),
    Variable("TERM", "system", "`dumb`: progress is printed line by line"),
    Variable("XDG_RUNTIME_DIR", "system", "where the fork server's socket is put", "the temporary folder"),
)
"""Every environment variable that the code reads or sets."""
_TITLES = {
    "you": ("What you can set", "Set these before a command, or export them."),
    "isp": ("What isp sets", "isp sets these for its processes. Do not set them, except to look for a fault."),
    "system": ("What the system sets", "isp reads these."),
}
_STANDARD = {"PATH", "PYTHONPATH", "PYTHONSAFEPATH", "TMPDIR"}
"""Variables of Python and the shell, which need no explanation."""


def page() -> str:
    """Return the page of the environment variables."""
    parts = ["# Environment variables"]
    for who, (title, text) in _TITLES.items():
        rows = [(code(each.name), each.meaning, each.default) for each in TABLE if each.set_by == who]
        header = ("variable", "meaning", "default") if who == "you" else ("variable", "meaning")
        parts += [f"## {title}", text, table(header, [row[: len(header)] for row in rows])]
    parts.append(
        "`instruction_set` and its variables: [Reproducibility](../explanation/reproducibility.md). GPUs: "
        "[Run on GPUs](../how-to/gpus.md)."
    )
    return "\n\n".join(parts)


def used(root: Path) -> set[str]:
    """Return the environment variables that the code of the repository reads or sets.

    These are the constants that are a name of isp's or of a library's, and those with which the environment is read.
    """
    files = [path for folder in ("isp", "snakemake_logger_plugin_isp") for path in (root / folder).rglob("*.py")]
    names = {name for path in files for name in _in_python(ast.parse(path.read_text(encoding="utf-8")))}
    rules = [*(root / "workflow").rglob("*.smk"), root / "workflow" / "Snakefile"]
    names |= {name for path in rules for name in re.findall(r"\bISP_[A-Z_]+", path.read_text(encoding="utf-8"))}
    return names - _STANDARD


def _in_python(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.fullmatch(r"(ISP|HF|CUDA|SLURM|XDG)_[A-Z_]+", str(node.value)):
            yield str(node.value)
        read: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            read = [node.slice]
        elif isinstance(node, ast.Call) and re.fullmatch(r"os\.(getenv|environ\.\w+)", ast.unparse(node.func)):
            read = node.args[:1]
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            read = [node.left]
        yield from (str(each.value) for each in read if isinstance(each, ast.Constant))
