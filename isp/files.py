"""Plain files (bytes, JSON, CSV), written completely or not at all, without torch. See `artifacts` for tensors."""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from isp.errors import ArtifactError, IspError, remake

LARGEST_STUDY = 2**22
"""Largest study file in bytes, enough for some 100,000 class names and a minute of YAML parsing."""
Problem = Callable[[str, str], str]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet may execute as a formula."""
_KNOWN = 20_000
"""Number of values of a CSV file that are cached, so that equal ones share memory."""


@contextmanager
def writing(path: Path, synced: bool = True) -> Iterator[BinaryIO]:
    """Write a file completely or not at all: under a temporary name in the same folder, synced and renamed at the end.

    The temporary file is locked while it is written, so that `ready` recognises that its writer is alive. Its mode is
    that of any new file, 0666 less the umask.

    Args:
        path: Path of the file.
        synced: Whether to wait until the disk has the file. Without, a crash of the machine (not of the process) may
            leave it torn under its final name, so its reader must verify a checksum.

    Raises:
        IspError: If the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _new_partial(path)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
            else:  # closing any descriptor sends the file to a network's server, which may report that its disk is full
                os.close(os.dup(file.fileno()))
            os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise IspError(
                f"{path}: cannot be written ({error.strerror or error}); nothing was left half-written"
            ) from None
        raise


