"""The lock files, the conda environment and the project's own requirements say the same."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import isp
from tools import wheel

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
TOOLS = (ROOT / "requirements-dev.lock").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(lines: list[str] = LOCK) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {normal(requirement.name): requirement for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lines", [LOCK, TOOLS], ids=["results", "tools"])
def test_a_lock_holds_exact_versions_and_no_addresses(lines: list[str]) -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+( ; .*)?", line) for line in lines)


def test_the_locks_cover_what_the_project_needs() -> None:
    """Except the extra `accelerate`: it changes no bit, and its tests skip without it."""
    optional = PROJECT["optional-dependencies"]
    results = [*PROJECT["dependencies"], *optional["workflow"], *optional["slurm"]]
    tools = [*optional["docs"], *optional["dev"], *optional["trainer"]]
    assert {*optional} == {"workflow", "slurm", "docs", "dev", "trainer", "accelerate"}
    for lines, versions in ((results, locked()), (tools, locked() | locked(TOOLS))):
        for line in lines:
            needed = Requirement(line)
            (version,) = versions[normal(needed.name)].specifier
            assert needed.specifier.contains(version.version), line


def test_tools_do_not_change_what_results_depend_on() -> None:
    """A package that both need has the same version in both, and is in the second only where its condition differs."""
    both = locked().keys() & locked(TOOLS).keys()
    assert {name: locked()[name].specifier for name in both} == {name: locked(TOOLS)[name].specifier for name in both}
    assert not {*LOCK} & {*TOOLS}
    tools = {Requirement(line).name for extra in ("docs", "dev") for line in PROJECT["optional-dependencies"][extra]}
    assert not {normal(name) for name in tools - {"packaging"}} & locked().keys()


def test_the_conda_environment_is_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": LOCK}
    assert environment["dependencies"][0] == "python=3.11"


def test_the_version_is_the_same_everywhere() -> None:
    assert isp.__version__ == PROJECT["version"]
    assert f"## {isp.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == isp.__version__


def test_every_file_of_the_package_is_installed() -> None:
    """What is not Python is in a wheel only if it is named."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    named = {
        path
        for package, globs in data.items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    found = {path for path in (ROOT / "isp").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert found == named


@pytest.mark.parametrize("name", ["torch", "torchvision", "open_clip_torch", "numpy"])
def test_what_is_installed_is_what_is_locked(name: str) -> None:
    """The results of this project depend on these versions; on other machines the code may run with others."""
    (wanted,) = locked()[normal(name)].specifier
    if Path(metadata.distribution(name).locate_file("")).is_relative_to(ROOT / ".venv"):
        assert metadata.version(name).split("+")[0] == wanted.version
    else:
        pytest.skip("not the environment that the Makefile makes")


@pytest.mark.parametrize(
    ("study", "page", "table"),
    [
        ("quick", "default-study", "scores"),
        ("full", "full", "scores"),
        ("ablation_rule", "superposition", "scores"),
        ("ablation_denoisers", "superposition", "scores"),
        ("ablation_look_ahead", "superposition", "scores"),
        ("ablation_diversity", "superposition", "scores"),
        ("ablation_rate", "superposition", "scores"),
        ("soups", "soups", "scores"),
        ("code", "code", "scores"),
        ("protocol_bert_mrpc", "protocol", "paper"),
        ("protocol_bert_cola", "protocol", "paper"),
        ("protocol_clip_cifar10", "protocol", "paper"),
        ("protocol_clip_gtsrb", "protocol", "paper"),
        ("protocol_clip_mnist", "protocol", "paper"),
    ],
)
def test_pages_show_the_reference_results(study: str, page: str, table: str) -> None:
    """No number is typed into a table of scores."""
    folder = ROOT / "docs" / "results" / study
    assert (folder / "tables" / f"{table}.md").read_text() in (ROOT / f"docs/explanation/{page}.md").read_text()
    assert (folder / "figures" / "score_by_sparsity.png").exists()


# --- files for the host of the repository -----------------------------------------------------------------------------


def test_the_hosts_workflows_run_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))
    (path,) = (ROOT / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(path.read_text())["jobs"]
    assert set(jobs) == {"check", "smoke", "wheel", "docs"}
    commands = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    made = {words[1] for words in commands if words[0] == "make"}
    assert made == {"check", "docs", "test-wheel", ".venv/installed"}
    assert made <= targets
    for words in commands:
        if "--configfile" in words:
            assert (ROOT / words[words.index("--configfile") + 1]).is_file()
    assert jobs["check"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert jobs["wheel"]["strategy"]["matrix"]["extra"] == wheel.choices()


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert lint is not None
    for hook in local["hooks"]:
        assert f"$(BIN)/{hook['name']}" in lint[1]


def test_the_workflow_catalogue_is_told_what_the_rules_can_do() -> None:
    """Its page shows deployment by conda and apptainer, which every rule of the workflow must have."""
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"] == {"conda": True, "apptainer": True, "apptainer+conda": False}
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    assert rules.count("    shell:\n") == rules.count("    conda:\n")
    assert 'container: "isp.sif"' in (ROOT / "workflow" / "Snakefile").read_text()
    assert (ROOT / "config" / "README.md").is_file()


def test_nothing_is_installed_from_an_index_where_isp_is_not() -> None:
    """On an index, the name may be that of another project, so commands install from a clone."""
    paths = [path for folder in ("isp", "docs") for kind in ("*.py", "*.md") for path in (ROOT / folder).rglob(kind)]
    texts = {path: path.read_text(encoding="utf-8") for path in (*paths, ROOT / "README.md")}
    assert [path for path, text in texts.items() if re.search(r"pip install [^\n]*\bisp\b\[?", text)] == []


def test_an_image_for_cpus_has_no_libraries_of_cuda() -> None:
    (pattern,) = re.findall(r"sed -E '/(.*?)/d' requirements.lock", (ROOT / "Dockerfile").read_text())
    kept = [line for line in LOCK if not re.search(pattern, line)]
    left_out = {Requirement(line).name for line in LOCK} - {Requirement(line).name for line in kept}
    assert {"torch", "torchvision", "numpy"} <= {Requirement(line).name for line in kept}
    assert {"triton", "cuda-toolkit", "nvidia-cublas"} <= left_out
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in left_out)
