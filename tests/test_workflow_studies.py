"""User-defined studies, which a real Snakemake runs: texts, definitions, odd characters, a user's method."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from isp import cli, exported, exporting
from isp.backbones import _bert as bert
from isp.config import load_study, parse_study
from isp.definitions import task_of
from tests.support.backbones import SMALL_BERT, bert_folder
from tests.support.data import imitate, png
from tests.support.reruns import jobs, reruns
from tests.support.studies import ROOT
from tests.support.workflow import (
    RUN,
    SMOKE,
    rows,
    same_as_in_process,
    snakemake,
)

pytestmark = pytest.mark.process


def test_texts_and_what_a_study_defines(
    short_pretraining: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded language half, also at 2:4 in two rounds, and a BERT and data of one's own from local folders."""
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
    patterns: dict[str, Any] = {"isp": {**soup, "rate": 0.3}, "lth": {"rate": 0.3}, "one_shot": {}, "gradual": {}}
    patterns = {name: {"method": name, "settings": {**own, "scope": "2:4"}} for name, own in patterns.items()}
    study["variants"] |= {f"{name}_2_4": variant for name, variant in patterns.items()}  # type: ignore[operator]
    block = {"backbone": "bert_tiny", "tasks": ["half_order"], "variants": [f"{name}_2_4" for name in patterns]}
    study["grid"].append({**block, "sparsities": ["0.5"], "seeds": [1]})  # type: ignore[attr-defined]
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
    assert same_as_in_process(tmp_path, load_study(path)) == {"dense", "one_shot", "lth", "isp", "gradual"}
    again = snakemake(tmp_path, study=path)
    assert "nothing to do" in again.stderr.lower()
    monkeypatch.setattr(exporting, "ask", lambda request, scratch, folder: exported.answer(request))
    (ticket,) = tmp_path.glob("results/language/runs/mine/reviews/seed1/lth/0.6000/ticket.safetensors")
    exporting.export(ticket, None, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert all(part in card for part in ("kind: regression", "rate: 0.5", "| spearman, test |", "id: me/reviews"))
    monkeypatch.chdir(tmp_path)
    before = jobs(load_study(path))
    study["define"]["backbones"]["mine"]["pooler"] = "kept"  # type: ignore[index]
    plan = reruns(before, jobs(parse_study(study, "changed")))
    assert "retrain" in plan
    assert not [file for files in plan.values() for file in files if "half_order" in file]


ODD = "{study} {x} {{y}} {wildcards.task} {params.study:q} $HOME `ls` \" ' \\ % 100 \U0001f600 \u00fc"
RECIPE = (ROOT / "docs/how-to/add-a-method.md").read_text()


def odd_task() -> dict[str, Any]:
    """Return the definition of a task with texts that Snakemake or a shell could expand, and a very long one."""
    own = {"kind": "pictures", "id": "me/odd", "num_examples": 120, "metrics": ["accuracy"], "num_validation": 30}
    own |= {"split": "groups", "group": r"(\d{5})_\d{5}", "templates": ["a {x} photo of {study} {}."]}
    return own | {"classes": [ODD, "\U0001f426 " + "wing " * 13_000, "--output"]}


def in_recipe(kind: str) -> str:
    """Return the first block of a language in the documentation's recipe for a method."""
    block = re.search(f"```{kind}\n(.*?)```", RECIPE, re.DOTALL)
    assert block
    return block[1]


def odd_study() -> dict[str, Any]:
    """Return a study with odd texts, the recipe's method, and rounds whose tickets are temporary."""
    smoke = yaml.safe_load(SMOKE.read_text())
    first, last = ({name: smoke["variants"][name] for name in names} for names in (BEFORE, AFTER))
    block = {"backbone": "clip_tiny", "tasks": ["digits"], "seeds": [0]}
    return {
        **{"study": "texts", "question": f"{ODD} " + "why? " * 30_000, "data_root": "data"},
        "define": {"tasks": {"odd": odd_task()}},
        **{name: smoke[name] for name in ("threads", "training", "tasks")},
        "variants": {**first, **yaml.safe_load(in_recipe("yaml"))["variants"], **last},
        "grid": [
            {**block, "tasks": ["odd"], "variants": ["dense", "random"], "sparsities": ["0.5"]},
            {**block, "variants": ["one_shot", "gradient"], "sparsities": ["0.5", "0.6"]},
            {**block, "variants": ["lth", "lottery_pools"], "sparsities": [0.75]},
        ],
    }


BEFORE, AFTER = ("dense", "random", "one_shot"), ("lth", "lottery_pools")
"""Variants of the smoke study before and after the recipe's variant."""
WITHOUT_NOTEMP = ("--workflow-profile", "profile")


@pytest.fixture(scope="module")
def odd(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a real Snakemake ran that study without `notemp`, for reading only."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copytree(short_pretraining, folder / "resources")
    imitate(task_of(json.dumps(odd_task())), folder / "data")
    (folder / "gradient.py").write_text(in_recipe("python"))
    path = folder / "texts {x} $HOME.yaml"
    path.write_text(json.dumps(odd_study()))  # escapes what is beyond the BMP as pairs of surrogates
    profile = yaml.safe_load((ROOT / "workflow/profiles/default/config.yaml").read_text())
    assert profile.pop("notemp")
    (folder / "profile").mkdir()
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    done = snakemake(folder, *WITHOUT_NOTEMP, study=path)
    assert done.returncode == 0, done.stderr
    return folder


def test_texts_of_a_study_arrive_as_they_are(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Snakemake nor the shell reads them, whatever they hold and however long they are."""
    monkeypatch.chdir(odd)
    path = odd / "texts {x} $HOME.yaml"
    content = json.loads(Path("results/texts/study.json").read_text())
    study = odd_study()
    assert content["question"] == study["question"]
    assert content["study"]["define"]["tasks"]["odd"]["classes"] == odd_task()["classes"]
    *_, configfile = shlex.split(content["provenance"]["command"])
    assert configfile == path.name
    methods = {"dense", "random", "one_shot", "gradient.py", "lth", "lottery_pools"}
    assert same_as_in_process(odd, load_study(path)) == methods
    before = jobs(load_study(path))
    study["define"]["tasks"]["odd"]["classes"][1] += "."
    assert "prepare" in reruns(before, jobs(parse_study(study, "changed")))


def test_the_recipe_for_a_method_followed_to_the_letter(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documentation's file dropped into a folder and its line of a study: it runs, and is in the table."""
    table = (odd / "results/texts/tables/scores.md").read_text()
    listed = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert listed.index("gradient") == listed.index("one_shot") + 1
    tickets = [row for row in rows(odd / "results/texts/metrics.csv") if row["variant"] in ("one_shot", "gradient")]
    assert [row["method"] for row in tickets] == ["one_shot"] * 2 + ["gradient"] * 2
    assert all(int(row["finding_samples"]) == 4 * 16 for row in tickets if row["method"] == "gradient")
    monkeypatch.chdir(odd)
    path = odd / "texts {x} $HOME.yaml"
    before = jobs(load_study(path))
    (tmp_path / "gradient.py").write_text(in_recipe("python").replace(".abs()", ".square()"))
    monkeypatch.chdir(tmp_path)
    assert "prune_one_shot" in reruns(before, jobs(load_study(path)))


def test_tickets_of_rounds_go_where_nothing_needs_them(odd: Path) -> None:
    """Without `notemp`; their masks stay, and with them everything that was made. One at 0.5 is pooled in the end."""
    run = odd / str(RUN).replace("smoke", "texts")
    cells = [(variant, sparsity) for variant in ("one_shot", "gradient") for sparsity in ("0.5000", "0.6000")]
    assert {str(each.relative_to(run)) for each in run.rglob("*.safetensors")} == {
        *("dense/pretrained.safetensors", "initial/pretrained.safetensors"),
        *("lottery_pools/0.7500/ticket.safetensors", "lth/0.7500/ticket.safetensors"),
        *("lth/round0/to0.5000/mask.safetensors", "lth/round1/to0.7500/mask.safetensors"),
        *(f"{variant}/{sparsity}/{kind}.safetensors" for variant, sparsity in cells for kind in ("mask", "ticket")),
    }
    again = snakemake(odd, *WITHOUT_NOTEMP, study=odd / "texts {x} $HOME.yaml")
    assert "nothing to do" in again.stderr.lower()


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

    (suggested,) = re.findall(r"^Try a ticket: isp (predict (\S+) --image) FILE$", printed, re.MULTILINE)
    (tmp_path / "picture.png").write_bytes(png(np.full((28, 28), 40, np.uint8)))
    for command in ([*suggested[0].split(), "picture.png"], ["export", suggested[1], "out"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        assert not caught.value.code
    printed = capfd.readouterr().out
    assert len(re.findall(r"^  \d +\d+\.\d%$", printed, re.MULTILINE)) == 5
    assert "98,304 zeros counted" in printed  # half of 196,608
    assert f"| accuracy, test | {float(row['test']):.2f} |" in Path("out/README.md").read_text(encoding="utf-8")
