"""The client of the Hugging Face hub, and the only module that touches a network.

`huggingface_hub` speaks the protocol: listing, addresses, tokens, locks. This module adds what it lacks: bytes that
arrived before an interruption are kept and resumed from, also by a later process (its own downloads start anew); a
file gets its name only once its checksum is the hub's; attempts are bounded. Files come by plain HTTP, and nothing is
written outside of the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeVar

from isp.errors import DataError, IspError

PAUSES: tuple[float, ...] = (1, 2, 4, 8)  # seconds before each further attempt
TIMEOUT = 10.0  # seconds to connect, and between two pieces of an answer
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository on the Hugging Face hub, at a pinned revision.

    Attributes:
        id: "owner/name".
        kind: what it holds.
        revision: a commit (40 hex digits), or a branch or tag, which is resolved to a commit once per fetch.
    """

    id: str
    kind: Literal["dataset", "model"]
    revision: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id} at revision {self.revision}"


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A checked file: where it is, its size, its sha256."""

    path: Path
    bytes: int
    sha256: str


def fetch(repo: Repo, patterns: Sequence[str], folder: Path) -> tuple[str, list[Fetched]]:
    """Bring the files of a repository that match any of the patterns into a folder, and check them.

    Files that are there with the right size and checksum are kept; others under their names are replaced.

    Args:
        repo: which repository, and which state of it.
        patterns: shell-style, over names in the repository (`*` matches `/`, too).
        folder: files get their names in the repository below it.

    Returns:
        The commit, and the files sorted by name.

    Raises:
        DataError: the hub cannot be reached, refuses, lacks a file or sends other bytes than it lists.
        IspError: a file cannot be written.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://([^/\s]+@)?(\[[^/\s]+\]|[^/:\s]+)(:\d+)?(/\S*)?", endpoint):
        raise DataError(f"HF_ENDPOINT = {endpoint!r}: not an address (allowed: http://… and https://…)")
    hub = _Hub(repo, folder, endpoint)
    commit, there = hub.persist(hub.listing, patterns)
    wanted: dict[str, _File] = {}
    for pattern in patterns:
        matching = {name: file for name, file in there.items() if fnmatchcase(name, pattern)}
        if not matching:
            raise DataError(f"{repo}: no file matches {pattern!r} (there: {', '.join(list(there)[:9]) or 'no files'})")
        wanted |= matching
    pinned = replace(hub, repo=replace(repo, revision=commit))
    missing = sorted(name for name, file in wanted.items() if not file.is_at(folder / name))
    for number, name in enumerate(missing):
        pinned.bring(name, wanted[name], missing[number:])
    return commit, [file.fetched(folder / name) for name, file in sorted(wanted.items())]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


@dataclass(frozen=True)
class _File:
    bytes: int
    large: bool  # in large file storage
    checksum: str  # sha256 if large, else git's sha1

    def checksum_of(self, path: Path) -> str:
        if self.large:
            return _sha256(path)
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def is_at(self, path: Path) -> bool:
        try:
            return path.stat().st_size == self.bytes and self.checksum_of(path) == self.checksum
        except OSError:
            return False

    def fetched(self, path: Path) -> Fetched:
        return Fetched(path=path, bytes=self.bytes, sha256=self.checksum if self.large else _sha256(path))


