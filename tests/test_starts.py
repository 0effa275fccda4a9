"""What starts take: which commands are measured, under which environment, and what follows. Nothing is started here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from isp.config import parse_study
from isp.errors import IspError
from isp.runtime import instructions, warm
from isp.workflow import starts
from isp.workflow.starts import Starts, measure_starts, run_timed
from tests.support.studies import STUDY

TINY = parse_study(STUDY, "test")


class Machine:
    """A machine on which every command takes a known time; the first of each kind a second more."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str | None]] = []

    def __call__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
        assert folder.is_dir()
        assert command[0] == sys.executable
        assert str(starts.ROOT) in environment["PYTHONPATH"]
        kind, seconds = self._told_apart(command, environment)
        first = kind not in [ran for ran, _ in self.ran]
        self.ran.append((kind, environment.get("ISP_WARM")))
        return seconds + first

    def _told_apart(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, float]:
        if "isp" in command:
            if "ISP_OWNER" in environment:  # this server takes only its own instruction set
                assert command[command.index("--instruction-set") + 1] == environment[instructions.SERVED]
            return "stage", 0.25
        if "-c" in command:
            assert command[-1] == "import isp.stages.retrain, open_clip"  # the study has a CLIP only
            assert "ISP_WARM" not in environment
            return "imports", 4.0
        assert command[1:3] == ["-m", "snakemake"]
        if "--configfile" in command:
            assert command[-2:] == ["--", "resources/splits/digits.safetensors"]
            return "start", 3.0
        text = Path(command[command.index("--snakefile") + 1]).read_text()
        return ("one job", 1.5) if "range(1)" in text else ("eleven jobs", 4.0)


@pytest.fixture(autouse=True)
def no_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ISP_WARM", "ISP_OWNER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not warm.available(), reason="this system has no fork server")
def test_by_hand_all_is_measured_twice_and_the_shortest_counts(tmp_path: Path) -> None:
    machine = Machine()
    found = measure_starts(TINY, tmp_path / "study.yaml", machine)
    assert found == Starts(warm=0.25, cold=4.0, snakemake_job=0.25, snakemake_start=3.0)
    assert (found.here, found.on_cluster) == (0.5, 4 + 2 * 3)
    kinds = [kind for kind, _ in machine.ran]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        **{"stage": 1 + 2, "imports": 2, "one job": 2, "eleven jobs": 2, "start": 2}  # one call starts the server
    }
    assert all((socket is not None) == (kind == "stage") for kind, socket in machine.ran)


def test_without_a_file_snakemake_is_not_measured() -> None:
    found = measure_starts(TINY, None, Machine())
    assert (found.cold, found.snakemake_job, found.snakemake_start, found.on_cluster) == (4.0, None, None, None)


def test_without_a_fork_server_jobs_start_cold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warm, "available", lambda: False)
    found = measure_starts(TINY, tmp_path / "study.yaml", Machine())
    assert (found.warm, found.here) == (None, 4.25)


def test_a_job_of_a_workflow_measures_only_how_jobs_start_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISP_OWNER", "1")
    machine = Machine()
    assert measure_starts(TINY, None, machine) == Starts(cold=4.0)
    monkeypatch.setenv("ISP_WARM", "/socket")
    monkeypatch.setenv(instructions.SERVED, TINY.served_instructions)
    machine = Machine()
    assert measure_starts(TINY, None, machine) == Starts(warm=0.25)
    assert machine.ran == [("stage", "/socket")] * 2


@pytest.mark.skipif(not warm.available(), reason="this system has no fork server")
@pytest.mark.process
@pytest.mark.parametrize("instruction_set", sorted({"native", instructions.default()}))
def test_the_measured_stage_goes_through_the_server(instruction_set: str) -> None:
    study = parse_study({**STUDY, "instruction_set": instruction_set}, "test")

    def run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
        return run_timed(command, environment, folder) if "isp" in command else 0.0

    assert measure_starts(study, None, run).warm is not None


@pytest.mark.process
def test_a_call_past_the_server_is_no_warm_start(tmp_path: Path) -> None:
    past = [sys.executable, "-c", f"import sys; print({warm.COLD + 'why'!r}, file=sys.stderr)"]
    assert run_timed(past, {}, tmp_path) > 0
    with pytest.raises(warm.UnavailableError, match="why"):
        run_timed(past, {"ISP_WARM": "/socket"}, tmp_path)


@pytest.mark.process
def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    assert run_timed([sys.executable, "-c", ""], {}, tmp_path) > 0
    with pytest.raises(IspError, match=r"isp plan --calibrate: -c .* exited with status 1: ValueError: told"):
        run_timed([sys.executable, "-c", "raise ValueError('told')"], {}, tmp_path)
