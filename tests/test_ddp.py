"""`isp.Pruner` in two processes that train one model, against one process with the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isp.errors import IspError
from isp.losses import default_loss
from isp.ranks import Ranks
from tests.support.loops import BATCH, STEPS, Loop
from tests.support.models import Still, tiny_model
from tests.support.ranks import run_checks

RANKS = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "isp": {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 3, "look_ahead_steps": 3},
    "isp_mean": {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 3, "look_ahead_steps": 3},
    "movement": {"every": 3},
}
CASES = {
    **{f"{method} {how}": (method, how) for method in ("isp", "isp_mean") for how in ("alike", "shared")},
    **{f"{method} alike": (method, "alike") for method in ("one_shot", "snip", "gradual", "movement")},
}


class Whole(Still):
    """Examples on a device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)


class Halved(Whole):
    """Examples of which each rank gets its part, where the whole batch is asked for by number."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return super().batch(Ranks.here().share(indices))


class Distributed(Loop):
    """The loop of one rank; copies are trained by the wrapped model, or by what it wraps."""

    def train_step(self, batch: Any) -> None:
        model = self.model.module if self.alone and self.pruner.learning_rate_factor != 1 else self.model
        default_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.set_learning_rate(self.pruner.learning_rate_factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduled += 1
        self.set_learning_rate()


def still_model(device: str = "cpu") -> nn.Module:
    model = tiny_model()
    model.dropout.p = 0.0
    return model.to(device)


def arguments(method: str) -> dict[str, Any]:
    return {"method": method, "sparsity": "0.8", "exclude": ["*head.*"], "settings": SETTINGS.get(method, {})}


def distributed(method: str, how: str, device: str = "cpu", **changed: Any) -> Distributed:
    Distributed.alone = how == "shared"
    model = DistributedDataParallel(still_model(device))
    given = {**arguments(method), "data": Whole(device), "batch_size": BATCH // RANKS, "look_aheads": how, "loss": None}
    return Distributed(model, Halved(device), **{**given, **changed})


def check_case(method: str, how: str, folder: Path, device: str) -> None:
    loop = distributed(method, how, device).run()
    ticket = loop.pruner.ticket()
    expected = torch.load(folder / f"{method}.pt")
    for name, kept in ticket.mask.items():
        assert torch.equal(kept, expected["mask"][name]), name
        torch.testing.assert_close(ticket.weights[name], expected["weights"][name], rtol=0, atol=2e-5)
    digests = [None] * RANKS
    dist.all_gather_object(digests, {name: tensor.tolist() for name, tensor in ticket.weights.items()})
    assert digests[0] == digests[1]


def check_other_masks() -> None:
    loop = distributed("gradual", "alike").run(3)
    if dist.get_rank() == 1:
        with torch.no_grad():
            loop.model.module.up.weight.copy_(loop.model.module.up.weight.flip(0))
    with pytest.raises(IspError, match="rank"):
        loop.run()


def check_that_all_fail() -> None:
    def step(batch: Any) -> None:
        if dist.get_rank() == 1:
            raise ArithmeticError("no")
        loop.train_step(batch)

    loop = distributed("isp", "shared", train_step=step)
    with pytest.raises((IspError, ArithmeticError), match=r"^rank 1: ArithmeticError: no$|^no$"):
        loop.run()


def check_world_size(folder: Path) -> None:
    state = torch.load(folder / "alone.pt", weights_only=True)
    with pytest.raises(IspError, match="world_size is 1 in the state and 2 here"):
        distributed("gradual", "alike").pruner.load_state_dict(state)


def cases(folder: Path, device: str) -> dict[str, Callable[[], None]]:
    """Save the ticket of one process for each method, and return the checks that compare those of two with it."""
    for method in {method for method, _ in CASES.values()}:
        ticket = Loop(still_model(device), Whole(device), **arguments(method)).run(STEPS).pruner.ticket()
        torch.save({"mask": ticket.mask, "weights": ticket.weights}, folder / f"{method}.pt")
    return {name: partial(check_case, method, how, folder, device) for name, (method, how) in CASES.items()}


def check_all(checks: Mapping[str, Callable[[], None]], folder: Path) -> None:
    failed = {name: problem for name, problem in run_checks(checks, RANKS, folder).items() if problem}
    assert not failed, "\n".join(failed.values())


@pytest.mark.process
def test_two_processes_prune_as_one_does(tmp_path: Path) -> None:
    """Every method in one launch, for what takes long is to import torch."""
    checks = cases(tmp_path, "cpu")
    alone = Loop(still_model(), Still(), **arguments("gradual")).run(5)
    torch.save(alone.pruner.state_dict(), tmp_path / "alone.pt")
    checks |= {"other masks": check_other_masks, "all fail": check_that_all_fail}
    check_all({**checks, "world size": partial(check_world_size, tmp_path)}, tmp_path)


@pytest.mark.gpu
@pytest.mark.process
def test_two_processes_on_a_gpu_prune_as_one_does(tmp_path: Path) -> None:
    """Both use the same GPU, which gloo allows and NCCL does not."""
    check_all(cases(tmp_path, "cuda"), tmp_path)


def test_a_process_without_others_is_alone() -> None:
    assert Ranks.here() == Ranks(rank=0, size=1)
