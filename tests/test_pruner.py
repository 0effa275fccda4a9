"""`isp.Pruner` in loops that are not ours."""

from __future__ import annotations

import copy
import gc
import json
import random
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import isp
from isp import attached, masks, registry
from isp.errors import ConfigError, MaskError
from isp.families import attachable
from isp.losses import default_loss
from isp.masked import MaskedParameters
from isp.ranks import Ranks
from isp.training import TrainingDiverged
from tests.support.loops import BATCH, PEAK, STEPS, Loop
from tests.support.models import Noisy, Still, equal, tiny_model

DATA = Noisy()
HEAD = ["head.*"]
ROUNDS = {"rate": 0.4, "segment_fraction": 0.2}
SETTINGS: dict[str, dict[str, Any]] = {
    "isp": {**ROUNDS, "denoisers": 2, "look_ahead_steps": 3},
    "isp_mean": {**ROUNDS, "denoisers": 2, "look_ahead_steps": 3},
    "isp_literal": {**ROUNDS, "denoisers": 1, "look_ahead_steps": 2},
    "isp_code": {"denoisers": 2, "look_ahead_fraction": 0.5},
    "synflow": {"rounds": 5},
}
"""Of methods whose defaults are for longer runs or larger models."""


def pruned(method: str, **changed: Any) -> tuple[nn.Module, isp.Ticket]:
    model = tiny_model()
    arguments = {"settings": SETTINGS.get(method, {}), "sparsity": "0.8", "steps": STEPS, "batch_size": BATCH}
    arguments |= {"learning_rate": PEAK, "exclude": HEAD, **changed}
    return model, isp.prune(model, DATA, method=method, **arguments)


def looped(method: str, **changed: Any) -> Loop:
    arguments = {"settings": SETTINGS.get(method, {}), "sparsity": "0.8", "exclude": HEAD, **changed}
    return Loop(tiny_model(), DATA, method=method, **arguments)


def same(ours: isp.Ticket, theirs: isp.Ticket) -> None:
    assert equal(ours.mask, theirs.mask)
    assert equal(ours.weights, theirs.weights)
    assert (ours.method, ours.sparsity, ours.rounds) == (theirs.method, theirs.sparsity, theirs.rounds)
    assert (ours.finding, ours.retraining) == (theirs.finding, theirs.retraining)


@pytest.mark.parametrize("method", attachable())
def test_a_loop_like_that_of_prune_gives_its_ticket_to_the_bit(method: str) -> None:
    model, ticket = pruned(method)
    loop = looped(method).run()
    same(loop.pruner.ticket(), ticket)
    assert equal(dict(loop.model.state_dict()), dict(model.state_dict()))


# --- zeros stay zeros -------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=PEAK, weight_decay=0.1),
    "AMSGrad": lambda parameters: torch.optim.AdamW(parameters, lr=PEAK, amsgrad=True, foreach=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=PEAK, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=PEAK, weight_decay=0.1),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=PEAK, weight_decay=0.1),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=PEAK, initial_accumulator_value=0.1),
    "Noisy": lambda parameters: NoisyUpdate(parameters, lr=PEAK),
}


class NoisyUpdate(torch.optim.SGD):
    """Moves every weight, whatever its gradient, and keeps a memory of it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        for parameter in self.param_groups[0]["params"]:
            parameter += 1e-3
            self.state[parameter]["memory"] = parameter.clone()


def per_weight(loop: Loop, name: str) -> list[Tensor]:
    """A weight and what the optimizer keeps for each of its entries."""
    weight = loop.model.get_parameter(name)
    return [weight, *(v for v in loop.optimizer.state[weight].values() if v.shape == weight.shape)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("accumulate", "set_to_none"), [(1, True), (2, False)])
def test_masked_weights_and_moments_are_zero_after_every_step(
    optimizer: str, accumulate: int, set_to_none: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = looped("gradual", optimizer=OPTIMIZERS[optimizer], accumulate=accumulate, set_to_none=set_to_none)
    clip, seen = nn.utils.clip_grad_norm_, []

    def check_gradients(parameters: Any, norm: float) -> Tensor:
        for name, kept in (loop.pruner.mask or {}).items():
            gradient = loop.model.get_parameter(name).grad
            assert not gradient[~kept].any()
            seen.append(gradient[kept].any())
        return clip(parameters, norm)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", check_gradients)
    for step in range(1, STEPS + 1):
        loop.run(step)
        for name, kept in (loop.pruner.mask or {}).items():
            for tensor in per_weight(loop, name):
                assert not tensor[~kept].any()
                assert not torch.signbit(tensor[~kept]).any()  # +0.0
    assert any(seen)
    assert masks.num_kept(loop.pruner.ticket().mask) == 592 - round(0.8 * 592)


def test_a_record_during_the_run_is_of_one_event() -> None:
    """It had the step of the last event with the sparsity of an earlier one."""
    loop = looped("gradual")
    reached = {}
    for step in range(1, STEPS + 1):
        loop.run(step)
        reached[step] = loop.pruner.sparsity
        (record,) = loop.pruner.record
        assert float(record["sparsity"]) == pytest.approx(reached[record["step"]], abs=5e-5)
        assert record["ramp"][-1]["step"] == record["step"] if "ramp" in record else record["step"] == 1
    assert record["sparsity"] == "0.8007"


def test_frozen_parameters_and_groups_are_left_as_they_are() -> None:
    model = tiny_model()
    model.up.requires_grad_(False)
    before = model.up.weight.clone()
    plain = [p for n, p in model.named_parameters() if "norm" in n or n.endswith("bias")]
    decayed = [p for p in model.parameters() if not any(p is each for each in plain)]

    def make(_: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=PEAK)

    decays = []

    def step(batch: Any) -> None:
        decays.append([group["weight_decay"] for group in loop.optimizer.param_groups])
        loop.train_step(batch)

    settings = {**SETTINGS["isp"], "weight_decays": [0.5]}
    loop = Loop(model, DATA, make, method="isp", settings=settings, sparsity="0.5", train_step=step)
    loop.run()
    assert "up.weight" not in loop.pruner.ticket().mask
    assert torch.equal(model.up.weight, before)
    assert decays == [[0.5, 0.0]] * len(decays)  # the copies'
    assert [group["weight_decay"] for group in loop.optimizer.param_groups] == [0.01, 0.0]


def step_by_hand(pruner: isp.Pruner, gradients: Callable[[], None], **arguments: Any) -> None:
    gradients()
    pruner.optimizer.step(**arguments)
    pruner.step()
    pruner.optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adam", "Adafactor"])
@pytest.mark.parametrize("how", ["noise", "assigned", "expanded", "closure"])
def test_masked_weights_stay_zero_whatever_happens_to_gradients(optimizer: str, how: str) -> None:
    model = tiny_model()
    pruner = isp.Pruner(
        model, OPTIMIZERS[optimizer](model.parameters()), method="one_shot", sparsity=0.5, steps=3, exclude=HEAD
    )
    weight, kept = model.up.weight, (pruner.mask or {})["up.weight"]

    def change() -> None:
        default_loss(model, DATA.batch(torch.arange(BATCH))).backward()
        if how in ("noise", "closure"):
            weight.grad += 1e-3
            weight.grad[~kept] = torch.nan
        else:
            weight.grad = torch.ones(()).expand_as(weight) if how == "expanded" else torch.ones_like(weight)

    for _ in range(3):
        if how == "closure":
            step_by_hand(pruner, lambda: None, closure=change)
        else:
            step_by_hand(pruner, change)
        assert not weight[~kept].any()
        assert not torch.signbit(weight[~kept]).any()
        assert weight[kept].all()
    if (optimizer, how) == ("Adafactor", "closure"):  # its moments are sums over rows, so a NaN reaches kept weights
        with pytest.raises(MaskError, match=r"pruner.ticket\(\): parameter .* contains NaN or infinite values after 3"):
            pruner.ticket()
    else:
        pruner.ticket()


@pytest.mark.parametrize("method", ["one_shot", "gradual"])
def test_loaded_moments_revive_no_masked_weight(method: str) -> None:
    """Those of a dense run, and those of the same run when fewer weights were masked."""
    dense = looped("gradual", sparsity="0.01").run(8)
    loop = looped(method)
    loop.optimizer.load_state_dict(dense.optimizer.state_dict())
    for step in range(1, STEPS + 1):
        if step == 20:
            loop.optimizer.load_state_dict(dense.optimizer.state_dict())
        loop.run(step)
        for name, kept in (loop.pruner.mask or {}).items():
            assert not any(tensor[~kept].any() for tensor in per_weight(loop, name))
    loop.pruner.ticket()


def test_masking_gradients_again_changes_no_bit() -> None:
    loop = looped("one_shot")
    default_loss(loop.model, DATA.batch(torch.arange(BATCH))).backward()
    for parameter in loop.pruner._parameters.values():
        parameter.grad[0, :4] = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf])
    before = {name: parameter.grad.clone() for name, parameter in loop.pruner._parameters.items()}
    loop.pruner._masked.mask_gradients()
    for name, parameter in loop.pruner._parameters.items():
        kept = (loop.pruner.mask or {})[name]
        assert torch.equal(parameter.grad.view(torch.int32)[kept], before[name].view(torch.int32)[kept])
        assert not parameter.grad.view(torch.int32)[~kept].any()


class Lookahead(torch.optim.Optimizer):
    """Moves the weights toward slow ones after every second update of another optimizer (Zhang et al., 2019)."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer, self.param_groups, self.updates = optimizer, optimizer.param_groups, 0
        self.slow = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)
        self.updates += 1
        for parameter, slow in self.slow if self.updates % 2 == 0 else []:
            parameter.copy_(slow.lerp_(parameter, 0.5))


