"""The reference of the files of a run, from the rules of the workflow, the captions and the columns of CSV files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jinja2

from isp import stages
from isp.reporting import FIGURES, collected
from isp.workflow.paths import STUDY
from isp.workflow.rules import RULES
from tools.docs.markdown import code, first_line, prose, table

COLUMNS = {
    "study": "name of the study",
    "backbone": "name of the backbone",
    "task": "name of the task",
    "seed": "seed of data order, augmentation and look-aheads",
    "variant": "name of the variant",
    "method": "name of the variant's method",
    "sparsity": "fraction of prunable weights that are zero",
    "zero_weights": "number of prunable weights that are zero, counted on the weights that are scored",
    "prunable_weights": "number of prunable weights",
    "collapsed_layers": "number of layers that keep no weight",
    "metric": "the task's deciding metric",
    "validation": "its validation score, in percent",
    "test": "its test score, in percent",
    "majority_validation": "validation score of always answering the most frequent label, in percent",
    "majority_test": "the same on test data",
    "second_metric": "the task's second metric, if it has one",
    "second_validation": "its validation score, in percent",
    "second_test": "its test score, in percent",
    "chosen_on": "`validation` where the method chose among models by validation scores, which are then too high",
    "finding_steps": "optimizer steps spent on finding the mask",
    "finding_samples": "examples that went through the model while the mask was found",
    "finding_flops": "FLOPs executed while the mask was found",
    "finding_sparse_flops": "the same without the products with masked weights",
    "retraining_steps": "optimizer steps under the final mask",
    "retraining_samples": "examples that went through the model under the final mask",
    "retraining_flops": "FLOPs executed under the final mask",
    "retraining_sparse_flops": "the same without the products with masked weights",
    "finding_seconds": "seconds spent on finding the mask",
    "retraining_seconds": "seconds of training under the final mask",
    "evaluation_seconds": "seconds of scoring",
    "startup_seconds": "seconds in which processes started",
    "jobs": "number of jobs that the ticket took",
    "peak_memory_mb": "peak memory of the largest job, in MB",
    "device": "device of the jobs",
    "round": "number of the round, from 0",
    "changed": "fraction of the kept weights that the denoisers changed",
    "agreement": "mean Jaccard index of the weak masks over all pairs of copies",
    "layer": "name of the parameter",
    "weights": "number of weights compared, or of the layer",
    "variant_a": "one variant",
    "variant_b": "the other variant",
    "kept_a": "weights that the mask of the one keeps",
    "kept_b": "weights that the mask of the other keeps",
    "kept_both": "weights that both keep",
    "cosine": "cosine similarity of the masks as 0/1 vectors",
    "jaccard": "weights that both keep over weights that either keeps",
    "hamming": "fraction of the weights on which they differ",
}
"""What each column of the CSV files is."""
_CSV = {
    "metrics": "One row per ticket: scores, sparsity, steps, samples, FLOPs. Equal in every run on such a machine.",
    "timings": "One row per ticket: what was measured, which differs from run to run.",
    "rounds": "One row per prune event of a method with denoisers.",
    "layers": "One row per ticket and prunable layer.",
    "agreement": "One row per prune event and layer.",
    "similarity": "One row per pair of masks of a run and sparsity.",
    "similarity_layers": "The same by layer.",
}


def page(root: Path) -> str:
    """Return the page that describes the files of a run.

    Args:
        root: Folder of the repository.
    """
    parts = [
        "# Outputs of a run",
        "A study writes everything to `results/<study>/`. What studies share (pre-trained weights, prepared tensors) "
        "is in `resources/`.",
        "## To read",
        "`report.html` is all of it on one page, in one file that needs no network. `tables/` has each table as CSV "
        "and Markdown (`costs` also as text, `paper` also as LaTeX). `figures/` has each figure as PNG and PDF, with "
        "the CSV of what it shows. `snakemake_report.html` is Snakemake's own report; `snakemake --report FILE` "
        "writes it on demand.",
        table(("table", "content"), [(code(f"tables/{name}"), text) for name, text in _tables(root)]),
        "Tables and figures show the mean and standard deviation over three or more seeds, and both values of two. "
        "`statistics` has 95 % intervals (Student's t) and, beside each comparison, the smallest true difference that "
        "it finds with 80 % power. Comparisons over several tasks use one value per task, because runs of one task are "
        "not independent.",
        table(("figure", "content"), [(code(f"figures/{name}"), prose(text)) for name, text in captions(root)]),
        "## CSV files",
    ]
    for name, columns in collected.COLUMNS.items():
        parts += [f"### {name}.csv", _CSV[name], table(("column", "content"), [(code(c), COLUMNS[c]) for c in columns])]
    parts += [
        "## Files of jobs",
        f"Placeholders are in braces. Runs are below `{STUDY}/runs/`, and the log of a job is below `{STUDY}/logs/`, "
        "under the path of what it made. Temporary files are deleted when no job needs them any more, unless the "
        "profile has `notemp`, as the default one does.",
        table(("file", "command", "what the command does", "kept"), _files()),
    ]
    return "\n\n".join(parts)


def captions(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each figure with its caption."""
    source = (root / "workflow" / "report" / "figures.rst").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=False, undefined=jinja2.StrictUndefined).from_string(source)
    for name in FIGURES:
        yield name, template.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(figure=name))).strip()


def _tables(root: Path) -> Iterator[tuple[str, str]]:
    for name in ("scores", "costs", "spending", "statistics", "paper", "similarity"):
        yield name, prose((root / "workflow" / "report" / f"{name}.rst").read_text(encoding="utf-8").strip())
    yield "plan", "What the run was planned to take, beside what it took."


def _files() -> Iterator[tuple[str, str, str, str]]:
    for rule in RULES.values():
        for path in filter(None, (rule.output, *rule.beside)):
            temporary = rule.temporary if path == rule.output else rule.temporary_beside
            source = Path(stages.__file__).with_name(f"{rule.run}.py").read_text(encoding="utf-8")
            summary = prose(first_line(ast.get_docstring(ast.parse(source))))
            yield (
                code(path),
                f"[`isp {rule.run}`](command-line.md#isp-{rule.run})",
                summary,
                "temporary" if temporary else "yes",
            )
