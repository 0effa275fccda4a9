"""The instruction set of jobs on a CPU: who chooses it, that it is in force, and the bits that it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from isp import artifacts, lineage, stages
from isp.config import parse_study
from isp.errors import ConfigError
from isp.runtime import instructions, warm
from isp.stages.download import download
from isp.stages.finetune_dense import finetune_dense
from isp.stages.initialise import initialise
from isp.stages.prepare import prepare
from isp.stages.split import split
from isp.workflow.jobs import Jobs
from tests.support.bits import compare_bits, content, needs_avx2
from tests.support.reruns import jobs
from tests.support.studies import ROOT, STUDY

TASKS = {"clip_tiny": "digits", "bert_tiny": "half_order"}
COMMON: dict[str, Any] = {"seed": 0, "limits": {"num_train": 128}}
COMMON |= {"training": {"steps": 6, "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 1}}


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes the machine another one."""

    def cpu_(flags: str, machine: str = "x86_64") -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nvmx flags\t: avx2 fma\n")
        monkeypatch.setattr(instructions, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(instructions, "_machine", lambda: machine)

    return cpu_


# --- who chooses ------------------------------------------------------------------------------------------------------


def test_a_stage_that_computes_gets_avx2_unless_its_options_need_otherwise(cpu: Callable[..., None]) -> None:
    cpu("sse4_2 fma avx2 avx512f")
    chosen = {
        ("retrain", "--device", "cpu"): "avx2",
        ("pretrain",): "avx2",
        ("retrain", "--instruction-set", "native"): "native",
        ("retrain", "--instruction-set=native"): "native",
        ("retrain", "--instruction-set", "avx2", "--device", "cuda"): "avx2",
        ("retrain", "--device", "cuda:1"): "native",
        ("retrain", "--device=cuda"): "native",
        ("retrain", "--training", '{"precision":"bf16"}'): "native",
        ("retrain", "--training", '{"precision":"fp32"}'): "avx2",
    }
    assert {arguments: instructions.choose(arguments) for arguments in chosen} == chosen


@pytest.mark.parametrize(
    "command", ["export", "predict", "plan", "run", "tables", "list", "../stages/retrain", "", "x y"]
)
def test_other_commands_compute_with_what_is_there(command: str) -> None:
    assert instructions.choose([command, "--device", "cpu"]) is None
    assert instructions.choose([]) is None


def test_every_stage_that_takes_threads_takes_an_instruction_set() -> None:
    """So do those that compute without being told a number of threads."""
    text = {name: (Path(stages.__file__).parent / f"{name}.py").read_text() for name in stages.NAMES}
    taking = {name for name in stages.NAMES if instructions.choose([name]) is not None}
    assert taking == {name for name in stages.NAMES if "threads: Threads" in text[name]} | {"pretrain", "describe"}


def test_on_other_cpus_stages_by_hand_compute_with_what_is_there(cpu: Callable[..., None]) -> None:
    cpu("fpu sse4_2 avx fma")
    assert instructions.choose(["pretrain"]) == "native"
    with pytest.raises(ConfigError, match=r"this CPU \(x86_64\) does not have AVX2 .* set --instruction-set native"):
        instructions.choose(["retrain", "--instruction-set", "avx2"])
    cpu("fp asimd avx2 fma", machine="aarch64")
    assert not instructions.is_supported()
    assert instructions.choose(["retrain"]) == "native"


def test_another_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="--instruction-set must be avx2 or native, got 'sse2'"):
        instructions.choose(["retrain", "--instruction-set", "sse2"])


# --- studies ----------------------------------------------------------------------------------------------------------


def _params(**values: Any) -> dict[str, str]:
    study = parse_study({**STUDY, **values}, "test")
    assert Jobs(study).by_output
    return {path: str(dict(job.params)) for path, job in jobs(study).items()}


def test_the_instruction_set_is_a_param_of_the_jobs_that_compute() -> None:
    avx2, native, on_gpu = (
        _params(instruction_set="avx2"),
        _params(instruction_set="native"),
        _params(device="cuda"),
    )
    told = {path for path in avx2 if "--instruction-set avx2" in avx2[path]}
    assert told == {path for path in avx2 if "--threads" in avx2[path]} != set()
    assert told == {path for path in native if "--instruction-set native" in native[path]}
    assert not any("--instruction-set" in param for param in on_gpu.values())
    assert {path for path in avx2 if avx2[path] != native[path]} == told


def test_bf16_has_native_kernels() -> None:
    (backbone,) = STUDY["training"]
    bf16 = {backbone: STUDY["training"][backbone] | {"precision": "bf16"}}
    study = parse_study({**STUDY, "training": bf16, "instruction_set": "avx2"}, "test")
    assert (study.instruction_set, study.instructions(backbone), study.served_instructions) == ("avx2",) + (
        "native",
    ) * 2


# --- what is in force -------------------------------------------------------------------------------------------------