@pytest.mark.parametrize("method", ["gradual", "isp"])
def test_weights_to_which_a_wrapper_of_the_optimizer_writes_are_zero_after_every_step(method: str) -> None:
    in_copies = []

    def step(batch: Any) -> None:
        if loop.pruner._copying and loop.pruner._masked.revived():
            in_copies.append(loop.pruner._masked.revived())  # of the previous step, since the copy has begun
        loop.train_step(batch)

    loop = looped(method, optimizer=lambda parameters: Lookahead(OPTIMIZERS["AdamW"](parameters)), train_step=step)
    for until in range(1, STEPS + 1):
        loop.run(until)
        assert loop.pruner._masked.revived() is None
    assert not in_copies
    loop.pruner.ticket()


class Viewed(nn.Module):
    """Adds views of two weights, to which autograd gives views of one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 1, bias=False), nn.Conv1d(4, 8, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.first.weight.view(8, 4) + self.second.weight.view(8, 4))


@pytest.mark.parametrize("assigned", [False, True])
def test_a_gradient_that_shares_memory_with_another_one_is_masked_alone(assigned: bool) -> None:
    torch.manual_seed(0)
    model = Viewed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = isp.Pruner(model, optimizer, method="one_shot", sparsity=0.5, steps=4, exclude=["second.*"])
    first, second = model.first.weight, model.second.weight
    model(torch.randn(16, 4)).square().mean().backward()
    if assigned:
        first.grad = second.grad.view_as(first)
        optimizer.step()
    assert second.grad.all()
    assert torch.equal(first.grad != 0, (pruner.mask or {})["first.weight"])


def test_a_gradient_that_is_part_of_a_buffer_stays_there() -> None:
    """DDP and loops with flat gradients read the buffer."""
    loop = looped("one_shot")
    weights = list(loop.pruner._parameters.values())
    buffer = torch.ones(sum(weight.numel() for weight in weights))
    for weight, part in zip(weights, buffer.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight)
    loop.pruner._masked.mask_gradients()
    assert int(buffer.sum()) == masks.num_kept(loop.pruner.mask or {})


# --- errors inside a step ---------------------------------------------------------------------------------------------


class Unreliable(torch.optim.AdamW):
    """Raises before an update on demand."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            self.fails = False
            raise KeyboardInterrupt
        return super().step(closure)


@pytest.mark.parametrize("where", ["optimizer", "closure"])
def test_an_error_in_an_update_leaves_the_pruner_usable(where: str) -> None:
    model = tiny_model()
    optimizer = Unreliable(model.parameters(), lr=PEAK)
    pruner = isp.Pruner(model, optimizer, method="one_shot", sparsity=0.5, steps=4, exclude=HEAD)
    failures = [where == "closure"]

    def closure() -> Tensor:
        if failures.pop():
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = default_loss(model, DATA.batch(torch.arange(BATCH)))
        loss.backward()
        return loss

    optimizer.fails = where == "optimizer"
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    for step in range(1, 5):
        failures.append(False)
        optimizer.step(closure)
        pruner.step()
        assert pruner.steps_done == step
        assert pruner._masked.revived() is None
    pruner.ticket()


def test_a_round_whose_look_ahead_raises_can_be_repeated() -> None:
    expected = looped("isp").run().pruner.ticket()
    calls: list[int] = []

    def step(batch: Any) -> None:
        if loop.pruner._copying:
            calls.append(len(calls))
            if len(calls) == 5:  # in the second copy of the first round, after the first has contributed
                raise torch.cuda.OutOfMemoryError
        loop.train_step(batch)

    loop = looped("isp", train_step=step)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        loop.run()
    done = loop.pruner.steps_done
    with pytest.raises(ConfigError, match=f"called again after {done} steps without .* again if it raised an error"):
        loop.optimizer.step()
    assert loop.pruner.step()
    assert loop.pruner.steps_done == done + 1
    same(loop.run().pruner.ticket(), expected)


