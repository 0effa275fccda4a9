"""The `isp` command: list methods, run a single cell, inspect and export results, and run any stage by hand."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from isp import files, registry, stages
from isp.errors import ArtifactError, ConfigError, IspError, unknown
from isp.parsing import load_yaml
from isp.runtime.instructions import InstructionSet
from isp.untrusted import printable

if TYPE_CHECKING:
    from decimal import Decimal

    from isp.config import Study
    from isp.families import Method
    from isp.training import Training

out = Console()
err = Console(stderr=True)


PEOPLE = ("list", "run", "plan", "status", "compare", "verdict", "regime", "export", "predict", "clean")
"""User-facing commands, in the order in which users meet them; `plan` is also a stage."""


class _Commands(TyperGroup):
    """Commands of this file, and one per stage, which is imported only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys((*PEOPLE, *super().list_commands(ctx), *stages.NAMES)))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command for the list of commands: a stage's first line, without importing it."""
        if cmd_name not in stages.NAMES:
            return super().get_command(ctx, cmd_name)
        source = Path(stages.__file__).with_name(f"{cmd_name}.py").read_text(encoding="utf-8")
        panel = None if cmd_name in PEOPLE else "Stages, called by Snakemake"
        return TyperCommand(cmd_name, help=ast.get_docstring(ast.parse(source)), rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command to call: the stage itself."""
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            raise ConfigError(unknown("command", args[0], self.list_commands(ctx)))
        if args[0] not in stages.NAMES:
            return super().resolve_command(ctx, args)
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        one.command(args[0])(getattr(importlib.import_module(f"isp.stages.{args[0]}"), args[0]))
        return args[0], typer.main.get_command(one), args[1:]


_STYLE: dict[str, Any] = {"cls": _Commands, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(
    **_STYLE,
    no_args_is_help=True,
    help="Prune pre-trained transformers while they are fine-tuned: Instant Soup Pruning and its baselines.",
)


@app.command("list")
def list_entries(
    kind: Annotated[str | None, typer.Argument(help="methods, tasks or backbones. Default: all.")] = None,
    name: Annotated[
        str | None, typer.Argument(help="Name of an entry to explain, for a method with its settings.")
    ] = None,
) -> None:
    """List the available methods, tasks and backbones, or explain one of them."""
    kinds = {f"{name}s": name for name in registry.KINDS}
    if kind is not None and kind not in kinds:
        raise ConfigError(f"isp list: the kind must be one of {', '.join(kinds)}, got {kind!r}")
    if kind and name:
        _explain(kinds[kind], name)
        return
    for plural, single in kinds.items():
        if kind in (None, plural):
            table = Table(title=plural, title_justify="left", show_header=False, box=None, padding=(0, 2))
            for entry in registry.names(single):
                table.add_row(f"[bold]{entry}", registry.summary(single, entry))
            out.print(table)


def _flowing(text: str) -> str:
    """Join each paragraph and list item to one line, so that a terminal of any width can wrap it."""
    return re.sub(r"(?<!\n)\n *(?![ \n]|- )", " ", text)


def _explain(kind: registry.Kind, name: str) -> None:
    module = registry.load(kind, name)
    out.print(escape(_flowing((module.__doc__ or "").strip())), highlight=False)
    if kind == "method":
        table = Table("setting", "default", "description", title="settings", title_justify="left", box=None)
        for key, setting in module.Settings.model_fields.items():
            table.add_row(key, escape(str(setting.default)), setting.description)
        out.print(table if module.Settings.model_fields else "It has no settings.")


@app.command()
def run(
    task: Annotated[str, typer.Option(help="Name of the task; see `isp list tasks`.")],
    method: Annotated[
        str, typer.Option(help="Name of the method, or path of its file; see `isp list methods`.")
    ] = "isp_mean",
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            help="Fraction of prunable weights that are zero, in [0, 1); may be repeated. Default: 0.9 for a method "
            "that always prunes, otherwise 0."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Name of the backbone; see `isp list backbones`. Default: the tiny one for the task's inputs."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data order, augmentation and look-aheads.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Setting to change: method.KEY, training.KEY, task.KEY or initial; may be repeated. "
            "Example: --set training.steps=800 --set method.denoisers=0 --set task.num_train=4000",
        ),
    ] = None,
    data_root: Annotated[Path, typer.Option(help="Folder of datasets in the hub's layout.")] = Path("resources/data"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=1, help="Number of torch threads; the result depends on it to the bit.")
    ] = 1,
    instruction_set: Annotated[
        InstructionSet | None,
        typer.Option(
            help="CPU kernels of float32 jobs: avx2, for bit-identical results on all Intel CPUs, or native. Default: "
            "avx2 if the CPU supports it."
        ),
    ] = None,
) -> None:
    """Run one method on one task through the workflow, as a small study, and print its table.

    The study file, its tickets and its tables are written to results/run-<hash of the settings>/ below the current
    folder. Finished jobs are not rerun. If the rounds of ISP at the default `segment_fraction` take longer than the
    training, `segment_fraction` is lowered until they fit, and a line says so.
    """
    from isp.config import parse_study
    from isp.families import make_method, traits_of
    from isp.sparsity import parse_sparsity

    command, settings = _snakemake(), _settings(set_ or [])
    inputs = registry.load("task", task).TASK.inputs
    backbone = backbone or {"pictures": "clip_tiny", "texts": "bert_tiny"}[inputs]
    module = registry.load("backbone", backbone)
    prunes, variant = traits_of(registry.load("method", method)).prunes, Path(method).stem
    if prunes == "never" and sparsity:
        raise ConfigError(f"--sparsity {sparsity[0]}: method {method!r} does not prune; omit the option")
    training, in_epochs = module.TRAINING.model_dump(), settings["training"].get("epochs") is not None
    if in_epochs:
        del training["steps"]  # the two are alternatives; steps that are set as well are refused
    values: dict[str, Any] = {
        "device": device,
        "threads": threads,
        **({} if instruction_set is None else {"instruction_set": instruction_set}),
        "training": {backbone: training | settings["training"]},
        "tasks": {task: settings["task"]},
        "variants": {variant: {"method": method, "settings": settings["method"], **settings["initial"]}},
        "grid": [
            {
                "backbone": backbone,
                "tasks": [task],
                "variants": [variant],
                "sparsities": [],
                "seeds": [seed],
            }
        ],
    }
    asked = sorted({parse_sparsity(value) for value in sparsity or (["0.9"] if prunes == "always" else [])})
    if asked:
        dense = {"variants": {"dense": {"method": "dense"}}, "grid": [{**values["grid"][0], "variants": ["dense"]}]}
        protocol = parse_study({"study": "run", **values, **dense}, "isp run")
        chosen = make_method(method, settings["method"], f"isp run: variants.{variant}")
        training_ = protocol.protocol(backbone, task)
        if (lowered := _fitting_segments(chosen, training_, protocol.num_train(task), asked[-1])) is not None:
            settings["method"]["segment_fraction"] = lowered
            err.print(
                f"isp run: segment_fraction is lowered to {lowered:.4g}, so that the rounds to sparsity {asked[-1]} "
                f"fit into {training_.steps} steps; choose it by --set method.segment_fraction=VALUE, or more steps by "
                "--set training.steps=VALUE",
                highlight=False,
                soft_wrap=True,
            )
    # Sparsities are not part of the digest: further ones use the same folder and share finished jobs.
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()
    values["grid"][0]["sparsities"] = [str(value) for value in asked]
    study = parse_study({"study": f"run-{digest}", "data_root": str(data_root), **values}, "isp run")
    folder, content = Path("results") / study.study, study.model_dump(mode="json")
    if in_epochs:
        del content["training"][backbone]["steps"]
    files.write_bytes(folder / "study.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    status = subprocess.run([*command, "--configfile", str(folder / "study.yaml")], check=False).returncode
    if status:
        raise SystemExit(status)
    typer.echo(
        f"{(folder / 'tables/costs.txt').read_text(encoding='utf-8')}\n"
        f"Tables, figures, tickets, report.html: {folder}/\nTry a ticket: {_try_ticket(study)}"
    )


def _fitting_segments(method: Method, training: Training, num_train: int, target: Decimal) -> float | None:
    """Return the `segment_fraction` for a method whose rounds exceed T at the default one; None: keep the setting.

    It is the largest one with which the rounds end within four fifths of T, so that a fifth is left for the final mask.
    """
    from isp.methods import isp

    settings, steps_per_epoch = method.settings, num_train // training.batch_size
    if not isinstance(settings, isp.Settings) or "segment_fraction" in settings.model_fields_set or not steps_per_epoch:
        return None
    count = len(isp.sparsities(settings, target))
    if not settings.chained or isp.steps_until(settings, count - 1, steps_per_epoch) < training.steps:
        return None
    unit = max(1, 4 * training.steps // 5 // (count * (count + 1) // 2))
    return unit / steps_per_epoch if unit < isp.segment_unit(settings, steps_per_epoch) else None


def _try_ticket(study: Study) -> str:
    """Return a command that predicts with the ticket of the highest sparsity of a study of one cell."""
    from isp.workflow.paths import TICKET

    (group,) = study.groups()
    task = registry.load("task", group.task).TASK
    options = ("--image FILE",) if task.inputs == "pictures" else ("--text TEXT", "--second TEXT")
    ticket = TICKET.format(study=study.study, sparsity=f"{max(group.sparsities):.4f}", **group._asdict())
    return " ".join(["isp predict", ticket, *options[: len(task.source.inputs)]])


@app.command()
def status(
    study: Annotated[
        str | None, typer.Argument(help="Name of the study, which is that of its folder in results/.")
    ] = None,
    configfile: Annotated[Path | None, typer.Option(help="The study file, instead of a name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show the progress of a study: jobs that are done, running, failed or left, and the estimated remaining time.

    Only files below the current folder are read, so it can run while Snakemake runs, even on another machine. An
    existing file counts as done, even if a change of settings would remake it. The exit status is 1 if a job failed.
    """
    from isp.config import load_study
    from isp.reporting.status_lines import lines
    from isp.workflow.jobs import Jobs
    from isp.workflow.status import find_study, look, read_plan, report

    if (study is None) == (configfile is None):
        raise ConfigError("isp status: either the name of a study or its file (--configfile FILE) must be given")
    study_ = load_study(configfile) if configfile else find_study(study or "")
    content = report(Jobs(study_), look(study_), read_plan(study_))
    typer.echo(json.dumps(content, indent=1) if as_json else lines(content), nl=as_json)
    if content["failed"]:
        raise SystemExit(1)


@app.command()
def compare(
    run: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of a study, such as results/quick.")],
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="Results to compare with, such as docs/results/quick.")
    ],
    only_summary: Annotated[bool, typer.Option("--summary", help="Print only a one-line summary.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare a run with a reference: cells are equal to the bit, within the deviation over seeds, or outside it.

    Within means that the test score is in the 95 % prediction interval of one further seed of the reference (Student's
    t). Only metrics.csv and study.json of both folders are read. The exit status is 0 whatever the verdicts.
    """
    from isp.reporting import compare as comparing
    from isp.reporting.tables import text

    if only_summary and as_json:
        raise ConfigError("isp compare: --summary and --json are mutually exclusive")
    comparison = comparing.compare(comparing.read_side(run), comparing.read_side(reference))
    if as_json:
        typer.echo(json.dumps(comparing.as_json(comparison), indent=1))
    elif only_summary:
        typer.echo(printable(comparing.summarise(comparison)))
    else:
        tables, notes = comparing.tables(comparison), "\n".join(comparing.notes(comparison))
        if not out.is_terminal:
            typer.echo(printable(text(tables, notes)), nl=False)
            return
        for header, body in tables:
            _print_table(header, body)
        out.print(escape(printable(notes)), highlight=False)


REFERENCE = Path("docs/results")
"""Results of the repository; the pages about them are only written from these."""
Reference = Annotated[
    Path, typer.Option(help="Folder of studies' results; those with metrics.csv and study.json are read.")
]


@app.command()
def verdict(
    results: Reference = REFERENCE,
    output: Annotated[
        Path | None, typer.Option(help="Page to write. Default: docs/verdict.md if the results are docs/results.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            help="Page with the comments verdict:begin and verdict:end, between which the table is written. Default: "
            "README.md if the results are docs/results."
        ),
    ] = None,
) -> None:
    """Print the verdict table: each claim of the paper, its figure, ours, and whether it was reproduced.

    All figures are computed from the CSV files of the studies and of the paper's tables. A page also has the rules by
    which each claim is decided; the README gets the table only. Without --results, both pages of the repository are
    written. With other results, only the pages that --output and --readme name are.
    """
    from isp.reporting import evidence

    lines = evidence.verdict_lines(evidence.read_results(results))
    if _same(results, REFERENCE):
        output, readme = output or Path("docs/verdict.md"), readme or Path("README.md")
    texts: dict[Path, str] = {}
    if readme:
        texts[readme] = evidence.insert(
            _read_page(readme), "verdict", evidence.table(lines, readme.parent, legend=False), readme
        )
    if output:
        texts[output] = evidence.page(lines, output.parent)
    for path, text in texts.items():
        files.write_bytes(path, text.encode())
    if not texts:
        typer.echo(printable(evidence.plain(lines)), nl=False)
        return
    for line in lines:
        typer.echo(f"{line.verdict:>14}  {line.claim.statement}")


def _same(first: Path, second: Path) -> bool:
    """Return whether two paths are the same folder."""
    return first.resolve() == second.resolve()


def _read_page(path: Path) -> str:
    """Read a page into which a table is inserted.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return files.read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing page") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; save it as UTF-8") from None


@app.command()
def regime(
    results: Reference = REFERENCE,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Path of the png and csv to write, without the suffix. Default: docs/regime if the results are "
            "docs/results."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="Page with the comments regime:begin and regime:end, between which the table is written."),
    ] = None,
) -> None:
    """Draw the gap to lottery tickets and the gain by denoisers against the length of training, from several studies.

    Studies belong to one line if they differ in the number of epochs only. Without --page, no table is written. With
    other results than docs/results, only what --output and --page name is written; without both, the table is printed.
    """
    from isp.reporting import drawing, evidence
    from isp.reporting import regime as regimes

    figure, rows = regimes.regime(evidence.read_results(results))
    if not rows:
        raise ConfigError(f"{results}: no two studies differ in the epochs of training only; run more of config/regime")
    text = page and evidence.insert(_read_page(page), "regime", regimes.table(rows), page)
    if _same(results, REFERENCE):
        output = output or Path("docs/regime")
    written = []
    if output:
        picture, table = (output.with_name(f"{output.name}.{suffix}") for suffix in ("png", "csv"))
        files.write_bytes(picture, drawing.render(figure, "png"))
        files.write_csv(table, rows, regimes.COLUMNS)
        written += [picture, table]
    if page and text:
        files.write_bytes(page, text.encode())
        written.append(page)
    typer.echo(", ".join(map(str, written)) or printable(regimes.table(rows)))


