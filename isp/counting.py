"""Counters of the cost of work while it is done: FLOPs of a training step by weight, and those of any other work."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.backends.mha
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from isp.costs import Cost, StepFlops
from isp.errors import IspError
from isp.memory import Memory
from isp.replacing import replaced, weight_norm_as
from isp.rng import forked_rng
from isp.tensors import remember_buffers


def count_step_flops(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any, prunable: list[str]
) -> StepFlops:
    """Count the FLOPs of one training step by running it once; gradients are cleared, weights and buffers are restored.

    A weight's share is determined by following its memory, and that of its scaled or cast copies, into the matrix
    products of the forward pass and of the gradient of its input. The gradient of the weight itself costs as much as
    the forward pass. A warning names a weight that only other operations read, because its layer counts nothing.

    Raises:
        IspError: The step calls a higher-order operation, such as `torch.cond`.
    """
    weights = {name: parameter for name, parameter in model.named_parameters() if name in set(prunable)}
    memory = Memory(weights)
    forward, backward = _Flops(memory, follow=True), _Flops(memory)
    restore_buffers = remember_buffers(model)
    device = next(model.parameters()).device
    with forked_rng(device), _plain_operations(model):
        with forward:
            value = loss(model, batch)
        with backward:
            value.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    restore_buffers()
    for name in weights:
        if forward.readers[name] and not forward.flops[name]:
            warnings.warn(
                f"FLOPs: only {', '.join(sorted(forward.readers[name]))} reads parameter {name!r}, but no product that "
                f"can be counted; costs may lack its layer's FLOPs, and sparse_flops saves nothing for it",
                stacklevel=2,
            )
    by_weight = {name: (2 * forward.flops[name] + backward.flops[name],) for name in weights}
    return StepFlops(total=(forward.total + backward.total,), by_weight=by_weight)


_aten = torch.ops.aten
_LOOKUPS = {_aten.embedding, _aten._embedding_bag, _aten._embedding_bag_forward_only}
"""Operations that read weights without multiplying."""
_ABOUT_TENSORS = {
    *(_aten.size.default, _aten.sym_size.default, _aten.stride.default, _aten.sym_stride.default),
    *(_aten.storage_offset.default, _aten.sym_storage_offset.default, _aten.numel.default, _aten.sym_numel.default),
    *(_aten.is_contiguous.default, _aten.is_contiguous.memory_format, _aten.sym_is_contiguous.default),
    *(_aten.is_strides_like_format.default, _aten.is_non_overlapping_and_dense.default, _aten.dim.default),
    *(torch.ops.prim.layout.default, torch.ops.prim.device.default),
}
"""Questions about a tensor itself, which classes of tensors may answer; they do not consist of other operations."""
_elementary = set(_ABOUT_TENSORS)
"""Operations that are known not to consist of others."""


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode that adds up the FLOPs of operations, and of those on a known weight, or on a view or scaled copy of it.

    The formulas are those of torch's `FlopCounterMode`, which would count the same, but also attributes all FLOPs to
    modules, by hooks that fail where a module computes weights, and takes twice as long.

    Attributes:
        total: FLOPs of all operations.
        flops: FLOPs by weight.
        readers: Names of the other operations that read each weight, if they are followed.
    """

    supports_higher_order_operators = True

    def __init__(self, memory: Memory | None = None, follow: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory, self.follow = memory, follow
        self.formulas = _torchs_counter().flop_registry
        self.total = 0
        self.flops: Counter[str] = Counter()
        self.readers: dict[str, set[str]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # such as `torch.cond`
            if self.memory is not None:  # which of them the operations inside read is not seen
                raise IspError(
                    f"FLOPs: the training step calls {func}, whose FLOPs cannot be counted by weight; use operations "
                    "that compute without it, such as torch.where in place of torch.cond"
                )
            with _torchs_counter() as counter:
                out = func(*args, **kwargs)
            self.total += counter.get_total_flops()
            return out
        packet = func.overloadpacket
        formula = self.formulas.get(packet)
        if formula is None and func not in _elementary:
            with self:  # under `inference_mode`, operations arrive that consist of others
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            _elementary.add(func)
        out = func(*args, **kwargs)
        if formula is not None:
            flops = formula(*args, **kwargs, out_val=out)
            self.total += flops
        if self.memory is None:
            return out
        if formula is not None:
            for place, arg in enumerate(args):
                if owner := self.memory.owner(arg):
                    if packet is _aten.convolution_backward:
                        flops = formula(*_reading(place, args), **kwargs, out_val=out)
                    self.flops[owner[0]] += flops
        elif self.follow and packet not in _LOOKUPS:
            for name in self.memory.follow(packet, args, out):
                self.readers[name].add(str(packet))
        return out


def _reading(place: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a convolution's backward pass without the products that do not read that at `place`.

    It is one operation of two products: the gradient of its input (argument 1) reads the weight (argument 2), and that
    of the weight reads the input.
    """
    *others, gradients = args
    return (*others, [wanted and place != of for of, wanted in enumerate(gradients, start=1)])


class WorkCounter:
    """Counter of the work inside `counting`: forward, backward, and backward of a backward.

    Attributes:
        samples: Number of examples that went through the model so far, counted in each forward pass.
    """

    def __init__(self, flops: _Flops) -> None:
        self.samples = 0
        self._flops, self._excluded = flops, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the FLOPs of this context, in which data are prepared and no model runs."""
        before = self._flops.total
        yield
        self._excluded += self._flops.total - before

    def cost(self) -> Cost:
        """Return the counted cost, with no optimizer updates and no savings for weights that are zero."""
        flops = self._flops.total - self._excluded
        return Cost(samples=self.samples, flops=flops, sparse_flops=flops)


@contextmanager
def counting(model: nn.Module) -> Iterator[WorkCounter]:
    """Count the FLOPs of the work inside, and the examples that go through the forward pass of `model`.

    Inside, attention and recurrent layers use plain matrix products, because fused kernels hide theirs and have no
    double backward. The size of a batch is the first dimension of the first tensor with which the model is called.
    """
    flops = _Flops()
    counter = WorkCounter(flops)

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        counter.samples += next((len(tensor) for tensor in tensors if tensor.dim()), 0)

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _plain_operations(model), model.register_forward_pre_hook(see, with_kwargs=True), flops:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _plain_operations(model: nn.Module) -> Iterator[None]:
    """Disable fused kernels, whose products cannot be counted and not always be differentiated twice.

    Attention and recurrent layers then consist of matrix products. Weight norms consist of a norm, a division and a
    product, because the second derivative of torch's own is wrong (it treats the norm as a constant). The library that
    fuses recurrent layers also computes convolutions, so it stays enabled for models without recurrent layers.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fused: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn) if recurrent else ()
    changes = [(backend, "enabled", False) for backend in fused]
    with sdpa_kernel(SDPBackend.MATH), replaced([*changes, *weight_norm_as(_weight_norm)]):
        yield


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _grouped_mm_flops(a_shape: torch.Size, b_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Return the FLOPs of products of packed experts: (rows, inner) by (groups, inner, columns), or either split.

    Every group is multiplied in full only if both have three dimensions.
    """
    groups = a_shape[0] if len(a_shape) == len(b_shape) == 3 else 1
    return int(2 * groups * a_shape[-2] * a_shape[-1] * b_shape[-1])


def _convolution_backward_flops(
    gradient_shape: torch.Size, in_shape: torch.Size, weight_shape: torch.Size, *settings: Any, **__: Any
) -> int:
    """Return the FLOPs of the gradients of a convolution: each costs as much as its forward pass.

    There, every weight is multiplied once at every position of the output, or of the input if it is transposed. Torch's
    own formula overcounts the gradient of the weight by the number of groups.
    """
    *_, transposed, _, _, (of_input, of_weight, _) = settings
    batch, _, *positions = in_shape if transposed else gradient_shape
    return int(2 * (of_input + of_weight) * batch * math.prod(positions) * math.prod(weight_shape))


def _torchs_counter() -> FlopCounterMode:
    """Return torch's counter with formulas that it lacks or has wrong."""
    formulas = {_aten._grouped_mm: _grouped_mm_flops, _aten.convolution_backward: _convolution_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)
