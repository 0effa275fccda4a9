"""The documentation site: generated pages, links and navigation; `make docs` builds it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel, Field

import isp
from isp import registry, stages
from isp.cli import app
from isp.files import read_csv
from isp.reporting import FIGURES, published
from isp.runtime.instructions import VARIABLES
from isp.workflow.rules import RULES
from tools.docs import (
    command_line,
    environment,
    links,
    markdown,
    methods,
    navigation,
    outputs,
    pages,
    study_file,
)

ROOT = Path(__file__).parents[1]
SOURCES = pages.sources()


@pytest.fixture(scope="module")
def page() -> Callable[[str], str]:
    made: dict[str, str] = {}
    return lambda path: made.setdefault(path, SOURCES[path]())


# --- generated pages --------------------------------------------------------------------------------------------------


def test_every_key_of_a_study_file_is_described() -> None:
    missing = [
        f"{model.__name__}.{name}"
        for _, model in study_file.SECTIONS
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert missing == []


def test_every_setting_of_a_method_is_described() -> None:
    modules = {name: registry.load("method", name) for name in registry.names("method")}
    missing = [
        f"{name}.{key}"
        for name, module in modules.items()
        for key, field in module.Settings.model_fields.items()
        if not field.description
    ]
    assert missing == []


def test_keys_show_what_a_model_accepts() -> None:
    class Model(BaseModel):
        needed: int = Field(ge=1, lt=2000, description="a | b")
        kind: str | None = Field(default=None, description="<name>")
        parts: list[float] = Field(default=[0.5], description="parts")

    assert study_file.keys(Model).splitlines()[2:] == [
        "| `needed` | integer ≥ 1, < 2,000 | required | a &#124; b |",
        "| `kind` | text or `null` | `null` | &lt;name> |",
        "| `parts` | list of number | `[0.5]` | parts |",
    ]


def test_every_block_of_a_study_file_has_a_section(page: Callable[[str], str]) -> None:
    text = page("reference/study-file.md")
    anchors = set(re.findall(r"\{#([\w-]+)\}", text))
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors
    assert len(anchors) == len(study_file.SECTIONS) - 1


def test_every_method_has_a_page(page: Callable[[str], str]) -> None:
    index = page("reference/methods/index.md")
    for name in registry.names("method"):
        text = page(f"reference/methods/{name}.md")
        assert f"]({name}.md)" in index
        assert markdown.prose(registry.summary("method", name)).split("`")[0] in text
        for key in registry.load("method", name).Settings.model_fields:
            assert f"| `{key}` |" in text


def test_a_method_s_page_has_its_scores_and_the_paper_s(page: Callable[[str], str]) -> None:
    """Every ticket of the reference results is in one row of its method's page."""
    for path in sorted((ROOT / "docs" / "results").glob("*/metrics.csv")):
        rows = list(read_csv(path, "collect"))
        for name in {row["method"] for row in rows}:
            cells = {
                (row["variant"], row["backbone"], row["task"], row["sparsity"]) for row in rows if row["method"] == name
            }
            section = page(f"reference/methods/{name}.md").split(f"### [{path.parent.name}](")[1].split("\n#")[0]
            shown = re.findall(r"^\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \|", section, re.MULTILINE)
            assert {(*cell[:3], float(cell[3])) for cell in shown} == {(*cell[:3], float(cell[3])) for cell in cells}
            assert len(shown) == len(cells)
    names = {cell.name for cell in published.cells()}
    for name in registry.names("method"):
        assert ("## The paper's figures" in page(f"reference/methods/{name}.md")) == (name in names)


def test_a_score_of_the_paper_is_beside_ours() -> None:
    assert methods.beside("lth", "lth", "clip_tiny", "mnist", "0.8000") == "99.38 (clip_vit_b32)"
    assert methods.beside("lth", "lth", "bert_tiny", "mnist", "0.8000") == ""
    assert methods.beside("early_bird", "early_bird", "clip_tiny", "mnist", "0.8000") == ""  # another EarlyBird


