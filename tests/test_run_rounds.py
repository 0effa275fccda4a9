"""Rounds of Instant Soup Pruning that run in one job: the same bits, and nothing that was made is made again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from isp import artifacts
from isp.config import Study, parse_study
from isp.errors import IspError
from isp.stages.initialise import initialise
from isp.stages.prune_denoised import prune_denoised
from isp.stages.retrain import retrain
from isp.stages.run_rounds import run_rounds
from isp.stages.train_segment import train_segment
from isp.workflow.jobs import Jobs
from isp.workflow.rules import make_dag
from tests.support.data import prepared
from tests.support.models import equal
from tests.support.reruns import Job, jobs, reader, reruns
from tests.support.studies import STUDY
from tests.support.workflow import RUN, SMOKE, link_results, snakemake

PROTOCOL = {"steps": 12, "batch_size": 16, "learning_rate": 1e-3}
COPIES = {"look_ahead_steps": 2, "learning_rate_factors": [0.5, 2], "data_fraction": 0.5}


@pytest.fixture(scope="module")
def common(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of all stages; the initial state is in the folder of the examples."""
    folder = tmp_path_factory.mktemp("rounds")
    prepared(short_pretraining, folder)
    options = {"backbone": "clip_tiny", "task": "digits", "seed": 0, "limits": {"num_train": 64}}
    options |= {"training": PROTOCOL, "data": folder / "train"}
    weights = short_pretraining / "backbones" / "clip_tiny.safetensors"
    initialise(**options, weights=weights, initial="pretrained", output=folder / "initial")
    return options


@pytest.mark.parametrize(
    ("rule", "denoisers", "scope"), [("union", 2, "global"), ("mean_score", 3, "layer"), ("union", 0, "global")]
)
def test_the_state_is_that_of_the_rounds_one_by_one(
    rule: Any, denoisers: int, scope: Any, common: dict[str, Any], tmp_path: Path
) -> None:
    """To the bit, with the mask, the records and the costs; and so are the mask and the ticket that are made of it."""
    steps, sparsities = [2, 4, 7], ["0.2000", "0.3600", "0.4880"]
    pruning = {"denoisers": denoisers, "rule": rule, "settings": COPIES, "scope": scope}
    start, within = common["data"].with_name("initial"), None
    for index, (step, sparsity) in enumerate(zip(steps, sparsities, strict=True)):
        state, mask = tmp_path / f"state{index}", tmp_path / f"mask{index}"
        train_segment(start, until=step, within=within, output=state, **common)
        event = {"state": state, "within": within, "round_": index, "sparsity": sparsity, "output": mask}
        prune_denoised(**event, **pruning, **common)
        start, within = state, mask
    assert within is not None
    rounds = str([[step, float(sparsity)] for step, sparsity in zip(steps[:2], sparsities, strict=False)])
    together, initial = tmp_path / "together", common["data"].with_name("initial")
    run_rounds(start=initial, first=0, rounds=rounds, until=7, output=together, **pruning, **common)

    (one, before), (other, after) = artifacts.load_state(start), artifacts.load_state(together)
    assert one.step == other.step
    assert equal(one.weights, other.weights)
    assert one.optimizer.keys() == other.optimizer.keys()
    assert all(equal(one.optimizer[name], other.optimizer[name]) for name in one.optimizer)
    second = artifacts.load_mask(tmp_path / "mask1")[0]
    kept = artifacts.load_state_mask(together)
    assert kept is not None
    assert equal(kept, second)
    assert {key: before[key] for key in ("rounds", "cost")} == {key: after[key] for key in ("rounds", "cost")}
    assert len(after["rounds"]) == 2
    assert (before["measured"]["jobs"], after["measured"]["jobs"]) == (5, 1)

    later = tmp_path / "later"
    goes_on = {"start": tmp_path / "state0", "within": tmp_path / "mask0", "first": 1, "rounds": "[[4, 0.36]]"}
    run_rounds(**goes_on, until=7, output=later, **pruning, **common)
    continued, about = artifacts.load_state(later)
    assert equal(continued.weights, one.weights)
    assert {key: before[key] for key in ("rounds", "cost")} == {key: about[key] for key in ("rounds", "cost")}

    ends = {}
    for name, state, given in (("apart", start, tmp_path / "mask1"), ("together", together, None)):
        mask, ticket = tmp_path / f"{name}.mask", tmp_path / f"{name}.ticket"
        prune_denoised(**common, **pruning, state=state, within=given, round_=2, sparsity="0.488", output=mask)
        retrain(**common, start=state, mask=mask, method="isp", sparsity="0.488", output=ticket)
        ends[name] = artifacts.load_ticket(ticket)
    assert equal(ends["apart"].weights, ends["together"].weights)
    assert equal(ends["apart"].mask, ends["together"].mask)
    assert (ends["apart"].finding, ends["apart"].rounds) == (ends["together"].finding, ends["together"].rounds)


