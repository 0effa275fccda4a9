"""SynFlow: prune in many small steps by each weight's share of the synaptic flow, then fine-tune for T steps.

Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic flow",
NeurIPS 2020. R is the sum of the outputs for inputs of ones when every parameter is replaced by its absolute value. The
score of a weight is |w| * dR/d|w| at the current mask. After round k of n the sparsity is 1 - (1 - S)^(k / n). With
positive weights the scores of a layer sum to the flow through it, so a layer that is about to be cut off has high ones.

That argument requires functions of degree one that map positive inputs to positive outputs. A transformer has others,
which are replaced while the flow is computed (weights, buffers and the model itself do not change):

- LayerNorm divides by the root mean square of its inputs, treated as a constant, and subtracts no mean.
- Softmax (attention) divides the logits, which are positive then, by their sum, treated as a constant. Exponentials
  would saturate, so that queries and keys would get no flow and be pruned completely. A mask m that is added to the
  logits multiplies their share by exp(m).
- `nn.Tanh` (BERT's pooler) is the identity, its slope at 0; it is saturated everywhere else.
- A weight norm divides by the norm of the direction, treated as a constant, so that an empty row carries no flow.

Other departures: weights are pre-trained. Buffers are also replaced by their absolute values (as in the authors' code).
Text consists of token ids, which cannot be set to one, so the first training example is used instead, and the method is
not data-free there. Parameters that are not pruned contribute their absolute values, including biases (as in the
authors' code). Two things are left as they are: CLIP's features have unit length, and nothing protects residual
branches, which can be cut off without cutting the network.

Everything is computed in fp64, in which the flow of a deep network does not overflow. With an N:M scope only the last
round imposes the pattern; earlier rounds never prune the N highest weights of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import Field

from isp.errors import ConfigError
from isp.lazy import F, torch
from isp.masks import Mask, keep_top, ones
from isp.methods import Family, Probe, Scored
from isp.replacing import replaced, weight_norm_as
from isp.tensors import first_names_by_place

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY: Family = "one_shot"
VERSION = 1


class Settings(Scored):
    """Scope and number of rounds."""

    rounds: int = Field(default=100, ge=1, le=10**6, description="n, number of rounds in which the sparsity is reached")


def mask(probe: Probe, settings: Settings, seed: int, sparsity: Decimal) -> Mask:
    """Return the mask after the last round, with ties broken by |w|.

    Raises:
        ConfigError: If the model's output is neither a tensor nor has `logits`.
        MaskError: If the flow is too large for fp64.
    """
    inputs = example(next(probe.batches(1)))
    state = positive_state(probe.model)
    kept = ones(probe.weights)
    for k in range(1, settings.rounds + 1):
        reached = sparsity if k == settings.rounds else 1 - (1 - sparsity) ** (Decimal(k) / settings.rounds)
        scores = flow(probe.model, state, kept, inputs)
        largest = max(score.max() for score in scores.values())
        scores = {name: score / largest.clamp_min(1e-300) for name, score in scores.items()}  # ranked in fp32
        kept = keep_top(
            scores,
            sparsity=reached,
            ties=probe.weights,
            within=kept,
            scope=settings.scope,
            input_dims=probe.input_dims,
        )
    return kept


def positive_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the absolute values of all parameters and buffers in fp64; integer tensors are unchanged."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: tensor.detach().double().abs() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


def flow(
    model: nn.Module, state: Mapping[str, Tensor], kept: Mask, inputs: tuple[tuple[Any, ...], dict[str, Any]]
) -> dict[str, Tensor]:
    """Return the share |w| * dR/d|w| of every prunable weight under the mask `kept`, in fp64.

    Args:
        model: Model to call with `state` in place of its own parameters and buffers.
        state: Result of `positive_state`.
        kept: Current mask.
        inputs: Positional and keyword arguments of the model, from `example`.
    """
    args, kwargs = inputs
    weights = {name: (state[name] * kept[name]).requires_grad_() for name in kept}
    every = {**state, **weights}

    def slopes() -> tuple[Tensor, ...]:
        outputs = model(*args, **kwargs)
        outputs = getattr(outputs, "logits", outputs)
        if not isinstance(outputs, torch.Tensor):
            raise ConfigError(
                f"method 'synflow': the model's output must be a tensor, or an object with a tensor `logits`, got a "
                f"{type(outputs).__name__}"
            )
        return torch.autograd.grad(outputs.sum(), list(weights.values()), materialize_grads=True)

    # The backward pass needs these weights as well, because a checkpointed block then repeats its forward pass.
    calling = torch.nn.Module()
    calling.model = model
    calling.forward = slopes
    with torch.enable_grad(), positive_functions():
        held = {f"model.{place}": every[name] for place, name in first_names_by_place(model).items()}
        gradients = torch.func.functional_call(calling, held, (), tie_weights=False)
    return {name: (weights[name] * slope).abs().detach() for name, slope in zip(weights, gradients, strict=True)}


def example(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the model's arguments for one example: floating-point tensors as ones (fp64), others from the batch.

    They contain only the inputs of a batch (inputs, labels), but all entries of a dict.
    """

    def first(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: first(value) for key, value in part.items()}
        if not isinstance(part, torch.Tensor) or not part.dim():
            return part
        return torch.ones_like(part[:1], dtype=torch.float64) if part.is_floating_point() else part[:1]

    return ((), first(batch)) if isinstance(batch, Mapping) else ((first(batch[0]),), {})


# --- functions under which the flow stays positive --------------------------------------------------------------------


@contextmanager
def positive_functions() -> Iterator[None]:
    """Make torch's LayerNorm, softmax, attention, `nn.Tanh` and weight norm those of a positive flow in this context.

    They are replaced by name, because `nn.MultiheadAttention` and transformers' attention both look them up in
    `torch.nn.functional`, and nothing else reaches into both. Code that calls `torch.softmax` keeps the true one.
    """
    changes: list[tuple[Any, str, Callable[..., Tensor]]] = [
        (F, "layer_norm", _layer_norm),
        (F, "softmax", _softmax),
        (F, "scaled_dot_product_attention", _attention),
        (torch.nn.Tanh, "forward", lambda module, inputs: inputs),
    ]
    with replaced([*changes, *weight_norm_as(_weight_norm)]):
        yield


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    mean_square = input.detach().square().mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    output = input / (mean_square + eps).sqrt()
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v.detach(), 2, dim).clamp_min(1e-300))


def _softmax(input: Tensor, dim: int = -1, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    positive = input.clamp_min(0)  # only excluded positions of a mask are negative
    return positive / positive.detach().sum(dim, keepdim=True).clamp_min(1e-300)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    logits = query @ key.transpose(-1, -2)  # no scale: it would cancel
    if attn_mask is not None:
        logits = logits * (attn_mask if attn_mask.dtype == torch.bool else attn_mask.exp())
    return _softmax(logits.tril() if is_causal else logits) @ value
