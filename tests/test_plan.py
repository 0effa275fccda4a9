"""The plan of a study: its jobs are Snakemake's, its steps those by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from isp.backbones import _bert as bert
from isp.config import load_study, parse_study
from isp.errors import DataError
from isp.reporting import plan_tables
from isp.training import state_of
from isp.workflow import measuring
from isp.workflow.jobs import Job, Jobs
from isp.workflow.measuring import measure_rates, rates_at, time_overhead
from isp.workflow.plan import Plan
from isp.workflow.rates import Rates
from isp.workflow.rules import RULES
from isp.workflow.starts import Starts
from tests.support.backbones import SMALL_BERT, bert_folder
from tests.support.studies import ROOT, STUDY

RATES = Rates(
    step_flops=10,
    example_flops=1,
    step_seconds=1.0,
    example_seconds=0.5,
    selection_seconds=0.25,
    job_seconds=2.0,
    weights=400,
    prunable=80,
    activations=7,
    example=3,
)


ONE = [{**STUDY["grid"][0], "variants": ["isp"], "sparsities": [0.5]}]


def plan(**more: Any) -> Plan:
    jobs = Jobs(parse_study({**STUDY, **more}, "test"))
    return Plan(jobs=jobs, rates={("clip_tiny", "digits"): RATES}, throughput=1.0, parallel=2)


@pytest.mark.process
@pytest.mark.parametrize("name", ["smoke", "config", "soups", "paper", "code"])
def test_the_jobs_are_those_of_the_workflow(name: str, tmp_path: Path) -> None:
    file = ROOT / "config" / f"{name}.yaml"
    if name == "paper":  # 4,363 jobs a seed, which test_workflow_reruns.py reads from the files of rules
        study = yaml.safe_load(file.read_text())
        for block in study["grid"]:
            block["tasks"] = [task for task in block["tasks"] if task in ("cars", "svhn", "qnli", "wnli")]
            block["seeds"] = block["seeds"][:1]
        study["grid"] = [block for block in study["grid"] if block["tasks"]]
        used = {variant for block in study["grid"] for variant in block["variants"]}
        study["variants"] = {variant: study["variants"][variant] for variant in study["variants"] if variant in used}
        file = tmp_path / "paper.yaml"
        file.write_text(yaml.safe_dump(study, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--configfile", str(file), "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    table = re.findall(r"^  (\w+) +(\d+)  ", done.stdout, re.MULTILINE)
    found = {rule: int(count) for rule, count in table if rule not in ("all", "total")}
    jobs = Jobs(load_study(file))
    planned = dict(jobs.shared)
    for job in jobs.by_output.values():
        planned[job.rule] = planned.get(job.rule, 0) + 1
    assert {rule: count for rule, count in planned.items() if count} == found


def test_steps_and_sharing_by_hand() -> None:
    """t = 3 steps: round 0 ends at 3, round 1 at 9; two copies of 50 steps a round; LTH's first round is a ticket."""
    found = plan().as_json()
    rules = {row["rule"]: (row["jobs"], row["steps"]) for row in found["rules"]}
    assert rules["finetune_dense"] == (1, 100)
    assert rules["train_segment"] == (2, 9)
    assert rules["prune_denoised"] == (2, 200)
    assert rules["retrain"] == (4, 97 + 91 + 100 + 100)
    assert rules["evaluate"] == (5, 0)
    isp = next(row for row in found["variants"] if row["variant"] == "isp")
    assert isp["steps"] == 9 + 200 + 97 + 91
    assert isp["steps_alone"] == (100 + 100) + (100 + 200)  # at 0.5 one round of two copies, at 0.75 two
    lth = next(row for row in found["variants"] if row["variant"] == "lth")
    assert (lth["steps"], lth["steps_alone"]) == (300, 200 + 300)
    assert found["total"]["steps"] == 100 + 9 + 200 + 388
    assert found["without_sharing"]["steps"] == 100 + 500 + 500