@dataclass(frozen=True)
class _Hub:
    repo: Repo
    folder: Path
    endpoint: str

    def listing(self) -> tuple[str, dict[str, _File]]:
        """The commit, and its files by name."""
        from huggingface_hub import HfApi, constants

        constants.HF_HUB_DISABLE_TELEMETRY = True  # else a process's first request is a question to huggingface.co
        repo = self.repo
        hub = HfApi(endpoint=self.endpoint, library_name="isp")
        ask = hub.dataset_info if repo.kind == "dataset" else hub.model_info
        files = {}
        try:
            info = ask(repo.id, revision=repo.revision, files_metadata=True, timeout=TIMEOUT)
            if info.sha is None or (re.fullmatch("[0-9a-f]{40}", repo.revision) and info.sha != repo.revision):
                raise ValueError(f"it is about commit {info.sha}")
            for entry in info.siblings or []:
                name, lfs = entry.rfilename, entry.lfs
                size, checksum = (lfs.size, lfs.sha256) if lfs else (entry.size, entry.blob_id)
                if size is None or checksum is None or name.startswith("/") or ".." in name.split("/"):
                    raise ValueError(f"{name!r} has no size, no checksum or an unsafe name")
                files[name] = _File(size, lfs is not None, checksum)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{repo}: no usable answer from {self.endpoint} ({_line(error)})") from None
        return info.sha, files

    def bring(self, name: str, file: _File, missing: Sequence[str]) -> None:
        """Download a file, from where an earlier attempt ended, and give it its name once its checksum is right."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        path, cache = self.folder / name, self.folder / ".cache/huggingface/download"  # the library's place, too
        partial = cache / f"{name}.{file.checksum}.incomplete"
        try:
            for folder in (path.parent, partial.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(cache / f"{name}.lock"):
                if file.is_at(path):  # another process was faster
                    return
                path.unlink(missing_ok=True)
                for _ in range(2):
                    self.persist(lambda: self._stream(name, partial, file.bytes), missing)
                    if file.is_at(partial):
                        os.replace(partial, path)
                        return
                    found = f"{partial.stat().st_size} bytes with checksum {file.checksum_of(partial)}"
                    partial.unlink()
        except OSError as error:
            raise IspError(f"{path}: cannot be written ({error.strerror or error}); no part of it is there") from None
        raise DataError(
            f"{name} of {self.repo}: {self.endpoint} sent it corrupt, twice (expected {file.bytes} bytes with "
            f"checksum {file.checksum}, found {found}); nothing of it was kept"
        )

    def _stream(self, name: str, partial: Path, size: int) -> None:
        """Append to `partial` what it lacks."""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        repo = self.repo
        have = partial.stat().st_size if partial.exists() else 0
        if have >= size > 0:
            return
        url = hf_hub_url(repo.id, name, repo_type=repo.kind, revision=repo.revision, endpoint=self.endpoint)
        wishes = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        headers = build_hf_headers(library_name="isp", headers=wishes)
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as answer:
            hf_raise_for_status(answer)
            with partial.open("ab" if answer.status_code == 206 else "wb") as output:  # 200: all, from the start
                for piece in answer.iter_bytes():
                    output.write(piece)
                output.flush()
                os.fsync(output.fileno())
        if partial.stat().st_size < size:
            raise ConnectionError("the answer ended early")

    def persist(self, action: Callable[[], _T], names: Sequence[str]) -> _T:
        """The result of what needs the hub; failures that may pass are retried after growing pauses.

        Raises:
            DataError: a failure that does not pass, or too many; says how to get the files `names` otherwise.
        """
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        repo, endpoint = self.repo, self.endpoint
        http: type[Exception] = HfHubHTTPError.__bases__[0]  # the HTTP library's base; which library: by version
        page = f"{endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}/tree/{repo.revision}"
        places = ", ".join(str(self.folder / name) for name in names)
        otherwise = (
            f"bring the files by hand from {page} to {places}; everything after the download stage works offline"
        )
        for pause in (*PAUSES, None):
            try:
                return action()
            except OfflineModeIsEnabled:
                raise DataError(f"{repo}: not fetched, as HF_HUB_OFFLINE is set; unset it, or {otherwise}") from None
            except HfHubHTTPError as error:
                status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
                reason = f"HTTP {status} {_line(error.server_message or error.response.reason_phrase)}"
                if status < 500 and status not in (408, 429):
                    problem = f"{endpoint} refuses it"
                    if status in (401, 403):
                        problem += f": private, gated or not there; ask at {page}, log in (HF_TOKEN or `hf auth login`)"
                    elif status == 404:
                        lacking = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, repo.kind)
                        problem = f"{endpoint} has no such {lacking}"
                    raise DataError(f"{repo}: {problem} ({reason})") from None
            except (http, ConnectionError) as error:
                reason = f"{type(error).__name__}: {_line(error)}"
            if pause is not None:
                time.sleep(pause)
        raise DataError(
            f"{repo}: {endpoint} failed {len(PAUSES) + 1} times ({reason}); try again later (what came is kept), or "
            f"{otherwise}"
        )
