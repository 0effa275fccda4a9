"""The warm server: its children are as fresh processes, and nobody outlives the one they work for."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isp.errors import IspError
from isp.runtime import warm

if not warm.available():
    pytest.skip("the warm server takes Linux", allow_module_level=True)
pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
SECONDS = 180  # more than torch takes to import on a busy machine
CLIENT = (
    "import sys; from isp.runtime import warm; "
    "raise SystemExit(warm.call(sys.argv[3:], sys.argv[1], sys.argv[2].split()))"
)
LIGHT = "--run tests.support.children:act --modules json"


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Run:
    """A pretended Snakemake, the address of its server, and clients."""

    def __init__(self, folder: str) -> None:
        self.owner = subprocess.Popen(["sleep", "600"])
        self.mark = f"ISP_TEST={folder}"
        self.socket = Path(warm.new_address(self.owner.pid))
        assert self.socket.is_relative_to(folder)
        self.environment = os.environ | {
            "ISP_WARM": str(self.socket),
            "ISP_OWNER": str(self.owner.pid),
            "ISP_TEST": folder,
            "PYTHONPATH": str(ROOT),
        }

    def start(
        self, *arguments: str | Path, options: str = LIGHT, before: str = "", **keys: Any
    ) -> subprocess.Popen[str]:
        keys = {"env": self.environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | keys
        return subprocess.Popen([sys.executable, "-c", before + CLIENT, self.socket, options, *arguments], **keys)

    def call(self, *arguments: str | Path, **keys: Any) -> tuple[int, str, str]:
        client = self.start(*arguments, **keys)
        stdout, stderr = client.communicate(timeout=SECONDS)
        return client.returncode, stdout, stderr

    def sleeper(self, file: Path, what: str = "sleep") -> tuple[subprocess.Popen[str], int, int]:
        """A client whose child sleeps, the child's pid and the server's."""
        file.unlink(missing_ok=True)
        client = self.start(what, file)
        text = until(lambda: file.exists() and file.read_text().endswith("\n") and file.read_text())
        child, server = map(int, text.split())
        return client, child, server

    def server(self) -> int:
        status, stdout, stderr = self.call("parent")
        assert status == 0, stderr
        return int(stdout)

    def processes(self) -> list[int]:
        """Everything alive that a client, or the server, started: they inherit the mark."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass
        return [pid for pid in found if not gone(pid)]

    def end_owner(self) -> None:
        self.owner.kill()
        self.owner.wait()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Ends the owner after the test and checks that nothing is left."""
    folder = tempfile.mkdtemp(prefix="isp")  # tmp_path, which is made first, may be too long for a socket
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    started = Run(folder)
    yield started
    started.end_owner()
    try:
        until(lambda: not started.processes())
    finally:
        for pid in started.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


def test_the_command_is_as_in_a_fresh_process(run: Run) -> None:
    """With the real server. torch's first child gets what it needs from a parent that never computed."""
    command = [sys.executable, "-m", "isp", "list"]
    fresh = run.environment.copy()
    del fresh["ISP_WARM"]
    assert not run.socket.exists()
    results = []
    for environment in (run.environment, fresh):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        results.append((done.returncode, done.stdout, done.stderr))
    assert results[0] == results[1]
    assert results[0][0] == 0
    assert "one_shot" in results[0][1]
    assert run.socket.exists()


