"""Choice of the prunable parameters of a model.

The paper prunes the 2-D weights inside the transformer blocks; embeddings, norms, biases and heads are never pruned. A
backbone specifies them by name patterns. For any other module the default is the weight matrices of its layers, as
listed by `prunable_names`, which users can restrict by patterns; `docs/how-to/models.md` shows the choice for
well-known models.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from isp.errors import ConfigError, unknown
from isp.rng import forked_rng
from isp.tensors import extent, first_names, overlap, saved_names

WARN_ABOVE = 0.01
REFUSE_ABOVE = 0.2
"""Limits on the share of weights in trainable matrices that the default leaves out because their layers are unknown:
above the first it warns, above the second it refuses."""
MERGE = "model = model.merge_and_unload().requires_grad_(True)"
"""Code that merges PEFT adapters into a plain model; PEFT leaves the merged weights frozen."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *_TRANSPOSED,
)
_CONV1D = "transformers.pytorch_utils.Conv1D"  # GPT-2's transposed linear layer; by name, so nothing is imported
_PRETRAINED = "transformers.modeling_utils.PreTrainedModel"
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_Role = Literal["weight", "embedding", "norm", "companion"]
"""Role of a parameter. A companion, such as the scale of a weight norm, belongs to a weight and is never pruned."""


def prunable_names(model: nn.Module, patterns: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> list[str]:
    """Return the names of the prunable parameters of `model`, in the model's order; tied ones under their first name.

    By default these are the trainable weights of `nn.Linear`, convolutions and transposed convolutions,
    `nn.MultiheadAttention`, recurrent layers and cells (`weight_ih`, `weight_hh`, `weight_hr`) and transformers'
    `Conv1D`. For a parametrized layer it is the tensor whose zeros are zeros of the computed weight: the direction of a
    weight norm (`original1`, `weight_v`), the `original` of a spectral norm. A weight that is tied to an embedding
    counts as an embedding, and so does the output layer over the vocabulary of a transformers model
    (`get_output_embeddings`), tied or not. Every other linear layer is pruned, including a classifier or pooler.
    Trainable matrices of any other module are left out, with a warning if they have more than 1 % of the weights in
    trainable matrices (except embeddings and norms), and with an error above 20 %. A warning also names frozen layers
    if they have more weights than the chosen ones. Parameters without entries are never chosen. Complex ones are not
    either, and the default counts them like matrices of other modules.

    Args:
        model: Any module.
        patterns: Shell-style patterns over parameter names ("encoder.*.weight"), each of which must match a trainable
            parameter of two or more dimensions, with real entries. None: the default.
        exclude: Patterns of names that are always left out, such as "head.*".

    Raises:
        ConfigError: If a pattern matches nothing or only another name of a tied parameter, nothing is left to prune,
            the default leaves out too much or includes LoRA adapters, a chosen parameter is pruned by
            `torch.nn.utils.prune`, another trainable parameter uses its memory, or it is missing in the model's state
            dict.
    """
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ConfigError(f"parameter {lazy[0]!r} has no shape yet; call the model once on a batch before pruning it")
    parameters, names = _parameters(model)
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad and _is_matrix(parameter)]
    matrices = [name for name in trained if not parameters[name].is_complex()]
    _check_patterns("exclude", exclude, list(parameters), parameters, names, model)
    excluded = [name for name in parameters if _matches(exclude, names[name])]
    roles = _roles(model, names)
    if patterns is None:
        layers = [name for name in matrices if roles.get(name) == "weight"]
    else:
        _check_patterns("prunable", patterns, matrices, parameters, names, model)
        layers = [name for name in matrices if _matches(patterns, names[name])]
    chosen = [name for name in layers if name not in excluded]
    if not chosen:
        raise ConfigError(f"no prunable parameter is left: {_inventory(parameters, roles, excluded)}")
    if patterns is None:
        _check_adapters(chosen)
        left_out = [
            name
            for name in trained
            if name not in excluded and (name not in roles or (name not in matrices and roles[name] == "weight"))
        ]
        _check_share(parameters, layers, left_out, model)
        _warn_of_frozen(parameters, chosen, _frozen_layers(parameters, roles, excluded))
    _check_torch_pruning(model, chosen, names)
    _check_memory(parameters, chosen, model)
    check_saved(model, chosen)
    return chosen


