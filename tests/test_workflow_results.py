"""The results of the smoke study, which a real Snakemake ran."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import isp
from isp import artifacts, registry
from isp.config import load_study
from isp.reporting import FIGURES
from isp.runtime.watch import has_finished
from isp.stages.evaluate import evaluate
from isp.workflow.jobs import Jobs
from isp.workflow.status import find_study, log_of, look, read_plan, report
from tests.support.models import equal
from tests.support.workflow import (
    RUN,
    SMOKE,
    rows,
    same_as_in_process,
    snakemake,
)

pytestmark = pytest.mark.process


def test_a_row_for_every_ticket_and_every_output(smoke: Path) -> None:
    folder, study = smoke / "results/smoke", load_study(SMOKE)
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
    content, study = json.loads(text), load_study(SMOKE)
    assert list(content["variants"]) == list(study.variants)
    assert content["variants"]["isp"]["settings"]["rule"] == "union"
    assert content["tasks"]["digits"]["steps"] == {"clip_tiny": 12}
    assert content["provenance"]["command"] == "snakemake --configfile config/smoke.yaml"
    assert content["provenance"]["packages"]["torch"]
    assert "data_root" not in content["study"]


def test_the_plan_came_true(smoke: Path) -> None:
    """Steps to the last one, FLOPs without those of one-shot scores; `isp_code` may stop before its rounds do."""
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
    assert "| prune_denoised | " in (folder / "tables/plan.md").read_text()


def test_its_status_is_done(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output is where the jobs say, every log has the duration of its job, and no marker is left."""
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
    variants = [group.variant for group in load_study(SMOKE).groups() if any(group.sparsities)]
    found = rows(folder / "similarity.csv")
    expected = [(a, b, s) for s in ("0.5000", "0.6000") for a, b in itertools.combinations(variants, 2)]
    assert [(row["variant_a"], row["variant_b"], row["sparsity"]) for row in found] == expected
    masks = {
        name: artifacts.load_ticket(smoke / RUN / name / "0.6000/ticket.safetensors").mask for name in ("isp", "lth")
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
    assert f"warning: layer collapse, all weights are zero in {layer}\n" in found["emptied"][1]


def test_a_ticket_is_what_isp_prune_gives_to_the_bit(smoke: Path) -> None:
    """Every method: the jobs of the workflow against the reference in this process."""
    assert same_as_in_process(smoke, load_study(SMOKE)) == set(registry.names("method"))


def test_a_stage_in_a_fresh_process_gives_the_same_bits(smoke: Path, tmp_path: Path) -> None:
    """Artifacts of the workflow's fork server, remade by a separate process."""
    made = smoke / RUN / "isp_votes/round1/to0.6000/mask.safetensors"
    mask, about = artifacts.load_mask(made)
    options = {
        "state": smoke / RUN / "isp_votes/round1/state.safetensors",
        "within": smoke / RUN / "isp_votes/round0/to0.5000/mask.safetensors",
        "data": smoke / "resources/prepared/clip_tiny/digits/train.safetensors",
        "settings": json.dumps(about["settings"]),
        "training": json.dumps(about["training"]),
        "limits": json.dumps(about["limits"]),
        **{
            "round": 1,
            "denoisers": about["denoisers"],
            "rule": "votes",
            "sparsity": "0.6",
            "backbone": "clip_tiny",
            "task": "digits",
            "seed": 0,
        },
        "output": tmp_path / "mask.safetensors",
    }
    command = [sys.executable, "-m", "isp", "prune_denoised"]
    command += [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    environment = {key: value for key, value in os.environ.items() if key != "ISP_WARM"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path}/mask.safetensors in " in done.stderr
    assert equal(artifacts.load_mask(tmp_path / "mask.safetensors")[0], mask)


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
    for words in ('id="table-spending"', load_study(SMOKE).question, *load_study(SMOKE).variants):
        assert words in page
    links = re.findall(r'href="([^#"]+)"', page)
    assert "study.json" in links
    assert all((smoke / "results/smoke" / link).is_file() for link in links)
