"""The contract of every method (discovered by file name), and the iterative and one-shot families in particular."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isp import artifacts, families, masks, registry
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import Method, find_tickets, make_method, planned_steps
from isp.methods import Event, gradual, movement, progressive
from isp.seeds import seed as named_seed
from isp.sparsity import num_pruned, parse_sparsity
from isp.tickets import Ticket, Validation
from isp.training import State, Trainer, Training, learning_rate, state_of
from tests.support.methods import find, held_out, quick, tiny_trainer
from tests.support.models import Noisy, Still, equal, tiny_model
from tests.support.naive import adamw, largest, trained

MakeTrainer = Callable[..., Trainer]
METHODS = registry.names("method")
PRUNING = [name for name in METHODS if families.traits_of(registry.load("method", name)).prunes != "never"]
SHORT = 12
"""Steps of a run in which every method can do all that it does: two epochs, warm-up, several events."""
SOUPS = [name for name in METHODS if registry.load("method", name).FAMILY in ("souped", "instant")]


@cache
def tickets(name: str, *sparsities: str, steps: int = SHORT) -> list[Ticket]:
    """Tickets that several tests look at; none changes them."""
    return find(tiny_trainer(steps=steps), name, *sparsities)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    module = registry.load("method", name)
    assert len(registry.summary("method", name)) > 20
    assert (Path(families.__file__).parent / f"{module.FAMILY}.py").exists()
    assert module.VERSION >= 1
    module.Settings()  # every setting has a default
    assert all(field.description for field in module.Settings.model_fields.values())


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize("sparsity", ["0.0017", "0.5", "0.77", "0.9983"])
def test_sparsity_is_exact_to_one_weight(name: str, sparsity: str) -> None:
    many_rounds = sparsity == "0.9983" and registry.load("method", name).FAMILY == "denoised"  # within one run's steps
    (ticket,) = tickets(name, sparsity, steps=100 if many_rounds else SHORT)
    evaluated = {name: ticket.weights[name] for name in ticket.mask}
    total = masks.num_weights(evaluated)
    assert total == 592
    assert total - masks.num_kept(evaluated) == num_pruned(Decimal(sparsity), total)
    assert masks.num_kept(ticket.mask) == masks.num_kept(evaluated)


@pytest.mark.parametrize(
    ("name", "sparsity"), [*((name, "0.5") for name in PRUNING), *((name, "0") for name in (*SOUPS, "dense"))]
)
def test_tickets_are_deterministic_and_differ_by_seed(make: MakeTrainer, name: str, sparsity: str) -> None:
    (a,), (b,), (c,) = tickets(name, sparsity), *(find(make(seed=seed, steps=SHORT), name, sparsity) for seed in (0, 1))
    assert equal(a.weights, b.weights)
    assert not equal(a.weights, c.weights)


@pytest.mark.parametrize("name", PRUNING)
def test_a_ticket_does_not_depend_on_the_others(make: MakeTrainer, name: str) -> None:
    for ticket in find(make(steps=SHORT), name, "0.8", "0.64", "0.5"):
        (alone,) = tickets(name, str(ticket.sparsity.normalize()))
        assert equal(alone.weights, ticket.weights)
        assert alone.cost == ticket.cost
        assert alone.rounds == ticket.rounds


class Cut(Trainer):
    """Stops every run in the middle, writes state and mask to files, and resumes from them with fresh objects."""

    folder: Path

    def run(
        self, state: State, until: int, mask: Any = None, observe: Any = None, prune: Any = None
    ) -> tuple[State, Cost]:
        middle = (state.step + until) // 2

        def noting(step: int, parameters: Any) -> Any:
            nonlocal mask
            pruned = prune(step, parameters) if prune else None
            mask = mask if pruned is None else pruned
            return pruned

        half, first = Trainer.run(self, state, middle, mask, observe, noting)
        artifacts.save_state(self.folder / "state", half, {})
        half, _ = artifacts.load_state(self.folder / "state")
        if mask is not None:
            artifacts.save_mask(self.folder / "mask", mask, {})
            mask, _ = artifacts.load_mask(self.folder / "mask")
        fresh = Trainer(**{**vars(self), "model": tiny_model(), "examples": Noisy()})
        done, second = fresh.run(half, until, mask, observe, prune)
        return done, first + second


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_cut_everywhere_ends_in_the_same_bits(
    make: MakeTrainer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparsity = "0.7" if name in PRUNING else "0"
    monkeypatch.setattr(Cut, "folder", tmp_path, raising=False)
    (whole,) = tickets(name, sparsity)
    (cut,) = find(Cut(**vars(make(steps=SHORT))), name, sparsity)
    assert equal(whole.weights, cut.weights)
    assert equal(whole.mask, cut.mask)
    assert whole.cost == cut.cost


@pytest.mark.parametrize("name", [n for n in PRUNING if hasattr(registry.load("method", n), "scores")])
def test_masks_of_the_same_scores_nest(make: MakeTrainer, name: str) -> None:
    low, high = find(make(), name, "0.3", "0.6")
    assert equal(masks.intersection(low.mask, high.mask), high.mask)


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_and_the_cost_are_what_was_trained(make: MakeTrainer, name: str) -> None:
    trainer = make(steps=SHORT)
    sparsities = [parse_sparsity("0.7" if name in PRUNING else "0")]
    chosen = quick(name)
    done: list[int] = []
    counting = Trainer(**{**vars(trainer), "progress": done.append})
    (ticket,) = find_tickets(chosen, counting, state_of(tiny_model()), sparsities, held_out(trainer))
    assert sum(done) == ticket.cost.steps
    planned = planned_steps(chosen, trainer.training, 80, sparsities)
    if getattr(chosen.settings, "rounds", "nominal") == "measured":
        assert ticket.cost.steps <= planned  # the number of rounds is not known in advance
    else:
        assert ticket.cost.steps == planned
    assert ticket.cost.samples >= 16 * sum(done)
    assert ticket.cost.flops >= ticket.cost.sparse_flops


def test_sparsities_that_make_no_sense() -> None:
    training = Training(steps=1, learning_rate=1e-3)
    with pytest.raises(ConfigError, match="'dense' does not prune"):
        planned_steps(make_method("dense"), training, 80, [Decimal("0.5")])
    with pytest.raises(ConfigError, match=r"'instant_model_soup' does not prune: its only sparsity is 0, not 0\.5"):
        planned_steps(make_method("instant_model_soup"), training, 80, [Decimal("0.5")])
    with pytest.raises(ConfigError, match="'uniform_soup': give at least one sparsity; 0 is that of a dense model"):
        planned_steps(make_method("uniform_soup"), training, 80, [])
    with pytest.raises(ConfigError, match="'random' prunes: give sparsities above 0"):
        planned_steps(make_method("random"), training, 80, [Decimal("0")])
    with pytest.raises(ConfigError, match="each must be given only once"):
        planned_steps(make_method("random"), training, 80, [Decimal("0.5"), Decimal("0.50")])


def test_a_sparsity_that_keeps_nothing_is_refused(make: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match=r"0.9999 is not reachable: it would keep none of 592 prunable weights"):
        find(make(), "one_shot", "0.9999")


# --- one-shot ---------------------------------------------------------------------------------------------------------


def test_one_shot_masks_the_initial_weights_by_magnitude(make: MakeTrainer) -> None:
    trainer = make()
    (ticket,) = find(trainer, "one_shot", "0.7")
    initial = state_of(tiny_model())
    assert equal(ticket.mask, masks.prune_by_magnitude(trainer.prunable_weights(initial), Decimal("0.7")))
    assert ticket.finding == Cost()


def test_random_masks_nest_and_ignore_the_weights(make: MakeTrainer) -> None:
    low, high = find(make(), "random", "0.3", "0.6")
    assert equal(masks.intersection(low.mask, high.mask), high.mask)
    assert all(abs(masks.sparsity({name: kept}) - 0.6) < 0.12 for name, kept in high.mask.items())


def test_a_method_that_looks_at_batches_pays_for_them(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam for gradient-based scores: evaluation mode, training batches, cost counted, weights untouched."""
    from isp.methods import one_shot

    def scores(probe: Any, settings: Any, seed: int) -> dict[str, torch.Tensor]:
        assert not probe.model.training
        for batch in probe.batches(2):
            probe.loss(probe.model, batch).backward()
        return {name: (weight * weight.grad).abs() for name, weight in probe.weights.items()}

    monkeypatch.setattr(one_shot, "scores", scores)
    trainer = make()
    (ticket,) = find(trainer, "one_shot", "0.7")
    assert ticket.finding == Cost(samples=32, flops=2 * trainer.flops.total[0], sparse_flops=2 * trainer.flops.total[0])
    assert ticket.retraining.steps == 30


