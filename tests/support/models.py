"""A tiny model with dropout, one with tied weights, examples for them, and comparisons to the bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp import masks
from isp.training import State


class TinyModel(nn.Module):
    """Attention, a norm, dropout and a head that is not pruned: 4 prunable tensors, 592 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 21)
        self.down = nn.Linear(21, 8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs + self._attended(inputs)
        hidden = hidden + self.down(self.dropout(torch.relu(self.up(self.norm(hidden)))))
        return self.head(hidden.mean(1))

    def _attended(self, inputs: Tensor) -> Tensor:
        """Compute what `self.attention` does, but faster; like it, without a call of `out_proj`."""
        attention, out = self.attention, self.attention.out_proj
        projected = F.linear(inputs, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        return F.linear(heads.transpose(1, 2).flatten(2), out.weight, out.bias)


class Noisy:
    """80 examples of 3 classes, (5, 8) each, augmented by noise from torch's generator."""

    def __init__(self, num: int = 80) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.arange(num) % 3
        centres = torch.randn(3, 5, 8, generator=generator)
        self.inputs = centres[self.labels] + torch.randn(num, 5, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.inputs[indices]
        return inputs + 0.1 * torch.randn(inputs.shape), self.labels[indices]


def tiny_model() -> TinyModel:
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats the stack for every unused accelerator
    return TinyModel()


class Still(Noisy):
    """Return the same examples every time."""

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[indices], self.labels[indices]


WORDS, WIDTH = 30, 12
TEXTS = torch.randint(WORDS, (96, 5), generator=torch.Generator().manual_seed(1))
DATA = (TEXTS, TEXTS[:, 0])


class TiedHead(nn.Module):
    """A model whose embedding is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embedding(inputs))).mean(1))


def equal(a: masks.Weights, b: masks.Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same(a: State, b: State) -> bool:
    """Return whether step, weights, masters and optimizer state are equal to the bit."""
    return (
        a.step == b.step
        and a.weights.keys() == b.weights.keys()
        and a.optimizer.keys() == b.optimizer.keys()
        and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
        and a.masters.keys() == b.masters.keys()
        and all(torch.equal(a.masters[name], b.masters[name]) for name in a.masters)
        and all(torch.equal(a.optimizer[n][key], b.optimizer[n][key]) for n in a.optimizer for key in a.optimizer[n])
    )
