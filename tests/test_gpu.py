"""What needs a GPU, apart from the trainer (`tests/test_training.py`): methods, loops, a study, and 2:4 layers."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import isp
from isp import masks, registry
from isp.acceleration import Call
from isp.errors import ConfigError
from isp.forms import SemiStructured
from isp.lineage import read_header
from isp.runtime.warm import COLD
from tests.support.loops import Loop
from tests.support.methods import QUICK
from tests.support.models import Noisy, Still, equal, tiny_model
from tests.support.workflow import rows, snakemake

pytestmark = pytest.mark.gpu


class OnGpu:
    """Examples whose batches are on the GPU."""

    def __init__(self, examples: Noisy) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = self.examples.batch(indices.cpu())
        return inputs.cuda(), labels.cuda()


DATA = OnGpu(Noisy())


def pruned(method: str, model: nn.Module, **changed: Any) -> isp.Ticket:
    family = registry.load("method", method).FAMILY
    settings = QUICK.get(family, {}) | QUICK.get(method, {})
    arguments: dict[str, Any] = {"steps": 30, "batch_size": 16, "learning_rate": 1e-2, "exclude": ["head.*"]}
    sparsity = 0 if family in ("dense", "souped", "instant") else "0.6"
    validation = OnGpu(Still(30))
    return isp.prune(
        model, DATA, method=method, sparsity=sparsity, settings=settings, validation=validation, **arguments | changed
    )


@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_prunes_a_model_on_a_gpu_and_twice_to_the_same_bits(method: str, tmp_path: Path) -> None:
    models = [tiny_model().cuda() for _ in range(2)]
    ticket, again = (pruned(method, model) for model in models)
    assert {parameter.device.type for parameter in models[0].parameters()} == {"cuda"}
    assert masks.num_kept(ticket.mask) == 592 - round(float(ticket.sparsity) * 592)
    for name, kept in ticket.mask.items():
        assert not models[0].get_parameter(name).cpu()[~kept.cpu()].any()
    assert equal(ticket.mask, again.mask)
    assert equal(ticket.weights, again.weights)
    isp.save_ticket(tmp_path / "ticket", ticket)
    back = isp.load_ticket(tmp_path / "ticket")
    assert equal(back.weights, {name: weight.cpu() for name, weight in ticket.weights.items()})


@pytest.mark.parametrize("method", ["gradual", "isp", "movement"])
def test_a_loop_on_a_gpu_gives_the_ticket_of_prune(method: str) -> None:
    model = tiny_model().cuda()
    settings = QUICK["denoised"] if method == "isp" else {}
    ticket = isp.prune(
        model, DATA, method=method, sparsity="0.8", settings=settings, steps=30, batch_size=16, learning_rate=1e-2,
        exclude=["head.*"],
    )  # fmt: skip
    looped = Loop(tiny_model().cuda(), DATA, method=method, sparsity="0.8", settings=settings, exclude=["head.*"]).run()
    assert equal(looped.pruner.ticket().mask, ticket.mask)
    assert equal(looped.pruner.ticket().weights, ticket.weights)


@pytest.mark.parametrize("method", ["gradual", "isp"])
def test_a_loop_in_fp16_with_scaled_losses_keeps_zeros(method: str) -> None:
    """An infinite gradient makes the scaler skip an update; the zeros and the count of steps are as without it."""
    settings = QUICK["denoised"] if method == "isp" else {}
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=3)
    loop = Loop(
        HalfPrecision(tiny_model()).cuda(), DATA, method=method, sparsity="0.8", settings=settings,
        exclude=["model.head.*"], scaler=scaler,
    ).run()  # fmt: skip
    ticket = loop.pruner.ticket()
    assert scaler.get_scale() < 2.0**40
    assert masks.num_kept(ticket.mask) == 592 - round(0.8 * 592)
    for name, kept in ticket.mask.items():
        assert not loop.model.get_parameter(name).cpu()[~kept.cpu()].any()
        assert loop.model.get_parameter(name).isfinite().all()


class HalfPrecision(nn.Module):
    """A model that computes in fp16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.float16):
            outputs: Tensor = self.model(inputs)
        return outputs.float()


# --- a study ----------------------------------------------------------------------------------------------------------

ROUNDS = {"rate": 0.5, "segment_fraction": 0.25, "denoisers": 2, "look_ahead_steps": 2}
STUDY: dict[str, Any] = {
    "study": "gpu",
    "question": "Does a study run on a GPU?",
    "device": "cuda",
    "training": {
        "clip_tiny": {"steps": 12, "batch_size": 16, "learning_rate": 1e-3},
        "bert_tiny": {"steps": 12, "batch_size": 16, "learning_rate": 1e-3, "precision": "bf16"},
    },
    "tasks": {name: {"num_train": 64, "num_validation": 40} for name in ("digits", "half_order")},
    "variants": {
        "dense": {"method": "dense"},
        "gradual": {"method": "gradual", "settings": {"every": 3}},
        "isp": {"method": "isp", "settings": ROUNDS},
        "lth": {"method": "lth", "settings": {"rate": 0.5}},
    },
    "grid": [
        {"backbone": name, "tasks": [task], "variants": variants, "sparsities": ["0.6"],
         "seeds": [0]}
        for name, task, variants in (
            ("clip_tiny", "digits", ["dense", "isp", "lth"]),
            ("bert_tiny", "half_order", ["gradual"]),
        )
    ],
}  # fmt: skip


