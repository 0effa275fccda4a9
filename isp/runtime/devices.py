"""GPU locks: one job per GPU of this machine, or as many as are asked for, by locks that are released when a job exits.

Snakemake counts the GPU jobs that it runs itself, but assigns no devices to them, and does not know about other
Snakemake processes on the machine. Therefore each job reserves a free device and hides all others from itself. A lock
is an flock on a file in a folder that all users share. The kernel releases it however its holder exits, so a killed job
leaves only an unlocked file behind. Only light modules are imported at the top.
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
"""Folder of the locks. Not below TMPDIR, which users, Snakemake and schedulers set: all must share the same locks."""
POLL_SECONDS = 0.2
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def reserve(device: str, what: str) -> Iterator[None]:
    """Reserve a GPU of this machine while the context is open. Waits until one is free, and says so once on stderr.

    A job has its GPU to itself, unless ISP_JOBS_PER_GPU is more than 1: then that many jobs, all of which say so, use
    it together.

    For "cuda", any GPU is reserved, and CUDA_VISIBLE_DEVICES contains only that GPU from then on, even after the
    context is closed, because a process that has used CUDA cannot change devices. For "cuda:N", it is number N of the
    visible GPUs. Nothing happens on a CPU or if there is no GPU. Slurm assigns devices itself: nothing happens in a
    job with one device, and in a job with several, each process of the job reserves one.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        what: Output of the holder, shown to processes that wait.

    Environment variables:
        ISP_GPUS: Comma-separated numbers or UUIDs of the usable devices. Default: all devices that torch sees.
        ISP_JOBS_PER_GPU: Number of jobs that use a GPU at the same time. Default: 1.
        ISP_GPU_LOCKS: Folder of the locks, instead of `FOLDER`.

    Raises:
        ConfigError: The device does not exist, ISP_GPUS contains no visible device, or ISP_JOBS_PER_GPU is not a
            positive integer.
        IspError: The folder of locks is not writable, or a lock's path is not a regular file.
    """
    asked = re.fullmatch(r"cuda(?::(\d+))?", device)
    there = visible() if asked else {}
    given = len(there) == 1 and "SLURM_JOB_ID" in os.environ
    if asked is None or not there or given:  # `check_device` refuses devices that torch does not know
        yield
        return
    names = list(there)
    if asked[1] and int(asked[1]) >= len(names):
        raise ConfigError(f"device {device!r} does not exist; the usable GPUs are {', '.join(names)}")
    wanted = [names[int(asked[1])]] if asked[1] else names
    name, locks = _take({name: there[name] for name in wanted}, _jobs_per_gpu(), what)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names) if asked[1] else name
    try:
        yield
    finally:
        os.ftruncate(locks[-1], 0)
        for lock in locks:
            _held.discard(lock)
            os.close(lock)


def visible() -> dict[str, str]:
    """Return the usable devices of this process in CUDA's order: CUDA's name and the physical id of each.

    Raises:
        ConfigError: ISP_GPUS and CUDA_VISIBLE_DEVICES have no device in common.
    """
    allowed, named = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("ISP_GPUS")
    if named is None and allowed is None:
        import torch

        return {str(index): str(index) for index in range(torch.cuda.device_count())}
    devices = _physical(_names(named if allowed is None else allowed))
    if named is None or allowed is None:
        return devices
    both = set(_physical(_names(named)).values())
    if devices and not both & set(devices.values()):
        raise ConfigError(f"ISP_GPUS={named} contains no device of CUDA_VISIBLE_DEVICES={allowed}")
    return {name: device for name, device in devices.items() if device in both}


def _names(text: str | None) -> list[str]:
    """Return the devices in a comma-separated list. Like CUDA, it stops at the first invalid name, such as -1."""
    devices: list[str] = []
    for name in (text or "").split(","):
        if not re.fullmatch(r"\w[\w/.-]*", name.strip()):
            break
        devices.append(name.strip())
    return devices


def _physical(names: list[str]) -> dict[str, str]:
    """Return the physical id of each device: its number, even if it is named by (the beginning of) its UUID.

    Without nvidia-smi, a UUID is its own id. The numbers of nvidia-smi equal CUDA's if all GPUs are of one type or
    CUDA_DEVICE_ORDER is PCI_BUS_ID.
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
    """Return the folder of the locks. Each Slurm job has its own, as every job may number its devices from 0."""
    job = os.environ.get("SLURM_JOB_ID")
    chosen = os.environ.get("ISP_GPU_LOCKS")  # may be a link, because its user trusts it
    return Path(os.path.realpath(chosen)) if chosen else Path(f"{FOLDER}-{job}" if job else FOLDER)