# --- iterative --------------------------------------------------------------------------------------------------------


def test_lth_equals_a_naive_implementation_to_the_bit(make: MakeTrainer) -> None:
    """0.4, 0.64, then 0.75: four trainings, each from the initial weights, head included."""
    trainer = make()
    (ticket,) = find(trainer, "lth", "0.75")
    mask: dict[str, torch.Tensor] = {}
    for reached in (0.4, 0.64, 0.75, None):
        model = tiny_model()
        trained(trainer, model, adamw(model), range(30), mask)
        if reached is not None:
            mask = largest(model, trainer.prunable, 592 - round(592 * reached))
    assert equal(ticket.weights, model.state_dict())


def test_lth_costs_by_hand_and_shares_its_rounds(make: MakeTrainer) -> None:
    trainer = make()
    tickets = find(trainer, "lth", "0.64", "0.7", "0.75")
    assert [(t.finding.steps, t.retraining.steps) for t in tickets] == [(60, 30), (90, 30), (90, 30)]
    assert [record["sparsity"] for record in tickets[2].rounds] == ["0.4000", "0.6400", "0.7500"]
    # dense, 0.4, 0.64 (both a target and the chain's own), 0.7, 0.75
    assert (
        planned_steps(make_method("lth", {"rate": 0.4}), trainer.training, 80, [t.sparsity for t in tickets]) == 5 * 30
    )


