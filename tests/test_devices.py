"""GPUs are taken by one process each; all devices here are made up."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from isp.costs import Stopwatch
from isp.errors import ConfigError, IspError
from isp.runtime import devices
from isp.stages import _work

HOLD = """
import os, sys, time
from pathlib import Path
from isp.runtime.devices import reserve

device, output, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
with reserve(device, str(output)):
    begun = time.monotonic()
    output.with_suffix(".has").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    time.sleep(seconds)
    output.write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']} {begun} {time.monotonic()}")
"""
FORK = """
import os, sys, time
from isp.runtime.devices import reserve
with reserve("cuda", "parent"):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("forked", flush=True)
    os._exit(0)
"""


@pytest.fixture(autouse=True)
def _gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, with locks in a folder of this test."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("ISP_GPUS", "0,1")
    monkeypatch.setenv("ISP_GPU_LOCKS", str(tmp_path / "locks"))


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.communicate()


def hold(output: Path, seconds: float, device: str = "cuda", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, device, str(output), str(seconds)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def wait_until_held(output: Path) -> str:
    """The device that a process holds."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (found := output.with_suffix(".has")).exists() and found.read_text():
            return found.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{output}: got no device")


@pytest.mark.process
def test_many_processes_never_share_a_device(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    outputs = [tmp_path / f"{index}.txt" for index in range(10)]
    started += [hold(output, 0.3) for output in outputs]
    assert [process.wait(timeout=120) for process in started] == [0] * 10
    found: dict[str, list[tuple[float, float]]] = {}
    for output in outputs:
        device, begun, ended = output.read_text().split()
        found.setdefault(device, []).append((float(begun), float(ended)))
    assert set(found) == {"0", "1"}
    for intervals in found.values():
        ordered = sorted(intervals)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))


@pytest.mark.process
def test_a_killed_holder_frees_its_device_and_those_who_wait_say_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    monkeypatch.setenv("ISP_GPUS", "7")
    started.append(holder := hold(tmp_path / "holder.txt", 600))
    assert wait_until_held(tmp_path / "holder.txt") == "7"
    started.append(waiting := hold(tmp_path / "next.txt", 0))
    assert waiting.stderr is not None
    line = waiting.stderr.readline()
    assert line.startswith("waiting for a GPU, in use by: 7: process ")
    assert f"process {holder.pid} on " in line
    assert "holder.txt" in line
    assert not (tmp_path / "next.has").exists()
    holder.send_signal(signal.SIGKILL)
    assert waiting.wait(timeout=30) == 0
    assert waiting.stderr.read() == ""  # said once
    assert (tmp_path / "next.txt").read_text().startswith("7 ")


def test_a_lock_that_is_hostile_is_printed_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISP_GPU_LOCKS", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda _: lock.close())
    with (tmp_path / "7.lock").open("w") as lock:
        lock.write("\x1b[2J\u202e")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        devices._take({"7": "7"}, 1, "x")
    assert capsys.readouterr().err == "waiting for a GPU, in use by: 7: \\x1b[2J\\u202e\n"


