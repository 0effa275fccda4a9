"""The page of a study: one self-contained HTML file.

It is a pure function of the collected data, figures and tables: equal inputs give equal bytes. The template escapes all
text and shows control characters as Python escapes, and the page's content security policy lets a browser load and run
only what the page contains.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from isp.reporting import alt, tables, tabular
from isp.reporting.drawing import DPI
from isp.reporting.grids import Cell, Grid, aligned, grids, of_markdown
from isp.reporting.tabular import Row
from isp.reporting.verdict import Verdict, seeds_note, verdicts
from isp.untrusted import printable

LONGEST = 400
"""Maximum number of rows of a part of a table that is shown; longer parts are only linked."""
OPEN = 200
"""Maximum number of rows of a table that is shown unfolded."""
SCREEN = 96
"""Resolution in pixels per inch that browsers assume."""


Known = tuple[str, Mapping[str, Any], list[tuple[str, str]]]
"""Name, description and settings (as texts) of a variant or task."""


@dataclass(frozen=True)
class Contents:
    """Contents of a page; only `metrics` is required.

    Names are those of files without suffix. Markdown is used for tables that have no rows. `links` are addresses of
    files beside the page, relative to it. `reference` is the variant that the verdict compares with the others; empty
    for none.
    """

    metrics: Sequence[Row]
    study: Mapping[str, Any] = field(default_factory=dict)
    layers: Iterable[Row] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    markdown: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    drawn: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    links: Sequence[str] = ()
    reference: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    name: str
    title: str
    alt: str
    caption: str
    source: str
    width: int
    height: int
    links: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """A table on the page: the parts to show, and the titles and numbers of rows of parts that are too long."""

    name: str
    title: str
    caption: str
    rows: int
    parts: tuple[Grid, ...]
    long: tuple[tuple[str, int], ...]
    links: tuple[str, ...]

    @property
    def open(self) -> bool:
        """Whether the table is shown unfolded."""
        return self.rows <= OPEN


@dataclass(frozen=True)
class Section:
    """A section of the page with its figures and tables."""

    id: str
    title: str
    intro: str = ""
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


SECTIONS = (
    Section("scores", "Scores", figures=("score_by_sparsity",)),
    Section("statistics", "Statistics", tables=("statistics",)),
    Section(
        "paper",
        "Beside the paper",
        "Test scores in the form of the paper’s tables and figures.",
        ("paper",),
        ("paper",),
    ),
    Section(
        "cost",
        "Cost against accuracy",
        "The cost of finding a mask and of training under it. Compare methods by steps and FLOPs: seconds are valid "
        "for one machine only, and no run was faster because its weights were zero.",
        ("score_by_cost",),
        ("spending", "costs"),
    ),
    Section("plan", "Plan and reality", "Estimates before the run, and measurements of the run.", tables=("plan",)),
    Section(
        "denoisers", "Denoisers", "The effect of look-ahead copies in each round.", ("denoisers", "agreement_by_layer")
    ),
    Section(
        "masks",
        "Masks",
        "Which weights the methods keep.",
        ("mask_similarity_by_sparsity", "mask_similarity", "layer_sparsity", "mask_similarity_by_layer"),
        ("similarity",),
    ),
)
"""Sections with their figures and tables, by names or prefixes of names. All others are in the last section."""
_SHOWN_OTHERWISE = ("scores",)
"""Tables that are not shown because the verdict contains them."""
_TITLES = {
    "score_by_sparsity": "Score by sparsity",
    "score_by_cost": "Score by cost",
    "denoisers": "Changes by denoisers",
    "agreement_by_layer": "Agreement of weak masks by layer",
    "mask_similarity": "Pairwise similarity of masks",
    "mask_similarity_by_sparsity": "Similarity to a reference mask by sparsity",
    "mask_similarity_by_layer": "Similarity to a reference mask by layer",
    "layer_sparsity": "Sparsity by layer",
    "spending": "Cost of finding and of retraining",
    "costs": "Scores and costs",
    "similarity": "Similarity of masks",
    "statistics": "Intervals and differences",
    "paper": "In the form of the paper's tables",
    "paper_figure_1": "Figure 1 of the paper, for this study",
    "paper_figure_3": "Figure 3 of the paper, for this study",
    "plan": "Planned and actual",
}


def render(contents: Contents) -> str:
    """Render the page as HTML."""
    page: str = _template().render(page=_Page(contents))
    return page + "\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: (
            type(value)(printable(value)) if isinstance(value, str) else value
        ),  # Markup stays Markup
    )
    environment.filters |= {"address": quote, "percent": tabular.percent, "count": "{:,.0f}".format}
    return environment.from_string(_file("page.html"))


def caption_of(text: str, **wildcards: str) -> str:
    """Render a caption of Snakemake's report, a template with the wildcards of a job, as plain text."""
    caption: str = jinja2.Template(text).render(snakemake={"wildcards": wildcards})
    return caption.strip()