def test_savings_by_hand() -> None:
    """Of 100 + 500 + 500 steps alone, sharing leaves 697; comparisons of masks are not part of the cost of a ticket."""
    costs = plan().as_json()["with_sharing"]
    assert (costs["jobs"], costs["seconds"]) == (12, 697 + 2 * 12)  # 2 s of each of 18 jobs but 5 evaluations and one
    rates = replace(RATES, step_seconds=1e-4, example_seconds=0.0, job_seconds=0.0)
    quick = replace(plan(), rates={("clip_tiny", "digits"): rates}).as_json()
    assert quick["with_sharing"]["seconds"] == pytest.approx(0.0697)
    assert quick["without_sharing"]["seconds"] == pytest.approx(0.11)
    assert "sharing saves 37%" in plan_tables.lines(quick)  # 1 - 0.0697 / 0.11


def test_flops_seconds_and_bytes_by_hand() -> None:
    made = plan()
    job = next(job for job in made.jobs.by_output.values() if job.rule == "evaluate")
    assert job.scored == 200 + 1200 // 5  # the test split is assumed to be a fifth
    assert (made.flops(job), made.seconds(job)) == (440, 2 + 220)
    (dense,) = [job for job in made.jobs.by_output.values() if job.rule == "finetune_dense"]
    assert (made.flops(dense), made.seconds(dense), made.disk(dense)) == (1000, 102, 400 + 10)
    masks = [job for job in made.jobs.by_output.values() if job.rule in ("prune_denoised", "prune_iterative")]
    assert [(made.disk(mask), mask.temporary) for mask in masks] == [(10, False)] * 4
    overhead = {row["rule"]: row["overhead_seconds"] for row in made.as_json()["rules"]}
    assert (overhead["prune_denoised"], overhead["retrain"]) == (2 * 2, 4 * 2)  # two seconds a job
    disk = made.as_json()["disk"]
    # Round 1 trains under a mask of 0.5: it writes 40 of the 80 prunable weights and two moments of each, and the mask.
    assert disk["temporary"] == 3 * 400 + 3 * (400 - 160) + 10
    assert disk["peak"] == disk["kept"] + 2 * 1200
    # Tickets of the dense run, and of two variants at 0.5 and 0.75; five masks of rounds and of one shot.
    tickets = (400 + 10) + 2 * (400 - 160 + 10) + 2 * (400 - 240 + 10)
    assert disk["kept"] == tickets + 10 * len(masks)  # the initial state is in the weights file
    assert disk["kept_by_kind"] == {"ticket": tickets, "mask": 10 * len(masks)}
    assert disk["temporary_by_kind"] == {"state": 3 * 400 + 3 * (400 - 160) + 10}
    assert disk["chain"] == 2 * 1200


def test_copies_that_run_apart_are_processes_that_start_too() -> None:
    apart = {row["rule"]: row for row in plan(look_aheads="apart").as_json()["rules"]}
    together = {row["rule"]: row for row in plan().as_json()["rules"]}
    assert apart["prune_denoised"]["overhead_seconds"] == 2 * (1 + 2) * 2  # two rounds of two copies, two seconds each
    assert apart["prune_denoised"]["seconds"] - together["prune_denoised"]["seconds"] == 2 * 2 * 2
    assert {name: row for name, row in apart.items() if name != "prune_denoised"} == {
        name: row for name, row in together.items() if name != "prune_denoised"
    }


def test_a_ticket_takes_its_kept_and_unpruned_weights_and_a_bit_for_each_prunable_one() -> None:
    made = plan()
    by_sparsity = {
        job.output.split("/")[-2]: made.disk(job) for job in made.jobs.by_output.values() if job.rule == "retrain"
    }
    assert by_sparsity == {"0.5000": 20 * 4 + 40 * 4 + 10, "0.7500": 20 * 4 + 20 * 4 + 10}


