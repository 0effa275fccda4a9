"""Inference with a pruned model whose linear layers each use the form that is fastest here, chosen by timing.

A linear layer with many zeros can be computed from its kept weights alone. Whether this pays off depends on its
sparsity and size, the number of tokens, the threads and the processor, and on the best time of the dense layer.
`accelerate` therefore times every form that this installation supports, on the inputs that the layer receives for an
example:

- `dense`: the unchanged layer (computed by MKL on Intel's and AMD's processors);
- `onednn`: dense, computed by oneDNN from weights in its preferred order;
- `csr`: sparse, torch's compressed sparse rows (MKL);
- `numba`: sparse, a kernel compiled by numba (`isp.sparse_kernel`), if numba is installed;
- `2:4`: sparse, on a GPU, if at least two of every four weights along the input are zero.

A layer that is timed alone finds its weights in the processor's caches, which may not be true inside the model. The
whole model is therefore timed as well: unchanged, with each form in all layers that have it, and with the form of each
layer that was fastest alone.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isp.errors import ConfigError, IspError, expect, reason
from isp.forms import CSR, DENSE, ONEDNN, SPARSE, Attention, Form, attends_to_itself, difference, forms_of
from isp.prunable import is_conv1d
from isp.tensors import check_module, copy_of

Call = Callable[[], Any]
Measure = Callable[[Mapping[str, Call]], Mapping[str, float]]

MIXED = "mixed"
"""Key of the whole model in which each layer has the form that was fastest for it alone."""
MARGIN = 0.03
"""Smallest relative saving of time for which a form of a layer replaces a simpler one."""
WHOLE_MARGIN = 0.01
"""The same for a whole model, which is measured several times."""
REPEATS = 5
MOST_REPEATS = 40
LEAST_SECONDS = 0.02
"""Total seconds up to which short calls are repeated more often."""
NEAR = 1.2
"""Largest ratio to the fastest form of a whole model up to which a form is measured again."""
REMEASURED = 4
"""Number of these measurements."""
TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest absolute output; sums are added in a different order."""
HALF_TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""The same for models with such weights: about five units in the last place of the largest output."""


@dataclass(frozen=True)
class Layer:
    """A linear layer and the times of its forms.

    Attributes:
        name: Name in the model; the projections of attention have the names of their weights' modules.
        outputs: Number of outputs.
        inputs: Number of inputs.
        tokens: Number of input vectors in the example; 0 if the example does not reach the layer.
        sparsity: Fraction of its weights that are zero.
        seconds: Median seconds by form; empty if nothing was timed.
        choice: Form that computes the layer now.
    """

    name: str
    outputs: int
    inputs: int
    tokens: int
    sparsity: float
    seconds: Mapping[str, float]
    choice: str


@dataclass(frozen=True)
class Report:
    """Measurements and choices of `accelerate`.

    Attributes:
        layers: Linear layers in the order of the model.
        whole: Median seconds of the whole model on the example: by form, where all layers that have the form use it,
            and `mixed`, where each layer uses the form that is fastest for it alone.
        dense_seconds: Median seconds of the original model on the example.
        seconds: Median seconds of the accelerated model, on the example.
        difference: Largest difference of outputs, relative to the largest absolute output.
        threads: Number of torch's threads.
        device: Device of the model.
    """

    layers: tuple[Layer, ...]
    whole: Mapping[str, float]
    dense_seconds: float
    seconds: float
    difference: float
    threads: int
    device: str

    @property
    def choices(self) -> dict[str, int]:
        """Number of layers by chosen form."""
        forms = [layer.choice for layer in self.layers]
        return {form: forms.count(form) for form in (DENSE, ONEDNN, *SPARSE) if form in forms}

    def summary(self) -> str:
        """Return one line with both times, their ratio, and the chosen forms."""
        forms = ", ".join(f"{form} {number}" for form, number in self.choices.items())
        ratio = self.dense_seconds / self.seconds if self.seconds else float("nan")
        return (
            f"{1000 * self.dense_seconds:.2f} ms as it was, {1000 * self.seconds:.2f} ms accelerated ({ratio:.2f} "
            f"times faster, {self.threads} thread{'s' * (self.threads > 1)}, {self.device}); layers by form: {forms}"
        )

    def __str__(self) -> str:
        timed = [form for form in (DENSE, ONEDNN, *SPARSE) if any(form in layer.seconds for layer in self.layers)]
        rows = [["layer", "size", "tokens", "sparsity", *(f"{form} ms" for form in timed), "choice"]]
        for layer in self.layers:
            times = [f"{1000 * layer.seconds[form]:.3f}" if form in layer.seconds else "" for form in timed]
            size = f"{layer.outputs} x {layer.inputs}"
            rows.append([layer.name, size, f"{layer.tokens}", f"{layer.sparsity:.4f}", *times, layer.choice])
        times = [f"{1000 * self.whole[form]:.3f}" if form in self.whole else "" for form in timed]
        mixed = f"mixed: {1000 * self.whole[MIXED]:.3f}" if MIXED in self.whole else ""
        rows.append(["whole model", "", "", "", *times, mixed])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        if CSR in timed and find_spec("numba") is None:
            lines.append("numba is not installed, so its kernel was not tried: pip install '.[accelerate]' in a clone")
        return "\n".join([*lines, self.summary()])


def interleaved_medians(calls: Mapping[str, Call]) -> dict[str, float]:
    """Time calls in turn, so that a drift of the machine's speed affects all alike.

    Args:
        calls: Functions by name.

    Returns:
        Median seconds of each: CPU time of this process if torch has one thread and uses no GPU, otherwise wall time.
    """
    clock = time.perf_counter if torch.get_num_threads() > 1 or _gpu_in_use() else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(MOST_REPEATS + 1):
        if turn > REPEATS and min(map(sum, times.values())) >= LEAST_SECONDS:
            break
        for name, call in calls.items():
            _synchronize()
            begin = clock()
            call()
            _synchronize()
            if turn:  # the first call warms up
                times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def _gpu_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _synchronize() -> None:
    if _gpu_in_use():
        torch.cuda.synchronize()


def accelerate(
    model: nn.Module,
    example: Any,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    tolerance: float | None = None,
    measure: Measure = interleaved_medians,
) -> tuple[nn.Module, Report]:
    """Make a copy of a pruned model for inference, in which every linear layer has the form that is fastest here.

    The copy shares all other tensors with the model, which is not changed. It has no dense weights in replaced layers,
    so save the ticket or the model, not the copy. The choice suits inputs of the example's size, the current number of
    threads and this machine; other inputs are computed correctly, but may not be as fast.

    Args:
        model: Pruned model, with weights in float32 on the CPU (on a GPU also float16 or bfloat16).
        example: Typical inputs of the model: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        forward: Function that calls a model with the example; None: `model(example)`, `model(*example)` or
            `model(**example)`.
        tolerance: Largest difference of outputs, relative to the largest absolute output, in (0, 1). None: 1e-4, or if
            linear layers have weights in float16 or bfloat16, 5e-3 or 4e-2.
        measure: Function that returns the seconds of each of some calls, by name.

    Returns:
        The copy, in evaluation mode, and a report to print. Calling the copy in training mode and a backward pass
        through it are errors.

    Raises:
        ConfigError: If the model has no sparse linear layer, is on several devices, is already accelerated, does not
            accept the example, returns values for it that are not finite, or is called under autocast; or if the
            tolerance is out of range.
        IspError: If the outputs differ by more than the tolerance.
    """
    check_module("model", model)
    if tolerance is not None:
        expect("tolerance", tolerance, "a number in (0, 1), or None", Real)
        if not 0 < tolerance < 1:
            raise ConfigError(f"tolerance must be in (0, 1), got {tolerance!r}")
    device = _check(model)
    tolerance = tolerance or max(HALF_TOLERANCES.get(dtype, TOLERANCE) for dtype in _dtypes(model))
    run = forward or _call
    copied = copy_of(model, shared=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        inputs, before = _observe(copied, example, run)
        if not all(tensor.isfinite().all() for tensor in before):
            raise ConfigError("example: the model's outputs are not all finite, so they cannot be compared")
        layers: list[Layer] = []
        variants: dict[str, _Variant] = {form: _Variant() for form in (ONEDNN, *SPARSE, MIXED)}
        for name, module in _units(copied):
            measured, choices = _choose(name, module, inputs.get(name), measure, tolerance)
            layers += measured
            for form, variant in variants.items():
                variant.add(name, choices.get(form, choices[MIXED]))
        models = {DENSE: copied}
        forms = {DENSE: [DENSE] * len(layers)}
        for form, variant in variants.items():
            if variant.forms not in (forms[DENSE], variants[MIXED].forms if form != MIXED else None):
                models[form], forms[form] = copy_of(model, shared=True), variant.forms
                for name, module in variant.modules.items():
                    models[form].set_submodule(name, module)
        differences = {form: _check_outputs(each, example, run, before) for form, each in models.items()}
        seconds = _time_models({form: partial(run, each, example) for form, each in models.items()}, measure)
        choice = fastest(seconds, WHOLE_MARGIN)
        if not differences[choice] <= tolerance:
            raise IspError(
                f"the accelerated model's outputs differ by {differences[choice]:.1e} of the largest output, more than "
                f"the tolerance of {tolerance:.1e}; the model was not changed"
            )
    return models[choice], Report(
        layers=tuple(replace(layer, choice=form) for layer, form in zip(layers, forms[choice], strict=True)),
        whole=seconds,
        dense_seconds=seconds[DENSE],
        seconds=seconds[choice],
        difference=differences[choice],
        threads=torch.get_num_threads(),
        device=str(device),
    )


def _time_models(calls: Mapping[str, Call], measure: Measure) -> dict[str, float]:
    """Return the seconds of each form of a whole model; those near the fastest are the median of several measurements.

    One measurement of few calls, with two threads even more so, is noisier than the difference between dense forms.
    """
    timed = measure({_key(form): call for form, call in calls.items()})
    seconds = {form: timed[_key(form)] for form in calls}
    near = [form for form in calls if seconds[form] <= NEAR * min(seconds.values())]
    if len(near) > 1:
        again = [measure({_key(form): calls[form] for form in near}) for _ in range(REMEASURED)]
        seconds |= {form: statistics.median([seconds[form], *(each[_key(form)] for each in again)]) for form in near}
    return seconds


class _Choice(NamedTuple):
    """Replacement of a unit.

    Attributes:
        module: Module in place of the unit; None if it stays.
        forms: Forms of its linear layers.
    """

    module: nn.Module | None
    forms: list[str]


@dataclass
class _Variant:
    """One way to compute a whole model: replacements of its units, by name, and the forms of its linear layers."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)

    def add(self, name: str, choice: _Choice) -> None:
        """Add the choice for a unit."""
        if choice.module is not None:
            self.modules[name] = choice.module
        self.forms += choice.forms