@pytest.mark.parametrize("where", ["before unscale_", "after unscale_", "after step"])
def test_a_round_that_raises_under_a_scaler_can_be_repeated(where: str) -> None:
    def scaled(train_step: Callable[[Any], None] | None = None) -> Loop:
        own = {} if train_step is None else {"train_step": train_step}
        return looped("isp", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10), **own)

    expected = scaled().run().pruner.ticket()
    failures = [where]

    def step(batch: Any) -> None:
        if loop.pruner._copying and failures:
            loop.scaler.scale(default_loss(loop.model, batch)).backward()
            if where != "before unscale_":
                loop.scaler.unscale_(loop.optimizer)
            if where == "after step":
                loop.scaler.step(loop.optimizer)
            failures.clear()
            raise MemoryError
        loop.train_step(batch)

    loop = scaled(step)
    with pytest.raises(MemoryError):
        loop.run()
    assert loop.pruner.step()
    same(loop.run().pruner.ticket(), expected)


class Tables(nn.Module):
    """Has buffers to which ordinary code cannot write in place, beside those of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.head = nn.BatchNorm1d(8), nn.Linear(8, 21), nn.Linear(21, 3)
        self.register_buffer("expanded", torch.ones(8).expand(5, 8), persistent=False)
        with torch.inference_mode():
            self.register_buffer("inferred", torch.ones(8), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(self.norm((inputs * self.expanded).mean(1) * self.inferred.clone()))))


def test_buffers_that_cannot_be_written_to_do_not_stop_look_aheads() -> None:
    loop = Loop(Tables(), DATA, method="isp", settings=SETTINGS["isp"], sparsity="0.5", exclude=HEAD).run()
    assert float(loop.pruner.ticket().sparsity) == 0.5
    assert isp.prune(Tables(), DATA, sparsity="0.5", steps=8, batch_size=BATCH, learning_rate=PEAK, method="gradual")


def test_a_round_that_is_overdue_is_an_error_at_once() -> None:
    """As after loading a state without its steps per epoch, from a run with more of them."""
    first = looped("isp", steps_per_epoch=5).run(2)
    state = first.pruner.state_dict()
    loop = looped("isp", steps_per_epoch=10)
    with pytest.raises(ConfigError, match="steps_per_epoch is 5 in the state and 10 here"):
        loop.pruner.load_state_dict(state)
    about = json.loads(state["about"])
    assert about.pop("steps_per_epoch") == 5
    older = {**state, "about": json.dumps(about)}
    again = looped("isp", steps_per_epoch=5)
    again.pruner.load_state_dict(older)
    for part, other in ((again.model, first.model), (again.optimizer, first.optimizer), (again, first)):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    same(again.run().pruner.ticket(), looped("isp", steps_per_epoch=5).run().pruner.ticket())
    late = looped("isp", steps_per_epoch=5)
    late.pruner.steps_done = 1
    with pytest.raises(ConfigError, match="round 0 should have pruned after 1 updates, but 2 were made without it"):
        late.run()


def test_steps_per_epoch_may_change_if_the_schedule_does_not_depend_on_it() -> None:
    first = looped("gradual", steps_per_epoch=5)
    looped("gradual", steps_per_epoch=10).pruner.load_state_dict(first.pruner.state_dict())


# --- gradient scalers and gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["movement", "isp"])
def test_a_gradient_scaler_changes_nothing(method: str) -> None:
    """Scales are powers of two, so gradients are the same to the bit once they are unscaled."""
    ticket = looped(method).run().pruner.ticket()
    scaled = looped(method, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    same(scaled.run().pruner.ticket(), ticket)


def test_a_step_that_the_scaler_skips_counts() -> None:
    loop = looped("gradual", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    loop.run(3)
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    broken = (torch.full((BATCH, 5, 8), torch.inf), torch.zeros(BATCH, dtype=torch.long))
    loop.train_step(broken)
    assert equal(before, dict(loop.model.state_dict()))
    loop.pruner.step()
    assert loop.pruner.steps_done == 4
    loop.run()
    assert loop.pruner.ticket().sparsity == Decimal("0.8")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("skipped", [0, 5])
def test_movement_adds_nothing_in_a_step_that_the_scaler_skips(fused: bool, skipped: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=PEAK, fused=fused)

    loop = looped("movement", optimizer=make, scaler=scaler).run(skipped)
    before = copy.deepcopy(loop.pruner._attached.at.memory)
    loop.train_step((torch.full((BATCH, 5, 8), torch.inf), torch.zeros(BATCH, dtype=torch.long)))
    changed = loop.pruner.step()
    assert equal(loop.pruner._attached.at.memory, before)
    assert not loop.pruner._gradients
    assert changed == (skipped > 0)  # without any scores, the method waits for the next event
    loop.run()
    assert loop.pruner.ticket().sparsity == Decimal("0.8")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_movement_sees_the_whole_gradient_before_it_is_clipped(accumulate: int) -> None:
    """Against Adam beside the loop, from gradients that a copy of the model gives."""
    settings = {"every": 5, "begin": 0, "end": 0.5}
    loop = looped("movement", clip_norm=1e-3, accumulate=accumulate, settings=settings)
    order = isp.BatchOrder(len(DATA), BATCH, 0)
    names = loop.pruner.trainer.prunable
    scores = {name: torch.nn.Parameter(torch.zeros_like(loop.model.get_parameter(name))) for name in names}
    adam = torch.optim.Adam(scores.values(), lr=1)
    for step in range(14):
        model = copy.deepcopy(loop.model)
        isp.seed_step(0, step)
        inputs, labels = DATA.batch(order(step))
        for part in zip(inputs.chunk(accumulate), labels.chunk(accumulate), strict=True):
            (default_loss(model, part) / accumulate).backward()
        for name in names:
            weight = model.get_parameter(name)
            kept = 1 if loop.pruner.mask is None else loop.pruner.mask[name]
            scores[name].grad = weight.grad * kept * weight.detach()
        adam.step()
        loop.run(step + 1)
    memory = loop.pruner._attached.at.memory
    for name in names:
        torch.testing.assert_close(memory[f"score {name}"], scores[name].detach())
        assert int(memory[f"updates {name}"]) == 14


def test_movement_sees_gradients_that_are_assigned() -> None:
    """As those that backward() accumulates; gradients that only a closure computes are not seen."""
    accumulated = looped("movement", clip_norm=None).run().pruner.ticket()
    loop = looped("movement", clip_norm=None)
    parameters = list(loop.model.parameters())

    def train_step(batch: Any) -> None:
        loss = default_loss(loop.model, batch)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        loop.set_learning_rate()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        loop.scheduled += 1

    loop.train_step = train_step  # type: ignore[method-assign]
    same(loop.run().pruner.ticket(), accumulated)

    model = tiny_model()
    pruner = isp.Pruner(model, torch.optim.SGD(model.parameters()), method="movement", sparsity=0.5, steps=9)
    with pytest.raises(ConfigError, match=r"'movement' scores weights by their gradients.*not in a closure"):
        step_by_hand(pruner, lambda: None, closure=lambda: model.up.weight.sum().backward())


# --- look-aheads ------------------------------------------------------------------------------------------------------


class Batchy(nn.Module):
    """A norm with buffers, dropout, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(8), nn.Linear(8, 16)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.layer(self.norm(inputs.mean(1))))))