def test_tickets_of_rounds_that_are_no_result_are_temporary() -> None:
    """To 0.75 the rounds are 0.5 and 0.75, to 0.9 two more; a hidden chain of rounds is for pooling alone."""
    variants = {
        "lth": {"method": "lth", "settings": {"rate": 0.5}},
        "v1.5": {"method": "lth", "settings": {"rate": 0.5, "scope": "layer"}},
        "pools": {"method": "lottery_pools", "settings": {"rate": 0.6, "coefficients": [0.5]}},
    }
    grid = [
        {**STUDY["grid"][0], "variants": ["lth", "pools"], "sparsities": [0.75, 0.9]},
        {**STUDY["grid"][0], "variants": ["v1.5"], "sparsities": [0.5, 0.75]},  # 0.5 is a result of this one only
    ]
    other = {**STUDY["grid"][0], "tasks": ["mnist"], "variants": ["lth"], "sparsities": [0.75]}
    of_cells = Jobs(parse_study({**STUDY, "variants": variants, "grid": [*grid, other]}, "test")).by_output
    elsewhere = {
        path.split("/")[-2]: job.rule for path, job in of_cells.items() if "/mnist/" in path and "ticket" in path
    }
    assert elsewhere == {"0.5000": "retrain_round", "0.7500": "retrain"}
    jobs = Jobs(parse_study({**STUDY, "variants": variants, "grid": grid}, "test"))
    made = Plan(jobs=jobs, rates={("clip_tiny", "digits"): RATES}, throughput=1, parallel=2)
    rules: dict[str, set[str]] = {"retrain": set(), "retrain_round": set()}
    for job in jobs.by_output.values():
        if job.rule in rules:
            rules[job.rule].add("/".join(job.output.split("/")[-3:-1]))
    chain = next(name for name in jobs.dag.all_variants if name.startswith("pools") and name != "pools")
    assert rules["retrain"] == {"lth/0.7500", "lth/0.9000", "v1.5/0.5000", "v1.5/0.7500"}
    assert rules["retrain_round"] == {
        *("lth/0.5000", "lth/0.8750", f"{chain}/0.6000", f"{chain}/0.8400"),
        *(f"{chain}/0.7500", f"{chain}/0.9000"),
    }
    disk, of = made.as_json()["disk"], {s: round(410 - 320 * s) for s in (0.5, 0.6, 0.75, 0.84, 0.875, 0.9)}
    lth, pooled = of[0.5] + of[0.875], of[0.6] + of[0.75] + of[0.84] + of[0.9]
    assert disk["temporary"] == lth + pooled
    assert disk["peak"] == disk["kept"] + lth + pooled  # two chains side by side


def test_selections_within_a_run_by_hand(golden: Callable[[str, str], None]) -> None:
    """Movement at steps 20, 40, 60 and 80 of 100; the paper's baseline at 10, 20, … to 0.5, and three more to 0.75."""
    variants = {
        "movement": {"method": "movement", "settings": {"every": 20}},
        "progressive": {"method": "progressive"},
        "isp_code": {"method": "isp_code", "settings": {"rate": 0.5, "segment_fraction": 0.1}},
    }
    study = {**STUDY, "variants": variants, "grid": [{**STUDY["grid"][0], "variants": list(variants)}]}
    made = Plan(jobs=Jobs(parse_study(study, "test")), rates={("clip_tiny", "digits"): RATES}, throughput=1, parallel=2)
    jobs = [job for job in made.jobs.by_output.values() if job.rule == "find_ticket"]
    movement, periodic, code = ([job for job in jobs if job.variant == name] for name in variants)
    assert [job.selections for job in movement] == [4, 4]
    assert sorted(job.selections for job in periodic) == [5, 8]
    assert {job.selections for job in code} == {0}
    assert {made.seconds(job) for job in movement} == {2 + 100 + 4 * 0.25}
    content = made.as_json()
    assert content["total"]["selections"] == 8 + 13
    assert content["selection_hours"] == 21 * 0.25 / 3600
    row = next(row for row in content["variants"] if row["variant"] == "movement")
    assert (row["selections"], row["seconds"]) == (8, 2 + 2 * 103)
    assert "select 21 masks" in plan_tables.lines(content)
    assert "select" not in plan_tables.lines(plan().as_json())
    golden("plan", plan_tables.lines(plan().as_json()))
    golden("plan_with_selections", plan_tables.lines(content))


