"""The workflow on the smoke study: a real Snakemake in a temporary folder."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

import isp
from isp import artifacts, cli, registry
from isp.backbones import _bert as bert
from isp.config import Study, load_study, parse_study
from isp.definitions import task_of
from isp.evaluation import evaluate as score
from isp.preparation import limited
from isp.reporting import FIGURES
from isp.runtime.watch import has_finished
from isp.stages.evaluate import evaluate
from isp.tickets import Ticket
from isp.workflow.jobs import Jobs
from isp.workflow.rules import make_dag
from isp.workflow.running import command, load
from isp.workflow.status import find_study, log_of, look, read_plan, report
from tests.support.backbones import SMALL_BERT, bert_folder
from tests.support.data import imitate
from tests.support.models import equal as same

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "config" / "smoke.yaml"
RUN = Path("results/smoke/runs/clip_tiny/digits/seed0")
COMMAND = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]


def snakemake(folder: Path, *options: str, study: Path = STUDY) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--configfile", str(study), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def smoke(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the smoke study was run, its backbone pre-trained for three steps."""
    folder = tmp_path_factory.mktemp("smoke")
    shutil.copytree(short_pretraining, folder / "resources")
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_row_for_every_ticket_and_every_output(smoke: Path) -> None:
    folder, study = smoke / "results/smoke", load_study(STUDY)
    cells = [(g.variant, str(s)) for g in study.groups() for s in g.sparsities]
    for name in ("metrics", "timings"):
        assert [(row["variant"], row["sparsity"]) for row in rows(folder / f"{name}.csv")] == cells
    for row in rows(folder / "metrics.csv"):
        assert int(row["zero_weights"]) == round(float(row["sparsity"]) * 196_608)
        assert int(row["retraining_steps"]) + int(row["finding_steps"]) >= 12
    assert not {"seconds", "peak_memory_mb"} & rows(folder / "metrics.csv")[0].keys()
    for figure in FIGURES:
        for suffix in ("png", "pdf", "csv"):
            assert (folder / "figures" / f"{figure}.{suffix}").stat().st_size > 0
    for name in ("scores", "costs", "similarity", "spending", "statistics", "paper"):
        for suffix in ("csv", "md"):
            assert "isp_votes" in (folder / "tables" / f"{name}.{suffix}").read_text()
    assert r"isp\_votes" in (folder / "tables/paper.tex").read_text()
    assert {row["variant"] for row in rows(folder / "rounds.csv")} == {
        *("isp", "isp_n0", "isp_mean", "isp_votes", "isp_layer", "isp_literal", "isp_code")
    }


def test_the_study_says_what_it_is_and_what_it_was_run_with(smoke: Path) -> None:
    text = (smoke / "results/smoke/study.json").read_text()
    content, study = json.loads(text), load_study(STUDY)
    assert list(content["variants"]) == list(study.variants)
    assert content["variants"]["isp"]["settings"]["rule"] == "union"
    assert content["tasks"]["digits"]["steps"] == {"clip_tiny": 12}
    assert content["provenance"]["command"].endswith("config/smoke.yaml")
    assert content["provenance"]["packages"]["torch"]
    assert "data_root" not in content["study"]


def test_the_plan_came_true(smoke: Path) -> None:
    """Steps to the last one, FLOPs but for the scores of one-shot methods; `isp_code` may stop before its rounds do."""
    folder = smoke / "results/smoke"
    plan, metrics = json.loads((folder / "plan.json").read_text()), rows(folder / "metrics.csv")
    for row in plan["variants"]:
        own = [each for each in metrics if each["variant"] == row["variant"]]
        steps = sum(int(each["finding_steps"]) + int(each["retraining_steps"]) for each in own)
        flops = sum(int(each["finding_flops"]) + int(each["retraining_flops"]) for each in own)
        if row["variant"] == "isp_code":
            assert steps <= row["steps_alone"]
            continue
        assert steps == row["steps_alone"], row["variant"]
        assert len(own) == row["tickets"]
        if row["variant"] not in ("grasp", "synflow", "wanda", "snip"):
            assert row["flops_alone"] == pytest.approx(flops, rel=0.05), row["variant"]
    assert (smoke / RUN / "isp/0.6000/ticket.safetensors").stat().st_mtime > (folder / "plan.json").stat().st_mtime
    assert "| weak_mask | " in (folder / "tables/plan.md").read_text()