def test_everything_is_put_back_after_look_aheads() -> None:
    torch.manual_seed(0)
    model = Batchy()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    generator = random.Random(0)

    def train_step(batch: Any) -> None:
        generator.random()
        random.random(), np.random.random()
        scaler.scale(default_loss(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step()

    pruner = isp.Pruner(
        model,
        optimizer,
        method="isp",
        sparsity=0.5,
        steps=20,
        settings={"segment_fraction": 0.5, "rate": 0.3, "denoisers": 3, "look_ahead_steps": 4},
        train_step=train_step,
        data=(DATA.inputs, DATA.labels),
        batch_size=20,
        scheduler=schedule,
        scaler=scaler,
    )
    model.eval()
    model.layer.train()
    states = []
    for step in (1, 2):  # the first round is at step 2
        train_step((DATA.inputs[:20], DATA.labels[:20]))
        model.head.bias.grad = torch.ones(3)
        states = [everything(model, optimizer, schedule, scaler)]
        assert pruner.step() == (step == 2)
        states.append(everything(model, optimizer, schedule, scaler))
    before, after = states
    mask = pruner.mask or {}
    for name, kept in mask.items():
        before["model"][name][~kept] = 0
        for moment in ("exp_avg", "exp_avg_sq"):
            before["optimizer"]["state"][list(dict(model.named_parameters())).index(name)][moment][~kept] = 0
    assert same_tree(before, after)
    assert model.head.bias.grad.tolist() == [1, 1, 1]
    assert [module.training for module in (model.norm, model.layer, model.drop)] == [False, True, False]
    assert model.layer.weight.grad is None


def everything(model: nn.Module, optimizer: Any, schedule: Any, scaler: Any) -> dict[str, Any]:
    states = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    found = {name: copy.deepcopy(each.state_dict()) for name, each in states.items()}
    state = np.random.get_state()
    return {
        **found,
        "torch": torch.get_rng_state(),
        "numpy": [*state[1].tolist(), *state[2:]],
        "python": random.getstate(),
    }


def same_tree(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return bool(a == b)


def test_data_may_be_a_loader_or_a_function_of_a_seed() -> None:
    pairs = torch.utils.data.TensorDataset(Still().inputs, Still().labels)
    examples = looped("isp", data=pairs).run().pruner.ticket()
    loader = torch.utils.data.DataLoader(pairs, batch_size=BATCH, shuffle=True)
    same(looped("isp", data=loader, batch_size=None).run().pruner.ticket(), examples)
    seeds = []

    def batches(seed: int) -> Iterator[Any]:
        seeds.append(seed)
        while True:
            yield DATA.batch(torch.arange(BATCH))

    loop = looped("isp", data=batches, loss=None, steps_per_epoch=5).run()
    assert loop.pruner.ticket().rounds[0]["changed"] > 0
    assert len(set(seeds)) == len(seeds) == 2 * len(loop.pruner.record)


ROWS = torch.arange(24.0).view(8, 3)
LOADERS: dict[str, Any] = {
    "tensor": torch.utils.data.DataLoader(ROWS, batch_size=2),
    "list": torch.utils.data.DataLoader(list(ROWS), batch_size=2),
    "collated": torch.utils.data.DataLoader(list(ROWS), batch_size=2, collate_fn=lambda rows: {"x": torch.stack(rows)}),
    "dicts": torch.utils.data.DataLoader([{"x": row} for row in ROWS], batch_size=2),
    "pairs": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ROWS, ROWS), batch_size=2),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_of_a_loader_are_those_that_it_gives(kind: str) -> None:
    pruner = looped("gradual", data=LOADERS[kind], batch_size=None, loss=None).pruner
    ours, theirs = pruner.trainer.examples.batch(torch.tensor([0, 1])), next(iter(LOADERS[kind]))
    assert type(ours) is type(theirs)
    assert same_tree(ours, theirs)


@pytest.mark.parametrize(
    ("data", "got"),
    [((DATA.inputs, DATA.labels), "a tuple"), (None, "nothing"), (lambda seed: iter(()), "a function")],
)
def test_a_collate_function_without_items_is_refused(data: Any, got: str) -> None:
    with pytest.raises(ConfigError, match=f"collate: data must be a map-style dataset or a DataLoader, got {got}"):
        looped("gradual", data=data, collate=list, steps_per_epoch=5, loss=None)


def rates_of_copies(kind: Callable[[float], Any]) -> list[float]:
    """Return the rates of copies with their own schedule, where the run's scheduler writes to a rate of this kind."""
    rates: list[float] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=kind(PEAK))
        optimizer.register_step_pre_hook(lambda *_: rates.extend(map(float, loop.pruner._rates or ())))
        return optimizer

    def step(batch: Any) -> None:
        default_loss(loop.model, batch).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        schedule.step()

    settings = {**SETTINGS["isp"], "warmup_steps": 2, "look_ahead_steps": 4}
    loop = looped("isp", optimizer=make, settings=settings, train_step=step, scheduler=None)
    loop.train_step = step  # type: ignore[method-assign]
    schedule = torch.optim.lr_scheduler.ExponentialLR(loop.optimizer, 0.5)
    loop.pruner._others = {"scheduler": schedule}
    loop.run(5)
    return rates


def test_a_learning_rate_in_a_tensor_gives_copies_the_rates_of_a_number() -> None:
    rates = rates_of_copies(float)
    assert any(rates)
    assert rates == pytest.approx(rates_of_copies(torch.tensor), rel=1e-6)


def test_factors_of_learning_rates_are_applied_and_taken_back() -> None:
    """By Pruner, or by the loop; the products are the same except for the order of the factors."""
    settings = {**SETTINGS["isp"], "learning_rate_factors": [3.0, 3.0]}
    rates: dict[bool, list[float]] = {}
    for ours in (True, False):
        loop = looped("isp", settings=settings, scale_learning_rate=ours)
        if ours:
            loop.factor = 1.0
        rates[ours] = loop.rates
        loop.run()
        assert loop.optimizer.param_groups[0]["lr"] == 0.0  # at T
    assert rates[True] == pytest.approx(rates[False], rel=1e-12)
    falling = [PEAK * (STEPS - step) / STEPS for step in range(STEPS)]
    assert rates[True][1:4] == pytest.approx([3 * rate for rate in falling[1:4]], rel=1e-12)  # the first copy


def test_a_loader_without_examples_by_number_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(DATA.inputs)

    with pytest.raises(ConfigError, match="data: a Stream cannot be indexed by number"):
        looped("isp", data=torch.utils.data.DataLoader(Stream(), batch_size=BATCH), batch_size=None)


@pytest.mark.parametrize("method", ["movement", "isp"])
def test_a_model_in_half_precision_is_pruned_as_it_is(method: str) -> None:
    model = tiny_model().bfloat16()
    examples = Still()
    examples.inputs = examples.inputs.bfloat16()
    settings = SETTINGS.get(method, {})
    loop = Loop(model, examples, method=method, settings=settings, sparsity="0.8", exclude=HEAD).run()
    ticket = loop.pruner.ticket()
    assert all(tensor.dtype == torch.bfloat16 for tensor in ticket.weights.values())
    assert masks.num_kept(ticket.mask) == 592 - 474


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["snip", "gradual", "movement", "early_bird", "isp", "isp_code"])
@pytest.mark.parametrize("cut", [1, 7])
def test_a_run_that_was_cut_goes_on_to_the_bit(method: str, cut: int, tmp_path: Path) -> None:
    whole = looped(method).run().pruner.ticket()
    first = looped(method).run(cut)
    parts = {"model": first.model, "optimizer": first.optimizer, "pruner": first.pruner, "loop": first}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state")
    second = looped(method)
    state = torch.load(tmp_path / "state", weights_only=True)
    second.pruner.load_state_dict(state["pruner"])
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["loop"])
    same(second.run().pruner.ticket(), whole)