@pytest.mark.parametrize("name", [n for n in PRUNING if registry.load("method", n).FAMILY == "iterative"])
def test_masks_of_rounds_nest(make: MakeTrainer, name: str) -> None:
    low, high = find(make(), name, "0.4", "0.64")
    assert equal(masks.intersection(low.mask, high.mask), high.mask)


def test_rewinding_goes_back_to_weights_and_moments_of_a_step(make: MakeTrainer) -> None:
    """0.4, then 0.6: the dense run, then two trainings from step 7 with the moments of step 7."""
    trainer = make()
    (ticket,) = find(trainer, "lth_rewind", "0.6", rewind_steps=7)
    early = tiny_model()
    early_optimizer = adamw(early)
    trained(trainer, early, early_optimizer, range(7), {})
    dense, memory = copy.deepcopy(early), copy.deepcopy(early_optimizer.state_dict())
    optimizer = adamw(dense)
    optimizer.load_state_dict(copy.deepcopy(memory))
    trained(trainer, dense, optimizer, range(7, 30), {})
    model = dense
    for reached in (0.4, 0.6):
        mask = largest(model, trainer.prunable, 592 - round(592 * reached))
        model = copy.deepcopy(early)
        optimizer = adamw(model)
        optimizer.load_state_dict(copy.deepcopy(memory))
        trained(trainer, model, optimizer, range(7, 30), mask)
    assert equal(ticket.weights, model.state_dict())
    assert (ticket.finding.steps, ticket.retraining.steps) == (30 + 23, 23)
    assert [record["steps"] for record in ticket.rounds] == [30, 23]