def _jobs_per_gpu() -> int:
    """Return ISP_JOBS_PER_GPU."""
    text = os.environ.get("ISP_JOBS_PER_GPU", "1")
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", text, re.ASCII):
        raise ConfigError(f"ISP_JOBS_PER_GPU must be an integer from 1 to 9999, got {printable(text)!r}")
    return int(text)


def _take(devices: Mapping[str, str], jobs: int, what: str) -> tuple[str, list[int]]:
    """Lock one of the devices, and return its name and the descriptors of its locks, the job's own last.

    Jobs are spread: none shares a device while another is free.
    """
    folder, waiting = _folder(), False
    while True:
        for number in range(jobs):
            for name, device in devices.items():
                if locks := _lock(folder, device, number if jobs > 1 else None):
                    _held.update(locks)
                    for lock in locks:  # a killed holder does not empty them
                        os.ftruncate(lock, 0)
                    os.write(locks[-1], f"process {os.getpid()} on {socket.gethostname()}, {what}\n".encode())
                    return name, locks
        if not waiting:
            waiting = True
            holders = "; ".join(f"{name}: {_holders(folder, device)}" for name, device in devices.items())
            print(f"waiting for a GPU, in use by: {printable(holders)}", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def _lock(folder: Path, device: str, number: int | None) -> list[int]:
    """Lock a device, or one of its numbered places, whose holders share the device's lock.

    Returns:
        Descriptors of the locks, the job's own last; empty if the device or the place is not free.
    """
    whole = _open(folder, device)
    if not _locked(whole, fcntl.LOCK_EX if number is None else fcntl.LOCK_SH):
        return []
    if number is None:
        return [whole]
    place = _open(folder, f"{device}.{number}")
    if _locked(place, fcntl.LOCK_EX):
        return [whole, place]
    os.close(whole)
    return []


def _locked(lock: int, kind: int) -> bool:
    """Lock an open file and return True, or close it if others prevent that."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True


def _lock_of(folder: Path, device: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', device)}.lock"


def _holders(folder: Path, device: str) -> str:
    """Return what the holders of a device wrote into its locks."""
    shared = sorted(folder.glob(f"{_lock_of(folder, device).stem}.*.lock"))
    found = []
    for place in (device, *(path.stem for path in shared)):
        lock = _open(folder, place)
        try:
            found.append(os.pread(lock, 400, 0).decode(errors="replace").strip())
        finally:
            os.close(lock)
    return ", ".join(filter(None, found)) or "unknown"


def _open(folder: Path, device: str) -> int:
    """Open the file of a lock. The file and its folder are created if necessary, for all users.

    All users may write to the folder. Therefore links in it are not followed, as they could redirect writes to any
    file, and only a regular file with a single name is accepted as a lock.

    Raises:
        IspError: The folder or the file is not usable. The message says which one, and what to do.
    """
    path, umask = _lock_of(folder, device), os.umask(0)
    at = None
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o1777)
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise IspError(
            f"{folder}: the folder of this machine's GPU locks cannot be written to ({error.strerror or error}); set "
            "ISP_GPU_LOCKS to another folder"
        ) from None
    else:
        try:
            return _open_in(at, path.name)
        except OSError as error:
            problem = f"{error.strerror or error}{_owner_in(at, path.name)}"
            raise IspError(
                f"{path}: not usable as a GPU lock ({problem}). Have it deleted, or set ISP_GPU_LOCKS to another "
                "folder, the same one for all users of the GPUs"
            ) from None
    finally:
        os.umask(umask)
        if at is not None:
            os.close(at)


def _open_in(folder: int, name: str) -> int:
    """Open a lock in an open folder.

    Raises:
        OSError: The lock cannot be opened, or is not a regular file with a single name.
    """
    # Without O_CREAT if the file exists: Linux refuses O_CREAT for other users' files in a sticky folder.
    for flags in (0, os.O_CREAT | os.O_EXCL, 0):
        with suppress(FileNotFoundError if not flags else FileExistsError):
            lock = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666, dir_fd=folder)
            status = os.fstat(lock)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
                return lock
            os.close(lock)
            raise OSError(errno.EINVAL, "a FIFO, a device or a file with a second name")
    raise FileNotFoundError(errno.ENOENT, "deleted just now")


def _owner_in(folder: int, name: str) -> str:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return ""
    return f"{', a link' if stat.S_ISLNK(status.st_mode) else ''}, of user {status.st_uid}"


def _forget() -> None:
    """Close the locks in a forked child: a lock belongs to the parent and must not live as long as the child."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