def test_flops_are_those_that_training_counts() -> None:
    study = parse_study(STUDY, "test")
    found = rates_at(study, "clip_tiny", "digits", throughput=1e9, overhead=3.0)
    assert found.prunable == 196_608
    assert found.job_seconds == 3
    assert found.step_seconds == found.step_flops / 1e9
    assert found.selection_seconds == pytest.approx(196_608 * 3.5e-8)
    assert found.known_lengths


def test_soups_by_hand() -> None:
    """Three members and four share theirs, the dense run among them; two subnetworks and ten coefficients."""
    study = {**STUDY, "variants": {"dense": {"method": "dense"}, "uniform": {"method": "uniform_soup"}}}
    study["variants"]["uniform"]["settings"] = {"members": 3}
    study["variants"]["greedy"] = {"method": "greedy_soup", "settings": {"members": 4}}
    study["variants"]["instant"] = {"method": "instant_model_soup", "settings": {"subnetworks": 2}}
    study["grid"] = [{**STUDY["grid"][0], "variants": list(study["variants"]), "sparsities": []}]
    made = Plan(jobs=Jobs(parse_study(study, "test")), rates={("clip_tiny", "digits"): RATES}, throughput=1, parallel=2)
    found = {row["rule"]: (row["jobs"], row["steps"]) for row in made.as_json()["rules"]}
    assert (found["finetune_dense"], found["train_member"], found["train_subnetwork"]) == ((1, 100), (3, 300), (2, 200))
    assert found["retrain"] == (1, 100)
    jobs = {job.rule: job for job in made.jobs.by_output.values()}
    assert (jobs["choose_members"].scored, jobs["merge_subnetworks"].scored) == (7 * 200, 21 * 200)
    disk = made.as_json()["disk"]  # members are dense; what the subnetworks are merged to is a state
    assert disk["temporary_by_kind"] == {"ticket": 3 * 410, "weights": 2 * 400, "state": 400}
    assert disk["temporary"] == 3 * 410 + 2 * 400 + 400
    assert disk["kept_by_kind"] == {"ticket": 4 * 410, "mask": 10}  # of the soups and the dense run; the merged mask
    assert disk["chain"] == 3 * 410


def test_overhead_by_hand() -> None:
    """Two seconds a job; a model takes 1, a byte read 0.01, a byte written 0.1, ranking 5 on the CPU, 0.25 on a GPU."""
    rates = replace(RATES, build_seconds=1, read_seconds=0.01, write_seconds=0.1, ranking_seconds=5, example=2)
    study = parse_study(STUDY, "test")
    made = Plan(jobs=Jobs(study), rates={("clip_tiny", "digits"): rates}, throughput=1.0, parallel=2)
    train, held_out, dense = study.num_train("digits") * 2, 440 * 2, 410
    overhead = {}
    for job in made.jobs.by_output.values():
        overhead.setdefault(job.rule, made.overhead_seconds(job))
    assert overhead["initialise"] == pytest.approx(2 + 1 + 0.01 * (400 + train))  # the weights file; next to nothing
    assert overhead["finetune_dense"] == pytest.approx(2 + 1 + 0.01 * (400 + train) + 0.1 * dense)
    by_output = {job.output.split("seed0/")[-1]: job for job in made.jobs.by_output.values()}
    state, mask = 1200, 10
    superposed = by_output["isp/round0/to0.5000/mask.safetensors"]  # ranked: two copies, all of them, the weights
    begins = 2 + 1 + 0.01 * (state + train)
    assert made.overhead_seconds(superposed) == pytest.approx(begins + 4 * 5 + 0.1 * mask)
    apart = replace(made, jobs=Jobs(parse_study({**STUDY, "look_aheads": "apart"}, "test")))
    assert apart.overhead_seconds(superposed) == pytest.approx(3 * begins + 4 * 5 + 0.1 * mask)
    pruned = by_output["lth/round0/to0.5000/mask.safetensors"]
    assert made.overhead_seconds(pruned) == pytest.approx(2 + 5 + 0.01 * dense + 0.1 * mask)
    scored = by_output["dense/0.0000/metrics.json"]
    assert made.overhead_seconds(scored) == pytest.approx(2 + 1 + 0.01 * (dense + held_out))
    content = made.as_json()
    total = sum(map(made.overhead_seconds, made.jobs.by_output.values()))
    assert content["total"]["overhead_seconds"] == pytest.approx(total, abs=0.1)
    assert "starts" not in content
    shot = parse_study({**STUDY, "variants": {"isp": {"method": "one_shot"}}, "grid": ONE, "device": "cuda"}, "test")
    on_gpu = Plan(jobs=Jobs(shot), rates={("clip_tiny", "digits"): rates}, throughput=1.0, parallel=1)
    (job,) = [job for job in on_gpu.jobs.by_output.values() if job.rule == "prune_one_shot"]
    assert on_gpu.overhead_seconds(job) == pytest.approx(2 + 1 + 0.25 + 0.01 * (400 + train) + 0.1 * mask)