def test_its_status_is_done(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output is where the jobs say, every log says what its job took, and no marker is left."""
    monkeypatch.chdir(smoke)
    study = find_study("smoke")
    jobs, seen = Jobs(study), look(study)
    content = report(jobs, seen, read_plan(study))
    assert content["jobs"]["done"] == content["jobs"]["all"] == len(jobs.by_output)
    assert (content["failed"], content["running"], seen.marks) == ([], [], {})
    assert set(jobs.by_output) <= seen.files
    assert all(has_finished(seen.log(log_of("smoke", output)).text) for output in jobs.by_output)  # type: ignore[union-attr]
    half = replace(seen, files={path for path in seen.files if not path.endswith("metrics.json")})
    left = report(jobs, half, read_plan(study))["left"]
    assert left["jobs"] == content["tickets"]["all"] == left["rules"]["evaluate"]
    assert left["seconds"] is None or left["seconds"] > 0


def test_every_two_masks_are_compared(smoke: Path) -> None:
    """All pairs of one sparsity, none of two, and the numbers are those of the flat masks."""
    folder = smoke / "results/smoke"
    variants = [group.variant for group in load_study(STUDY).groups() if any(group.sparsities)]
    found = rows(folder / "similarity.csv")
    expected = [(a, b, s) for s in ("0.5000", "0.6000") for a, b in itertools.combinations(variants, 2)]
    assert [(row["variant_a"], row["variant_b"], row["sparsity"]) for row in found] == expected
    masks = {
        name: artifacts.load_ticket(smoke / RUN / name / "0.6000/ticket.safetensors")[1] for name in ("isp", "lth")
    }
    a, b = (np.concatenate([mask[name].numpy().ravel() for name in sorted(mask)]) for mask in masks.values())
    row = found[expected.index(("isp", "lth", "0.6000"))]
    assert float(row["cosine"]) == pytest.approx((a & b).sum() / (a.sum() * b.sum()) ** 0.5, abs=1e-6)
    assert float(row["hamming"]) == pytest.approx((a != b).mean(), abs=1e-6)
    row = found[expected.index(("isp_n0", "isp_literal", "0.6000"))]
    assert row["cosine"] == "1.0"  # the literal rule is plain magnitude pruning
    layers = rows(folder / "similarity_layers.csv")
    assert len(layers) == 16 * len(found)
    assert [row["layer"] for row in layers[:16]] == [row["layer"] for row in rows(folder / "layers.csv")[:16]]
    own = [row for row in layers if (row["variant_a"], row["variant_b"], row["sparsity"]) == ("isp", "lth", "0.6000")]
    for row in own:
        one, two = (mask[row["layer"]].numpy() for mask in masks.values())
        assert float(row["jaccard"]) == pytest.approx((one & two).sum() / (one | two).sum(), abs=1e-6)
    agreed = {row["variant"] for row in rows(folder / "agreement.csv")}
    assert {"isp", "isp_votes", "isp_mean", "isp_literal"} <= agreed
    assert not {"isp_n0", "lth"} & agreed  # none of them has weak masks


def test_a_collapsed_layer_is_warned_of(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ticket of which one layer is emptied by hand."""
    layer = "visual.transformer.resblocks.1.mlp.c_proj.weight"
    ticket = isp.load_ticket(smoke / RUN / "isp/0.6000/ticket.safetensors")
    ticket.mask[layer][:] = False
    ticket.weights[layer][:] = 0
    isp.save_ticket(tmp_path / "ticket", ticket)
    found = {}
    for name, path in (("whole", smoke / RUN / "isp/0.6000/ticket.safetensors"), ("emptied", tmp_path / "ticket")):
        evaluate(
            ticket=path,
            backbone="clip_tiny",
            task="digits",
            limits={},
            validation=smoke / "resources/prepared/clip_tiny/digits/validation.safetensors",
            test=smoke / "resources/prepared/clip_tiny/digits/test.safetensors",
            cell={},
            output=tmp_path / "metrics.json",
        )
        found[name] = json.loads((tmp_path / "metrics.json").read_text())["collapsed"], capsys.readouterr().err
    assert found["whole"][0] == []
    assert "warning" not in found["whole"][1]
    assert found["emptied"][0] == [layer]
    assert f"warning: layer collapse, no weight is left in {layer}\n" in found["emptied"][1]


def test_what_is_compared() -> None:
    """Blocks add up; only runs with two masks of one sparsity are compared, and only those masks."""
    study = yaml.safe_load(STUDY.read_text())
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


def test_a_ticket_is_what_isp_prune_gives_to_the_bit(smoke: Path) -> None:
    """Every method: the jobs of the workflow against the reference in this process."""
    assert same_as_in_process(smoke, load_study(STUDY)) == set(registry.names("method"))


def same_as_in_process(folder: Path, study: Study) -> set[str]:
    """Hold every ticket of a study that ran in a folder to `isp.prune`; the methods there were."""
    methods = set()
    for group in study.groups():
        name, task, variant = group.backbone, group.task, study.variants[group.variant]
        backbone, limits = study.backbone(name), study.limits(task)
        run = folder / f"results/{study.study}/runs/{name}/{task}/seed{group.seed}"
        pretrained, _ = artifacts.load_backbone(folder / f"resources/backbones/{name}.safetensors")
        architecture = pretrained.architecture
        tensors, _ = artifacts.load_examples(folder / f"resources/prepared/{name}/{task}/train.safetensors", "train")
        train = backbone.examples(limited(tensors, limits.num_train), architecture, limits.augmentation)
        assert len(train) == study.num_train(task)
        initial, _ = artifacts.load_state(run / "initial" / f"{variant.initial}.safetensors")
        held_out, _ = artifacts.load_examples(
            folder / f"resources/prepared/{name}/{task}/validation.safetensors", "validation"
        )
        examples = backbone.examples(limited(held_out, limits.num_validation), architecture, "none")
        metric = study.task(task).metrics[0]
        for sparsity in group.sparsities:
            model = backbone.restore(initial.weights, architecture)
            protocol = study.protocol(name, task, group.variant, sparsity)
            expected = isp.prune(
                model,
                train,
                sparsity=sparsity,
                method=variant.method,
                settings=variant.settings,
                prunable=backbone.prunable,
                seed=group.seed,
                validation=lambda model: score(model, examples, [metric])[metric],  # noqa: B023
                **protocol.model_dump(),
            )
            dense = run / "dense" / f"{variant.initial}.safetensors"
            own = run / group.variant / str(sparsity) / "ticket.safetensors"
            path = dense if registry.load("method", variant.method).FAMILY == "dense" else own
            assert_same(isp.load_ticket(path), expected)
            methods.add(variant.method)
    return methods


def assert_same(found: Ticket, expected: Ticket) -> None:
    assert same(found.weights, expected.weights)
    assert same(found.mask, expected.mask)
    assert found.finding == expected.finding
    assert found.retraining == expected.retraining
    assert found.rounds == expected.rounds
    assert (found.method, found.sparsity) == (expected.method, expected.sparsity)


def test_a_stage_in_a_fresh_process_gives_the_same_bits(smoke: Path, tmp_path: Path) -> None:
    """What the workflow's fork server made, made again by a process of its own."""
    made = smoke / RUN / "isp_votes/round1/to0.6000/weak1.safetensors"
    mask, about = artifacts.load_mask(made)
    options = {
        "state": smoke / RUN / "isp_votes/round1/state.safetensors",
        "within": smoke / RUN / "isp_votes/round0/to0.5000/mask.safetensors",
        "data": smoke / "resources/prepared/clip_tiny/digits/train.safetensors",
        "settings": json.dumps(about["settings"]),
        "training": json.dumps(about["training"]),
        "limits": json.dumps(about["limits"]),
        **{"round": 1, "member": 1, "sparsity": "0.6", "backbone": "clip_tiny", "task": "digits", "seed": 0},
        "output": tmp_path / "weak.safetensors",
    }
    command = [sys.executable, "-m", "isp", "weak_mask"]
    command += [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    environment = {key: value for key, value in os.environ.items() if key != "ISP_WARM"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path}/weak.safetensors in " in done.stderr
    assert same(artifacts.load_mask(tmp_path / "weak.safetensors")[0], mask)


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


def test_texts_and_what_a_study_defines(short_pretraining: Path, tmp_path: Path) -> None:
    """The embedded language half, and a BERT and a data set of one's own from local folders."""
    shutil.copytree(short_pretraining, tmp_path / "resources")
    bert_folder(tmp_path / "mine", bert.build(SMALL_BERT, 3).state_dict())
    own = {"kind": "texts", "id": "me/reviews", "inputs": ["title", "body"], "num_examples": 120, "classes": []}
    own["metrics"] = ["pearson", "spearman"]
    imitate(task_of(json.dumps(own)), tmp_path / "data")
    soup = {"rate": 0.5, "segment_fraction": 0.25, "denoisers": 2, "look_ahead_steps": 2}
    protocol = {"steps": 8, "batch_size": 16, "learning_rate": 1e-3}
    grid = [("bert_tiny", "half_order"), ("mine", "reviews")]
    study = {
        "study": "language",
        "data_root": "data",
        "define": {
            "backbones": {"mine": {"family": "bert", "folder": "mine", "pooler": "pruned", "max_length": 32}},
            "tasks": {"reviews": own},
        },
        "training": {"bert_tiny": protocol, "mine": protocol},
        "tasks": {"half_order": {"num_train": 96}},
        "variants": {
            **{"dense": {"method": "dense"}, "one_shot": {"method": "one_shot"}, "lth": {"method": "lth"}},
            **{"isp": {"method": "isp", "settings": soup}, "scratch": {"method": "dense", "initial": "random"}},
        },
        "grid": [
            {
                **{"backbone": backbone, "tasks": [task], "sparsities": ["0.6"], "seeds": [1]},
                "variants": ["dense", "one_shot", "lth", "isp", "scratch"],
            }
            for backbone, task in grid
        ],
    }
    study["variants"]["lth"]["settings"] = {"rate": 0.5}  # type: ignore[index]
    path = tmp_path / "language.yaml"
    path.write_text(yaml.safe_dump(study))
    done = snakemake(tmp_path, study=path)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "results/language/metrics.csv")
    assert {(row["backbone"], row["task"], row["metric"], row["second_metric"]) for row in found} == {
        ("bert_tiny", "half_order", "accuracy", ""),
        ("mine", "reviews", "pearson", "spearman"),
    }
    assert {row["majority_validation"] for row in found} == {"50.0", "0.0"}
    assert same_as_in_process(tmp_path, load_study(path)) == {"dense", "one_shot", "lth", "isp"}
    again = snakemake(tmp_path, study=path)
    assert "nothing to do" in again.stderr.lower()
    study["define"]["backbones"]["mine"]["pooler"] = "kept"  # type: ignore[index]
    path.write_text(yaml.safe_dump(study))
    plan = snakemake(tmp_path, "--dry-run", study=path).stdout
    assert "retrain" in plan
    assert "half_order" not in plan


def test_texts_of_a_study_arrive_as_they_are(short_pretraining: Path, tmp_path: Path) -> None:
    """Neither Snakemake nor the shell reads them, whatever they hold and however long they are."""
    shutil.copytree(short_pretraining, tmp_path / "resources")
    odd = "{study} {x} {{y}} {wildcards.task} {params.study:q} $HOME `ls` \" ' \\ % 100 \U0001f600 \u00fc"
    own = {"kind": "pictures", "id": "me/odd", "num_examples": 120, "metrics": ["accuracy"], "num_validation": 30}
    own |= {"split": "groups", "group": r"(\d{5})_\d{5}", "templates": ["a {x} photo of {study} {}."]}
    own |= {"classes": [odd, "\U0001f426 " + "wing " * 13_000, "--output"]}
    imitate(task_of(json.dumps(own)), tmp_path / "data")
    study = {
        **{"study": "texts", "question": f"{odd} " + "why? " * 30_000, "data_root": "data"},
        "define": {"tasks": {"odd": own}},
        "training": {"clip_tiny": {"steps": 4, "batch_size": 16, "learning_rate": 1e-3}},
        "variants": {"dense": {"method": "dense"}, "random": {"method": "random"}},
        "grid": [
            {
                **{"backbone": "clip_tiny", "tasks": ["odd"], "variants": ["dense", "random"]},
                **{"sparsities": ["0.5"], "seeds": [0]},
            }
        ],
    }
    path = tmp_path / "texts {x} $HOME.yaml"
    path.write_text(json.dumps(study))  # escapes what is beyond the BMP as pairs of surrogates
    done = snakemake(tmp_path, study=path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results/texts/study.json").read_text())
    assert content["question"] == study["question"]
    assert content["study"]["define"]["tasks"]["odd"]["classes"] == own["classes"]
    *_, configfile = shlex.split(content["provenance"]["command"])
    assert configfile == path.name
    assert same_as_in_process(tmp_path, load_study(path)) == {"dense", "random"}
    assert "nothing to do" in snakemake(tmp_path, study=path).stderr.lower()
    own["classes"][1] += "."  # type: ignore[index]
    path.write_text(json.dumps(study))
    assert "prepare" in snakemake(tmp_path, "--dry-run", study=path).stdout


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


# --- what reruns ------------------------------------------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do(smoke: Path) -> None:
    before = (smoke / "results/smoke/metrics.csv").stat().st_mtime_ns
    done = snakemake(smoke)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr.lower()
    assert (smoke / "results/smoke/metrics.csv").stat().st_mtime_ns == before


def test_tickets_of_rounds_go_where_nothing_needs_them(short_pretraining: Path, tmp_path: Path) -> None:
    """Without `notemp`; their masks stay, and with them everything that was made. One at 0.5 is pooled in the end."""
    shutil.copytree(short_pretraining, tmp_path / "resources")
    study = yaml.safe_load(STUDY.read_text())
    block = {**study["grid"][0], "variants": ["lth", "lottery_pools"], "sparsities": [0.75]}
    path = tmp_path / "rounds.yaml"
    variants = {name: study["variants"][name] for name in block["variants"]}
    path.write_text(yaml.safe_dump({**study, "study": "rounds", "variants": variants, "grid": [block]}))
    profile = yaml.safe_load((ROOT / "workflow/profiles/default/config.yaml").read_text())
    assert profile.pop("notemp")
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    done = snakemake(tmp_path, "--workflow-profile", "profile", study=path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / str(RUN).replace("smoke", "rounds")
    assert sorted(str(each.relative_to(run)) for each in run.rglob("*.safetensors")) == [
        *("dense/pretrained.safetensors", "initial/pretrained.safetensors"),
        *("lottery_pools/0.7500/ticket.safetensors", "lth/0.7500/ticket.safetensors"),
        *("lth/round0/to0.5000/mask.safetensors", "lth/round1/to0.7500/mask.safetensors"),
    ]
    again = snakemake(tmp_path, "--workflow-profile", "profile", study=path)
    assert "nothing to do" in again.stderr.lower()


def test_after_cleaning_there_is_nothing_to_do(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States and copies are gone, tickets, masks and records are there."""
    folder = tmp_path / "copy"
    shutil.copytree(smoke, folder, symlinks=True)
    before = {path.relative_to(folder) for path in folder.rglob("*.safetensors")}
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        cli.main(["clean", "smoke", "--yes"])
    gone = before - {path.relative_to(folder) for path in folder.rglob("*.safetensors")}
    assert {re.sub(r"\d+", "", path.name) for path in gone} == {
        "pretrained.step.safetensors",  # where rounds rewind to
        *("state.safetensors", "weak.safetensors", "member.safetensors", "subnetwork.safetensors"),
        "ticket.safetensors",  # of rounds that only a pooled variant needs
    }
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr.lower()


def test_tables_without_their_records_are_made_again(smoke: Path, tmp_path: Path) -> None:
    for name in ("tables", "figures"):
        shutil.copytree(smoke / "results/smoke" / name, tmp_path / "results/smoke" / name)
    for path in (smoke / "results/smoke").glob("*.*"):
        shutil.copy(path, tmp_path / "results/smoke")
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    jobs = re.search(r"smoke: (\d+) jobs to run", done.stdout)
    assert jobs
    assert int(jobs[1]) > 100


def planned(folder: Path, study: dict[str, Any]) -> set[str]:
    """What a run of a changed study would make below the folder of its seed, up to the records."""
    (folder / "changed.yaml").write_text(yaml.safe_dump(study, sort_keys=False))  # shared members lie with the first
    done = snakemake(folder, "--summary", study=folder / "changed.yaml")
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader(done.stdout.splitlines(), delimiter="\t"))
    pending = {row["output_file"] for row in table if row["plan"] == "update pending"}
    return {str(Path(path).relative_to(RUN)) for path in pending if Path(path).is_relative_to(RUN)}


def changed(path: str, value: Any) -> dict[str, Any]:
    study = yaml.safe_load(STUDY.read_text())
    *parents, last = path.split(".")
    at = study
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[last] = value
    return study


def scored(files: set[str]) -> set[str]:
    return {path for path in files if path.endswith("metrics.json")}


def of(*variants: str, but: tuple[str, ...] = ()) -> Callable[[set[str]], set[str]]:
    """The variants' files, and the comparison of their masks with others'."""
    return lambda files: {
        path for path in files if (path.split("/")[0] in variants or path == "similarity.json") and path not in but
    }


ISP = "variants.isp.settings"
INSTANT = "variants.instant_model_soup.settings"
MEMBERS = tuple(f"uniform_soup/0.{s}000/member{index}.safetensors" for s in "056" for index in range(4))
SUBNETWORKS = tuple(f"instant_model_soup/0.0000/subnetwork{index}.safetensors" for index in range(2))
FIRST_STATE, MEAN_STATE = "isp/round0/state.safetensors", "isp_mean/round0/state.safetensors"


def of_first_round(variant: str) -> tuple[str, ...]:
    """The state and the copies of a variant's round 0."""
    names = ("state", "to0.5000/weak0", "to0.5000/weak1")
    return tuple(f"{variant}/round0/{name}.safetensors" for name in names)


@pytest.mark.parametrize(
    ("key", "value", "reruns"),
    [
        # N: one more copy in round 0; everything after its mask, but not the copies and the state that were there
        (f"{ISP}.denoisers", 3, of("isp", but=of_first_round("isp"))),
        # C: the copies of round 0 and everything after them
        (f"{ISP}.look_ahead_steps", 3, of("isp", but=(FIRST_STATE,))),
        # what is chosen by validation examples, and all scores
        (
            "tasks.digits.num_validation",
            41,
            lambda files: (
                scored(files)
                | of("lottery_pools", "pools_alone", "greedy_soup")(files)
                | {path for path in files if re.match("greedy_soup_own/.*/ticket|instant_model_soup/.*/[mt]", path)}
            ),
        ),
        # the number of members: one more, and the averages of all; the other soups that share them stay
        ("variants.uniform_soup.settings.members", 5, of("uniform_soup", but=MEMBERS)),
        # when members are pruned
        ("variants.greedy_soup_own.settings.prune_at", 0.5, of("greedy_soup_own")),
        # how weak subnetworks are mixed, and how they are trained
        (f"{INSTANT}.coefficients", [0, 0.5], of("instant_model_soup", but=("similarity.json", *SUBNETWORKS))),
        (f"{INSTANT}.look_ahead_steps", 4, of("instant_model_soup", but=("similarity.json",))),  # no mask to compare
        # the rule: the masks of round 0 and everything after them
        ("variants.isp_votes.settings.rule", "union", of("isp_votes", but=of_first_round("isp_votes"))),
        # and the copies, if the rule asks them for magnitudes instead of masks
        (f"{ISP}.rule", "mean_score", of("isp", but=(FIRST_STATE,))),
        # and what pooled its rounds, which are now others'
        ("variants.lth.settings.rate", 0.4, of("lth", "lottery_pools")),
        # an equal budget follows the variant whose steps it has
        ("variants.isp_mean.settings.look_ahead_steps", 3, of("isp_mean", "one_shot_equal", but=(MEAN_STATE,))),
        ("variants.one_shot", {"method": "random"}, of("one_shot")),
        ("training.clip_tiny.steps", 14, lambda files: files),
        ("threads", 2, lambda files: files),
    ],
)
def test_a_change_reruns_what_depends_on_it(
    smoke: Path, key: str, value: Any, reruns: Callable[[set[str]], set[str]]
) -> None:
    study = changed(key, value)
    everything = {str(path.relative_to(smoke / RUN)) for path in (smoke / RUN).rglob("*.*") if path.is_file()}
    plan = planned(smoke, study)
    assert plan & everything == reruns(everything) & plan
    assert reruns(everything) - plan <= {
        path for path in everything if path.startswith("lth/")
    }  # files that the changed study has no use for
    assert plan, "nothing would be run"
    ran = {path.split("/")[0].removesuffix(".rounds") for path in plan}
    assert ran <= {path.split("/")[0] for path in reruns(everything)}


@pytest.mark.parametrize(
    ("key", "value", "new"),
    [
        ("grid.0.sparsities", ["0.5", "0.6", "0.7"], r"[\w.]+/.*0\.7000/.*"),
        ("grid.0.sparsities", ["0.5", "0.7"], r"[\w.]+/.*0\.7000/.*"),
        ("variants.more", {"method": "random"}, r"more/0\.[56]000/.*"),
    ],
)
def test_what_is_added_runs_alone(smoke: Path, key: str, value: Any, new: str) -> None:
    study = changed(key, value)
    if key.startswith("variants"):
        study["grid"][0]["variants"].append("more")
    plan = planned(smoke, study)
    assert plan
    assert not [path for path in plan - {"similarity.json"} if not re.fullmatch(new, path)]


def test_a_raised_version_reruns_and_a_cosmetic_edit_does_not(smoke: Path, tmp_path: Path) -> None:
    for part in ("isp", "workflow"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    stage = tmp_path / "isp" / "stages" / "aggregate.py"
    shutil.copy(ROOT / "environment.yml", tmp_path)
    for text, expected in (("", 0), ("\nVERSION = 99\n", 1)):
        stage.write_text(stage.read_text() + "\n# edited\n" + text)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(tmp_path / "workflow" / "Snakefile")]
        done = subprocess.run(
            [*command, "--configfile", str(STUDY), "--dry-run", "--cores", "2"],
            cwd=smoke,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("nothing to do" in (done.stdout + done.stderr).lower()) == (expected == 0)
        assert ("aggregate" in done.stdout) == (expected == 1)


def test_snakemakes_report(smoke: Path) -> None:
    done = snakemake(smoke, "--report", "snakemake_report.html")
    assert done.returncode == 0, done.stderr
    page = (smoke / "snakemake_report.html").read_text()
    for words in (*FIGURES, "similarity of masks", "Figures", "Tables", "Numbers"):
        assert words in page


def test_the_page_of_the_report(smoke: Path) -> None:
    """It shows every figure, table and variant, and links only files that are there."""
    page = (smoke / "results/smoke/report.html").read_text()
    for figure in FIGURES:
        assert f'id="figure-{figure}"' in page
    for words in ('id="table-spending"', load_study(STUDY).question, *load_study(STUDY).variants):
        assert words in page
    links = re.findall(r'href="([^#"]+)"', page)
    assert "study.json" in links
    assert all((smoke / "results/smoke" / link).is_file() for link in links)


# --- faults -----------------------------------------------------------------------------------------------------------


def processes(folder: Path) -> list[psutil.Process]:
    """All processes that work for a run in a folder: Snakemake, its shells and clients, the fork server, stages."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) or os.fspath(folder) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.pid != os.getpid()]


@pytest.fixture
def running(smoke: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts Snakemake on the smoke study in a new folder."""
    shutil.copytree(smoke / "resources/backbones", tmp_path / "resources/backbones")
    started = []

    def start() -> subprocess.Popen[str]:
        command = [*COMMAND, "--configfile", str(STUDY)]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def test_killed_three_times_it_ends_in_the_same_bits(
    smoke: Path, tmp_path: Path, running: Callable[[], subprocess.Popen[str]]
) -> None:
    def server(snakemake: subprocess.Popen[str]) -> psutil.Process | None:
        return next((p for p in psutil.process_iter(["cmdline"]) if _serves(p, snakemake.pid)), None)

    def suspended(snakemake: subprocess.Popen[str]) -> list[psutil.Process]:
        """The stages that are being computed, stopped before they told their end; empty if one had told it already."""
        stages: list[psutil.Process] = []
        try:
            found = server(snakemake)
            stages = found.children() if found else []
            waiting = [shell for shell in psutil.Process(snakemake.pid).children() if "isp " in shell.cmdline()[-1]]
            for stage in stages:
                stage.suspend()
            time.sleep(2)  # a job ends within a second of its stage's end, and then another begins
            if stages and found and found.children() == stages and any(shell.is_running() for shell in waiting):
                return stages
        except psutil.NoSuchProcess:
            pass
        for stage in stages:
            with suppress(psutil.NoSuchProcess):
                stage.resume()
        return []

    for number, victim in enumerate(("stages", "server", "snakemake")):
        snakemake = running()
        enough = 6 + 12 * number
        wait_for(lambda enough=enough: len(list(tmp_path.glob("results/**/*.safetensors"))) >= enough)
        stages = wait_for(lambda run=snakemake: suspended(run))
        helper = server(snakemake)
        assert helper
        if victim == "server":
            helper.kill()
        if victim == "snakemake":
            snakemake.kill()
            for stage in stages:
                stage.resume()  # they end by themselves
        else:
            for stage in stages:
                stage.kill()
        _, errors = snakemake.communicate(timeout=120)
        assert snakemake.returncode
        if victim != "snakemake":
            assert "killed" in errors
        wait_for(lambda gone=helper: not gone.is_running())
        wait_for(lambda: not processes(tmp_path))
    last = running()
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert (tmp_path / "results/smoke/metrics.csv").read_bytes() == (smoke / "results/smoke/metrics.csv").read_bytes()
    wait_for(lambda: not processes(tmp_path))
    assert not list(tmp_path.rglob("*.partial"))


def _serves(process: psutil.Process, owner: int) -> bool:
    command = process.info["cmdline"] or []
    return any("isp.runtime.warm" in word for word in command) and str(owner) in command


def test_two_at_once_are_refused(smoke: Path, tmp_path: Path, running: Callable[[], subprocess.Popen[str]]) -> None:
    """The locks of a living Snakemake stay."""
    first = running()
    wait_for(lambda: list(tmp_path.glob(".snakemake/locks/*.lock")))
    second = snakemake(tmp_path)
    assert second.returncode
    assert "isp: another run is making the same files in this folder" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Mounts a small file system on `results`, or changes its options."""
    folder = tmp_path / "results"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if mounted:
            command[-3] = f"remount,{options}"
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system can be mounted by root only, and not in every container")
        mounted.append(options)

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_and_one_that_is_read_only(smoke: Path, tmp_path: Path, disk: Callable[[str], None]) -> None:
    shutil.copytree(smoke / "resources", tmp_path / "resources")
    disk("size=4m,ro")
    done = snakemake(tmp_path)
    assert done.returncode
    assert "isp: results/smoke: cannot be written to (Read-only file system)" in done.stderr
    disk("size=4m,rw")
    done = snakemake(tmp_path)
    assert done.returncode
    assert "safetensors: cannot be written (No space left on device); nothing was left half-written" in done.stderr
    assert "Traceback" not in done.stderr
    for path in tmp_path.glob("results/**/state.safetensors"):
        artifacts.load_state(path)  # what is there is whole
    disk("size=400m,rw")
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/smoke/metrics.csv").read_bytes() == (smoke / "results/smoke/metrics.csv").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


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
    load(workflow, yaml.safe_load(STUDY.read_text()))
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_a_study_file_inherits_nothing(tmp_path: Path) -> None:
    nameless = yaml.safe_load(STUDY.read_text())
    del nameless["study"]
    (tmp_path / "nameless.yaml").write_text(yaml.safe_dump(nameless))
    done = snakemake(tmp_path, "--dry-run", study=tmp_path / "nameless.yaml")
    assert done.returncode
    assert "isp: nameless.yaml: missing key 'study'" in done.stdout + done.stderr


def test_the_command_that_runs_it_again_holds_what_was_given() -> None:
    def given(config: dict[str, Any], file: str = "config/mini.yaml") -> str:
        settings = SimpleNamespace(configfiles=[Path(file).absolute()], config=config)
        return command(SimpleNamespace(config_settings=settings))

    assert given({}) == "snakemake --configfile config/mini.yaml"
    told = given({"data_root": "/home/me/data", "question": "why not"})
    assert told == "snakemake --configfile config/mini.yaml --config data_root=FOLDER 'question=why not'"
    odd = {"question": "it's; rm -rf $HOME\n&", "device": "cpu"}
    words = ["snakemake", "--configfile", "my studies/$(a) 'b';.yaml", "--config", f"question={odd['question']}"]
    assert shlex.split(given(odd, words[2])) == [*words, "device=cpu"]


def test_locks_of_a_living_snakemake_stay(tmp_path: Path) -> None:
    """A, B and C start one after the other; A ends before C: B's locks must outlive that."""
    code = (
        "import sys; from isp.workflow import running; running.unlock_if_abandoned(); print('in', flush=True); "
        "sys.stdin.read()"
    )

    def start(here: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code.replace("u()", f"u({here})")],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "in\n"
        return process

    first, second = start(), start()
    first.kill()
    first.wait()
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir()
    lock.touch()  # the second's
    third = start()
    assert lock.exists()
    for process in (second, third):
        process.kill()
        process.wait()
    on_cluster = start("False")
    assert lock.exists()  # of jobs that may still run
    beside = start()
    assert lock.exists()  # of a living one
    for process in (on_cluster, beside):
        process.kill()
        process.wait()
    last = start()
    assert not lock.exists()
    last.kill()
    last.wait()


def test_a_results_folder_that_cannot_be_written(smoke: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke / "resources", tmp_path / "resources")
    (tmp_path / "results").touch()
    done = snakemake(tmp_path)
    assert done.returncode
    assert "results" in done.stderr
    assert "Traceback" not in done.stderr


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


# --- one cell ---------------------------------------------------------------------------------------------------------


def test_isp_run(short_pretraining: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(short_pretraining, tmp_path / "resources")
    settings = [f"--set={text}" for text in ("training.steps=6", "training.batch_size=16", "task.num_train=64")]
    command = ["run", "--task", "digits", "--method", "one_shot", "--sparsity", "0.5", *settings]
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert not caught.value.code
    printed = capfd.readouterr().out
    assert "one_shot" in printed
    (folder,) = Path("results").iterdir()
    assert f"{folder}/" in printed
    (row,) = rows(folder / "metrics.csv")
    assert (row["method"], row["sparsity"], row["retraining_steps"]) == ("one_shot", "0.5000", "6")


def test_the_recipe_for_a_method_followed_to_the_letter(
    short_pretraining: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRIBUTING's file dropped into a folder and its line of a study: it runs, and is in the table."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a method")[1]
    code, line = (re.search(f"```{kind}\n(.*?)```", recipe, re.DOTALL)[1] for kind in ("python", "yaml"))  # type: ignore[index]
    (tmp_path / "gradient.py").write_text(code)
    study = yaml.safe_load(STUDY.read_text())
    study["variants"] = {"one_shot": {"method": "one_shot"}} | yaml.safe_load(line)["variants"]
    study["grid"] = [{**study["grid"][0], "variants": list(study["variants"])}]
    study["study"] = "recipe"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    shutil.copytree(short_pretraining, tmp_path / "resources")
    done = snakemake(tmp_path, study=tmp_path / "study.yaml")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "results/recipe/tables/scores.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == ["one_shot", "gradient"]
    tickets = rows(tmp_path / "results/recipe/metrics.csv")
    assert [row["method"] for row in tickets] == ["one_shot"] * 2 + ["gradient"] * 2
    assert all(int(row["finding_samples"]) == 4 * 16 for row in tickets if row["method"] == "gradient")
    monkeypatch.chdir(tmp_path)
    assert same_as_in_process(tmp_path, load_study(tmp_path / "study.yaml")) == {"one_shot", "gradient.py"}
    (tmp_path / "gradient.py").write_text(code.replace(".abs()", ".square()"))
    again = snakemake(tmp_path, "--dry-run", study=tmp_path / "study.yaml")
    assert "prune_one_shot" in again.stdout + again.stderr