def test_a_rewind_point_outside_the_budget(make: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="rewind_steps = 30: must be in 1 to 29"):
        find(make(), "lth_rewind", "0.5", rewind_steps=30)


# --- pooled -----------------------------------------------------------------------------------------------------------


def test_lottery_pools_equal_a_naive_implementation(make: MakeTrainer) -> None:
    trainer = make(steps=10)
    coefficients = (0.1, 0.5, 0.9)
    start, second, first = (find(trainer, "lth", s)[0] for s in ("0.75", "0.64", "0.4"))
    (dense,) = find_tickets(make_method("dense"), trainer, state_of(tiny_model()), [Decimal("0.0000")])
    model, (inputs, labels) = tiny_model(), Still(30).batch(torch.arange(30))

    def score(weights: Any) -> float:
        model.load_state_dict(weights)
        model.eval()
        with torch.no_grad():
            return -nn.functional.cross_entropy(model(inputs), labels).item()

    (ticket,) = find_tickets(
        make_method("lottery_pools", {"rate": 0.4, "coefficients": coefficients}),
        trainer,
        state_of(tiny_model()),
        [Decimal("0.75")],
        Validation(score=score, cost=Cost(samples=30)),
    )
    current, best, taken = dict(start.weights), score(start.weights), []
    for candidate in (second, first, dense):
        found = 0.0
        options = []
        for share in coefficients:
            mixed = {n: (1 - share) * current[n] + share * candidate.weights[n] for n in current}
            model.load_state_dict(mixed)
            mask = largest(model, trainer.prunable, 592 - 444)
            options.append({n: w * mask[n] if n in mask else w for n, w in mixed.items()})
        base = current
        for share, option in zip(coefficients, options, strict=True):
            if score(option) > best:
                best, found, base = score(option), share, option
        current = base
        taken.append(found)
    assert ticket.rounds[-1] == {"pooled": taken, "evaluations": 10}
    assert any(taken)
    for name, tensor in ticket.weights.items():
        assert torch.allclose(tensor, current[name], atol=1e-6)
    assert ticket.finding.steps == 4 * 10
    assert ticket.finding.samples == 4 * 10 * 16 + 10 * 30
    assert ticket.retraining == Cost()


def test_a_pool_chooses_by_validation_examples_or_not_at_all(make: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="'lottery_pools' chooses by validation examples: pass some"):
        list(find_tickets(make_method("lottery_pools"), make(), state_of(tiny_model()), [Decimal("0.5")]))


# --- single-pass ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sparsity", "steps", "expected"),
    [
        ({}, "0.2500", 30, {3: "0.1", 6: "0.2", 9: "0.25"}),  # a tenth of the original every tenth of T
        ({}, "0.9000", 20, {step: f"0.{step // 2}" for step in range(2, 20, 2)}),  # the authors' two of 20 epochs
        ({}, "0.9500", 10, {**{step: f"0.{step}" for step in range(1, 9)}, 9: "0.95"}),  # not at T, but at T - 1
        ({"rate": 0.3}, "0.5000", 10, {1: "0.3", 2: "0.5"}),
        ({"rate": 0.05, "period": 0.05}, "0.1000", 100, {5: "0.05", 10: "0.1"}),
        ({"end": 0.8}, "0.2500", 30, {8: "0.1", 16: "0.2", 24: "0.25"}),
        ({"end": 0.4}, "0.2500", 30, {4: "0.1", 8: "0.2", 12: "0.25"}),
    ],
)
def test_the_periodic_schedule_by_hand(
    settings: dict[str, Any], sparsity: str, steps: int, expected: dict[int, str]
) -> None:
    reached = progressive.schedule(progressive.Settings(**settings), Decimal(sparsity), steps)
    assert list(reached.items()) == [(step, Decimal(value)) for step, value in expected.items()]