def test_overhead_of_masked_values_and_of_examples_by_hand() -> None:
    """A value under a mask takes 0.001 more to write and 0.002 to read; a fork server's jobs verify examples once."""
    rates = replace(
        RATES, read_seconds=0.01, write_seconds=0.1, compress_seconds=0.001, expand_seconds=0.002, example=2
    )
    study = parse_study({**STUDY, "look_aheads": "together"}, "test")
    alone = Plan(jobs=Jobs(study), rates={("clip_tiny", "digits"): rates}, throughput=1.0, parallel=2)
    by_output = {job.output.split("seed0/")[-1]: job for job in alone.jobs.by_output.values()}
    first, second = (by_output[f"isp/round{number}/state.safetensors"] for number in (0, 1))
    train, dense, mask = study.num_train("digits") * 2, 1200, 10
    sparse = dense - 3 * 4 * float(second.sparsity) * 80 + mask  # weights and moments under the first round's mask
    assert alone.overhead_seconds(first) == pytest.approx(2 + 0.01 * (400 + train) + 0.1 * dense)
    begins = 2 + 0.01 * (dense + mask + train)
    assert alone.overhead_seconds(second) == pytest.approx(begins + 0.1 * sparse + 0.001 * 3 * 80)
    (ticket,) = [job for job in by_output.values() if job.rule == "finetune_dense"]
    scored = by_output["dense/0.0000/metrics.json"]
    assert alone.overhead_seconds(ticket) == pytest.approx(2 + 0.01 * (400 + train) + 0.1 * 410 + 0.001 * 80)
    assert alone.overhead_seconds(scored) == pytest.approx(2 + 0.01 * (410 + 440 * 2) + 0.002 * 80)
    served = replace(alone, starts=Starts(warm=0.5, cold=2.0, snakemake_start=0.0))
    assert served.overhead_seconds(second) == pytest.approx(alone.overhead_seconds(second) - 0.01 * train)
    assert served.overhead_seconds(scored) == pytest.approx(alone.overhead_seconds(scored) - 0.01 * 440 * 2)
    jobs = alone.jobs.by_output.values()
    on_cluster = served.as_json()["starts"]["overhead_seconds_on_cluster"]  # every job in a fresh process
    assert on_cluster == pytest.approx(sum(map(alone.overhead_seconds, jobs)) + len(jobs) * (2.0 - 0.5))