@pytest.mark.parametrize("method", ["movement", "isp", "gradual"])
def test_training_leaves_a_state_as_it_is(method: str) -> None:
    first = looped(method).run(7)
    state = first.pruner.state_dict()
    others = copy.deepcopy([each.state_dict() for each in (first.model, first.optimizer, first)])
    first.run()
    for _ in range(2):
        loop = looped(method)
        loop.pruner.load_state_dict(state)
        for part, other in zip((loop.model, loop.optimizer, loop), copy.deepcopy(others), strict=True):
            part.load_state_dict(other)
        same(loop.run().pruner.ticket(), first.pruner.ticket())


def test_between_update_and_step_there_is_no_state() -> None:
    """The run that continued from it would make the step twice."""
    loop = looped("gradual").run(3)
    loop.train_step(DATA.batch(torch.arange(BATCH)))
    with pytest.raises(ConfigError, match=r"state_dict\(\): called between optimizer.step\(\) and .* after 3 steps"):
        loop.pruner.state_dict()
    loop.pruner.step()
    assert loop.pruner.state_dict()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_step_is_called_once_after_each_update() -> None:
    loop = looped("gradual").run(2)
    with pytest.raises(ConfigError, match=r"optimizer.step\(\) was not called since the last call, after 2 steps"):
        loop.pruner.step()
    loop.train_step(DATA.batch(torch.arange(BATCH)))
    with pytest.raises(ConfigError, match=r"called again after 2 steps without pruner.step\(\)"):
        loop.train_step(DATA.batch(torch.arange(BATCH)))
    loop.pruner.close()
    loop.train_step(DATA.batch(torch.arange(BATCH)))
    with pytest.raises(ConfigError, match="the pruner was closed after 2 steps"):
        loop.pruner.step()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"method": "lth"}, r"method 'lth' \(family 'iterative'\) trains the model more than once.*isp.prune.*gradual"),
        ({"method": "dense"}, "method 'dense' .*sparsity is 0|dense"),
        ({"method": "isp", "train_step": None}, "train_step: missing"),
        ({"method": "isp", "data": None}, "steps_per_epoch: missing"),
        ({"method": "isp", "data": None, "steps_per_epoch": 5}, "data: missing"),
        ({"method": "snip", "data": None}, "data: missing; method 'snip' scores weights on training examples"),
        ({"method": "isp", "batch_size": None}, "batch_size: missing"),
        ({"method": "isp", "settings": {"segment_fraction": 1.0, "rate": 0.1}}, "rounds exceed the budget"),
        ({"method": "gradual", "sparsity": "0.9999"}, "would keep none of 592"),
        ({"method": "gradual", "sparsity": 0}, "give sparsities above 0"),
        ({"method": "gradual", "prunable": ["nothing.*"]}, "nothing"),
        ({"method": "gradual", "look_aheads": "apart"}, "look_aheads = 'apart'"),
        ({"method": "gradual", "settings": {"scope": "5:7"}}, "5:7"),
        ({"batch_size": 0}, "batch_size = 0: must be an integer of at least 1"),
        ({"batch_size": "8"}, "batch_size = '8': must be an integer"),
        ({"steps_per_epoch": 0}, "steps_per_epoch = 0: must be an integer of at least 1"),
        ({"steps_per_epoch": 8.5}, "steps_per_epoch = 8.5: must be an integer"),
        ({"prunable": "*.weight"}, r"prunable = '\*.weight': must be a list of patterns, such as \['\*.weight'\]"),
        ({"exclude": [1]}, r"exclude = \[1\]: must be a list of patterns"),
        ({"method": None}, "method = None: must be a text"),
        ({"settings": [1]}, r"settings = \[1\]: must be a dict"),
        ({"loss": 5}, r"loss = 5: must be a function of \(model, batch\)"),
        ({"train_step": 5}, "train_step = 5: must be a function of a batch"),
        ({"seed": 1.5}, "seed = 1.5: must be an integer"),
        ({"method": "gradual", "state": {}}, "not a state of a pruner.*got a dict of 0 other entries"),
        ({"method": "gradual", "state": tiny_model().state_dict()}, r"pass a result of pruner.state_dict\(\)"),
        ({"method": "isp", "batch_size": 64, "steps_per_epoch": 2}, "data_fraction = 0.5: a look-ahead's 40 of 80"),
        ({"scheduler": [1]}, r"scheduler = \[1\]: must be one scheduler, with state_dict and load_state_dict"),
        ({"scaler": True}, "scaler = True: must be a torch.amp.GradScaler, or None"),
        ({"data": lambda: [], "steps_per_epoch": 5}, "data: a function must accept a seed .*too many positional arg"),
    ],
)
def test_bad_arguments_are_refused_and_leave_no_hook(arguments: dict[str, Any], problem: str) -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=problem):
        Loop(model, DATA, **{"sparsity": "0.8", "exclude": HEAD, **arguments})
    assert equal(before, dict(model.state_dict()))
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_scaler_that_is_switched_off_skips_no_update() -> None:
    model = tiny_model()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    pruner = isp.Pruner(model, sgd(model), method="one_shot", sparsity=0.5, steps=4, exclude=HEAD, scaler=scaler)
    with pytest.raises(ConfigError, match=r"optimizer.step\(\) was not called since the last call, after 0 steps"):
        pruner.step()


@pytest.mark.parametrize("method", ["isp", "snip", "gradual", "one_shot"])
def test_a_loader_of_some_examples_is_refused_by_methods_that_draw_from_all(method: str) -> None:
    """A copy, or a score, would otherwise see examples that the loop holds out."""
    dataset = torch.utils.data.TensorDataset(DATA.inputs, DATA.labels)
    sampler = torch.utils.data.SubsetRandomSampler(range(40))
    arguments: dict[str, Any] = {
        "data": torch.utils.data.DataLoader(dataset, BATCH, sampler=sampler),
        "batch_size": None,
    }
    balanced = torch.utils.data.WeightedRandomSampler(torch.ones(80).tolist(), 80)
    looped(method, **arguments | {"data": torch.utils.data.DataLoader(dataset, BATCH, sampler=balanced)})
    if method in ("gradual", "one_shot"):
        looped(method, **arguments)
        return
    with pytest.raises(
        ConfigError, match=f"has a SubsetRandomSampler, but method '{method}' would draw from its whole"
    ):
        looped(method, **arguments)


