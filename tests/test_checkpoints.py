"""Work that is cut and begun again ends in the same bits: of a run, of every method that is one job, of real stages."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from isp import artifacts, checkpoints, families, lineage, masks, registry
from isp.checkpoints import FileCheckpoint, pack, unpack
from isp.config import load_study
from isp.costs import Cost
from isp.errors import IspError
from isp.families import souped
from isp.methods import uniform_soup
from isp.stages import _work as work
from isp.stages.initialise import initialise
from isp.stages.pool_tickets import pool_tickets
from isp.stages.prune_iterative import prune_iterative
from isp.stages.prune_one_shot import prune_one_shot
from isp.stages.train_segment import train_segment
from isp.superposition import Superposition
from isp.tickets import Ticket
from isp.training import State, Trainer, state_of
from isp.workflow.jobs import Job, Jobs
from isp.workflow.rules import RULES
from tests.support.data import prepared
from tests.support.methods import find
from tests.support.models import Noisy, tiny_model

MakeTrainer = Callable[..., Trainer]
ROOT = Path(__file__).parent.parent
GROUPS: dict[str, str] = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())["groups"]
"""Groups of the Slurm profile, by rule."""
WHOLE = [
    name
    for name in registry.names("method")
    if registry.load("method", name).FAMILY == "single_pass"
    or (registry.load("method", name).FAMILY == "denoised" and not families.make_method(name).settings.chained)  # type: ignore[attr-defined]
]
"""Methods whose ticket is one job of several runs."""


class Cut(BaseException):
    """What ends the work of a test."""


class Cutting(FileCheckpoint):
    """Is due after a number of steps, and cuts the work there."""

    def __init__(self, path: Path, steps: int) -> None:
        super().__init__(path, {}, seconds=0)
        self.left = steps

    def due(self) -> bool:
        self.left -= 1
        return super().due() and not self.left

    def keep(self, state: State, spent: Cost) -> None:
        super().keep(state, spent)
        raise Cut


def bits(value: Any) -> Any:
    """Something that is equal only if every bit is; zeros have a sign."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, State | Ticket | Cost | Superposition):
        return bits(vars(value))
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    return value


def fresh(trainer: Trainer, checkpoint: FileCheckpoint) -> Trainer:
    """As in another process."""
    return replace(trainer, model=tiny_model(), examples=Noisy(), checkpoint=checkpoint)


def kept(path: Path) -> dict[str, Any]:
    """What is in a file."""
    tensors, content, _ = artifacts.load_checkpoint(path)
    return unpack(content, tensors)


def through_cuts(do: Callable[[FileCheckpoint], Any], path: Path, steps: int) -> tuple[Any, int]:
    """Cut the work again and again, each time after so many steps, until it is done; its result, and how many cuts."""
    for cuts in range(1000):
        try:
            return do(Cutting(path, steps)), cuts
        except Cut:
            torch.rand(3)
    raise AssertionError("it does not end")


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [None, "0.7"])
def test_a_run_that_is_cut_after_any_step_ends_in_the_same_bits(
    make: MakeTrainer, tmp_path: Path, sparsity: str | None
) -> None:
    """Momentum, dropout, augmentation and, from step 3, a mask; the cost is that of the whole run."""
    trainer = make(steps=12)
    start, _ = trainer.run(state_of(trainer.model), 3)
    mask = sparsity and masks.prune_by_magnitude(trainer.prunable_weights(start), Decimal(sparsity))
    whole = bits(trainer.run(start, 12, mask or None))
    for step in range(1, 10):
        path = tmp_path / str(step)
        with pytest.raises(Cut):
            fresh(trainer, Cutting(path, step)).run(start, 12, mask or None)
        assert kept(path)["state"].step == 3 + step
        assert kept(path)["spent"] == trainer.cost(range(3, 3 + step), mask or None)
        again = FileCheckpoint(path, {}, seconds=1000)
        assert bits(fresh(trainer, again).run(start, 12, mask or None)) == whole
    done, cuts = through_cuts(lambda each: fresh(trainer, each).run(start, 12, mask or None), tmp_path / "every", 1)
    assert (bits(done), cuts) == (whole, 9)


