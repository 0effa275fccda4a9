"""The look-aheads of a round, one after another in one process or side by side in separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from isp import artifacts, checkpoints
from isp.config import load_study, parse_study
from isp.errors import ConfigError, IspError
from isp.lineage import read_header
from isp.runtime import instructions, warm
from isp.stages import _copies
from isp.stages._copies import Copies
from isp.stages.prune_denoised import prune_denoised
from isp.superposition import Rule
from isp.workflow.rules import make_dag
from isp.workflow.running import cores_of_copies
from tests.support.models import equal
from tests.support.studies import STUDY
from tests.support.workflow import RUN, SMOKE, link_results, snakemake

COPIES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A fork server, so that copies begin at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISP_WARM", warm.new_address(os.getpid()))
        patch.setenv("ISP_OWNER", str(os.getpid()))
        patch.setenv(instructions.SERVED, "avx2" if instructions.is_supported() else "native")
        yield
        for process in psutil.Process().children():
            process.terminate()


@pytest.fixture
def round_(smoke: Path, server: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a round that the smoke study ran: the second of `isp_votes`."""
    monkeypatch.chdir(smoke)
    of_study = RUN / "isp_votes"
    header = read_header(of_study / "round1/to0.6000/mask.safetensors")
    assert header is not None
    about = header["about"]
    return {
        "state": of_study / "round1/state.safetensors",
        "within": of_study / "round0/to0.5000/mask.safetensors",
        "data": Path("resources/prepared/clip_tiny/digits/train.safetensors"),
        **{"round_": 1, "sparsity": "0.6", "denoisers": COPIES, "backbone": "clip_tiny", "task": "digits", "seed": 0},
        **{key: about[key] for key in ("settings", "training", "limits")},
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.process
@pytest.mark.parametrize("rule", ["mean_score", "union"])
def test_together_and_apart_give_the_same_bits_and_costs(rule: Rule, round_: dict[str, Any], tmp_path: Path) -> None:
    """Also the contributions of the copies, where they are kept; otherwise none of them remains."""
    abouts = {}
    for way, cores in (("together", 1), ("apart", 2)):
        folder = tmp_path / way
        prune_denoised(**round_, rule=rule, cores=cores, output=folder / "mask.safetensors", keep_weak=True)
        mask, abouts[way] = artifacts.load_mask(folder / "mask.safetensors")
        assert names(folder) == {"mask.safetensors", *(f"weak{member}.safetensors" for member in range(COPIES))}
        prune_denoised(**round_, rule=rule, cores=cores, output=tmp_path / "alone" / "mask.safetensors")
        assert names(tmp_path / "alone") == {"mask.safetensors"}
        assert equal(artifacts.load_mask(tmp_path / "alone" / "mask.safetensors")[0], mask)
    one, other = (artifacts.load_mask(tmp_path / way / "mask.safetensors")[0] for way in abouts)
    assert equal(one, other)
    for key in ("rounds", "cost", "settings", "rule", "denoisers"):
        assert abouts["together"][key] == abouts["apart"][key], key
    before = artifacts.load_state(round_["state"])[1]["measured"]["jobs"]
    assert abouts["together"]["measured"]["jobs"] - before == 1
    assert abouts["apart"]["measured"]["jobs"] - before == 1 + COPIES
    load: Any = artifacts.load_weights if rule == "mean_score" else artifacts.load_mask
    for member in range(COPIES):
        contributed, about = zip(*(load(tmp_path / way / f"weak{member}.safetensors") for way in abouts), strict=True)
        assert equal(*contributed)
        assert about[0]["cost"] == about[1]["cost"]


@pytest.mark.process
@pytest.mark.parametrize("rule", ["union", "mean_score"])
def test_one_contribution_is_held_at_a_time(
    rule: Rule, round_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file of a copy is read, what was read before has left memory."""
    read: list[weakref.ref[torch.Tensor]] = []
    weak = [tmp_path / f"weak{member}.safetensors" for member in range(COPIES)]
    for name in ("load_weights", "load_mask"):
        real = getattr(artifacts, name)

        def watched(path: Path, real: Any = real) -> Any:
            assert not any(reference() is not None for reference in read)
            part, about = real(path)
            if path in weak:
                read.extend(map(weakref.ref, part.values()))
            return part, about

        monkeypatch.setattr(artifacts, name, watched)
    prune_denoised(**round_, rule=rule, cores=2, output=tmp_path / "mask.safetensors")
    assert len(read) == COPIES * 16


@pytest.mark.process
def test_what_an_earlier_attempt_left_is_taken_if_it_is_of_the_same_copy(
    round_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    real = Copies._command

    def command(self: Copies, member: int, output: Path) -> list[str]:
        begun.append(member)
        return real(self, member, output)

    monkeypatch.setattr(Copies, "_command", command)
    output = tmp_path / "mask.safetensors"
    prune_denoised(**round_, rule="votes", cores=3, output=output, keep_weak=True)
    assert begun == [0, 1, 2]
    (tmp_path / "weak1.safetensors").unlink()
    prune_denoised(**round_, rule="votes", cores=3, output=output, keep_weak=True)
    assert begun == [0, 1, 2, 1]
    settings = {**round_["settings"], "look_ahead_steps": 1}
    prune_denoised(**{**round_, "settings": settings}, rule="votes", cores=3, output=output)
    assert begun[4:] == [0, 1, 2]


@pytest.mark.process
def test_a_copy_that_fails_ends_the_others(
    round_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing but what can be gone on with is left."""
    waiting = [sys.executable, "-c", "import time; time.sleep(600)"]
    failing = [sys.executable, "-c", "raise SystemExit('isp: it went wrong')"]
    monkeypatch.setattr(Copies, "_command", lambda self, member, output: failing if member == 1 else waiting)
    with pytest.raises(IspError, match="look-ahead 1 of round 1 exited with status 1; its error message is above"):
        prune_denoised(**round_, rule="votes", cores=2, output=tmp_path / "mask.safetensors")
    assert "isp: it went wrong" in capfd.readouterr().err
    assert names(tmp_path) == set()
    assert not [child for child in psutil.Process().children() if "600" in " ".join(child.cmdline())]


@pytest.mark.process
def test_a_round_that_is_stopped_goes_on_from_what_its_copies_saved(round_: dict[str, Any], tmp_path: Path) -> None:
    """Its processes end with it; the same command gives the bits of an undisturbed one."""
    round_ |= {"settings": {**round_["settings"], "look_ahead_steps": 5}, "denoisers": 2}
    prune_denoised(**round_, rule="votes", output=tmp_path / "whole.safetensors")
    output = tmp_path / "mask.safetensors"
    words = Copies(
        **{key: round_[key] for key in ("state", "within", "sparsity", "settings")},
        **{"setup": _setup(round_), "round_index": 1, "contribution": "mask", "scope": "global", "threads": 1},
    )._command(0, output)
    cut = words.index("--member"), words.index("--contribution")
    words = [word for i, word in enumerate(words) if i not in (cut[0], cut[0] + 1, cut[1], cut[1] + 1)]
    words[words.index("weak_mask")] = "prune_denoised"
    words += ["--rule", "votes", "--denoisers", "2", "--cores", "2"]
    saves = [tmp_path / f"weak{member}.checkpoint.safetensors" for member in (0, 1)]
    stage = subprocess.Popen(words, env={**os.environ, "ISP_CHECKPOINT_SECONDS": "0"}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in saves) and stage.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    copies = psutil.Process(stage.pid).children(recursive=True)
    stage.terminate()
    stage.communicate(timeout=60)
    if stage.returncode:  # else it was through before the signal arrived
        assert stage.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert not output.exists()
    assert not any(copy.is_running() and copy.status() != psutil.STATUS_ZOMBIE for copy in copies)
    prune_denoised(**round_, rule="votes", cores=2, output=output)
    assert equal(artifacts.load_mask(output)[0], artifacts.load_mask(tmp_path / "whole.safetensors")[0])
    assert not any(path.exists() for path in (*saves, checkpoints.beside(output)))


def _setup(round_: dict[str, Any]) -> Any:
    keys = ("backbone", "task", "seed", "data", "training", "limits")
    return _copies.Setup(**{key: round_[key] for key in keys}, device="cpu")


@pytest.mark.process
@pytest.mark.parametrize("way", ["apart", "together"])
def test_another_way_makes_nothing_of_a_finished_study_again(way: str, smoke: Path, tmp_path: Path) -> None:
    link_results(smoke, tmp_path)
    done = snakemake(tmp_path, "--dry-run", "--config", f"look_aheads={way}")
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in (done.stdout + done.stderr).lower()


# --- which way --------------------------------------------------------------------------------------------------------


def cores(study: dict[str, Any], given: int, *, nodes: int | None = None, main: bool = True) -> list[int]:
    """Threads of a job of the round, for the variants `isp` (two copies) and `more` (five)."""
    settings = {"rate": 0.5, "segment_fraction": 0.1, "denoisers": 5}
    variants = {**STUDY["variants"], "more": {"method": "isp", "settings": settings}}
    grid = [{**STUDY["grid"][0], "variants": [*STUDY["grid"][0]["variants"], "more"]}]
    dag = make_dag(parse_study({**STUDY, "variants": variants, "grid": grid, **study}, "test"))
    workflow = SimpleNamespace(resource_settings=SimpleNamespace(cores=given, nodes=nodes), is_main_process=main)
    of_job = cores_of_copies(workflow, dag)
    cell = {"study": "tiny", "backbone": "clip_tiny", "task": "digits", "seed": "0", "round": "0", "sparsity": "0.5000"}
    return [of_job(SimpleNamespace(**cell, variant=variant)) for variant in ("isp", "more")]


def test_cores_that_chains_leave_idle_are_for_copies() -> None:
    """Two chains of rounds need three cores by themselves; of eight each has four, of a hundred one for every copy."""
    assert [cores({}, given) for given in (1, 2, 3)] == [[1, 1]] * 3
    assert cores({}, 8) == [2, 4]
    assert cores({}, 100) == [2, 5]
    assert cores({"threads": 2}, 8) == [4, 4]
    assert cores({"device": "cuda"}, 100) == [1, 1]
    assert cores({}, 100, nodes=5) == [1, 1]  # on a cluster
    assert cores({}, 100, main=False) == [1, 1]


def test_a_study_says_how_look_aheads_run() -> None:
    assert cores({"look_aheads": "together"}, 100) == [1, 1]
    for where in ({"nodes": 5}, {"main": False}, {}):
        assert cores({"look_aheads": "apart", "threads": 3}, 1, **where) == [6, 15]
    with pytest.raises(ConfigError, match=r"look_aheads = 'apart' with device = 'cuda': a job has one GPU"):
        parse_study({**STUDY, "look_aheads": "apart", "device": "cuda"}, "test")
    with pytest.raises(ConfigError, match="look_aheads"):
        parse_study({**STUDY, "look_aheads": "both"}, "test")


def test_no_param_says_how_look_aheads_run() -> None:
    study = load_study(SMOKE)
    w: Any = SimpleNamespace(study="smoke", backbone="clip_tiny", task="digits", seed="0", variant="isp")
    w.round, w.sparsity = "1", "0.6000"
    said = [
        [dag.prune_denoised.settings(w), dag.run(w), dag.describe.settings(w), dag.plan.settings(w)]
        for way in ("together", "apart", None)
        for dag in [make_dag(study.model_copy(update={"look_aheads": way}))]
    ]
    assert said[0] == said[1] == said[2]