def test_a_period_that_overruns_t_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"period = 0.1: T has no room for 18 events that prune 0.05 of the weights each"
    ):
        progressive.events(progressive.Settings(rate=0.05), Decimal("0.9000"), 200)


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({"every": 10, "end": 0.5}, 80, {10: "0.4625", 20: "0.7", 30: "0.7875", 40: "0.8"}),
        ({"every": 3}, 10, {3: "0.6047", 6: "0.7875", 8: "0.8"}),  # t_end = 8 is not a multiple of 3
        ({"every": 2}, 10, {2: "0.4625", 4: "0.7", 6: "0.7875", 8: "0.8"}),
        (
            {},
            10,
            {1: "0.2641", 2: "0.4625", 3: "0.6047", 4: "0.7", 5: "0.7578", 6: "0.7875", 7: "0.7984", 8: "0.8"},
        ),
        ({"every": 500}, 10, {8: "0.8"}),
    ],
)
def test_the_ramp_is_zhu_and_guptas(settings: dict[str, Any], steps: int, expected: dict[int, str]) -> None:
    """0.8 (1 - (1 - t / t_end)^3); that of movement equals it if it begins at once, and is shifted otherwise."""
    reached = gradual.schedule(gradual.Settings(**settings), Decimal("0.8000"), steps)
    assert list(reached.items()) == [(step, Decimal(value)) for step, value in expected.items()]
    assert gradual.events(gradual.Settings(**settings), Decimal("0.8000"), steps) == list(expected)
    at_once = movement.Settings(**settings, begin=0)
    assert movement.schedule(at_once, Decimal("0.8000"), steps) == reached
    assert movement.events(at_once, Decimal("0.8000"), steps) == list(reached)
    last = max(reached)  # the ramp of `last` steps after `steps` steps without pruning, of twice as many in all
    later = movement.Settings(**settings | {"begin": 0.5, "end": (steps + last) / (2 * steps)})
    shifted = movement.schedule(later, Decimal("0.8000"), 2 * steps)
    assert shifted == {steps + step: value for step, value in reached.items()}


@pytest.mark.parametrize("steps", [2, 3, 5, 17])
@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.8), (0.1, 0.8), (0.79, 0.8), (0.9, 0.99)])
def test_movement_has_an_event_before_the_end_however_few_steps_there_are(steps: int, begin: float, end: float) -> None:
    reached = movement.schedule(movement.Settings(begin=begin, end=end), Decimal("0.9500"), steps)
    assert list(reached) == sorted(reached)
    assert 1 <= min(reached) <= max(reached) < steps
    assert reached[max(reached)] == Decimal("0.9500")


def test_where_the_ramp_is_flat_nothing_is_selected() -> None:
    """Of 8,000 steps those whose sparsity has four other decimals than the step's before."""
    reached = gradual.schedule(gradual.Settings(), Decimal("0.8000"), 10_000)
    ramp = [Decimal("0.8") * (1 - (1 - Decimal(step) / 8000) ** 3) for step in range(1, 8001)]
    assert len(reached) == len({value.quantize(Decimal("0.0001")) for value in ramp}) < 5000
    assert max(reached.values()) == Decimal("0.8")


@pytest.mark.parametrize("settings", [progressive.Settings(), progressive.Settings(end=0.4), gradual.Settings()])
@pytest.mark.parametrize("steps", [2, 3, 17])
def test_schedules_rise_to_the_target_before_the_end(settings: Any, steps: int) -> None:
    method = progressive if isinstance(settings, progressive.Settings) else gradual
    found = method.schedule(settings, Decimal("0.9500"), steps)
    assert list(found) == sorted(found)
    assert list(found.values()) == sorted(found.values())
    assert max(found) < steps
    assert found[max(found)] == Decimal("0.9500")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("progressive", {"schedule": "cubic"}, r"schedule = 'cubic': .*`method: gradual`.*`every`"),
        ("progressive", {"events": 20}, r"events = 20: .*`method: gradual`.*`every`"),
        ("movement", {"events": 20}, r"events = 20: .*`every`, the number of steps between two prune events"),
        ("movement", {"schedule": "cubic"}, r"schedule = 'cubic': .*always cubic"),
        ("movement", {"begin": 0.8}, r"begin = 0.8: must be less than end = 0.8"),
        ("movement", {"end": 0.1}, r"begin = 0.1: must be less than end = 0.1"),
        ("gradual", {"events": 20}, r"events = 20: .*`every`"),
    ],
)
def test_keys_of_older_versions_name_the_new_ones(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"settings of method '{method}': {message}"):
        make_method(method, settings)


