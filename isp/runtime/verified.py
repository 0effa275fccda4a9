"""Record of the files that jobs of a run have verified, so that the next job that reads one need not read all of it.

Prepared examples and pre-trained weights are read by nearly every job and take gigabytes, of which a short job uses a
part. The record is beside the fork server's socket, in a folder that only this user can write to, and goes with the
server. It names a file by everything that a write changes, so an altered file is verified, and refused, as before.
Without a fork server, every job verifies what it reads.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from isp.runtime import warm

SETTLED = 10.0
"""Seconds for which a file must not have changed before it is recorded. Two changes within a tick of the file system's
clock, which may be that of a server, leave the same times."""


def identity(path: Path) -> str:
    """Return what identifies the present content of a file: device, inode, size, and the times of its last changes.

    Raises:
        OSError: There is no such file.
    """
    found = os.stat(path)
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def is_known(identity: str) -> bool:
    """Return whether a job of this run has verified the content."""
    if (record := _record()) is None:
        return False
    try:
        return identity in record.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False


def remember(identity: str) -> None:
    """Record content as verified, if it is settled and there is a fork server."""
    *_, modified, changed = identity.split(":")
    age = time.time() - max(int(modified), int(changed)) / 1e9
    if age > SETTLED and (record := _record()) is not None:
        with suppress(OSError), record.open("a", encoding="utf-8") as file:  # lines of one write are never mixed
            file.write(f"{identity}\n")


def _record() -> Path | None:
    """Return the path of the record; None without a fork server, or if others could write to its folder."""
    if (address := os.environ.get("ISP_WARM")) is None:
        return None
    try:
        warm.check_private(os.path.dirname(os.path.abspath(address)))
    except warm.UnavailableError:
        return None
    return Path(f"{address}.{warm.VERIFIED}")
