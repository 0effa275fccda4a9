"""Soups as functions on tensors, against numbers by hand and naive implementations; Instant Model Soup end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from isp import masks, soups, training
from isp.copies import subset_size
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import find_tickets, instant, make_method, souped
from isp.methods import instant_model_soup, uniform_soup
from isp.sparsity import num_pruned
from isp.tickets import Ticket, Validation
from isp.training import Trainer, Training, TrainingDiverged, state_of
from tests.support.methods import find, held_out
from tests.support.models import Still, equal, tiny_model
from tests.support.naive import adamw, largest, trained

MakeTrainer = Callable[..., Trainer]
SIZE = 60


def model(seed: int) -> dict[str, Tensor]:
    """Weights of two layers, with zeros of both signs, and a counter."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 10, generator=generator)
    a[0, :2] = torch.tensor([0.0, -0.0])
    return {"a": a, "b": torch.randn(20, generator=generator), "count": torch.tensor(seed)}


def bits(weights: masks.Weights) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def zeros(weights: masks.Weights) -> int:
    return SIZE - masks.num_kept({name: weights[name] for name in ("a", "b")})


# --- interpolation and averages ---------------------------------------------------------------------------------------


def test_the_ends_of_an_interpolation_are_the_models_to_the_bit() -> None:
    new, current = model(1), model(2)
    assert bits(soups.interpolated(new, current, 0)) == bits(current)
    assert bits(soups.interpolated(new, current, 1)) == bits({**new, "count": current["count"]})
    assert bits(soups.interpolated(new, current, 1.0)) == bits(soups.interpolated(new, current, 1))


def test_an_interpolation_by_hand() -> None:
    mixed = soups.interpolated({"w": torch.tensor([1.0, 8.0])}, {"w": torch.tensor([3.0, 0.0])}, 0.25)
    assert mixed["w"].tolist() == [2.5, 2.0]


def test_an_average_by_hand_and_of_one_member() -> None:
    values = (1.0, 2.0, 6.0)
    members = [{"w": torch.tensor([value, 1.0]), "count": torch.tensor(index)} for index, value in enumerate(values)]
    assert soups.average(members)["w"].tolist() == [3.0, 1.0]
    assert soups.average(members)["count"] == 0
    assert bits(soups.average([model(3)])) == bits(model(3))


@given(st.permutations(range(6)))
def test_an_average_does_not_depend_on_the_order(order: list[int]) -> None:
    members = [model(seed) for seed in range(6)]
    mixed = soups.average([members[index] for index in order])
    assert torch.equal(mixed["a"], soups.average(members)["a"])
    assert torch.allclose(mixed["b"], torch.stack([member["b"] for member in members]).mean(0), atol=1e-6)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from(["0.0000", "0.3100", "0.7000", "0.9500"]))
def test_a_soup_is_exactly_sparse_whatever_the_masks(seeds: list[int], text: str) -> None:
    """Under one mask it keeps that mask; under masks of their own it is pruned again, by a plain sort."""
    sparsity, names = Decimal(text), ("a", "b")
    wanted = num_pruned(sparsity, SIZE)
    pruned = [soups.pruned(model(seed), names, sparsity) for seed in seeds]
    mixed, mask = soups.sparse_average([w for w, _ in pruned], [m for _, m in pruned], sparsity)
    assert zeros(mixed) >= wanted
    assert SIZE - masks.num_kept(mask) == wanted
    assert all(not mixed[name][~mask[name]].any() for name in names)
    average = soups.average([w for w, _ in pruned])
    flat = torch.cat([average[name].abs().flatten() for name in names])
    expected = flat.sort(descending=True).values[: SIZE - wanted].sum()
    assert torch.cat([mixed[name].abs().flatten() for name in names]).sum() == pytest.approx(float(expected), rel=1e-5)
    shared = pruned[0][1]
    under = [{n: t.masked_fill(~shared[n], 0) if n in shared else t for n, t in model(s).items()} for s in seeds]
    mixed, mask = soups.sparse_average(under, [shared] * len(seeds), sparsity)
    assert mask is shared
    assert bits(mixed) == bits(soups.average(under))