def test_every_command_and_option_is_described(page: Callable[[str], str]) -> None:
    text = page("reference/command-line.md")
    group: Any = typer.main.get_command(app)
    for name in [*group.commands, *stages.NAMES]:
        section = re.search(rf"^##+ isp {name}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, name
        for parameter in command_line.command(group, name).params:
            if parameter.name != "help":
                written = parameter.opts[0] if parameter.opts[0].startswith("--") else command_line.metavar(parameter)
                assert re.search(rf"^\| `{re.escape(written)}", section[1], re.MULTILINE), (name, written)


def test_every_public_name_is_in_the_api(page: Callable[[str], str]) -> None:
    assert {f"isp.{name}" for name in isp.__all__} <= set(
        re.findall(r"^::: (\S+)$", page("reference/python.md"), re.MULTILINE)
    )


def test_every_environment_variable_is_described() -> None:
    named = {variable.name for variable in environment.TABLE}
    assert len(named) == len(environment.TABLE)
    assert environment.used(ROOT) | set(VARIABLES) | {"HF_TOKEN"} == named


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("os.environ['A_B']", {"A_B"}),
        ("os.environ.get('A')", {"A"}),
        ("os.getenv('A', 'x')", {"A"}),
        ("'A' in os.environ", {"A"}),
        ("NAME = 'ISP_NEW'", {"ISP_NEW"}),
        ("names = ['A_B']", set()),
    ],
)
def test_uses_of_the_environment_are_seen(code: str, names: set[str], tmp_path: Path) -> None:
    for folder in ("isp", "workflow"):
        (tmp_path / folder).mkdir()
    (tmp_path / "isp" / "module.py").write_text(code)
    (tmp_path / "workflow" / "Snakefile").write_text("")
    assert environment.used(tmp_path) == names


def test_every_output_is_described(page: Callable[[str], str]) -> None:
    text = page("reference/outputs.md")
    assert [name for name in FIGURES if f"| `figures/{name}` |" not in text] == []
    paths = [path for rule in RULES.values() for path in (rule.output, *rule.beside) if path]
    assert [path for path in paths if f"| `{path}` |" not in text] == []
    assert dict(outputs.captions(ROOT)).keys() == set(FIGURES)
    tables = re.findall(r'"(\w+)\.md"|for name in \(("scores".*?)\)', (ROOT / "workflow/rules/report.smk").read_text())
    names = {name for single, several in tables for name in [single, *re.findall(r'"(\w+)"', several)] if name}
    assert names | {"plan"} == set(re.findall(r"^\| `tables/(\w+)` \|", text, re.MULTILINE))


# --- Markdown, links, navigation --------------------------------------------------------------------------------------


def test_docstrings_become_markdown() -> None:
    assert markdown.prose("Keep a * b of <name>, `|x|`:\n- one\n  more\n- two") == (
        "Keep a \\* b of &lt;name>, `|x|`:\n\n- one\n    more\n- two"
    )


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("[a](b.md)", "[a](b.md)"),
        ("[a](missing.md)", "[a](missing.md)"),  # for MkDocs to report
        ("[a](https://x.org/y.md)", "[a](https://x.org/y.md)"),
        ("[a](#b)", "[a](#b)"),
        ("[results](../results/quick#files)", "[results](../results/quick/index.md#files)"),
        ("[Makefile](../../Makefile)", "Makefile"),
        ("[config/README.md](../../config/README.md)", "`config/README.md`"),
        ("```\n[Makefile](../../Makefile)\n```", "```\n[Makefile](../../Makefile)\n```"),
    ],
)
def test_links_out_of_the_site(link: str, becomes: str) -> None:
    files = {"how-to/a.md", "how-to/b.md", "results/quick/index.md"}
    assert links.relocate(link, "how-to/a.md", files, ROOT, "") == becomes


def test_links_lead_to_the_repository_if_it_has_an_address() -> None:
    moved = links.relocate("[m](../../Makefile)", "how-to/a.md", set(), ROOT, "https://x.org/isp/")
    assert moved == "[m](https://x.org/isp/Makefile)"


def test_pages_that_the_navigation_does_not_name_are_added() -> None:
    given = [{"Start": "index.md"}, {"How-to": [{"More": ["how-to/b.md"]}]}, {"Reference": []}]
    files = ["index.md", "how-to/b.md", "how-to/a.md", "reference/methods/z.md", "reference/methods/index.md"]
    assert navigation.complete(given, files) == [
        {"Start": "index.md"},
        {"How-to": [{"More": ["how-to/b.md"]}, "how-to/a.md"]},
        {"Reference": [{"Methods": ["reference/methods/index.md", "reference/methods/z.md"]}]},
    ]


def test_the_navigation_names_only_pages_that_exist() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", text, re.MULTILINE)
    assert len(named) > 30
    assert [path for path in named if not (ROOT / "docs" / path).exists() and path not in SOURCES] == []


def test_the_site_needs_no_other_server() -> None:
    settings = yaml.load(re.sub("!!python/\\S+", "", (ROOT / "mkdocs.yml").read_text()), yaml.SafeLoader)
    assert settings["theme"]["font"] is False
    assert not any("offline" in plugin for plugin in settings["plugins"])  # it loads a script from another server
    assert settings["site_dir"].startswith("build/")
    assert "/build/" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_strict_build_counts_warnings() -> None:
    """MkDocs counts no warnings with --quiet, and then a broken link passes."""
    (command,) = re.findall(r"mkdocs build (.*?)(?: #|$)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command == "--strict"