def test_batches_that_a_function_does_not_return_are_named() -> None:
    loop = looped("isp", data=lambda seed: None, steps_per_epoch=5)
    with pytest.raises(ConfigError, match="data: the function of a seed must return an iterable of batches, got None"):
        loop.run()


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.up.parameters(), lr=1.0)
    with pytest.raises(
        ConfigError, match=r"lacks 3 of 4 prunable parameters, such as .*exclude=, or create one Pruner per optimizer"
    ):
        isp.Pruner(model, optimizer, method="gradual", sparsity=0.5, steps=10, exclude=HEAD)
    with pytest.raises(ConfigError, match=r"must be a torch.optim.Optimizer, got a list"):
        isp.Pruner(model, [], method="gradual", sparsity=0.5, steps=10)


def replace_weight(loop: Loop) -> None:
    loop.model.down.weight = nn.Parameter(torch.zeros(8, 21))


def freeze(loop: Loop) -> None:
    loop.model.down.weight.requires_grad_(False)


def write_to_frozen(loop: Loop) -> None:
    with torch.no_grad():
        loop.model.head.weight.zero_()


def two_updates(loop: Loop) -> None:
    loop.train_step(DATA.batch(torch.arange(BATCH)))


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (replace_weight, "train_step, in look-ahead 0 of round 0: replaced 'down.weight'"),
        (freeze, "froze or unfroze 'down.weight'"),
        (write_to_frozen, "wrote to parameter 'head.weight', which is not trained"),
        (two_updates, r"called optimizer.step\(\) 2 times"),
    ],
)
def test_a_train_step_that_does_something_else_is_refused(harm: Callable[[Loop], None], problem: str) -> None:
    model = tiny_model()
    model.head.requires_grad_(False)

    def step(batch: Any) -> None:
        loop.train_step(batch)
        harm(loop)

    loop = Loop(model, DATA, method="isp", settings=SETTINGS["isp"], sparsity="0.8", train_step=step)
    with pytest.raises(ConfigError, match=problem):
        loop.run()


def test_a_look_ahead_without_an_update_is_refused() -> None:
    loop = looped("isp", train_step=lambda batch: None)
    with pytest.raises(ConfigError, match=r"called optimizer.step\(\) 0 times"):
        loop.run()


def test_a_look_ahead_that_diverges_is_named_and_undone() -> None:
    def step(batch: Any) -> None:
        loop.train_step((batch[0] * torch.inf, batch[1]))

    loop = looped("isp", train_step=step)
    with pytest.raises(TrainingDiverged, match=r"look-ahead 0 of round 0 \(learning rate x .*\) diverged") as raised:
        loop.run()
    assert all(p.isfinite().all() for p in loop.model.parameters())
    assert equal(raised.value.state.weights, dict(loop.model.state_dict()))  # the run's, not the copy's


def test_weights_that_are_nan_are_refused() -> None:
    loop = looped("gradual").run(2)
    with torch.no_grad():
        loop.model.up.weight[0, 0] = torch.nan
    loop.pruner._stepped = True
    with pytest.raises(
        MaskError, match=r"'up.weight' contains NaN or infinite values after 3 steps.* and lower the optimizer's"
    ):
        loop.pruner.step()


def test_masked_weights_are_zero_in_look_aheads_whatever_the_optimizer() -> None:
    checked = []

    def step(batch: Any) -> None:
        loop.train_step(batch)
        for name, kept in (loop.pruner.mask or {}).items():
            for tensor in per_weight(loop, name):
                checked.append(not tensor[~kept].any())

    loop = looped("isp", optimizer=OPTIMIZERS["Noisy"], train_step=step)
    loop.run()
    assert checked
    assert all(checked)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"method": "progressive"}, "method is 'gradual' in the state and 'progressive' here"),
        ({"sparsity": "0.7"}, "sparsity is '0.8000' in the state and '0.7000' here"),
        ({"seed": 1}, "seed is 0 in the state and 1 here"),
        ({"exclude": []}, "prunable is "),
    ],
)
def test_a_state_of_another_run_is_refused(changed: dict[str, Any], problem: str) -> None:
    state = looped("gradual").run(5).pruner.state_dict()
    loop = looped(changed.pop("method", "gradual"), **changed)
    with pytest.raises(ConfigError, match=problem):
        loop.pruner.load_state_dict(state)


def test_a_state_of_another_model_or_without_its_weights_is_refused() -> None:
    state = looped("gradual").run(5).pruner.state_dict()
    loop = looped("gradual")
    loop.pruner.load_state_dict(state)
    with pytest.raises(ConfigError, match="that the loaded mask drops are not zero; load the state of the model"):
        loop.run()
    other = tiny_model()
    other.up, other.down = nn.Linear(8, 20), nn.Linear(20, 8)
    wider = Loop(other, DATA, method="gradual", sparsity="0.8", exclude=HEAD)
    with pytest.raises(MaskError, match=r"parameter 'down.weight' has shape \(8, 21\)"):
        wider.pruner.load_state_dict(state)


def test_a_ticket_before_its_time_is_refused() -> None:
    loop = looped("gradual").run(5)
    with pytest.raises(ConfigError, match=r"after 5 of 30 steps \d+ of 592 weights are pruned, but the target is 474"):
        loop.pruner.ticket()
    assert 0 < loop.pruner.sparsity < 0.8


def test_a_ticket_whose_masked_weights_were_written_to_is_refused() -> None:
    loop = looped("one_shot").run(2)
    loop.model.load_state_dict(tiny_model().state_dict())
    with pytest.raises(ConfigError, match=r"pruner.ticket\(\): \d+ weights of parameter .* are not zero; other code"):
        loop.pruner.ticket()


def test_look_aheads_draw_from_the_data_however_short_an_epoch_is() -> None:
    """Five updates to an epoch fill a copy's batch, and so does one, because the copy draws from all 80 examples."""
    settings = {**SETTINGS["isp"], "segment_fraction": 1.0}
    assert looped("isp", settings=settings, steps_per_epoch=1).run().pruner.reached


def test_flops_are_not_counted_on_data_that_do_not_fill_a_batch() -> None:
    ticket = looped("gradual", batch_size=100, steps_per_epoch=1, train_step=None)
    assert ticket.pruner.trainer.flops.total == (0,)


def test_integers_of_numpy_are_integers() -> None:
    loop = looped("random", seed=np.int64(3), steps_per_epoch=np.int64(5))
    state = loop.pruner.state_dict()
    other = looped("random", seed=3)
    other.pruner.load_state_dict(state)
    assert equal(loop.pruner.mask or {}, looped("random", seed=3).pruner.mask or {})