def test_a_soup_by_layer_keeps_the_shares_of_layers() -> None:
    sparsity = Decimal("0.5000")
    pruned = [soups.pruned(model(seed), ("a", "b"), sparsity, "layer") for seed in (0, 1)]
    _, mask = soups.sparse_average([w for w, _ in pruned], [m for _, m in pruned], sparsity, "layer")
    assert {name: masks.sparsity({name: kept}) for name, kept in mask.items()} == {"a": 0.5, "b": 0.5}


def test_a_member_that_is_not_sparse_under_the_shared_mask_is_noticed() -> None:
    _, mask = soups.pruned(model(0), ("a", "b"), Decimal("0.5"))
    with pytest.raises(AssertionError, match="weights off its mask"):
        soups.sparse_average([model(0), model(1)], [mask, mask], Decimal("0.5"))


# --- choosing ---------------------------------------------------------------------------------------------------------


def blend(members: Any) -> dict[str, Tensor]:
    return soups.average([{"w": torch.tensor([float(value)])} for value in members])


def near(target: float) -> Callable[[masks.Weights], float]:
    return lambda weights: -abs(float(weights["w"]) - target)


def test_a_greedy_soup_by_hand() -> None:
    """Towards 5: 4 alone, with 7 it is 5.5, better; with 10 it would be 7, with 0 it is 3.67, worse."""
    tried = soups.greedy([0, 10, 7, 4], blend, near(5))
    assert [(each.member, each.taken) for each in tried] == [(3, True), (2, True), (0, False), (1, False)]
    assert [each.alone for each in tried] == [-1, -2, -5, -5]
    assert [each.soup for each in tried] == pytest.approx([-1, -0.5, -4 / 3, -2])


def test_members_that_are_as_good_are_not_taken_and_come_by_their_numbers() -> None:
    tried = soups.greedy([3, 3, 3], blend, near(5))
    assert [(each.member, each.taken) for each in tried] == [(0, True), (1, False), (2, False)]


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=6), st.integers(-8, 8))
def test_a_greedy_soup_is_never_below_its_best_member_and_equals_a_naive_one(values: list[int], target: int) -> None:
    asked = []

    def score(weights: masks.Weights) -> float:
        asked.append(weights)
        return near(target)(weights)

    tried = soups.greedy(values, blend, score)
    taken = [values[each.member] for each in tried if each.taken]
    assert near(target)(blend(taken)) >= max(near(target)(blend([value])) for value in values)
    naive: list[int] = []
    for value in sorted(values, key=lambda value: -near(target)(blend([value]))):
        if not naive or near(target)(blend([*naive, value])) > near(target)(blend(naive)):
            naive.append(value)
    assert taken == naive
    assert len(asked) == 2 * len(values) - 1


def merged(start: float, others: Sequence[float], target: float, grid: list[float]) -> tuple[float, float, list[Any]]:
    as_weights = [{"w": torch.tensor([float(value)])} for value in (start, *others)]
    weights, begun, steps = soups.merge(as_weights[0], as_weights[1:], near(target), grid, soups.interpolated)
    return float(weights["w"]), begun, steps


def test_a_merge_by_hand() -> None:
    """Towards 3 from 0: half of 4 gives 2, all of 4 is as good but later; 1 does not help; half of 4 again gives 3."""
    found, begun, steps = merged(0, [4, 1, 4], 3, [0, 0.5, 1])
    assert (found, begun) == (3, -3)
    assert [(step.coefficient, step.score) for step in steps] == [(0.5, -1), (0, -1), (0.5, 0)]


@given(st.lists(st.integers(-8, 8), max_size=4), st.integers(-8, 8))
def test_a_merge_never_falls_below_its_start_and_equals_a_naive_one(others: list[int], target: int) -> None:
    grid = [0, 0.25, 0.5, 1]
    found, begun, steps = merged(1, others, target, grid)
    scores = [begun, *(step.score for step in steps)]
    assert scores == sorted(scores)
    running = 1.0
    for other, step in zip(others, steps, strict=True):
        options = [(1 - share) * running + share * other for share in grid]  # exact: powers of two
        best = min(range(4), key=lambda index: abs(options[index] - target))  # the first, the smallest coefficient
        assert step.coefficient == grid[best]
        running = options[best]
    assert found == running


