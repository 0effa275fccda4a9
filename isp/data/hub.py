"""Client of the Hugging Face hub, and the only module that accesses a network.

`huggingface_hub` implements the protocol: listing, addresses, tokens, locks. This module adds what the library lacks.
Bytes that arrived before an interruption are kept, and a download resumes from them even in a later process (the
library's own downloads restart from zero). A file gets its name only after its checksum has matched the hub's. The
number of attempts is bounded. Files are transferred by plain HTTP.

A hub is not trusted. Names, sizes and checksums are checked before use, so nothing is written outside the folder. No
more than the listed size is read, even from compressed answers. Messages contain neither control characters nor the
user's token or password.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote, unquote

from isp.errors import DataError, IspError
from isp.files import sha256
from isp.untrusted import check_file_name, printable

COMMITS = ".isp-commits.json"
"""Name of the file, in a folder of downloads, that records the commit of each file."""
PAUSES: tuple[float, ...] = (1, 2, 4, 8)  # seconds before each further attempt
TIMEOUT = 10.0  # seconds to connect, and between two chunks of an answer
_CACHE = ".cache"
"""Folder for partial files, the same as the library's. No name in a repository may clash with it or with `COMMITS`."""
_LONGEST_LISTING = 10**8  # bytes; 200,000 files take 45 MB
_LONGEST_REASON = 10**4  # bytes that are read of an error's text
_CONNECTION = (
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
"""Variables that decide how the HTTP library connects."""
_PIECE = 2**20  # bytes that are decompressed at a time
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository on the Hugging Face hub, at a pinned revision.

    Attributes:
        id: Name on the hub, "owner/name".
        kind: Kind of its content.
        revision: Commit (40 hex digits), or a branch or tag, which is resolved to a commit once per fetch.
    """

    id: str
    kind: Literal["dataset", "model"]
    revision: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id} at revision {self.revision}"


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A verified file with its path, size and SHA-256."""

    path: Path
    bytes: int
    sha256: str


def fetch(repo: Repo, patterns: Sequence[str], folder: Path) -> tuple[str, list[Fetched]]:
    """Download the files of a repository that match any of the patterns into a folder, and verify them.

    Existing files with the right size and checksum are kept. Other files with these names are replaced once all have
    arrived, so a download that fails leaves those of another revision as they were.

    Args:
        repo: Repository and its revision.
        patterns: Shell-style patterns over names in the repository (`*` also matches `/`).
        folder: Folder below which files get their names in the repository.

    Returns:
        Commit, and files sorted by name.

    Raises:
        DataError: If the hub cannot be reached, refuses, lacks a file or sends other bytes than it lists.
        IspError: If a file cannot be written.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://([^/\s]+@)?(\[[^/\s]+\]|[^/:\s]+)(:\d+)?(/\S*)?", endpoint):
        shown = re.sub(r"^(\w+://)?.*@", r"\1", endpoint, flags=re.DOTALL)  # without a password
        raise DataError(f"HF_ENDPOINT must be an address such as https://hub.example.org, got {shown!r}")
    hub = _Hub(repo, folder, endpoint)
    try:
        commit, listed = hub.persist(hub.listing, patterns)
    except (ImportError, OSError) as error:  # of the HTTP library, such as a missing file of certificates
        cause = hub.line(f"{type(error).__name__}: {error}")
        variables = ", ".join(name for name in _CONNECTION if os.environ.get(name)) or "none is set"
        raise DataError(
            f"{repo}: no connection can be opened ({cause}); correct the variables of proxies and certificates "
            f"({variables})"
        ) from None
    selected: dict[str, _File] = {}
    for pattern in patterns:
        matching = {name: entry for name, entry in listed.items() if fnmatchcase(name, pattern)}
        if not matching:
            known = hub.line(", ".join(list(listed)[:9])) or "no files"
            raise DataError(f"{repo}: no file matches {pattern!r} (available: {known})")
        for name, entry in matching.items():
            try:
                selected[_checked_name(name)] = _File.of(name, entry)
            except ValueError as error:
                raise DataError(f"{repo}: {hub.unusable(error)}") from None
    pinned = replace(hub, repo=replace(repo, revision=commit))
    missing = sorted(name for name, file in selected.items() if not file.is_at(folder / name))
    for number, name in enumerate(missing):
        pinned.bring(name, selected[name], missing[number:])
    for name in missing:
        pinned.settle(name, selected[name])
    return commit, [file.fetched(folder / name) for name, file in sorted(selected.items())]


def _checked_name(name: str) -> str:
    if check_file_name(name).split("/")[0] in (_CACHE, COMMITS):
        raise ValueError(f"file name {name!r} is reserved for downloads")
    return name


@dataclass(frozen=True)
class _File:
    bytes: int
    large: bool  # in large file storage
    checksum: str  # SHA-256 if large, otherwise git's SHA-1

    @classmethod
    def of(cls, name: str, entry: dict[str, Any]) -> _File:
        """Make a file from its entry in a listing.

        Raises:
            ValueError: If the listing contains no usable size or checksum.
        """
        lfs: Any = entry.get("lfs")
        large = isinstance(lfs, dict)
        size, checksum = (lfs.get("size"), lfs.get("sha256")) if large else (entry.get("size"), entry.get("blobId"))
        digits = 64 if large else 40
        if type(size) is not int or not 0 <= size < 2**63:
            raise ValueError(f"the size of {name!r} must be a number of bytes, got {size!r:.100}")
        if not isinstance(checksum, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", checksum):
            raise ValueError(f"the checksum of {name!r} must be {digits} hex digits, got {checksum!r:.100}")
        return cls(size, large, checksum)

    def checksum_of(self, path: Path) -> str:
        if self.large:
            return sha256(path)
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def is_at(self, path: Path) -> bool:
        try:
            return path.stat().st_size == self.bytes and self.checksum_of(path) == self.checksum
        except OSError:
            return False

    def fetched(self, path: Path) -> Fetched:
        return Fetched(path=path, bytes=self.bytes, sha256=self.checksum if self.large else sha256(path))


class _Refusal(Exception):
    """An answer without content: its status, the hub's error code and its explanation."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason


@dataclass(frozen=True)
class _Hub:
    repo: Repo
    folder: Path
    endpoint: str

    @property
    def shown(self) -> str:
        """Endpoint without the user's name and password."""
        return re.sub(r"^(\w+://)[^/]*@", r"\1", self.endpoint)

    def line(self, text: object) -> str:
        """Return text of a server or library as one short printable line without the user's token and password."""
        from huggingface_hub import get_token

        line = str(text)
        user = re.match(r"\w+://([^/]*)@", self.endpoint)
        name, _, password = (user[1] if user else "").partition(":")
        for secret in (get_token(), f"{name}:{password}", password, unquote(password)):
            if secret and secret != ":":
                line = line.replace(secret, "***")
        return printable(" ".join(line.split()))[:300]

    def unusable(self, error: Exception) -> str:
        return f"no usable answer from {self.shown} ({self.line(error)})"

    def listing(self) -> tuple[str, dict[str, Any]]:
        """Request the commit and the unchecked entries of its files by name."""
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        repo = self.repo
        try:
            validate_repo_id(repo.id)
            url = f"{self.endpoint}/api/{repo.kind}s/{repo.id}/revision/{quote(repo.revision, safe='')}?blobs=true"
            with self.asked(url) as answer:
                content = b"".join(_pieces(answer, _LONGEST_LISTING + 1))
            if len(content) > _LONGEST_LISTING:
                raise ValueError(f"a listing of more than {_LONGEST_LISTING:,} bytes")
            listed = json.loads(content)
            commit, entries = listed["sha"], listed["siblings"]
            if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
                raise ValueError(f"the commit must be 40 hex digits, got {commit!r:.100}")
            if re.fullmatch("[0-9a-f]{40}", repo.revision) and commit != repo.revision:
                raise ValueError(f"it lists commit {commit}")
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ValueError("its files are not a list of names, sizes and checksums")
            files = {entry["rfilename"]: entry for entry in entries}
            for name in files:
                if not isinstance(name, str):
                    check_file_name(name)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{repo}: {self.unusable(error)}") from None
        return commit, files

    def bring(self, name: str, file: _File, missing: Sequence[str]) -> None:
        """Download a file under a partial name, resuming an earlier attempt, until its checksum matches."""
        with self._locked(name, file) as (path, partial):
            if file.is_at(path):  # another process was faster
                return
            if partial.is_symlink():
                partial.unlink()
            for _ in range(2):
                self.persist(lambda: self._stream(name, partial, file.bytes), missing)
                if file.is_at(partial):
                    return
                received = f"{partial.stat().st_size} bytes with checksum {file.checksum_of(partial)}"
                partial.unlink()
        raise DataError(
            f"{name} of {self.repo}: {self.shown} sent corrupt content twice (expected {file.bytes} bytes with "
            f"checksum {file.checksum}, got {received}); none of it was kept"
        )

    def settle(self, name: str, file: _File) -> None:
        """Give a downloaded file its name."""
        with self._locked(name, file) as (path, partial):
            if partial.exists() or not file.is_at(path):  # otherwise another process has named it
                os.replace(partial, path)

    @contextmanager
    def _locked(self, name: str, file: _File) -> Iterator[tuple[Path, Path]]:
        """Keep other processes from a file, and yield its path and that of its partial download.

        Raises:
            IspError: If a file cannot be written.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        path, cache = self.folder / name, self.folder / _CACHE / "huggingface/download"
        partial = cache / f"{name}.{file.checksum}.incomplete"
        try:
            for folder in (path.parent, partial.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(cache / f"{name}.lock"):
                yield path, partial
        except OSError as error:
            raise IspError(f"{path}: cannot be written ({error.strerror or error}); no part of it was saved") from None

    def _stream(self, name: str, partial: Path, size: int) -> None:
        """Append to `partial` the bytes that it lacks, but none beyond the size that the hub lists."""
        from huggingface_hub import hf_hub_url

        repo = self.repo
        have = partial.stat().st_size if partial.exists() else 0
        if have >= size > 0:
            return
        url = hf_hub_url(repo.id, name, repo_type=repo.kind, revision=repo.revision, endpoint=self.endpoint)
        with self.asked(url, **({"Range": f"bytes={have}-"} if have else {})) as answer:
            resumed = answer.status_code == 206  # 200: the whole file, from the start
            with _opened(partial, os.O_APPEND if resumed else os.O_TRUNC) as output:
                for piece in _pieces(answer, size - have if resumed else size):
                    output.write(piece)
                output.flush()
                os.fsync(output.fileno())
        if partial.stat().st_size < size:
            raise ConnectionError("the answer ended early")

    @contextmanager
    def asked(self, url: str, **wishes: str) -> Iterator[Any]:
        """Open an answer with content, of which nothing has been read yet.

        Raises:
            _Refusal: If the status of the answer is neither 200 nor 206.
        """
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        constants.HF_HUB_DISABLE_TELEMETRY = True  # otherwise a process's first request goes to huggingface.co
        headers = build_hf_headers(library_name="isp", headers={"Accept-Encoding": "identity", **wishes})
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as answer:
            if answer.status_code not in (200, 206):
                text = b"".join(_pieces(answer, _LONGEST_REASON)).decode(errors="replace")
                with suppress(ValueError, RecursionError):
                    content = json.loads(text)
                    text = str(content.get("error", "")) if isinstance(content, dict) else ""
                explanations = [answer.headers.get("X-Error-Message", ""), "" if "<html" in text.lower() else text]
                reason = self.line(" ".join(explanations)) or self.line(answer.reason_phrase)
                raise _Refusal(answer.status_code, answer.headers.get("X-Error-Code", ""), reason)
            yield answer

    def persist(self, action: Callable[[], _T], names: Sequence[str]) -> _T:
        """Return the result of an action that needs the hub, retrying temporary failures after growing pauses.

        Raises:
            DataError: If a failure is permanent, or there are too many. The message says how to get the files `names`
                without the download stage.
        """
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        repo, endpoint = self.repo, self.shown
        http: type[Exception] = HfHubHTTPError.__bases__[0]  # base of the HTTP library, which depends on the version
        page = f"{endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}/tree/{repo.revision}"
        places = ", ".join(str(self.folder / name) for name in names)
        otherwise = f"copy the files by hand from {page} to {places}; every stage after download works offline"
        for pause in (*PAUSES, None):
            try:
                return action()
            except OfflineModeIsEnabled:
                raise DataError(f"{repo}: HF_HUB_OFFLINE prevents the download; unset it, or {otherwise}") from None
            except _Refusal as refusal:
                status, reason = refusal.status, f"HTTP {refusal.status} {refusal.reason}"
                if status < 500 and status not in (408, 429):
                    problem = f"{endpoint} refuses it"
                    if status in (401, 403):
                        problem += f": private, gated or missing; ask at {page}, log in (HF_TOKEN or `hf auth login`)"
                    elif status == 404:
                        lacking = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(refusal.code, repo.kind)
                        problem = f"{endpoint} has no such {lacking}"
                    raise DataError(f"{repo}: {problem} ({reason})") from None
            except (http, ConnectionError) as error:
                reason = f"{type(error).__name__}: {self.line(error)}"
            if pause is not None:
                time.sleep(pause)
        raise DataError(
            f"{repo}: {endpoint} failed {len(PAUSES) + 1} times ({reason}); try again later (partial files are kept), "
            f"or {otherwise}"
        )


def _pieces(answer: Any, most: int) -> Iterator[bytes]:
    """Yield chunks of an answer's content, `most` bytes in total; bytes that a server sends beyond that are not read.

    Requests do not ask for compression. A compressed answer is nevertheless decompressed chunk by chunk, so that a
    small one cannot grow large in memory or on disk.

    Raises:
        ConnectionError: If the content cannot be decompressed.
    """
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise ConnectionError(f"Content-Encoding {encoding!r:.100} was not requested")
    decoder = None if encoding == "identity" else zlib.decompressobj(wbits=47)  # gzip or zlib
    for raw in answer.iter_raw():
        while raw and most > 0:
            if decoder is None:
                piece, raw = raw[:most], b""
            else:
                try:
                    piece = decoder.decompress(raw, min(most, _PIECE))
                except zlib.error as error:
                    raise ConnectionError(f"the answer cannot be decompressed: {error}") from None
                raw = decoder.unconsumed_tail
            most -= len(piece)
            yield piece
        if most <= 0:
            return


def _opened(path: Path, flags: int) -> BinaryIO:
    """Open a file for writing, refusing links, so that a hub's bytes stay inside the folder."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o666), "wb")
