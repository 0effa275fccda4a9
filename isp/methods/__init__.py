"""One file a method; its name is the file's stem. A method holds only its own mathematics and states its family.

Every file defines `FAMILY`, `VERSION` (raised when its results change) and `Settings`. What else it defines depends on
the family, which decides how the method is run (`isp/families/`):

- "dense": nothing; trains without a mask.
- "one_shot": `scores(probe, settings, seed)`, a score for every prunable weight; the highest are kept, before training.
- "iterative": nothing more; rounds of full training as lottery-ticket rewinding (its settings say how).
- "denoised": nothing more; rounds of Instant Soup Pruning, whose mathematics is in `methods/isp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Family = Literal["dense", "one_shot", "iterative", "denoised"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a one-shot method may look at: the model at the initial weights and batches of training data, nothing else.

    Attributes:
        weights: the prunable parameters by name, those of `model` itself; a method must not change them.
        model: the model, in evaluation mode (dropout off), holding the initial weights.
        loss: maps (model, batch) to a scalar.
        batches: the first n batches of the training order; using one is counted as cost.
    """

    weights: dict[str, Tensor]
    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int], Iterator[Any]]