def _key(form: str) -> str:
    """Return the name under which a whole model is timed."""
    return {DENSE: DENSE, MIXED: "accelerated"}.get(form, f"{form} everywhere")


def _check_outputs(
    model: nn.Module, example: Any, run: Callable[[nn.Module, Any], Any], before: Sequence[Tensor]
) -> float:
    """Compute the outputs of a model with replaced layers, and compare them.

    Returns:
        Largest difference, relative to the largest absolute output.

    Raises:
        IspError: If the model fails.
    """
    try:
        return difference(before, _run(model, example, run))
    except ConfigError as error:
        raise IspError(
            f"the accelerated model fails on the example ({error}), perhaps because a module needs torch's own "
            "linear layers; the model was not changed"
        ) from error


def _check(model: nn.Module) -> torch.device:
    """Check that a model can be accelerated.

    Returns:
        Device of the model.

    Raises:
        ConfigError: If it cannot be accelerated.
    """
    if any(isinstance(module, Form) for module in model.modules()):
        raise ConfigError("the model is already accelerated; accelerate the original model")
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ConfigError(f"parameter {lazy[0]!r} has no shape yet; call the model once before accelerating it")
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ConfigError(f"the model is on several devices ({names}); move it to one of them first")
    linear = [module for _, unit in _units(model) for _, module in _linears("", unit)]
    if not any((module.weight == 0).any() for module in linear):
        kept = (
            f"none of its {len(linear)} linear layers has a weight of zero"
            if linear
            else "it is a linear layer itself; put it into a torch.nn.Sequential"
            if isinstance(model, nn.Linear)
            else "it has no linear layers that can be replaced"
        )
        raise ConfigError(f"the model has no sparse layers: {kept}; pass a pruned model")
    return devices.pop()


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    """Return the dtypes of the weights of a model's linear layers."""
    return {linear.weight.dtype for name, unit in _units(model) for _, linear in _linears(name, unit)}


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _run(model: nn.Module, example: Any, run: Callable[[nn.Module, Any], Any]) -> list[Tensor]:
    """Return the output tensors of a model for an example.

    Raises:
        ConfigError: If the model does not accept the example, or returns no tensor.
    """
    try:
        output = run(model, example)
    except IspError:
        raise
    except Exception as error:  # any error of the model's code
        raise ConfigError(f"example: the model does not accept it ({reason(error)})") from error
    tensors = list(_tensors(output))
    if not tensors:
        raise ConfigError(f"example: the model must return a tensor, got {type(output).__name__}")
    return tensors


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (tensor for value in output.values() for tensor in _tensors(value))
    elif isinstance(output, Sequence) and not isinstance(output, str):
        yield from (tensor for value in output for tensor in _tensors(value))


