"""`isp download` against a server that speaks the hub's protocol, and everything after it without one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isp import artifacts, registry
from isp.backbones import _bert as bert
from isp.data import hub, sources
from isp.definitions import backbone_of
from isp.errors import DataError, IspError
from isp.stages.convert import convert
from isp.stages.download import download
from isp.stages.prepare import prepare
from isp.stages.split import split
from tests.support.backbones import SMALL_BERT, bert_folder
from tests.support.data import imitate
from tests.support.hub_server import HubServer

RTE = registry.load("task", "rte").TASK


def read_all(folder: Path, inside: Path) -> dict[str, bytes]:
    return {str(path.relative_to(inside)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serves a small GLUE and a small BERT."""
    there = tmp_path / "there"
    task = imitate(RTE, there)
    monkeypatch.setattr(registry.load("task", "rte"), "TASK", task)
    bert_folder(there / "model", bert.build(SMALL_BERT, 3).state_dict())
    repos = {
        ("dataset", RTE.source.id): read_all(there / RTE.source.id, there / RTE.source.id),
        ("model", "me/small-bert"): read_all(there / "model", there / "model"),
    }
    monkeypatch.setattr(hub, "PAUSES", (0.01, 0.02))
    monkeypatch.setenv("NO_PROXY", "*")
    with HubServer(repos) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        # The commit that a task names is another one than that of made-up data.
        source = task.source.__class__(**{**vars(task.source), "revision": found.commit("dataset", RTE.source.id)})
        monkeypatch.setattr(registry.load("task", "rte"), "TASK", task.__class__(**{**vars(task), "source": source}))
        yield found


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*_: Any) -> None:
        raise AssertionError("a stage after the download used the network")

    def forbid() -> None:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return forbid


def test_from_the_hub_to_tensors_and_offline_after_the_download(
    server: HubServer, tmp_path: Path, no_network: Any
) -> None:
    root, model = tmp_path / "data", "{family: bert, id: me/small-bert, max_length: 16}"
    download(root, tmp_path / "rte.json", task="rte")
    download(root, tmp_path / "bert.json", backbone=model)
    manifest = json.loads((tmp_path / "rte.json").read_text())
    assert [entry["file"] for entry in manifest["files"]] == [
        f"nyu-mll/glue/rte/{name}-00000-of-00001.parquet" for name in ("train", "validation")
    ]
    server.close()
    no_network()
    download(root, tmp_path / "again.json", task="rte")  # nothing is missing
    assert json.loads((tmp_path / "again.json").read_text()) == manifest
    convert(model, root, tmp_path / "bert.json", tmp_path / "bert")
    split("rte", root, tmp_path / "rte.json", tmp_path / "split")
    parts = [tmp_path / part for part in ("train", "validation", "test")]
    prepare(model, "rte", root, tmp_path / "rte.json", tmp_path / "split", tmp_path / "bert", *parts)
    tensors, _ = artifacts.load_examples(tmp_path / "test", "test")
    assert tensors["tokens"].shape == (30, int(tensors["length"].max()))
    pretrained, _ = artifacts.load_backbone(tmp_path / "bert")
    assert backbone_of(model).restore  # the artifact is all that is needed from here on
    assert pretrained.architecture["hidden_size"] == 16


def test_the_commit_is_recorded_and_held_to(server: HubServer, tmp_path: Path) -> None:
    root, commit = tmp_path / "data", server.commit("model", "me/small-bert")
    model = "{{family: bert, id: me/small-bert, max_length: 16, revision: {}}}".format
    download(root, tmp_path / "branch.json", backbone=model("main"))
    assert json.loads((tmp_path / "branch.json").read_text())["commit"] == commit
    before = len(server.requests)
    download(root, tmp_path / "same.json", backbone=model(commit))
    assert len(server.requests) == before  # they are of that commit
    with pytest.raises(IspError, match=f"at another commit than {'b' * 40}"):
        download(root, tmp_path / "other.json", backbone=model("b" * 40))
    (root / "me/small-bert/.isp-commits.json").unlink()  # as if put there by hand
    download(root, tmp_path / "hand.json", backbone=model("b" * 40))
    assert json.loads((tmp_path / "hand.json").read_text())["commit"] == ""


def test_downloads_at_the_same_time_record_both_commits(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task of the repository is downloaded after this one has read the record and before it writes it."""
    model, fetch = sources.HubModel(id="me/small-bert"), sources.fetch

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(sources, "fetch", fetch)
        model.fetch(["vocab.txt"], tmp_path)
        return fetch(*arguments)

    monkeypatch.setattr(sources, "fetch", slow)
    model.fetch(["config.json"], tmp_path)
    record = json.loads((tmp_path / "me/small-bert/.isp-commits.json").read_text())
    assert record == dict.fromkeys(["config.json", "vocab.txt"], server.commit("model", "me/small-bert"))


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(IspError, match=r"m.json: the content = .*stage: download"):
        split("rte", tmp_path, tmp_path / "m.json", tmp_path / "split")


def test_files_altered_after_the_download_are_refused(server: HubServer, tmp_path: Path) -> None:
    root = tmp_path / "data"
    download(root, tmp_path / "rte.json", task="rte")
    path = root / "nyu-mll/glue/rte/train-00000-of-00001.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: missing, or changed since it was downloaded"):
        split("rte", root, tmp_path / "rte.json", tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_no_network_says_which_files_and_where(server: HubServer, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(IspError) as caught:
        download(tmp_path / "data", tmp_path / "rte.json", task="rte")
    for part in ("nyu-mll/glue", "rte/train-*.parquet", str(tmp_path / "data/nyu-mll/glue"), server.url):
        assert part in str(caught.value)
    assert not (tmp_path / "rte.json").exists()
    with pytest.raises(IspError, match=r"model.safetensors"):
        download(tmp_path / "data", tmp_path / "bert.json", backbone="minilm")


def test_a_local_folder_needs_no_hub(server: HubServer, tmp_path: Path, no_network: Any) -> None:
    no_network()
    folder = tmp_path / "there" / "model"
    download(tmp_path / "data", tmp_path / "m.json", backbone=f"{{family: bert, folder: {folder}}}")
    with pytest.raises(DataError, match=r"missing: .*none/config.json, .*copy the files to these paths"):
        download(tmp_path / "data", tmp_path / "m.json", backbone=f"{{family: bert, folder: {tmp_path}/none}}")
