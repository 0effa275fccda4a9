"""Inference with sparse models: whole models in several forms, as speedups over dense torch (MKL).

    python benchmarks/inference.py [--models bert_base minilm vit_b32] [--sparsities 0.5 0.7 0.8 0.9 0.95 0.98]
        [--batch 1 8] [--threads 1 2] [--length 128] [--rounds 7] [--seconds 120] [--forms onednn isp.accelerate ...]
        [--output FILE.csv]
    python benchmarks/inference.py --ticket results/…/ticket.safetensors [--batch 1] [--threads 1]
    python benchmarks/inference.py --tables FILE.csv
    python benchmarks/inference.py --sizes [--models bert_base] [--sparsities 0.5 0.9 0.95]

Models have random weights, and random masks of equal sparsity in every layer of the encoder. For each model, batch size
and number of threads, all forms at all sparsities take turns in one process. A result is the median over rounds of the
ratio of two times in the same round: CPU time with one thread, elapsed time with more. After at least three rounds, no
new round starts once `--seconds` have passed.

`--output` appends the results to a CSV file after each group. Results in the file are not measured again, so that the
benchmark can be run in parts. `--tables` prints the tables of docs/explanation/inference.md from the file. onnxruntime
(with onnx), OpenVINO, numba and zstandard are skipped if they are not installed. `--sizes` prints the bytes of the
tensors: dense, compressed by zstd, and as kept values with one bit per weight. `--ticket` scores the validation
examples with the model of a study's ticket in the current folder before and after `isp.accelerate`, and times a batch.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isp
from isp import artifacts, files
from isp.definitions import backbone_of, task_of
from isp.evaluation import evaluate
from isp.forms import CSR, DENSE, NUMBA, ONEDNN
from isp.prunable import prunable_names
from isp.workflow import paths

Calls = Mapping[str, Callable[[], Any]]
ACCELERATED, BF16, ORT, OV, OV_BF16 = "isp.accelerate", "bf16", "onnxruntime", "openvino", "openvino bf16"
CONTROL = "dense again"
"""The masked model itself, which computes the same as dense torch, so its factor shows the measurement error."""
DENSE_FORMS = (ONEDNN, BF16, ORT, OV, OV_BF16)
"""Forms other than dense torch whose time does not depend on sparsity."""
SPARSE_FORMS = (CSR, NUMBA, ACCELERATED)
COLUMNS = (
    "model", "batch", "length", "threads", "sparsity", "form", "milliseconds", "factor", "factor_low", "factor_high",
    "over_best", "over_best_low", "over_best_high", "rounds", "layers",
)  # fmt: skip
"""Columns of the CSV file. Milliseconds, factors over dense torch, and factors over the faster of dense torch and
oneDNN are medians (low and high: quartiles); layers counts the layers by the form that `isp.accelerate` chose. Dense
forms have no sparsity."""
LEAST_ROUNDS = 3


class Encoder(nn.Module):
    """BERT that maps token ids to its pooled output."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
        )
        self.bert = BertModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Return pooled outputs, (n, width)."""
        pooled: Tensor = self.bert(input_ids=ids).pooler_output
        return pooled


def vit() -> nn.Module:
    """Image tower of CLIP ViT-B/32."""
    import open_clip

    tower: nn.Module = open_clip.create_model("ViT-B-32").visual
    return tower


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert_base": lambda: Encoder(768, 12, 12),
    "minilm": lambda: Encoder(384, 6, 12),
    "vit_b32": vit,
}


def build(name: str) -> nn.Module:
    """Return a model with random weights, the same every time."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def of_encoder(model: nn.Module) -> list[str]:
    """Return the names of the prunable weights of the encoder's layers."""
    return [n for n in prunable_names(model) if model.get_parameter(n).dim() == 2 and "pooler" not in n]


