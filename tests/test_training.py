from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from isp import artifacts, masks
from isp.costs import Cost, StepFlops
from isp.divergence import SLOWER, explain
from isp.errors import ConfigError, MaskError
from isp.losses import check_labels, default_loss
from isp.seeds import seed as named_seed
from isp.training import BatchOrder, State, Trainer, Training, TrainingDiverged, learning_rate, load_weights, state_of
from tests.support.models import Noisy, Still, same, tiny_model

MakeTrainer = Callable[..., Trainer]


def mask_at(trainer: Trainer, state: State, sparsity: str) -> masks.Mask:
    return masks.prune_by_magnitude(trainer.prunable_weights(state), Decimal(sparsity))


def test_schedule_by_hand() -> None:
    training = Training(steps=10, learning_rate=1.0, warmup_steps=2)
    assert [learning_rate(training, step) for step in range(12)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0]
    )


def test_every_epoch_sees_every_example_once() -> None:
    order = BatchOrder(num_examples=23, batch_size=5, seed=7)
    assert order.steps_per_epoch == 4
    epochs = [torch.cat([order(step) for step in range(4 * e, 4 * e + 4)]) for e in range(2)]
    assert all(len(epoch.unique()) == 20 for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(order(2), epochs[0][10:15])  # going back gives the same
    subset = torch.tensor([3, 5, 8, 9, 11])
    assert set(BatchOrder(23, 5, 7, subset)(0).tolist()) == set(subset.tolist())


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size = 5: larger than the 4 training examples"):
        BatchOrder(num_examples=4, batch_size=5, seed=0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 30), max_size=3), sparsity=st.sampled_from([None, "0.7"]))
def test_cut_anywhere_and_resumed_gives_the_same_bits(make: MakeTrainer, cuts: list[int], sparsity: str | None) -> None:
    """With dropout and augmentation, and with something else drawn from the generators in between."""
    trainer = make()
    initial = state_of(trainer.model)
    mask = None if sparsity is None else mask_at(trainer, initial, sparsity)
    whole, cost = trainer.run(initial, 30, mask)
    state, steps = initial, 0
    for cut in [*sorted(cuts), 30]:
        torch.rand(17)
        state, part = make().run(state, cut, mask)
        steps += part.steps
    assert same(state, whole)
    assert steps == cost.steps == 30


def test_a_run_changes_neither_its_input_nor_the_generators(make: MakeTrainer) -> None:
    trainer = make()
    initial = state_of(trainer.model)
    before = copy.deepcopy(initial)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    middle, _ = trainer.run(initial, 5)
    assert torch.equal(torch.rand(4), expected)
    kept = copy.deepcopy(middle)
    trainer.run(middle, 9, mask_at(trainer, middle, "0.5"))
    assert same(initial, before)
    assert same(middle, kept)


def test_seeds_change_the_result(make: MakeTrainer) -> None:
    a, b = make(seed=0), make(seed=1)
    assert not same(a.run(state_of(a.model), 3)[0], b.run(state_of(b.model), 3)[0])


def test_masked_weights_are_zero_after_every_step(make: MakeTrainer) -> None:
    """With momentum from dense training, weight decay and clipping."""
    trainer = make(weight_decay=0.5, clip_norm=0.1)
    dense, _ = trainer.run(state_of(trainer.model), 10)
    mask = mask_at(trainer, dense, "0.9")
    parameters = dict(trainer.model.named_parameters())
    seen = []

    def check(steps: int) -> None:
        seen.append(steps)
        assert not any(parameters[name][~kept].any() for name, kept in mask.items())

    final, _ = replace(trainer, progress=check).run(dense, 30, mask)
    assert seen == [1] * 20
    total = masks.num_weights(mask)
    assert masks.num_kept({name: final.weights[name] for name in mask}) == total - round(Decimal("0.9") * total)


