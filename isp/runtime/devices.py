"""The GPUs of this machine, one job each: a lock for every device, which ends with the process that holds it.

Snakemake counts the jobs on GPUs that it runs itself, but tells none of them which device is its own, and knows nothing
of another Snakemake on the machine. So each job takes a free device and sees no other. A lock is an flock of a file in
a folder that all users share; the kernel takes it back however its holder ends, so what is left of a killed one is a
file that nobody holds. Only what is light is imported at the top.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from isp.errors import ConfigError, IspError
from isp.untrusted import printable

FOLDER = "/tmp/isp-gpus"
"""Where the locks are. Not below TMPDIR: users, Snakemake and schedulers set it, and a lock must be one for all."""
POLL_SECONDS = 0.2
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def taken(device: str, what: str) -> Iterator[None]:
    """Hold a GPU of this machine; wait, and say so once on standard error, until one is free.

    For "cuda" it is any, and CUDA_VISIBLE_DEVICES names it alone from then on, also afterwards: a process that has
    looked at CUDA cannot change devices. For "cuda:N" it is number N of those that are visible. Nothing happens on a
    CPU and without a GPU. Slurm gives out devices itself: in a job with one nothing happens, in a job with several its
    own processes take one each.

    Args:
        device: cpu, cuda or cuda:N.
        what: the holder's output, for those who wait.

    Environment variables:
        ISP_GPUS: numbers or UUIDs of the devices that may be taken, with commas between them; else torch is asked.
        ISP_GPU_LOCKS: another folder of locks.

    Raises:
        ConfigError: there is no such device, or ISP_GPUS names none that is visible.
        IspError: the folder of locks cannot be written, or something else is in the place of a lock.
    """
    asked = re.fullmatch(r"cuda(?::(\d+))?", device)
    there = visible() if asked else {}
    given = len(there) == 1 and "SLURM_JOB_ID" in os.environ
    if asked is None or not there or given:  # `check_device` refuses what torch does not know
        yield
        return
    names = list(there)
    if asked[1] and int(asked[1]) >= len(names):
        raise ConfigError(f"device {device!r}: the GPUs that may be taken here are {', '.join(names)}")
    wanted = [names[int(asked[1])]] if asked[1] else names
    name, lock = _take({name: there[name] for name in wanted}, what)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names) if asked[1] else name
    try:
        yield
    finally:
        os.ftruncate(lock, 0)
        _held.discard(lock)
        os.close(lock)


def visible() -> dict[str, str]:
    """The devices that this process may take, in CUDA's order: the name that CUDA takes, and the physical id.

    Raises:
        ConfigError: ISP_GPUS names none that CUDA_VISIBLE_DEVICES does.
    """
    allowed, named = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("ISP_GPUS")
    if named is None and allowed is None:
        import torch

        return {str(index): str(index) for index in range(torch.cuda.device_count())}
    found = _physical(_names(named if allowed is None else allowed))
    if named is None or allowed is None:
        return found
    both = set(_physical(_names(named)).values())
    if found and not both & set(found.values()):
        raise ConfigError(f"ISP_GPUS={named}: names none of CUDA_VISIBLE_DEVICES={allowed}")
    return {name: device for name, device in found.items() if device in both}


def _names(text: str | None) -> list[str]:
    """The devices of a list; as CUDA does, it ends at the first that cannot be one, such as -1."""
    found: list[str] = []
    for name in (text or "").split(","):
        if not re.fullmatch(r"\w[\w/.-]*", name.strip()):
            break
        found.append(name.strip())
    return found


def _physical(names: list[str]) -> dict[str, str]:
    """The physical id of each device: its number, also where it is named by (the beginning of) its UUID.

    A UUID stands for itself where nvidia-smi is not there to ask. Its numbers are CUDA's where all GPUs are of one type
    or CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    numbers: dict[str, str] = {}
    if not all(name.isdecimal() for name in names):
        command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
            lines = (line.partition(",") for line in listed.decode(errors="replace").splitlines())
            numbers = {uuid.strip(): index.strip() for index, _, uuid in lines}
    return {
        name: next((number for uuid, number in numbers.items() if uuid.startswith(name)), name)
        if not name.isdecimal()
        else str(int(name))
        for name in names
    }


def _folder() -> Path:
    """Where the locks are; those of a job of Slurm by themselves, as every job may number its devices from 0."""
    job = os.environ.get("SLURM_JOB_ID")
    chosen = os.environ.get("ISP_GPU_LOCKS")  # may be a link, as its user trusts it
    return Path(os.path.realpath(chosen)) if chosen else Path(f"{FOLDER}-{job}" if job else FOLDER)


def _take(devices: Mapping[str, str], what: str) -> tuple[str, int]:
    """Lock one of the devices; its name and the descriptor of its lock."""
    folder, waiting = _folder(), False
    while True:
        for name, device in devices.items():
            lock = _open(folder, device)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            _held.add(lock)
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}, {what}\n".encode())
            return name, lock
        if not waiting:
            waiting = True
            holders = "; ".join(f"{name}: {_holder(folder, device)}" for name, device in devices.items())
            print(f"waiting for a GPU; who holds them: {printable(holders)}", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def _lock_of(folder: Path, device: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', device)}.lock"


def _holder(folder: Path, device: str) -> str:
    lock = _open(folder, device)
    try:
        return os.pread(lock, 400, 0).decode(errors="replace").strip() or "somebody"
    finally:
        os.close(lock)


def _open(folder: Path, device: str) -> int:
    """Open the file of a lock; create it and its folder if need be, for all users.

    All users may write to the folder. So a link in it is not followed, or what we write would go into the file of its
    choice, and nothing but a regular file with this one name is taken for a lock.

    Raises:
        IspError: the folder or the file cannot be used; says which, and what to do.
    """
    path, umask = _lock_of(folder, device), os.umask(0)
    at = None
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o1777)
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise IspError(
            f"{folder}: cannot be written to ({error.strerror or error}), and it holds the locks of this machine's "
            "GPUs; ISP_GPU_LOCKS names another folder"
        ) from None
    else:
        try:
            return _open_in(at, path.name)
        except OSError as error:
            problem = f"{error.strerror or error}{_owner_in(at, path.name)}"
            raise IspError(
                f"{path}: not usable as the lock of a GPU ({problem}). Have it deleted, or let ISP_GPU_LOCKS name "
                "another folder, the same one for all who share the GPUs"
            ) from None
    finally:
        os.umask(umask)
        if at is not None:
            os.close(at)


def _open_in(folder: int, name: str) -> int:
    """Open a lock in an open folder.

    Raises:
        OSError: it cannot be opened, or is not a regular file of one name.
    """
    # Without O_CREAT where it is there: Linux refuses that for files of others in such a folder.
    for flags in (0, os.O_CREAT | os.O_EXCL, 0):
        with suppress(FileNotFoundError if not flags else FileExistsError):
            lock = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666, dir_fd=folder)
            found = os.fstat(lock)
            if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
                return lock
            os.close(lock)
            raise OSError(errno.EINVAL, "a FIFO, a device or a file with another name elsewhere")
    raise FileNotFoundError(errno.ENOENT, "deleted just now")


def _owner_in(folder: int, name: str) -> str:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return ""
    return f"{', a link' if stat.S_ISLNK(found.st_mode) else ''}, of user {found.st_uid}"


def _forget() -> None:
    """In a forked child: a lock is its parent's, and must not live as long as the child."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