@pytest.mark.process
def test_a_study_on_a_gpu_with_one_job_at_a_time_and_with_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs that use the GPU start through the fork server, which must not have used CUDA."""
    monkeypatch.setenv("ISP_GPU_LOCKS", str(tmp_path / "locks"))
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    results = []
    for jobs in (1, 4):
        (folder := tmp_path / f"{jobs}").mkdir()
        if results:  # backbones and data, which take longer than the rest
            shutil.copytree(tmp_path / "1/resources", folder / "resources")
        monkeypatch.setenv("ISP_JOBS_PER_GPU", f"{jobs}")
        target = "results/gpu/metrics.csv"  # without figures and tables, of which no job uses a GPU
        done = snakemake(folder, "--resources", f"gpu={jobs}", "--cores", "4", target, study=study)
        assert done.returncode == 0, done.stderr[-4000:]
        out = folder / "results/gpu"
        results.append({name: rows(out / f"{name}.csv") for name in ("metrics", "rounds", "layers")})
        logs = {path.relative_to(out): path.read_text() for path in (out / "logs").rglob("*") if path.is_file()}
        assert len(logs) > 10
        cold = [str(path) for path, log in logs.items() if COLD in log and "pretrain" not in str(path)]
        assert not cold, [logs[Path(path)] for path in cold]
        headers = [read_header(path) for path in out.rglob("ticket.safetensors")]
        assert {header["about"]["made_with"].get("gpu") for header in headers} == {torch.cuda.get_device_name()}
    assert results[0] == results[1]
    zeros = {row["sparsity"]: row["zero_weights"] for row in results[0]["metrics"] if row["backbone"] == "clip_tiny"}
    assert zeros == {"0.0000": "0", "0.6000": f"{round(0.6 * 196_608)}"}


# --- 2:4 layers -------------------------------------------------------------------------------------------------------


def prefer(form: str) -> Any:
    def measure(calls: Mapping[str, Call]) -> dict[str, float]:
        wanted = (form, f"{form} everywhere", "accelerated")
        return {name: 1.0 if name in wanted else 2.0 for name in calls}

    return measure


def patterned(dtype: torch.dtype) -> nn.Module:
    """A model of two large linear layers, of whose weights two of every four are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).to("cuda", dtype)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            groups = layer.weight.view(-1, 4)
            groups.scatter_(1, groups.abs().argsort(dim=1)[:, :2], 0)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 256), (8, 16, 256), (1, 256), (5, 3, 256)])
def test_a_2_4_layer_computes_the_linear_layer(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer = patterned(dtype)[0]
    x = torch.randn(shape, device="cuda", dtype=dtype)
    with torch.no_grad():
        expected, found = layer(x).double(), SemiStructured(layer)(x).double()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < expected.abs().max() * 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_with_the_pattern_is_accelerated_on_a_gpu(dtype: torch.dtype) -> None:
    model = patterned(dtype)
    x = torch.randn(64, 256, device="cuda", dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    fast, report = isp.accelerate(model, x, measure=prefer("2:4"))
    assert report.choices == {"2:4": 2}
    assert report.device == "cuda:0"
    with torch.no_grad():
        expected = model(x).double()
        assert (fast(x).double() - expected).abs().max() <= report.difference * expected.abs().max() * 1.01
    assert equal(dict(model.state_dict()), before)
    with pytest.raises(ConfigError, match="inference only"):
        fast.train()
    _, report = isp.accelerate(model, x)
    assert set(report.choices) <= {"dense", "2:4"}
    assert "2:4 ms" in str(report)


def test_in_float32_a_model_on_a_gpu_keeps_its_tolerance() -> None:
    """Tensor cores would multiply in TF32."""
    model = patterned(torch.float32)
    x = torch.randn(64, 256, device="cuda")
    fast, report = isp.accelerate(model, x, measure=prefer("2:4"))
    assert report.difference <= 1e-4
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_without_the_pattern_a_model_on_a_gpu_stays_dense() -> None:
    model = patterned(torch.float16)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:] = 1
            layer.weight[: layer.weight.shape[0] // 2] = 0
    _, report = isp.accelerate(model, torch.randn(64, 256, device="cuda", dtype=torch.float16))
    assert report.choices == {"dense": 2}