def test_a_mask_that_changes_within_a_run_is_as_a_run_cut_there(make: MakeTrainer) -> None:
    """At steps 0, 4 and 9; both moments are masked at once, and every step costs what it does under its mask."""
    trainer = make(weight_decay=0.5, clip_norm=0.1)
    initial = state_of(trainer.model)
    changes = dict(zip((0, 4, 9), (mask_at(trainer, initial, s) for s in ("0.2", "0.5", "0.9")), strict=True))
    called = []

    def prune(step: int, parameters: Mapping[str, nn.Parameter]) -> masks.Mask | None:
        assert not torch.is_grad_enabled()
        called.append(step)
        return changes.get(step)

    whole, cost = trainer.run(initial, 12, prune=prune)
    assert called == list(range(12))
    state, parts = initial, Cost()
    for step, until in ((0, 4), (4, 9), (9, 12)):
        state, part = trainer.run(state, until, changes[step])
        assert part == trainer.cost(range(step, until), changes[step])
        parts += part
    assert same(whole, state)
    assert cost == parts
    moments = [memory[key] for memory in whole.optimizer.values() for key in ("exp_avg", "exp_avg_sq")]
    assert len(moments) == 2 * len(dict(trainer.model.named_parameters()))
    for name, kept in changes[9].items():
        assert not whole.weights[name][~kept].any()
        assert not any(whole.optimizer[name][key][~kept].any() for key in ("exp_avg", "exp_avg_sq"))


def test_agrees_with_training_through_weight_times_mask(make: MakeTrainer) -> None:
    """The usual parametrisation w * mask under plain autograd: clipping on, 20 steps, moments from dense training."""
    trainer = make(clip_norm=0.5, weight_decay=0.1)
    state, _ = trainer.run(state_of(trainer.model), 10)
    mask = mask_at(trainer, state, "0.8")
    ours, _ = trainer.run(state, 30, mask)

    model = tiny_model()
    load_weights(model, state.weights)
    masks.apply_(mask, dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1, fused=True)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: tensor * mask[name] if name in mask and key != "step" else tensor.clone()
            for key, tensor in state.optimizer[name].items()
        }
    for step in range(10, 30):
        torch.default_generator.manual_seed(named_seed("step", seed=0, step=step))
        inputs, labels = trainer.examples.batch(trainer.order(step))
        masked = {name: p * mask[name] if name in mask else p for name, p in model.named_parameters()}
        nn.functional.cross_entropy(functional_call(model, masked, (inputs,)), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate(trainer.training, step)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(ours.weights[name], parameter.data), name


def test_clipping_sees_kept_weights_only(make: MakeTrainer) -> None:
    """Gradients that a mask drops must not use up the norm: a thousand times larger ones change nothing."""

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)
            self.factor = factor

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs * torch.tensor([1.0, self.factor]))

    results = []
    for factor in (1.0, 1000.0):
        trainer = make(clip_norm=0.1, warmup_steps=0)
        model = Scaled(factor)
        with torch.no_grad():
            model.layer.weight.copy_(torch.tensor([[1.0, 0.5]]))
        trainer = replace(
            trainer,
            model=model,
            prunable=("layer.weight",),
            loss=lambda model, batch: model(batch[0][:, 0, :2]).square().mean(),
        )
        mask = {"layer.weight": torch.tensor([[True, False]])}
        results.append(trainer.run(state_of(model), 3, mask)[0].weights["layer.weight"])
    assert torch.equal(*results)


def test_divergence_stops_and_keeps_the_last_good_state(make: MakeTrainer) -> None:
    trainer = make()
    initial = state_of(trainer.model)
    good, _ = trainer.run(initial, 7)
    calls = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        value = trainer.loss(model, batch)
        return value * float("nan") if len(calls) == 8 else value

    with pytest.raises(TrainingDiverged, match="diverged at step 7: loss nan") as caught:
        replace(trainer, loss=loss).run(initial, 30)
    assert same(caught.value.state, good)


def test_a_mask_for_another_model_is_refused(make: MakeTrainer) -> None:
    trainer = make()
    initial = state_of(trainer.model)
    mask = masks.ones(trainer.prunable_weights(initial))
    mask["up.weight"] = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(MaskError, match=r"'up.weight' has shape"):
        trainer.run(initial, 1, mask)


