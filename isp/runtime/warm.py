"""Fork server: imports torch, open_clip and transformers once, and forks a child for every call of `isp`.

A workflow of hundreds of small jobs would otherwise spend most of its time on imports. A call prints, reads, writes and
returns the same as in a fresh process, because its child has the client's arguments, folder, environment, umask and
standard streams. There are two differences. Limits (ulimit), niceness and control groups are those of the first client.
And environment variables that libraries read at import are those of the server: it sets their numbers of threads to
one, and it has one instruction set (`isp.runtime.instructions`), so the `isp` command sends it only calls with that
instruction set. The number of torch threads is set by each stage: the server computes nothing, so the fork loses no
thread pool. The server does not touch CUDA either: a child on a GPU creates its own context.

No process outlives the one it works for: a child exits with its client and with the server, and the server exits with
its owner (the Snakemake process). SIGTERM and SIGUSR1 are forwarded to the child, which decides how to exit, and the
client exits with it. The server requires Linux. Only light modules are imported at the top, since every client imports
this module.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from isp.errors import IspError
from isp.runtime import instructions
from isp.untrusted import printable

RUN = "isp.cli:main"
# Modules that the package uses, some of them by late imports, which every child would otherwise repeat. All modules of
# the package itself are also imported.
MODULES = (
    "torch",
    "torch._dynamo",
    "open_clip",
    "transformers.models.bert.modeling_bert",
    "tokenizers",
    "safetensors.torch",
    "yaml",
    "typer",
    "rich",
    "PIL.Image",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.metrics",
)
START_SECONDS = 120  # imports from a cold disk are slow; a server that died is noticed at once
LARGEST_PID = 2**31 - 1
LONGEST_PATH = 107  # Linux's limit for the address of a unix socket, in bytes
VERIFIED = "verified"
"""Extension, after that of the socket, of the record in `isp.runtime.verified`."""
KILLED = "isp: the process of this stage ended without a status: it or its fork server was killed (out of memory?)"

COLD = "starting without the fork server: "
"""Beginning of the log line that explains why a call runs without the fork server."""

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a client forwards to its child, so that a stage that trains can save a checkpoint."""

_SOCKET = "warm.sock"
_ACCEPTED = b"\1"
"""First byte from a child: it has accepted the call, whatever happens to the server. The exit status follows."""
_ANSWER_SECONDS = 60
"""Maximum wait, in seconds, for a server that accepts neither a connection nor a request."""
# The server imports the same package as the client. Other files in that folder or in the current one hide no modules.
_SERVER = "import sys; sys.path.append(sys.argv.pop(1)); from isp.runtime.warm import main; main()"
_THREADS = ("OMP", "OPENBLAS", "GOTO", "MKL", "NUMEXPR", "VECLIB")
_HEADER = struct.Struct("!I")


class UnavailableError(IspError):
    """No fork server can accept a call, but a process without the server still can."""


def available() -> bool:
    """Return whether this system supports a fork server."""
    return sys.platform == "linux" and hasattr(os, "fork")


