"""The command line and the study runner, end to end on a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from isp import artifacts, cli, masks, registry
from isp.backbones import clip_tiny
from isp.config import load_study
from isp.errors import ArtifactError, DataError, IspError
from isp.study import Runner
from tests.test_data import write_mnist

STUDY: dict[str, Any] = {
    "study": "tiny",
    "training": {"clip_tiny": {"steps": 6, "batch_size": 16, "learning_rate": 1e-3}},
    "tasks": {"digits": {"num_train": 64, "num_validation": 40}},
    "variants": {
        "dense": {"method": "dense"},
        "scratch": {"method": "dense", "initial": "random"},
        "isp": {
            "method": "isp",
            "settings": {"rate": 0.5, "segment_fraction": 0.1, "denoisers": 2, "look_ahead_steps": 2},
        },
    },
    "grid": [
        {
            "backbone": "clip_tiny",
            "tasks": ["digits"],
            "variants": ["dense", "scratch", "isp"],
            "sparsities": ["0.5", "0.6"],
            "seeds": [0],
        }
    ],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and three steps of pre-training instead of hundreds."""
    monkeypatch.chdir(tmp_path)
    short = clip_tiny.PRETRAINING.model_copy(update={"steps": 3, "warmup_steps": 0, "batch_size": 31})
    monkeypatch.setattr(clip_tiny, "PRETRAINING", short)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def test_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for kind in registry.KINDS for name in registry.names(kind))
    assert run("list", "tasks") == 0
    assert "one_shot" not in capsys.readouterr().out


def test_one_cell(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={text}" for text in ("training.steps=6", "training.batch_size=16", "task.num_train=64")]
    settings += ["--set=method.rate=0.5", "--set=method.denoisers=1", "--set=method.look_ahead_steps=2"]
    command = ["run", "--task", "digits", "--method", "isp", "--sparsity", "0.5", *settings, "--test"]
    assert run(*command) == 0
    first = capsys.readouterr()
    assert "validation" in first.out
    assert "test" in first.out
    assert "pre-training clip_tiny: 3 steps" in first.err  # quiet in a log: a line for each piece of work
    assert len(first.err.splitlines()) == 2
    assert run(*command) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == ""  # nothing was computed twice


def test_a_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "tiny.yaml", "--test") == 0
    study = load_study(here / "tiny.yaml")
    csv = (here / "results/tiny/metrics.csv").read_text().splitlines()
    assert len(csv) == 1 + 4
    summary = (here / "results/tiny/summary.md").read_text().splitlines()
    assert summary[0] == "| clip_tiny on digits | 0 | 0.5 | 0.6 | steps |"
    assert [line.split(" | ")[0] for line in summary[2:]] == ["| dense", "| scratch", "| isp"]
    assert summary[-1].endswith(" | 14 |")
    table = (here / "results/tiny/table.md").read_text()
    assert "| digits | clip_tiny | isp | 0.5 | 1 |" in table
    isp = next(group for group in study.groups() if group.variant == "isp")
    folder = Runner(study=study).cell_folder(isp, isp.sparsities[1])
    assert folder == Path("results/tiny/runs/clip_tiny/digits/seed0/isp/0.6000")
    _, mask, about = artifacts.load_ticket(folder / "ticket.safetensors")
    row = json.loads((folder / "metrics.json").read_text())
    assert row["zero_weights"] == masks.num_weights(mask) - masks.num_kept(mask) == round(0.6 * row["prunable_weights"])
    assert row["prunable_weights"] == 4 * 12 * 64 * 64
    # rounds of 1 step (0.5), 2 steps (0.6), 2 look-aheads of 2 steps each: 11 to find it, 3 to retrain
    assert (row["finding"]["steps"], row["retraining"]["steps"]) == (11, 3)
    assert about["rounds"] == row["rounds"]
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*.safetensors")}
    capsys.readouterr()
    assert run("study", "tiny.yaml", "--test") == 0
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*.safetensors")} == before
    # a ticket that was deleted, or a row that is no row, is made again, to the bit
    tickets = {path: path.read_bytes() for path in here.rglob("ticket.safetensors")}
    (folder / "ticket.safetensors").unlink()
    (folder.parent / "0.5000" / "metrics.json").write_text('{"settings": {}}')
    assert run("study", "tiny.yaml") == 0
    assert {path: path.read_bytes() for path in here.rglob("ticket.safetensors")} == tickets