@app.command()
def clean(
    study: Annotated[str, typer.Argument(help="Name of the study, which is that of its folder in results/.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete the files. Default: only list them.")] = False,
) -> None:
    """Delete intermediate states, copies and tickets that a study no longer needs, and print the freed space.

    Tickets, masks, records, tables and logs are kept, and so are all files that unfinished jobs need. Deletion causes
    no reruns, but sparsities or variants that are added later may have to train deleted files again.
    """
    from isp.workflow import cleaning
    from isp.workflow.jobs import Jobs
    from isp.workflow.running import alone
    from isp.workflow.status import find_study, look

    study_ = find_study(study)
    with alone():
        files_ = cleaning.unneeded(Jobs(study_), look(study_))
        sizes = cleaning.sizes(files_)
        if yes:
            cleaning.delete(files_)
    lines = [f"  {kind}: {count} files, {size / 1e6:,.1f} MB" for kind, (count, size) in sorted(sizes.items())]
    count, size = (sum(each[part] for each in sizes.values()) for part in (0, 1))
    if not lines:
        end = "nothing to delete."
    elif yes:
        end = f"deleted {count} files, {size / 1e6:,.1f} MB."
    else:
        end = f"{count} files, {size / 1e6:,.1f} MB. Nothing was deleted; to delete them: `isp clean {study} --yes`."
    typer.echo(printable("\n".join([*lines, f"{study}: {end}"])))