# --- the layers of a model --------------------------------------------------------------------------------------------


def _units(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return linear layers and attention modules, by name, whose forward pass is known and that have no hooks."""
    attention = {name: module for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    inside = {f"{name}.out_proj" for name in attention}
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer):  # in evaluation mode it reads all weights directly
            inside |= {f"{name}.{inner}".removeprefix(".") for inner, _ in module.named_modules() if inner}
    units: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not name or name in inside or _hooked(module):
            continue
        if name in attention:
            plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
            if type(module) is nn.MultiheadAttention and plain and not _hooked(module.out_proj):
                units.append((name, module))
        elif (
            (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or is_conv1d(module)
        ) and module.weight.numel():
            units.append((name, module))
    return units


def _hooked(module: nn.Module) -> bool:
    """Return whether a module has hooks or parametrizations, which a replacement would lose."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def _linears(name: str, unit: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers of a unit as modules that share its tensors."""
    if isinstance(unit, nn.MultiheadAttention):
        inner = _as_linear(unit.in_proj_weight, unit.in_proj_bias)
        return [(f"{name}.in_proj", inner), (f"{name}.out_proj", unit.out_proj)]
    if is_conv1d(unit):
        module: Any = unit
        return [(name, _as_linear(module.weight.T, module.bias))]
    assert isinstance(unit, nn.Linear)
    return [(name, unit)]


def _as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return layer.eval()


@dataclass(frozen=True)
class _Inputs:
    """Arguments of a unit in the call of the example with the largest input."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def size(self) -> int:
        """Number of elements of the first tensor."""
        return next((tensor.numel() for tensor in _tensors([*self.args, *self.kwargs.values()])), 0)

    @property
    def under_autocast(self) -> bool:
        """Whether the unit is called under autocast now."""
        tensors = _tensors([*self.args, *self.kwargs.values()])
        return any(torch.is_autocast_enabled(tensor.device.type) for tensor in tensors)


def _observe(
    model: nn.Module, example: Any, run: Callable[[nn.Module, Any], Any]
) -> tuple[dict[str, _Inputs], list[Tensor]]:
    """Return the inputs of each unit, by name, and the outputs of the model."""
    inputs: dict[str, _Inputs] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _Inputs(args, kwargs)
            if given.under_autocast:
                raise ConfigError(
                    "forward: calls the model under autocast, whose conversions would not reach the accelerated "
                    "layers; call it without autocast"
                )
            if name not in inputs or given.size > inputs[name].size:
                inputs[name] = given

        return keep

    handles = [
        unit.register_forward_pre_hook(hook(name), with_kwargs=True, prepend=True) for name, unit in _units(model)
    ]
    try:
        return inputs, _run(model, example, run)
    finally:
        for handle in handles:
            handle.remove()


def _choose(
    name: str, unit: nn.Module, given: _Inputs | None, measure: Measure, tolerance: float
) -> tuple[list[Layer], dict[str, _Choice]]:
    """Time the forms of a unit's linear layers.

    Returns:
        Layers, and replacements of the unit: for each form that one of them has, and for the fastest (`MIXED`).
    """
    linears = _linears(name, unit)
    attention = isinstance(unit, nn.MultiheadAttention)
    if given is None or (attention and not attends_to_itself(given.args, given.kwargs)):
        return [_layer(name, linear, 0, {}, DENSE) for name, linear in linears], {
            MIXED: _Choice(None, [DENSE] * len(linears))
        }
    layers: list[Layer] = []
    offered: list[dict[str, nn.Module]] = []
    first = next(_tensors([*given.args, *given.kwargs.values()]))
    for number, (inner, linear) in enumerate(linears):
        x = first if number == 0 or not attention else torch.zeros_like(first).copy_(first)
        forms = forms_of(linear, x, tolerance)
        seconds = measure({form: _bound(module, x) for form, module in forms.items()})
        offered.append(forms)
        layers.append(_layer(inner, linear, x.numel() // x.shape[-1], seconds, fastest(seconds)))

    def replaced(wanted: list[str]) -> _Choice:
        if all(form == DENSE for form in wanted):
            return _Choice(None, wanted)
        modules = [forms[form] for forms, form in zip(offered, wanted, strict=True)]
        return _Choice(Attention(unit, *modules) if attention else modules[0], wanted)  # type: ignore[arg-type]

    choices = {
        form: replaced([form if form in forms else DENSE for forms in offered])
        for form in (ONEDNN, *SPARSE)
        if any(form in forms for forms in offered)
    }
    mixed = replaced([layer.choice for layer in layers])
    if attention and mixed.module is not None:
        both = {DENSE: unit, "replaced": mixed.module}
        seconds = measure({form: _bound(module, *given.args, **given.kwargs) for form, module in both.items()})
        if seconds["replaced"] > seconds[DENSE] * (1 - MARGIN):
            mixed = replaced([DENSE] * len(layers))
    return layers, {**choices, MIXED: mixed}


def _layer(name: str, linear: nn.Linear, tokens: int, seconds: Mapping[str, float], choice: str) -> Layer:
    return Layer(
        name=name,
        outputs=linear.out_features,
        inputs=linear.in_features,
        tokens=tokens,
        sparsity=float((linear.weight == 0).double().mean()),
        seconds=dict(seconds),
        choice=choice,
    )


def _bound(module: nn.Module, *args: Any, **kwargs: Any) -> Call:
    return lambda: module(*args, **kwargs)


def fastest(seconds: Mapping[str, float], margin: float = MARGIN) -> str:
    """Return the form to use: a more complex one only if it is faster by the margin.

    Args:
        seconds: Seconds by form, the simplest first.
        margin: Smallest relative saving of time, in [0, 1).
    """
    (choice, best), *others = seconds.items()
    for form, value in others:
        if value < best * (1 - margin):
            choice, best = form, value
    return choice