@pytest.mark.parametrize(
    "rounds",
    [
        "[]",
        "2",
        "[[2]]",
        "[[2, 0.2, 1]]",
        "[[3, 0.2], [2, 0.3]]",
        "[[2, 0.3], [3, 0.3]]",
        "[[7, 0.2]]",
        "[[2, 1]]",
        "[[2, 0]]",
        "{",
    ],
)
def test_rounds_that_are_none_are_refused(rounds: str, common: dict[str, Any], tmp_path: Path) -> None:
    options = {"start": common["data"].with_name("initial"), "first": 0, "until": 7, "denoisers": 0, "rule": "union"}
    with pytest.raises(IspError, match=r"--rounds .*: must be a list such as \[\[40, 0\.2\], \[120, 0\.36\]\]"):
        run_rounds(**options, rounds=rounds, settings=COPIES, output=tmp_path / "state", **common)
    assert not list(tmp_path.iterdir())


# --- which rounds -----------------------------------------------------------------------------------------------------


def study(way: str | None, sparsities: list[str], **more: Any) -> Study:
    """Two chains of rounds of 20 %: those to 0.36, 0.5 and 0.7 have two, four and six rounds."""
    settings = {"rate": 0.2, "segment_fraction": 0.1, "denoisers": 2, "look_ahead_steps": 5}
    settings |= {key: more.pop(key) for key in ("rate", "rate_of", "denoisers") if key in more}
    variants = {"dense": {"method": "dense"}, "isp": {"method": "isp", "settings": settings}}
    variants["isp_mean"] = {"method": "isp_mean", "settings": settings}
    grid = [{**STUDY["grid"][0], "variants": list(variants), "sparsities": sparsities}]
    way_ = {} if way is None else {"look_aheads": way}
    return parse_study({**STUDY, "variants": variants, "grid": grid, **way_, **more}, "test")


def files(made: dict[str, Job], variant: str = "isp") -> set[str]:
    """Masks and states of a variant, below its folder."""
    return {path.split(f"/{variant}/")[1] for path in made if f"/{variant}/round" in path}


TARGETS = ["0.36", "0.5", "0.7"]
TOGETHER = {
    *("rounds0-1/state.safetensors", "round1/to0.3600/mask.safetensors"),
    *("rounds2-3/state.safetensors", "round3/to0.5000/mask.safetensors", "round3/to0.5904/mask.safetensors"),
    *("rounds4-5/state.safetensors", "round5/to0.7000/mask.safetensors"),
}


def test_rounds_at_which_no_ticket_leaves_are_run_with_the_next() -> None:
    assert files(jobs(study("together", TARGETS))) == TOGETHER
    assert files(jobs(study(None, TARGETS, device="cuda"))) == TOGETHER
    every = {f"round{index}/state.safetensors" for index in range(6)}
    for others in (study(None, TARGETS), study("apart", TARGETS), study("together", TARGETS, keep_weak_masks=True)):
        assert {path for path in files(jobs(others)) if "state" in path} == every
    neighbours = files(jobs(study("together", ["0.2", "0.36", "0.7"])))
    assert {path for path in neighbours if "state" in path} == {
        *("round0/state.safetensors", "round1/state.safetensors", "rounds2-5/state.safetensors")
    }


def without(made: Mapping[str, Job], *gone: str) -> dict[str, Job]:
    """Jobs whose files exist, except those of which the path contains one of the texts."""
    return {path: job for path, job in made.items() if not any(text in path for text in gone)}


def check_settled(of_study: Study, made: Mapping[str, Job]) -> None:
    """Nothing runs again, and a Snakemake that runs one job, of which it has deleted the output, sees the same job."""
    assert reruns(made, jobs(of_study, existing=made)) == {}
    job_of = reader(of_study)
    for path, job in made.items():
        assert job_of(path, without(made, path)).inputs == job.inputs, path