def test_nothing_is_kept_before_it_is_time(make: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of one second a look: looked at once when it begins, after every step, and when one was written."""
    now = iter(range(1000))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(now))
    steps: list[int] = []

    class Noting(FileCheckpoint):
        def keep(self, state: State, spent: Cost) -> None:
            super().keep(state, spent)
            steps.append(state.step)

    trainer = replace(make(), checkpoint=Noting(tmp_path / "file", {}, seconds=10))
    trainer.run(state_of(trainer.model), 30)
    assert steps == [10, 20, 30]


def test_progress_comes_back_as_it_was() -> None:
    value: dict[str, Any] = {
        "cost": Cost(steps=3, flops=2**70),
        "state": State(step=4, weights={"a": torch.randn(2, 3)}, optimizer={"a": {"step": torch.tensor(4.0)}}),
        "sparsity": Decimal("0.5000"),
        "records": [{"round": 0, "agreement": 0.1 + 0.2, "by layer": None, "yes": True}],
        "contributions": [{"a": torch.tensor([True, False])}, {}],
    }
    tensors: dict[str, Tensor] = {}
    for rule in ("union", "mean_score"):
        value[rule] = Superposition(rule=rule, sparsity=Decimal("0.5"), within={"a": torch.tensor([True, False, True])})
        value[rule].add({"a": torch.tensor([True, False, False] if rule == "union" else [2.0, 1.0, 3.0])})
    assert bits(unpack(pack(value, tensors), tensors)["contributions"]) == bits(value["contributions"])
    assert str(bits(unpack(pack(value, tensors), tensors))) == str(bits(value))
    for wrong in ({1: "a"}, object(), (1, 2)):
        with pytest.raises(TypeError, match="not supported in the progress of a loop"):
            pack([wrong], {})


# --- methods whose ticket is one job ----------------------------------------------------------------------------------


def test_there_are_such_methods() -> None:
    assert {"progressive", "early_bird", "gradual", "movement", "isp_code"} <= set(WHOLE)


@pytest.mark.parametrize("name", WHOLE)
def test_a_ticket_that_is_cut_after_any_step_is_the_same(make: MakeTrainer, name: str, tmp_path: Path) -> None:
    """Cut once, at every step; and cut after every single one."""
    trainer = make(steps=10)

    def ticket(checkpoint: FileCheckpoint) -> Ticket:
        return find(fresh(trainer, checkpoint), name, "0.7")[0]

    whole = find(trainer, name, "0.7")[0]
    assert name == "early_bird" or len(whole.rounds) >= 2 or whole.rounds[0]["events"] >= 5
    steps = whole.cost.steps
    assert steps >= 10
    for step in range(1, steps + 1):
        path = tmp_path / str(step)
        with pytest.raises(Cut):
            ticket(Cutting(path, step))
        assert bits(ticket(FileCheckpoint(path, {}, seconds=1000))) == bits(whole), f"cut after step {step}"
    done, cuts = through_cuts(ticket, tmp_path / "every", 1)
    assert (bits(done), cuts) == (bits(whole), steps)


@pytest.mark.parametrize("sparsity", ["0.0000", "0.7000"])
def test_a_member_of_a_soup_that_is_cut_after_any_step_is_the_same(
    make: MakeTrainer, sparsity: str, tmp_path: Path
) -> None:
    trainer, settings = make(steps=10), uniform_soup.Settings(members=3, masks="own", prune_at=0.5)

    def member(checkpoint: FileCheckpoint | None) -> Ticket:
        own = replace(trainer, model=tiny_model(), checkpoint=checkpoint)
        return souped.train_member(settings, own, state_of(tiny_model()), Decimal(sparsity), 1)

    done, cuts = through_cuts(member, tmp_path / "file", 1)
    assert (bits(done), cuts) == (bits(member(None)), 10)


def test_of_a_loop_that_tells_no_progress_only_the_first_run_is_kept(make: MakeTrainer, tmp_path: Path) -> None:
    """Lottery tickets are found by several jobs; in one job they are found all the same, and right."""
    trainer, path = make(steps=6), tmp_path / "file"
    (whole,) = find(trainer, "lth", "0.6")
    with pytest.raises(Cut):
        find(fresh(trainer, Cutting(path, 4)), "lth", "0.6")
    (again,) = find(fresh(trainer, FileCheckpoint(path, {}, seconds=0)), "lth", "0.6")
    assert bits(again) == bits(whole)
    assert kept(path)["state"].step == 6
    (again,) = find(fresh(trainer, Cutting(path, 4)), "lth", "0.6")  # resumes from step 6, and is not cut at step 4
    assert bits(again) == bits(whole)


# --- stages -----------------------------------------------------------------------------------------------------------

COMMON: dict[str, Any] = {"backbone": "clip_tiny", "task": "digits", "seed": 0, "limits": {"num_train": 64}}
COMMON |= {"training": {"steps": 6, "batch_size": 16, "learning_rate": 1e-3}}
STAGES: dict[str, dict[str, Any]] = {
    "finetune_dense": {"initial": "initial"},
    "retrain": {"start": "initial", "mask": "mask", "method": "one_shot", "sparsity": "0.5"},
    "train_segment": {"start": "segment", "until": 5, "within": "mask"},
    "weak_mask": {
        **{"state": "segment", "round_": 1, "member": 1, "sparsity": "0.6", "within": "mask"},
        **{"settings": {"look_ahead_steps": 4, "learning_rate_factors": [0.5, 2], "data_fraction": 0.5}},
    },
    "prune_denoised": {
        **{"state": "segment", "round_": 1, "denoisers": 2, "rule": "votes", "sparsity": "0.6", "within": "mask"},
        **{"settings": {"look_ahead_steps": 4, "learning_rate_factors": [0.5, 2], "data_fraction": 0.5}},
    },
    "run_rounds": {
        **{"start": "segment", "first": 1, "rounds": "[[5, 0.6]]", "until": 6, "denoisers": 2, "rule": "votes"},
        **{"within": "mask", "settings": {"look_ahead_steps": 1, "data_fraction": 0.5}},
    },
    "find_ticket": {
        **{"initial": "initial", "method": "movement", "sparsity": "0.5"},
        "settings": {"every": 1, "end": 0.7},
    },
    "train_member": {
        **{"initial": "initial", "member": 1, "sparsity": "0.5"},
        "settings": {"learning_rate_factors": [0.5, 2], "masks": "own", "prune_at": 0.2},
    },
    "train_subnetwork": {"initial": "initial", "member": 1, "settings": {"look_ahead_steps": 4}},
}
"""The stages that train for long, with options under which they are quick; texts that are files end in .safetensors."""


@pytest.fixture(scope="module")
def folder(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an initial state, another one, a mask, and the state after one step under it."""
    made = tmp_path_factory.mktemp("checkpoints")
    prepared(short_pretraining, made)
    common = {**COMMON, "data": made / "train"}
    weights = short_pretraining / "backbones" / "clip_tiny.safetensors"
    for name, seed in (("initial", 0), ("other", 1)):
        options = common | {"seed": seed, "weights": weights, "initial": "pretrained"}
        initialise(**options, output=made / f"{name}.safetensors")
    one_shot = {"initial": made / "initial.safetensors", "method": "one_shot", "sparsity": "0.5", "settings": {}}
    prune_one_shot(**common, **one_shot, output=made / "mask.safetensors")
    options = common | {"until": 1, "within": made / "mask.safetensors"}
    train_segment(made / "initial.safetensors", **options, output=made / "segment.safetensors")
    return made


def call(stage: str, folder: Path, output: Path, **others: Any) -> None:
    """A stage in this process, on files of the folder."""
    options = COMMON | {"data": folder / "train"} | STAGES[stage] | others
    for key in ("initial", "start", "mask", "within", "state"):
        if key in options:
            options[key] = folder / f"{options[key]}.safetensors"
    getattr(importlib.import_module(f"isp.stages.{stage}"), stage)(**options, output=output)


def written(path: Path) -> tuple[dict[str, Any], Any]:
    """The tensors of an artifact to the bit, and its header without what differs from run to run."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["isp"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["checksum"], about_work(header)["measured"]
    return bits(tensors), header


def about_work(header: dict[str, Any]) -> dict[str, Any]:
    """Where a header says what was measured."""
    return header["about"].get("origin", header["about"])


def seconds(path: Path) -> float:
    """What the last job of an artifact took."""
    with safe_open(path, "pt") as file:
        measured = about_work(json.loads(file.metadata()["isp"]))["measured"]
    return max(each["seconds"] for each in (measured.values() if "finding" in measured else [measured]))


def signalled(patch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
    """The next stage gets a signal in its step `step`, counted from 1."""
    done: list[int] = []
    real = work.Work.progress

    def progress(self: work.Work, steps: int) -> None:
        real(self, steps)
        done.append(steps)
        if len(done) == step:
            signal.raise_signal(number)

    patch.setattr(work.Work, "progress", progress)


def test_these_are_the_stages_that_have_checkpoints() -> None:
    files = Path(work.__file__).parent.glob("[!_]*.py")
    assert {path.stem for path in files if "resumable(" in path.read_text()} == STAGES.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_got_a_signal_goes_on_from_there(
    stage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything it writes is as if nothing had happened, except that the seconds until the signal are counted."""
    call(stage, folder, tmp_path / "whole.safetensors")
    output, checkpoint = tmp_path / "output.safetensors", tmp_path / "output.checkpoint.safetensors"
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGUSR1, step=3)
        with pytest.raises(SystemExit) as caught:
            call(stage, folder, output)
    assert caught.value.code == 128 + signal.SIGUSR1
    step = kept(checkpoint)["state"].step
    assert kept(checkpoint)["spent"].steps == {"train_member": 2}.get(stage, 3)
    told = f"isp: stopped by SIGUSR1 at step {step}; will resume from there: {checkpoint}"
    assert capsys.readouterr().err.splitlines() == [told]
    assert [path.name for path in tmp_path.iterdir() if "whole" not in path.name] == [checkpoint.name]

    tensors, content, about = artifacts.load_checkpoint(checkpoint)
    artifacts.save_checkpoint(checkpoint, tensors, content, about | {"seconds": 1000.0})
    call(stage, folder, output)
    assert f"resuming from step {step} of a run to step" in capsys.readouterr().err
    assert written(output) == written(tmp_path / "whole.safetensors")
    assert 1000 < seconds(output) < 1060
    assert not checkpoint.exists()
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]