def test_a_study_that_cannot_finish_does_not_begin(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last of its cells is impossible: too many rounds, no data, no such device, a folder that is a file."""
    for change, message in (
        (
            {"variants": {**STUDY["variants"], "isp": {"method": "isp", "settings": {"rate": 0.01}}}},
            "overrun the budget",
        ),
        ({"grid": [*STUDY["grid"], {**STUDY["grid"][0], "tasks": ["mnist"]}]}, "missing split 'train'"),
        ({"tasks": {"digits": {"num_train": 901}}}, "num_train = 901: allowed are 1 to 900"),
        ({"device": "cuda:7"}, "device = 'cuda:7': torch sees "),
    ):
        (here / "bad.yaml").write_text(yaml.safe_dump(STUDY | change))
        assert run("study", "bad.yaml") == 2
        assert message in capsys.readouterr().err
    (here / "file").touch()
    assert run("study", "tiny.yaml", "--results", "file") == 2
    assert "file/tiny: cannot be written to (Not a directory)" in capsys.readouterr().err
    assert not list(here.rglob("*.safetensors"))


def test_a_ticket_of_other_settings_is_not_scored(here: Path) -> None:
    """As after a kill between the two writes of a cell, and a change of the study file."""
    assert run("study", "tiny.yaml") == 0
    other = STUDY | {"training": {"clip_tiny": {"steps": 7, "batch_size": 16, "learning_rate": 1e-3}}}
    (here / "other.yaml").write_text(yaml.safe_dump(other))
    study = load_study(here / "other.yaml")
    group = next(study.groups())
    with pytest.raises(ArtifactError, match="made under other settings; run the study again"):
        Runner(study=study).score_on_test(group, group.sparsities[0])


def test_a_changed_setting_runs_what_it_affects_again(here: Path) -> None:
    assert run("study", "tiny.yaml") == 0
    files = {path: path.read_bytes() for path in here.rglob("ticket.safetensors")}
    changed = yaml.safe_load(yaml.safe_dump(STUDY))
    changed["variants"]["isp"]["settings"]["denoisers"] = 0
    (here / "tiny.yaml").write_text(yaml.safe_dump(changed))
    assert run("study", "tiny.yaml") == 0
    differ = {path.parts[-3] for path, content in files.items() if path.read_bytes() != content}
    assert differ == {"isp"}


def test_seeds_share_the_work_and_a_killed_study_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_seeds = yaml.safe_load(yaml.safe_dump(STUDY))
    two_seeds["grid"][0]["seeds"] = [0, 1]
    (here / "tiny.yaml").write_text(yaml.safe_dump(two_seeds))
    assert run("study", "tiny.yaml", "--seed", "1") == 0
    assert not (here / "results/tiny/metrics.csv").exists()
    assert run("study", "tiny.yaml") == 0
    text = (here / "results/tiny/metrics.csv").read_bytes()
    next(here.rglob("seed0/isp/0.5000/metrics.json")).unlink()
    assert run("study", "tiny.yaml") == 0
    assert (here / "results/tiny/metrics.csv").read_bytes() == text
    assert run("study", "tiny.yaml", "--seed", "7") == 2
    assert "no cell of study 'tiny' has seed 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --task digit", "unknown task 'digit'; did you mean 'digits'?"),
        ("run --task digits --method ips", "unknown method 'ips'; did you mean 'isp'?"),
        ("run --task digits --backbone clip", "unknown backbone 'clip'; did you mean 'clip_tiny'?"),
        ("run --task digits --sparsity 1.2", "sparsity 1.2: outside [0, 1)"),
        ("run --task digits --sparsity 0.9999", "the rounds overrun the budget"),
        ("run --task digits --set training.step=3", "unknown key training.clip_tiny 'step'; did you mean 'steps'?"),
        ("run --task digits --set steps=3", "--set steps=3: allowed are method.KEY=VALUE, training.KEY=VALUE"),
        ("run --task digits --set method.rule=[", "'[' is not a YAML value"),
        ("run --task digits --method dense --sparsity 0.5", "method 'dense' does not prune, leave it out"),
        ("run --task mnist", "missing split 'train' of ylecun/mnist"),
        ("list things", "allowed are methods, tasks, backbones"),
        ("study none.yaml", "none.yaml: cannot be read"),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    assert run(*command.split()) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("isp: ")
    assert not (here / "results").exists()


def test_mnist_from_a_folder_and_the_test_split_is_not_read_to_train(here: Path) -> None:
    """Training and choosing work where there is no test file at all."""
    write_mnist(here / "data", "train", [i % 10 for i in range(120)])
    study = {**STUDY, "data_root": "data", "tasks": {"mnist": {"num_train": 64}}}
    study["grid"] = [{**STUDY["grid"][0], "tasks": ["mnist"], "variants": ["dense"], "sparsities": []}]
    (here / "mnist.yaml").write_text(yaml.safe_dump(study))
    assert run("study", "mnist.yaml") == 0
    loaded = load_study(here / "mnist.yaml")
    (group,) = loaded.groups()
    with pytest.raises(DataError, match="missing split 'test'"):
        Runner(study=loaded).score_on_test(group, group.sparsities[0])
    train, validation = Runner(study=loaded).training_data(group)
    assert (len(train), len(validation), train.augmentation, validation.augmentation) == (64, 12, "crop", "none")


def test_divergence_keeps_the_last_good_state(here: Path) -> None:
    broken = {**STUDY, "training": {"clip_tiny": {"steps": 6, "batch_size": 16, "learning_rate": 1e30}}}
    (here / "broken.yaml").write_text(yaml.safe_dump(broken))
    study = load_study(here / "broken.yaml")
    group = next(study.groups())
    with pytest.raises(IspError, match=r"diverged at step \d.* It was written to (.*last_good_state.safetensors)"):
        Runner(study=study).run(group)
    (path,) = here.rglob("last_good_state.safetensors")
    assert not list(here.rglob("last_good_mask.safetensors"))  # it was dense
    state, _ = artifacts.load_state(path)
    assert all(torch.isfinite(tensor).all() for tensor in state.weights.values())
    assert not list(here.rglob("metrics.json"))


def test_a_damaged_ticket_or_backbone_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "tiny.yaml") == 0
    path = next(here.rglob("seed0/isp/0.5000/ticket.safetensors"))
    path.write_bytes(path.read_bytes()[:-5])
    assert run("study", "tiny.yaml", "--test") == 2
    assert "ticket.safetensors: truncated" in capsys.readouterr().err.replace("\n", "")
    weights = here / "resources/backbones/clip_tiny.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    next(here.rglob("seed0/isp/0.5000/metrics.json")).unlink()
    assert run("study", "tiny.yaml") == 2
    assert "(stage: pretrain)" in capsys.readouterr().err
