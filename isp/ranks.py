"""Process group that trains one model, as far as pruning depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isp.errors import IspError
from isp.masks import Mask, Weights, is_sharded
from isp.rng import seed_all, seed_step
from isp.seeds import seed as named_seed


@dataclass(frozen=True)
class Ranks:
    """The default process group of `torch.distributed`, or this process alone.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Return the current process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, indices: Tensor) -> Tensor:
        """Return this rank's part of the examples of a global batch, whose number is a multiple of `size`."""
        return indices.view(self.size, -1)[self.rank]

    def seed_step(self, seed: int, step: int) -> None:
        """Seed the generators for this rank's part of a step; rank 0 uses the seed of a single process."""
        if self.rank:
            seed_all(named_seed("step", seed=seed, step=step, rank=self.rank))
        else:
            seed_step(seed, step)

    def check_same(self, mask: Mask) -> None:
        """Refuse masks that differ between ranks.

        Raises:
            IspError: If they differ; the message names the ranks.
        """
        if self.size > 1:
            from isp.sharded import check_same_everywhere

            check_same_everywhere(mask)

    def average(self, gradients: Mapping[str, Tensor], parameters: Weights) -> dict[str, Tensor]:
        """Return the mean of each gradient over the ranks; one that is missing on some of them counts there as 0.

        Gradients of sharded parameters are means already, and are returned as they are.
        """
        if self.size == 1 or is_sharded(parameters):
            return dict(gradients)
        first = next(iter(parameters.values()))
        anywhere = torch.tensor([name in gradients for name in parameters], dtype=torch.uint8, device=first.device)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        means: dict[str, Tensor] = {}
        for name, found in zip(parameters, anywhere.tolist(), strict=True):
            if found:
                mean = gradients[name].clone() if name in gradients else torch.zeros_like(parameters[name])
                dist.all_reduce(mean)
                means[name] = mean / self.size
        return means

    def fail_together(self, error: Exception | None) -> None:
        """Raise on every rank if one of them failed, so that no rank waits for it.

        Raises:
            IspError: On the other ranks; the message names the failed one.
        """
        problems: list[str | None] = [None] * self.size
        dist.all_gather_object(problems, None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise IspError(f"rank {rank}: {problem}")

    def broadcast(self, tensors: Weights | None, owner: int, like: Weights) -> dict[str, Tensor]:
        """Send the tensors of one rank to all ranks.

        Args:
            tensors: Tensors of one dtype on the owner, otherwise None.
            owner: Rank of the owner.
            like: Tensors with the same names, shapes and devices.
        """
        about: list[Any] = [None if tensors is None else next(iter(tensors.values())).dtype]
        dist.broadcast_object_list(about, src=owner)
        (dtype,) = about
        sent = torch.uint8 if dtype == torch.bool else dtype
        received = {}
        for name in sorted(like):
            if tensors is None:
                tensor = torch.empty(like[name].shape, dtype=sent, device=like[name].device)
            else:
                tensor = tensors[name].to(sent).contiguous()
            dist.broadcast(tensor, src=owner)
            received[name] = tensor.to(dtype)
        return {name: received[name] for name in like}