def naive(trainer: Trainer, counts: dict[int, int]) -> nn.Module:
    """Trained for 30 steps; after each step of `counts` so many of the largest weights are kept."""
    model, mask, before = tiny_model(), {}, 0
    optimizer = adamw(model)
    for step, kept in {**counts, 30: 0}.items():
        trained(trainer, model, optimizer, range(before, step), mask)
        mask, before = largest(model, trainer.prunable, kept), step
    return model


def test_progressive_equals_a_naive_implementation_to_the_bit(make: MakeTrainer) -> None:
    trainer = make()
    (ticket,) = find(trainer, "progressive", "0.25")
    assert equal(ticket.weights, naive(trainer, {3: 592 - 59, 6: 592 - 118, 9: 592 - 148}).state_dict())
    assert (ticket.finding.steps, ticket.retraining.steps) == (9, 21)


@pytest.mark.parametrize("every", [1, 3])
def test_gradual_equals_a_naive_implementation_to_the_bit(make: MakeTrainer, every: int) -> None:
    """t_end = 24; the event at every step is at every step, those that change nothing included."""
    trainer = make()
    (ticket,) = find(trainer, "gradual", "0.6", every=every)
    ramp = {step: round(592 * round(0.6 * (1 - (1 - step / 24) ** 3), 4)) for step in range(every, 25, every)}
    assert equal(ticket.weights, naive(trainer, {step: 592 - pruned for step, pruned in ramp.items()}).state_dict())


def one_run_after_the_other(trainer: Trainer, method: Method, sparsity: Decimal) -> tuple[State, masks.Mask, Cost]:
    """The slow way: the run is cut at every event, its state copied, and continued under the new mask."""
    module, total = method.module, trainer.training.steps
    state, mask, spent, memory = state_of(tiny_model()), None, Cost(), {}
    observe = getattr(module, "observe", None)
    see = observe and (lambda parameters: observe(memory, trainer.prunable, parameters))
    for step in module.events(method.settings, sparsity, total):
        state, cost = trainer.run(state, step, mask, see)
        spent += cost
        weights = trainer.prunable_weights(state)
        event = Event(step=step, steps=total, sparsity=sparsity, weights=weights, within=mask, memory=memory)
        pruned = module.prune(event, method.settings)
        if pruned is not None:
            mask = pruned
            if masks.num_kept(mask) == 592 - num_pruned(sparsity, 592):
                break
    assert mask is not None
    state, cost = trainer.run(state, total, mask)
    return state, mask, spent + cost


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("movement", {}),
        ("movement", {"every": 3}),
        ("movement", {"scope": "global", "begin": 0, "end": 0.97}),
        ("gradual", {}),
        ("gradual", {"every": 3}),
        ("gradual", {"scope": "layer", "end": 0.97}),
        ("progressive", {}),
        ("progressive", {"end": 0.4}),
        ("early_bird", {"interval": 1 / 30}),
    ],
)
def test_events_within_a_run_give_the_bits_of_a_run_that_is_cut_at_them(
    make: MakeTrainer, name: str, settings: dict[str, Any]
) -> None:
    """With momentum, dropout, warm-up and clipping; weights, mask, and the cost of every step under its own mask."""
    (ticket,) = find(make(), name, "0.7", **settings)
    state, mask, cost = one_run_after_the_other(make(), make_method(name, settings), parse_sparsity("0.7"))
    assert equal(ticket.weights, state.weights)
    assert equal(ticket.mask, mask)
    assert ticket.cost == cost
    assert ticket.retraining == make().cost(range(ticket.rounds[0]["step"], 30), mask)


