"""A mock of the Hugging Face hub on the loopback: the part of its protocol that downloads use, with faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".parquet", ".safetensors", ".bin")  # in Git LFS, as on the hub


def blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


class HubServer:
    """Serves repositories until it is closed; each has one commit, on its branch `main`.

    Faults, all off at first, may be set at any time:
        statuses: Statuses of the next responses.
        refusal: Status and error code of all responses about repositories.
        cuts: Numbers of bytes after which the next downloads end.
        corrupt: Number of the next downloads in which one byte is changed.
        delay: Seconds before each response.
        unsized: Whether files are sent without their length.
        without_ranges: Whether range requests are ignored.
        foreign: Text of the responses about repositories.
        content: Status, body and headers of downloads; a body of None never ends.
    """

    def __init__(self, repos: Mapping[tuple[str, str], Mapping[str, bytes]]) -> None:
        self.repos = repos
        self.requests: list[Request] = []
        self.statuses: list[int] = []
        self.refusal: tuple[int, str] | None = None
        self.cuts: list[int] = []
        self.corrupt = 0
        self.delay = 0.0
        self.unsized = False
        self.without_ranges = False
        self.foreign: str | None = None
        self.content: tuple[int, bytes | None, Mapping[str, str]] | None = None
        self.sent = 0
        """Yield the bytes of a body that never ends."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, kind: str, id: str) -> str:
        names = "".join(f"{name} {blob_sha1(content)}\n" for name, content in sorted(self.repos[kind, id].items()))
        return hashlib.sha1(f"{kind} {id}\n{names}".encode()).hexdigest()

    @property
    def downloads(self) -> list[Request]:
        """Return the requests for contents of files."""
        return [
            request
            for request in self.requests
            if request.method == "GET"
            and (request.path.startswith("/storage/") or ("/resolve/" in request.path and not _large(request.path)))
        ]


def _large(name: str) -> bool:
    return name.endswith(LARGE)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        time.sleep(hub.delay)
        if hub.statuses:
            return self.answer(hub.statuses.pop(0), b"")
        if hub.content and "/resolve/" in path:
            return self.hostile(*hub.content)
        if storage := re.fullmatch(r"/storage/(\w+)", path):
            files = (content for files in hub.repos.values() for content in files.values())
            return self.download(next(content for content in files if sha256(content) == storage[1]), {})
        if hub.refusal:
            return self.answer(hub.refusal[0], b"", {"X-Error-Code": hub.refusal[1]})
        if asked := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.repository(asked[1], asked[2], asked[3] or "main")
        if asked := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.file("dataset" if asked[1] else "model", asked[2], asked[3], asked[4])
        return self.answer(404, b"")

    def known(self, kind: str, id: str, revision: str) -> bool:
        if (kind, id) not in self.hub.repos:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", self.hub.commit(kind, id)):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def repository(self, kind: str, id: str, revision: str) -> None:
        if not self.known(kind, id, revision):
            return
        siblings: list[dict[str, Any]] = []
        for name, content in self.hub.repos[kind, id].items():
            siblings.append({"rfilename": name, "size": len(content), "blobId": blob_sha1(content)})
            if _large(name):
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\n".encode()
                siblings[-1]["blobId"] = blob_sha1(pointer)
                siblings[-1]["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": len(pointer)}
        about = {"id": id, "sha": self.hub.commit(kind, id), "private": False, "tags": [], "siblings": siblings}
        text = json.dumps(about) if self.hub.foreign is None else self.hub.foreign
        self.answer(200, text.encode(), {"Content-Type": "application/json"})

    def file(self, kind: str, id: str, revision: str, name: str) -> None:
        if not self.known(kind, id, revision):
            return
        content = self.hub.repos[kind, id].get(name)
        headers = {"X-Repo-Commit": self.hub.commit(kind, id)}
        if content is None:
            self.answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        elif _large(name):
            linked = {"X-Linked-ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            self.answer(302, b"", {**headers, **linked, "Location": f"{self.hub.url}/storage/{sha256(content)}"})
        else:
            self.download(content, {**headers, "ETag": f'"{blob_sha1(content)}"'})

    def download(self, content: bytes, headers: Mapping[str, str]) -> None:
        hub, start, status = self.hub, 0, 200
        if (wish := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and not hub.without_ranges:
            start, status = int(wish[1]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        if self.command == "GET" and hub.corrupt > 0:
            hub.corrupt -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.answer(status, body, {"Accept-Ranges": "bytes", **headers}, cut=self.command == "GET")

    def hostile(self, status: int, body: bytes | None, headers: Mapping[str, str]) -> None:
        if body is not None:
            self.answer(status, body, headers)
            return
        self.send_response(status)
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has closed the connection
            while self.hub.sent < 10**9:
                self.wfile.write(bytes(10**6))
                self.hub.sent += 10**6

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        sized = {} if cut and self.hub.unsized else {"Content-Length": str(len(body))}
        for name, value in {**sized, **(headers or {}), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut and self.hub.cuts:
            body = body[: self.hub.cuts.pop(0)]
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client has timed out
                self.wfile.write(body)
