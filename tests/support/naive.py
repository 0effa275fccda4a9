"""Naive reference implementations."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from isp.seeds import seed as named_seed
from isp.sparsity import Pattern, num_pruned
from isp.training import Trainer, learning_rate


def trained(trainer: Trainer, model: nn.Module, optimizer: Any, steps: range, mask: dict[str, torch.Tensor]) -> None:
    """Train in a plain loop that uses only the order of the data and the seeds from the package."""
    with torch.no_grad():
        for n in mask:
            model.get_parameter(n).mul_(mask[n])
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in optimizer.state[model.get_parameter(n)]:
                    optimizer.state[model.get_parameter(n)][moment].mul_(mask[n])
    model.train()
    for step in steps:
        torch.default_generator.manual_seed(named_seed("step", seed=trainer.seed, step=step))
        inputs, labels = trainer.examples.batch(trainer.order(step))
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for n in mask:
            model.get_parameter(n).grad.mul_(mask[n])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(trainer.training, step)
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1, fused=True)


def largest(model: nn.Module, names: tuple[str, ...], num: int) -> dict[str, torch.Tensor]:
    """Return the mask of the largest weights by a plain sort."""
    flat = torch.cat([model.get_parameter(n).detach().abs().flatten() for n in sorted(names)])
    kept = torch.zeros(len(flat), dtype=torch.bool).index_fill_(0, flat.argsort(descending=True)[:num], True)
    parts = kept.split([model.get_parameter(n).numel() for n in sorted(names)])
    return {n: part.view_as(model.get_parameter(n)) for n, part in zip(sorted(names), parts, strict=True)}


def naive(
    scores: dict, ties: dict | None, within: dict | None, sparsity: Decimal, absolute: bool, scope: str = "global"
) -> dict:
    """Return the same by a full sort of Python tuples."""
    entries = []
    for name in sorted(scores):
        for index, value in enumerate(scores[name].float().reshape(-1).tolist()):
            if within is None or within[name].reshape(-1)[index]:
                tie = abs(ties[name].float().reshape(-1)[index].item()) if ties else 0.0
                entries.append((-(abs(value) if absolute else value), -tie, name, index))
    entries.sort()
    total = sum(tensor.numel() for tensor in scores.values())
    wanted = total - num_pruned(sparsity, total)
    chosen = entries[:wanted]
    if scope == "layer":
        by_name = {name: [entry for entry in entries if entry[2] == name] for name in sorted(scores)}
        counts = naive_shares(wanted, {name: scores[name].numel() for name in by_name})
        counts = {name: min(counts[name], len(by_name[name])) for name in by_name}
        more = naive_shares(wanted - sum(counts.values()), {name: len(by_name[name]) - counts[name] for name in counts})
        chosen = [entry for name in by_name for entry in by_name[name][: counts[name] + more[name]]]
    kept = {name: torch.zeros(tensor.numel(), dtype=torch.bool) for name, tensor in scores.items()}
    for _, _, name, index in chosen:
        kept[name][index] = True
    return {name: kept[name].view(scores[name].shape) for name in scores}


def naive_shares(amount: int, sizes: dict[str, int]) -> dict[str, int]:
    """Distribute one at a time to the largest remainder, the earlier name first."""
    exact = {name: Fraction(amount * size, sum(sizes.values()) or 1) for name, size in sizes.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    while sum(shares.values()) < amount:
        most = max(exact[name] - shares[name] for name in sizes)
        shares[next(name for name in sorted(sizes) if exact[name] - shares[name] == most)] += 1
    return shares


def naive_pattern(
    scores: dict,
    ties: dict | None,
    within: dict | None,
    wanted: int,
    absolute: bool,
    pattern: Pattern,
    input_dims: dict[str, int],
) -> dict:
    """Keep the N highest of every group, then the highest of all others until `wanted` are kept, by sorts of tuples."""
    groups: dict[tuple, list[tuple]] = {}
    for name in sorted(scores):
        dim = input_dims.get(name, 1)
        indices = itertools.product(*map(range, scores[name].shape))
        for flat, index in enumerate(indices):
            if within is None or within[name][index]:
                value, tie = scores[name][index].item(), abs(ties[name][index].item()) if ties else 0.0
                group = (name, *index[:dim], index[dim] // pattern.m, *index[dim + 1 :])
                entry = (-(abs(value) if absolute else value), -tie, name, flat, index)
                groups.setdefault(group, []).append(entry)
    ordered = [sorted(group) for group in groups.values()]
    chosen = [entry for group in ordered for entry in group[: pattern.n]]
    others = sorted(entry for group in ordered for entry in group[pattern.n :])
    kept = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in scores.items()}
    for *_, name, _, index in [*chosen, *others[: wanted - len(chosen)]]:
        kept[name][index] = True
    return kept