@pytest.mark.parametrize(("before", "after"), [("apart", "together"), ("together", "apart"), ("together", None)])
def test_another_way_reruns_no_round(before: str, after: str | None) -> None:
    check_settled(study(after, TARGETS), jobs(study(before, TARGETS)))


def steps(before: Mapping[str, Job], after: Mapping[str, Job]) -> Iterator[dict[str, Job]]:
    """The contents of a folder while the jobs of a changed study run one after another, in a possible order."""
    there = dict(before)
    runs = {path for paths in reruns(before, after).values() for path in paths}
    while runs:
        path = min(path for path in runs if not runs & after[path].inputs)
        runs.remove(path)
        yield {key: job for key, job in there.items() if key != path}
        there[path] = after[path]
    yield there


GROWING: dict[str, list[dict[str, Any]]] = {
    "between": [{"targets": ["0.36", "0.7"]}, {"targets": ["0.36", "0.5", "0.6", "0.7"]}],
    "every target is nominal": [
        {"targets": ["0.6"], "rate": 0.1, "rate_of": "original"},
        {"targets": ["0.3", "0.6"], "rate": 0.1, "rate_of": "original"},
    ],
    "another at the same round": [{"targets": ["0.7"]}, {"targets": ["0.36", "0.5", "0.7", "0.72"]}],
    "another rate": [{"targets": TARGETS}, {"targets": TARGETS, "rate": 0.25}],
    "more copies": [{"targets": TARGETS}, {"targets": TARGETS, "denoisers": 3}],
    "more copies, apart": [{"targets": TARGETS, "way": "apart"}, {"targets": TARGETS, "denoisers": 3}],
}


@pytest.mark.parametrize("name", GROWING)
def test_while_a_changed_study_runs_its_jobs_stay_what_they_were(name: str) -> None:
    """As seen by every job of a cluster, by the comparison with the plan at the end, and by the next run."""
    one, other = (study(each.pop("way", "together"), each.pop("targets"), **each) for each in map(dict, GROWING[name]))
    before = jobs(one)
    after = jobs(other, existing=before)
    runs = {path for paths in reruns(before, after).values() for path in paths}
    if one.variants == other.variants:  # only the sparsities differ
        assert {path for path in runs & before.keys() if "/isp" in path} == set()
    job_of = reader(other)
    for there in steps(before, after):
        for path in runs:
            assert job_of(path, there).inputs == after[path].inputs, path
    there = {**before, **after}
    assert jobs(other, existing=there).keys() == after.keys()
    check_settled(other, {path: there[path] for path in after})
    if name == "another rate":  # the chains still share their beginning
        assert {path for path in files(after) if "state" in path} == {
            *("rounds0-1/state.safetensors", "round2/state.safetensors", "rounds3-4/state.safetensors")
        }


def test_a_run_that_is_killed_while_it_makes_a_mask_again_goes_on_as_planned() -> None:
    made = jobs(study("together", TARGETS))
    changed = study("together", TARGETS, denoisers=3)
    planned = jobs(changed, existing=made)
    for gone in ("/round1/to0.3600/", "/round3/to0.5904/"):
        assert {path: job.inputs for path, job in jobs(changed, existing=without(made, gone)).items()} == {
            path: job.inputs for path, job in planned.items()
        }
    lacking = jobs(study("apart", TARGETS), existing=without(jobs(study("apart", TARGETS)), "/round2/to"))
    assert {path for path in files(lacking) if "state" in path} == {
        f"round{index}/state.safetensors" for index in range(6)
    }


def test_weak_masks_are_of_rounds_that_are_jobs() -> None:
    made = jobs(study("together", TARGETS))
    kept = jobs(study("together", TARGETS, keep_weak_masks=True), existing=made)
    assert {path for path in files(kept) if "state" in path} == {
        f"round{index}/state.safetensors" for index in range(6)
    }


