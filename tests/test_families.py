"""What every method must hold to (found by file name), and the iterative and one-shot families in particular."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isp import families, masks, registry
from isp.costs import Cost
from isp.errors import ConfigError
from isp.families import Ticket, find_tickets, make_method, planned_steps
from isp.seeds import seed as named_seed
from isp.sparsity import num_pruned, parse_sparsity
from isp.training import Trainer, Training, learning_rate, state_of
from tests.conftest import tiny_model
from tests.test_isp import equal

MakeTrainer = Callable[..., Trainer]
QUICK: dict[str, dict[str, Any]] = {
    "denoised": {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 2, "look_ahead_steps": 3},
    "iterative": {"rate": 0.4},
}
METHODS = registry.names("method")
PRUNING = [name for name in METHODS if registry.load("method", name).FAMILY != "dense"]


def find(trainer: Trainer, method: str, *sparsities: str, **settings: Any) -> list[Ticket]:
    chosen = make_method(method, QUICK.get(registry.load("method", method).FAMILY, {}) | settings)
    return list(find_tickets(chosen, trainer, state_of(tiny_model()), [parse_sparsity(s) for s in sparsities]))


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
def test_sparsity_is_exact_to_one_weight(make: MakeTrainer, name: str, sparsity: str) -> None:
    trainer = make(steps=100)
    (ticket,) = find(trainer, name, sparsity)
    evaluated = {name: ticket.weights[name] for name in trainer.prunable}
    total = masks.num_weights(evaluated)
    assert total == 592
    assert total - masks.num_kept(evaluated) == num_pruned(Decimal(sparsity), total)
    assert masks.num_kept(ticket.mask) == masks.num_kept(evaluated)


@pytest.mark.parametrize("name", PRUNING)
def test_tickets_are_deterministic_and_differ_by_seed(make: MakeTrainer, name: str) -> None:
    (a,), (b,), (c,) = (find(make(seed=seed), name, "0.5") for seed in (0, 0, 1))
    assert equal(a.weights, b.weights)
    assert not equal(a.weights, c.weights)


@pytest.mark.parametrize("name", PRUNING)
def test_a_ticket_does_not_depend_on_the_others(make: MakeTrainer, name: str) -> None:
    together = find(make(), name, "0.8", "0.64", "0.5")
    for ticket in together:
        (alone,) = find(make(), name, str(ticket.sparsity))
        assert equal(alone.weights, ticket.weights)
        assert alone.cost == ticket.cost
        assert alone.rounds == ticket.rounds


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_and_the_cost_are_what_was_trained(make: MakeTrainer, name: str) -> None:
    trainer = make()
    sparsities = [parse_sparsity("0" if name == "dense" else "0.7")]
    chosen = make_method(name, QUICK.get(registry.load("method", name).FAMILY))
    done: list[int] = []
    counting = Trainer(**{**vars(trainer), "progress": done.append})
    (ticket,) = find_tickets(chosen, counting, state_of(tiny_model()), sparsities)
    assert planned_steps(chosen, trainer.training, 80, sparsities) == sum(done) == ticket.cost.steps
    assert ticket.cost.samples >= 16 * sum(done)
    assert ticket.cost.flops >= ticket.cost.sparse_flops


def test_sparsities_that_make_no_sense() -> None:
    training = Training(steps=1, learning_rate=1e-3)
    with pytest.raises(ConfigError, match="'dense' does not prune"):
        planned_steps(make_method("dense"), training, 80, [Decimal("0.5")])
    with pytest.raises(ConfigError, match="'random' prunes: give sparsities above 0"):
        planned_steps(make_method("random"), training, 80, [Decimal("0")])
    with pytest.raises(ConfigError, match="given twice"):
        planned_steps(make_method("random"), training, 80, [Decimal("0.5"), Decimal("0.50")])


def test_a_sparsity_that_keeps_nothing_is_refused(make: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match=r"0.9999 is not reachable: it keeps none of 592 prunable weights"):
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
    by_layer = masks.sparsity_by_layer(high.mask).values()
    assert all(abs(layer - 0.6) < 0.12 for layer in by_layer)


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
    names = sorted(trainer.prunable)
    initial, mask = tiny_model(), {}
    for reached in (None, 0.4, 0.64, 0.75):
        if reached is not None:
            flat = torch.cat([model.get_parameter(n).detach().abs().flatten() for n in names]).tolist()  # noqa: F821
            ranked = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[: 592 - round(592 * reached)]
            kept = torch.zeros(592, dtype=torch.bool).index_fill_(0, torch.tensor(ranked), True)
            parts = kept.split([initial.get_parameter(n).numel() for n in names])
            mask = {n: part.view_as(initial.get_parameter(n)) for n, part in zip(names, parts, strict=True)}
        model = copy.deepcopy(initial)
        with torch.no_grad():
            for n in mask:
                model.get_parameter(n).mul_(mask[n])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1, fused=True)
        for step in range(30):
            torch.manual_seed(named_seed("step", seed=0, step=step))
            inputs, labels = trainer.examples.batch(trainer.order(step))
            nn.functional.cross_entropy(model(inputs), labels).backward()
            for n in mask:
                model.get_parameter(n).grad.mul_(mask[n])
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate(trainer.training, step)
            optimizer.step()
            optimizer.zero_grad()
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


def test_lth_masks_nest(make: MakeTrainer) -> None:
    low, high = find(make(), "lth", "0.4", "0.64")
    assert equal(masks.intersection(low.mask, high.mask), high.mask)
