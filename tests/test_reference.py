"""The reference results in docs/results/, and the links of all pages."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from isp.config import load_study
from isp.files import read_json
from isp.reporting.collected import read
from isp.shapes import Description
from tools.docs.pages import sources

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "results"
STUDIES = sorted(path for path in REFERENCE.iterdir() if path.is_dir())
FILES = sorted(path for path in REFERENCE.rglob("*") if path.is_file())
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *(path for folder in ("docs", "config", "benchmarks") for path in sorted((ROOT / folder).rglob("*.md"))),
]
KEPT = 40_000
"""Largest size in bytes of a file that is neither metrics.csv nor the figure."""


def entry(study: Path) -> str:
    """The row of a study in the table of docs/results/README.md."""
    rows = [
        line for line in (REFERENCE / "README.md").read_text().splitlines() if line.startswith(f"| `{study.name}/`")
    ]
    assert len(rows) == 1, f"docs/results/README.md has {len(rows)} rows for {study.name}"
    return rows[0]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_reference_names_the_version_it_is_of(study: Path) -> None:
    assert (study / "metrics.csv").is_file()
    assert (study / "figures" / "score_by_sparsity.png").is_file()
    row = entry(study)
    if not (study / "study.json").exists():
        assert "no `study.json`" in row
        assert re.search(r"committed in [0-9a-f]{7,}", row)
        return
    read_json(study / "study.json", "describe", Description)
    provenance = json.loads((study / "study.json").read_text())["provenance"]
    assert f"commit {provenance['commit']}" in row
    assert ("with uncommitted changes" if provenance["modified"] else "a clean clone") in row
    assert {"AVX512": "AVX-512", "AVX2": "AVX2"}[provenance["packages"]["cpu"].split(", ")[1]] in row


def test_the_reference_of_the_default_study_has_its_cells() -> None:
    """`make run` ends with a comparison with it."""
    study = load_study(ROOT / "config" / "config.yaml")
    cells = {
        (group.backbone, group.task, group.variant, str(group.seed), str(sparsity))
        for group in study.groups()
        for sparsity in group.sparsities
    }
    rows = read(REFERENCE / "quick" / "metrics.csv", "metrics")
    assert {tuple(row[key] for key in ("backbone", "task", "variant", "seed", "sparsity")) for row in rows} == cells
    assert "isp compare results/quick docs/results/quick --summary" in (ROOT / "Makefile").read_text()


def test_references_are_small() -> None:
    sizes = {path: path.stat().st_size for path in FILES}
    assert sum(sizes.values()) < 3_000_000
    assert max(sizes.values()) < 1_000_000
    large = {path.relative_to(REFERENCE).as_posix() for path, size in sizes.items() if size > KEPT}
    assert large <= {
        f"{study.name}/{name}" for study in STUDIES for name in ("metrics.csv", "figures/score_by_sparsity.png")
    }
    assert {path.suffix for path in FILES} == {".csv", ".json", ".md", ".png"}
    assert len([path for path in FILES if path.suffix == ".png"]) == len(STUDIES)


def test_git_ignores_what_a_run_writes() -> None:
    assert {"/results/", "/resources/", ".snakemake/"} <= set((ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [page.parent / link.split("#")[0] for link in links if not re.match(r"https?:|mailto:|#", link)]
    generated = {ROOT / "docs" / path for path in sources()} if page.is_relative_to(ROOT / "docs") else set()
    assert [path for path in inside if not path.exists() and Path(os.path.normpath(path)) not in generated] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_references_exist(page: Path) -> None:
    named = re.findall(r"docs/results/[\w./]*\w", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9_000
