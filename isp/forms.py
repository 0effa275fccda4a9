"""Forms in which `isp.acceleration` can compute a layer for inference: of a linear layer, and of an attention layer.

All compute the same outputs up to the order of sums, from the same weights, and refuse to be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp.errors import ConfigError

DENSE, ONEDNN, CSR, NUMBA, N_M = "dense", "onednn", "csr", "numba", "2:4"
SPARSE = (CSR, NUMBA, N_M)


class _Refused(torch.autograd.Function):
    """Identity that refuses a backward pass."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, guard: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ConfigError("an accelerated model is for inference only; train the original model")


class Form(nn.Module):
    """A form of a linear layer, for inference only.

    Shape:
        Input (..., inputs), output (..., outputs), both of the weight's dtype and device.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self.device = linear.weight.dtype, linear.weight.device
        self.weight: Tensor  # that of the dense layer, shared; models such as T5 read its dtype
        self.register_buffer("weight", linear.weight.detach(), persistent=False)
        self.bias: Tensor | None
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)
        self.guard = torch.empty(0, requires_grad=True)
        self.training = False

    def train(self, mode: bool = True) -> Form:
        """Refuse to be trained."""
        super().train(mode)
        if mode:
            self._refuse()
        return self

    def _refuse(self) -> None:
        raise ConfigError("an accelerated model is for inference only; call eval() on it, and train the original model")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's outputs.

        Raises:
            ConfigError: If the input has another width, dtype or device than the weight, or in training mode.
        """
        if self.training:  # the caller caught the error of `train`
            self._refuse()
        if x.dtype != self.dtype or x.device != self.device or x.shape[-1] != self.in_features:
            raise ConfigError(
                f"a layer was accelerated for inputs of {self.in_features} columns, {self.dtype} on {self.device}, "
                f"got {tuple(x.shape)}, {x.dtype} on {x.device}"
            )
        # Sparse products have no bfloat16, so these stay in the weight's dtype under autocast.
        autocast = torch.is_autocast_enabled(x.device.type)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
            y = self.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        if torch.is_grad_enabled():
            y = _Refused.apply(y, self.guard)
        return y

    def product(self, x: Tensor) -> Tensor:
        """Compute the layer's outputs, (tokens, outputs), for inputs (tokens, inputs)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return what the model's text says of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class OneDnn(Form):
    """Dense form computed by oneDNN; the weight is reordered for the example's number of tokens."""

    def __init__(self, linear: nn.Linear, tokens: int) -> None:
        super().__init__(linear)
        self.kept = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), tokens)

    def product(self, x: Tensor) -> Tensor:
        """Compute the outputs; see `Form.product`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.kept, self.bias, "none", [], "")
        return y


class Csr(Form):
    """Compressed sparse rows of torch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.kept = linear.weight.detach().to_sparse_csr()

    def product(self, x: Tensor) -> Tensor:
        """Compute the outputs; see `Form.product`."""
        y = self.kept @ x.T
        if self.bias is not None:
            y += self.bias[:, None]
        return y.T.contiguous()


class Numba(Form):
    """Kept weights row by row, multiplied by a kernel that numba compiles."""

    def __init__(self, linear: nn.Linear) -> None:
        from isp.sparse_kernel import Rows  # numba is optional and slow to import

        super().__init__(linear)
        self.rows = Rows.of(linear.weight.detach(), self.bias)

    def product(self, x: Tensor) -> Tensor:
        """Compute the outputs; see `Form.product`."""
        return self.rows.multiply(x)