def test_the_methods_that_can_be_attached_are_those_of_three_families() -> None:
    families = {registry.load("method", name).FAMILY for name in attachable()}
    assert families == {"one_shot", "single_pass", "denoised"}
    assert {"one_shot", "isp", "movement", "progressive", "early_bird", "snip"} <= set(attachable())


# --- pruners that were not closed -------------------------------------------------------------------------------------


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, pruners: list[isp.Pruner], steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        default_loss(model, DATA.batch(torch.arange(BATCH) + step)).backward()
        optimizer.step()
        for pruner in pruners:
            pruner.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=PEAK)


def abandoned(steps: int, model: nn.Module, **changed: Any) -> isp.Pruner:
    """A pruner of a run that ended after some of four steps and was not closed; the model is dense again."""
    start = copy.deepcopy(model.state_dict())
    optimizer = sgd(model)
    pruner = isp.Pruner(model, optimizer, **{"method": "one_shot", "sparsity": 0.8, "steps": 4, **changed})
    trained(model, optimizer, [pruner], steps)
    model.load_state_dict(start)
    return pruner


@pytest.mark.parametrize("steps", [2, 4])
def test_prune_closes_a_pruner_that_is_still_attached(steps: int, recwarn: pytest.WarningsRecorder) -> None:
    model, fresh = tiny_model(), tiny_model()
    abandoned(steps, model)
    run = {"sparsity": 0.5, "method": "gradual", "steps": 20, "batch_size": BATCH, "learning_rate": PEAK}
    ticket = isp.prune(model, DATA, **run)
    told = [str(each.message) for each in recwarn if "closed a Pruner" in str(each.message)]
    assert len(told) == (steps < 4)
    assert all(text.startswith("isp.prune(): closed a Pruner (method 'one_shot', after 2 of 4 steps)") for text in told)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    same(ticket, isp.prune(fresh, DATA, **run))


def test_a_second_pruner_closes_the_first_one_of_the_same_parameters() -> None:
    model = tiny_model()
    first = abandoned(2, model)
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=r"isp.Pruner\(\): closed a Pruner .*after 2 of 4 steps"):
        second = isp.Pruner(model, optimizer, method="gradual", sparsity=0.5, steps=4)
    with pytest.raises(ConfigError, match="the pruner was closed after 2 steps"):
        first.step()
    trained(model, optimizer, [second], 4)
    fresh = tiny_model()
    optimizer = sgd(fresh)
    other = isp.Pruner(fresh, optimizer, method="gradual", sparsity=0.5, steps=4)
    trained(fresh, optimizer, [other], 4)
    same(second.ticket(), other.ticket())