def test_measured_starts_are_shown_with_the_share_of_a_cluster() -> None:
    """Jobs take 0.5 + 0.25 s here, 4 + 2 x 3 s as entries of a cluster's queue."""
    starts = Starts(warm=0.5, cold=4.0, snakemake_job=0.25, snakemake_start=3.0)
    assert (starts.here, starts.on_cluster) == (0.75, 10)
    rates = {("clip_tiny", "digits"): replace(RATES, job_seconds=starts.here, read_seconds=2e-9, expand_seconds=3e-9)}
    made = Plan(jobs=Jobs(parse_study(STUDY, "test")), rates=rates, throughput=1.0, parallel=2, starts=starts)
    content, jobs = made.as_json(), len(made.jobs.by_output)
    assert content["total"]["overhead_seconds"] == pytest.approx(0.75 * jobs, abs=0.1)
    assert content["starts"]["overhead_seconds_on_cluster"] == pytest.approx(10 * jobs, abs=0.1)
    said = plan_tables.lines(content)
    assert "Measured on this machine: a stage through the fork server 0.50 s, a stage in a fresh process 4.00 s" in said
    files = (
        "reading it 2.00 s per GB, writing it 0.00 s per GB, each value under a mask 3.00 ns more to read and 0.00 ns"
    )
    assert f"building clip_tiny 0.00 s, ranking it 0.00 s, {files} to write." in said
    work = content["total"]["seconds"] - content["total"]["overhead_seconds"]
    assert f"{10 * jobs / 3600:,.2f} hours, {10 * jobs / (work + 10 * jobs):.1%}." in said
    taken = {row["rule"]: [1800.0] * row["jobs"] for row in content["rules"]}
    (rules, _) = plan_tables.comparison({**content, "variants": []}, taken, [])
    (members,) = [line for line in rules[1] if line[0] == "prune_denoised"]
    assert members[3:5] == [f"{4 * 50 / 60:.2f}", "60.00"]  # what is compared are stages, without their starts
    alone = replace(made, starts=Starts(cold=4.0)).as_json()
    assert alone["starts"]["overhead_seconds_on_cluster"] is None
    assert "on a cluster" not in plan_tables.lines(alone)


def test_only_random_initial_states_are_written_whole() -> None:
    study = {**STUDY, "variants": {"dense": {"method": "dense"}, "scratch": {"method": "dense", "initial": "random"}}}
    study["grid"] = [{**STUDY["grid"][0], "variants": list(study["variants"]), "sparsities": []}]
    jobs = Jobs(parse_study(study, "test")).by_output.values()
    assert {job.output.split("/")[-1]: job.weights for job in jobs if job.rule == "initialise"} == {
        **{"pretrained.safetensors": 0, "random.safetensors": 1}
    }