def test_weights_of_another_model_are_refused_before_any_is_loaded() -> None:
    model = tiny_model()
    before = state_of(model)
    other = {name: tensor + 1 for name, tensor in before.weights.items()}
    other["up.weight"] = torch.zeros(1)
    with pytest.raises(ConfigError, match=r"'up.weight' has shape \(1,\), in the model \(21, 8\)"):
        load_weights(model, other)
    assert same(state_of(model), before)


def test_bf16_keeps_weights_and_moments_in_fp32(make: MakeTrainer) -> None:
    trainer = make(precision="bf16")
    state, _ = trainer.run(state_of(trainer.model), 3)
    assert {tensor.dtype for tensor in state.weights.values()} == {torch.float32}
    assert {tensor.dtype for memory in state.optimizer.values() for tensor in memory.values()} == {torch.float32}
    whole, _ = trainer.run(state_of(tiny_model()), 3)
    assert same(state, whole)


def on_gpu(trainer: Trainer) -> Trainer:
    loss = trainer.loss
    model = trainer.model.cuda()
    return replace(trainer, model=model, loss=lambda model, batch: loss(model, [part.cuda() for part in batch]))


@pytest.mark.gpu
def test_on_a_gpu_masked_weights_stay_zero_and_a_state_from_a_file_goes_on(make: MakeTrainer, tmp_path: Path) -> None:
    trainer = on_gpu(make())
    state, _ = trainer.run(state_of(trainer.model), 5)
    mask = mask_at(trainer, state, "0.9")
    artifacts.save_state(tmp_path / "state", state, {})
    artifacts.save_mask(tmp_path / "mask", mask, {})
    back, _ = artifacts.load_state(tmp_path / "state")
    bits, _ = artifacts.load_mask(tmp_path / "mask")
    final, _ = trainer.run(back, 15, bits)
    assert not any(final.weights[name][~kept].any() for name, kept in mask.items())
    assert same(final, trainer.run(state, 15, mask)[0])


def test_what_was_left_in_the_model_does_not_matter(make: MakeTrainer) -> None:
    """A call that was interrupted leaves gradients behind."""
    clean, dirty = make(), make()
    for parameter in dirty.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    initial = state_of(tiny_model())
    assert same(clean.run(initial, 3)[0], dirty.run(initial, 3)[0])


def test_divergence_does_not_spoil_the_buffers_of_norms(make: MakeTrainer) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    class Poisoned(Noisy):
        def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            inputs, labels = super().batch(indices)
            return (inputs * float("nan") if 0 in indices else inputs), labels

    trainer = replace(make(), model=model, examples=Poisoned(), prunable=("1.weight",))
    with pytest.raises(TrainingDiverged) as caught:
        trainer.run(state_of(model), 30)
    state = caught.value.state
    assert all(tensor.isfinite().all() for tensor in state.weights.values())
    assert state.weights["2.num_batches_tracked"] == state.step == caught.value.step


def test_a_run_on_the_cpu_does_not_start_cuda(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("a CUDA generator was read"))
    trainer = make()
    trainer.run(state_of(trainer.model), 2)


