"""The Python, shell and YAML blocks of the documentation work."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from PIL import Image

from isp import stages
from isp.cli import app
from isp.config import Group, load_study, parse_study
from isp.parsing import load_yaml
from isp.reporting import plan_tables
from tests.support.snippets import ROOT, SETUPS, SHORTER, blocks

KINDS = ("tutorial", "how-to", "reference", "explanation")
PAGES = [ROOT / "docs" / "index.md", *(page for kind in KINDS for page in sorted((ROOT / "docs" / kind).glob("*.md")))]
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config" / "README.md"]
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^ *```yaml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=named)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.process
def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block as it stands, export included, which starts a process; the other in a Trainer."""
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "README.md")
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def run_blocks(page: Path) -> None:
    """Run the Python blocks of a page in one namespace, after the set-up of the page."""
    torch.manual_seed(0)
    name = named(page)
    code, shorter = blocks(page), SHORTER.get(name, {})
    assert all(any(long in block for block, _ in code) for long in shorter)
    namespace: dict[str, Any] = {"isp": __import__("isp"), "torch": torch, **SETUPS.get(name, dict)()}
    for block, run in code:
        for long, short in shorter.items():
            block = block.replace(long, short)
        compiled = compile(block, name, "exec")
        if run:
            exec(compiled, namespace)


def test_every_set_up_is_of_a_page_with_blocks() -> None:
    assert {*SETUPS, *SHORTER} <= {named(page) for page in (*PAGES, ROOT / "README.md") if blocks(page)}


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the shell blocks of a page, without comments."""
    lines = [line for block in SHELL.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", [page for page in TEXTS if commands(page)], ids=named)
def test_shell_commands_exist(page: Path) -> None:
    """Commands of isp and their options exist, and so do study files of the repository and targets of make."""
    group: Any = typer.main.get_command(app)
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        assert [word for word in words if word.startswith("config/") and not (ROOT / word).exists()] == []
        if words[0] == "make":
            assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        if words[0] != "isp" or words[1].startswith(("<", "COMMAND")):
            continue
        if words[1] in stages.NAMES and words[1] != "plan":
            continue
        command = group.resolve_command(None, [words[1]])[1]
        options = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in options] == []


def test_the_tutorial_writes_the_image_that_it_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = commands(ROOT / "docs" / "tutorial" / "first-table.md")
    (code,) = (command[2] for command in words if command[:2] == ["python", "-c"])
    exec(compile(code, "first-table.md", "exec"), {})
    (predict,) = (command for command in words if command[:2] == ["isp", "predict"])
    assert Image.open(predict[predict.index("--image") + 1]).size == (8, 8)


@pytest.mark.parametrize("page", [page for page in TEXTS if commands(page)], ids=named)
def test_commands_are_found_in_a_new_shell(page: Path) -> None:
    """Commands are those of an active environment, which a block that installs into .venv activates."""
    words = commands(page)
    assert [command for command in words if command[0].startswith(".venv/")] == []
    for index, command in enumerate(words):
        if command == ["make", ".venv/installed"]:
            assert words[index + 1] == ["source", ".venv/bin/activate"]


MESSAGE = re.compile(r"^ *```\n *isp: (.*?)\n *```", re.MULTILINE | re.DOTALL)


def test_messages_on_pages_are_those_of_the_code() -> None:
    """Pages may leave out parts of a message (…); what they have of four words or more is in the code as it stands."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "isp").rglob("*.py")]
    words = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    code = "\n".join(word for word in words if isinstance(word, str))
    quoted = [part for page in TEXTS for text in MESSAGE.findall(page.read_text()) for part in re.split(r"…|\d+", text)]
    parts = [part.strip(" :") for part in quoted if len(part.split()) > 3]
    assert len(parts) >= 2
    assert [part for part in parts if part not in code] == []


def test_the_page_on_costs_names_files_as_a_plan_does() -> None:
    text = (ROOT / "docs" / "explanation" / "costs.md").read_text()
    assert [
        name for names in (plan_tables.KEPT, plan_tables.TEMPORARY) for name in names.values() if name not in text
    ] == []


STUDIES = [
    (page, content)
    for page in TEXTS
    for block in YAML.findall(page.read_text(encoding="utf-8"))
    if isinstance(content := yaml.safe_load(block), dict) and "study" in content
]


@pytest.mark.parametrize(("page", "content"), STUDIES, ids=[named(page) for page, _ in STUDIES])
def test_studies_are_valid(page: Path, content: dict[str, Any]) -> None:
    assert list(parse_study(content, named(page)).groups())


def test_the_tutorial_counts_its_cells() -> None:
    text = (ROOT / "docs/tutorial/first-table.md").read_text(encoding="utf-8")
    study = parse_study(load_yaml(YAML.findall(text)[0]), "tutorial")
    cells = sum(len(group.sparsities) for group in study.groups())
    assert f"That makes {cells} *cells*" in text


def test_the_table_of_the_tutorial_is_that_of_its_study() -> None:
    """Its rows are those of the default study's results, whose protocol and settings are the same."""
    text = (ROOT / "docs/tutorial/first-table.md").read_text(encoding="utf-8")
    study = parse_study(load_yaml(YAML.findall(text)[0]), "tutorial")
    default = load_study(ROOT / "config" / "config.yaml")
    (block,) = study.grid
    scores = (ROOT / "docs/results/quick/tables/scores.md").read_text(encoding="utf-8")
    header, rule, *rows = scores.split("\n\n")[0].splitlines()
    shown = [row for row in rows if row.split("|")[1].strip() in block.variants]
    assert len(shown) == len(block.variants)
    assert "\n\n" + "\n".join([header, rule, *shown]) + "\n\n" in text
    assert study.protocol(block.backbone, "digits") == default.protocol(block.backbone, "digits")
    assert all(study.method(name).settings == default.method(name).settings for name in block.variants)
    assert {cell for group in study.groups() for cell in cells_of(group)} <= {
        cell for group in default.groups() for cell in cells_of(group)
    }


def cells_of(group: Group) -> list[tuple[str, str, str, int, str]]:
    return [(group.backbone, group.task, group.variant, group.seed, str(each)) for each in group.sparsities]