@pytest.mark.parametrize("step", [3, 5, 6, 8])
def test_rounds_in_one_job_go_on_from_any_part(
    step: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1 and 2 are a segment, 3 and 4 copies, 5 a segment, 6 and 7 copies, 8 and 9 the last segment."""
    rounds = {"rounds": "[[3, 0.55], [4, 0.6]]"}
    call("run_rounds", folder, tmp_path / "whole", **rounds)
    output = tmp_path / "output.safetensors"
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, step)
        with pytest.raises(SystemExit):
            call("run_rounds", folder, output, **rounds)
    content = artifacts.load_checkpoint(checkpoints.beside(output))[1]
    assert content["dict"]["progress"]["dict"]["round"] == (1 if step < 5 else 2 if step < 8 else 3)
    call("run_rounds", folder, output, **rounds)
    assert written(output) == written(tmp_path / "whole")


def test_in_a_group_of_a_cluster_what_had_ended_goes_on_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails a later member, Snakemake deletes what the earlier ones wrote and begins them again."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", "0")
    state = tmp_path / "state.safetensors"
    call("train_segment", folder, state, until=5)
    whole = written(state)
    state.unlink()
    assert checkpoints.beside(state).exists()
    capsys.readouterr()
    call("train_segment", folder, state, until=5)
    assert "resuming from step 5 of a run to step 5" in capsys.readouterr().err
    assert written(state) == whole
    with pytest.raises(IspError):
        call("prune_denoised", folder, tmp_path, state=state.with_suffix(""))
    assert checkpoints.beside(state).exists()
    mask = tmp_path / "mask.safetensors"
    call("prune_denoised", folder, mask, state=state.with_suffix(""))
    assert checkpoints.beside(state).exists()  # the group may contain another mask
    assert checkpoints.beside(mask).exists()
    options = {"start": state.with_suffix(""), "mask": mask.with_suffix(""), "sparsity": "0.6"}
    call("retrain", folder, tmp_path / "ticket.safetensors", **options)  # is in another group
    assert not checkpoints.beside(state).exists()
    assert not checkpoints.beside(mask).exists()
    call("finetune_dense", folder, tmp_path / "dense.safetensors")  # is in no group
    assert not checkpoints.beside(tmp_path / "dense.safetensors").exists()


@pytest.mark.parametrize("successor", ["train_segment", "run_rounds"])
def test_a_group_whose_second_mask_is_stopped_resumes_all_of_its_members(
    successor: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first mask is a target's, the second continues the chain; Snakemake deletes all outputs of the group."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", "0")
    state, target, nominal = (tmp_path / f"{name}.safetensors" for name in ("state", "target", "nominal"))
    pruned = {"state": state.with_suffix("")}
    call("train_segment", folder, state, until=4)
    call("prune_denoised", folder, target, **pruned)
    with monkeypatch.context() as patch:
        patch.delenv("SLURM_JOB_ID")
        call("prune_denoised", folder, tmp_path / "whole.safetensors", **pruned, sparsity="0.7")
    whole = [written(path) for path in (state, target, tmp_path / "whole.safetensors")]
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGUSR1, step=3)
        with pytest.raises(SystemExit):
            call("prune_denoised", folder, nominal, **pruned, sparsity="0.7")
    for path in (state, target):
        path.unlink()

    capsys.readouterr()
    call("train_segment", folder, state, until=4)
    call("prune_denoised", folder, target, **pruned)
    call("prune_denoised", folder, nominal, **pruned, sparsity="0.7")
    resumed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resuming from step ")]
    assert [line.rpartition(": ")[2] for line in resumed] == [
        str(checkpoints.beside(path)) for path in (state, target, nominal)
    ]
    assert resumed[0].startswith("resuming from step 4 of a run to step 4")
    assert [written(path) for path in (state, target, nominal)] == whole

    # two later groups start from the state, in either order or at the same time
    following = {"start": state.with_suffix(""), "within": nominal.with_suffix("")}
    following |= {"first": 2, "rounds": "[[5, 0.8]]"} if successor == "run_rounds" else {"until": 5}
    call(successor, folder, tmp_path / "next.safetensors", **following)
    assert not any(checkpoints.beside(path).exists() for path in (state, nominal))
    options = {"start": state.with_suffix(""), "mask": target.with_suffix(""), "sparsity": "0.6"}
    call("retrain", folder, tmp_path / "ticket.safetensors", **options)
    left = {checkpoints.beside(tmp_path / name) for name in ("next.safetensors", "ticket.safetensors")}
    assert set(tmp_path.glob("*.checkpoint.*")) == left  # of groups that have not ended


def test_training_in_a_group_resumes_under_a_mask_that_was_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A one-shot mask and the training under it share a group. The new mask differs only in its measurements."""
    mask, ticket = tmp_path / "mask.safetensors", tmp_path / "ticket.safetensors"
    options = {**COMMON, "method": "one_shot", "sparsity": "0.5", "settings": {}, "data": folder / "train"}
    prune_one_shot(folder / "initial.safetensors", **options, output=mask)
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGUSR1, step=3)
        with pytest.raises(SystemExit):
            call("retrain", folder, ticket, mask=mask.with_suffix(""))
    before, took = lineage.read_header(mask), seconds(mask)
    while seconds(mask) == took:
        prune_one_shot(folder / "initial.safetensors", **options, output=mask)
    assert lineage.read_header(mask) != before
    capsys.readouterr()
    call("retrain", folder, ticket, mask=mask.with_suffix(""))
    assert "resuming from step 3 of a run to step 6" in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["prune_iterative", "pool_tickets"])