def test_a_child_computes_with_any_number_of_threads(run: Run) -> None:
    """The bits of a fresh process; a lost pool of threads would hang."""
    program = "import sys; from tests.support.children import act; act(sys.argv[1:])"
    for threads in ("2", "1"):
        fresh = subprocess.run(
            [sys.executable, "-c", program, "train", threads],
            env=run.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        called = run.call("train", threads, options=LIGHT.replace("json", "torch"))
        assert called == (0, fresh.stdout, fresh.stderr)


@pytest.mark.parametrize(
    ("code", "status", "stderr"), [*zip(range(7), (0, 0, 2, 3, 0, 1, 1), ("",) * 6 + ("a reason\n",), strict=True)]
)
def test_exit_codes_are_those_of_python(run: Run, code: int, status: int, stderr: str) -> None:
    assert run.call("exit", str(code)) == (status, "", stderr)


def test_an_error_prints_its_traceback(run: Run) -> None:
    status, _, stderr = run.call("fail")
    assert status == 1
    assert stderr.startswith("Traceback")
    assert stderr.endswith("ValueError: what went wrong\n")


def test_a_child_has_what_its_client_has(run: Run, tmp_path: Path) -> None:
    run.server()  # started from elsewhere, with other variables
    (tmp_path / "input").write_text("typed")
    environment = run.environment | {"ODD": "\udcff ü\n", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "7"}
    del environment["ISP_OWNER"]
    with (tmp_path / "input").open() as stdin, (tmp_path / "output").open("w") as stdout:
        status, _, stderr = run.call(
            "show", "ä", "", env=environment, cwd=tmp_path, umask=0o027, stdin=stdin, stdout=stdout
        )
    assert (status, stderr) == (0, "to stderr\n")
    shown = json.loads((tmp_path / "output").read_text())
    assert shown["arguments"] == ["isp", "show", "ä", ""]
    assert shown["environment"] == environment
    assert shown["folder"] == str(tmp_path)
    assert shown["temporary"] == str(tmp_path)
    assert shown["umask"] == 0o027
    assert shown["stdin"] == "typed"
    assert shown["signals"] == [str(signal.SIG_DFL), str(signal.default_int_handler)]


def test_a_stage_knows_when_its_client_started(run: Run) -> None:
    run.server()
    before = time.time()
    command = [sys.executable, "-m", "isp", "show"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, timeout=SECONDS)
    assert before < float(json.loads(done.stdout)["environment"]["ISP_STARTED"]) < time.time()


def test_closed_standard_streams_are_empty(run: Run) -> None:
    run.server()
    shell = ["sh", "-c", f'"$0" -c "{CLIENT}" "$@" <&-', sys.executable, run.socket, LIGHT, "show"]
    done = subprocess.run(shell, env=run.environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stdin"] == ""


def test_a_reader_that_goes_is_status_120(run: Run) -> None:
    run.server()
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        status, _, _ = run.call("parent", stdout=stdout)
    assert status == 120


def test_a_folder_that_is_gone_is_named(run: Run, tmp_path: Path) -> None:
    run.server()
    program = CLIENT.replace("raise", "import os; os.getcwd = lambda: '/not/there'; raise")
    command = [sys.executable, "-c", program, run.socket, LIGHT, "parent"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert "'/not/there'" in done.stderr
    assert warm.KILLED not in done.stderr


def test_many_clients_at_once_start_one_server(run: Run) -> None:
    clients = [run.start("parent") for _ in range(8)]
    answers = [client.communicate(timeout=SECONDS) for client in clients]
    assert [client.returncode for client in clients] == [0] * 8, answers
    assert len({stdout for stdout, _ in answers}) == 1


def test_a_child_ends_with_its_client(run: Run, tmp_path: Path) -> None:
    client, child, server = run.sleeper(tmp_path / "pid")
    client.kill()
    client.communicate()
    until(lambda: gone(child))
    assert run.server() == server


def test_a_terminated_client_dies_and_its_child_too(run: Run, tmp_path: Path) -> None:
    client, child, _ = run.sleeper(tmp_path / "pid")
    client.terminate()
    client.communicate(timeout=SECONDS)
    assert client.returncode == -signal.SIGTERM
    until(lambda: gone(child))


def test_a_child_that_answers_a_signal_of_its_client_decides_how_both_end(run: Run, tmp_path: Path) -> None:
    client, child, _ = run.sleeper(tmp_path / "pid", "finish")
    client.send_signal(signal.SIGUSR1)
    _, printed = client.communicate(timeout=SECONDS)
    assert (client.returncode, printed) == (128 + signal.SIGUSR1, "")
    until(lambda: gone(child))


def test_children_end_with_the_server_and_the_next_call_starts_another(run: Run, tmp_path: Path) -> None:
    client, child, server = run.sleeper(tmp_path / "pid")
    os.kill(server, signal.SIGKILL)
    _, stderr = client.communicate(timeout=SECONDS)
    assert (client.returncode, stderr) == (1, f"{warm.KILLED}\n")
    until(lambda: gone(child))
    assert run.socket.exists()
    assert run.server() != server


def test_server_and_children_end_with_the_owner(run: Run, tmp_path: Path) -> None:
    client, child, server = run.sleeper(tmp_path / "pid")
    run.end_owner()
    _, stderr = client.communicate(timeout=SECONDS)
    assert (client.returncode, stderr) == (1, f"{warm.KILLED}\n")
    until(lambda: gone(child) and gone(server))
    assert not run.socket.parent.exists()


def test_a_server_ends_with_the_owner_on_old_kernels(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; del os.pidfd_open")
    run.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    server = run.server()
    run.end_owner()
    until(lambda: gone(server))
    assert not run.socket.parent.exists()


def test_a_child_that_is_killed_is_reported_and_reaped(run: Run) -> None:
    server = run.server()
    assert run.call("die") == (1, "", f"{warm.KILLED}\n")
    assert run.server() == server
    until(lambda: not Path(f"/proc/{server}/task/{server}/children").read_text())


def test_the_socket_of_a_dead_server_is_replaced(run: Run) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(run.socket))
    assert run.server() in run.processes()


def test_leftovers_of_dead_owners_are_removed(run: Run) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftover = Path(warm.new_address(ended.pid))
    others = [Path(warm.new_address(os.getpid())), Path(str(leftover).replace("isp-", "other-"))]
    others[1].parent.mkdir(0o700)
    for path in (leftover, *others):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        for kind in ("log", warm.VERIFIED):
            path.with_name(f"warm.sock.{kind}").touch()
    run.server()
    assert not leftover.parent.exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_others_leave_under_such_names_stops_nobody(run: Run, kind: str) -> None:
    """Names that look like folders of servers, with no PID that can be: the server starts all the same."""
    names = [
        f"isp-{os.getuid()}-{pid}{end}" for pid in ("9" * 20, "9" * 5000, "0", "-1", "x", "٣", "") for end in ("", "-a")
    ]
    names += [f"isp-{os.getuid()}-{run.owner.pid}", f"isp-{os.getuid()}", "isp-", "-", "--", "---"]
    folder = run.socket.parent.parent
    for name in names:
        if len(name) < 256:
            path = folder / name
            {"file": path.touch, "folder": path.mkdir, "link": lambda path=path: path.symlink_to("/")}[kind]()
    run.server()
    assert sum(1 for _ in folder.iterdir()) > 10
    assert [warm._owner_of(name) for name in names] == [None] * len(names)


def test_leftovers_of_other_users_are_left_alone(run: Run) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    theirs = Path(warm.new_address(ended.pid)).parent
    theirs.chmod(0o777)
    run.server()
    assert theirs.exists()


def test_the_folder_of_a_server_is_private_and_its_name_cannot_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, temporary = (Path(tempfile.mkdtemp(dir="/tmp")) for _ in range(2))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        found = [Path(warm.new_address(1)) for _ in range(2)]
        assert len({path.parent for path in found}) == 2
        for path in found:
            assert path.parent.parent == runtime
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert warm._owner_of(str(path.parent)) == 1
        for unusable in (runtime / "missing", tmp_path / ("x" * 100), Path("relative"), Path()):
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(unusable))
            (tmp_path / ("x" * 100)).mkdir(exist_ok=True)
            assert Path(warm.new_address(1)).parent.parent == temporary
    finally:
        shutil.rmtree(runtime)
        shutil.rmtree(temporary)


def test_a_folder_with_a_long_path_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TMPDIR may be any; only where /tmp is of no use either do jobs start cold, which is said once."""
    from isp.workflow import running  # imports much, which the children of light servers must not

    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    address = Path(warm.new_address(1))
    assert address.parent.parent == Path("/tmp")
    address.parent.rmdir()
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    monkeypatch.setenv("ISP_WARM", "old")
    monkeypatch.setenv("ISP_OWNER", "1")
    monkeypatch.setenv("ISP_WARM_INSTRUCTION_SET", "old")
    running._warm_start("native")
    assert "ISP_WARM" not in os.environ
    assert os.environ["ISP_WARM_INSTRUCTION_SET"] == "native"
    size = len(os.fsencode(str(long))) + len(f"/isp-{os.getuid()}-{os.getpid()}-12345678/warm.sock")
    assert capsys.readouterr().err == (
        f"no folder for the fork server's socket: {long}: the path of a socket in it has {size} bytes, but the maximum "
        "is 107; /tmp: Permission denied. Set TMPDIR to a writable folder with a short path. Jobs start without it, "
        "which takes a few seconds per job.\n"
    )


def test_jobs_in_environments_of_their_own_do_not_go_through_the_server_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under `--sdm conda` or `--sdm apptainer` a child of the server would run with the packages of this process."""
    from isp.workflow import running

    monkeypatch.setattr(warm, "begin", lambda address: pytest.fail(f"a server began at {address}"))
    for variable in ("ISP_WARM", "ISP_OWNER", "ISP_WARM_INSTRUCTION_SET"):
        monkeypatch.setenv(variable, "old")
    for methods, deployed in ((set(), False), ({"conda"}, True), ({"apptainer"}, True)):
        workflow = SimpleNamespace(deployment_settings=SimpleNamespace(deployment_method=methods))
        assert running._is_deployed(workflow) == deployed
    running._warm_start("native", deployed=True)
    assert "ISP_WARM" not in os.environ
    assert os.environ["ISP_OWNER"] == str(os.getpid())


def test_a_server_in_which_an_import_touched_cuda_refuses_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child could use the device: CUDA does not survive a fork."""
    cuda = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    warm._check_untouched()
    cuda.is_initialized = lambda: True
    with pytest.raises(IspError, match="importing a module has initialised CUDA"):
        warm._check_untouched()


LISTS = "from isp.__main__ import main; main()"


def cold(run: Run) -> str:
    """What a call of a command, which needs no torch, prints before its own line: why it did not start warm."""
    command = [sys.executable, "-c", LISTS, "list", "nothing"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, timeout=SECONDS)
    said, begin, own = done.stderr.rpartition("isp: isp list: ")
    assert (done.returncode, done.stdout, bool(begin), own.count("\n")) == (2, "", True, 1), done.stderr
    return said


def test_without_a_server_a_call_starts_cold(run: Run) -> None:
    """The folder was deleted, is open to others, holds something else, or its server does not start."""
    folder, log = run.socket.parent, run.socket.with_name("warm.sock.log")
    cases = [
        (lambda: folder.chmod(0o777), "must be one that only you can write to"),
        (
            lambda: (folder.chmod(0o700), run.socket.with_name("warm.sock.lock").mkdir()),
            "cannot be started (Is a directory)",
        ),
        (lambda: (run.socket.with_name("warm.sock.lock").rmdir(), log.mkdir()), "cannot be started (Is a directory)"),
        (lambda: (log.rmdir(), run.socket.with_name("warm.sock.failed").touch()), f"did not start; its log: {log}"),
        (lambda: shutil.rmtree(folder), "No such file or directory"),
    ]
    for change, problem in cases:
        change()
        said = cold(run)
        assert said.startswith("starting without the fork server: ")
        assert problem in said
        assert said.count("\n") == 1


def test_a_server_that_does_not_start_is_tried_once(run: Run, tmp_path: Path) -> None:
    code = "import os, sys; 'runtime.warm' in ' '.join(sys.orig_argv) and (os.write(2, b'no server here'), os._exit(1))"
    (tmp_path / "sitecustomize.py").write_text(code)
    run.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    first, second = cold(run), cold(run)
    assert first == f"{warm.COLD}the fork server exited with status 1; the end of its log, {run.socket}.log:\n"
    assert "no server here" in run.socket.with_name("warm.sock.log").read_text()
    assert second == f"starting without the fork server: the fork server did not start; its log: {run.socket}.log\n"


def test_a_call_of_a_stopped_server_starts_cold(run: Run) -> None:
    server = run.server()
    os.kill(server, signal.SIGSTOP)
    until(lambda: warm.is_stopped(server))
    assert cold(run) == (
        f'starting without the fork server: the fork server is stopped; "kill -CONT {server}" resumes it\n'
    )
    os.kill(server, signal.SIGCONT)
    assert run.server() == server


UNSEEN = (
    "from isp.runtime import warm; real, seen = warm.is_stopped, []; "
    "warm.is_stopped = lambda pid: seen and real(pid) or seen.append(1); "
)
"""A client that sees only the second time that its server is stopped."""


def test_what_keeps_the_server_from_starting_is_said_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in run.environment.items():
        monkeypatch.setenv(key, value)
    code = (
        "import os, sys; "
        "'runtime.warm' in ' '.join(sys.orig_argv) and (os.write(2, b'no server\\x1b here'), os._exit(1))"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    warm.begin(str(run.socket))
    until(run.socket.with_name("warm.sock.failed").exists)
    until(lambda: "starts the fork server" not in {thread.name for thread in threading.enumerate()})
    assert capsys.readouterr().err == (
        f"the fork server exited with status 1; the end of its log, {run.socket}.log:\nno server\\x1b here\n"
        "Jobs start without it, which takes a few seconds per job.\n"
    )


def test_a_stopped_server_is_resumed_at_the_end_of_who_began_it(run: Run) -> None:
    server = run.server()
    os.kill(server, signal.SIGSTOP)
    until(lambda: warm.is_stopped(server))
    program = "import sys; from isp.runtime import warm; warm.begin(sys.argv[1])"
    command = [sys.executable, "-c", program, str(run.socket)]
    subprocess.run(command, env=run.environment, timeout=SECONDS, check=True)
    until(lambda: not warm.is_stopped(server))
    assert run.server() == server


def test_a_server_that_is_stopped_with_a_request_does_not_begin_it_later(run: Run, tmp_path: Path) -> None:
    """For the client gave up, and begins it itself."""
    server = run.server()
    os.kill(server, signal.SIGSTOP)
    with (tmp_path / "log").open("wb") as log:
        given_up = run.start("sleep", tmp_path / "pid", before=UNSEEN, stdout=log, stderr=log)
        assert given_up.wait(SECONDS) == 1
    assert b"kill -CONT" in (tmp_path / "log").read_bytes()
    os.kill(server, signal.SIGCONT)
    assert run.server() == server
    until(lambda: run.processes() == [server])
    assert not (tmp_path / "pid").exists()


def test_a_client_of_a_stopped_server_ends_by_the_first_signal(run: Run, tmp_path: Path) -> None:
    server = run.server()
    os.kill(server, signal.SIGSTOP)
    with (tmp_path / "log").open("wb") as log:
        # It answers signals from when the request is sent; and it cannot see on its own that the server is stopped.
        program = UNSEEN + "warm._check_awake = lambda connection: None; "
        client = run.start("sleep", tmp_path / "pid", before=program, stdout=log, stderr=log)
        until(lambda: catches(client.pid, signal.SIGTERM))
        client.terminate()
        assert client.wait(SECONDS) == -signal.SIGTERM
    os.kill(server, signal.SIGCONT)


def catches(pid: int, number: int) -> bool:
    """Whether a process handles a signal."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def test_a_child_goes_on_where_its_server_is_stopped_and_ends_with_the_owner(run: Run, tmp_path: Path) -> None:
    client, child, server = run.sleeper(tmp_path / "pid")
    os.kill(server, signal.SIGSTOP)
    time.sleep(1.5)
    assert client.poll() is None
    run.end_owner()
    _, stderr = client.communicate(timeout=SECONDS)
    assert client.returncode == 1
    assert stderr == f"isp: exited because its owner, process {run.owner.pid} (ISP_OWNER), is gone\n"
    until(lambda: gone(child))
    os.kill(server, signal.SIGCONT)


def test_who_listens_must_be_the_same_user(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.server()
    monkeypatch.setattr(warm, "_peer", lambda connection: (1, os.getuid() + 1))
    with pytest.raises(warm.UnavailableError, match=f"user {os.getuid() + 1} listens here"):
        warm.call(["parent"], str(run.socket))


@pytest.mark.parametrize("command", [["-m", "isp"], ["-c", LISTS]], ids=["module", "script"])
def test_modules_in_the_current_folder_are_not_imported(run: Run, tmp_path: Path, command: list[str]) -> None:
    """By a call in this process, by the server, by its children."""
    for name in ("yaml", "json", "typer", "argparse", "torch", "select", "ast", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    if command[0] == "-c":
        command = ["-P", *command]  # as the console script
    warm_and_cold = run.environment, {key: value for key, value in run.environment.items() if key != "ISP_WARM"}
    for environment in warm_and_cold:
        call = [sys.executable, *command, "list", "nothing"]
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.stderr == "isp: isp list: the kind must be one of methods, tasks, backbones, got 'nothing'\n"
        assert done.returncode == 2
    assert "imported from" not in run.socket.with_name("warm.sock.log").read_text()


def test_the_socket_is_private(run: Run) -> None:
    run.server()
    assert run.socket.stat().st_mode & 0o777 == 0o600
    assert run.socket.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_to_is_refused(run: Run) -> None:
    run.socket.parent.chmod(0o777)
    with pytest.raises(IspError, match=str(run.socket.parent)):
        warm.call(["parent"], str(run.socket))


def test_a_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(IspError, match="107"):
        warm.call(["list"], f"/tmp/{'long' * 26}")


def test_a_server_that_does_not_start_shows_its_log(run: Run) -> None:
    status, _, stderr = run.call("parent", options="--no-such-option")
    assert status == 1
    assert "unrecognized arguments: --no-such-option" in stderr


def test_no_server_without_an_owner(run: Run) -> None:
    environment = run.environment | {"ISP_OWNER": "0"}
    command = [sys.executable, "-m", "isp", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "isp: ISP_OWNER must be the PID of the process to exit with, got '0'\n"


@pytest.mark.parametrize("odd", ["", "abc", "-1", "0", "1.0", " 1", "٣", "2147483648", "9" * 30, "9" * 5000])
def test_an_owner_that_is_no_pid_is_refused(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISP_OWNER", odd)
    with pytest.raises(IspError, match="ISP_OWNER must be the PID of the process to exit with, got '") as caught:
        warm.owner()
    assert len(str(caught.value)) < 300
    monkeypatch.setenv("ISP_OWNER", "2147483647")
    assert warm.owner() == 2**31 - 1


def test_what_cannot_be_imported_does_not_stop_the_server(run: Run) -> None:
    status, _, stderr = run.call("parent", options=LIGHT.replace("json", "no_such_module,json"))
    assert (status, stderr) == (0, "")
    assert "no_such_module" in run.socket.with_name("warm.sock.log").read_text()


def test_an_idle_server_sleeps(run: Run) -> None:
    server = run.server()

    def switches() -> list[str]:
        lines = Path(f"/proc/{server}/status").read_text().splitlines()
        return [line for line in lines if "ctxt_switches" in line]

    def sleeps() -> bool:
        before = switches()
        time.sleep(0.3)
        return switches() == before

    until(sleeps)


@pytest.mark.parametrize("before", ["", "import os; del os.pidfd_open; "], ids=["pidfd", "polling"])
def test_end_with(run: Run, before: str) -> None:
    program = f"{before}import sys, time; from isp.runtime.warm import *; end_with(owner()); print(1); time.sleep(600)"
    command = [sys.executable, "-u", "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=run.environment, text=True, **pipes) as ending:
        assert ending.stdout.read(1) == "1"
        assert ending.poll() is None
        run.end_owner()
        assert ending.wait(SECONDS) == 1
        assert str(run.owner.pid) in ending.stderr.read()


def test_a_call_in_this_process_ends_with_the_owner(run: Run) -> None:
    del run.environment["ISP_WARM"]
    run.end_owner()
    command = [sys.executable, "-m", "isp", "list"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (1, "")


def test_options_and_no_arguments_need_no_server(run: Run) -> None:
    command = [sys.executable, "-m", "isp", "--help"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0
    assert "list" in done.stdout
    assert not list(run.socket.parent.iterdir())


def test_the_client_imports_nothing_heavy() -> None:
    program = "import sys, isp.__main__, isp.runtime.warm; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"typer", "rich", "yaml", "torch", "numpy", "pydantic", "subprocess", "tempfile", "argparse", "asyncio"}
    assert heavy.isdisjoint(done.stdout.split())
