"""Inference with sparse models: forms of a whole model side by side, as factors over dense torch.

    python benchmarks/inference.py [--models bert_base minilm vit_b32] [--sparsities 0.5 0.7 0.8 0.9 0.95 0.98]
        [--batch 1 8] [--threads 1 2] [--length 128] [--rounds 5]
        [--torch-only] [--sizes]
    python benchmarks/inference.py --ticket results/…/ticket.safetensors [--batch 1] [--threads 1]

Random weights, random masks of the same sparsity in every layer of the encoder. All forms of a line take turns in this
process; a figure is the median over rounds of dense torch's time in the round over the form's: CPU time with one
thread, otherwise elapsed time. onnxruntime (with onnx), OpenVINO, numba and zstandard are left out where they are not
installed, the first two also by `--torch-only`. `--sizes` prints bytes of the tensors instead: dense, compressed by
zstd, and as kept values with a bit per weight. `--ticket` takes a ticket of a study in the current folder and scores
the validation examples with its model, before and after `isp.accelerate`.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isp
from isp import artifacts
from isp.acceleration import CSR, DENSE, NUMBA, ONEDNN, Report
from isp.definitions import backbone_of, task_of
from isp.evaluation import evaluate
from isp.prunable import prunable_names
from isp.workflow import paths


class Encoder(nn.Module):
    """A BERT that takes token ids and returns its pooled output."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
        )
        self.bert = BertModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Pooled outputs, (n, width)."""
        pooled: Tensor = self.bert(input_ids=ids).pooler_output
        return pooled


def vit() -> nn.Module:
    """The image tower of CLIP ViT-B/32."""
    import open_clip

    tower: nn.Module = open_clip.create_model("ViT-B-32").visual
    return tower


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert_base": lambda: Encoder(768, 12, 12),
    "minilm": lambda: Encoder(384, 6, 12),
    "vit_b32": vit,
}


def build(name: str) -> nn.Module:
    """A model with random weights, the same every time."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def sparse(model: nn.Module, sparsity: float) -> tuple[nn.Module, list[str]]:
    """A copy with random weights of every prunable layer set to zero, and the names of these weights."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    names = [name for name in prunable_names(model) if parameters[name].dim() == 2 and "pooler" not in name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            parameters[name] *= torch.rand(parameters[name].shape, generator=generator) >= sparsity
    return model, names


def inputs(name: str, batch: int, length: int) -> Tensor:
    """Random inputs of a model."""
    if name == "vit_b32":
        return torch.randn(batch, 3, 224, 224)
    return torch.randint(1000, 30000, (batch, length))


def everywhere(model: nn.Module, example: Tensor, form: str) -> nn.Module:
    """A copy of a model with a form in every layer that has it."""

    def prefer(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        return {name: 1.0 if name in (form, "accelerated", "replaced") else 2.0 for name in calls}

    return isp.accelerate(model, example, measure=prefer)[0]


def onnxruntime_form(model: nn.Module, example: Tensor, threads: int) -> Callable[[], Any]:
    """The dense model in onnxruntime."""
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (example,), file, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": example.numpy()})


def openvino_form(model: nn.Module, example: Tensor, threads: int, precision: str) -> Callable[[], Any]:
    """The dense model in OpenVINO."""
    import openvino

    converted = openvino.convert_model(model, example_input=example)
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(converted, "CPU", hints)
    return lambda: compiled([example.numpy()])


def others(model: nn.Module, example: Tensor, threads: int) -> dict[str, Callable[[], Any]]:
    """Dense forms that do not depend on sparsity: other libraries, and bfloat16."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    x = example if example.dtype == torch.long else example.to(torch.bfloat16)
    forms: dict[str, Callable[[], Any]] = {"bf16": lambda: half(x)}
    makers: dict[str, tuple[tuple[str, ...], Callable[[], Callable[[], Any]]]] = {
        "onnxruntime": (("onnxruntime", "onnx"), lambda: onnxruntime_form(model, example, threads)),
        "openvino": (("openvino",), lambda: openvino_form(model, example, threads, "f32")),
        "openvino bf16": (("openvino",), lambda: openvino_form(model, example, threads, "bf16")),
    }
    for name, (packages, make) in makers.items():
        if all(find_spec(package) for package in packages):
            try:
                forms[name] = make()
            except Exception as error:  # an exporter that does not know an operator, for instance
                print(f"{name} is left out: {type(error).__name__}: {error!s:.200}", flush=True)
    return forms