def test_the_checkpoint_of_a_rounds_ticket_goes_when_a_later_group_has_read_it(
    reader: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No score is computed of such a ticket."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", "0")
    tickets = [tmp_path / f"ticket{index}.safetensors" for index in range(2)]
    for ticket in tickets:
        call("retrain", folder, ticket, method="lth")
    output = tmp_path / "output.safetensors"
    if reader == "prune_iterative":
        with pytest.raises(IspError):
            prune_iterative(tickets[0], 1, "0.4", output)
        assert checkpoints.beside(tickets[0]).exists()
        for ticket in tickets:
            prune_iterative(ticket, 1, "0.6", output)
    else:
        options = {key: COMMON[key] for key in ("backbone", "task", "limits")} | {"validation": folder / "validation"}
        settings = {"coefficients": [0.5]}
        pool_tickets(tickets[0], tickets[1:], "lottery_pools", settings, **options, output=output)
    assert not list(tmp_path.glob("*.checkpoint.*"))


def test_the_checkpoint_of_a_rewind_point_goes_when_a_ticket_was_trained_from_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", "0")
    point = tmp_path / "pretrained.step3.safetensors"
    train_segment(folder / "initial.safetensors", until=3, **COMMON, data=folder / "train", output=point)
    assert checkpoints.beside(point).exists()
    for name in ("first", "second"):
        call("retrain", folder, tmp_path / f"{name}.safetensors", method="lth", start=point.with_suffix(""))
        assert not checkpoints.beside(point).exists()