@pytest.mark.parametrize("outputs", [(2,), (2, 1)])
@pytest.mark.parametrize("labels", [(2,), (2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_default_loss_of_a_regression(
    outputs: tuple[int, ...], labels: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Squared errors, ((1 - 2)^2 + (3 - 5)^2) / 2, whatever dimension of 1 was squeezed."""
    single, numbers = torch.tensor([1.0, 3.0]).view(outputs), torch.tensor([2.0, 5.0], dtype=dtype).view(labels)
    found = default_loss(nn.Identity(), (single, numbers))
    assert (found.item(), found.dtype) == (2.5, torch.float32)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_the_default_loss_of_classes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    outputs = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    found = default_loss(nn.Identity(), (outputs, torch.tensor([0, 1], dtype=dtype).view(shape)))
    expected = -(outputs.log_softmax(1)[0, 0] + outputs.log_softmax(1)[1, 1]) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_default_loss_of_a_class_for_each_pixel(dtype: torch.dtype) -> None:
    outputs = torch.tensor([[[[1.0, 0.5]], [[-1.0, 2.0]]]])  # one example, two classes, 1 x 2 pixels
    found = default_loss(nn.Identity(), (outputs, torch.tensor([[[0, 1]]], dtype=dtype)))
    expected = -(outputs.log_softmax(1)[0, 0, 0, 0] + outputs.log_softmax(1)[0, 1, 0, 1]) / 2
    torch.testing.assert_close(found, expected)


def test_no_label_of_a_byte_is_ignored() -> None:
    """-100 modulo 256 is 156."""
    with pytest.raises(ConfigError, match="labels: range from 0 to 156"):
        check_labels(torch.tensor([0, 156], dtype=torch.uint8), torch.rand(2, 3))


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ((2, 3), torch.rand(2, 3), "several targets of a regression or probabilities of classes. Give loss="),
        ((2, 3), torch.rand(2), "floating-point labels are targets of a regression, and the model must return one"),
        ((2,), torch.tensor([0, 1]), r"int64 \(2,\) for outputs float32 \(2,\): integer labels are classes"),
        ((2, 1), torch.tensor([0, 1]), "labels of a regression must be floating-point"),
        ((2, 3), torch.ones(2, 3, dtype=torch.int64), r"labels of classes must have shape \(2,\)"),
        (
            (2, 3),
            torch.tensor([0, 3]),
            r"range from 0 to 3, but the model has 3 outputs, so labels must be 0 to 2",
        ),
        ((2, 3), torch.tensor([0j, 1j]), "complex64"),
    ],
)
def test_labels_that_leave_the_loss_open(outputs: tuple[int, ...], labels: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        default_loss(nn.Identity(), (torch.rand(outputs), labels))


# --- half precision ---------------------------------------------------------------------------------------------------


def half_trainer(make: MakeTrainer, dtype: torch.dtype, **training: float) -> Trainer:
    """The tiny model with its attention and feed-forward weights in half precision, norm and head in fp32."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()
            for part in (self.inner.up, self.inner.down):
                part.to(dtype)

        def forward(self, inputs: Tensor) -> Tensor:
            inner = self.inner
            hidden = inner.down(torch.relu(inner.up(inner.norm(inputs).to(dtype)))).float()
            return inner.head(inner.dropout(hidden).mean(1))

    return replace(make(**training), model=Mixed(), prunable=("inner.up.weight", "inner.down.weight"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_through_masters_as_written_out(make: MakeTrainer, dtype: torch.dtype) -> None:
    """fp32 copies under plain AdamW, given the model's gradients and rounded into the model after every step."""
    trainer = half_trainer(make, dtype, clip_norm=0.5)
    initial = state_of(trainer.model)
    mask = mask_at(trainer, initial, "0.5")
    final, _ = trainer.run(initial, 12, mask)

    model = copy.deepcopy(trainer.model)
    load_weights(model, initial.weights)
    model.train()
    names = [name for name, parameter in model.named_parameters() if not name.startswith("inner.attention")]
    ours = {name: model.get_parameter(name).detach().float().clone() for name in names}
    optimizer = torch.optim.AdamW(ours.values(), lr=0.0, weight_decay=0.1, fused=True)
    for step in range(12):
        for name in names:
            ours[name] *= mask.get(name, torch.ones(()))
            model.get_parameter(name).data.copy_(ours[name])
        torch.default_generator.manual_seed(named_seed("step", seed=0, step=step))
        inputs, labels = trainer.examples.batch(trainer.order(step))
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for name in names:
            ours[name].grad = model.get_parameter(name).grad.float() * mask.get(name, torch.ones(()))
        nn.utils.clip_grad_norm_(ours.values(), 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate(trainer.training, step)
        optimizer.step()
    for name in names:
        reached = final.masters.get(name, final.weights[name])
        assert torch.equal(reached, ours[name]), name
        assert torch.equal(final.weights[name], ours[name].to(final.weights[name].dtype))
    assert {name.split(".")[1] for name in final.masters} == {"up", "down"}
    assert all(t.dtype == torch.float32 for memory in final.optimizer.values() for t in memory.values())
    for name, kept in mask.items():
        assert not final.weights[name][~kept].any()
        assert not final.masters[name][~kept].any()
        assert trainer.prunable_weights(final)[name].dtype == torch.float32


def test_half_precision_is_cut_and_resumed_to_the_bit(make: MakeTrainer, tmp_path: Path) -> None:
    """Through a file; and the state in the file is the state."""
    trainer = half_trainer(make, torch.bfloat16)
    initial = state_of(trainer.model)
    mask = mask_at(trainer, initial, "0.5")
    whole, _ = trainer.run(initial, 20, mask)
    middle, _ = trainer.run(initial, 9, mask)
    artifacts.save_state(tmp_path / "state", middle, {})
    back, _ = artifacts.load_state(tmp_path / "state")
    assert same(back, middle)
    assert back.masters
    assert same(half_trainer(make, torch.bfloat16).run(back, 20, mask)[0], whole)
    assert not same(trainer.run(replace(middle, masters={}), 20, mask)[0], whole)


def test_small_updates_arrive_in_half_precision() -> None:
    """200 steps at 1e-5 on w = 1: bf16 alone would round every one of them away; fp32 goes as far."""
    reached = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.Linear(1, 1, bias=False).to(dtype)
        nn.init.ones_(model.weight)
        state, _ = one_value(model, lambda model, _: model.weight.float().sum(), steps=200, learning_rate=1e-3)
        reached[dtype] = state.masters.get("weight", state.weights["weight"]).item()
        assert state.weights["weight"].dtype == dtype
    assert reached[torch.bfloat16] == reached[torch.float32] < 0.91
    assert abs(state.weights["weight"].item() - reached[torch.bfloat16]) <= 2**-9


def one_value(
    model: nn.Module, loss: Callable[[nn.Module, object], Tensor], mask: masks.Mask | None = None, **training: float
) -> tuple[State, object]:
    """A run to the end on examples that a loss may ignore."""
    protocol = Training(**{"steps": 3, "batch_size": 16, "weight_decay": 0.0, **training})
    names = tuple(name for name, parameter in model.named_parameters() if parameter.dim() > 1)
    trainer = Trainer(
        model=model, examples=Noisy(), loss=loss, training=protocol, prunable=names, seed=0, flops=StepFlops(total=(0,))
    )
    return trainer.run(state_of(model), protocol.steps, mask)


def test_fp32_has_no_masters(make: MakeTrainer) -> None:
    trainer = make()
    assert trainer.run(state_of(trainer.model), 2)[0].masters == {}


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("dtype", "rate"), [(torch.float32, 3.4e38), (torch.float16, 1e5)])
def test_infinite_weights_after_an_update_are_noticed(steps: int, dtype: torch.dtype, rate: float) -> None:
    """At the end of a run as in the middle; the last good state is the one that the run began from."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, -1.0)
    with pytest.raises(
        TrainingDiverged, match="update of step 0 left NaN or infinite values in parameter 'w"
    ) as caught:
        one_value(model, lambda model, _: model.weight.float().sum(), steps=steps, learning_rate=rate)
    assert (caught.value.step, caught.value.state.step) == (0, 0)
    assert caught.value.state.weights["weight"].isfinite().all()


def test_infinite_weights_never_become_a_checkpoint(make: MakeTrainer) -> None:
    class Checkpoint:
        def leg(self, state: State, until: int) -> object:
            return nullcontext((Cost(), state))

        def due(self) -> bool:
            return True

        def keep(self, state: State, spent: Cost) -> None:
            assert all(tensor.isfinite().all() for tensor in state.weights.values())

    trainer = make(learning_rate=1e38, warmup_steps=0)
    trainer = replace(trainer, checkpoint=Checkpoint())  # type: ignore[arg-type]
    with pytest.raises(TrainingDiverged):
        trainer.run(state_of(trainer.model), 30)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_row_pruned_whole_under_weight_norm_is_named(old: bool) -> None:
    """0 / 0 in row 2: not the learning rate's fault."""
    normed = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Flatten(), normed(nn.Linear(40, 3)))
    name = next(name for name, parameter in model.named_parameters() if parameter.shape == (3, 40))
    mask = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    mask[name][2] = False
    with pytest.raises(
        TrainingDiverged, match=r"at step 0: .*weight of layer '1' is NaN or infinite \(rows 2\)"
    ) as caught:
        one_value(model, default_loss, mask, learning_rate=1e-3)
    assert "learning_rate" not in str(caught.value)
    assert "exclude=" in caught.value.advice


def test_infinities_of_an_attention_mask_are_no_cause() -> None:
    """A plain attribute of a module, which holds them on purpose."""

    layer = nn.Linear(2, 2)
    layer.causal = torch.full((2, 2), -torch.inf).triu(1)
    assert explain(layer, (torch.ones(1, 2), torch.tensor([0])), torch.tensor([0])) == ("", SLOWER)


def test_bad_data_are_named(make: MakeTrainer) -> None:
    class Poisoned(Noisy):
        def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            inputs, labels = super().batch(indices)
            inputs[indices == 7] = float("nan")
            return inputs, labels

    trainer = replace(make(), examples=Poisoned())
    with pytest.raises(TrainingDiverged, match=r"part 0 of the batch contains NaN .* \(training example 7\)"):
        trainer.run(state_of(trainer.model), 5)


# --- steps that are read later, compiled models -----------------------------------------------------------------------


@pytest.mark.parametrize("read_every", [2, 7, 100])
def test_reading_later_whether_steps_were_finite_changes_no_bit(make: MakeTrainer, read_every: int) -> None:
    """Dense and masked, over several readings and a rest."""
    trainer = make()
    initial = state_of(trainer.model)
    mask = mask_at(trainer, initial, "0.6")
    for each in (None, mask):
        whole, cost = trainer.run(initial, 17, each)
        later, same_cost = replace(trainer, read_every=read_every).run(initial, 17, each)
        assert same(whole, later)
        assert cost == same_cost


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


@pytest.mark.parametrize("bad", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("read_every", [1, 4])
def test_the_first_bad_step_is_named_however_late_it_is_read(make: MakeTrainer, bad: int, read_every: int) -> None:
    """The error and the state it keeps, buffers of norms included, are those of a run that stops there."""

    class Poisoned(Noisy):
        def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            inputs, labels = super().batch(indices)
            return (inputs * float("inf") if torch.equal(indices, order(bad)) else inputs), labels

    trainer = replace(make(), model=normed(), prunable=("1.weight",))
    order = trainer.order
    initial = state_of(trainer.model)
    mask = {"1.weight": torch.rand(4, 40, generator=torch.Generator().manual_seed(0)) < 0.5}
    good, _ = trainer.run(initial, bad, mask)
    with pytest.raises(TrainingDiverged, match=rf"diverged at step {bad}: loss nan.*; part 0 of the batch") as caught:
        replace(trainer, examples=Poisoned(), read_every=read_every).run(initial, 12, mask)
    assert caught.value.step == caught.value.state.step == bad
    if bad:  # before the first update the optimizer may have moments or none
        assert same(caught.value.state, good)
    assert all(torch.equal(caught.value.state.weights[name], tensor) for name, tensor in good.weights.items())


@pytest.mark.parametrize("due_after", [1, 3, 5])
def test_no_checkpoint_holds_a_state_that_is_not_finite(make: MakeTrainer, due_after: int) -> None:
    """Asked for within steps that were not read yet; and what was kept until then is the run as it was."""
    kept: list[State] = []

    class Checkpoint:
        asked = 0

        def leg(self, state: State, until: int) -> object:
            return nullcontext((Cost(), state))

        def due(self) -> bool:
            self.asked += 1
            return self.asked % due_after == 0

        def keep(self, state: State, spent: Cost) -> None:
            kept.append(copy.deepcopy(state))

    calls = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        return trainer.loss(model, batch) * (float("nan") if len(calls) == 8 else 1.0)

    trainer = make()
    initial = state_of(trainer.model)
    later = replace(trainer, loss=loss, read_every=6, checkpoint=Checkpoint())  # type: ignore[arg-type]
    with pytest.raises(TrainingDiverged, match="diverged at step 7: loss nan") as caught:
        later.run(initial, 30)
    assert [state.step for state in kept] == list(range(due_after, 8, due_after))
    for state in kept:
        assert same(state, trainer.run(initial, state.step)[0])
    assert same(caught.value.state, trainer.run(initial, 7)[0])


@pytest.mark.parametrize("read_every", [1, 3])
def test_who_watches_a_run_sees_finite_steps_only(make: MakeTrainer, read_every: int) -> None:
    """`observe` and `prune` go with every step, so every step is read."""
    seen = []
    trainer = replace(make(learning_rate=1e30, warmup_steps=0), read_every=read_every)
    with pytest.raises(TrainingDiverged):
        trainer.run(
            state_of(trainer.model),
            20,
            prune=lambda step, weights: seen.append(weights["head.weight"].isfinite().all()),
        )
    assert all(seen[:-1])


def test_a_field_that_is_not_set_is_not_in_the_params_of_jobs() -> None:
    """So studies that were finished before there was `compile` stay finished; set, it is there and comes back."""
    plain = Training(steps=3, learning_rate=1.0)
    expected = {
        "steps": 3,
        "batch_size": 128,
        "learning_rate": 1.0,
        "warmup_steps": 0,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "precision": "fp32",
    }
    assert list(plain.model_dump(mode="json").items()) == list(expected.items())
    assert plain.model_dump() == expected
    compiled = Training(steps=3, learning_rate=1.0, compile=True)
    assert compiled.model_dump() == {**expected, "compile": True}
    assert Training(**compiled.model_dump()) == compiled
    assert Training(**plain.model_dump()) == plain


@pytest.mark.parametrize("value", [1, "yes", "true", None])
def test_compile_is_a_truth_value(value: object) -> None:
    with pytest.raises(ValidationError, match="compile"):
        Training(steps=3, learning_rate=1.0, compile=value)  # type: ignore[arg-type]


def test_a_compiled_model_on_a_cpu_is_refused_before_any_step(make: MakeTrainer) -> None:
    trainer = make(compile=True)
    before = state_of(trainer.model)
    with pytest.raises(ConfigError, match="compile = true: a compiled model is trained on a GPU only, not on 'cpu'"):
        trainer.run(before, 1)
    assert same(state_of(trainer.model), before)


@pytest.mark.gpu
def test_on_a_gpu_reading_later_changes_no_bit(make: MakeTrainer) -> None:
    trainer = on_gpu(make())
    initial = state_of(trainer.model)
    mask = mask_at(trainer, initial, "0.6")
    assert same(trainer.run(initial, 17, mask)[0], replace(trainer, read_every=1).run(initial, 17, mask)[0])


@pytest.mark.gpu
@pytest.mark.process  # torch compiles in others
def test_on_a_gpu_a_compiled_model_ends_near_an_eager_one(make: MakeTrainer) -> None:
    """After 10 steps: sums in another order differ in the last bits, which 10 steps at 1e-3 leave within 1e-3.

    Except for the bias of attention's keys, which changes no output, since a softmax does not see a sum that is added
    to all its inputs. Its gradient is zero except for rounding, and AdamW divides it by its own size.
    """
    trainer = on_gpu(make(learning_rate=1e-3))
    initial = state_of(trainer.model)
    mask = mask_at(trainer, initial, "0.6")
    eager, cost = trainer.run(initial, 10, mask)
    compiled_trainer = replace(trainer, training=trainer.training.model_copy(update={"compile": True}))
    compiled, same_cost = compiled_trainer.run(initial, 10, mask)
    assert cost == same_cost
    assert eager.weights.keys() == compiled.weights.keys()
    for state in (eager, compiled):
        state.weights["attention.in_proj_bias"][8:16] = 0
    for name, weight in eager.weights.items():
        torch.testing.assert_close(compiled.weights[name], weight, rtol=1e-3, atol=1e-3)
    assert not any(compiled.weights[name][~kept].any() for name, kept in mask.items())


def test_deferred_checks_work_in_double_precision_by_default(make: MakeTrainer) -> None:
    """The flag that skips updates is fp32, as fused AdamW requires, and not of torch's default type."""
    trainer = replace(make(), examples=Still())  # noise would be drawn in the default type
    initial = state_of(trainer.model)
    expected, _ = trainer.run(initial, 3)
    torch.set_default_dtype(torch.float64)
    try:
        state, _ = replace(trainer, read_every=20).run(initial, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(state, expected)