def check_saved(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse parameters that the model's state dict does not contain, which a ticket could not contain either.

    Raises:
        ConfigError: If there is one; the message names it.
    """
    saved = first_names(model)
    for name in names:
        if name not in saved:
            raise ConfigError(
                f"parameter {name!r} is trained, but the model's state_dict() does not contain it, so a ticket could "
                "not either; use a model whose state_dict() returns each parameter itself, under any name"
            )


def input_dims(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Return the dimension of each parameter over the inputs of its layer, which groups of N:M sparsity need.

    It is 1, as in (outputs, inputs), also for convolutions, where hardware forms the groups along input channels. It is
    0 for transformers' `Conv1D` and transposed convolutions. A parameter is absent if it is not the weight of a known
    layer, or if layers that share it read it along both dimensions.

    Args:
        model: Any module.
        names: Names from `prunable_names`.
    """
    first = {name: first for first, every in _parameters(model)[1].items() for name in every}
    dims: dict[str, set[int]] = defaultdict(set)
    for prefix, module in model.named_modules(remove_duplicate=False):
        dim = 0 if isinstance(module, _TRANSPOSED) or is_conv1d(module) else 1
        for attribute in _weights_of(module):
            for name, role in _tensors_behind(module, attribute):
                if role == "weight" and (key := first.get(f"{prefix}.{name}".removeprefix("."))):  # not a None
                    dims[key].add(dim)
    return {name: min(dims[name]) for name in names if len(dims[name]) == 1}


def _check_adapters(chosen: Sequence[str]) -> None:
    """Refuse to choose LoRA adapters by default, which fine-tuning adds to a frozen model."""
    adapters = [name for name in chosen if any(part.startswith("lora_") for part in name.split("."))]
    if adapters:
        raise ConfigError(
            f"parameter {adapters[0]!r} is one of {len(adapters)} matrices of LoRA adapters, which the default choice "
            f"does not prune. Merge the adapters into the model's weights and train those ({MERGE}); or name what to "
            "prune with prunable=, such as ['*lora_*'] for the adapters; or leave the adapters out, "
            "exclude=['*lora_*'], and unfreeze the weights to prune"
        )


def _parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, list[str]]]:
    """Return the parameters by their first name, and all names of each."""
    first = first_names(model)
    parameters: dict[str, nn.Parameter] = {}
    names: dict[str, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameters.setdefault(first.get(name, name), parameter)
        names[first.get(name, name)].append(name)
    for name, saved in saved_names(model).items():
        if saved != name and name in first and first[name] in names:
            names[first[name]].append(saved)
    return parameters, names


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and parameter.numel() > 0


def _matches(patterns: Iterable[str], names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _check_patterns(
    kind: str,
    patterns: Sequence[str],
    allowed: Sequence[str],
    parameters: Mapping[str, nn.Parameter],
    names: Mapping[str, list[str]],
    model: nn.Module,
) -> None:
    """Refuse a pattern that matches none of the first names in `allowed`, and say why it does not."""
    saved = saved_names(model)
    empty = [name for name, parameter in parameters.items() if parameter.dim() >= 2 and not parameter.numel()]
    known = [*allowed, *(saved.get(name, name) for name in allowed), *empty]  # naming an empty one does no harm
    for pattern in patterns:
        if _matches([pattern], known):
            continue
        for first, parameter in parameters.items():
            for name in (each for each in names[first] if fnmatchcase(each, pattern)):
                where = f"{kind} pattern {pattern!r}: parameter {name!r}"
                if not parameter.requires_grad and kind == "prunable":
                    raise ConfigError(
                        f"{where} does not require grad, and only trained parameters are pruned; call its "
                        "requires_grad_(True) first"
                    )
                if parameter.dim() < 2 and kind == "prunable":
                    raise ConfigError(
                        f"{where} has shape {tuple(parameter.shape)}; it must have two or more dimensions"
                    )
                if parameter.is_complex() and kind == "prunable":
                    raise ConfigError(
                        f"{where} is complex ({_dtype(parameter)}), and only real parameters are pruned; leave it out"
                    )
                raise ConfigError(f"{where} is tied to {first!r}, so both are one parameter; use that name")
        raise ConfigError(unknown(f"{kind} pattern", pattern, allowed))


# --- the default ------------------------------------------------------------------------------------------------------


def _roles(model: nn.Module, names: Mapping[str, list[str]]) -> dict[str, _Role]:
    """Return the role of each parameter whose layer is known, by its first name."""
    by_name: dict[str, _Role] = {}
    heads = {id(parameter) for module in model.modules() for parameter in _vocabulary_head(module)}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, role in _roles_in(module):
            by_name[f"{prefix}.{name}" if prefix else name] = role
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in heads:
            by_name[name] = "embedding"
    roles = {first: {by_name[name] for name in every if name in by_name} for first, every in names.items()}
    order: tuple[_Role, ...] = ("embedding", "weight", "companion", "norm")  # the first one applies to a tied parameter
    return {first: next(role for role in order if role in each) for first, each in roles.items() if each}


def _roles_in(module: nn.Module) -> Iterator[tuple[str, _Role]]:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield from ((name, "embedding") for name, _ in module.named_parameters())
    elif isinstance(module, _NORMS):
        yield from ((name, "norm") for name, _ in module.named_parameters())
    for attribute in _weights_of(module):
        yield from _tensors_behind(module, attribute)
    if isinstance(module, nn.MultiheadAttention):
        yield from (("bias_k", "companion"), ("bias_v", "companion"))


def _weights_of(module: nn.Module) -> list[str]:
    """Return the attributes of a layer that are weight matrices."""
    if isinstance(module, nn.RNNBase):
        parts = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
        ends = ("", "_reverse") if module.bidirectional else ("",)
        return [f"weight_{part}_l{layer}{end}" for layer in range(module.num_layers) for end in ends for part in parts]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    if isinstance(module, nn.MultiheadAttention):
        return list(_ATTENTION)
    return ["weight"] if isinstance(module, _LAYERS) or is_conv1d(module) else []


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' `Conv1D`, a linear layer whose weight is (inputs, outputs)."""
    return _is_a(module, _CONV1D)


def _is_a(module: nn.Module, qualified_name: str) -> bool:
    return qualified_name in (f"{each.__module__}.{each.__qualname__}" for each in type(module).__mro__)


def _vocabulary_head(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the output layer over the vocabulary of a transformers model, if there is one."""
    if not _is_a(module, _PRETRAINED):
        return []
    try:
        head = module.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return []
    return list(head.parameters()) if isinstance(head, nn.Module) else []


def _tensors_behind(module: nn.Module, attribute: str) -> Iterator[tuple[str, _Role]]:
    """Yield the parameters of a module from which a weight is computed, or the weight itself, with their roles."""
    if attribute in module._parameters:
        yield attribute, "weight"
    elif parametrize.is_parametrized(module, attribute):
        parametrized: parametrize.ParametrizationList = module.parametrizations[attribute]  # type: ignore[index, assignment]
        originals = [name for name in parametrized._parameters if name.startswith("original")]
        kept = [name for name in originals if _keeps_zeros(parametrized, name)]
        for name in (
            originals if kept else []
        ):  # the last of several, because with one input the scale of a weight norm also keeps zeros
            yield f"parametrizations.{attribute}.{name}", "weight" if name == kept[-1] else "companion"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == attribute:
            yield from ((f"{attribute}_v", "weight"), (f"{attribute}_g", "companion"))
        elif (isinstance(hook, SpectralNorm) and hook.name == attribute) or _prunes(hook, attribute):
            yield f"{attribute}_orig", "weight"


def _keeps_zeros(parametrized: parametrize.ParametrizationList, name: str) -> bool:
    """Test whether zeros of a parametrization's tensor are zeros of the weight computed from it."""
    state = {key: tensor.detach().clone() for key, tensor in parametrized.state_dict().items()}
    with torch.no_grad(), forked_rng(state[name].device):
        torch.manual_seed(0)
        state[name].normal_()
        dropped = torch.rand_like(state[name], dtype=torch.float32) < 0.5
        state[name][dropped] = 0
        weight = functional_call(parametrized, state, ())
    return weight.shape == dropped.shape and not weight[dropped].nan_to_num().any() and bool(weight.any())


def _check_share(
    parameters: Mapping[str, nn.Parameter], layers: Iterable[str], left_out: Sequence[str], model: nn.Module
) -> None:
    """Warn of, or refuse, a default that leaves out weights of unknown layers."""
    num = sum(parameters[name].numel() for name in left_out)
    total = num + sum(parameters[name].numel() for name in layers)
    if num <= WARN_ABOVE * total:
        return
    largest = sorted(left_out, key=lambda name: -parameters[name].numel())
    listed = ", ".join(f"{name!r} ({_owner(model, name)})" for name in largest[:5])
    listed += f" and {len(largest) - 5} others" if len(largest) > 5 else ""
    text = f"{num:,} of {total:,} weights in trainable matrices ({num / total:.1%})"
    reason = "their layers are unknown"
    reason += " or their weights complex" if any(parameters[name].is_complex() for name in left_out) else ""
    if num > REFUSE_ABOVE * total:
        raise ConfigError(
            f"prunable: the default would leave out {text}, because {reason}: {listed}; pass patterns "
            f"of the parameters to prune, or name these in exclude"
        )
    warnings.warn(
        f"prunable: the default leaves out {text}, because {reason}: {listed}; pass patterns of the "
        f"parameters to prune, or name these in exclude to silence this warning",
        stacklevel=3,
    )


def _frozen_layers(
    parameters: Mapping[str, nn.Parameter], roles: Mapping[str, _Role], excluded: Sequence[str]
) -> list[str]:
    """Return the names of the weights of known layers that are not trained."""
    return [
        name
        for name, parameter in parameters.items()
        if roles.get(name) == "weight" and not parameter.requires_grad and name not in excluded
    ]


def _warn_of_frozen(parameters: Mapping[str, nn.Parameter], chosen: Sequence[str], frozen: Sequence[str]) -> None:
    """Warn of a default that prunes the smaller part of the layers because the larger part is frozen."""
    num, num_chosen = (sum(parameters[name].numel() for name in names) for names in (frozen, chosen))
    if num > num_chosen:
        warnings.warn(
            f"prunable: {num:,} weights of {len(frozen)} layers, such as {frozen[0]!r}, are frozen (requires_grad is "
            f"False), so the default prunes only {num_chosen:,} others, such as those of {chosen[0]!r}; call "
            f"requires_grad_(True) on the weights to prune, or name the frozen ones in exclude to silence this warning",
            stacklevel=3,
        )


def _dtype(parameter: nn.Parameter) -> str:
    return str(parameter.dtype).removeprefix("torch.")


def _owner(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__


def _inventory(parameters: Mapping[str, nn.Parameter], roles: Mapping[str, _Role], excluded: Sequence[str]) -> str:
    """Explain why no parameter is prunable, with a count and one name for each reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    known = {
        "embedding": "embeddings",
        "norm": "of norms",
        "companion": "scales or biases",
        "weight": "weights of layers",
    }
    for name, parameter in parameters.items():
        if name in excluded:
            reason = "excluded"
        elif not parameter.requires_grad:
            reason = "not trained (requires_grad is False)"
        elif parameter.dim() < 2:
            reason = "of fewer than two dimensions"
        elif not parameter.numel():
            reason = "without entries"
        elif parameter.is_complex():
            reason = "complex"
        else:
            reason = known[roles[name]] if name in roles else "of unknown layers"
        reasons[reason].append(name)
    listed = ", ".join(f"{len(names)} {reason} (such as {names[0]!r})" for reason, names in reasons.items())
    frozen = _frozen_layers(parameters, roles, excluded)
    advice = (
        f". To prune frozen weights such as {frozen[0]!r}, call their requires_grad_(True) or, if they have PEFT "
        f"adapters, merge these first: {MERGE}"
        if frozen
        else ""
    )
    return (
        f"the model has {f'{len(parameters)} parameters: {listed}' if parameters else 'no parameters'}; a prunable "
        f"parameter is trainable and has two or more dimensions{advice}"
    )


# --- parameters that cannot be pruned ---------------------------------------------------------------------------------


def _prunes(hook: object, attribute: str) -> bool:
    return isinstance(hook, BasePruningMethod) and hook._tensor_name == attribute


def _check_torch_pruning(model: nn.Module, chosen: Sequence[str], names: Mapping[str, list[str]]) -> None:
    """Refuse parameters that already have a mask of `torch.nn.utils.prune`."""
    every = {name for first in chosen for name in names[first]}
    for prefix, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            tensor = hook._tensor_name if isinstance(hook, BasePruningMethod) else None
            name = f"{prefix}.{tensor}_orig".removeprefix(".")
            if tensor and name in every:
                raise ConfigError(
                    f"parameter {name!r} has a mask of torch.nn.utils.prune, which would stay active in addition to "
                    f"the ticket's; make it permanent first: torch.nn.utils.prune.remove(module, {tensor!r})"
                )


def _check_memory(parameters: Mapping[str, nn.Parameter], chosen: Sequence[str], model: nn.Module) -> None:
    """Refuse a chosen parameter whose memory another trainable parameter updates as well."""
    by_storage: dict[int, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_storage[extent(parameter)[0]].append((name, parameter))
    pruned = {id(parameters[name]) for name in chosen}
    for place, sharing in by_storage.items():
        for (a, first), (b, second) in combinations(sharing if place else [], 2):
            if pruned & {id(first), id(second)} and overlap(first, second):
                raise ConfigError(
                    f"{a!r} and {b!r} are two parameters over the same memory, so training one would revive pruned "
                    f"weights of the other; tie them by assigning one parameter to both names"
                )