def new_address(owner_pid: int) -> str:
    """Create a folder that only this user can write to, and return the path of a server's socket in it.

    The folder is in XDG_RUNTIME_DIR, in the folder of temporary files or in /tmp, whichever works first. Its name is
    random, so that nobody else can have created it.

    Raises:
        UnavailableError: None of them is usable. The message says why, and what would help.
    """
    import tempfile

    candidates = dict.fromkeys([os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"])
    problems = []
    for folder in filter(os.path.isabs, candidates):
        prefix = f"isp-{os.getuid()}-{owner_pid}-"
        size = len(os.fsencode(os.path.join(folder, f"{prefix}{'x' * 8}", _SOCKET)))
        if size > LONGEST_PATH:
            problems.append(f"{folder}: the path of a socket in it has {size} bytes, but the maximum is {LONGEST_PATH}")
            continue
        try:
            return os.path.join(tempfile.mkdtemp(prefix=prefix, dir=folder), _SOCKET)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
    raise UnavailableError(
        f"no folder for the fork server's socket: {'; '.join(problems)}. "
        "Set TMPDIR to a writable folder with a short path"
    )


def owner() -> int:
    """Return the PID in ISP_OWNER.

    Raises:
        IspError: ISP_OWNER is not set, or is not a PID.
    """
    text = os.environ.get("ISP_OWNER", "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) <= LARGEST_PID):
        raise IspError(f"ISP_OWNER must be the PID of the process to exit with, got {text[:200]!r}")
    return int(text)


def end_with(pid: int) -> None:
    """Exit this process, from a thread, when another one exits, because a killed Snakemake leaves its jobs running."""
    try:
        descriptor = _pidfd(pid)
    except ProcessLookupError:
        _end_at_once(pid)
    threading.Thread(target=_end_after, args=(pid, descriptor), daemon=True, name=f"ends with {pid}").start()


def _end_after(pid: int, descriptor: int | None) -> None:
    if descriptor is not None:
        _wait_for(descriptor)
    else:
        while _lives(pid):
            time.sleep(1)
    _end_at_once(pid)


def _end_at_once(pid: int) -> NoReturn:
    # os.write, because the thread that is printing may hold the lock of the stream.
    os.write(2, f"isp: exited because its owner, process {pid} (ISP_OWNER), is gone\n".encode())
    os._exit(1)


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process exits; None if the system has no pidfds.

    Raises:
        ProcessLookupError: The process no longer exists.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        if not _lives(pid):
            raise ProcessLookupError(pid) from None
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_stopped(pid: int) -> bool:
    """Return whether a process of this machine is stopped by SIGSTOP or a debugger; False if it is not known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def _wait_for(*descriptors: int, milliseconds: int | None = None) -> list[int]:
    """Wait until a descriptor is readable or closed on the other side, and return those that are; none on timeout."""
    poll = select.poll()  # no limit of 1024 as in select.select, and needs no descriptor itself
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(milliseconds)]


# The client.


def call(arguments: Sequence[str], socket_path: str, server: Sequence[str] = ()) -> int:
    """Run a command in a child of the fork server, which is started if nobody listens; return the exit status.

    Args:
        arguments: Arguments of the command, without its name.
        socket_path: Path of the server's socket; see `new_address`.
        server: Command-line options for a server that has to be started.

    Raises:
        UnavailableError: The path is not usable, the server did not start, or it is stopped. The message says which.
            The command was not started.
        IspError: ISP_OWNER is not a PID.
    """
    path = os.path.abspath(socket_path)
    if (size := len(os.fsencode(path))) > LONGEST_PATH:
        raise UnavailableError(f"{path}: the path of a socket must have at most {LONGEST_PATH} bytes, got {size}")
    check_private(os.path.dirname(path))
    _open_standard_streams()
    status = b""
    passed: list[int] = []
    try:
        with _connect(path) or _connect_to_new(path, server) as connection:
            _check_awake(connection)  # before sending it our streams, which it would keep open
            _send_request(connection, arguments)
            with _passing_on(connection) as passed:
                status = _wait_for_status(connection, passed)
            if status:  # the locks and the memory of the child are free once it has exited
                _wait_for(connection.fileno(), milliseconds=1000)
    except ConnectionError:
        pass  # the server or the child was killed while we wrote, or before it read everything
    except BlockingIOError:
        raise UnavailableError(f"{path}: the fork server did not answer for {_ANSWER_SECONDS} s") from None
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if not status and passed:
        signal.raise_signal(passed[0])  # the signal ended the child
    if not status:
        print(KILLED, file=sys.stderr)
        return 1
    return status[0]


def _wait_for_status(connection: socket.socket, passed: Sequence[int]) -> bytes:
    """Wait for the status byte of the child; empty if the child or its server was killed.

    Args:
        connection: Connection to the server, over which the request was sent.
        passed: Signals that were forwarded so far.

    Raises:
        UnavailableError: The server is stopped (SIGSTOP) and no child has accepted the call.
    """
    owner_pid = owner() if "ISP_OWNER" in os.environ else None
    owner_end = None
    if owner_pid is not None:
        with suppress(ProcessLookupError):  # the server notices as well
            owner_end = _pidfd(owner_pid)
    watched = [connection.fileno(), *([] if owner_end is None else [owner_end])]
    accepted = False
    while True:
        ready = _wait_for(*watched, milliseconds=None if accepted else 1000)
        if connection.fileno() in ready:
            byte = connection.recv(1)
            if accepted or byte != _ACCEPTED:
                return byte
            accepted = True
        elif ready and owner_pid is not None:
            # The server exits with its owner, and its children with it, unless it is stopped.
            if not _wait_for(connection.fileno(), milliseconds=5000):
                _end_at_once(owner_pid)
            watched = watched[:1]
        elif not ready and not passed:
            _check_awake(connection)
        elif not ready and is_stopped(_peer(connection)[0]):
            return b""  # no child will react to the signal


def _check_awake(connection: socket.socket) -> None:
    """Check that a server can accept a call.

    Raises:
        UnavailableError: The server is stopped.
    """
    pid, _ = _peer(connection)
    if is_stopped(pid):
        raise UnavailableError(f'the fork server is stopped; "kill -CONT {pid}" resumes it')


def begin(socket_path: str) -> None:
    """Start a server from a thread. A call that arrives before the server listens waits for it.

    If the server does not start, one message on standard error says so. A server that is stopped when this process
    exits is resumed, so that it can exit with its owner.
    """
    import atexit

    def resume() -> None:
        with suppress(UnavailableError, OSError):
            if connection := _connect(socket_path):
                pid, _ = _peer(connection)
                if is_stopped(pid):
                    os.kill(pid, signal.SIGCONT)

    def start() -> None:
        try:
            _connect_to_new(socket_path, ()).close()
        except UnavailableError as error:
            print(
                f"{printable(error)}\nJobs start without it, which takes a few seconds per job.",
                file=sys.stderr,
                flush=True,
            )

    atexit.register(resume)
    threading.Thread(target=start, daemon=True, name="starts the fork server").start()


def check_private(folder: str) -> None:
    """Check that only this user can write to a folder, because the server receives our whole environment.

    Raises:
        UnavailableError: The folder is missing, or others can write to it.
    """
    import stat

    try:
        status = os.lstat(folder)
    except OSError as error:
        raise UnavailableError(f"{folder}: the folder of the fork server's socket: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UnavailableError(
            f"{folder}: the folder of the fork server's socket must be one that only you can write to"
        )


def _open_standard_streams() -> None:
    """Open /dev/null in place of each closed standard stream, so that there are three streams to send."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one


def _connect(path: str) -> socket.socket | None:
    """Connect to a server; None if nobody listens, even if an earlier server left its socket behind.

    Raises:
        UnavailableError: The socket is not usable, or the listener belongs to another user.
        BlockingIOError: The server has not accepted earlier connections for too long.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _ANSWER_SECONDS, 0))
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BlockingIOError:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        raise UnavailableError(f"{path}: the fork server's socket cannot be used ({error.strerror})") from None
    if (uid := _peer(connection)[1]) != os.getuid():
        connection.close()
        raise UnavailableError(f"{path}: user {uid} listens here instead of the fork server")
    return connection


def _peer(connection: socket.socket) -> tuple[int, int]:
    """PID and user of the listening process of a socket, as recorded by the kernel."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _connect_to_new(path: str, server: Sequence[str]) -> socket.socket:
    """Start a server and connect to it. If many clients do this at once, the first one starts it for all.

    Raises:
        UnavailableError: The server did not start, now or when an earlier client tried.
    """
    failed = f"{path}.failed"
    try:
        with _locked(f"{path}.lock"):
            if connection := _connect(path):
                return connection
            if os.path.exists(failed):
                raise UnavailableError(f"the fork server did not start; its log: {path}.log")
            try:
                return _start(path, server)
            except UnavailableError:
                open(failed, "wb").close()
                raise
    except OSError as error:
        raise UnavailableError(f"{path}: the fork server cannot be started ({error.strerror or error})") from None


@contextmanager
def _locked(path: str) -> Iterator[None]:
    import fcntl

    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(path: str, server: Sequence[str]) -> socket.socket:
    import subprocess

    # The folder that contains this package, so that the server imports the same one however it was found here.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # One thread each, whatever the first job has, because results must not depend on which job is the first.
    environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in _THREADS}
    environment |= instructions.variables(os.environ.get(instructions.SERVED))
    with open(f"{path}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVER, root, path, str(owner()), *server],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=root,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for Snakemake, which lets its jobs finish
        )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if connection := _connect(path):
            return connection
        time.sleep(0.02)
    problem = f"did not listen within {START_SECONDS} s"
    if process.poll() is None:
        process.kill()
        process.wait()
    else:
        problem = f"exited with status {process.returncode}"
    raise UnavailableError(f"the fork server {problem}; the end of its log, {path}.log:\n{_end_of(path)}")


def _end_of(path: str) -> str:
    try:
        with open(f"{path}.log", encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-20:]).strip() or "(empty)"
    except FileNotFoundError:  # the server removes it when its owner is gone
        return "(removed)"


def _send_request(connection: socket.socket, arguments: Sequence[str]) -> None:
    umask = os.umask(0o077)
    os.umask(umask)
    request = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ), "umask": umask}
    body = json.dumps(request).encode()
    socket.send_fds(connection, [_HEADER.pack(len(body))], [0, 1, 2])
    connection.sendall(body)