def test_a_ticket_completes_a_run(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model()
    optimizer = sgd(model)
    first = isp.Pruner(model, optimizer, method="one_shot", sparsity=0.8, steps=4)
    trained(model, optimizer, [first], 1)
    first.ticket()
    isp.Pruner(model, optimizer, method="one_shot", sparsity=0.9, steps=4)
    assert not [each for each in recwarn if "Pruner" in str(each.message)]


def test_another_optimizer_closes_a_pruner_after_one_update() -> None:
    model = tiny_model()
    pruner = abandoned(2, model)
    dense = sgd(model)
    with pytest.warns(UserWarning, match=r"another optimizer \(SGD\) has updated, and has masked their gradients"):
        trained(model, dense, [], 1)
    start, fresh = copy.deepcopy(model.state_dict()), tiny_model()
    trained(model, dense, [], 3)
    fresh.load_state_dict(start)
    trained(fresh, sgd(fresh), [], 3)
    assert equal(dict(model.state_dict()), dict(fresh.state_dict()))
    assert pruner not in attached._ATTACHED


def test_pruners_of_disjoint_parameters_run_side_by_side(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model()
    optimizer = sgd(model)
    pruners = [
        isp.Pruner(model, optimizer, method="gradual", sparsity=sparsity, steps=4, prunable=[pattern])
        for pattern, sparsity in (("up.*", 0.5), ("down.*", 0.8))
    ]
    frozen = nn.Linear(2, 2)
    unrelated = sgd(frozen)
    unrelated.step()
    trained(model, optimizer, pruners, 4)
    assert [float(pruner.ticket().sparsity) for pruner in pruners] == [0.5, 0.8]
    assert not [each for each in recwarn if "Pruner" in str(each.message)]


class Several(torch.optim.SGD):
    """Steps all optimizers of a list, and refers to itself."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        super().__init__(optimizers[0].param_groups, lr=PEAK)
        self.optimizers, self.itself = optimizers, self

    def step(self, closure: Any = None) -> None:
        for each in self.optimizers:
            each.step(closure)


def test_an_optimizer_that_steps_that_of_the_pruner_may_train_copies() -> None:
    def step(batch: Any) -> None:
        default_loss(model, batch).backward()
        outer.step()
        model.zero_grad()

    model = tiny_model()
    inner = torch.optim.AdamW(model.parameters(), lr=PEAK)
    outer = Several([inner])
    pruner = isp.Pruner(
        *(model, inner),
        **{"method": "isp", "sparsity": 0.5, "steps": STEPS, "settings": SETTINGS["isp"], "exclude": HEAD},
        **{"train_step": step, "data": DATA, "batch_size": BATCH},
    )
    for _ in range(STEPS):
        step(DATA.batch(torch.arange(BATCH)))
        pruner.step()
    assert float(pruner.ticket().sparsity) == 0.5


@pytest.mark.parametrize("other", ["gradual", "movement"])
def test_a_look_ahead_is_no_step_of_another_pruner(other: str) -> None:
    """Of the same optimizer: the other one counts the loop's steps alone, and its weights stay masked."""
    loop = looped("isp", sparsity="0.5", prunable=["up.*"], exclude=())
    second = isp.Pruner(loop.model, loop.optimizer, method=other, sparsity="0.8", steps=STEPS, prunable=["down.*"])
    for step in range(1, STEPS + 1):
        loop.run(step)
        second.step()
        assert second.steps_done == step
        assert second._masked.revived() is None
    assert float(loop.pruner.ticket().sparsity) == 0.5
    assert loop.pruner.ticket().rounds[0]["agreement"] is not None
    ticket = second.ticket()
    assert len(ticket.rounds[0]["ramp"]) > 5
    assert masks.num_kept(ticket.mask) == round(0.2 * 168)


def test_a_look_ahead_with_a_second_optimizer_is_refused_before_its_update() -> None:
    model = tiny_model()
    first, second = (torch.optim.AdamW(each.parameters(), lr=PEAK) for each in (model.up, model.down))

    def step(batch: Any) -> None:
        default_loss(model, batch).backward()
        first.step()
        second.step()
        model.zero_grad()

    pruner = isp.Pruner(
        *(model, first),
        **{"method": "isp", "sparsity": 0.5, "steps": STEPS, "settings": SETTINGS["isp"], "prunable": ["up.*"]},
        **{"train_step": step, "data": DATA, "batch_size": BATCH},
    )
    step(DATA.batch(torch.arange(BATCH)))
    before = copy.deepcopy([model.state_dict(), first.state_dict(), second.state_dict()])
    with pytest.raises(ConfigError, match=r"made an update with another optimizer \(AdamW\), whose state would not be"):
        pruner.step()
    after = [model.state_dict(), first.state_dict(), second.state_dict()]
    assert same_tree(before, after)


class Outer(torch.optim.SGD):
    """Optimizer of the same parameters whose update is that of another one, under a name that nobody knows."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, lr=PEAK)
        self.base = base

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


@pytest.mark.parametrize("pruned_one", ["outer", "inner"])
def test_an_optimizer_within_another_one_closes_no_pruner(pruned_one: str, recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model()
    inner = sgd(model)
    outer = Outer(inner)
    chosen = inner if pruned_one == "inner" else outer
    pruner = isp.Pruner(model, chosen, method="gradual", sparsity=0.5, steps=4)
    trained(model, outer, [pruner], 4)
    assert pruner.ticket().sparsity == Decimal("0.5")
    assert not [each for each in recwarn if "Pruner" in str(each.message)]


def test_an_attached_pruner_is_freed_with_its_model() -> None:
    gc.freeze()  # garbage of earlier tests stays, and only what follows is searched
    before = len(attached._ATTACHED)
    model = tiny_model()
    abandoned(1, model)
    assert len(attached._ATTACHED) == before + 1
    del model
    gc.collect()
    assert len(attached._ATTACHED) <= before


# --- values that are not finite ---------------------------------------------------------------------------------------


def test_an_eps_that_is_zero_makes_no_masked_weight_nan() -> None:
    """Adam's default of 1e-8 is zero in fp16, so that the update of a masked weight is 0 / 0."""
    for dtype, eps in ((torch.float16, 1e-8), (torch.float32, 0.0)):
        torch.manual_seed(0)
        model = nn.Linear(8, 8).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps, foreach=False, fused=False)
        pruner = isp.Pruner(model, optimizer, method="one_shot", sparsity=0.5, steps=3)
        for _ in range(3):
            optimizer.zero_grad()
            # A gradient of 8 has a square that fp16 represents after the factor 1 - beta2.
            model.weight.grad, model.bias.grad = torch.full_like(model.weight, 8), torch.full_like(model.bias, 8)
            optimizer.step()
            pruner.step()
        weight = pruner.ticket().weights["weight"]
        assert weight.isfinite().all()
        assert int(weight.count_nonzero()) == 32


def test_an_update_keeps_zeros_only_with_an_eps_of_the_type() -> None:
    for dtype, kept in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        model = nn.Linear(2, 2, bias=False, dtype=dtype)

        weights = list(model.parameters())
        for optimizer, expected in (
            (torch.optim.AdamW(weights), kept),
            (torch.optim.Adafactor(weights), True),
            (torch.optim.SGD(weights), True),
            (torch.optim.Adam(weights, eps=0.0), False),
            (torch.optim.Adagrad(weights), False),
        ):
            assert MaskedParameters(model, ["weight"], optimizer, Ranks.here()).keeps_zeros() == expected


@pytest.mark.parametrize("normalise", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_row_that_a_norm_divides_by_zero_is_named(normalise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older weight_norm
        model = nn.Sequential(nn.Flatten(), normalise(nn.Linear(40, 32)), nn.ReLU(), nn.Linear(32, 3))
    loop = Loop(model, DATA, method="random", sparsity="0.97", exclude=["3.*"])
    loop.run(2)
    with pytest.raises(
        MaskError, match=r"ticket\(\): .* NaN .* after 2 steps; weight of layer '1' is NaN .*weight_norm"
    ):
        loop.pruner.ticket()


def test_a_ticket_of_weights_that_are_nan_says_so() -> None:
    loop = looped("one_shot").run(2)
    with torch.no_grad():
        loop.model.up.weight[:] = torch.nan
    with pytest.raises(MaskError, match=r"ticket\(\): parameter 'up.weight' contains NaN or infinite .* after 2 steps"):
        loop.pruner.ticket()


# --- other code that changes the model --------------------------------------------------------------------------------


def replace_module(model: nn.Module) -> None:
    model.up = nn.Linear(8, 21)


def rename_module(model: nn.Module) -> None:
    model.up = nn.Sequential(model.up)


@pytest.mark.parametrize("harm", [replace_module, rename_module])
@pytest.mark.parametrize("done", [0, 3, STEPS])
def test_a_parameter_that_is_replaced_is_noticed(harm: Callable[[nn.Module], None], done: int) -> None:
    loop = looped("gradual", train_step=None).run(done)
    harm(loop.model)
    with pytest.raises(
        ConfigError, match=r"parameter 'up.weight' was replaced or removed after the Pruner was created"
    ):
        loop.run().pruner.ticket()
    assert loop.pruner.steps_done <= done + 2


@pytest.mark.parametrize("between", ["steps", "update and step"])
def test_weights_that_are_loaded_during_the_run_are_noticed_at_once(between: str) -> None:
    loop = looped("one_shot").run(5)
    if between == "update and step":
        loop.train_step(DATA.batch(torch.arange(BATCH)))
    loop.model.load_state_dict(tiny_model().state_dict())
    with pytest.raises(ConfigError, match=r"step\(\): \d+ weights of .* are not zero; other code has written to them"):
        loop.pruner.step() if between == "update and step" else loop.run()
    assert loop.pruner.steps_done == 5


def test_weights_that_are_exchanged_and_restored_are_no_error() -> None:
    """Loops evaluate averages of weights in this way."""
    loop = looped("one_shot").run(5)
    weights = copy.deepcopy(loop.model.state_dict())
    loop.model.load_state_dict(tiny_model().state_dict())
    loop.model.load_state_dict(weights)
    same(loop.run().pruner.ticket(), looped("one_shot").run().pruner.ticket())


@pytest.mark.parametrize("wrap", [AveragedModel, copy.deepcopy, lambda model: nn.DataParallel(copy.deepcopy(model))])
def test_the_mask_can_be_applied_to_averaged_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    loop = looped("gradual")
    average = wrap(loop.model)  # dense
    loop.pruner.apply(average)  # there is no mask yet
    assert average.get_parameter("module.up.weight" if hasattr(average, "module") else "up.weight").all()
    loop.run()
    loop.pruner.apply(average)
    inner = getattr(average, "module", average)
    for name, kept in (loop.pruner.mask or {}).items():
        assert torch.equal(inner.get_parameter(name) != 0, kept)
    assert inner.head.weight.all()


def test_a_mask_is_applied_only_to_a_copy_of_the_model() -> None:
    pruner = looped("one_shot").pruner
    with pytest.raises(ConfigError, match=r"pruner.apply\(\): the Linear has no parameter 'attention.in_proj_weight'"):
        pruner.apply(nn.Linear(2, 2))
    other = tiny_model()
    other.up = nn.Linear(8, 20)
    with pytest.raises(MaskError, match=r"parameter 'up.weight' has shape"):
        pruner.apply(other)