@pytest.mark.process
def test_what_a_dead_process_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = tmp_path / "locks" / "0.lock"
    lock.parent.mkdir()
    lock.write_text(f"process {dead.pid} on here, results/x\n")
    with devices.reserve("cuda", "mine"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        assert lock.read_text().endswith(", mine\n")
    assert lock.read_text() == ""


@pytest.mark.process
def test_a_forked_child_holds_nothing(started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISP_GPUS", "0")
    process = subprocess.Popen([sys.executable, "-c", FORK], stdout=subprocess.PIPE, text=True, start_new_session=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "forked\n"
    process.wait(timeout=30)
    begun = time.monotonic()
    with devices.reserve("cuda", "mine"):
        assert time.monotonic() - begun < 10  # the child sleeps for 30
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.process
def test_jobs_that_share_a_device_are_as_many_as_they_say_and_meet_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    monkeypatch.setenv("ISP_GPUS", "7")
    holders = [hold(tmp_path / f"{index}.txt", 600, ISP_JOBS_PER_GPU="2") for index in range(2)]
    started += holders
    assert [wait_until_held(tmp_path / f"{index}.txt") for index in range(2)] == ["7", "7"]
    started.append(third := hold(tmp_path / "third.txt", 0, ISP_JOBS_PER_GPU="2"))
    started.append(alone := hold(tmp_path / "alone.txt", 0))
    for waiting in (third, alone):
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert all(f"process {holder.pid} on " in line for holder in holders)
    holders[0].kill()
    assert third.wait(timeout=30) == 0
    assert alone.poll() is None  # one of the two still holds the device
    holders[1].kill()
    assert alone.wait(timeout=30) == 0
    started.append(only := hold(tmp_path / "only.txt", 600))
    wait_until_held(tmp_path / "only.txt")
    started.append(late := hold(tmp_path / "late.txt", 0, ISP_JOBS_PER_GPU="2"))
    assert late.stderr is not None
    assert late.stderr.readline().startswith(f"waiting for a GPU, in use by: 7: process {only.pid} on ")


def test_jobs_are_spread_before_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever device is freed is taken again before a third job joins the other."""
    monkeypatch.setenv("ISP_JOBS_PER_GPU", "3")

    def take(stack: ExitStack) -> str:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        stack.enter_context(devices.reserve("cuda", "x"))
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with ExitStack() as all_:
        assert [take(all_) for _ in range(2)] == ["0", "1"]
        with ExitStack() as some:
            assert take(some) == "0"
        assert [take(all_) for _ in range(4)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5", "\x1b[2J"])
def test_a_number_of_jobs_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ISP_JOBS_PER_GPU", text)
    with pytest.raises(ConfigError, match="ISP_JOBS_PER_GPU must be an integer from 1 to 9999, got"):  # noqa: SIM117
        with devices.reserve("cuda", "x"):
            pass
    assert not (tmp_path / "locks").exists()


@pytest.mark.process
def test_a_numbered_device_is_that_one(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    started.append(hold(tmp_path / "one.txt", 600, "cuda:1"))
    assert wait_until_held(tmp_path / "one.txt") == "0,1"  # so that cuda:1 is what it was
    started.append(other := hold(tmp_path / "any.txt", 0))
    assert other.wait(timeout=60) == 0
    assert (tmp_path / "any.txt").read_text().startswith("0 ")
    started.append(same := hold(tmp_path / "same.txt", 0, "cuda:1"))
    assert same.stderr is not None
    assert "in use by: 1: process " in same.stderr.readline()
    with pytest.raises(ConfigError, match=r"device 'cuda:2' does not exist; the usable GPUs are 0, 1"):  # noqa: SIM117
        with devices.reserve("cuda:2", "x"):
            pass


@pytest.mark.process
def test_a_restricted_list_names_the_same_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    """What is device 1 of all is device 0 of a process that sees 1 and 2."""
    monkeypatch.delenv("ISP_GPUS")
    started.append(hold(tmp_path / "restricted.txt", 600, "cuda:0", CUDA_VISIBLE_DEVICES="1,2"))
    wait_until_held(tmp_path / "restricted.txt")
    started.append(hold(tmp_path / "any.txt", 600, CUDA_VISIBLE_DEVICES="1, 2"))
    assert wait_until_held(tmp_path / "any.txt") == "2"
    started.append(blocked := hold(tmp_path / "blocked.txt", 0, "cuda:1", CUDA_VISIBLE_DEVICES="0,1,2"))
    assert blocked.stderr is not None
    assert "in use by: 1: process " in blocked.stderr.readline()


@pytest.mark.process
def test_which_devices_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.visible() == {"0": "0", "1": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert devices.visible() == {"1": "1"}  # both lists
    monkeypatch.setenv("ISP_GPUS", "2")
    with pytest.raises(ConfigError, match=r"ISP_GPUS=2 contains no device of CUDA_VISIBLE_DEVICES=3,1"):
        devices.visible()
    monkeypatch.delenv("ISP_GPUS")
    assert list(devices.visible()) == ["3", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,0")
    assert list(devices.visible()) == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.visible() == {}
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho '0, GPU-aa11'\necho '1, GPU-bb22'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,MIG-7/1/0")
    assert devices.visible() == {"GPU-bb": "1", "MIG-7/1/0": "MIG-7/1/0"}


@pytest.mark.parametrize("device", ["cpu", "tpu"])
def test_nothing_is_taken_on_a_cpu(tmp_path: Path, device: str) -> None:
    with devices.reserve(device, "x"):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not (tmp_path / "locks").exists()


def test_the_one_gpu_of_a_slurm_job_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("ISP_GPUS", "1")
    with devices.reserve("cuda", "x"):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not (tmp_path / "locks").exists()


def test_several_gpus_of_a_slurm_job_are_shared_out_among_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs may both call theirs 0 and 1."""
    monkeypatch.delenv("ISP_GPU_LOCKS")
    monkeypatch.setattr(devices, "FOLDER", str(tmp_path / "gpus"))
    for job in ("17", "18"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with devices.reserve("cuda", "x"):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
            with devices.reserve("cuda", "y"):
                assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpus-17", "gpus-18"]


def test_the_locks_are_for_all_users(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        with devices.reserve("cuda", "x"):
            pass
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "locks" / "0.lock").stat().st_mode) == 0o666


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "none" / "locks"):
        monkeypatch.setenv("ISP_GPU_LOCKS", str(folder))
        with (
            pytest.raises(IspError, match=f"{folder}: the folder .* cannot be written to"),
            devices.reserve("cuda", "x"),
        ):
            pass


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling link", "hard link", "folder"])
def test_what_others_put_in_the_place_of_a_lock_is_named_and_does_no_harm(tmp_path: Path, kind: str) -> None:
    """In a folder that all users can write to: nothing blocks, and no other file is written to or emptied."""
    lock, other = tmp_path / "locks" / "0.lock", tmp_path / "other"
    lock.parent.mkdir()
    other.write_text("precious")
    {
        "fifo": lambda: os.mkfifo(lock),
        "link": lambda: lock.symlink_to(other),
        "dangling link": lambda: lock.symlink_to(tmp_path / "new"),
        "hard link": lambda: lock.hardlink_to(other),
        "folder": lock.mkdir,
    }[kind]()
    said = rf"0\.lock: not usable as a GPU lock \(.*, of user {os.getuid()}\)\. Have it deleted, or"
    with pytest.raises(IspError, match=said), devices.reserve("cuda", "x"):
        pass
    assert other.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locks", "other"]


def test_the_common_folder_of_locks_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user may have made it; a folder that one names oneself may be one."""
    (tmp_path / "target").mkdir()
    (tmp_path / "gpus").symlink_to(tmp_path / "target")
    with devices.reserve("cuda", "x"):
        pass
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("ISP_GPU_LOCKS", str(tmp_path / "gpus"))
    with devices.reserve("cuda", "x"):
        assert [path.name for path in (tmp_path / "target").iterdir()] == ["0.lock"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("ISP_GPU_LOCKS")
    monkeypatch.setattr(devices, "FOLDER", str(tmp_path / "gpus"))
    with (
        pytest.raises(IspError, match=f"{tmp_path}/gpus: the folder .* cannot be written to"),
        devices.reserve("cuda", "x"),
    ):
        pass


def test_a_stage_holds_its_device_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(_work, "check_device", lambda device: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setattr(_work, "Stopwatch", lambda device: Stopwatch("cpu"))
    with _work.working(tmp_path / "out.json", device="cuda"):
        assert f"{tmp_path}/out.json" in (tmp_path / "locks" / "0.lock").read_text()
    assert seen == ["0"]
    assert (tmp_path / "locks" / "0.lock").read_text() == ""