@contextmanager
def _passing_on(connection: socket.socket) -> Iterator[list[int]]:
    """Forward stop signals to the child while the context is open; a repeated signal ends the client itself."""
    passed: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        passed.append(number)
        with suppress(OSError):  # the child is gone
            connection.send(bytes([number]))

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


# The server.


def serve(socket_path: str, owner_pid: int, run: str = RUN, modules: Sequence[str] = ()) -> None:
    """Import all modules once, then fork a child per connection until the owner is gone.

    Args:
        socket_path: Path of the socket. An existing one is replaced, so the caller must hold the lock.
        owner_pid: PID of the process to exit with.
        run: `module:function` that a child calls with its arguments.
        modules: Modules to import. Default: `MODULES` and those of the package.
    """
    import gc

    try:
        owner_end = _pidfd(owner_pid)
    except ProcessLookupError:
        raise IspError(f"the owner of the fork server, process {owner_pid}, is gone") from None
    _remove_leftovers(os.path.dirname(socket_path))
    gc.disable()  # enabled again in the children: a collection here would write to, and so copy, shared pages
    _import(modules or (*MODULES, *_own_modules()))
    _check_untouched()
    # Imported again in every child, in milliseconds, because rich's consoles read terminal and environment at import.
    sys.modules.pop(run.partition(":")[0], None)
    gc.freeze()
    sys.stdout.flush()  # otherwise the output of imports would be in the buffers of all children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    for number in PASSED_ON:  # a scheduler sends them to all processes of a job; the server exits with its owner
        signal.signal(number, signal.SIG_IGN)
    # No thread may start before the fork: a child would inherit locks that nobody releases.
    lifeline = os.pipe()
    with _listener(socket_path) as listener:
        try:
            while _wait_for_client(listener, owner_pid, owner_end):
                _fork(listener, owner_end, lifeline, run)
        finally:
            _remove(socket_path)


