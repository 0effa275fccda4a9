"""A page for every method: what it is, its settings, its scores in the reference results, and the paper's figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from isp import registry
from isp.families import attachable, chooses, load_family, make_method, traits_of
from isp.reporting import collected, published, tables, tabular
from tools.docs.markdown import code, first_line, prose, table
from tools.docs.study_file import keys

ROOT = Path(__file__).resolve().parents[2]
_BESIDE = {"clip_vit_b32": ("clip",), "bert_base": ("bert", "minilm")}
"""Beginnings of the names of the backbones that stand beside each backbone of the paper."""


@dataclass(frozen=True)
class Study:
    """The reference results of a study.

    Attributes:
        rows: Its tickets, as `metrics.csv` has them.
        variants: Its variants as `study.json` recorded them, with their settings; empty if there is no such file.
    """

    rows: list[tabular.Row]
    variants: Mapping[str, Any]


def read_study(folder: Path) -> Study:
    """Return the reference results in a folder."""
    recorded = folder / "study.json"
    variants = json.loads(recorded.read_text(encoding="utf-8"))["variants"] if recorded.exists() else {}
    return Study(collected.read(folder / "metrics.csv", "metrics"), variants)


def pages(results: Path) -> dict[str, Callable[[], str]]:
    """Return what makes the page of every method and their index, by path in `docs/`.

    Args:
        results: Folder of the reference results, one folder for each study.
    """
    made = {f"reference/methods/{name}.md": partial(page, name, results) for name in registry.names("method")}
    return {"reference/methods/index.md": index, **made}


@cache
def read_studies(results: Path) -> dict[str, Study]:
    """Return the reference results of each study by its name."""
    return {path.parent.name: read_study(path.parent) for path in sorted(results.glob("*/metrics.csv"))}


def index() -> str:
    """Return the page that lists the methods by family."""
    names = registry.names("method")
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(registry.load("method", name).FAMILY, []).append(name)
    parts = [
        "# Methods",
        "Each method is one file in `isp/methods/`; `isp list methods NAME` prints what its page says. A method's "
        "family decides how it is run. All methods share data, budget T and seeds, and reach their sparsity exactly.",
    ]
    for family, members in families.items():
        rows = [
            (
                f"[`{name}`]({name}.md)",
                prose(registry.summary("method", name)),
                "yes" if load_family(family).TRAITS.patterns else "no",
                "yes" if name in attachable() else "no",
            )
            for name in members
        ]
        parts += [
            f"## {family}",
            prose(first_line(load_family(family).__doc__)),
            table(("method", "what it is", "N:M patterns", "in your own loop"), rows),
        ]
    return "\n\n".join(parts)


def page(name: str, results: Path) -> str:
    """Return the page of a method, with its scores in the reference results in a folder."""
    module = registry.load("method", name)
    settings = keys(module.Settings)
    return "\n\n".join(
        [
            f"# {name}",
            _linked(prose(module.__doc__ or ""), name),
            _facts(name, module),
            "## Settings",
            settings or "It has no settings.",
            *_results(name, read_studies(results)),
            *_published(name),
        ]
    )


def _linked(text: str, name: str) -> str:
    """The text with links to the pages of other methods and of the documentation that it names."""
    others = "|".join(other for other in registry.names("method") if other != name)
    text = re.sub(rf"`({others})`", r"[`\1`](\1.md)", text)
    return re.sub(r"\bdocs/([\w/-]+)\.md\b", lambda path: f"[{_title(path[0])}](../../{path[1]}.md)", text)


def _title(page: str) -> str:
    """The title of a page of the repository."""
    return (ROOT / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _facts(name: str, module: ModuleType) -> str:
    traits = traits_of(module)
    method = make_method(name)
    loop = (
        "yes, [`isp.Pruner`](../../how-to/loops.md) takes it"
        if name in attachable()
        else "no, it trains the model more than once"
    )
    prunes = {"always": "in (0, 1)", "never": "0", "optionally": "in [0, 1)"}[traits.prunes]
    options = "" if traits.prunes == "never" else " --sparsity 0.9"
    rows = [
        ("Family", f"`{module.FAMILY}`: {prose(first_line(load_family(module.FAMILY).__doc__))}"),
        ("File", code(f"isp/methods/{name}.py")),
        ("Sparsity", prunes),
        ("N:M patterns", "yes, see [N:M sparsity](../../explanation/patterns.md)" if traits.patterns else "no"),
        ("In your own loop", loop),
        ("Chooses by validation scores", "yes, so compare its test scores" if chooses(method) else "no"),
        ("Try it", code(f"isp run --task digits --method {name}{options}")),
    ]
    return "\n".join(f"- **{what}**: {text}" for what, text in rows)


# --- results ----------------------------------------------------------------------------------------------------------


def _results(name: str, studies: Mapping[str, Study]) -> Iterator[str]:
    """The scores of a method in the reference results, a section for each study."""
    sections = {study: rows for study, each in studies.items() if (rows := list(_rows(name, each)))}
    if not sections:
        return
    yield "## Results"
    yield (
        f"Scores in percent in the [reference results](../../results/README.md): {tabular.OVER_SEEDS}. "
        "Steps are those of finding the mask and of training under it. The last column has what the paper reports for "
        "this task and sparsity with its larger model."
    )
    header = ("variant", "backbone", "task", "sparsity", "seeds", "validation", "test", "steps", "paper")
    for study, rows in sections.items():
        yield f"### [{study}](../../results/{study}/index.md)"
        yield table(header, rows)
        notes = "\n".join(
            f"- {variant}: {changed}"
            for variant in dict.fromkeys(row[0] for row in rows)
            if (changed := _changed(name, studies[study], variant.strip("`")))
        )
        if notes:
            yield f"Settings other than today's defaults:\n\n{notes}"
        elif not studies[study].variants:
            yield (
                "This study did not record its settings. What its variants are, and which of them an earlier version "
                "of the method ran, is in the [list of the results](../../results/README.md)."
            )


def _rows(name: str, study: Study) -> Iterator[tuple[str, ...]]:
    mine = [row for row in study.rows if row["method"] == name]
    for (task, backbone, variant, sparsity), rows in tabular.tickets(mine).items():
        steps = tabular.numbers(rows, "finding_steps", "retraining_steps")
        yield (
            code(variant),
            backbone,
            task,
            f"{float(sparsity):g}",
            str(len(rows)),
            tables.over_seeds(tabular.numbers(rows, "validation")),
            tables.over_seeds(tabular.numbers(rows, "test")),
            f"{sum(steps) / len(steps):,.0f}",
            beside(name, variant, backbone, task, sparsity),
        )


def beside(name: str, variant: str, backbone: str, task: str, sparsity: str) -> str:
    """Return the paper's score for a cell, by the paper's model that a backbone stands for; empty if there is none."""
    theirs = next((each for each, ours in _BESIDE.items() if backbone == each or backbone.startswith(ours)), "")
    cell = published.find(theirs, task, sparsity, published.names(variant, {variant: name}))
    return f"{_score(cell)} ({theirs})" if cell and cell.comparable else ""


def _changed(name: str, study: Study, variant: str) -> str:
    """The settings of a variant that differ from today's defaults, as `study.json` recorded them.

    A setting that it does not have is younger than the study, which an earlier version of the method may have run.
    """
    defaults = make_method(name).settings.model_dump(mode="json")
    recorded = study.variants.get(variant, {}).get("settings")
    if recorded is None:
        return ""
    changed = [f"`{key}: {json.dumps(value)}`" for key, value in recorded.items() if value != defaults.get(key)]
    if younger := [code(key) for key in defaults if key not in recorded]:
        changed.append(f"{' and '.join(younger)} did not exist yet")
    return ", ".join(changed)


def _published(name: str) -> Iterator[str]:
    """What the paper reports for a method."""
    rows = [cell for cell in published.cells() if _is_of(cell, name)]
    if not rows:
        return
    yield "## The paper's figures"
    yield f"Test scores in percent as printed ({published.CITATION}), over the paper's three seeds."
    numbers = {note: number for number, note in enumerate(dict.fromkeys(n for cell in rows for n in cell.notes), 1)}
    yield table(
        ("source", "row", "backbone", "task", "sparsity", "score", "note"),
        [
            (
                cell.source.replace("table", "Table "),
                cell.name,
                cell.backbone,
                cell.task,
                f"{float(cell.sparsity):g}" if cell.sparsity else "",
                _score(cell),
                ", ".join(str(numbers[note]) for note in cell.notes),
            )
            for cell in rows
        ],
    )
    if numbers:
        yield "\n".join(f"{number}. {note[0].upper()}{note[1:]}." for note, number in numbers.items())


def _is_of(cell: published.Published, name: str) -> bool:
    """Whether a published row is of a method; the rows of Tables 4, 5 and 7 are variants of ISP."""
    if name == "isp":
        return cell.name.startswith(("isp", "denoisers=", "look_ahead="))
    return cell.name == name or (name == "dense" and cell.name == "finetuned")


def _score(cell: published.Published) -> str:
    return f"{cell.score:.2f}" + ("" if cell.std is None else f" ± {cell.std:.2f}")
