"""`isp.accelerate`: forms of linear layers, which one is chosen, and what is refused."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isp
from isp import acceleration
from isp.acceleration import fastest
from isp.errors import ConfigError, IspError
from isp.forms import CSR, DENSE, NUMBA, ONEDNN, Attention, Csr, Numba, OneDnn, follows_2_4
from isp.tensors import copy_of

FORMS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    ONEDNN: lambda linear: OneDnn(linear, 5),
    CSR: Csr,
    NUMBA: Numba,
}


def available(form: str) -> None:
    """Skip the test if this installation lacks a form."""
    if form == NUMBA:
        pytest.importorskip("numba", reason="numba is not installed (isp[accelerate])")
    if form == ONEDNN and not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")


def measure_as(*order: str) -> acceleration.Measure:
    """A timer by which forms take 1, 2, ... seconds in the order given; others take 10, and it calls none."""

    def measure(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        if "accelerated" in calls:
            return {name: {DENSE: 2.0, "accelerated": 1.0}.get(name, 10.0) for name in calls}
        return {name: order.index(name) + 1.0 if name in order else 10.0 for name in calls}

    return measure


def sparse_(*weights: Tensor, sparsity: float = 0.9) -> None:
    """Set weights to zero at random."""
    with torch.no_grad():
        for weight in weights:
            weight *= torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) >= sparsity


def linear(inputs: int, outputs: int, bias: bool = True, sparsity: float = 0.9) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    sparse_(layer.weight, sparsity=sparsity)
    return layer


class Attentive(nn.Module):
    """Attention of a sequence with itself, and a linear layer that the example does not reach."""

    def __init__(self, batch_first: bool, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, bias=bias)
        sparse_(self.attention.in_proj_weight, self.attention.out_proj.weight)
        self.unused = linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False, attn_mask=mask)[0]
        return x + y


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (5,), (64,), (2, 65), (130,), (2, 3, 4)])
def test_a_form_computes_the_linear_layer(form: str, bias: bool, shape: tuple[int, ...]) -> None:
    available(form)
    layer = linear(24, 37, bias)
    x = torch.randn(*shape, 24)
    y = FORMS[form](layer)(x)
    assert y.shape == (*shape, 37)
    assert y.is_contiguous()
    torch.testing.assert_close(y.detach(), layer(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_by_hand(form: str) -> None:
    available(form)
    layer = nn.Linear(3, 3)
    layer.weight.data = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -1.0]])  # a row without weights
    layer.bias.data = torch.tensor([0.5, 7.0, 0.0])
    y = FORMS[form](layer)(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]]))
    assert y.tolist() == [[4.5, 7.0, -2.0], [-1.5, 7.0, -4.0]]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_takes_inputs_that_are_not_contiguous_and_only_zeros(form: str) -> None:
    available(form)
    layer = linear(8, 6)
    x = torch.randn(8, 9).T
    torch.testing.assert_close(FORMS[form](layer)(x).detach(), layer(x).detach(), rtol=1e-5, atol=1e-6)
    nn.init.zeros_(layer.weight)
    assert torch.equal(FORMS[form](layer)(x).detach(), layer.bias.detach().expand(9, 6))


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
def test_threads_of_the_kernel_share_its_rows(threads: int) -> None:
    available(NUMBA)
    layer, before = linear(24, 37), torch.get_num_threads()
    x = torch.randn(70, 24)
    try:
        torch.set_num_threads(threads)
        y = Numba(layer)(x).detach()
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(y, layer(x).detach(), rtol=1e-5, atol=1e-6)


FORKED = """
import os
import torch
from torch import nn
from isp import sparse_kernel

torch.set_num_threads(2)
layer, x = nn.Linear(24, 37), torch.randn(70, 24)
rows = sparse_kernel.Rows.of(layer.weight.detach(), layer.bias.detach())

with torch.no_grad():
    expected = layer(x)
    assert torch.allclose(rows.multiply(x), expected, rtol=1e-5, atol=1e-6)
    process = os.fork()
    if not process:
        os._exit(0 if torch.allclose(rows.multiply(x), expected, rtol=1e-5, atol=1e-6) else 1)