def _wait_for_client(listener: socket.socket, owner_pid: int, owner_end: int | None) -> bool:
    """Wait for a client. Returns False if the owner is gone."""
    if owner_end is not None:
        return owner_end not in _wait_for(listener.fileno(), owner_end)
    while not _wait_for(listener.fileno(), milliseconds=1000):
        if not _lives(owner_pid):
            return False
    return True


def _fork(listener: socket.socket, owner_end: int | None, lifeline: tuple[int, int], run: str) -> None:
    """Accept a connection and serve it in a child, which never returns from here."""
    connection, _ = listener.accept()
    with connection:
        try:
            child = os.fork() == 0
        except OSError as error:  # no memory, or too many processes: the client reports that it got no status
            print(f"cannot fork: {error}", file=sys.stderr, flush=True)
            return
        if child:
            try:
                # Only the server holds the writing end, so its exit is the end of the file here.
                os.close(lifeline[1])
                listener.close()
                if owner_end is not None:
                    os.close(owner_end)
                _serve_client(connection, lifeline[0], run)
            finally:
                os._exit(1)


@contextmanager
def _listener(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        _unlink(path)
        umask = os.umask(0o177)
        listener.bind(path)
        os.umask(umask)
        listener.listen(128)
        yield listener


def _check_untouched() -> None:
    """Check that no import has created a CUDA context, which no child could use.

    Raises:
        IspError: An import has created one.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise IspError("importing a module has initialised CUDA, so no job can be forked from this process")


def _own_modules() -> list[str]:
    """Return the names of this package's modules that a stage may use.

    Not the entry point, this module, and those that need slow libraries which no stage uses.
    """
    import pkgutil

    package = sys.modules["isp"]  # an import statement would close a circle of modules
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "isp.", onerror=lambda name: None)]
    others = ("isp.__main__", "isp.runtime.warm", "isp.sparse_kernel")
    return [name for name in names if name not in others and not name.startswith("isp.integrations.")]


def _import(modules: Sequence[str]) -> None:
    """Import modules. Failures are logged only: the stage that needs the module reports them."""
    import importlib
    import traceback

    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            traceback.print_exc()


def _remove(socket_path: str) -> None:
    """Remove a server's files, and their folder if `new_address` created it."""
    for path in (socket_path, *(f"{socket_path}.{kind}" for kind in ("log", "lock", "failed", VERIFIED))):
        _unlink(path)
    folder = os.path.dirname(socket_path)
    if _owner_of(folder) is not None:
        try:
            os.rmdir(folder)
        except OSError:
            print(f"{folder}: not removed because it contains other files", file=sys.stderr)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _owner_of(folder: str) -> int | None:
    """Return the owner's PID in the name of a folder of `new_address`; None for other folders.

    Any user can create a file or folder with such a name, so the name alone proves nothing.
    """
    *name, pid, _ = ["", "", *os.path.basename(folder).rsplit("-", 2)][-3:]
    is_ours = name == [f"isp-{os.getuid()}"] and pid.isascii() and pid.isdecimal() and len(pid) <= 10
    return int(pid) if is_ours and 0 < int(pid) <= LARGEST_PID else None


def _remove_leftovers(folder: str) -> None:
    """Remove the folders that killed servers, whose owners are gone, left beside this server's folder."""
    if _owner_of(folder) is None:
        return
    with suppress(OSError):  # the parent may be writable but not listable
        for entry in os.scandir(os.path.dirname(folder)):
            pid = _owner_of(entry.name)
            if pid is None or _lives(pid):
                continue
            with suppress(OSError, UnavailableError):  # another server may be removing it at the same time
                check_private(entry.path)
                if not _listens(path := os.path.join(entry.path, _SOCKET)):
                    _remove(path)


def _listens(path: str) -> bool:
    """Return whether a server listens, even if its owner is in another container and only appears to be gone."""
    connection = _connect(path)
    if connection is None:
        return False
    connection.close()
    return True


# The child.


def _serve_client(connection: socket.socket, lifeline: int, run: str) -> NoReturn:
    with suppress(OSError):  # the client is gone
        connection.sendall(_ACCEPTED)
    try:
        arguments = _become_client(connection)
    except OSError as error:  # e.g. the folder no longer exists
        print(f"isp: {printable(error)}", file=sys.stderr)
        status = 1
    else:
        watched = (connection, lifeline)
        threading.Thread(target=_end_with_either, args=watched, daemon=True, name="ends with client or server").start()
        status = _status_of(run, arguments)
    status = _flushed(status)
    try:
        connection.sendall(bytes([status]))
    finally:
        os._exit(status)


def _end_with_either(connection: socket.socket, lifeline: int) -> None:
    """Exit with the client or the server. A byte from the client is the number of a signal for the main thread."""
    main = threading.main_thread().ident
    with suppress(OSError):
        while _wait_for(connection.fileno(), lifeline) == [connection.fileno()]:
            number = connection.recv(1)
            if not number or main is None:
                break
            signal.pthread_kill(main, number[0])
    os._exit(1)


def _become_client(connection: socket.socket) -> list[str]:
    """Adopt the client's streams, environment and folder and the state of a fresh process; return the arguments."""
    import atexit
    import gc

    atexit._clear()  # handlers that the server's imports registered are not ours, and take longer than a small job
    header, streams, _, _ = socket.recv_fds(connection, _HEADER.size, 3)
    if len(header) < _HEADER.size:
        os._exit(0)  # a client only checked whether the server listens
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    _open_streams()
    request = json.loads(_receive(connection, *_HEADER.unpack(header)))
    for number, handler in (
        (signal.SIGCHLD, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),  # SIGUSR1 stays ignored: it is a notice that only training stages handle
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.update(instructions.variables(os.environ.get(instructions.SERVED)))  # read by libraries when first used
    os.umask(request["umask"])
    os.chdir(request["folder"])
    _forget_environment()
    if _is_closed(connection):  # the server was stopped, and the client runs the call itself
        os._exit(1)
    sys.argv = ["isp", *request["arguments"]]
    # Like the console script's, which belongs to no package: usage messages are built from it.
    sys.modules["__main__"] = type(sys)("__main__")
    gc.enable()
    return list(request["arguments"])


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _receive(connection: socket.socket, size: int) -> bytes:
    body = bytearray()
    while len(body) < size:
        part = connection.recv(size - len(body))
        if not part:
            os._exit(1)  # the client is gone
        body += part
    return bytes(body)


def _open_streams() -> None:
    """Recreate Python's standard streams with the buffering that suits the client's streams."""
    encoding = sys.stdout.encoding
    stdin = io.BufferedReader(io.FileIO(0, closefd=False))
    stdout, stderr = (io.BufferedWriter(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
    sys.stdin = io.TextIOWrapper(stdin, encoding)
    sys.stdout = io.TextIOWrapper(stdout, encoding, line_buffering=os.isatty(1))
    sys.stderr = io.TextIOWrapper(stderr, encoding, "backslashreplace", line_buffering=True)


def _forget_environment() -> None:
    """Make Python reread what it caches of the environment, because Snakemake sets TMPDIR for each job."""
    import tempfile

    tempfile.tempdir = None
    time.tzset()


def _status_of(run: str, arguments: list[str]) -> int:
    """Call the function, and return the exit status with which Python would have exited."""
    import importlib

    module, _, function = run.partition(":")
    try:
        getattr(importlib.import_module(module), function)(arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _flushed(status: int) -> int:
    """Do what Python does at exit. Returns the status, or 120 if the output could not be written."""
    import atexit

    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return status


def main() -> None:
    """Run the server's command line: `SOCKET OWNER [--run MODULE:FUNCTION] [--modules A,B]`."""
    import argparse

    parser = argparse.ArgumentParser(prog="isp.runtime.warm")
    parser.add_argument("socket")
    parser.add_argument("owner", type=int)
    parser.add_argument("--run", default=RUN)
    parser.add_argument("--modules", default="")
    options = parser.parse_args()
    try:
        serve(options.socket, options.owner, options.run, [name for name in options.modules.split(",") if name])
    except IspError as error:
        raise SystemExit(f"isp: {printable(error)}") from None