@pytest.mark.parametrize(("name", "settings"), [("movement", {"scope": "global", "begin": 0}), ("gradual", {})])
def test_an_event_at_every_step_copies_nothing_and_leaves_masked_weights_at_zero(
    make: MakeTrainer, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One optimizer and one copy of the state; masks nest and have the ramp's counts; moments are masked as well."""
    calls: list[str] = []
    for each in ("_workspace", "_leave"):
        real = getattr(Trainer, each)
        monkeypatch.setattr(Trainer, each, lambda *a, each=each, real=real: (calls.append(each), real(*a))[1])
    seen: dict[int, masks.Mask] = {}
    module = registry.load("method", name)
    prune = module.prune

    def noting(event: Event, settings: Any) -> masks.Mask:
        weights = dict(trainer.model.named_parameters())
        assert all(weight.data_ptr() == weights[each].data_ptr() for each, weight in event.weights.items())
        if event.within is not None:
            assert not any(event.weights[each][~kept].any() for each, kept in event.within.items())
        seen[event.step] = prune(event, settings)
        return seen[event.step]

    monkeypatch.setattr(module, "prune", noting)
    trainer = make()
    (ticket,) = find(trainer, name, "0.7", **settings)
    assert calls == ["_workspace", "_leave"]
    reached = gradual.schedule(gradual.Settings(), Decimal("0.7000"), 30)
    assert list(seen) == list(reached)[: len(seen)]
    before = masks.ones(ticket.mask)
    for step, mask in seen.items():
        assert masks.num_kept(mask) == 592 - num_pruned(reached[step], 592)
        assert equal(masks.intersection(before, mask), mask)
        before = mask
    (record,) = ticket.rounds
    assert (record["events"], record["first_step"], record["step"]) == (len(seen), 1, max(seen))
    assert record["sparsity"] == "0.6993"  # 414 of 592
    assert len(record["ramp"]) <= 11
    steps = [each["step"] for each in record["ramp"]]
    assert (steps[0], steps[-1]) == (1, max(seen))
    assert all(
        Decimal(each["sparsity"]) == round(1 - Decimal(masks.num_kept(seen[each["step"]])) / 592, 4)
        for each in record["ramp"]
    )


OWN = '''
"""A method of one's own: one-shot before the first step, again at step 3 by what moved least since then."""
from decimal import Decimal
from isp.masks import keep_top, prune_by_magnitude
from isp.methods import Scored

FAMILY, VERSION, Settings = "single_pass", 1, Scored

def events(settings, sparsity, steps):
    return [0, 2, 3]

def prune(event, settings):
    if event.step == 2:
        return None
    if event.step == 0:
        event.memory.update({name: weight.clone() for name, weight in event.weights.items()})
        return prune_by_magnitude(event.weights, Decimal("0.2"))
    moved = {name: -(event.memory[name] - weight).abs() for name, weight in event.weights.items()}
    return keep_top(moved, sparsity=event.sparsity, ties=event.weights, within=event.within)
'''


def test_a_file_of_ones_own_prunes_within_a_run(make: MakeTrainer, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    (ticket,) = find(make(), str(path), "0.5")
    state, mask, cost = one_run_after_the_other(make(), make_method(str(path)), parse_sparsity("0.5"))
    assert equal(ticket.weights, state.weights)
    assert equal(ticket.mask, mask)
    assert (ticket.cost, ticket.finding.steps) == (cost, 3)
    ramp = [{"step": 0, "sparsity": "0.1993"}, {"step": 3, "sparsity": "0.5000"}]  # 118 and 296 of 592
    assert ticket.rounds == [{"round": 0, "sparsity": "0.5000", "step": 3, "events": 2, "first_step": 0, "ramp": ramp}]


def test_movement_trains_scores_by_adam(make: MakeTrainer) -> None:
    """The mask after 15 steps ranks scores that torch's Adam trained with the gradient g * w."""
    trainer = make()
    (ticket,) = find(trainer, "movement", "0.5", every=15, begin=0, end=0.5, scope="global")
    model = tiny_model()
    optimizer = adamw(model)
    scores = {n: nn.Parameter(torch.zeros_like(model.get_parameter(n))) for n in trainer.prunable}
    of_scores = torch.optim.Adam(scores.values(), lr=1e-2)
    for step in range(15):
        torch.default_generator.manual_seed(named_seed("step", seed=0, step=step))
        inputs, labels = trainer.examples.batch(trainer.order(step))
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for n in scores:
            scores[n].grad = (model.get_parameter(n).grad * model.get_parameter(n)).detach()
        of_scores.step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(trainer.training, step)
        optimizer.step()
        optimizer.zero_grad()
    flat = torch.cat([scores[n].detach().flatten() for n in sorted(scores)])
    ours = torch.cat([ticket.mask[n].flatten() for n in sorted(scores)])
    assert flat[ours].min() >= flat[~ours].max() - 1e-7


def test_movement_does_not_prefer_small_or_large_weights_where_gradients_are_noise() -> None:
    """At 5 %, plain sums of -g * w would drop mostly the largest quarter; trained scores drop as many of each."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(40_000, generator=generator))
    memory: dict[str, torch.Tensor] = {}
    for _ in range(50):
        weight.grad = torch.randn(40_000, generator=generator)
        movement.observe(memory, ["w"], {"w": weight})
    event = Event(
        step=50, steps=100, sparsity=Decimal("0.05"), weights={"w": weight.detach()}, within=None, memory=memory
    )
    mask = movement.prune(event, movement.Settings(every=40, end=0.5))
    quarters = mask["w"][weight.abs().argsort()].view(4, 10_000)
    dropped = [1 - float(quarter.float().mean()) for quarter in quarters]
    assert all(0.04 < share < 0.06 for share in dropped)


@pytest.mark.parametrize(("distance", "draw"), [(1.0, 5), (0.0, 15)])
def test_early_bird_draws_when_the_queue_is_full_and_settled_or_time_is_up(
    make: MakeTrainer, distance: float, draw: int
) -> None:
    (ticket,) = find(make(), "early_bird", "0.5", interval=1 / 30, distance=distance)
    assert ticket.rounds == [{"round": 0, "sparsity": "0.5000", "step": draw}]
    assert (ticket.finding.steps, ticket.retraining.steps) == (draw, 30 - draw)


@pytest.mark.parametrize("sparsity", ["0.3", "0.7"])
def test_early_bird_stops_where_a_naive_implementation_does(make: MakeTrainer, sparsity: str) -> None:
    trainer = make()
    model = tiny_model()
    optimizer = adamw(model)
    found: list[torch.Tensor] = []
    distances = {}
    for step in range(1, 15):
        trained(trainer, model, optimizer, range(step - 1, step), {})
        mask = largest(model, trainer.prunable, 592 - round(592 * float(sparsity)))
        found.append(torch.cat([mask[n].flatten() for n in sorted(mask)]))
        if len(found) >= 5:
            distances[step] = max(int((old != found[-1]).sum()) / 592 for old in found[-5:-1])
    threshold = min(distances.values())  # so that it is met, but not at once
    expected = next(step for step, distance in distances.items() if distance <= threshold)
    (ticket,) = find(trainer, "early_bird", sparsity, interval=1 / 30, distance=threshold)
    assert ticket.rounds[0]["step"] == expected
    assert 5 < expected < 15


def test_a_run_of_one_step_cannot_prune_on_its_way(make: MakeTrainer) -> None:
    for name in ("progressive", "early_bird", "gradual", "movement"):
        with pytest.raises(ConfigError, match="steps = 1: must be at least 2 to prune during a run"):
            find(make(steps=1, warmup_steps=0), name, "0.5")