@pytest.mark.parametrize("name", ["smoke", "full", "paper"])
def test_checkpoints_go_with_a_reader_in_a_later_group_or_with_the_score(name: str) -> None:
    """In the groups of the Slurm profile, a reader beside the writer may be followed by a member that fails."""
    sources = {path.stem: path.read_text() for path in Path(work.__file__).parent.glob("[!_]*.py")}
    leaving = {rule for rule, each in RULES.items() if "grouped=True" in sources[each.run]}
    forgetting = {rule for rule, each in RULES.items() if "checkpoints.forget(" in sources[each.run]}
    forgetting -= {"prune_denoised"}  # deletes only those of its copies
    jobs = Jobs(load_study(ROOT / "config" / f"{name}.yaml"))
    groups = {output: group_of(job) for output, job in jobs.by_output.items()}
    members: dict[str, set[str]] = {}
    for output, group in groups.items():
        members.setdefault(group, set()).add(output)
    kept = {output for output, job in jobs.by_output.items() if job.rule in leaving}
    forgotten: set[str] = set()
    for output, job in jobs.by_output.items():
        if job.rule == "evaluate":
            assert members[groups[output]] <= jobs.within(output)  # it is the last member
        elif job.rule in forgetting:
            assert not kept & members[groups[output]].intersection(job.inputs)
        else:
            continue
        forgotten.update(job.inputs)
    assert kept
    assert kept <= forgotten