# --- members ----------------------------------------------------------------------------------------------------------


def test_the_first_member_is_plain_fine_tuning_and_others_differ(make: MakeTrainer) -> None:
    trainer, settings = make(), uniform_soup.Settings()
    (dense,) = find(trainer, "dense", "0")
    members = [souped.train_member(settings, trainer, state_of(tiny_model()), Decimal("0.0000"), i) for i in range(3)]
    assert equal(members[0].weights, dense.weights)
    assert members[0].cost == dense.cost
    assert not equal(members[1].weights, members[2].weights)
    (one,) = find(trainer, "uniform_soup", "0", members=1)
    assert equal(one.weights, dense.weights)
    (three,) = find(trainer, "uniform_soup", "0", members=3)
    assert equal(three.weights, soups.average([member.weights for member in members]))
    assert three.finding == sum((member.cost for member in members), Cost())
    assert three.retraining == Cost()


def test_members_do_not_depend_on_how_many_there_are_but_on_the_seed() -> None:
    few, many = uniform_soup.Settings(members=2), uniform_soup.Settings(members=9)
    assert uniform_soup.member(few, 80, 0, 1).seed == uniform_soup.member(many, 80, 0, 1).seed
    assert uniform_soup.member(few, 80, 0, 1).seed != uniform_soup.member(few, 80, 1, 1).seed
    drawn = uniform_soup.member(few, 80, 0, 1)
    assert 0.5 <= drawn.learning_rate_factor <= 2
    assert drawn.weight_decay in (0.0, 0.01, 0.1)
    assert drawn.subset is not None
    assert drawn.subset.tolist() == list(range(80))


def test_members_under_a_shared_mask_and_under_their_own(make: MakeTrainer) -> None:
    trainer, initial, target = make(), state_of(tiny_model()), Decimal("0.7000")
    shared, own = (uniform_soup.Settings(masks=kind, prune_at=0.5) for kind in ("shared", "own"))
    together = [souped.train_member(shared, trainer, initial, target, index) for index in range(3)]
    apart = [souped.train_member(own, trainer, initial, target, index) for index in range(3)]
    (one_shot,) = find(trainer, "one_shot", "0.7")
    assert equal(together[0].weights, one_shot.weights)
    assert all(equal(member.mask, one_shot.mask) for member in together)
    half, _ = trainer.run(initial, 15)
    assert equal(apart[0].mask, masks.prune_by_magnitude(trainer.prunable_weights(half), target))
    assert not equal(apart[0].mask, apart[1].mask)
    (soup_shared,) = find(trainer, "uniform_soup", "0.7", members=3)
    (soup_own,) = find(trainer, "uniform_soup", "0.7", members=3, masks="own", prune_at=0.5)
    assert equal(soup_shared.mask, one_shot.mask)
    kept = masks.union(*(member.mask for member in apart))
    assert equal(masks.intersection(soup_own.mask, kept), soup_own.mask)
    assert not any(equal(soup_own.mask, member.mask) for member in apart)


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.25, 40, 10), (0.99, 40, 39), (0.9, 4, 3), (0.01, 40, 1)])
def test_a_member_trains_under_its_own_mask(share: float, steps: int, expected: int) -> None:
    """It could prune after the last step, where nothing recovers from it."""
    own = uniform_soup.Settings(masks="own", prune_at=share)
    assert own.prune_step(steps) == expected
    with pytest.raises(ConfigError, match="steps = 1: must be at least 2"):
        own.prune_step(1)


