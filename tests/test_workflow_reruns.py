"""What a changed study makes again, by the rules in this process; a real Snakemake must say the same."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from isp import cli, copies, registry
from isp.config import load_study, parse_study
from isp.workflow.jobs import Jobs
from tests.support.reruns import Job, jobs, reruns
from tests.support.studies import ROOT, STUDY
from tests.support.workflow import RUN, SMOKE, changed, link_results, snakemake


@cache
def finished() -> dict[str, Job]:
    """The jobs of the smoke study."""
    return jobs(load_study(SMOKE))


def made(files: Mapping[str, Any] | set[str]) -> set[str]:
    """Those files that are below the folder of the study's seed, up to the records."""
    return {str(Path(path).relative_to(RUN)) for path in files if Path(path).is_relative_to(RUN)}


def planned(study: dict[str, Any]) -> set[str]:
    """What a run of a changed study would make below the folder of its seed."""
    by_rule = reruns(finished(), jobs(parse_study(study, "changed")))
    return made({path for files in by_rule.values() for path in files})


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


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # N or C: the mask of round 0 and everything after it, but not the state that was there
        (f"{ISP}.denoisers", 3, of("isp", but=(FIRST_STATE,))),
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
        ("variants.isp_votes.settings.rule", "union", of("isp_votes", but=("isp_votes/round0/state.safetensors",))),
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
def test_a_change_reruns_what_depends_on_it(key: str, value: Any, expected: Callable[[set[str]], set[str]]) -> None:
    everything, plan = made(finished()), planned(changed(key, value))
    assert plan & everything == expected(everything) & plan
    assert expected(everything) - plan <= {
        path for path in everything if path.startswith("lth/")
    }  # files that the changed study has no use for
    assert plan, "nothing would be run"
    ran = {path.split("/")[0].removesuffix(".rounds") for path in plan}
    assert ran <= {path.split("/")[0] for path in expected(everything)}


LONGER = r"isp_layer/round(2/to0\.6570/mask|3/state)\.safetensors"
"""The round that only this chain has to run for 0.7, and the mask with which it goes on there."""


@pytest.mark.parametrize(
    ("key", "value", "new"),
    [
        ("grid.0.sparsities", ["0.5", "0.6", "0.7"], rf"[\w.]+/.*0\.7000/.*|{LONGER}"),
        ("grid.0.sparsities", ["0.5", "0.7"], rf"[\w.]+/.*0\.7000/.*|{LONGER}"),
        ("variants.more", {"method": "random"}, r"more/0\.[56]000/.*"),
    ],
)
def test_what_is_added_runs_alone(key: str, value: Any, new: str) -> None:
    study = changed(key, value)
    if key.startswith("variants"):
        study["grid"][0]["variants"].append("more")
    plan = planned(study)
    assert plan
    assert not [path for path in plan - {"similarity.json"} if not re.fullmatch(new, path)]


@pytest.mark.parametrize("name", ["smoke", "soups", "code", "paper"])
def test_the_jobs_are_those_of_the_plan(name: str) -> None:
    """Both are found from the records back; these here by what the files of rules say, those by the rules as values."""
    study = load_study(ROOT / "config" / f"{name}.yaml")
    if name == "paper":  # one of three seeds, whose jobs are of the same rules
        values = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
        values["grid"] = [{**block, "seeds": block["seeds"][:1]} for block in values["grid"]]
        every, study = Jobs(study).by_output, parse_study(values, "paper.yaml")
        of_one_seed = Counter(job.rule for job in Jobs(study).by_output.values())
        assert Counter(job.rule for job in every.values()) == {rule: 3 * num for rule, num in of_one_seed.items()}
    read = {job.outputs: job.rule for job in jobs(study).values()}
    planned = {path: job.rule for path, job in Jobs(study).by_output.items()}
    cells = {outputs: rule for outputs, rule in read.items() if outputs[0].startswith("results/")}
    assert len(cells) == len(planned)
    assert all(rule in {planned.get(path) for path in outputs} for outputs, rule in cells.items())


def test_nothing_changed_nothing_runs() -> None:
    assert reruns(finished(), jobs(load_study(SMOKE))) == {}


def raise_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the stage `prune_denoised`, as if its file said so."""
    real = registry.stage_version
    monkeypatch.setattr(registry, "stage_version", lambda name: 99 if name == "prune_denoised" else real(name))


def test_a_raised_version_reruns_its_stage_and_what_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = finished()
    raise_version(monkeypatch)
    by_rule = reruns(before, jobs(load_study(SMOKE)))
    assert by_rule["prune_denoised"] == {path for path, job in before.items() if job.rule == "prune_denoised"}
    assert by_rule.keys() == {"prune_denoised", "train_segment", "retrain", "compare_masks", "evaluate"}
    assert all("/round0/" not in path for path in by_rule["train_segment"])


def own_jobs(folder: Path, method: str, family: str) -> dict[str, Job]:
    """The jobs of a variant whose method is a file outside the package, under names that do not differ by its path."""
    settings = {"denoised": {"rate": 0.5, "segment_fraction": 0.1}, "souped": {"members": 2}}.get(family, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        variants = {"mine": {"method": f"{method}.py", "settings": settings}}
        grid = [{**STUDY["grid"][0], "variants": ["mine"]}]
        return jobs(parse_study({**STUDY, "variants": variants, "grid": grid}, "tiny"))


@pytest.mark.parametrize(
    ("source", "names", "rerun"),
    [
        ("random", ["mine", "prune_one_shot", "training", "isp"], "prune_one_shot"),
        ("gradual", ["mine", "find_ticket", "training"], "find_ticket"),
        ("isp_mean", ["mine", "prune_denoised", "isp", "training"], "prune_denoised"),
        ("greedy_soup", ["mine", "choose_members", "isp", "uniform_soup"], "choose_members"),
    ],
)
def test_an_edited_file_reruns_its_jobs_whatever_its_name(
    source: str, names: list[str], rerun: str, tmp_path: Path
) -> None:
    """The version of a file named like another key of a job's versions was lost among them."""
    content = (ROOT / "isp" / "methods" / f"{source}.py").read_text()
    family = str(registry.load("method", source).FAMILY)
    for name in names:
        file = tmp_path / f"{name}.py"
        file.write_text(content)
        before = own_jobs(tmp_path, name, family)
        file.write_text(f"{content}\n# edited\n")
        assert rerun in reruns(before, own_jobs(tmp_path, name, family)), name


