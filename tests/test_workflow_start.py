"""What is read and refused before a run begins."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from isp.config import parse_study
from isp.workflow.rules import make_dag
from isp.workflow.running import command, load
from tests.support.studies import ROOT
from tests.support.workflow import (
    RUN,
    SMOKE,
    changed,
    snakemake,
)


def test_what_is_compared() -> None:
    """Blocks add up; only runs with two masks of one sparsity are compared, and only those masks."""
    study = yaml.safe_load(SMOKE.read_text())
    block = study["grid"][0]
    study["grid"] = [
        {**block, "variants": ["dense", "random", "one_shot"], "sparsities": ["0.5", "0.6"], "seeds": [0]},
        {**block, "variants": ["isp"], "sparsities": ["0.5", "0.7"], "seeds": [0, 1]},
        {**block, "variants": ["dense"], "sparsities": [], "seeds": [2]},
    ]
    study["variants"] = {name: study["variants"][name] for name in ("dense", "random", "one_shot", "isp")}
    dag = make_dag(parse_study(study, "here"))
    assert dag.similarities() == [str(RUN / "similarity.json")]
    w: Any = SimpleNamespace(study="smoke", backbone="clip_tiny", task="digits", seed="0")
    at_50 = [f"{RUN}/{name}/0.5000/ticket.safetensors" for name in ("random", "one_shot", "isp")]
    at_60 = [f"{RUN}/{name}/0.6000/ticket.safetensors" for name in ("random", "one_shot")]
    assert dag.rule("compare_masks").inputs(w) == {"tickets": [*at_50, *at_60]}


def test_only_evaluate_reads_test_examples() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    readers = []
    for rule in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]:
        inputs = re.search(r"^    input:\n((?:        .*\n)+)", rule, re.MULTILINE)
        if inputs and '"test"' in inputs[1]:
            readers.append(rule.split(":")[0])
    assert readers == ["evaluate"]
    choosers = re.findall(r"^rule (\w+):(?:(?!^rule ).)*?^        validation=", text, re.MULTILINE | re.DOTALL)
    assert sorted(choosers) == [
        *("choose_members", "evaluate", "merge_subnetworks", "pool_tickets"),
        "prepare",  # writes them
    ]
    assert text.count('"{split}", "test"') == 2  # and prepare, which writes them


def test_no_text_of_a_study_is_a_param_that_snakemake_expands() -> None:
    """In a plain string it replaces names in braces; such params hold paths of the study's folder only."""
    plain = {
        line.strip()
        for path in (ROOT / "workflow" / "rules").glob("*.smk")
        for block in re.findall(r"    params:\n((?:        .*\n)+)", path.read_text())
        for line in block.splitlines()
        if not re.match(r" +\w+=(lambda w\b|verbatim\(|dag\.\w+(\.(settings|version))?,)|^         |^        \)", line)
    }
    assert plain == {
        *('runs=f"{paths.STUDY}/runs",', "folder=paths.STUDY,"),
        *('folder=f"{paths.STUDY}/tables",', 'folder=f"{paths.STUDY}/figures",'),
    }


@pytest.mark.process
def test_a_clone_may_lie_anywhere(tmp_path: Path) -> None:
    """Snakemake expands braces in some paths."""
    clone = tmp_path / "a {b} {{c}} 'd' \"e\" $f ü"
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, clone / part)
    shutil.copy(ROOT / "environment.yml", clone)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(clone / "workflow/Snakefile"), "--dry-run"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "jobs to run; this was a dry run" in done.stdout + done.stderr


def test_the_environment_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a PATH; no Python below looks for modules in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("ISP_STUDY", "ISP_DATA_ROOT", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
    monkeypatch.delenv("PATH")
    settings = SimpleNamespace(nodes=None)
    workflow = SimpleNamespace(configfiles=[], resource_settings=settings, is_main_process=True)
    load(workflow, yaml.safe_load(SMOKE.read_text()))
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    assert os.environ["PYTHONSAFEPATH"] == "1"


TEN_JOBS = """
import threading
from isp.workflow.running import select_only_after_jobs

rule all:
    input: [f"{n}.txt" for n in range(10)]

rule one:
    output: "{n}.txt"
    shell: "touch {output}"

onstart:
    select_only_after_jobs(workflow)

onsuccess:
    print("timers:", sum(isinstance(each, threading.Timer) for each in threading.enumerate()))
"""


@pytest.mark.process
@pytest.mark.parametrize(("options", "timers"), [([], 0), (["--max-jobs-per-timespan", "200/2s"], 1)])
def test_snakemake_selects_jobs_only_after_jobs(tmp_path: Path, options: list[str], timers: int) -> None:
    """Every timer causes another selection of jobs, and another timer; a limit that is given stays."""
    (tmp_path / "Snakefile").write_text(TEN_JOBS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--scheduler", "greedy", *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"timers: (\d+)", done.stdout + done.stderr)
    assert (int(found) > 0) == (timers > 0)


@pytest.mark.process
def test_a_study_file_inherits_nothing(tmp_path: Path) -> None:
    nameless = yaml.safe_load(SMOKE.read_text())
    del nameless["study"]
    (tmp_path / "nameless.yaml").write_text(yaml.safe_dump(nameless))
    done = snakemake(tmp_path, "--dry-run", study=tmp_path / "nameless.yaml")
    assert done.returncode
    assert "isp: nameless.yaml: missing key 'study'" in done.stdout + done.stderr


def test_the_command_that_runs_it_again_holds_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(config: dict[str, Any], *files: str) -> str:
        settings = SimpleNamespace(
            configfiles=[Path(file).absolute() for file in files or ("config/code.yaml",)], config=config
        )
        return command(SimpleNamespace(config_settings=settings))

    assert given({}) == "snakemake --configfile config/code.yaml"
    told = given({"data_root": "/home/me/data", "question": "why not"})
    assert told == "snakemake --configfile config/code.yaml --config data_root=FOLDER 'question=why not'"
    odd = {"question": "it's; rm -rf $HOME\n&", "device": "cpu"}
    words = ["snakemake", "--configfile", "my studies/$(a) 'b';.yaml", "--config", f"question={odd['question']}"]
    assert shlex.split(given(odd, words[2])) == [*words, "device=cpu"]
    assert given({}, "a.yaml", "b.yaml") == "snakemake --configfile a.yaml b.yaml"  # it takes the option only once
    for folder in (tmp_path, ROOT.parent):  # the command is for the folder of the repository
        monkeypatch.chdir(folder)
        assert given({}, str(ROOT / "config/code.yaml")) == "snakemake --configfile config/code.yaml"
    monkeypatch.chdir(tmp_path)
    assert given({}, "mine.yaml") == "snakemake --configfile mine.yaml"
    assert given({}, "/elsewhere/mine.yaml") == "snakemake --configfile /elsewhere/mine.yaml"


@pytest.mark.process
def test_a_malformed_study_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(changed("variants.isp.settings.rule", "vote")))
    done = snakemake(tmp_path, study=tmp_path / "bad.yaml")
    assert done.returncode
    assert (
        "bad.yaml: variants.isp: settings of method 'isp': rule = 'vote': input should be 'mean_score', 'votes', "
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()