def group_of(job: Job) -> str:
    """The group of a job in the Slurm profile; its output, if it is in none."""
    pattern = GROUPS.get(job.rule)
    place = re.search(r"/runs/(?P<backbone>.+?)/(?P<task>.+?)/seed(?P<seed>.+?)/(?P<variant>.+?)/", job.output)
    if pattern is None or place is None:
        return job.output
    round_ = re.search(r"/rounds?(?:\d+-)?(\d+)/", job.output)
    sparsity = re.search(r"/(?:to)?(0\.\d{4})/", job.output)
    return str(pattern.format(**place.groupdict(), round=round_ and round_[1], sparsity=sparsity and sparsity[1]))


def command(folder: Path, output: Path, steps: int, *before: str) -> list[str]:
    """Retraining, as the workflow calls it."""
    options = {"--start": folder / "initial.safetensors", "--mask": folder / "mask.safetensors", "--method": "one_shot"}
    options |= {"--sparsity": "0.5", "--backbone": "clip_tiny", "--task": "digits", "--seed": 0}
    options |= {"--data": folder / "train", "--limits": "{num_train: 64}", "--output": output}
    options |= {"--training": json.dumps(COMMON["training"] | {"steps": steps})}
    return [
        sys.executable,
        *(before or ("-m", "isp")),
        "retrain",
        *(str(each) for pair in options.items() for each in pair),
    ]