def _new_partial(path: Path) -> tuple[int, Path]:
    """Create and lock a temporary file in the folder of a path; return its descriptor and its path."""
    while True:
        temporary = path.with_name(f"{_partial(path)}{secrets.token_hex(4)}.partial")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks, where `ready` deletes nothing
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # `ready` of another process deleted it before it was locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this context for the folder; without locks if its file system has none."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes completely or not at all.

    Raises:
        IspError: If the file cannot be written; nothing is left behind.
    """
    with writing(path) as file:
        file.write(content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Write a new folder completely or not at all: under a temporary name next to it, renamed at the end.

    Args:
        path: Folder to create, with its parents.

    Yields:
        Temporary folder.

    Raises:
        IspError: If the path exists or the folder cannot be written; nothing is left behind, including created parents.
    """
    if os.path.lexists(path):
        raise IspError(f"{path}: already exists; name a new folder, or delete this one first")
    absent = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    temporary = path.with_name(f"{_partial(path)}{secrets.token_hex(4)}.partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in absent:
            with suppress(OSError):  # another process has started to use it
                parent.rmdir()
        if isinstance(error, OSError):
            raise IspError(f"{path}: cannot be written ({error.strerror or error}); nothing was left behind") from None
        raise


def _partial(path: Path) -> str:
    return f".{path.name}."


def check_writable(folder: Path) -> None:
    """Create a folder and test that it is writable.

    Raises:
        IspError: If it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise IspError(f"{folder}: cannot be written to ({error.strerror or error})") from None


def ready(*paths: Path) -> None:
    """Check that files can be written, and delete the temporary files that their killed writers left behind.

    Raises:
        IspError: If a folder cannot be created or written to.
    """
    for path in paths:
        check_writable(path.parent)
        for left in path.parent.glob(f"{glob.escape(_partial(path))}{'?' * 8}.partial"):
            with suppress(OSError):  # its writer is alive and has the lock, or the file has disappeared
                _delete_abandoned(left)


def _delete_abandoned(partial: Path) -> None:
    """Delete a temporary file of `writing`.

    Raises:
        OSError: If its writer is alive, or the file system cannot tell.
    """
    handle = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.unlink()
    finally:
        os.close(handle)


def read_text(path: Path, limit: int | None = None) -> str:
    """Read a regular file as UTF-8; see `open_text`."""
    with open_text(path, limit) as file:
        return file.read()


@contextmanager
def open_text(path: Path, limit: int | None = None, newline: str | None = None) -> Iterator[TextIO]:
    """Open a regular file to read it as UTF-8.

    Args:
        path: Path of the file.
        limit: Largest size in bytes; None: any.
        newline: Argument of `open`.

    Raises:
        OSError: If the file cannot be read, is larger than the limit, or is not a regular file, because reading a
            device or a FIFO may never end.
        UnicodeDecodeError: If the file is not UTF-8.
    """
    with open(
        path, encoding="utf-8", newline=newline, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    ) as file:
        check_regular(file.fileno(), limit)
        yield file


def check_regular(path: Path | int, limit: int | None = None) -> None:
    """Check that a file, or an open descriptor, is a regular file and not too large.

    Args:
        path: Path or descriptor of the file.
        limit: Largest size in bytes; None: any.

    Raises:
        OSError: If it is too large or not a regular file.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if limit is not None and status.st_size > limit:
        raise OSError(errno.EFBIG, f"must have at most {limit:,} bytes, got {status.st_size:,}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON completely or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read_json(path: Path, made_by: str, shape: Any = None) -> Any:
    """Read JSON from a file.

    Args:
        path: File to read.
        made_by: Stage that writes it.
        shape: Required shape of its content, of `isp.shapes`; None: any.

    Raises:
        ArtifactError: If the file is missing, not JSON or of another shape. The message names the file, the key and
            the stage that makes it.
    """
    again = remake(made_by)
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; make it first (stage: {made_by})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {again}") from None
    if shape is not None:
        from isp.shapes import mismatch  # imports pydantic, which not all callers need

        if problem := mismatch(content, shape):
            raise ArtifactError(f"{path}: {problem}; {again}")
    return content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as comma-separated values under a header of `columns`, completely or not at all.

    Text that a spreadsheet would read as a formula is prefixed with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _no_formula(value) for column, value in row.items()} for row in rows)
    write_bytes(path, text.getvalue().encode())


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) and not is_number(value) else value


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_csv(
    path: Path, made_by: str, columns: Collection[str] = (), problem: Problem = lambda column, text: ""
) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header, all values as text; see `stream_csv`."""
    return list(stream_csv(path, made_by, columns, problem))


def stream_csv(
    path: Path, made_by: str, columns: Collection[str] = (), problem: Problem = lambda column, text: ""
) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, so that a long one need not fit into memory. Equal values are one object.

    Args:
        path: File to read.
        made_by: Stage that writes it.
        columns: Required columns.
        problem: Function from a column and a value to what the value must be, or to an empty text if it is valid.

    Raises:
        ArtifactError: If the file is missing, lacks a column, ends within a line, or has a row with a wrong number of
            fields or an invalid value. The message names file, line and column.
    """
    again = remake(made_by)
    known: dict[tuple[str, str], str] = {}
    try:
        with open_text(path, newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            lacking = ", ".join(repr(column) for column in columns if column not in header)
            if lacking or len(set(header)) < len(header):
                what = f"no column {lacking}" if lacking else "a column twice"
                raise ArtifactError(f"{path}: has {what} (it has: {', '.join(header)}); {again}")
            for values in filter(None, lines):
                if len(values) != len(header):
                    raise ArtifactError(f"{path}: line {lines.line_num} has not as many fields as the header; {again}")
                row = {}
                for column, value in zip(header, values, strict=True):
                    if (column, value) not in known:
                        if wanted := problem(column, value):
                            where = f"{path}: line {lines.line_num}"
                            raise ArtifactError(f"{where}: {column} must be {wanted}, got {value!r:.100}; {again}")
                        if len(known) > _KNOWN:
                            known.clear()
                        known[column, value] = value
                    row[column] = known[column, value]
                yield row
            if not _ends_with_newline(file.fileno()):
                raise ArtifactError(f"{path}: ends within a line, so it was cut off; {again}")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; make it first (stage: {made_by})") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {again}") from None


def _ends_with_newline(file: int) -> bool:
    """Return whether the last byte of an open file is a line feed, or the file is empty."""
    size = os.fstat(file).st_size
    return not size or os.pread(file, 1, size - 1) == b"\n"