Weights = Annotated[
    Path | None,
    typer.Option(
        help="Pre-trained backbone from which the study started. Default: resources/backbones/<backbone>.safetensors "
        "beside the results/ folder of the ticket."
    ),
]


@app.command()
def export(
    ticket: Annotated[Path, typer.Argument(metavar="TICKET", help="Ticket of a study (ticket.safetensors).")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must not exist.")],
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Write the kept values and one bit per prunable weight instead of all weights."),
    ] = False,
    weights: Weights = None,
) -> None:
    """Export a ticket to a folder that transformers (BERT) or open_clip (CLIP) loads without this package.

    The folder contains weights, configuration, labels, tokenizer or preprocessing, and a model card. A separate process
    then loads it and compares it with the ticket to the bit. If anything differs, the folder is removed.
    """
    from isp.exporting import export as write

    with _offline():
        done = write(ticket, None, folder, compact=compact, weights=weights)
    for name, size in done.sizes.items():
        typer.echo(f"{size:>13,}  {name}")
    libraries = f"NumPy and {done.library}" if compact else done.library
    typer.echo(
        f"{printable(folder)}: loaded by {libraries} in a process without isp; {done.zero_weights:,} zeros counted, "
        f"{done.num_tensors} tensors and the logits of {done.num_inputs} inputs equal the ticket's to the bit."
    )


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TICKET_OR_FOLDER", help="Ticket of a study (ticket.safetensors), or an exported folder."
        ),
    ],
    text: Annotated[list[str] | None, typer.Option(help="Text, or the first text of a pair; may be repeated.")] = None,
    second: Annotated[
        list[str] | None, typer.Option(help="Second text of a pair; repeat it as often as --text, in the same order.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image file; may be repeated.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of labels to print per input.")] = 5,
    weights: Weights = None,
    accelerate: Annotated[
        bool,
        typer.Option("--accelerate", help="Compute each linear layer in its fastest form, and print both times."),
    ] = False,
) -> None:
    """Print the labels and probabilities of texts or images, or the value for a regression task."""
    from isp import prediction

    report = None
    with _offline():
        predictor = prediction.load_predictor(source, weights)
        if accelerate:
            predictor, report = prediction.accelerated(predictor, text or [], second or [], image or [])
        predictions = prediction.predict(predictor, text or [], second or [], image or [])
    firsts = [str(path) for path in image or []] or text or []
    for parts, scores in zip(zip(firsts, second, strict=True) if second else zip(firsts), predictions, strict=True):
        typer.echo(printable(" | ".join(parts)))
        wide = max(len(label) for label, _ in scores[:top])
        for label, score in scores[:top]:
            number = f"{score:8.1%}" if predictor.labels else f"{score:.4f}"
            typer.echo(printable(f"  {label:<{wide}}  {number}"))
    if report is not None:
        typer.echo(report.summary())


