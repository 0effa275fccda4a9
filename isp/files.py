"""Plain files (bytes, JSON, CSV), written whole or not at all. Tensors are in `artifacts`; this needs no torch."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from isp.errors import ArtifactError, IspError


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all: under a temporary name in the same folder, synced and renamed at the end.

    Raises:
        IspError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_partial(path), suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise IspError(
                f"{path}: cannot be written ({error.strerror or error}); nothing was left half-written"
            ) from None
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all.

    Raises:
        IspError: as `writing`.
    """
    with writing(path) as file:
        file.write(content)


def _partial(path: Path) -> str:
    return f".{path.name}."


def check_writable(folder: Path) -> None:
    """Make the folder and try it.

    Raises:
        IspError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise IspError(f"{folder}: cannot be written to ({error.strerror or error})") from None


def ready(*paths: Path) -> None:
    """See that files can be written, and remove what a killed writer of them left under temporary names.

    Only for the one process that writes them.

    Raises:
        IspError: a folder cannot be made or written to.
    """
    for path in paths:
        check_writable(path.parent)
        for left in path.parent.glob(f"{_partial(path)}*.partial"):
            left.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read_json(path: Path, made_by: str) -> Any:
    """JSON from a file.

    Raises:
        ArtifactError: missing or not JSON; names the stage that makes it.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; make it first (stage: {made_by})") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error}); delete it and make it again (stage: {made_by})"
        ) from None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows as comma-separated values under a header of `columns`, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_csv(path: Path, made_by: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, all values as text.

    Raises:
        ArtifactError: missing, or a row with another number of fields than the header.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; make it first (stage: {made_by})") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error}); delete it and make it again (stage: {made_by})"
        ) from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ArtifactError(
                f"{path}: line {number} has not as many fields as the header; make it again ({made_by})"
            )
    return rows