def test_a_greedy_soup_of_models_is_never_below_its_best(make: MakeTrainer) -> None:
    trainer = make()
    chooses = held_out(trainer)
    for sparsity, kind in (("0", "shared"), ("0.7", "shared"), ("0.7", "own")):
        (ticket,) = find(trainer, "greedy_soup", sparsity, members=4, masks=kind)
        *tried, last = ticket.rounds
        assert chooses.score(ticket.weights) == max(each["soup"] for each in tried if each["taken"])
        assert chooses.score(ticket.weights) >= max(each["alone"] for each in tried)
        assert last == {"evaluations": 7}
        assert ticket.finding.steps == 4 * 30
        assert ticket.finding.samples == 4 * 30 * 16 + 7 * 30


def test_who_chooses_must_have_something_to_choose_by(make: MakeTrainer) -> None:
    def run(name: str) -> list[Ticket]:
        return list(find_tickets(make_method(name), make(), state_of(tiny_model()), [Decimal("0.0000")]))

    for name in ("greedy_soup", "instant_model_soup"):
        with pytest.raises(ConfigError, match=f"'{name}' chooses by validation examples: pass some"):
            run(name)
    assert run("uniform_soup")


def test_a_member_that_diverges_is_named(make: MakeTrainer) -> None:
    trainer = make(clip_norm=None)
    with pytest.raises(TrainingDiverged, match=r"member 1 of the soup \(learning rate x 1e\+30\)") as caught:
        find(trainer, "uniform_soup", "0", learning_rate_factors=(1e30, 1e30))
    assert equal(caught.value.state.weights, tiny_model().state_dict())
    with pytest.raises(TrainingDiverged, match=r"weak subnetwork 0 \(learning rate x 1e\+30\)"):
        find(trainer, "instant_model_soup", "0", learning_rate_factors=(1e30, 1e30))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("uniform_soup", {"data_fraction": 0.1}, "= 0.1: a member's 8 of 80 training examples do not fill a batch"),
        ("uniform_soup", {"learning_rate_factors": [2, 1]}, "must be two numbers with 0 < low <= high"),
        ("greedy_soup", {"weight_decays": [-1]}, "weight_decays = .*: must be numbers >= 0"),
        ("greedy_soup", {"masks": "none"}, "masks = 'none': input should be 'shared' or 'own'"),
        ("instant_model_soup", {"data_fraction": 0.1}, "subnetwork's 8 of 80 training examples do not fill a batch"),
        ("instant_model_soup", {"coefficients": [0.5]}, "coefficients: .*must be numbers in .*, including 0"),
        ("instant_model_soup", {"coefficients": [0, 1.5]}, "coefficients: .*must be numbers in .*, including 0"),
        ("instant_model_soup", {"sparsities": [0]}, r"sparsities: .*must be decimals in \(0, 1\)"),
        ("instant_model_soup", {"sparsities": [1.5]}, r"sparsity 1.5: outside \[0, 1\)"),
        ("instant_model_soup", {"sparsities": []}, "sparsities"),
    ],
)
def test_settings_that_make_no_sense(make: MakeTrainer, method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(make(), method, "0", **settings)


# --- Instant Model Soup -----------------------------------------------------------------------------------------------


def test_instant_model_soup_equals_a_naive_implementation_to_the_bit(make: MakeTrainer) -> None:
    """Algorithm 3 without any of our code but the order of the data, the seeds and the draws."""
    trainer, names = make(), tuple(n for n, _ in tiny_model().named_parameters())
    settings = {"subnetworks": 4, "look_ahead_steps": 12, "coefficients": (0.9, 0.0, 0.3, 0.6)}
    chosen = instant.settings_of(make_method("instant_model_soup", settings))
    judge, (inputs, labels) = tiny_model(), Still(30).batch(torch.arange(30))

    def score(weights: Any) -> float:
        judge.load_state_dict(weights)
        judge.eval()
        with torch.no_grad():
            return -nn.functional.cross_entropy(judge(inputs), labels).item()

    weak, drawn = [], []
    for index in range(4):
        member = instant_model_soup.member(chosen, 80, trainer.seed, index)
        sparsity = instant_model_soup.sparsity(chosen, trainer.seed, index)
        drawn.append(str(sparsity))
        copy_ = tiny_model()
        mask = largest(copy_, trainer.prunable, 592 - round(592 * float(sparsity)))
        protocol = trainer.training
        faster = protocol.model_copy(update={"learning_rate": protocol.learning_rate * member.learning_rate_factor})
        own = Trainer(**{**vars(trainer), "training": faster, "seed": member.seed, "subset": member.subset})
        optimizer = adamw(copy_)
        optimizer.param_groups[0]["weight_decay"] = member.weight_decay
        trained(own, copy_, optimizer, range(12), mask)
        weak.append(copy.deepcopy(copy_.state_dict()))
    running = tiny_model().state_dict()
    best, taken = score(running), []
    for other in weak:
        options = {s: {n: running[n].lerp(other[n], s) for n in names} for s in (0.0, 0.3, 0.6, 0.9)}
        scores = {share: score(option) for share, option in options.items()}
        share = max((0.0, 0.3, 0.6, 0.9), key=lambda share: scores[share])
        taken.append(share)
        best, running = max(best, scores[share]), options[share]
    model = tiny_model()
    model.load_state_dict(running)
    trained(trainer, model, adamw(model), range(30), {})

    (ticket,) = find_tickets(
        make_method("instant_model_soup", settings),
        trainer,
        state_of(tiny_model()),
        [Decimal("0.0000")],
        Validation(score=score, cost=Cost(samples=30)),
    )
    *steps, last = ticket.rounds
    assert [step["coefficient"] for step in steps] == taken
    assert sum(share > 0 for share in taken) > 1
    assert [step["sparsity"] for step in steps] == drawn
    assert last["evaluations"] == 1 + 4 * 3
    assert steps[-1]["score"] == pytest.approx(best, abs=1e-6)
    assert equal(ticket.weights, model.state_dict())
    assert (ticket.finding.steps, ticket.retraining.steps) == (4 * 12, 30)
    assert ticket.finding.samples == 4 * 12 * 16 + 13 * 30
    assert all(kept.all() for kept in ticket.mask.values())


def test_without_subnetworks_it_is_plain_fine_tuning(make: MakeTrainer) -> None:
    (dense,), (ticket,) = find(make(), "dense", "0"), find(make(), "instant_model_soup", "0", subnetworks=0)
    assert equal(ticket.weights, dense.weights)
    assert ticket.retraining == dense.retraining


@pytest.mark.parametrize(
    ("warmup", "shares"),
    [
        (5, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2]),  # a separate schedule, to the run's highest rate
        (0, [step / 20 for step in range(1, 11)]),  # the run's own, from step 0: half its warm-up
    ],
)
def test_a_subnetwork_reaches_the_highest_rate_within_the_warmup_of_the_run(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, warmup: int, shares: list[float]
) -> None:
    trainer, settings = make(warmup_steps=20), instant_model_soup.Settings(look_ahead_steps=10, warmup_steps=warmup)
    taken: list[float] = []

    def noted(protocol: Training, step: int) -> float:
        taken.append(rate(protocol, step))
        return taken[-1]

    rate = training.learning_rate
    monkeypatch.setattr(training, "learning_rate", noted)
    instant.train_subnetwork(settings, trainer, state_of(tiny_model()), 0)
    factor = instant_model_soup.member(settings, 80, trainer.seed, 0).learning_rate_factor
    assert taken == pytest.approx([1e-2 * factor * share for share in shares])
    assert max(taken) == pytest.approx(1e-2 * factor * (1 if warmup else 0.5))


def test_subnetworks_are_sparse_and_draw_their_sparsity(make: MakeTrainer) -> None:
    trainer, settings = make(), instant_model_soup.Settings(look_ahead_steps=3)
    found = [instant.train_subnetwork(settings, trainer, state_of(tiny_model()), index) for index in range(8)]
    assert len({each.sparsity for each in found}) > 1
    for each in found:
        assert float(each.sparsity) in settings.sparsities
        zero = 592 - masks.num_kept({name: each.weights[name] for name in trainer.prunable})
        assert zero == num_pruned(each.sparsity, 592)
    assert subset_size(settings, 80) == 40