def _print_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print a table of `isp.reporting.tables` to a terminal."""
    table = Table(*(escape(printable(name)) for name in header), box=None, padding=(0, 2, 0, 0))
    for line in body:
        table.add_row(*(escape(printable(text)) for text in line))
    out.print(table, "")


def _commands(is_stage: bool) -> typer.Typer:
    """Return the commands of a call.

    A stage needs no other command, and building those of this file takes longer than the smallest jobs compute.
    """
    return typer.Typer(**_STYLE, callback=lambda: None) if is_stage else app


def _snakemake() -> list[str]:
    """Return the command that runs the workflow of the repository that contains this package."""
    snakefile = Path(__file__).parent.parent / "workflow" / "Snakefile"
    if not snakefile.exists():
        raise ConfigError(
            f"{snakefile}: no such file; `isp run` needs the repository, installed with `pip install -e '.[workflow]'`"
        )
    if importlib.util.find_spec("snakemake") is None:
        raise ConfigError(
            "isp run: Snakemake is not installed; in the clone of the repository, run `pip install -e '.[workflow]'`"
        )
    return [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(snakefile)]


def _settings(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """Parse --set options to nested settings."""
    settings: dict[str, dict[str, Any]] = {"method": {}, "training": {}, "task": {}, "initial": {}}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        part, _, key = path.partition(".")
        if path == "initial":
            part, key = "initial", "initial"
        if not equals or not key or part not in settings:
            raise ConfigError(
                f"--set must be method.KEY=VALUE, training.KEY=VALUE, task.KEY=VALUE or initial=VALUE, got {pair}"
            )
        try:
            settings[part][key] = load_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair}: {text!r} is not a YAML value") from None
    return settings


def _with_options_from_files(arguments: list[str]) -> list[str]:
    """Replace each `--options-from FILE` by the options in the file, which has the syntax of a shell.

    The workflow uses it for options that exceed the limit of a command line.

    Raises:
        ConfigError: A file cannot be read.
    """
    options: list[str] = []
    left = iter(arguments)
    for argument in left:
        path = next(left, None) if argument == "--options-from" else None
        if path is None:
            options.append(argument)
            continue
        try:
            options += shlex.split(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--options-from {path}: cannot be read ({error})") from None
    return options


@contextmanager
def _offline() -> Iterator[None]:
    """Keep libraries from accessing the hub, by `HF_HUB_OFFLINE`, even if it has been read already (in a fork server).

    Only `isp download` may use a network, but the files of a model can make a library download others.
    """

    def remembered(offline: bool | None) -> bool | None:
        constants: Any = sys.modules.get("huggingface_hub.constants")
        before: bool | None = constants and constants.HF_HUB_OFFLINE
        if constants and offline is not None:
            constants.HF_HUB_OFFLINE = offline
        return before

    name = "HF_HUB_OFFLINE"
    variable, constant = os.environ.get(name), remembered(True)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ |= {} if variable is None else {name: variable}
        remembered(constant)


def _made_by(error: IspError) -> str:
    """Return the stages that make an artifact which is missing or damaged, as a part of the message."""
    if not (isinstance(error, ArtifactError) and error.kind):
        return ""
    from isp.workflow.rules import made_by

    return f" (stage: {made_by(error.kind, error.path)})"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. User-facing errors are printed without a traceback, with exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape characters that the locale lacks, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given = _with_options_from_files(sys.argv[1:] if arguments is None else arguments)
        is_stage = bool(given) and given[0] in stages.NAMES
        with _offline() if is_stage and given[0] != "download" else nullcontext():
            _commands(is_stage)(given, standalone_mode=True)
    except IspError as error:
        err.print(f"[bold red]isp:[/] {escape(printable(error) + _made_by(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