@needs_avx2
def test_provenance_says_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests compute with kernels of AVX2: `tests/conftest.py`."""
    found = artifacts.provenance()
    assert (found["instruction_set"], found["cpu"]) == ("avx2", "x86_64, AVX2")
    assert found["mkl"] == instructions.mkl_branch()
    instructions.check_in_force("avx2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert artifacts.provenance()["instruction_set"] == "native"


@needs_avx2
@pytest.mark.parametrize("kernels", ["AVX512", "DEFAULT"])
def test_a_stage_refuses_a_process_with_other_kernels(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    instructions.check_in_force("native")
    instructions.check_in_force(None)
    with pytest.raises(ConfigError, match=f"without the AVX2 variables .*{kernels}"):
        instructions.check_in_force("avx2")


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(short_pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tiny backbones, six steps on a task each, from weights that were pre-trained for three."""
    folder = tmp_path_factory.mktemp("bits")
    for backbone, task in TASKS.items():
        here, weights = folder / backbone, short_pretraining / "backbones" / f"{backbone}.safetensors"
        here.mkdir()
        download(here, here / "manifest", task=task)
        split(task, here, here / "manifest", here / "split")
        parts = [here / part for part in ("train", "validation", "test")]
        prepare(backbone, task, here, here / "manifest", here / "split", weights, *parts)
        common = {**COMMON, "backbone": backbone, "task": task, "data": here / "train"}
        initialise(**common, weights=weights, initial="pretrained", output=here / "initial")
        finetune_dense(**common, initial=here / "initial", output=here / "ticket")
    return folder


@needs_avx2
def test_golden_bits(trained: Path, short_pretraining: Path, golden: Callable[[str, str], None]) -> None:
    """Pre-training and fine-tuning have the same bits on every CPU whose MKL has kernels of AVX2."""
    lines = []
    for backbone, task in TASKS.items():
        pretrained = short_pretraining / "backbones" / f"{backbone}.safetensors"
        lines += [f"{backbone}, pre-trained for 3 steps: {content(pretrained)}"]
        lines += [f"{backbone}, {task}, initial state: {content(trained / backbone / 'initial')}"]
        lines += [f"{backbone}, {task}, 6 steps: {content(trained / backbone / 'ticket')}"]
    compare_bits("bits", lines, golden)


def _by_hand(trained: Path, output: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`isp finetune_dense` as a command, in an environment without the variables."""
    here = trained / "clip_tiny"
    words = ["finetune_dense", "--initial", str(here / "initial"), "--data", str(here / "train")]
    words += ["--output", str(output), "--backbone", "clip_tiny", "--task", "digits", "--seed", "0"]
    return _isp(
        *words, "--training", str(COMMON["training"]), "--limits", str(COMMON["limits"]), *options, **environment
    )


def _isp(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in an environment without the variables."""
    inherited = {key: value for key, value in os.environ.items() if key not in instructions.VARIABLES}
    inherited |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "isp", *words], env=inherited, capture_output=True, text=True, timeout=600, check=False
    )


def _made_with(path: Path) -> Mapping[str, str]:
    header = lineage.read_header(path)
    assert header is not None
    found: Mapping[str, str] = header["about"]["made_with"]
    return found


@needs_avx2
@pytest.mark.process
def test_a_stage_by_hand_sets_the_variables_itself(trained: Path, tmp_path: Path) -> None:
    done = _by_hand(trained, tmp_path / "ticket")
    assert done.returncode == 0, done.stderr
    assert _made_with(tmp_path / "ticket")["instruction_set"] == "avx2"
    assert content(tmp_path / "ticket") == content(trained / "clip_tiny" / "ticket")
    done = _by_hand(trained, tmp_path / "native", "--instruction-set", "native")
    assert done.returncode == 0, done.stderr
    assert _made_with(tmp_path / "native")["instruction_set"] == "native"
    if "AVX512" in _made_with(tmp_path / "native")["cpu"]:
        assert content(tmp_path / "native") != content(tmp_path / "ticket")


@needs_avx2
@pytest.mark.process
@pytest.mark.skipif(not warm.available(), reason="this system has no fork server")
def test_a_fork_server_takes_calls_of_its_instruction_set_only(trained: Path, tmp_path: Path) -> None:
    address = warm.new_address(os.getpid())
    workflow = {"ISP_WARM": address, "ISP_OWNER": str(os.getpid()), instructions.SERVED: "avx2"}
    done = _by_hand(trained, tmp_path / "ticket", "--instruction-set", "avx2", **workflow)
    assert done.returncode == 0, done.stderr
    assert warm.COLD not in done.stderr
    assert os.path.exists(address)
    assert _made_with(tmp_path / "ticket")["instruction_set"] == "avx2"
    assert content(tmp_path / "ticket") == content(trained / "clip_tiny" / "ticket")
    given = ["--ticket", str(tmp_path / "ticket"), "--round", "0", "--sparsity", "0.5"]
    done = _isp("prune_iterative", *given, "--output", str(tmp_path / "mask"), **workflow)  # has no choice
    assert done.returncode == 0, done.stderr
    assert _made_with(tmp_path / "mask")["instruction_set"] == "avx2"
    done = _by_hand(trained, tmp_path / "native", "--instruction-set", "native", **workflow)
    assert done.returncode == 0, done.stderr
    assert f"{warm.COLD}its instruction set is avx2, that of this stage is native" in done.stderr
    assert _made_with(tmp_path / "native")["instruction_set"] == "native"


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [("fma avx2", "x86_64", "avx2"), ("fma avx", "x86_64", "native"), ("fma avx2", "aarch64", "native")],
)
def test_a_study_takes_avx2_where_the_cpu_has_it(
    flags: str, machine: str, expected: str, cpu: Callable[..., None]
) -> None:
    cpu(flags, machine)
    assert parse_study(STUDY, "test").instruction_set == expected
