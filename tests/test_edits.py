"""Edits of a study file, or of a method's file, while the study runs."""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isp import registry
from isp.config import Study, parse_study
from isp.definitions import Definitions
from isp.errors import ConfigError
from isp.families import make_method
from isp.runtime import instructions
from isp.workflow import pinning, running
from isp.workflow.running import load
from tests.support.reruns import jobs
from tests.support.studies import ROOT, STUDY

RANDOM = (ROOT / "isp" / "methods" / "random.py").read_text()


def started(values: Mapping[str, Any], main: bool = True) -> Study:
    """Read a study as a process of Snakemake does: the main one, or that of a cluster job."""
    settings = SimpleNamespace(nodes=None)
    return load(SimpleNamespace(configfiles=[], resource_settings=settings, is_main_process=main), values)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A study of one method in a file of the current folder; what `load` sets is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "unlock_if_abandoned", lambda **_: None)  # it keeps a file open
    for name in (registry.PINNED, pinning.PINNED, "ISP_STUDY", "ISP_DATA_ROOT", "PYTHONSAFEPATH", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handler = signal.getsignal(signal.SIGUSR1)
    Path("mine.py").write_text(RANDOM)
    grid = [{**STUDY["grid"][0], "variants": ["mine"]}]
    yield {**STUDY, "variants": {"mine": {"method": "./mine.py"}}, "grid": grid}
    signal.signal(signal.SIGUSR1, handler)


def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the loaded methods as if another process had inherited the environment."""
    for name in [name for name in sys.modules if name.startswith("isp_method_mine_")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_job_refuses_a_file_that_was_edited_since_the_study_started(
    own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used the new file, but Snakemake recorded the old one, so nothing noticed."""
    before = started(own)
    Path("mine.py").write_text(f"{RANDOM}\n# edited\n")
    assert jobs(before) == jobs(parse_study(own, "again in the process that started it"))

    in_a_new_process(monkeypatch)
    for path in ("./mine.py", "mine.py", str(Path("mine.py").absolute())):
        with pytest.raises(
            ConfigError, match=r"mine\.py': was edited while the study runs .* run the same command again"
        ):
            make_method(path)
    with pytest.raises(ConfigError, match="was edited while the study runs"):
        started(own, main=False)  # a cluster job
    Path("mine.py").write_text(RANDOM)
    make_method("mine.py")
    started(own, main=False)


def test_the_next_run_reads_an_edited_file(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = jobs(started(own))
    Path("mine.py").write_text(f"{RANDOM}\n# edited\n")
    in_a_new_process(monkeypatch)
    assert jobs(started(own)) != first
    in_a_new_process(monkeypatch)
    make_method("mine.py")


def test_a_pinned_file_of_one_folder_says_nothing_about_another(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(own)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    Path("mine.py").write_text(f"{RANDOM}\n# another\n")
    make_method("mine.py")


def test_what_a_study_was_started_with_is_no_param(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a finished study reruns because of it."""
    plain = jobs(parse_study(own, "without a run"))
    assert jobs(started(own)) == plain
    assert registry.PINNED not in str(plain)


# --- the study file ---------------------------------------------------------------------------------------------------

DEFINED = {
    **STUDY,
    "threads": 1,
    "define": {"backbones": {"mine": {"family": "clip", "id": "me/mine"}}},
    "training": {**STUDY["training"], "mine": {"steps": 10, "batch_size": 30, "learning_rate": 1e-5}},
}


def edited(path: str, value: Any) -> dict[str, Any]:
    """Return the study with another value at a path of keys; None removes the key."""
    study = copy.deepcopy(DEFINED)
    *parents, last = path.split(".")
    at: Any = study
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return study


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("training.clip_tiny.learning_rate", 1e-3, "training.clip_tiny"),
        ("training.clip_tiny.clip_norm", 1.0, "training.clip_tiny"),
        ("training.clip_tiny", {"epochs": 9, "batch_size": 30, "learning_rate": 5e-4}, "training.clip_tiny"),
        ("tasks.digits.num_validation", 100, "tasks.digits"),
        ("tasks", None, "tasks.digits"),
        ("variants.isp.settings.denoisers", 3, "variants.isp"),
        ("variants.isp.method", "isp", "variants.isp"),
        ("variants.isp.by_backbone", {"clip_tiny": {"denoisers": 3}}, "variants.isp"),
        ("variants.lth.initial", "random", "variants.lth"),
        ("define.backbones.mine.id", "you/mine", "define.backbones.mine"),
        ("threads", 2, "threads"),
        ("device", "cuda", "device"),
        ("instruction_set", "native", "instruction_set"),
        ("keep_weak_masks", True, "keep_weak_masks"),
        ("look_aheads", "together", "look_aheads"),  # the bits are the same, but other jobs write them
        ("grid.0.seeds", [0, 1], "grid"),  # jobs that compare tickets read those of all cells
        ("grid.0.sparsities", ["0.5", "0.75", "0.9"], "grid"),
        ("tasks.half_order", {"num_validation": 100}, "tasks.half_order"),
        ("training.bert_tiny", {"steps": 10, "batch_size": 30, "learning_rate": 1e-3}, "training.bert_tiny"),
    ],
)
def test_a_cluster_job_refuses_a_setting_that_was_edited(path: str, value: Any, key: str) -> None:
    """It used the new value, but Snakemake had recorded the old one when it submitted the job."""
    started(DEFINED)
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(key)}: edited while the study runs; run the same command again"
    ):
        started(edited(path, value), main=False)
    started(DEFINED, main=False)
    started(edited(path, value))  # the next run
    started(edited(path, value), main=False)


@pytest.mark.usefixtures("own")
def test_limits_that_were_added_to_a_task_of_the_grid_are_an_edit() -> None:
    """Without an entry, a task has default limits, so that an entry changes its jobs."""
    unlimited = edited("tasks", None)
    started(unlimited)
    with pytest.raises(ConfigError, match=r"^tasks\.digits: edited"):
        started(DEFINED, main=False)
    started(unlimited, main=False)


@pytest.mark.usefixtures("own")
def test_edited_settings_are_all_named() -> None:
    started(DEFINED)
    both = edited("threads", 2) | {"training": edited("training.mine.steps", 20)["training"]}
    with pytest.raises(ConfigError, match=r"^threads, training\.mine: edited"):
        started(both, main=False)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("question", "Is it better?"),
        ("reference", "lth"),
        ("throughput", 1e9),
        ("data_root", "elsewhere"),
        ("training.clip_tiny", {"learning_rate": 0.0005, "batch_size": 30, "steps": 100}),  # another order
        ("define.tasks", {}),
    ],
)
def test_a_cluster_job_accepts_what_no_result_depends_on(path: str, value: Any) -> None:
    started(DEFINED)
    started(edited(path, value), main=False)


def test_every_key_of_a_study_is_pinned_or_affects_no_result() -> None:
    """A new key must be added to one of the two lists."""
    no_result = {"study", "question", "data_root", "throughput", "reference"}
    pinned = {key.split(".")[0] for key in (*pinning.ENTRIES, *pinning.WHOLE)}
    assert pinned | no_result == Study.model_fields.keys()
    assert not pinned & no_result
    assert {key.split(".")[1] for key in pinning.ENTRIES if "." in key} == Definitions.model_fields.keys()


@pytest.mark.usefixtures("own")
def test_the_default_kernels_of_another_machine_are_no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    started(DEFINED)
    default = instructions.default()
    monkeypatch.setattr(instructions, "is_supported", lambda: default == "native")
    assert instructions.default() != default
    started(DEFINED, main=False)