def test_other_sparsities_rerun_no_round() -> None:
    """Fewer: nothing runs. One between the others: a chain to it from the ticket before."""
    made = jobs(study("together", TARGETS))
    fewer = reruns(made, jobs(study("together", ["0.7"]), existing=made))
    assert not [path for paths in fewer.values() for path in paths if "/isp" in path]
    more = reruns(made, jobs(study("together", ["0.36", "0.5", "0.65", "0.7"]), existing=made))
    assert more.pop("evaluate") == {
        f"results/tiny/runs/clip_tiny/digits/seed0/{v}/0.6500/metrics.json" for v in ("isp", "isp_mean")
    }
    assert {rule: {path.split("/isp/")[1] for path in paths if "/isp/" in path} for rule, paths in more.items()} == {
        "retrain": {"0.6500/ticket.safetensors"},
        "prune_denoised": {"round4/to0.6500/mask.safetensors"},
        "train_segment": {"round4/state.safetensors"},
        "compare_masks": set(),
    }
    check_settled(study("together", ["0.7"]), jobs(study("together", ["0.7"]), existing=made))


def test_a_chain_that_was_begun_the_other_way_goes_on_from_where_it_is() -> None:
    whole = jobs(study("apart", TARGETS))
    begun = {path: job for path, job in whole.items() if re.search("/isp/round(0/|1/to|2/)", path)}
    states = {path for path in files(jobs(study("together", TARGETS), existing=begun)) if "state" in path}
    assert states == {f"round{index}/state.safetensors" for index in range(4)} | {"rounds4-5/state.safetensors"}


def test_what_the_job_is_told_and_what_it_takes() -> None:
    """t is two steps: rounds end at 2, 6, 12, 20 steps; two copies of 5 steps in each."""
    of_study = study("together", TARGETS)
    dag, every = make_dag(of_study, made_from=lambda path: None), Jobs(of_study).by_output
    cell = {"study": "tiny", "backbone": "clip_tiny", "task": "digits", "seed": "0", "variant": "isp"}
    unit = dag.train_segment.settings(SimpleNamespace(**cell, round="0"))
    assert isinstance(unit, int)
    w: Any = SimpleNamespace(**cell, first="2", round="3")
    options = str(dag.run_rounds.settings(w))
    assert options.startswith(
        f"--first 2 --rounds '[[{6 * unit},\"0.4880\"]]' --until {10 * unit} --denoisers 2 --rule union"
    )
    assert dag.run_rounds.inputs(w) == {
        "start": "results/tiny/runs/clip_tiny/digits/seed0/isp/rounds0-1/state.safetensors",
        "within": "results/tiny/runs/clip_tiny/digits/seed0/isp/round1/to0.3600/mask.safetensors",
    }
    versions = json.loads(dag.run_rounds.version(w))
    for rule in (dag.train_segment, dag.prune_denoised):  # which it stands for
        assert json.loads(rule.version(w)).items() <= versions.items()
    (job,) = [job for path, job in every.items() if "/isp/rounds2-3/" in path]
    assert (job.steps, job.copies, job.rankings) == (7 * unit + 2 * 5, 2, 2 + 2)
    apart = Jobs(study("apart", TARGETS)).by_output.values()
    assert sum(job.steps for job in every.values()) == sum(job.steps for job in apart)


# --- a real Snakemake -------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_study_run_together_has_the_results_of_one_run_apart(smoke: Path, tmp_path: Path) -> None:
    """Of the only chain in the smoke study with a round at which no ticket leaves: its first two rounds are one job."""
    link_results(smoke, tmp_path)
    shutil.rmtree(tmp_path / RUN / "isp_layer")
    done = snakemake(tmp_path, "--config", "look_aheads=together")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / RUN / "isp_layer/rounds0-1/state.safetensors").exists()
    assert not (tmp_path / RUN / "isp_layer/round0").exists()
    for name in ("metrics.csv", "rounds.csv"):
        assert (tmp_path / "results/smoke" / name).read_bytes() == (smoke / "results/smoke" / name).read_bytes()
    again = snakemake(tmp_path, "--dry-run", "--config", "look_aheads=apart")
    assert "nothing to do" in (again.stdout + again.stderr).lower()
    fewer = yaml.safe_load(SMOKE.read_text())
    fewer["grid"][0]["sparsities"] = ["0.6"]
    (tmp_path / "fewer.yaml").write_text(yaml.safe_dump(fewer, sort_keys=False))
    planned = snakemake(tmp_path, "--dry-run", study=tmp_path / "fewer.yaml").stdout
    assert "run_rounds" not in planned
    assert "train_segment" not in planned