assert os.waitpid(process, 0)[1] == 0
print(sparse_kernel.numba.config.THREADING_LAYER, sparse_kernel._parallel(os.getpid()) is not None)
"""


@pytest.mark.process
@pytest.mark.parametrize("chosen", ["default", "workqueue"])
def test_threads_of_the_kernel_are_left_alone_after_a_fork_and_under_another_layer(chosen: str) -> None:
    available(NUMBA)
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        env={**os.environ, "NUMBA_THREADING_LAYER": chosen},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    layer, shared = done.stdout.split()
    assert layer == chosen
    if chosen == "workqueue":  # takes one caller at a time, so the kernel uses one thread
        assert shared == "False"


def test_a_form_replaces_a_simpler_one_only_by_the_margin() -> None:
    assert fastest({DENSE: 1.0, CSR: 0.98}) == DENSE
    assert fastest({DENSE: 1.0, CSR: 0.96}) == CSR
    assert fastest({DENSE: 1.0, ONEDNN: 0.5, CSR: 0.49}) == ONEDNN
    assert fastest({DENSE: 1.0, ONEDNN: 0.5, CSR: 0.4, NUMBA: 0.3}) == NUMBA


def test_medians_leave_out_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(acceleration.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(acceleration.time, "process_time", lambda: now[0])

    def takes(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            now[0] += 100.0 if len(calls) < 3 else seconds

        return call

    medians = acceleration.interleaved_medians({"a": takes("a", 1.0), "b": takes("b", 3.0)})
    assert medians == pytest.approx({"a": 1.0, "b": 3.0})
    assert calls == ["a", "b"] * (acceleration.REPEATS + 1)


def test_the_copy_computes_the_same_and_the_model_stays() -> None:
    model = nn.Sequential(linear(16, 32), nn.Dropout(), nn.GELU(), nn.Linear(32, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(3, 5, 16)
    fast, report = isp.accelerate(model, x, measure=measure_as(CSR, DENSE))
    assert model.training
    assert all(type(layer) is nn.Linear and layer.weight.requires_grad for layer in (model[0], model[3]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(fast[0], Csr)
    assert fast[3].weight.data_ptr() == model[3].weight.data_ptr()
    torch.testing.assert_close(fast(x).detach(), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
    assert fast(x[0, 0]).shape == (4,)  # inputs of another size
    assert [(layer.name, layer.outputs, layer.inputs, layer.tokens) for layer in report.layers] == [
        ("0", 32, 16, 15),
        ("3", 4, 32, 15),
    ]
    zeros = int((model[0].weight == 0).sum())
    assert [layer.sparsity for layer in report.layers] == [zeros / 512, 0.0]
    assert [layer.choice for layer in report.layers] == [CSR, DENSE]
    assert CSR not in report.layers[1].seconds  # it has no zeros
    assert report.choices == {DENSE: 1, CSR: 1}
    assert report.difference <= acceleration.TOLERANCE


def test_every_form_is_chosen_when_it_is_fastest() -> None:
    model, x = nn.Sequential(linear(16, 8)), torch.randn(4, 16)
    for form, cls in {ONEDNN: OneDnn, CSR: Csr, NUMBA: Numba}.items():
        if (form != NUMBA or find_spec("numba")) and (form != ONEDNN or torch.backends.mkldnn.is_available()):
            fast, _ = isp.accelerate(model, x, measure=measure_as(form))
            assert isinstance(fast[0], cls)
    fast, report = isp.accelerate(model, x, measure=measure_as(DENSE))
    assert type(fast[0]) is nn.Linear
    assert report.choices == {DENSE: 1}
    assert report.seconds == report.dense_seconds  # the same model is not timed twice


def test_a_report_says_how_to_install_the_kernel_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "find_spec", lambda name: None)
    _, report = isp.accelerate(nn.Sequential(linear(16, 8)), torch.randn(4, 16), measure=measure_as(DENSE))
    assert "pip install '.[accelerate]'" in str(report)


def test_a_model_that_is_hardly_faster_as_a_whole_stays_dense() -> None:
    def measure(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        if "accelerated" in calls:
            return {name: {DENSE: 1.0, "accelerated": 0.995}.get(name, 2.0) for name in calls}
        return measure_as(CSR)(calls)

    fast, report = isp.accelerate(nn.Sequential(linear(16, 8)), torch.randn(4, 16), measure=measure)
    assert type(fast[0]) is nn.Linear
    assert report.choices == {DENSE: 1}
    assert report.seconds == report.dense_seconds == 1.0


@pytest.mark.parametrize(
    ("whole", "choices"),
    [
        ({}, {DENSE: 4}),  # the layers were timed alone, which says little
        ({"accelerated": 0.9}, {DENSE: 2, CSR: 2}),
        ({"accelerated": 0.9, "csr everywhere": 0.905}, {DENSE: 1, CSR: 3}),  # half a percent is not worth a mixture
        ({"onednn everywhere": 0.98}, {ONEDNN: 4}),  # of a layer, 2 % would be within the noise
        ({"accelerated": 0.8, "csr everywhere": 0.9, "onednn everywhere": 0.9}, {DENSE: 2, CSR: 2}),
        ({"accelerated": 0.98, "csr everywhere": 0.9, "onednn everywhere": 0.5}, {ONEDNN: 4}),
    ],
)
def test_the_whole_model_decides(whole: dict[str, float], choices: dict[str, int]) -> None:
    available(ONEDNN)
    model = nn.Sequential(linear(16, 8), nn.Linear(8, 8), linear(8, 8), linear(8, 4))
    layers = [{CSR: 0.5}, {}, {CSR: 0.5}, {ONEDNN: 0.98}]  # three of them have zeros
    seconds = itertools.chain(layers, itertools.repeat(whole))

    def measure(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        given = next(seconds)
        return {name: given.get(name, 1.0) for name in calls}

    x = torch.randn(4, 16)
    fast, report = isp.accelerate(model, x, measure=measure)
    assert report.choices == choices
    assert [type(layer) is nn.Linear for layer in fast] == [layer.choice == DENSE for layer in report.layers]
    assert report.dense_seconds == report.whole[DENSE] == 1.0
    assert report.seconds == min(whole.values(), default=1.0) or CSR in report.choices
    torch.testing.assert_close(fast(x).detach(), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_forms_near_the_fastest_are_measured_again() -> None:
    available(ONEDNN)
    near, far = "onednn everywhere", "csr everywhere"
    wholes = iter([{near: 1.1, far: 1.3}, {near: 0.9}, {near: 0.9}, {near: 1.1}, {near: 0.9}])
    asked: list[set[str]] = []

    def measure(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        if near not in calls:
            return dict.fromkeys(calls, 1.0)
        asked.append(set(calls))
        given = next(wholes)
        return {name: given.get(name, 1.0) for name in calls}

    _, report = isp.accelerate(nn.Sequential(linear(16, 8)), torch.randn(4, 16), measure=measure)
    assert report.choices == {ONEDNN: 1}
    assert (report.dense_seconds, report.seconds) == (1.0, 0.9)  # medians of five
    assert far in asked[0]
    assert len(asked) == 5
    assert not any(far in each for each in asked[1:])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", ["", "causal", "bool", "heads"])
def test_attention_has_sparse_projections(batch_first: bool, bias: bool, masked: str) -> None:
    model = Attentive(batch_first, bias).eval()
    x = torch.randn(2, 5, 16) if batch_first else torch.randn(5, 2, 16)
    causal = torch.full((5, 5), float("-inf")).triu(1)
    masks = {"": None, "causal": causal, "bool": causal.isinf(), "heads": causal.expand(8, 5, 5)}
    with torch.no_grad():
        before = model(x, masks[masked])
    fast, report = isp.accelerate(model, (x, masks[masked]), measure=measure_as(CSR, "replaced"))
    assert type(fast.attention).__name__ == "Attention"
    torch.testing.assert_close(fast(x, masks[masked]).detach(), before, rtol=1e-4, atol=1e-5)
    assert [(layer.name, layer.tokens, layer.choice) for layer in report.layers] == [
        ("attention.in_proj", 10, CSR),
        ("attention.out_proj", 10, CSR),
        ("unused", 0, DENSE),
    ]


def test_attention_that_is_not_faster_stays() -> None:
    fast, report = isp.accelerate(Attentive(True), torch.randn(2, 5, 16), measure=measure_as(CSR, DENSE))
    assert type(fast.attention) is nn.MultiheadAttention
    assert report.choices == {DENSE: 3}


def test_an_accelerated_attention_refuses_other_calls() -> None:
    x = torch.randn(2, 5, 16)
    fast, _ = isp.accelerate(Attentive(True), x, measure=measure_as(CSR, "replaced"))
    for call in ({"need_weights": True}, {"need_weights": False, "key_padding_mask": torch.zeros(2, 5)}):
        with pytest.raises(ConfigError, match="calls like the example's"):
            fast.attention(x, x, x, **call)


def test_attention_between_two_sequences_stays_dense() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attentive(True).attention

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z: Tensor = self.attention(x, y, y, need_weights=False)[0]
            return z

    _, report = isp.accelerate(Cross(), (torch.randn(2, 5, 16), torch.randn(2, 3, 16)), measure=measure_as(CSR))
    assert report.choices == {DENSE: 2}


def test_transposed_layers_of_gpt2() -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(6, 16))
    sparse_(model[0].weight)
    x = torch.randn(2, 5, 16)
    fast, report = isp.accelerate(model, x, measure=measure_as(CSR))
    assert (report.layers[0].outputs, report.layers[0].inputs, report.layers[0].choice) == (6, 16, CSR)
    torch.testing.assert_close(fast(x).detach(), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_mappings_and_forward_functions() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(16, 4)

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.layer(x)}

    example = {"x": torch.randn(3, 16)}
    _, report = isp.accelerate(Named(), example, measure=measure_as(CSR))
    assert report.choices == {CSR: 1}
    _, report = isp.accelerate(Named(), example["x"], forward=lambda model, x: model(x=x)["y"], measure=measure_as(CSR))
    assert report.choices == {CSR: 1}


def test_a_layer_without_weights_stays() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.empty = linear(16, 4), nn.Linear(0, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.empty(x[:, :0])

    model, x = Empty(), torch.randn(3, 16)
    fast, report = isp.accelerate(model, x, measure=measure_as(CSR))
    assert [layer.name for layer in report.layers] == ["layer"]
    assert torch.allclose(fast(x), model(x), atol=1e-6)


def test_hooked_and_derived_layers_stay() -> None:
    class Derived(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    derived = Derived(16, 16)
    sparse_(derived.weight)
    pruned = nn.utils.prune.random_unstructured(nn.Linear(16, 16), "weight", 0.9)
    model, x = nn.Sequential(linear(16, 16), derived, pruned), torch.randn(3, 16)
    fast, report = isp.accelerate(model, x, measure=measure_as(CSR))
    assert [layer.name for layer in report.layers] == ["0"]
    torch.testing.assert_close(fast(x).detach(), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_modules_that_read_weights_themselves() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)  # torch's fast path
    sparse_(layer.linear1.weight, layer.linear2.weight)
    model, x = nn.Sequential(layer, linear(16, 4)).eval(), torch.randn(2, 5, 16)
    fast, report = isp.accelerate(model, x, measure=measure_as(CSR))
    assert [each.name for each in report.layers] == ["1"]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x) @ self.layer.weight
            return y

    reading = Reading().eval()
    fast, report = isp.accelerate(reading, x, measure=measure_as(CSR))
    assert report.choices == {CSR: 1}
    assert fast.layer.weight.data_ptr() == reading.layer.weight.data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), reading(x), rtol=1e-4, atol=1e-5)

    class Strict(Reading):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.layer, nn.Linear), "another layer"
            return super().forward(x)

    with pytest.raises(IspError, match=r"another layer.*perhaps because a module needs torch's own linear layers"):
        isp.accelerate(Strict(), x, measure=measure_as(CSR))


def test_t5_reads_the_type_of_a_weight() -> None:
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()
    sparse_(*(module.weight for module in model.modules() if isinstance(module, nn.Linear)))
    example = {"input_ids": torch.arange(6)[None]}
    fast, report = isp.accelerate(model, example, measure=measure_as(CSR))
    assert report.choices == {CSR: 6}
    torch.testing.assert_close(fast(**example)[0].detach(), model(**example)[0].detach(), rtol=1e-4, atol=1e-5)


def test_under_autocast_a_form_keeps_its_type() -> None:
    model, x = nn.Sequential(linear(16, 8)).eval(), torch.randn(3, 16)
    fast, _ = isp.accelerate(model, x, measure=measure_as(CSR))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), fast(x))
        assert fast(x).dtype == torch.float32


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_attention_with_further_keys_stays(option: str) -> None:
    model = Attentive(True)
    model.attention = nn.MultiheadAttention(16, 4, batch_first=True, **{option: True})  # type: ignore[arg-type]
    sparse_(model.attention.in_proj_weight, model.unused.weight)
    _, report = isp.accelerate(model, torch.randn(2, 5, 16), measure=measure_as(CSR, "replaced"))
    assert [layer.name for layer in report.layers] == ["unused"]


def test_the_report_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "find_spec", lambda name: object())  # as if numba were installed
    _, report = isp.accelerate(nn.Sequential(linear(16, 8)), torch.randn(4, 16), measure=measure_as(CSR))
    header, row, whole, last = str(report).splitlines()
    assert header.split()[:4] == ["layer", "size", "tokens", "sparsity"]
    assert row.split()[:5] == ["0", "8", "x", "16", "4"]
    assert row.split()[-1] == CSR
    assert whole.split()[:3] == ["whole", "model", "2000.000"]
    assert whole.endswith("mixed: 1000.000")
    assert last == report.summary()
    assert "2000.00 ms as it was, 1000.00 ms accelerated (2.00 times faster" in last
    assert last.endswith("layers by form: csr 1")


def test_training_is_refused() -> None:
    x = torch.randn(4, 16)
    fast, _ = isp.accelerate(nn.Sequential(linear(16, 8), nn.Linear(8, 2)), x, measure=measure_as(CSR))
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    with pytest.raises(ConfigError, match="inference only"):
        fast(x).sum().backward()
    with pytest.raises(ConfigError, match="inference only"):
        fast(x.requires_grad_()).sum().backward()
    with pytest.raises(ConfigError, match="inference only"):
        fast.train()
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        fast(x)
    assert not fast.eval()(x).isnan().any()


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4), "none of its 1 linear layers has a weight of zero"),
        (nn.Sequential(nn.ReLU()), torch.ones(2, 4), "no linear layers that can be replaced"),
        (linear(4, 4), torch.ones(2, 4), r"a linear layer itself; put it into a torch.nn.Sequential"),
        (nn.Sequential(linear(4, 4)), torch.ones(2, 5), "example: the model does not accept it"),
        (nn.Sequential(linear(4, 4)), torch.ones(2, 4, dtype=torch.long), "example: the model does not accept it"),
        (nn.Sequential(linear(4, 4)), (torch.ones(2, 4),) * 2, "example: the model does not accept it"),
        (nn.Sequential(linear(4, 4)), {"x": torch.ones(2, 4)}, "example: the model does not accept it"),
        (nn.Sequential(linear(4, 4)), None, "example: the model does not accept it"),
        (nn.Sequential(linear(4, 4)), torch.full((2, 4), torch.nan), "example: the model's outputs are not all finite"),
        (nn.Sequential(linear(4, 4), nn.Linear(4, 4, device="meta")), torch.ones(2, 4), "several devices .cpu, meta"),
        (nn.Sequential(linear(4, 4), nn.LazyLinear(4)), torch.ones(2, 4), "has no shape yet"),
    ],
)
def test_what_cannot_be_accelerated(model: nn.Module, example: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        isp.accelerate(model, example, measure=measure_as(CSR))


def test_a_call_under_autocast_is_refused() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    with pytest.raises(ConfigError, match="forward: calls the model under autocast"):
        isp.accelerate(nn.Sequential(linear(4, 4)), torch.ones(2, 4), forward=forward, measure=measure_as(CSR))


def test_a_model_without_tensors_and_one_that_is_accelerated() -> None:
    model, x = nn.Sequential(linear(4, 4)), torch.ones(2, 4)
    with pytest.raises(ConfigError, match="must return a tensor, got str"):
        isp.accelerate(model, x, forward=lambda model, x: "text", measure=measure_as(CSR))
    fast, _ = isp.accelerate(model, x, measure=measure_as(CSR))
    with pytest.raises(ConfigError, match="already accelerated"):
        isp.accelerate(fast, x)
    with pytest.raises(ConfigError, match=r"tolerance must be in \(0, 1\), got 2"):
        isp.accelerate(model, x, tolerance=2)


def test_other_inputs_than_a_layer_was_made_for() -> None:
    fast, _ = isp.accelerate(nn.Sequential(linear(4, 4)), torch.ones(2, 4), measure=measure_as(CSR))
    for wrong in (torch.ones(2, 5), torch.ones(2, 4, dtype=torch.float64)):
        with pytest.raises(ConfigError, match=r"accelerated for inputs of 4 columns, torch\.float32 on cpu"):
            fast(wrong)


def test_outputs_beyond_the_tolerance_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Csr, "product", lambda self, x: x[:, :4] + 1)
    model = nn.Sequential(linear(4, 4))
    with pytest.raises(IspError, match=r"more than the tolerance of 1.0e-04; the model was not changed"):
        isp.accelerate(model, torch.ones(2, 4), measure=measure_as(CSR))
    assert type(model[0]) is nn.Linear


def test_half_precision_on_the_cpu_stays_dense() -> None:
    model = nn.Sequential(linear(16, 8)).to(torch.bfloat16)
    _, report = isp.accelerate(model, torch.randn(4, 16, dtype=torch.bfloat16), measure=measure_as(CSR))
    assert report.layers[0].seconds.keys() == {DENSE}


def test_the_pattern_2_4() -> None:
    assert follows_2_4(torch.tensor([[1.0, 0, 2, 0, 0, 0, 3, 4]]))
    assert not follows_2_4(torch.tensor([[1.0, 0, 2, 3, 0, 0, 0, 4]]))
    assert not follows_2_4(torch.zeros(2, 6))


@pytest.mark.parametrize("batch_first", [True, False])
def test_accelerated_attention_takes_empty_batches_and_single_sequences(batch_first: bool) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    in_proj, out_proj = nn.Linear(8, 24), dense.out_proj
    in_proj.weight, in_proj.bias = dense.in_proj_weight, dense.in_proj_bias
    fast = Attention(dense, in_proj, out_proj)
    mask = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    empty = torch.randn(0, 4, 8) if batch_first else torch.randn(4, 0, 8)
    with torch.no_grad():
        for x in (torch.randn(4, 8), empty):
            for masked in (None, mask):
                expected = dense(x, x, x, need_weights=False, attn_mask=masked)[0]
                found = fast(x, x, x, need_weights=False, attn_mask=masked)[0]
                torch.testing.assert_close(found, expected)


def test_a_model_that_cannot_be_copied_is_refused_with_the_attribute() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[1].stream = (number for number in range(3))
    problem = r"attribute 'stream' of module '1' \(ReLU\) cannot be copied \(cannot pickle 'generator' object\)"
    for shared in (False, True):
        with pytest.raises(ConfigError, match=problem):
            copy_of(model, shared)
