"""The command line; what runs the workflow is in test_workflow.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from isp import artifacts, cli, registry, stages
from isp.config import Study, load_study
from isp.errors import IspError
from isp.methods.isp import Settings as IspSettings
from isp.methods.isp import rounds
from isp.stages.finetune_dense import finetune_dense
from isp.stages.initialise import initialise
from isp.workflow import running
from isp.workflow.jobs import Jobs
from isp.workflow.rules import RULES
from tests.support.data import PARTS, prepared, write_mnist

TRAINING = {"steps": 6, "batch_size": 16, "learning_rate": 1e-3}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def test_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for kind in registry.KINDS for name in registry.names(kind))
    assert run("list", "methods", "isp") == 0
    explained = capsys.readouterr().out
    assert "Jaiswal et al." in explained
    assert "denoisers" in explained
    assert run("list", "tasks") == 0
    assert "one_shot" not in capsys.readouterr().out


@pytest.mark.process
def test_help_names_every_stage_without_importing_torch() -> None:
    code = "import sys; from isp.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(stage in done.stdout for stage in stages.NAMES)


@pytest.mark.parametrize("stage", stages.NAMES)
def test_every_stage_has_a_manual(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stage, "--help") == 0
    printed = capsys.readouterr().out
    assert "--output" in printed or stage == "prepare"
    assert "Options" in printed


def test_the_stages_are_those_that_the_rules_run() -> None:
    assert set(stages.NAMES) == {stage for rule in RULES.values() for stage in (rule.run, *rule.starts)}


def test_help_shows_first_what_people_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    people, called = capsys.readouterr().out.split("Stages, called by Snakemake")
    listed = [re.match(r"│ (\w+)", line) for line in [*people.splitlines(), "-", *called.splitlines()]]
    names = [match[1] if match else "" for match in listed]
    assert [name for name in names[: people.count("\n") + 1] if name] == list(cli.PEOPLE)
    assert sorted(filter(None, names)) == sorted({*cli.PEOPLE, *stages.NAMES})


@pytest.mark.process
def test_a_study_is_read_without_torch() -> None:
    """Every start of Snakemake reads the rules and the study: of torch's seconds it is to pay none."""
    code = (
        "import sys; from pathlib import Path\n"
        "from isp.config import load_study\nfrom isp.workflow import resources, running\n"
        "from isp.workflow.jobs import Jobs\n"
        "for path in sys.argv[1:]:\n"
        "    jobs = Jobs(load_study(Path(path)))\n"
        "    for output in jobs.by_output:\n"
        "        rule, w = jobs._rule_of(output)\n"
        "        jobs.dag.rule(rule.name).version(w)\n"
        "        jobs.dag.rule(rule.name).settings(w)\n"
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    studies = [str(ROOT / "config" / name) for name in ("config.yaml", "smoke.yaml", "full.yaml", "soups.yaml")]
    done = subprocess.run(
        [sys.executable, "-c", code, *studies], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_collecting_and_reporting_need_no_torch() -> None:
    modules = ", ".join(f"isp.stages.{name}" for name in ("collect", "tables", "figures", "page"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --task digit", "unknown task 'digit'; did you mean 'digits'?"),
        ("run --task digits --method ips", "unknown method 'ips'; did you mean 'isp'?"),
        ("run --task digits --backbone clip", "unknown backbone 'clip'; did you mean 'clip_tiny'?"),
        ("run --task digits --sparsity 1.2", "sparsity 1.2: outside [0, 1)"),
        ("run --task digits --sparsity 0.9999", "the rounds exceed the budget"),
        ("run --task digits --set training.step=3", "unknown key training.clip_tiny 'step'; did you mean 'steps'?"),
        (
            "run --task digits --set steps=3",
            "--set must be method.KEY=VALUE, training.KEY=VALUE, task.KEY=VALUE or initial=VALUE, got steps=3",
        ),
        ("run --task digits --set method.rule=[", "'[' is not a YAML value"),
        ("run --task digits --method dense --sparsity 0.5", "method 'dense' does not prune; omit the option"),
        ("run --task digits --method instant_model_soup --sparsity 0.5", "does not prune; omit the option"),
        ("pretrain --backbone clip --output out", "unknown backbone 'clip'; did you mean 'clip_tiny'?"),
        ("download --task mnist --data-root none --output m.json", "Downloading from the hub failed"),
        ("split --task mnist --data-root none --manifest none --output a", "none: no such file; make it first"),
        ("download --data-root none --output m.json", "exactly one of --task and --backbone must be given"),
        ("convert --backbone clip_tiny --data-root n --manifest m --output a", "has no files to convert; pre-train it"),
        ("download --task '{kind: texts}' --data-root none --output m.json", "task: missing key 'id'"),
        ("collect --runs none --cells nonsense --output out", "not a list of {backbone, tasks, seeds, variants"),
        (
            "tables --metrics none.csv --timings a --rounds b --layers c --similarity d --reference e --output out",
            "none.csv: no such file; make it first",
        ),
        ("compare_masks --tickets '{0.5: a}' --cell '{}' --output out", "must be {sparsity: {variant: path}}"),
        ("compare_masks --tickets '{0.5: {a: x}}' --cell '{}' --output out", "x: no such ticket file; make it first"),
        ("collect --runs none --cells '[]' --similarity none --output out", "none: no such file; make it first (stage"),
        ("list things", "the kind must be one of methods, tasks, backbones, got 'things'"),
        ("plann", "unknown command 'plann'; did you mean 'plan'? (allowed: average_members, "),
        ("predictt", "unknown command 'predictt'; did you mean 'predict'?"),
        ("find_tickets", "unknown command 'find_tickets'; did you mean 'find_ticket'?"),
        ("run --task cola --set method.segment_fraction=0.075", "the rounds exceed the budget"),
        ("run --task cola --sparsity 0.99", "the rounds exceed the budget"),
        ("run --task cola --set method.segment_fractio=1", "isp run: variants.isp_mean: settings of method 'isp_mean'"),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("isp.data.hub.PAUSES", (0,))
    assert run(*shlex.split(command)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("isp: ")
    assert not list(here.rglob("*.*"))


def test_a_run_without_snakemake_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "snakemake", None)
    assert run("run", "--task", "digits") == 2
    assert "Snakemake is not installed" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_the_length_of_a_run_in_epochs(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces the backbone's steps, and the workflow can read the study; digits: 900 / 32 = 28 whole batches."""
    monkeypatch.setattr(cli, "_snakemake", lambda: ["snakemake"])
    failed = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(cli, "subprocess", Mock(run=lambda *_, **__: failed))
    options = ["run", "--task", "digits", "--method", "dense", "--set"]
    assert run(*options, "training.epochs=2") == 1  # as if Snakemake failed
    (path,) = here.rglob("study.yaml")
    assert load_study(path).protocol("clip_tiny", "digits").steps == 2 * 28
    assert run(*options, "training.epochs=null") == 1
    assert len(list(here.rglob("study.yaml"))) == 2  # the backbone's steps
    assert run(*options, "training.epochs=2", "--set", "training.steps=9") == 2
    assert "steps, epochs: a protocol must have exactly one of them" in capsys.readouterr().err


def written_by(here: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Study:
    """The study that `isp run` hands to Snakemake."""
    monkeypatch.setattr(cli, "_snakemake", lambda: ["snakemake"])
    failed = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(cli, "subprocess", Mock(run=lambda *_, **__: failed))
    assert run("run", *options) == 1  # as if Snakemake failed
    (path,) = here.rglob("study.yaml")
    return load_study(path)


@pytest.mark.parametrize("task", registry.names("task"))
def test_the_defaults_of_a_run_work_for_every_task(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """The only required option is --task; the rounds fit into T and leave at least a fifth of it, without data."""
    study = written_by(here, monkeypatch, "--task", task)
    (group,) = study.groups()
    assert (group.variant, group.sparsities) == ("isp_mean", (Decimal("0.9"),))
    jobs = Jobs(study)
    assert {"prune_denoised", "retrain", "evaluate"} <= {RULES[job.rule].run for job in jobs.by_output.values()}
    settings = study.method("isp_mean").settings
    assert isinstance(settings, IspSettings)
    training = study.protocol(group.backbone, task)
    last = rounds(settings, Decimal("0.9"), study.num_train(task) // training.batch_size, training.steps)[-1]
    lowered = settings.segment_fraction < 0.075
    assert lowered == ("segment_fraction is lowered to" in capsys.readouterr().err) == (task not in ("digits", "wnli"))
    assert lowered or study.variants["isp_mean"].settings == {}  # the digest that names the folder is as ever
    assert last.stop <= 0.8 * training.steps or not lowered


@pytest.mark.parametrize("method", registry.names("method"))
@pytest.mark.parametrize("task", ["digits", "half_order", "word_order"])
def test_the_defaults_of_every_method_work_for_the_tasks_without_download(
    here: Path, monkeypatch: pytest.MonkeyPatch, method: str, task: str
) -> None:
    assert len(list(written_by(here, monkeypatch, "--task", task, "--method", method).groups())) == 1


def test_a_segment_fraction_that_is_given_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--task", "cola", "--set", "method.segment_fraction=0.01", "--set", "training.steps=500")
    study = written_by(here, monkeypatch, *options)
    assert study.variants["isp_mean"].settings == {"segment_fraction": 0.01}


def test_errors_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IspError("[bold]\x1b]0;title\x07 \x9b31m \u202e \ud800")

    monkeypatch.setattr(cli, "app", fail)
    assert run("anything") == 2
    assert capsys.readouterr().err == r"isp: [bold]\x1b]0;title\x07 \x9b31m \u202e \ud800" + "\n"


def test_test_examples_cannot_be_trained_on(here: Path, short_pretraining: Path) -> None:
    prepared(short_pretraining, here)
    weights = short_pretraining / "backbones" / "clip_tiny.safetensors"
    for wrong in ("validation", "test"):
        with pytest.raises(IspError, match=f"{wrong}: contains {wrong} examples, but train examples are needed here"):
            initialise(
                **{"backbone": "clip_tiny", "task": "digits", "seed": 0, "data": here / wrong, "limits": {}},
                **{"training": TRAINING, "weights": weights, "output": here / "out", "initial": "pretrained"},
            )
        assert not (here / "out").exists()


def test_mnist_from_a_folder(here: Path, short_pretraining: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(here / "data", "train", [i % 10 for i in range(120)])
    write_mnist(here / "data", "test", [3] * 7)
    assert run("download", "--task", "mnist", "--data-root", "data", "--output", "manifest.json") == 0
    assert "mnist/train-00000-of-00001.parquet" in (here / "manifest.json").read_text()
    source = ["--task", "mnist", "--data-root", "data", "--manifest", "manifest.json"]
    assert run("split", *source, "--output", "split") == 2  # 120 examples instead of 60,000
    task = registry.load("task", "mnist")
    monkeypatch.setattr(task, "TASK", replace(task.TASK, num_examples=120))
    assert run("split", *source, "--output", "split") == 0
    weights = short_pretraining / "backbones/clip_tiny.safetensors"
    options = [*source, "--backbone", "clip_tiny", "--split", "split", "--weights", str(weights)]
    assert run("prepare", *options, *(text for name in PARTS for text in (f"--{name}", name))) == 0
    found = {name: artifacts.load_examples(here / name, name)[0] for name in PARTS}
    assert {name: len(tensors["labels"]) for name, tensors in found.items()} == {
        "train": 108,
        "validation": 12,
        "test": 7,
    }
    numbers = torch.cat([found["train"]["index"], found["validation"]["index"]])
    assert sorted(numbers.tolist()) == list(range(120))  # disjoint, and all of them
    for name in ("train", "validation"):
        labels = found[name]["labels"]
        assert torch.equal(labels, found[name]["index"] % 10)
        assert torch.equal(found[name]["pixels"][:, 0, 0, 0], (10 * labels).to(torch.uint8))


def test_divergence_keeps_the_last_good_state(here: Path, short_pretraining: Path, capsys: object) -> None:
    prepared(short_pretraining, here)
    common = {"backbone": "clip_tiny", "task": "digits", "seed": 0, "data": here / "train", "limits": {}}
    common["training"] = TRAINING
    weights = short_pretraining / "backbones" / "clip_tiny.safetensors"
    initialise(**common, weights=weights, output=here / "initial.safetensors", initial="pretrained")
    common["training"] = TRAINING | {"learning_rate": 1e30}
    with pytest.raises(IspError, match=r"diverged at step \d.* It was written to (.*last_good_state)"):
        finetune_dense(here / "initial.safetensors", **common, output=here / "dense.safetensors")
    (path,) = here.rglob("dense.last_good_state.safetensors")
    assert not list(here.rglob("*last_good_mask*"))  # it was dense
    assert not (here / "dense.safetensors").exists()
    state, _ = artifacts.load_state(path)
    assert all(torch.isfinite(tensor).all() for tensor in state.weights.values())


def test_a_damaged_input_is_named_with_its_stage(
    here: Path, short_pretraining: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (short_pretraining / "backbones" / "clip_tiny.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[:-5])
    (here / "train").write_bytes(whole)
    options = ["--backbone", "clip_tiny", "--task", "digits", "--seed", "0", "--limits", "{}", "--output", "state"]
    options += [
        "--initial",
        "pretrained",
        "--training",
        "{steps: 6, learning_rate: 1e-3}",
        "--data",
        "train",
        "--weights",
    ]
    assert run("initialise", *options, "cut.safetensors") == 2
    assert "cut.safetensors: truncated" in (printed := capsys.readouterr().err.replace("\n", ""))
    assert "(stage: pretrain or convert)" in printed
    assert run("initialise", *options, str(short_pretraining / "backbones" / "clip_tiny.safetensors")) == 2
    assert "train: contains backbone, but examples is needed" in capsys.readouterr().err.replace("\n", "")
    assert not (here / "state").exists()


def test_only_the_download_may_use_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a warm server, whose libraries read the environment before; and nothing of it outlasts the call."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = {}

    def look(arguments: list[str], **_: Any) -> None:
        seen[arguments[0]] = (os.environ.get("HF_HUB_OFFLINE"), constants.is_offline_mode())

    monkeypatch.setattr(cli, "_commands", lambda is_stage: look)
    for stage in (*stages.NAMES, "run"):
        cli.main([stage])
    assert seen == dict.fromkeys(stages.NAMES, ("1", True)) | dict.fromkeys(("download", "run"), (None, False))
    assert (os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE) == (None, False)


def test_options_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that the command line would hold, to the byte; long ones only travel so."""
    monkeypatch.chdir(tmp_path)
    values = {"study": {"question": "{x} \U0001f600 'it\"s' $HOME\n" + "long " * 20_000}, "text": "--output"}
    texts = {"study": json.dumps(values["study"]), "text": values["text"]}
    options = " ".join(f"--{key} {shlex.quote(text)}" for key, text in texts.items())
    shortened = running.by_file(options)
    assert len(shortened) < 100
    assert (shortened, running.by_file("--a b")) == (running.by_file(options), "--a b")
    assert running.by_file(options + " ") != shortened
    seen: list[str] = []
    monkeypatch.setattr(cli, "_commands", lambda is_stage: lambda arguments, **_: seen.extend(arguments))
    cli.main(["describe", *shlex.split(shortened), "--output", "x"])
    assert seen == ["describe", "--study", texts["study"], "--text", "--output", "--output", "x"]
    with pytest.raises(SystemExit):
        cli.main(["describe", "--options-from", "nowhere.txt"])