@pytest.mark.process
def test_processes_that_are_killed_go_on_one_after_the_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By either signal and by SIGKILL, the last one gone on with in this process; the seconds of all of them count."""
    output, checkpoint = tmp_path / "output.safetensors", tmp_path / "output.checkpoint.safetensors"
    environment = os.environ | {"ISP_CHECKPOINT_SECONDS": "0"}
    step, worked = 0, 0.0
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
        before = checkpoint.stat().st_ino if step else 0
        process = subprocess.Popen(command(folder, output, 40), env=environment, stderr=subprocess.PIPE, text=True)
        while not (checkpoint.exists() and checkpoint.stat().st_ino != before) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, printed = process.communicate(timeout=120)
        if step:
            assert f"resuming from step {step} of a run to step 40" in printed
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + number, printed
            assert f"isp: stopped by {number.name} at step " in printed
        assert not output.exists()
        assert step < kept(checkpoint)["state"].step < 40
        assert worked < artifacts.load_checkpoint(checkpoint)[2]["seconds"]
        step, worked = kept(checkpoint)["state"].step, artifacts.load_checkpoint(checkpoint)[2]["seconds"]
    training = COMMON["training"] | {"steps": 40}
    call("retrain", folder, output, training=training)
    assert f"resuming from step {step} of a run to step 40" in capsys.readouterr().err
    assert seconds(output) > worked
    call("retrain", folder, tmp_path / "whole.safetensors", training=training)
    assert written(output) == written(tmp_path / "whole.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"output.safetensors", "whole.safetensors"}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("training", "made with other values of training"),
        ("input", "made with other values of inputs"),
        ("methods", "made with other values of methods"),
        ("packages", "made with other values of packages"),
        ("checkpoints", "made with other values of checkpoints"),
        ("loop", "made by another loop"),
        ("damaged", "damaged"),
        ("truncated", "damaged"),
        ("empty", "damaged"),
    ],
)
def test_a_checkpoint_of_something_else_is_deleted(
    what: str,
    reason: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = "find_ticket" if what in ("loop", "methods") else "finetune_dense"
    output, checkpoint = tmp_path / "output.safetensors", tmp_path / "output.checkpoint.safetensors"
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, step=2)
        with pytest.raises(SystemExit):
            call(stage, folder, output)
    options: dict[str, Any] = {}
    if what == "training":
        options["training"] = COMMON["training"] | {"learning_rate": 2e-3}
    elif what == "input":
        options["initial"] = "other"
    elif what == "checkpoints":
        monkeypatch.setattr(checkpoints, "VERSION", checkpoints.VERSION + 1)
    elif what in ("packages", "methods"):
        tensors, content, about = artifacts.load_checkpoint(checkpoint)
        about["identity"][what][{"packages": "torch", "methods": "isp.methods.movement"}[what]] = 0
        artifacts.save_checkpoint(checkpoint, tensors, content, about)
    elif what == "loop":
        tensors, content, about = artifacts.load_checkpoint(checkpoint)
        del content["dict"]["progress"]["dict"]["memory"]
        artifacts.save_checkpoint(checkpoint, tensors, content, about)
    else:
        whole = checkpoint.read_bytes()
        ends = {"damaged": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "truncated": whole[:-1000], "empty": b""}
        checkpoint.write_bytes(ends[what])
    capsys.readouterr()
    call(stage, folder, output, **options)
    printed = capsys.readouterr().err
    assert f"{checkpoint}: {reason}; it was deleted, and training restarts" in printed
    assert "resuming from" not in printed
    call(stage, folder, tmp_path / "whole.safetensors", **options)
    assert written(output) == written(tmp_path / "whole.safetensors")
    assert not checkpoint.exists()


SLOW = """
import sys, time
from isp import artifacts, cli
serialized = artifacts._serialized
def slow(*arguments):
    for number, part in enumerate(serialized(*arguments)):
        yield part
        if number == 3:
            print("writing", flush=True)
            time.sleep(600)
artifacts._serialized = slow
cli.main(sys.argv[1:])
"""


@pytest.mark.process
def test_a_signal_outside_of_training_ends_the_process_at_once(folder: Path, tmp_path: Path) -> None:
    """While it writes its result: nothing is left."""
    run = command(folder, tmp_path / "output.safetensors", 2, "-c", SLOW)
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (-signal.SIGTERM, "")
    assert not list(tmp_path.iterdir())


def test_a_signal_after_the_last_step_ends_it_as_usual(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the one who had a handler before the stage began; what was not kept is trained again."""
    came: list[int] = []
    leave = Trainer._leave

    def leave_and_end(self: Trainer, *arguments: Any) -> State:
        signal.raise_signal(signal.SIGUSR1)
        return leave(self, *arguments)

    monkeypatch.setattr(Trainer, "_leave", leave_and_end)
    before = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        with pytest.raises(SystemExit) as caught:
            call("finetune_dense", folder, tmp_path / "output.safetensors")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (came, caught.value.code) == ([signal.SIGUSR1], 128 + signal.SIGUSR1)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_does_not_end_the_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *_: object) -> None:
        raise IspError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(artifacts, "save_checkpoint", full)
    call("finetune_dense", folder, tmp_path / "output.safetensors")
    assert capsys.readouterr().err.count("no checkpoint: ") == 6
    assert (tmp_path / "output.safetensors").exists()


@pytest.mark.parametrize("value", ["often", "-1", "nan", "inf", ""])
def test_a_period_that_is_none(value: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISP_CHECKPOINT_SECONDS", value)
    with pytest.raises(IspError, match=f"ISP_CHECKPOINT_SECONDS must be seconds, such as 180, or 0 .*, got '{value}'"):
        call("finetune_dense", folder, tmp_path / "output.safetensors")
