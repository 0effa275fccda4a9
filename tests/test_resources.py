"""What jobs ask of a cluster: by hand from the plan's rates; the profile for Slurm; the guard against running twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from isp.config import parse_study
from isp.errors import ConfigError, DataError, IspError
from isp.workflow import measuring, resources, slurm
from isp.workflow.jobs import Jobs
from isp.workflow.rates import Rates
from isp.workflow.resources import BASE_MB, COPY_MB, Requests, bound_rates
from isp.workflow.rules import RULES as RULES_AS_VALUES
from isp.workflow.running import num_target_jobs, start
from tests.support.studies import STUDY

ROOT = Path(__file__).parent.parent
PROFILE = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
UNLIMITED = SimpleNamespace(max_jobs_per_timespan=None)
CELL = {"study": "tiny", "backbone": "clip_tiny", "task": "digits", "seed": "0"}
RATES = Rates(
    step_flops=3 * 10**9,
    example_flops=10**8,
    step_seconds=0.0,
    example_seconds=0.0,
    selection_seconds=0.0,
    job_seconds=0.0,
    weights=10**8,  # 25 million weights
    prunable=2 * 10**7,
    activations=10**6,
    example=1000,
)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """T = 100 steps of 30; two look-aheads of 50 steps; 300 MFLOP a second, so that a step takes ten."""
    monkeypatch.setattr(resources, "bound_rates", lambda study, backbone, task: RATES)
    return Requests(parse_study({**STUDY, "throughput": 3e8}, "test"))


def wildcards(**more: str) -> Any:
    return SimpleNamespace(**CELL, **more)


def test_minutes_are_steps_at_the_throughput_twice_and_grow_with_the_attempt(requests: Requests) -> None:
    dense = wildcards(initial="pretrained")
    assert requests.runtime(dense, 1, "finetune_dense") == 10 + 34  # 2 x 1,000 s are 33.3 minutes
    assert requests.runtime(dense, 3, "finetune_dense") == 130
    of_round = wildcards(variant="isp", round="0", sparsity="0.5000")
    assert requests.runtime(of_round, 1, "prune_denoised") == 10 + 34  # two copies of 50 steps
    assert requests.runtime(wildcards(), 1, "collect") == 30


def test_no_job_asks_for_more_minutes_than_a_partition_gives(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISP_LONGEST_MINUTES", "100")
    dense = wildcards(initial="pretrained")
    assert [requests.runtime(dense, attempt, "finetune_dense") for attempt in (1, 2, 3)] == [44, 87, 100]


@pytest.mark.parametrize("value", ["a day", "0", "nan", ""])
def test_a_longest_time_that_is_none(requests: Requests, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ISP_LONGEST_MINUTES", value)
    with pytest.raises(ConfigError, match=f"ISP_LONGEST_MINUTES must be .*, got '{value}'"):
        requests.runtime(wildcards(), 1, "collect")


def test_planning_asks_for_what_training_does(requests: Requests) -> None:
    """Rates may be measured, on every model of the study."""
    dense = requests.mem_mb(wildcards(initial="pretrained"), 1, "finetune_dense")
    assert requests.mem_mb(wildcards(), 1, "plan") == dense > BASE_MB


def test_megabytes_are_copies_of_the_weights_and_grow_with_the_attempt(requests: Requests) -> None:
    """Training: 12 copies of 100 MB, 6 x 80 MB of scores, 30 examples of 2 MB, 1 MB of data (digits: 900 of 1 kB)."""
    held = 1200 + 480 + 60 + 0.9
    dense = wildcards(initial="pretrained")
    assert requests.mem_mb(dense, 1, "finetune_dense") == pytest.approx(BASE_MB + held, abs=1)
    assert requests.mem_mb(dense, 2, "finetune_dense") == pytest.approx(1.5 * (BASE_MB + held), abs=1)
    assert requests.mem_mb(wildcards(), 1, "tables") == BASE_MB
    # Magnitudes and their sum in fp64, a bit for each of two copies; copies side by side hold as much, each.
    of_round, rule = wildcards(variant="isp", round="0", sparsity="0.5000"), "prune_denoised"
    alone = BASE_MB + held + (12 + 2 / 8) * 20
    beside = alone + 2 * (alone - BASE_MB + COPY_MB)
    assert requests.mem_mb(of_round, 1, rule) == pytest.approx(alone, abs=1)
    assert requests.mem_mb(of_round, 1, rule, 2) == pytest.approx(beside, abs=1)
    assert requests.mem_mb(of_round, 1, rule, 64) == pytest.approx(beside, abs=1)


def test_on_a_gpu_activations_are_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "bound_rates", lambda study, backbone, task: RATES)
    on_gpu = Requests(parse_study({**STUDY, "device": "cuda"}, "test"))
    assert on_gpu.mem_mb(wildcards(initial="pretrained"), 1, "finetune_dense") == BASE_MB + 1681


def test_every_job_of_the_smoke_study_can_be_estimated(requests: Requests) -> None:
    study = parse_study(yaml.safe_load((ROOT / "config/smoke.yaml").read_text()), "smoke")
    smoke = Requests(study)
    for job in Jobs(study).by_output.values():
        assert smoke.held(job) > 0, job
        assert smoke.seconds(job) >= 0, job


def names_of_rules() -> set[str]:
    return set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)(?: with)?:", RULES, re.M))


def test_every_rule_asks_for_memory_and_time(requests: Requests) -> None:
    """A rule that is used as another one asks for the same."""
    rules = re.findall(r"^rule (\w+):", RULES, re.M)
    assert RULES.count("mem_mb=requests.mem_mb,\n        runtime=requests.runtime,") == len(rules)
    assert set(RULES_AS_VALUES) == names_of_rules() - {"all"}


def test_a_backbone_that_is_not_there_yet_is_taken_for_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Rates:
        raise DataError("no config.json")

    monkeypatch.setattr(resources, "bound_rates", missing)
    found = Requests(parse_study(STUDY, "test")).mem_mb(wildcards(initial="pretrained"), 1, "finetune_dense")
    assert found > 12 * 1400


def test_nothing_is_counted_where_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "bound_rates", lambda *_: pytest.fail("count_rates"))
    local = Requests(parse_study(STUDY, "test"), asked=False)
    assert local.mem_mb(wildcards(initial="pretrained"), 1, "finetune_dense") == BASE_MB


def test_rates_are_counted_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = parse_study(STUDY, "test")
    found = bound_rates(study, "clip_tiny", "digits")
    (kept,) = tmp_path.glob("resources/rates/clip_tiny.*.json")
    monkeypatch.setattr(measuring, "count_rates", lambda *_, **__: pytest.fail("counted again"))
    assert bound_rates(study, "clip_tiny", "digits") == found
    whole = json.loads(kept.read_text())
    monkeypatch.setattr(measuring, "count_rates", lambda *_, **__: found)
    for content in ({"of": "another version"}, [], {**whole, "weights": "1"}, {**whole, "weights": float("nan")}):
        kept.write_text(json.dumps(content))
        assert bound_rates(study, "clip_tiny", "digits") == found
        assert json.loads(kept.read_text()) == whole


def test_what_a_forward_pass_keeps_is_counted_by_hand() -> None:
    """Two matrices and a sigmoid keep the inputs of both products and what the sigmoid gave, which is one of them."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 3, bias=False))
    batch = torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)
    losses = 4 * 3 * 4 + 4 * 8 + 4  # log-probabilities, labels, the sum of their weights
    assert measuring._kept_for_backward(model, batch) == 4 * (4 * 6 + 4 * 5) + losses


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--executor", "slurm-jobstep", "--jobs", "1"], "True"),
        (["--cores", "1"], "False"),
        (["--cores", "1", "--resources", "mem_mb=4000"], "True"),
    ],
)
def test_memory_and_time_are_estimated_on_a_cluster(tmp_path: Path, options: list[str], expected: str) -> None:
    """Asked of a real Snakemake, which does not know its executor yet when it reads the Snakefile."""
    (tmp_path / "Snakefile").write_text(
        "from isp.workflow.running import limits_jobs\nprint('estimated:', limits_jobs(workflow))\n"
    )
    command = [sys.executable, "-m", "snakemake", "--dry-run", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert f"estimated: {expected}" in done.stdout + done.stderr


def test_members_of_a_group_are_counted() -> None:
    assert (
        num_target_jobs(
            ["snakemake", "--target-jobs", "train_segment:round=0", "prune_denoised:round=0", "--cores", "1"]
        )
        == 2
    )
    assert num_target_jobs(["snakemake", "--cores", "1", "--target-jobs", "retrain:sparsity=0.5000"]) == 1
    assert num_target_jobs(["snakemake", "--cores", "1"]) == 0


# --- the profile and the guard ----------------------------------------------------------------------------------------


def test_the_profile_groups_rules_that_there_are_by_wildcards_that_they_have() -> None:
    assert set(PROFILE["groups"]) <= names_of_rules()
    known = {"backbone", "task", "seed", "variant", "round", "sparsity"}
    for pattern in PROFILE["groups"].values():
        assert set(re.findall(r"{(\w+)}", pattern)) <= known


RUN = "isp_0f8fad5b-d9cb-469f-a165-70867728950e"


def test_jobs_of_other_folders_and_other_programs_are_nobodys_business() -> None:
    listing = f"{RUN}|/work/a\n{RUN}|/work/a\n{RUN}|/work/b\nmy_job|/work/a\n"
    assert slurm.runs_in(listing, Path("/work/a")) == {RUN: 2}
    assert slurm.runs_in(listing, Path("/work/c")) == {}


def test_a_start_beside_jobs_of_a_killed_snakemake_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/usr/bin/squeue")
    done = subprocess.CompletedProcess([], 0, f"{RUN}|/work/a\n{RUN}|/work/a\n", "")
    monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(IspError, match=rf"2 of run {RUN}.*scancel --name={RUN}"):
        slurm.refuse_twice(Path("/work/a"))
    slurm.refuse_twice(Path("/work/b"))
    failed = subprocess.CompletedProcess([], 1, "", "slurm_load_jobs error: Unable to contact slurm controller\n")
    monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(IspError, match=r"squeue.*: slurm_load_jobs error: Unable to contact"):
        slurm.refuse_twice(Path("/work/b"))


def test_a_cluster_whose_profile_does_not_count_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--profile is loaded beside the profile of this machine, whose resources win."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "refuse_twice", lambda folder: None)
    dag, study = SimpleNamespace(jobs=[]), parse_study(STUDY, "test")
    cluster = {"local_exec": False, "dag": dag, "scheduling_settings": UNLIMITED}
    start(SimpleNamespace(**cluster, global_resources={"turn": 1}), study)
    with pytest.raises(IspError, match="pass it as --workflow-profile"):
        start(SimpleNamespace(**cluster, global_resources={"gpu": 1}), study)


def test_files_without_a_record_of_their_settings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those that will be made again, and not those that are recorded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "refuse_twice", lambda folder: None)
    for name in ("orphan", "stale", "recorded"):
        Path(name).touch()
    made = [SimpleNamespace(output=[name]) for name in ("orphan", "stale", "recorded", "deleted")]
    dag = SimpleNamespace(jobs=made, needrun=lambda job: job.output == ["stale"])
    known = SimpleNamespace(metadata=lambda path: {"recorded": "yes"}.get(path))
    workflow = SimpleNamespace(
        **{"local_exec": False, "dag": dag, "persistence": known, "global_resources": {"turn": 1}},
        scheduling_settings=UNLIMITED,
    )
    start(workflow, parse_study(STUDY, "test"))
    printed = capsys.readouterr().err
    assert "Snakemake has no record of the settings of 1 existing file, such as orphan. " in printed
    assert "A change of settings would not remake it. If it belongs to the study as it is now, " in printed
    known.metadata = lambda path: None
    start(workflow, parse_study(STUDY, "test"))
    printed = capsys.readouterr().err
    assert "Snakemake has no record of the settings of 2 existing files, such as orphan. " in printed
    assert "A change of settings would not remake them. If they belong to the study as it is now, " in printed
