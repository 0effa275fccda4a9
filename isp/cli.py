"""The `isp` command: list what there is, run one cell, run a study."""

from __future__ import annotations

import hashlib
import json
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isp import registry
from isp.errors import ConfigError, IspError

if TYPE_CHECKING:
    from isp.study import Reporter, Runner

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune pre-trained transformers while they are fine-tuned: Instant Soup Pruning and its baselines.",
)
out = Console()
err = Console(stderr=True)

DataRoot = Annotated[Path, typer.Option(help="Folder of datasets in the hub's layout.")]
Resources = Annotated[Path, typer.Option(help="Folder where pre-trained weights are kept.")]
Results = Annotated[Path, typer.Option(help="Folder that results are written to.")]
Test = Annotated[
    bool, typer.Option("--test", help="Also score the tickets on the official test split. Choose nothing by it.")
]


@app.command("list")
def list_entries(
    kind: Annotated[str | None, typer.Argument(help="methods, tasks or backbones; all of them by default.")] = None,
) -> None:
    """List the methods, tasks and backbones there are."""
    kinds = {f"{name}s": name for name in registry.KINDS}
    if kind is not None and kind not in kinds:
        raise ConfigError(f"isp list {kind}: allowed are {', '.join(kinds)}")
    for plural, name in kinds.items():
        if kind in (None, plural):
            table = Table(title=plural, title_justify="left", show_header=False, box=None, padding=(0, 2))
            for entry in registry.names(name):
                table.add_row(f"[bold]{entry}", registry.summary(name, entry))
            out.print(table)


@app.command()
def run(
    task: Annotated[str, typer.Option(help="Task; `isp list tasks` shows them.")],
    method: Annotated[str, typer.Option(help="Method; `isp list methods` shows them.")] = "isp",
    sparsity: Annotated[
        list[str] | None, typer.Option(help="Share of zero weights, in [0, 1); may be repeated.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="Backbone; `isp list backbones` shows them.")] = "clip_tiny",
    seed: Annotated[int, typer.Option(min=0, help="Seed of data order, augmentation, look-aheads.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting: method.KEY, training.KEY, task.KEY or initial; may be repeated. "
            "Example: --set training.steps=800 --set method.denoisers=0 --set task.num_train=4000",
        ),
    ] = None,
    data_root: DataRoot = Path("resources/data"),
    resources: Resources = Path("resources"),
    results: Results = Path("results"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; the bits of a result depend on it.")] = 1,
    test: Test = False,
) -> None:
    """Run one method on one task: fine-tune, prune, score on validation, and print scores and cost.

    Tickets are kept in RESULTS/run-<hash of the settings>/; a cell that was run before is read from there.
    """
    settings = _settings(set_ or [])
    module = registry.load("backbone", backbone)
    registry.load("task", task)
    family = registry.load("method", method).FAMILY
    values = {
        "study": "run",
        "data_root": data_root,
        "device": device,
        "threads": threads,
        "training": {backbone: module.TRAINING.model_dump() | settings["training"]},
        "tasks": {task: settings["task"]},
        "variants": {method: {"method": method, "settings": settings["method"], **settings["initial"]}},
        "grid": [
            {
                "backbone": backbone,
                "tasks": [task],
                "variants": [method],
                "sparsities": sparsity or ([] if family == "dense" else ["0.9"]),
                "seeds": [seed],
            }
        ],
    }
    if family == "dense" and sparsity:
        raise ConfigError(f"--sparsity {sparsity[0]}: method {method!r} does not prune, leave it out")
    from isp.config import parse_study
    from isp.study import Runner

    study = parse_study(values, "isp run")
    # Other settings go to another folder; what is named in the path of a ticket need not be told apart again.
    group = next(study.groups())
    runner = Runner(study=study, results=results, resources=resources)
    settings = runner.settings_of(group) | {"backbone": backbone, "task": task, "seed": 0}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    runner.study = study.model_copy(update={"study": f"run-{digest}"})
    _run_study(runner, test)
    typer.echo(f"Tickets: {runner.cell_folder(group, group.sparsities[0]).parent}/")


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study file, such as config/core_digits.yaml.")],
    seed: Annotated[list[int] | None, typer.Option(help="Run these seeds only; may be repeated.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Instead of the study's data_root.")] = None,
    resources: Resources = Path("resources"),
    results: Results = Path("results"),
    test: Test = False,
) -> None:
    """Run the cells of a study file in this process and write its table; cells that are done are not run again.

    Two processes with different seeds can share the work; run it once more without --seed for the whole table.
    """
    from isp import tables
    from isp.config import load_study
    from isp.study import Runner

    loaded = load_study(file)
    if data_root is not None:
        loaded = loaded.model_copy(update={"data_root": data_root})
    runner = Runner(study=loaded, results=results, resources=resources)
    rows = _run_study(runner, test, seed)
    if seed is None:
        tables.write(runner.folder, rows)
        typer.echo(f"Tickets, metrics.csv, summary.md and table.md: {runner.folder}/")


def _run_study(runner: Runner, test: bool, seeds: list[int] | None = None) -> list[dict[str, Any]]:
    """Run the groups of a study (of some seeds only), print its table and return the rows."""
    from isp import tables

    groups = [group for group in runner.study.groups() if seeds is None or group.seed in seeds]
    if not groups:
        raise ConfigError(f"no cell of study {runner.study.study!r} has seed {', '.join(map(str, seeds or []))}")
    rows = []
    with _progress() as runner.report:
        runner.check(groups)
        for group in groups:
            for row in runner.run(group):
                if test:
                    row["test"] = runner.score_on_test(group, tables.sparsity_of(row))
                rows.append(row)
    typer.echo(f"{tables.text(rows)}\n\n{textwrap.fill(tables.LEGEND, 100)}")
    return rows


def _settings(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """--set options as nested settings."""
    found: dict[str, dict[str, Any]] = {"method": {}, "training": {}, "task": {}, "initial": {}}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        part, _, key = path.partition(".")
        if path == "initial":
            part, key = "initial", "initial"
        if not equals or not key or part not in found:
            raise ConfigError(
                f"--set {pair}: allowed are method.KEY=VALUE, training.KEY=VALUE, task.KEY=VALUE and initial=VALUE"
            )
        try:
            found[part][key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair}: {text!r} is not a YAML value") from None
    return found


@contextmanager
def _progress() -> Iterator[Reporter]:
    """A progress bar on a terminal; one line at the beginning of each piece of work in a log."""
    if not err.is_terminal:
        yield _logged
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err, transient=True) as bar:

        def report(title: str, total: int) -> Any:
            for done in bar.task_ids:
                bar.remove_task(done)
            work = bar.add_task(title, total=total)
            return lambda steps: bar.advance(work, steps)

        yield report


def _logged(title: str, total: int) -> Any:
    print(f"{title}: {total} steps", file=sys.stderr, flush=True)
    return lambda _: None


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors meant for people are printed without a traceback, with exit status 2."""
    try:
        app(arguments, standalone_mode=True)
    except IspError as error:
        err.print(f"[bold red]isp:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