def test_rules_and_their_values_agree_on_what_is_temporary_and_what_is_read() -> None:
    """`temp(...)`, and parts of prepared examples among the inputs, in a rule and in the value of its name."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    blocks = re.split(r"^(?:rule|use rule \w+ as) (\w+)(?::| with:)$", text, flags=re.MULTILINE)[1:]
    flagged = {name: "temp(" in block for name, block in zip(blocks[::2], blocks[1::2], strict=True)}
    assert flagged == {name: rule.temporary or rule.temporary_beside for name, rule in RULES.items()}
    read = {name: _parts_read(block) for name, block in zip(blocks[::2], blocks[1::2], strict=True)}
    read["retrain_round"] = read["retrain"]  # it has what it does not say otherwise
    assert read == {name: set(rule.reads) for name, rule in RULES.items()}


def _parts_read(block: str) -> set[str]:
    inputs = re.search(r"^    input:\n((?:        .*\n)+)", block, re.MULTILINE)
    return set(re.findall(r'PREPARED.replace\("{split}", "(\w+)"\)', inputs[1])) if inputs else set()


def test_a_backbone_of_ones_own_is_measured_by_its_files_below_data_root(tmp_path: Path) -> None:
    """Only its config.json says what it looks like, and the plan must look where the data are, as the rule does."""
    bert_folder(tmp_path / "me/mine", bert.build(SMALL_BERT, 3).state_dict())
    study = {
        **STUDY,
        "define": {"backbones": {"mine": {"family": "bert", "id": "me/mine", "max_length": 16}}},
        "training": {"mine": {"steps": 20, "batch_size": 4, "learning_rate": 1e-3}},
        "variants": {"dense": {"method": "dense"}},
        "grid": [{"backbone": "mine", "tasks": ["half_order"], "variants": ["dense"], "seeds": [0]}],
    }
    with pytest.raises(DataError, match=r"config.json"):
        measure_rates(parse_study(study, "test"), "mine", "half_order", 3.0)
    there = parse_study({**study, "data_root": str(tmp_path)}, "test")
    found = measure_rates(there, "mine", "half_order", 3.0)
    assert min(found.step_seconds, found.example_seconds, found.selection_seconds) > 0
    assert found.job_seconds == 3
    beside = time_overhead(there, "mine", "half_order")
    masked = {"compress_seconds", "expand_seconds"}  # in so small a model they may be lost in the noise
    assert beside.keys() == {"build_seconds", "read_seconds", "write_seconds", "ranking_seconds"} | masked
    assert min(value for name, value in beside.items() if name not in masked) > 0
    assert min(beside.values()) >= 0
    assert found.known_lengths  # estimated from the texts, which are there
    study["grid"][0]["tasks"] = ["cola"]
    cola = parse_study({**study, "data_root": str(tmp_path)}, "test")
    unknown = rates_at(cola, "mine", "cola", 1e9, 0)
    assert not unknown.known_lengths  # assumed to be the longest
    assert unknown.step_flops > found.step_flops
    text = (ROOT / "workflow/rules/report.smk").read_text()
    assert 'isp plan {params.study} --data-root "$ISP_DATA_ROOT"' in text


def test_the_timed_steps_are_of_the_texts_whose_flops_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that are not prepared yet: six words and two marks make eight tokens, of at most 16."""
    bert_folder(tmp_path / "me/mine", bert.build(SMALL_BERT, 3).state_dict())
    folder = tmp_path / "me/short/data"
    folder.mkdir(parents=True)
    texts = pa.table({"text": ["one two three four five six"] * 40, "label": [0, 1] * 20})
    parquet.write_table(texts, folder / "train-00000-of-00001.parquet")
    short = {"kind": "texts", "id": "me/short", "inputs": ["text"], "classes": ["a", "b"], "num_examples": 40}
    tasks = {"short": short | {"metrics": ["accuracy"]}}
    study = {
        **STUDY,
        "data_root": str(tmp_path),
        "define": {"backbones": {"mine": {"family": "bert", "id": "me/mine", "max_length": 16}}, "tasks": tasks},
        "training": {"mine": {"steps": 20, "batch_size": 4, "learning_rate": 1e-3}},
        "variants": {"dense": {"method": "dense"}},
        "grid": [{"backbone": "mine", "tasks": ["short"], "variants": ["dense"], "seeds": [0]}],
    }
    timed: dict[str, Any] = {}
    monkeypatch.setattr(
        measuring,
        "_add_times",
        lambda rates, trainer, scored: timed.update(trainer=trainer, scored=scored) or rates,
    )
    found = measure_rates(parse_study(study, "test"), "mine", "short", 3.0)
    assert found.known_lengths
    assert timed["scored"].lengths.tolist() == [8] * 36
    trainer = timed["trainer"]
    _, cost = trainer.run(state_of(trainer.model), 2)
    assert cost.flops * 4 // measuring.COUNTED == 2 * found.step_flops  # it is told the FLOPs of a smaller batch


def test_a_plan_beside_its_run() -> None:
    content = plan().as_json()
    seconds = {row["rule"]: [1800.0] * row["jobs"] for row in content["rules"]}
    metrics = [
        {"backbone": "clip_tiny", "variant": variant, **dict.fromkeys(keys, "50")}
        for variant in ("dense", "isp", "isp", "lth", "lth")
        for keys in [("finding_steps", "retraining_steps", "finding_flops", "retraining_flops")]
    ]
    rules, variants = plan_tables.comparison(content, seconds, metrics)
    lines = {line[0]: line[1:] for line in rules[1]}
    assert lines["prune_denoised"] == ["2", "2", "3.40", "60.00", f"{3600 / (2 * 102):.2f}"]
    assert {line[0]: line[1:3] for line in variants[1]}["isp on clip_tiny"] == ["500", "200"]
    assert "all" in lines


def test_a_job_is_found_by_its_output() -> None:
    jobs = Jobs(parse_study(STUDY, "test"))
    job = jobs.by_output["results/tiny/runs/clip_tiny/digits/seed0/isp/round1/to0.7500/mask.safetensors"]
    assert isinstance(job, Job)
    assert (job.rule, job.variant, job.steps, job.place) == ("prune_denoised", "isp", 100, ("clip_tiny", "digits"))
    assert len(job.inputs) == 2
    assert Decimal("0.75") in jobs.dag.chain(
        type("W", (), {"variant": "isp", "backbone": "clip_tiny", "sparsity": "0.75"})
    )  # type: ignore[arg-type]
