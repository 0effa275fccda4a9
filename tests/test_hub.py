from __future__ import annotations

import gzip
import json
import os
import re
import resource
import stat
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session, constants

from isp.data import hub
from isp.data.hub import Repo, fetch
from isp.errors import DataError, IspError
from tests.support.hub_server import HubServer, blob_sha1, sha256

PARQUET = np.random.default_rng(0).bytes(1_500_000)
DATASET = {
    "README.md": b"# Digits\n",
    "digits/train-00000-of-00001.parquet": PARQUET,
    "digits/test-00000-of-00001.parquet": PARQUET[:1000],
}
MODEL = {"config.json": b'{"width": 8}\n', "empty.txt": b"", "model.safetensors": PARQUET[::-1]}
TRAIN = "digits/train-00000-of-00001.parquet"
DIGITS = Repo(id="someone/digits", kind="dataset", revision="main")
TOWER = Repo(id="someone/tower", kind="model", revision="main")


@pytest.fixture(scope="module", autouse=True)
def _no_proxy() -> Iterator[None]:
    """The session of the library reads the environment when it is made. It is recreated once, because that is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        close_session()
        yield
    close_session()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, with pauses of no length and no token."""
    monkeypatch.setattr(hub, "PAUSES", (0, 0))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer({("dataset", DIGITS.id): DATASET, ("model", TOWER.id): MODEL}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def kept(folder: Path) -> list[Path]:
    """Bytes of interrupted downloads."""
    return list(folder.glob(".cache/**/*.incomplete"))


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_a_dataset_and_a_model(server: HubServer, tmp_path: Path) -> None:
    for repo, files in ((DIGITS, DATASET), (TOWER, MODEL)):
        folder = tmp_path / repo.kind
        commit, fetched = fetch(repo, ["*"], folder)
        assert commit == server.commit(repo.kind, repo.id)
        assert [(file.path, file.bytes, file.sha256) for file in fetched] == [
            (folder / name, len(content), sha256(content)) for name, content in sorted(files.items())
        ]
        assert {file.path.read_bytes() for file in fetched} == set(files.values())
        assert not any(file.path.is_symlink() for file in fetched)
        assert not kept(folder)
    ways = {request.path for request in server.requests if request.path.startswith("/api")}
    assert ways == {f"/api/datasets/{DIGITS.id}/revision/main", f"/api/models/{TOWER.id}/revision/main"}


def test_patterns_choose_and_a_branch_is_resolved_once(server: HubServer, tmp_path: Path) -> None:
    commit, fetched = fetch(DIGITS, ["digits/train-*.parquet", "digits/t*", "README.md"], tmp_path)
    assert [file.path.name[:6] for file in fetched] == ["README", "test-0", "train-"]
    files = [request.path for request in server.requests if "/resolve/" in request.path]
    assert len(files) == 3
    assert all(f"/resolve/{commit}/" in path for path in files)
    pinned = Repo(id=DIGITS.id, kind="dataset", revision=commit)
    assert fetch(pinned, ["README.md"], tmp_path) == (commit, fetched[:1])


def test_what_is_there_is_not_fetched_again(server: HubServer, tmp_path: Path) -> None:
    first = fetch(DIGITS, ["*"], tmp_path)
    assert len(server.downloads) == 3
    assert fetch(DIGITS, ["*"], tmp_path) == first
    assert len(server.downloads) == 3
    by_hand = tmp_path / "by hand"
    (by_hand / TRAIN).parent.mkdir(parents=True)
    (by_hand / TRAIN).write_bytes(PARQUET)
    fetch(DIGITS, [TRAIN], by_hand)
    assert len(server.downloads) == 3
    assert not (by_hand / ".cache").exists()


def test_what_is_there_but_wrong_is_replaced(server: HubServer, tmp_path: Path) -> None:
    fetch(TOWER, ["*"], tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"width": 9}\n')  # of the right size
    (tmp_path / "model.safetensors").write_bytes(MODEL["model.safetensors"][:-1])
    fetch(TOWER, ["*"], tmp_path)
    assert all((tmp_path / name).read_bytes() == content for name, content in MODEL.items())
    assert len(server.downloads) == 3 + 2


def test_a_download_that_fails_leaves_another_revision_whole(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(TOWER, ["*"], tmp_path)
    monkeypatch.setattr(server, "repos", {("model", TOWER.id): {name: b"later " + old for name, old in MODEL.items()}})
    bring, brought = hub._Hub.bring, []

    def fail_at_last(self: hub._Hub, name: str, *rest: Any) -> None:
        brought.append(name)
        if len(brought) == len(MODEL):
            raise DataError("the network is gone")
        bring(self, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(hub._Hub, "bring", fail_at_last)
        with pytest.raises(DataError, match="the network is gone"):
            fetch(TOWER, ["*"], tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in MODEL} == MODEL
    fetch(TOWER, ["*"], tmp_path)
    assert all((tmp_path / name).read_bytes() == b"later " + content for name, content in MODEL.items())
    assert len(server.downloads) == 2 * len(MODEL)  # what had arrived is not transferred again


@pytest.mark.parametrize("error", [ImportError("install socksio"), FileNotFoundError(2, "No such file", "ca.pem")])
def test_a_connection_that_cannot_be_opened(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub._Hub, "asked", refuse)
    monkeypatch.setenv("SSL_CERT_FILE", "ca.pem")
    with pytest.raises(DataError, match=r"no connection can be opened \(\w+: .*\).*certificates \(.*SSL_CERT_FILE"):
        fetch(TOWER, ["*"], tmp_path)


def test_the_token_is_sent(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(DIGITS, ["README.md"], tmp_path)
    assert [request.token for request in server.requests] == ["Bearer hf_secret"] * 2


def test_nothing_is_written_elsewhere(server: HubServer, tmp_path: Path) -> None:
    fetch(DIGITS, [TRAIN], tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".cache", "digits"}


def test_two_at_the_same_time(server: HubServer, tmp_path: Path) -> None:
    server.delay = 0.1
    with ThreadPoolExecutor() as threads:
        first, second = [threads.submit(fetch, DIGITS, ["*"], tmp_path) for _ in range(2)]
    assert first.result() == second.result()
    assert len(server.downloads) == 3


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unsized", [False, True])
def test_a_cut_download_is_resumed(server: HubServer, tmp_path: Path, unsized: bool) -> None:
    server.cuts, server.unsized = [400_000, 300_000], unsized
    fetch(DIGITS, [TRAIN], tmp_path)
    assert [request.range for request in server.downloads] == [None, "bytes=400000-", "bytes=700000-"]
    assert (tmp_path / TRAIN).read_bytes() == PARQUET
    assert not kept(tmp_path)


def test_a_later_call_resumes(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PAUSES", ())
    server.cuts = [600_000]
    with pytest.raises(DataError, match=r"failed 1 times \(RemoteProtocolError"):
        fetch(DIGITS, [TRAIN], tmp_path)
    assert not (tmp_path / TRAIN).exists()
    assert [path.stat().st_size for path in kept(tmp_path)] == [600_000]
    fetch(DIGITS, [TRAIN], tmp_path)
    assert [request.range for request in server.downloads] == [None, "bytes=600000-"]
    assert (tmp_path / TRAIN).read_bytes() == PARQUET


@pytest.mark.process
def test_a_killed_process_is_resumed(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts = [500_000]
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code = "from isp.data import hub; from pathlib import Path; hub.PAUSES = (60,)\n"
    code += f"hub.fetch(hub.{DIGITS!r}, [{TRAIN!r}], Path({str(tmp_path)!r}))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            deadline = time.monotonic() + 30
            while not (files := kept(tmp_path)) or files[0].stat().st_size < 500_000:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
    assert {request.path.split("/")[1] for request in server.requests} == {"api", "datasets", "storage"}
    assert len(server.requests) == 3  # no telemetry
    assert not (tmp_path / "home").exists()
    fetch(DIGITS, [TRAIN], tmp_path)
    assert [request.range for request in server.downloads] == [None, "bytes=500000-"]
    assert (tmp_path / TRAIN).read_bytes() == PARQUET


def test_a_server_without_ranges_sends_all_again(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.without_ranges = [400_000], True
    fetch(DIGITS, [TRAIN], tmp_path)
    assert [request.range for request in server.downloads] == [None, "bytes=400000-"]
    assert (tmp_path / TRAIN).read_bytes() == PARQUET


@pytest.mark.parametrize(("repo", "name"), [(DIGITS, TRAIN), (TOWER, "config.json")])
def test_a_corrupt_file_is_fetched_once_more(server: HubServer, tmp_path: Path, repo: Repo, name: str) -> None:
    server.corrupt = 1
    content = (DATASET if repo is DIGITS else MODEL)[name]
    _, [file] = fetch(repo, [name], tmp_path)
    assert file.path.read_bytes() == content
    assert [request.range for request in server.downloads] == [None, None]
    file.path.write_bytes(b"other")
    server.corrupt = 2
    with pytest.raises(DataError, match=r"corrupt content twice") as caught:
        fetch(repo, [name], tmp_path)
    text = str(caught.value)
    assert all(part in text for part in (name, repo.id, server.commit(repo.kind, repo.id), f"{len(content)} bytes"))
    assert len(set(re.findall(r"checksum (\w+)", text))) == 2
    assert file.path.read_bytes() == b"other"  # what was there stays
    assert not kept(tmp_path)


def test_failures_of_the_server_pass(server: HubServer, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    fetch(DIGITS, ["README.md"], tmp_path)
    assert len(server.requests) == 4
    server.statuses = [500, 502, 504]
    with pytest.raises(DataError, match=r"failed 3 times \(HTTP 504 Gateway Time-?out\)"):
        fetch(DIGITS, ["README.md"], tmp_path)
    assert len(server.requests) == 7


def test_a_slow_server(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    server.delay = 0.4
    with pytest.raises(DataError, match=r"failed 3 times \(ReadTimeout"):
        fetch(DIGITS, ["README.md"], tmp_path)


def test_no_server(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(hub, "PAUSES", (1, 2, 4, 8))
    monkeypatch.setattr(time, "sleep", pauses.append)  # the module, so the library's pauses would be seen as well
    server.close()
    with pytest.raises(DataError) as caught:
        fetch(DIGITS, ["README.md", "digits/train-*.parquet"], tmp_path)
    assert pauses == [1, 2, 4, 8]
    text = str(caught.value)
    assert f"{server.url} failed 5 times (ConnectError: " in text
    assert f"dataset {DIGITS.id} at revision main" in text
    assert (
        f"by hand from {server.url}/datasets/{DIGITS.id}/tree/main to {tmp_path}/README.md, {tmp_path}/digits/" in text
    )
    assert "every stage after download works offline" in text


def test_what_is_still_missing_is_named(server: HubServer, tmp_path: Path) -> None:
    fetch(DIGITS, ["digits/test*"], tmp_path)
    server.cuts = [0] * 3
    with pytest.raises(DataError, match=rf" to {tmp_path}/README.md, {tmp_path}/{TRAIN}; every stage"):
        fetch(DIGITS, ["*"], tmp_path)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "text"),
    [
        (Repo(id="someone/else", kind="dataset", revision="main"), "dataset someone/else .*no such dataset"),
        (Repo(id="someone/digits", kind="model", revision="main"), "model someone/digits .*no such model"),
        (Repo(id="someone/digits", kind="dataset", revision="v9"), "digits at revision v9: .*no such revision"),
        (Repo(id="a/b/c", kind="dataset", revision="main"), "dataset a/b/c at revision main: no usable answer"),
    ],
)
def test_what_does_not_exist(server: HubServer, tmp_path: Path, repo: Repo, text: str) -> None:
    with pytest.raises(DataError, match=text):
        fetch(repo, ["*"], tmp_path)
    assert len(server.requests) <= 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "code"), [(401, "RepoNotFound"), (401, ""), (403, "GatedRepo"), (403, "")])
def test_no_access(server: HubServer, tmp_path: Path, status: int, code: str) -> None:
    server.refusal = (status, code)
    with pytest.raises(DataError, match=rf"someone/digits at revision main: .*gated.*HF_TOKEN.*\(HTTP {status} "):
        fetch(DIGITS, ["*"], tmp_path)
    assert len(server.requests) == 1


def test_a_file_that_is_listed_but_gone(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = hub._Hub.listing

    def then_gone(self: hub._Hub) -> object:
        answer = listing(self)
        server.refusal = (404, "EntryNotFound")
        return answer

    monkeypatch.setattr(hub._Hub, "listing", then_gone)
    with pytest.raises(DataError, match=r"someone/digits at revision \w{40}: http.* has no such file"):
        fetch(DIGITS, ["README.md"], tmp_path)
    assert len(server.requests) == 2


def test_a_pattern_without_a_match(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"digits at revision main: no file matches 'x/\*' \(available: README.md, digits/t"
    ):
        fetch(DIGITS, ["README.md", "x/*"], tmp_path)
    assert not server.downloads


@pytest.mark.parametrize(
    "answer",
    [
        "<html>log in to this network</html>",
        "[]",
        '{"id": "someone/digits", "siblings": []}',
        '{"id": "someone/digits", "sha": "0", "siblings": [{"rfilename": "a"}]}',
        '{"id": "someone/digits", "sha": "0", "siblings": [{"rfilename": "../a", "size": 1, "blobId": "0"}]}',
        '{"id": "someone/digits", "sha": "0", "siblings": [{"rfilename": "/a", "size": 1, "blobId": "0"}]}',
    ],
)
def test_answers_that_are_no_hubs(server: HubServer, tmp_path: Path, answer: str) -> None:
    server.foreign = answer
    with pytest.raises(DataError, match=r"someone/digits at revision main: no usable answer from http"):
        fetch(DIGITS, ["*"], tmp_path)


def test_another_commit_than_asked_for(server: HubServer, tmp_path: Path) -> None:
    server.foreign = '{"id": "someone/digits", "sha": "%s", "siblings": []}' % ("0" * 40)
    with pytest.raises(DataError, match=r"it lists commit 000"):
        fetch(Repo(id=DIGITS.id, kind="dataset", revision=server.commit("dataset", DIGITS.id)), ["*"], tmp_path)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "http://hub:port", "ftp://hub", "https://"])
def test_an_endpoint_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DataError, match=r"HF_ENDPOINT must be an address such as .*, got '"):
        fetch(DIGITS, ["*"], tmp_path)


def test_offline(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"someone/digits at revision main: .*HF_HUB_OFFLINE prevents the download.*by hand"
    ):
        fetch(DIGITS, ["*"], tmp_path)
    assert not server.requests


# --- a hostile hub ----------------------------------------------------------------------------------------------------

SMALL = {"rfilename": "README.md", "size": 9, "blobId": "0" * 40}
LARGE = {"rfilename": "a.parquet", "size": 1000, "lfs": {"sha256": sha256(PARQUET[:1000]), "size": 1000}}


def listed(*files: Any, sha: Any = "0" * 40) -> str:
    return json.dumps({"id": DIGITS.id, "sha": sha, "siblings": list(files)})


def large(**changes: Any) -> dict[str, Any]:
    return LARGE | {"lfs": {**LARGE["lfs"], **changes}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("listing", "problem"),
    [
        # A checksum becomes part of a file's name.
        (listed(large(sha256="x/../../../../../outside/file")), "checksum of 'a.parquet' must be 64 hex digits"),
        (listed(SMALL | {"blobId": "x/../../../../outside/file"}), "checksum of 'README.md' must be 40 hex digits"),
        (listed(SMALL | {"blobId": 7}), "40 hex digits, got 7"),
        (listed(SMALL | {"blobId": "0" * 40 + "\n"}), "40 hex digits"),
        (listed(SMALL | {"blobId": None}), "40 hex digits, got None"),
        (listed(large(sha256=sha256(PARQUET).upper())), "64 hex digits"),
        (listed(large(sha256="0" * 40)), "64 hex digits"),
        (listed(LARGE | {"lfs": []}), "40 hex digits, got None"),
        (listed(SMALL | {"size": "9"}), "size of 'README.md' must be a number of bytes, got '9'"),
        (listed(SMALL | {"size": True}), "number of bytes, got True"),
        (listed(SMALL | {"size": -1}), "number of bytes, got -1"),
        (listed(SMALL | {"size": 1.5}), "number of bytes, got 1.5"),
        (listed(SMALL | {"size": 10**30}), "number of bytes, got 1000"),
        (listed(large(size="9")), "number of bytes, got '9'"),
        *(
            (listed(SMALL | {"rfilename": name}), problem)
            for name, problem in (
                (7, "a file name must be text, got 7"),
                (None, "a file name must be text, got None"),
                ("../a", "'..' part"),
                ("a/../../b", "'..' part"),
                ("/a", "is absolute"),
                ("", "has an empty"),
                (".", "'.' or '..' part"),
                ("a//b", "has an empty"),
                ("a/", "has an empty"),
                ("a\0b", "control character"),
                ("a\nb", "control character"),
                ("a\x1b[2Jb", "control character"),
                ("a\x9bb", "control character"),
                ("a\u202eb", "control character"),
                ("a\ud800b", "control character"),
                ("..\\..\\a", "backslash"),
                ("a" * 256, "more than 255 bytes"),
                (".isp-commits.json", "reserved"),
                (".cache/huggingface/download/README.md.lock", "reserved"),
            )
        ),
        (listed(["README.md"]), "not a list of names"),
        (json.dumps({"sha": "0" * 40, "siblings": None}), "not a list of names"),
        (json.dumps({"sha": "0" * 40, "siblings": {"a": 1}}), "not a list of names"),
        (listed(SMALL, sha=7), "commit must be 40 hex digits, got 7"),
        (listed(SMALL, sha="../../../admin"), "commit must be 40 hex digits"),
        ("[" * 100_000, "recursion"),
        ('{"sha": ' + "1" * 10_000 + "}", "digits"),
    ],
)
def test_listings_that_are_malformed(server: HubServer, tmp_path: Path, listing: str, problem: str) -> None:
    server.foreign = listing
    with pytest.raises(DataError) as caught:
        fetch(DIGITS, ["*"], tmp_path / "data")
    text = str(caught.value)
    assert text.startswith(f"dataset {DIGITS.id} at revision main: no usable answer from {server.url} (")
    assert problem in text
    assert text.isprintable()
    assert len(server.requests) == 1
    assert not list(tmp_path.iterdir())


def test_only_files_that_are_wanted_must_be_well_formed(server: HubServer, tmp_path: Path) -> None:
    content = DATASET["README.md"]
    wanted = {"rfilename": "README.md", "size": len(content), "blobId": blob_sha1(content)}
    server.foreign = listed({"rfilename": "odd\nname"}, wanted, sha=server.commit("dataset", DIGITS.id))
    _, [file] = fetch(DIGITS, ["README.md"], tmp_path)
    assert file.path.read_bytes() == content
    with pytest.raises(DataError, match=r"no file matches 'x' \(available: odd name, README.md\)"):
        fetch(DIGITS, ["x"], tmp_path)


def test_a_listing_that_is_too_long(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_LONGEST_LISTING", 300)
    server.foreign = listed() + " " * 300
    with pytest.raises(DataError, match=r"a listing of more than 300 bytes"):
        fetch(DIGITS, ["*"], tmp_path)


ZEROS = gzip.compress(bytes(20_000_000), 9)


@pytest.mark.parametrize(
    ("status", "body", "headers", "outcome"),
    [
        # What comes beyond the listed 1000 bytes is neither read nor written.
        (200, None, {}, "corrupt content twice .*got 1000 bytes"),
        (200, PARQUET, {}, ""),
        (200, PARQUET[1:], {}, "corrupt content twice .*got 1000 bytes"),
        (200, ZEROS, {"Content-Encoding": "gzip"}, "corrupt content twice .*got 1000 bytes"),
        (200, gzip.compress(PARQUET), {"Content-Encoding": "gzip"}, ""),
        (200, gzip.compress(PARQUET[:1000]), {"Content-Encoding": "gzip"}, ""),
        (200, zlib.compress(PARQUET[:1000]), {"Content-Encoding": "deflate"}, ""),
        (200, gzip.compress(PARQUET[:999]), {"Content-Encoding": "gzip"}, "the answer ended early"),
        (200, b"garbage", {"Content-Encoding": "gzip"}, "cannot be decompressed"),
        (200, b"", {"Content-Encoding": "br"}, "Content-Encoding 'br' was not requested"),
        (200, PARQUET[:1000], {"Content-Length": "100"}, "the answer ended early"),
        (200, PARQUET[:1000], {"Content-Length": "9000"}, ""),
        (200, PARQUET[:1000], {"Content-Length": "-5"}, "bad Content-Length"),
        (204, b"", {}, r"refuses it \(HTTP 204"),
        (302, b"", {}, r"refuses it \(HTTP 302"),
        (302, b"", {"Location": "file:///etc/passwd"}, "unsupported protocol"),
        (302, b"", {"Location": "http://[::1"}, "Invalid URL"),
        (416, b"", {}, r"refuses it \(HTTP 416"),
        # Nothing of a server's text steers the terminal.
        (404, b'{"error": "\\u001b]0;title\\u0007 gone"}', {}, r"\\x1b\]0;title\\x07 gone"),
        (404, b"plain \x1b[2J \xc2\x9b text", {}, r"plain \\x1b\[2J \\x9b text"),
        (404, b"", {"X-Error-Message": "red \x1b[31m"}, r"red \\x1b\[31m"),
        (404, b'{"error": ["a", 1]}', {}, "HTTP 404"),
        (404, b"[" * 100_000, {}, "HTTP 404"),
        (404, ZEROS, {"Content-Encoding": "gzip"}, "HTTP 404"),
        (404, None, {}, "HTTP 404"),
    ],
)
def test_answers_to_a_download(
    server: HubServer, tmp_path: Path, status: int, body: bytes | None, headers: dict[str, str], outcome: str
) -> None:
    server.foreign, server.content = listed(LARGE), (status, body, headers)
    if outcome:
        with pytest.raises(DataError, match=outcome) as caught:
            fetch(DIGITS, ["*"], tmp_path)
        assert str(caught.value).isprintable()
        assert not (tmp_path / "a.parquet").exists()
    else:
        [file] = fetch(DIGITS, ["*"], tmp_path)[1]
        assert file.path.read_bytes() == PARQUET[:1000]
    assert all(path.stat().st_size <= 1000 for path in kept(tmp_path))
    assert server.sent < 100_000_000  # what fits into buffers on the way


def test_small_answers_do_not_become_large_in_memory(server: HubServer, tmp_path: Path) -> None:
    """A piece of 64 KB holds 64 MB of zeros; a megabyte of it is decompressed at a time."""
    server.foreign, server.content = listed(large(size=10**8)), (200, ZEROS, {"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"the answer ended early"):
            fetch(DIGITS, ["*"], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_partial_file_that_is_a_link(server: HubServer, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    partial = tmp_path / f"data/.cache/huggingface/download/{TRAIN}.{sha256(PARQUET)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.symlink_to(victim)
    fetch(DIGITS, [TRAIN], tmp_path / "data")
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "data" / TRAIN).is_symlink()


@pytest.mark.parametrize("failure", ["refused", "echoed", "down", "unusable", "corrupt", "offline"])
def test_neither_password_nor_token_is_printed(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    monkeypatch.setenv("HF_ENDPOINT", server.url.replace("//", "//user:p%40ss@"))
    if failure == "refused":
        server.refusal = (403, "GatedRepo")
    elif failure == "echoed":
        server.foreign = listed(LARGE)
        server.content = (404, b"you are user:p@ss (p%40ss) with hf_s3cret", {"X-Error-Message": "hf_s3cret"})
    elif failure == "down":
        server.close()
    elif failure == "unusable":
        server.foreign = listed(SMALL, sha="hf_s3cret p@ss")
    elif failure == "corrupt":
        server.corrupt = 2
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        fetch(DIGITS, ["*"], tmp_path)
    text = str(caught.value)
    assert not any(secret in text for secret in ("p%40ss", "p@ss", "hf_s3cret"))
    assert server.url in text or failure == "offline"


@pytest.mark.parametrize(
    "endpoint", ["user:s3cret@hub", "http://user:s3cret@hub:port", "http://u:s3/cret@hub", "http://u:s3cret@"]
)
def test_an_endpoint_with_a_password_that_is_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DataError, match=r"HF_ENDPOINT must be an address") as caught:
        fetch(DIGITS, ["*"], tmp_path)
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_folder(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("")
    with pytest.raises(IspError, match=rf"{tmp_path}/{TRAIN}: cannot be written"):
        fetch(DIGITS, [TRAIN], tmp_path)
    with pytest.raises(IspError, match=rf"{tmp_path}/digits/README.md: cannot be written"):
        fetch(DIGITS, ["README.md"], tmp_path / "digits")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(server: HubServer, tmp_path: Path) -> None:
    fetch(DIGITS, ["README.md"], tmp_path)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        fetch(DIGITS, ["README.md"], tmp_path)
        with pytest.raises(IspError, match=rf"{tmp_path}/{TRAIN}: cannot be written \(Permission denied\)"):
            fetch(DIGITS, [TRAIN], tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_a_full_disk(server: HubServer, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, limits[1]))
    try:
        with pytest.raises(IspError, match=rf"{tmp_path}/{TRAIN}: cannot be written \(File too large\)"):
            fetch(DIGITS, [TRAIN], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / TRAIN).exists()
    fetch(DIGITS, [TRAIN], tmp_path)
    assert (tmp_path / TRAIN).read_bytes() == PARQUET