@pytest.mark.parametrize("name", ["mine", "isp"])
def test_a_file_replaces_no_version_of_the_code_it_uses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoised method in a file isp.py replaced that of the look-aheads."""
    (tmp_path / f"{name}.py").write_bytes((ROOT / "isp" / "methods" / "isp_mean.py").read_bytes())
    before = own_jobs(tmp_path, name, "denoised")
    assert reruns(before, own_jobs(tmp_path, name, "denoised")) == {}
    monkeypatch.setattr(copies, "VERSION", 99)
    assert "prune_denoised" in {
        job.rule
        for path, job in own_jobs(tmp_path, name, "denoised").items()
        if job.params.get("version") != before[path].params.get("version")
    }


def test_the_versions_of_a_finished_study_with_a_file_keep_their_keys(tmp_path: Path) -> None:
    """Only a file whose stem is another key gets its own key, with a prefix."""
    content = (ROOT / "isp" / "methods" / "random.py").read_bytes()
    checksum = hashlib.sha256(content).hexdigest()[:12]
    for name, key in (("gradient", "gradient"), ("prune_one_shot", "method prune_one_shot")):
        (tmp_path / f"{name}.py").write_bytes(content)
        (job,) = [job for job in own_jobs(tmp_path, name, "one_shot").values() if "/0.5000/mask." in job.outputs[0]]
        assert json.loads(job.params["version"]) == {
            "prune_one_shot": registry.stage_version("prune_one_shot"),
            key: f"isp_method_{name}_{checksum}",
        }


# --- a real Snakemake -------------------------------------------------------------------------------------------------


@pytest.fixture
def edited(smoke: Path, tmp_path: Path) -> tuple[Path, Callable[..., subprocess.CompletedProcess[str]]]:
    """A copy of the smoke study's folder, and a Snakemake in it with a stage of which the code was edited."""
    folder, clone = tmp_path / "study", tmp_path / "clone"
    link_results(smoke, folder)
    for part in ("isp", "workflow", "config", "snakemake_logger_plugin_isp"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "environment.yml", clone)

    def run(
        *options: str, study: Path = clone / "config" / SMOKE.name, version: int = 0
    ) -> subprocess.CompletedProcess[str]:
        stage = clone / "isp" / "stages" / "prune_denoised.py"
        text = f"{stage.read_text()}\n# edited\n"
        stage.write_text(re.sub(r"^VERSION = \d+$", f"VERSION = {version}", text, flags=re.M) if version else text)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(clone / "workflow" / "Snakefile")]
        command += ["--cores", "2", "--configfile", str(study), *options]
        environment = {**os.environ, "PYTHONPATH": str(clone)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    return folder, run


def pending(summary: str) -> set[str]:
    """What a summary of Snakemake says would be made below the folder of the seed."""
    table = list(csv.DictReader(summary.splitlines(), delimiter="\t"))
    return made({row["output_file"] for row in table if row["plan"] == "update pending"})


@pytest.mark.process
def test_a_second_run_has_nothing_to_do_also_after_a_cosmetic_edit(edited: Any) -> None:
    folder, run = edited
    before = (folder / "results/smoke/metrics.csv").stat().st_mtime_ns
    assert "nothing to do" in run().stderr.lower()
    assert (folder / "results/smoke/metrics.csv").stat().st_mtime_ns == before


@pytest.mark.process
@pytest.mark.parametrize("what", ["settings", "version"])
def test_a_change_reruns_in_snakemake_what_it_reruns_here(
    edited: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The files that were made are those of the jobs, and the plan for a change is that of `reruns` to the file."""
    folder, run = edited
    everything = {str(path.relative_to(folder / RUN)) for path in (folder / RUN).rglob("*.*") if path.is_file()}
    assert everything == made(finished())
    if what == "settings":
        study = changed(f"{ISP}.denoisers", 3)
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump(study, sort_keys=False))  # members lie with the first
        found, expected = pending(run("--summary", study=tmp_path / "changed.yaml").stdout), planned(study)
    else:
        before = finished()
        found = pending(run("--summary", version=99).stdout)
        raise_version(monkeypatch)
        by_rule = reruns(before, jobs(load_study(SMOKE)))
        expected = made({path for files in by_rule.values() for path in files})
    assert expected
    assert found == expected


@pytest.mark.process
def test_after_cleaning_there_is_nothing_to_do(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States, and what soups are mixed of, are gone; tickets, masks and records are there."""
    link_results(smoke, tmp_path)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors")}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["clean", "smoke", "--yes"])
    gone = before - {path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors")}
    assert {re.sub(r"\d+", "", path.name) for path in gone} == {
        "pretrained.step.safetensors",  # where rounds rewind to
        *("state.safetensors", "member.safetensors", "subnetwork.safetensors", "merged.safetensors"),
        "ticket.safetensors",  # of rounds that only a pooled variant needs
    }
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr.lower()


@pytest.mark.process
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