def _of(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping under a key; empty if there is none."""
    return values.get(key) or {}


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class _Page:
    """Values that the template uses."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._study = _of(contents.study, "study")
        self.metrics = contents.metrics
        self.css, self.js = Markup(_file("page.css")), Markup(_file("page.js"))
        warning = tables.collapse(contents.layers)  # only once, because rows may be an iterator
        self.collapsed = [line[2:] for line in warning.splitlines() if line.startswith("- ")]
        self._listings = self._tables()
        self.sections = [section for section in self._sections() if section.figures or section.tables]

    @property
    def policy(self) -> str:
        """Content security policy: images embedded in the page, its own style and script."""
        style, script = (_base64(hashlib.sha256(text.encode()).digest()) for text in (self.css, self.js))
        allowed = f"style-src 'sha256-{style}'; script-src 'sha256-{script}'"
        return f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'"

    @property
    def name(self) -> str:
        return str(self._study.get("study") or next(iter(tabular.distinct(self.metrics, "study")), "study"))

    @property
    def question(self) -> str:
        return str(self._contents.study.get("question") or "").strip()

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Numbers of variants, methods, tasks, backbones, seeds and tickets."""
        pruned = [row for row in self.metrics if float(tabular.cell(row, "sparsity"))]
        counted = [
            (len(tabular.distinct(self.metrics, "variant")), "variant"),
            (len(tabular.distinct(self.metrics, "method")), "method"),
            (len(tabular.distinct(self.metrics, "task")), "task"),
            (len(tabular.distinct(self.metrics, "backbone")), "backbone"),
            (len(tabular.distinct(self.metrics, "seed")), "seed"),
            (len(pruned), "pruned ticket"),
        ]
        return [(f"{count:,}", word + "s" * (count != 1)) for count, word in counted]

    @property
    def verdicts(self) -> list[Verdict]:
        return verdicts(self.metrics, self._contents.reference)

    @staticmethod
    def cells(verdict: Verdict) -> dict[tuple[str, str], Cell]:
        """Return the scores of the pruned variants by variant and sparsity, aligned in each column."""
        found: dict[tuple[str, str], Cell] = {}
        for sparsity in verdict.sparsities:
            lines = [line for line in verdict.pruned if sparsity in line.scores]
            texts = [Cell(line.scores[sparsity].text, line.scores[sparsity].mean) for line in lines]
            found |= {(line.variant, sparsity): cell for line, cell in zip(lines, aligned(texts), strict=True)}
        return found

    @property
    def seeds_note(self) -> str:
        return seeds_note(self.metrics, any(name.startswith("statistics") for name in self._contents.tables))

    @property
    def has_costs(self) -> bool:
        """Whether the page shows the table of costs, which contains test scores."""
        return any("costs" in section.tables for section in self.sections)

    @property
    def _variants(self) -> Mapping[str, Mapping[str, Any]]:
        return _of(self._contents.study, "variants")

    @property
    def variants(self) -> list[Known]:
        """Variants with their descriptions and settings."""
        names = list(self._variants) or tabular.distinct(self.metrics, "variant")
        methods = {row["variant"]: tabular.cell(row, "method") for row in self.metrics}
        found = []
        for name in names:
            known: Mapping[str, Any] = {"method": methods.get(name, ""), **_of(self._variants, name)}
            found.append((name, known, _pairs(_of(known, "settings"))))
        return found

    @property
    def protocols(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Training protocol of each backbone."""
        return [(name, _pairs(values)) for name, values in _of(self._study, "training").items()]

    @property
    def tasks(self) -> list[Known]:
        found = []
        for name in list(_of(self._contents.study, "tasks")) or tabular.distinct(self.metrics, "task"):
            known = _of(_of(self._contents.study, "tasks"), name)
            found.append((name, known, _pairs({key: known[key] for key in known if key != "summary"})))
        return found

    @property
    def command(self) -> str:
        return str(_of(self._contents.study, "provenance").get("command") or "")

    @property
    def commit(self) -> str:
        """Commit to check out to rerun the study; empty if the code was modified or the commit is unknown."""
        found = _of(self._contents.study, "provenance")
        return "" if found.get("modified") else str(found.get("commit") or "")

    @property
    def provenance(self) -> list[tuple[str, str]]:
        found = dict(_of(self._contents.study, "provenance"))
        if found.pop("modified", False):
            found["commit"] = f"{found.get('commit') or 'unknown'}, with uncommitted changes"
        known = {key: value for key, value in found.items() if key not in ("command", "packages") and value}
        return _pairs(
            {key: self._study[key] for key in ("device", "threads", "instruction_set") if key in self._study} | known
        )

    @property
    def packages(self) -> list[tuple[str, str]]:
        return _pairs(_of(_of(self._contents.study, "provenance"), "packages"))

    @property
    def links(self) -> Sequence[str]:
        return self._contents.links

    def pictures(self, section: Section) -> list[Picture]:
        return [self._picture(name) for name in section.figures]

    def listings(self, section: Section) -> list[Listing]:
        return [self._listings[name] for name in section.tables]

    def _sections(self) -> Iterable[Section]:
        """Yield each section with its existing figures and tables."""
        left = Section(
            "more",
            "More figures and tables",
            figures=tuple(self._contents.figures),
            tables=tuple(name for name in self._listings if name not in _SHOWN_OTHERWISE),
        )
        for section in SECTIONS:
            own = replace(
                section,
                figures=_belonging(section.figures, left.figures),
                tables=_belonging(section.tables, left.tables),
            )
            left = replace(
                left,
                figures=tuple(name for name in left.figures if name not in own.figures),
                tables=tuple(name for name in left.tables if name not in own.tables),
            )
            yield own
        yield left

    def _picture(self, name: str) -> Picture:
        content = self._contents.figures[name]
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
        source = f"data:image/png;base64,{_base64(content)}"
        shown = (round(width * SCREEN / DPI), round(height * SCREEN / DPI))
        text = alt.describe(name, self._contents.drawn.get(name, ()))
        caption = self._contents.captions.get(f"figures/{name}", "")
        return Picture(name, _title(name), text, caption, source, *shown, self._beside("figures", name))

    def _tables(self) -> dict[str, Listing]:
        """Return the listings of all tables by name."""
        contents, found = self._contents, {}
        for name in dict.fromkeys((*contents.tables, *contents.markdown)):
            if name in contents.tables:
                parts, legend = grids(contents.tables[name]), ""
            else:
                parts, legend = of_markdown(contents.markdown[name])
            count = sum(len(part.body) for part in parts)
            if count:
                caption = contents.captions.get(f"tables/{name}", legend)
                shown = tuple(part for part in parts if len(part.body) <= LONGEST)
                long = tuple((part.title, len(part.body)) for part in parts if part not in shown)
                links = self._beside("tables", name)
                found[name] = Listing(name, _title(name), caption, count, shown, long, links)
        return found

    def _beside(self, folder: str, name: str) -> tuple[str, ...]:
        """Return the links to the files of a figure or table."""
        return tuple(link for link in self.links if f"/{link}".rpartition(".")[0].endswith(f"/{folder}/{name}"))


def _belonging(keys: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that equal a key or begin with one, in the order of the keys."""
    found = [name for key in keys for name in names if name == key or name.startswith(f"{key}_")]
    return tuple(dict.fromkeys(found))


def _title(name: str) -> str:
    return _TITLES.get(name) or name.replace("_", " ").capitalize()


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return keys and values as texts; values that are not texts become JSON."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in values.items()
        if value is not None
    ]