def factors(calls: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], float]:
    """Median over rounds of dense torch's time over that of each form, and dense torch's median in seconds."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = clock()
            call()
            if turn:  # the first one warms up
                times[name].append(clock() - begin)
    dense = times[DENSE]
    ratios = {name: statistics.median(a / b for a, b in zip(dense, own, strict=True)) for name, own in times.items()}
    return ratios, statistics.median(dense)


def compare(arguments: argparse.Namespace, name: str, batch: int, threads: int) -> None:
    """Print a line for each sparsity."""
    torch.set_num_threads(threads)
    model, example = build(name), inputs(name, batch, arguments.length)
    rest = {} if arguments.torch_only else others(model, example, threads)
    for sparsity in arguments.sparsities:
        masked, _ = sparse(model, sparsity)
        report: Report
        chosen, report = isp.accelerate(masked, example)
        forms = {form: everywhere(masked, example, form) for form in (ONEDNN, CSR, NUMBA) if available(form)}
        calls = {form: bound(module, example) for form, module in {DENSE: masked, **forms}.items()}
        calls = {**calls, "isp.accelerate": bound(chosen, example), **rest}
        ratios, seconds = factors(calls, arguments.rounds)
        best = max(ratios[form] for form in (DENSE, ONEDNN) if form in ratios)
        cells = "  ".join(f"{form} {ratio:.2f}" for form, ratio in ratios.items() if form != DENSE)
        print(
            f"{name} batch {batch}, {threads} threads, sparsity {sparsity}: dense {1000 * seconds:.0f} ms;  {cells};  "
            f"isp.accelerate over the best dense form of torch {ratios['isp.accelerate'] / best:.2f}; {report.choices}",
            flush=True,
        )


def available(form: str) -> bool:
    """Whether this installation has a form."""
    return {NUMBA: find_spec("numba") is not None, ONEDNN: torch.backends.mkldnn.is_available()}.get(form, True)


def bound(model: nn.Module, example: Any) -> Callable[[], Any]:
    """A call of a model."""
    return lambda: model(example)


def sizes(arguments: argparse.Namespace, name: str) -> None:
    """Print bytes of a model's tensors."""
    for sparsity in arguments.sparsities:
        model, names = sparse(build(name), sparsity)
        state = model.state_dict()
        dense = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        kept = sum(int(state[each].count_nonzero()) for each in names)
        weights = sum(state[each].numel() for each in names)
        compact = dense - 4 * weights + 4 * kept + -(-weights // 8)
        line = f"{name} sparsity {sparsity}: dense {dense / 1e6:.0f} MB, kept values and bits {compact / 1e6:.0f} MB"
        if find_spec("zstandard"):
            import zstandard

            packer = zstandard.ZstdCompressor(level=3)
            packed = sum(len(packer.compress(tensor.numpy().tobytes())) for tensor in state.values())
            line += f", zstd {packed / 1e6:.0f} MB"
        print(line, flush=True)


def real(path: Path, batch: int, threads: int, rounds: int) -> None:
    """Print a ticket's scores of the validation examples and the time of a batch, before and after."""
    torch.set_num_threads(threads)
    ticket = isp.load_ticket(path)
    origin = ticket.origin
    backbone, task = backbone_of(origin["backbone"]), task_of(origin["task"])
    model = backbone.restore(ticket.weights, origin["architecture"]).eval()
    prepared = paths.PREPARED.format(backbone=origin["backbone"], task=origin["task"], split="validation")
    examples = backbone.examples(
        artifacts.load_examples(Path(prepared), "validation")[0], origin["architecture"], "none"
    )
    example, _ = examples.batch(torch.arange(batch))
    fast, report = isp.accelerate(model, example, forward=lambda module, inputs: module(inputs))
    print(report)
    for metric in task.metrics:
        before, after = (evaluate(each, examples, [metric])[metric] for each in (model, fast))
        print(f"{metric} of {len(examples)} validation examples: {before:.2f} before, {after:.2f} after")
    ratios, seconds = factors({DENSE: bound(model, example), "isp.accelerate": bound(fast, example)}, rounds)
    print(f"batch {batch}, {threads} threads: dense {1000 * seconds:.1f} ms, factor {ratios['isp.accelerate']:.2f}")


def main() -> None:
    """Compare all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-only", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--ticket", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with torch.inference_mode(False), torch.no_grad():
        if arguments.ticket:
            real(arguments.ticket, arguments.batch[0], arguments.threads[0], arguments.rounds)
            return
        for name in arguments.models:
            if arguments.sizes:
                sizes(arguments, name)
                continue
            for batch in arguments.batch:
                for threads in arguments.threads:
                    compare(arguments, name, batch, threads)


if __name__ == "__main__":
    main()