class SemiStructured(Form):
    """The 2:4 pattern of a GPU's tensor cores."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.kept = torch.sparse.to_sparse_semi_structured(linear.weight.detach())

    def product(self, x: Tensor) -> Tensor:
        """Compute the outputs; see `Form.product`."""
        return F.linear(x, self.kept, self.bias)


def forms_of(linear: nn.Linear, x: Tensor, tolerance: float) -> dict[str, nn.Module]:
    """Return the forms that this installation supports for a layer, the simplest first."""
    forms: dict[str, nn.Module] = {DENSE: linear}
    weight = linear.weight
    if x.dtype != weight.dtype or x.device != weight.device or not x.numel():
        return forms
    zeros = bool((weight == 0).any())
    if weight.device.type == "cuda":
        if zeros and follows_2_4(weight):
            _add(forms, N_M, lambda: SemiStructured(linear), x)
            # In float32, tensor cores multiply in TF32, which has ten bits of mantissa.
            if N_M in forms and not difference([linear(x)], [forms[N_M](x)]) <= tolerance:
                del forms[N_M]
    elif weight.device.type == "cpu" and weight.dtype == torch.float32:
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            _add(forms, ONEDNN, lambda: OneDnn(linear, x.numel() // x.shape[-1]), x)
        if zeros:
            _add(forms, CSR, lambda: Csr(linear), x)
            if find_spec("numba") is not None:
                _add(forms, NUMBA, lambda: Numba(linear), x)
    return forms


def _add(forms: dict[str, nn.Module], form: str, make: Callable[[], nn.Module], x: Tensor) -> None:
    """Add a form if torch supports it for this layer."""
    try:
        module = make()
        module(x)
    except (RuntimeError, AttributeError, ValueError, ImportError):  # for example numba with an incompatible NumPy
        return
    forms[form] = module


def follows_2_4(weight: Tensor) -> bool:
    """Return whether at most two of every four consecutive weights along the input are kept."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight != 0).view(weight.shape[0], -1, 4).sum(dim=-1) <= 2).all())


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest absolute output."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return float("inf")
    differences = [0.0]
    for one, other in zip(before, after, strict=True):
        if one.numel():
            largest = float(one.double().abs().max()) or 1.0
            differences.append(float((one.double() - other.double()).abs().max()) / largest)
    return float("nan") if any(value != value for value in differences) else max(differences)


def attends_to_itself(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether `Attention` can compute a call of `nn.MultiheadAttention` with these arguments."""
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")
    call = dict(zip(names, args, strict=False)) | dict(kwargs)
    x = call.get("query")
    return (
        isinstance(x, Tensor)
        and x.dim() == 3
        and call.get("key") is x
        and call.get("value") is x
        and not call.get("need_weights", True)
        and call.get("key_padding_mask") is None
        and not call.get("is_causal", False)
    )


class Attention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, whose two products are modules."""

    def __init__(self, attention: nn.MultiheadAttention, in_proj: nn.Module, out_proj: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.batch_first = attention.num_heads, attention.batch_first
        self.in_proj, self.out_proj = in_proj, out_proj
        self.training = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Compute attention of (batch, length, width), with the first two exchanged, or without a batch, with itself.

        Args:
            query: Sequence.
            key: Same tensor as `query`.
            value: Same tensor as `query`.
            key_padding_mask: None; other values are refused.
            need_weights: False; True is refused.
            attn_mask: Floating-point values to add to the scores, or booleans that are True where attention is
                blocked; (length, length) or (batch x heads, length, length).
            average_attn_weights: Not used.
            is_causal: Hint that accompanies `attn_mask`.
        """
        if key is not query or value is not query or key_padding_mask is not None or need_weights:
            raise ConfigError(
                "this attention was accelerated for calls like the example's: query, key and value must be the same "
                "tensor, key_padding_mask None and need_weights False"
            )
        single = query.dim() == 2  # (length, width), whatever `batch_first` is
        x = query.unsqueeze(0) if single else query if self.batch_first else query.transpose(0, 1)
        batch, length, width = x.shape
        heads = self.in_proj(x).view(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mask = attn_mask
        if mask is not None:
            mask = ~mask if mask.dtype == torch.bool else mask
            mask = mask.view(batch, self.num_heads, length, length) if mask.dim() == 3 else mask
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        y = self.out_proj(y.transpose(1, 2).reshape(batch, length, width))
        return (y.squeeze(0) if single else y if self.batch_first else y.transpose(0, 1)), None