def sparse(model: nn.Module, sparsity: float) -> tuple[nn.Module, list[str]]:
    """Return a copy with random weights of every prunable layer set to zero, and the names of the prunable weights."""
    model = copy.deepcopy(model)
    parameters, names = dict(model.named_parameters()), of_encoder(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            parameters[name] *= torch.rand(parameters[name].shape, generator=generator) >= sparsity
    return model, names


def inputs(name: str, batch: int, length: int) -> Tensor:
    """Return random inputs of a model."""
    if name == "vit_b32":
        return torch.randn(batch, 3, 224, 224)
    return torch.randint(1000, 30000, (batch, length))


def everywhere(
    model: nn.Module, example: Any, form: str, forward: Callable[[nn.Module, Any], Any] | None = None
) -> nn.Module:
    """Return a copy of a model with a form in every layer that supports it."""

    def prefer(calls: Calls) -> dict[str, float]:
        return {name: 1.0 if name in (form, "accelerated", "replaced") else 2.0 for name in calls}

    return isp.accelerate(model, example, forward=forward, measure=prefer)[0]


def onnxruntime_form(model: nn.Module, example: Tensor, threads: int) -> Callable[[], Any]:
    """Return the dense model in onnxruntime."""
    import onnxruntime

    file = io.BytesIO()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the exporter does not support its operator
    try:
        torch.onnx.export(model, (example,), file, input_names=["x"], dynamo=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": example.numpy()})


def openvino_form(model: nn.Module, example: Tensor, threads: int, precision: str) -> Callable[[], Any]:
    """Return the dense model in OpenVINO."""
    import openvino

    converted = openvino.convert_model(model, example_input=example)
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(converted, "CPU", hints)
    return lambda: compiled([example.numpy()])


def bf16_form(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    """Return the dense model in torch's bfloat16."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    return bound(half, example if example.dtype == torch.long else example.to(torch.bfloat16))


def dense_forms(
    model: nn.Module, onednn: nn.Module | None, example: Tensor, threads: int, forms: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """Return the requested forms that do not depend on sparsity: always dense torch, others if they are installed."""
    makers: dict[str, tuple[tuple[str, ...], Callable[[], Callable[[], Any]]]] = {
        BF16: ((), lambda: bf16_form(model, example)),
        ORT: (("onnxruntime", "onnx"), lambda: onnxruntime_form(model, example, threads)),
        OV: (("openvino",), lambda: openvino_form(model, example, threads, "f32")),
        OV_BF16: (("openvino",), lambda: openvino_form(model, example, threads, "bf16")),
    }
    calls = {DENSE: bound(model, example)}
    if onednn is not None:
        calls[ONEDNN] = bound(onednn, example)
    for name, (packages, make) in makers.items():
        if name in forms and all(find_spec(package) for package in packages):
            try:
                calls[name] = make()
            except Exception as error:  # e.g. an exporter that does not support an operator
                print(f"skipped {name}: {type(error).__name__}: {error!s:.200}", file=sys.stderr, flush=True)
    return calls


def timed(calls: Calls, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, in random order, without the first round, which is a warm-up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    order, shuffle = list(calls), random.Random(0).shuffle
    for turn in range(rounds + 1):
        if turn > LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        shuffle(order)  # the previous call may influence the time of a call
        for name in order:
            begin = clock()
            calls[name]()
            if turn:
                times[name].append(clock() - begin)
    return times


def quartiles(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the quartiles below and above it."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def figures(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return the columns of the CSV file by call: milliseconds, factors and rounds."""
    dense = times[DENSE]
    best = min((form for form in (DENSE, ONEDNN) if form in times), key=lambda form: statistics.median(times[form]))
    rows: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        row: dict[str, Any] = {"milliseconds": f"{1000 * statistics.median(seconds):.2f}", "rounds": len(seconds)}
        for column, reference in {"factor": dense, "over_best": times[best]}.items():
            values = quartiles([one / other for one, other in zip(reference, seconds, strict=True)])
            keys = (column, f"{column}_low", f"{column}_high")
            row |= {key: f"{value:.3f}" for key, value in zip(keys, values, strict=True)}
        rows[name] = row
    return rows


def compare(arguments: argparse.Namespace, name: str, done: list[dict[str, Any]]) -> None:
    """Measure the missing results of a model, print them and add them to the rows of the file."""
    # All other forms are copies as well, and a model fresh from initialisation was up to 16 % slower than its own copy.
    model = copy.deepcopy(build(name))
    groups: dict[tuple[int, int], list[float]] = {}
    for batch, threads in itertools.product(arguments.batch, arguments.threads):
        cell = {"model": name, "batch": batch, "length": arguments.length, "threads": threads}
        before = [row["sparsity"] for row in done if all(row[key] == f"{value}" for key, value in cell.items())]
        groups[batch, threads] = [each for each in arguments.sparsities if f"{each}" not in before]
    missing = sorted({sparsity for sparsities in groups.values() for sparsity in sparsities})
    torch.set_num_threads(max(arguments.threads))
    short = inputs(name, 1, arguments.length)
    masked = {sparsity: sparse(model, sparsity)[0] for sparsity in missing}
    fixed = {
        (form, sparsity): everywhere(masked[sparsity], short, form)
        for form, sparsity in itertools.product((CSR, NUMBA), missing)
        if form in arguments.forms and available(form)
    }
    for (batch, threads), sparsities in groups.items():
        if not sparsities:
            continue
        torch.set_num_threads(threads)
        example = inputs(name, batch, arguments.length)
        onednn = everywhere(masked[sparsities[0]], example, ONEDNN) if ONEDNN in arguments.forms else None
        calls = dense_forms(model, onednn, example, threads, arguments.forms)
        labels: dict[str, dict[str, Any]] = {form: {"form": form} for form in calls}
        for sparsity in sparsities:
            modules = {form: fixed[form, sparsity] for form in (CSR, NUMBA) if (form, sparsity) in fixed}
            if CONTROL in arguments.forms:
                modules[CONTROL] = masked[sparsity]
            chosen = {}
            if ACCELERATED in arguments.forms:
                modules[ACCELERATED], report = isp.accelerate(masked[sparsity], example)
                chosen[ACCELERATED] = " ".join(f"{form}:{number}" for form, number in report.choices.items())
            for form, module in modules.items():
                calls[f"{form} {sparsity}"] = bound(module, example)
                labels[f"{form} {sparsity}"] = {"form": form, "sparsity": f"{sparsity}", "layers": chosen.get(form, "")}
        cell = {"model": name, "batch": batch, "length": arguments.length, "threads": threads}
        for call, row in figures(timed(calls, arguments.rounds, arguments.seconds)).items():
            done.append({**dict.fromkeys(COLUMNS, ""), **cell, **labels[call], **row})
            print(", ".join(f"{key} {value}" for key, value in done[-1].items() if value != ""), flush=True)
        if arguments.output:
            files.write_csv(arguments.output, done, COLUMNS)


NAMES = {"bert_base": "BERT-base", "minilm": "MiniLM", "vit_b32": "ViT-B/32"}


def tables(path: Path) -> None:
    """Print the tables of docs/explanation/inference.md."""
    rows = files.read_csv(path, "benchmarks/inference.py --output")
    groups = list(dict.fromkeys((row["model"], row["threads"], row["batch"]) for row in rows))
    groups.sort(key=lambda group: (list(NAMES).index(group[0]), group[1:]))
    sparsities = sorted({row["sparsity"] for row in rows} - {""}, key=float)

    def cell(group: tuple[str, str, str], form: str, sparsity: str, column: str) -> str:
        values = [
            float(row[column])
            for row in rows
            if (row["model"], row["threads"], row["batch"], row["form"], row["sparsity"]) == (*group, form, sparsity)
        ]
        return f"{statistics.median(values):.2f}" if values else ""

    def show(title: Sequence[str], lines: Sequence[tuple[tuple[str, str, str], Sequence[str]]]) -> None:
        print("| model | threads | batch |", " | ".join(title), "|")
        print("|" + "---|" * (3 + len(title)))
        for (model, threads, batch), values in lines:
            print(f"| {NAMES[model]} | {threads} | {batch} |", " | ".join(values), "|")
        print()

    print("Dense forms, factors over dense torch (MKL)\n")
    show(DENSE_FORMS, [(group, [cell(group, form, "", "factor") for form in DENSE_FORMS]) for group in groups])
    for form, column in ((ACCELERATED, "over_best"), *((form, "factor") for form in SPARSE_FORMS)):
        print(form, "over the best dense form in torch\n" if column == "over_best" else "over dense torch (MKL)\n")
        show(sparsities, [(group, [cell(group, form, each, column) for each in sparsities]) for group in groups])


def available(form: str) -> bool:
    """Return whether this installation supports a form."""
    return {NUMBA: find_spec("numba") is not None, ONEDNN: torch.backends.mkldnn.is_available()}.get(form, True)


def bound(model: nn.Module, example: Any) -> Callable[[], Any]:
    """Return a function that calls a model."""
    return lambda: model(example)


def sizes(arguments: argparse.Namespace, name: str) -> None:
    """Print the bytes of a model's tensors."""
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


def real(path: Path, batch: int, threads: int, rounds: int, seconds: float) -> None:
    """Print a ticket's validation scores and the time of a batch, before and after `isp.accelerate`."""
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
    print(f"largest difference of the example's outputs, relative to the largest output: {report.difference:.1e}")
    for metric in task.metrics:
        before, after = (evaluate(each, examples, [metric])[metric] for each in (model, fast))
        print(f"{metric} of {len(examples)} validation examples: {before:.4f} before, {after:.4f} after")
    calls = {DENSE: bound(model, example)}
    for form in (ONEDNN, CSR, NUMBA):
        if available(form):
            calls[form] = bound(everywhere(model, example, form, lambda module, inputs: module(inputs)), example)
    calls[ACCELERATED] = bound(fast, example)
    for form, row in figures(timed(calls, rounds, seconds)).items():
        print(
            f"batch {batch}, threads {threads}, {form}: {row['milliseconds']} ms; over dense torch {row['factor']} "
            f"({row['factor_low']} to {row['factor_high']}), over its best dense form {row['over_best']} "
            f"({row['over_best_low']} to {row['over_best_high']})"
        )


def main() -> None:
    """Run the requested comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=120)
    forms = [*DENSE_FORMS, *SPARSE_FORMS]
    parser.add_argument("--forms", nargs="+", default=forms, choices=[*forms, CONTROL])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--ticket", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}, got {arguments.rounds}")
    if arguments.tables:
        tables(arguments.tables)
        return
    warnings.filterwarnings("ignore")
    with torch.no_grad():
        if arguments.ticket:
            real(arguments.ticket, arguments.batch[0], arguments.threads[0], arguments.rounds, arguments.seconds)
            return
        done: list[dict[str, Any]] = []
        if arguments.output and arguments.output.exists():
            done = [dict(row) for row in files.read_csv(arguments.output, "benchmarks/inference.py --output")]
        for name in arguments.models:
            if arguments.sizes:
                sizes(arguments, name)
            else:
                compare(arguments, name, done)


if __name__ == "__main__":
    main()
