"""Instant Soup Pruning: its rules, its rounds, and the whole of it against a straightforward re-implementation."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isp import artifacts, masks, superposition
from isp.errors import ConfigError
from isp.families import denoised, find_tickets, make_method, planned_steps
from isp.methods import isp
from isp.seeds import seed as named_seed
from isp.sparsity import Scope, parse_sparsity
from isp.superposition import Rule, Superposition
from isp.tickets import Ticket
from isp.training import BatchOrder, Trainer, Training, TrainingDiverged, state_of
from tests.support.models import Noisy, equal, tiny_model

MakeTrainer = Callable[..., Trainer]
QUICK: dict[str, Any] = {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 3, "look_ahead_steps": 4}
RULES: list[Rule] = ["mean_score", "votes", "union", "literal"]


def find(trainer: Trainer, *sparsities: str, method: str = "isp", **settings: Any) -> list[Ticket]:
    chosen = make_method(method, settings)
    return list(find_tickets(chosen, trainer, state_of(tiny_model()), [parse_sparsity(s) for s in sparsities]))


# --- superposition ----------------------------------------------------------------------------------------------------


def add_up(
    rule: Rule,
    contributions: Iterable[masks.Weights],
    sparsity: Decimal,
    within: masks.Mask | None = None,
    scope: Scope = "global",
) -> Superposition:
    superposed = Superposition(rule=rule, sparsity=sparsity, within=within, scope=scope)
    for contribution in contributions:
        superposed.add(contribution)
    return superposed


HALF = Decimal("0.5")
W = {"a": torch.tensor([4.0, -3.0, 2.0, 1.0])}
WEAK = [{"a": torch.tensor(kept, dtype=torch.bool)} for kept in ([0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 1, 0])]


@pytest.mark.parametrize(
    ("rule", "weak", "kept"),
    [
        ("votes", WEAK, [1, 0, 1, 0]),  # three votes for the third, one each for the others: the largest |w| of them
        ("votes", WEAK[:1], [0, 0, 1, 1]),
        ("union", WEAK, [1, 1, 0, 0]),  # everything is in the union
        ("union", WEAK[:2], [0, 1, 1, 0]),  # the first is not
        ("literal", WEAK[:2], [1, 1, 0, 0]),  # the own mask brings it back
        ("mean_score", [{"a": torch.tensor([1.0, 1, 2, 9])}, {"a": torch.tensor([3.0, 2, 1, 0])}], [1, 0, 0, 1]),
    ],
)
def test_rules_by_hand(rule: Rule, weak: list[masks.Mask], kept: list[int]) -> None:
    assert add_up(rule, weak, HALF).mask(W)["a"].int().tolist() == kept


def random_event(seed: int) -> tuple[masks.Weights, masks.Mask, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(40, 5, generator=generator), "b": torch.randn(100, generator=generator)}
    within = masks.prune_by_magnitude(weights, Decimal("0.3"))
    copies = [{n: w + 0.3 * torch.randn(w.shape, generator=generator) for n, w in weights.items()} for _ in range(4)]
    return weights, within, copies


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_rules_are_exact_stay_within_and_do_not_see_the_order(rule: Rule, seed: int) -> None:
    weights, within, copies = random_event(seed)
    settings = isp.Settings(rule=rule)
    found = []
    for order in itertools.permutations(copies):
        weak = [superposition.weak(settings.contribution, copy, Decimal("0.6"), within) for copy in order]
        found.append(add_up(rule, weak, Decimal("0.6"), within).mask(weights))
    assert all(equal(found[0], other) for other in found)
    assert masks.num_kept(found[0]) == 120  # of 300
    assert masks.num_kept(masks.intersection(found[0], within)) == 120


@pytest.mark.parametrize("seed", range(3))
def test_literal_equals_magnitude_and_the_other_rules_do_not(seed: int) -> None:
    weights, within, copies = random_event(seed)
    plain = masks.prune_by_magnitude(weights, Decimal("0.6"), within)
    for rule in RULES:
        settings = isp.Settings(rule=rule)
        weak = [superposition.weak(settings.contribution, copy, Decimal("0.6"), within) for copy in copies]
        mask = add_up(rule, weak, Decimal("0.6"), within).mask(weights)
        changed = superposition.changed(mask, plain)
        assert equal(mask, plain) == (changed == 0) == (rule == "literal")
        assert equal(add_up(rule, [], Decimal("0.6"), within).mask(weights), plain)  # N = 0


@pytest.mark.parametrize("adjust", [True, False])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rule", RULES)
def test_contributions_added_up_give_the_bits_of_contributions_side_by_side(
    rule: Rule, scope: Scope, adjust: bool
) -> None:
    """The naive way has all of them in memory: one stack of magnitudes in fp64, one stack of masks."""
    weights, within, copies = random_event(2)
    parts = [superposition.weak(isp.Settings(rule=rule).contribution, copy, HALF, within, scope) for copy in copies]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in weights}
    plain = masks.prune_by_magnitude(weights, HALF, within, scope=scope)
    if rule == "mean_score":
        scores = {name: (each.double().sum(0) / len(parts)).float() for name, each in stacked.items()}
        naive = masks.keep_top(scores, sparsity=HALF, ties=weights, within=within, scope=scope)
    elif rule == "votes":
        scores = {name: each.sum(0) for name, each in stacked.items()}
        naive = masks.keep_top(scores, sparsity=HALF, ties=weights, within=within, scope=scope)
    else:
        naive = {name: each.any(0) | (plain[name] & (rule == "literal")) for name, each in stacked.items()}
        naive = masks.prune_by_magnitude(weights, HALF, naive, scope=scope) if adjust else naive
    superposed = add_up(rule, parts, HALF, within, scope)
    assert equal(superposed.mask(weights, adjust=adjust), naive)
    assert equal(superposed.mask(weights, adjust=adjust, plain=plain), naive)  # reading it changes nothing
    pruned = [masks.prune_by_magnitude(copy, HALF, within, scope=scope) for copy in copies]
    assert superposed.agreement(weights) == superposition.agreement(pruned)


@pytest.mark.parametrize("rule", RULES)
def test_of_a_copy_one_bit_per_weight_is_kept_and_of_all_copies_one_sum(rule: Rule) -> None:
    """300 weights are 25 + 13 bytes per copy, and of magnitudes 8 bytes each in one sum; contributions go."""
    _, within, copies = random_event(3)
    parts = [superposition.weak(isp.Settings(rule=rule).contribution, copy, HALF, within) for copy in copies]
    gone = [weakref.ref(tensor) for part in parts for tensor in part.values()]
    before = [{name: tensor.clone() for name, tensor in part.items()} for part in parts]
    superposed = add_up(rule, parts, HALF, within)
    assert all(equal(part, unchanged) for part, unchanged in zip(parts, before, strict=True))
    parts.clear()
    assert not any(reference() is not None for reference in gone)
    assert [sum(bits.nbytes for bits in packed.values()) for packed in superposed.weak] == [25 + 13] * 4
    assert sum(total.nbytes for total in superposed.total.values()) == (300 * 8 if rule == "mean_score" else 0)


def test_agreement_by_hand() -> None:
    third = pytest.approx(1 / 3)  # every pair shares one of three
    assert superposition.agreement(WEAK) == (third, {"a": third})
    assert superposition.agreement(WEAK[:1]) is None


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_agreement_is_recorded_whatever_the_copies_contribute(scope: Scope) -> None:
    """Averaged magnitudes are cut once; what is compared are the masks that the copies would have been pruned to."""
    weights, within, copies = random_event(0)
    found = {}
    for rule in RULES:
        parts = [superposition.weak(isp.Settings(rule=rule).contribution, copy, HALF, within, scope) for copy in copies]
        record = denoised.aggregate(add_up(rule, parts, HALF, within, scope), weights, {}).record
        found[rule] = record["agreement"], record["agreement_by_layer"]
    assert 0 < found["votes"][0] < 1
    assert all(other == found["votes"] for other in found.values())


def test_agreement_of_layers_by_hand() -> None:
    """The pairs share 1 of 1, 0 of 1, 0 of 1 in layer a, both of two in layer b, so 3 of 3, 2 of 3, 2 of 3 in total."""
    keeps, drops, both = (torch.tensor(kept, dtype=torch.bool) for kept in ([1, 0], [0, 0], [1, 1]))
    found = superposition.agreement([{"a": keeps, "b": both}, {"a": keeps, "b": both}, {"a": drops, "b": both}])
    assert found == (pytest.approx(7 / 9), {"a": pytest.approx(1 / 3), "b": 1})
    assert superposition.agreement([{"a": drops, "b": both}, {"a": drops, "b": keeps}]) == (
        1 / 2,
        {"a": None, "b": 1 / 2},
    )


# --- rounds and members -----------------------------------------------------------------------------------------------


def test_rounds_by_hand() -> None:
    """t = round(0.2 * 5) = 1; segments of 1, 2, 3 steps; 0.4, 0.64, then 0.784 is cut to the target."""
    rounds = isp.rounds(isp.Settings(rate=0.4, segment_fraction=0.2), Decimal("0.7"), 5, 30)
    assert [(r.start, r.stop, str(r.sparsity)) for r in rounds] == [(0, 1, "0.4000"), (1, 3, "0.6400"), (3, 6, "0.7")]


def test_rounds_that_overrun_the_budget_say_by_how_much() -> None:
    with pytest.raises(ConfigError, match=r"takes 3 rounds .* 6 steps, .* the budget is 6 steps, 1 too few"):
        isp.rounds(isp.Settings(rate=0.4, segment_fraction=0.2), Decimal("0.7"), 5, 6)


def test_members_differ_and_do_not_depend_on_each_other() -> None:
    settings = isp.Settings(data_fraction=0.5, learning_rate_factors=(0.5, 2.0), weight_decays=(0.0, 0.1))
    members = [isp.member(settings, 80, seed=0, round_index=1, index=i) for i in range(20)]
    assert all(0.5 <= m.learning_rate_factor <= 2 and len(m.subset.unique()) == 40 for m in members)
    assert {m.weight_decay for m in members} == {0.0, 0.1}
    assert len({m.seed for m in members}) == 20
    assert not torch.equal(members[0].subset, members[1].subset)
    again = isp.member(settings.model_copy(update={"denoisers": 1}), 80, seed=0, round_index=1, index=7)
    assert again.learning_rate_factor == members[7].learning_rate_factor


# --- the whole method -------------------------------------------------------------------------------------------------


def naive_isp(sparsity: float, settings: isp.Settings, total: int, batch_size: int) -> nn.Module:
    """Algorithms 1 and 2 with live models, deep copies, w * mask after every step, and full sorts."""
    torch.manual_seed(0)
    model, data = tiny_model(), Noisy()
    base_rate, warmup, clip = 1e-2, 3, 1.0
    prunable = [n for n, p in model.named_parameters() if p.dim() == 2 and not n.startswith("head")]
    sizes = {n: model.get_parameter(n).numel() for n in prunable}

    def train(model, optimizer, mask, begin, end, seed, order, factor=1.0, warmup=warmup, total=total):
        model.train()
        for step in range(begin, end):
            torch.default_generator.manual_seed(named_seed("step", seed=seed, step=step))
            inputs, labels = data.batch(order(step))
            nn.functional.cross_entropy(model(inputs), labels).backward()
            for n in mask:
                model.get_parameter(n).grad *= mask[n]
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            slope = (step + 1) / warmup if step < warmup else (total - step) / (total - warmup)
            for group in optimizer.param_groups:
                group["lr"] = base_rate * factor * min(max(slope, 0.0), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for n in mask:
                    model.get_parameter(n).mul_(mask[n])

    def largest(score, tie, keep, alive):
        """score, tie: flat lists over sorted names; the `keep` best of the alive."""
        ranked = sorted((-score[i], -tie[i], i) for i in range(len(score)) if alive[i])
        chosen = {i for _, _, i in ranked[:keep]}
        flat = torch.tensor([i in chosen for i in range(len(score))])
        parts = torch.split(flat, [sizes[n] for n in sorted(prunable)])
        return {n: part.view(model.get_parameter(n).shape) for n, part in zip(sorted(prunable), parts, strict=True)}

    def flatten(tensors):
        return torch.cat([tensors[n].detach().float().abs().reshape(-1) for n in sorted(prunable)]).tolist()

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1, fused=True)
    order = BatchOrder(len(data), batch_size, 0)
    epoch = len(data) // batch_size
    t = max(1, round(settings.segment_fraction * epoch))
    c = settings.look_ahead_steps or max(1, round(settings.look_ahead_fraction * epoch))
    by_epochs = settings.round_limit == "epochs"  # an epoch is cut to a segment in each round; no epoch, no round
    epochs_left = total // epoch if by_epochs else total
    mask: dict[str, torch.Tensor] = {}
    n, step, i, reached = sum(sizes.values()), 0, 0, 0.0
    while reached < sparsity:
        segment = min(t * (i + 1), epoch) if by_epochs else t * (i + 1)
        no_more = (
            epochs_left == 0 if by_epochs else (settings.rounds == "measured" and step + segment + t * (i + 2) >= total)
        )
        if epochs_left > 0:
            train(model, optimizer, mask, step, step + segment, 0, order)
            step += segment
        epochs_left -= 1
        at_once = sparsity - reached < settings.stop_within or no_more
        following = 1 - (1 - reached) * (1 - settings.rate)
        if settings.rounds == "nominal":
            following = 1 - (1 - settings.rate) ** (i + 1)
        reached = sparsity if at_once else min(round(following, 4), sparsity)
        keep = n - round(reached * n)
        current = flatten({p: model.get_parameter(p) for p in prunable})
        alive = flatten(mask) if mask else [1.0] * n
        votes, mean = [0.0] * n, [0.0] * n
        union = [False] * n
        copies = 0 if at_once else settings.denoisers
        for index in range(copies):
            member = isp.member(settings, len(data), 0, i, index)
            look = copy.deepcopy(model)
            decay = 0.1 if member.weight_decay is None else member.weight_decay
            own_optimizer = torch.optim.AdamW(look.parameters(), lr=0.0, weight_decay=decay, fused=True)
            if settings.optimizer == "inherited":
                for ours, theirs in zip(look.parameters(), model.parameters(), strict=True):
                    own_optimizer.state[ours] = copy.deepcopy(optimizer.state[theirs])
            own_order = BatchOrder(len(data), batch_size, member.seed, member.subset)
            if settings.warmup_steps:
                slope = (total - step) / (total - warmup) if step >= warmup else (step + 1) / warmup
                own = {"factor": member.learning_rate_factor * slope, "warmup": settings.warmup_steps}
                own |= {"total": 2 * settings.warmup_steps}
                train(look, own_optimizer, mask, 0, c, member.seed, own_order, **own)
            else:
                end = step + c
                train(look, own_optimizer, mask, step, end, member.seed, own_order, member.learning_rate_factor)
            magnitude = flatten({p: look.get_parameter(p) for p in prunable})
            weak = flatten(largest(magnitude, [0.0] * n, keep, alive))
            votes = [a + b for a, b in zip(votes, weak, strict=True)]
            mean = [a + b for a, b in zip(mean, magnitude, strict=True)]
            union = [a or b > 0 for a, b in zip(union, weak, strict=True)]
        if copies == 0 or (settings.rule == "literal" and settings.adjust == "rounds"):
            mask = largest(current, [0.0] * n, keep, alive)
        elif settings.rule == "votes":
            mask = largest(votes, current, keep, alive)
        elif settings.rule == "mean_score":
            mask = largest(torch.tensor([m / settings.denoisers for m in mean]).tolist(), current, keep, alive)
        else:
            if settings.rule == "literal":
                magnitude = flatten(largest(current, [0.0] * n, keep, alive))
                union = [a or b > 0 for a, b in zip(union, magnitude, strict=True)]
            loose = settings.adjust == "target" and reached < sparsity
            mask = largest(current, [0.0] * n, sum(union) if loose else keep, union)
        if settings.rounds == "measured" and reached < sparsity:
            reached = min(round(1 - sum(flatten(mask)) / n, 4), sparsity)
        with torch.no_grad():
            for p in prunable:
                model.get_parameter(p).mul_(mask[p])
                for moment in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[model.get_parameter(p)][moment].mul_(mask[p])
        i += 1
    train(model, optimizer, mask, step, total, 0, order)
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["inherited", "fresh"])
def test_isp_equals_the_naive_implementation_to_the_bit(make: MakeTrainer, rule: str, optimizer: str) -> None:
    settings = {**QUICK, "rule": rule, "optimizer": optimizer}
    (ticket,) = find(make(), "0.85", **settings)
    model = naive_isp(0.85, isp.Settings(**settings), total=30, batch_size=16)
    assert equal(ticket.weights, model.state_dict())


SWITCHES: dict[str, dict[str, Any]] = {
    "adjust": {"rule": "union", "adjust": "target"},
    "adjust, literal": {"rule": "literal", "adjust": "target"},
    "rounds": {"rounds": "measured"},
    "stop_within": {"stop_within": 0.15},
    "round_limit": {"round_limit": "epochs", "rate": 0.2},
    "round_limit, measured": {"round_limit": "epochs", "rate": 0.2, "rounds": "measured"},
    "look_ahead_fraction": {"look_ahead_steps": None, "look_ahead_fraction": 0.6},
    "warmup_steps": {"warmup_steps": 20},
    "the run's weight decay": {"weight_decays": []},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_equals_the_naive_implementation_to_the_bit(make: MakeTrainer, name: str) -> None:
    settings = QUICK | SWITCHES[name]
    (ticket,) = find(make(), "0.85", **settings)
    model = naive_isp(0.85, isp.Settings(**settings), total=30, batch_size=16)
    assert equal(ticket.weights, model.state_dict())
    (default,) = find(make(), "0.85", **QUICK)
    differs = not equal(ticket.weights, default.weights)
    assert differs == (name != "rounds")  # exact masks have the nominal sparsity, measured or not


CODE: dict[str, Any] = {"segment_fraction": 0.2, "denoisers": 3, "look_ahead_fraction": 0.8}


@pytest.mark.parametrize(
    ("sparsity", "steps"),
    [
        # s = 0.1: three unions at most lead to within 5 points of 0.3
        (0.3, [1, 3, 6, 10]),
        # six epochs of 5 steps end the rounds far from 0.85: 1, 2, 3, 4, 5 and 5 steps; the rest is pruned where the
        # last round was, and 10 steps are left
        (0.85, [1, 3, 6, 10, 15, 20, 20]),
    ],
)
def test_the_authors_code_equals_the_naive_implementation_to_the_bit(
    make: MakeTrainer, sparsity: float, steps: list[int]
) -> None:
    (ticket,) = find(make(), str(sparsity), method="isp_code", **CODE)
    chosen = make_method("isp_code", CODE).settings
    assert isinstance(chosen, isp.Settings)
    model = naive_isp(sparsity, chosen, total=30, batch_size=16)
    assert equal(ticket.weights, model.state_dict())
    *unions, last = ticket.rounds
    assert [record["step"] for record in ticket.rounds] == steps
    assert [record["round"] for record in ticket.rounds] == list(range(len(steps)))
    assert all(float(record["measured"]) < float(record["sparsity"]) for record in unions)  # a union keeps more
    assert all(record["agreement"] is not None for record in unions)
    assert (last["agreement"], last["changed"]) == (None, 0)  # without look-aheads
    assert float(last["measured"]) == pytest.approx(sparsity, abs=1 / 592)
    copies = len(unions) * 3 * 4
    assert (ticket.finding.steps, ticket.retraining.steps) == (steps[-1] + copies, 30 - steps[-1])
    at_most = planned_steps(make_method("isp_code", CODE), make().training, 80, [parse_sparsity(sparsity)])
    assert at_most == 30 + 6 * 3 * 4


def test_defaults_of_the_authors_code() -> None:
    """The numbers in `isp_dynamic.py` and `args.py`."""
    chosen = make_method("isp_code").settings.model_dump(exclude={"rate_of", "scope"})
    assert chosen == {
        "rate": 0.1,
        "segment_fraction": 0.075,
        "denoisers": 5,
        "look_ahead_steps": None,
        "look_ahead_fraction": 0.1,
        "learning_rate_factors": (1, 1),
        "weight_decays": (),
        "data_fraction": 1,
        "optimizer": "fresh",
        "warmup_steps": 500,
        "rule": "union",
        "adjust": "target",
        "rounds": "measured",
        "stop_within": 0.05,
        "round_limit": "epochs",
    }


@pytest.mark.parametrize(
    ("epoch", "total", "rounds", "copy", "stops"),
    [
        # t = 3 of 40 steps: 3 * 91 steps in the 13 rounds shorter than an epoch, then whole epochs: 13.825 of the 20
        (40, 800, 20, 4, {0: 3, 1: 9, 12: 273, 13: 313, 19: 553}),
        # t = round(2.1) of the 28 steps that an epoch of digits has, C = round(2.8)
        (28, 560, 20, 3, {0: 2, 1: 6, 12: 182, 13: 210, 19: 378}),
        (40, 319, 7, 4, {6: 84}),  # a step short of 8 epochs
        (1, 20, 19, 1, {18: 19}),  # epochs of one step: the twentieth round would leave none
    ],
)
def test_rounds_of_the_authors_code_by_hand(
    epoch: int, total: int, rounds: int, copy: int, stops: dict[int, int]
) -> None:
    settings = make_method("isp_code").settings
    assert isinstance(settings, isp.Settings)
    assert isp.max_rounds(settings, epoch, total) == rounds
    assert {index: isp.steps_until(settings, index, epoch) for index in stops} == stops
    training = Training(steps=total, batch_size=1, learning_rate=1e-3)
    targets = [parse_sparsity("0.95"), parse_sparsity("0.80")]
    assert planned_steps(make_method("isp_code"), training, epoch, targets) == 2 * (total + rounds * 5 * copy)


def test_less_than_an_epoch_has_no_round_of_the_authors_code() -> None:
    settings = make_method("isp_code").settings
    assert isinstance(settings, isp.Settings)
    message = (
        r"budget of 39 steps: .* at step 3, and round_limit = 'epochs' needs a whole epoch, 40 steps. Raise steps to"
    )
    with pytest.raises(ConfigError, match=message + " at least 40"):
        isp.max_rounds(settings, 40, 39)


def test_rounds_limited_by_the_budget_by_hand() -> None:
    """Rounds of 3, 6, 9, … steps: the third ends at 18, so a budget of 18 steps has room for two."""
    settings = isp.Settings(segment_fraction=0.075)
    assert [isp.max_rounds(settings, 40, total) for total in (4, 9, 10, 18, 19)] == [1, 1, 2, 2, 3]
    with pytest.raises(
        ConfigError, match=r"budget of 3 steps: the first one prunes at step 3\. Raise steps to at least 4"
    ):
        isp.max_rounds(settings, 40, 3)


def test_nominal_rounds_limited_by_epochs_are_planned_to_the_step(make: MakeTrainer) -> None:
    """0.5 takes two rounds at rate 0.4, 0.9 five; a T of 3 of the 6 epochs has room for three."""
    settings = QUICK | {"round_limit": "epochs"}
    for target, rounds, stop in (("0.5", 2, 3), ("0.9", 3, 6)):
        trainer = make(steps=15)
        (ticket,) = find(trainer, target, **settings)
        assert ticket.cost.steps == 15 + rounds * 12
        assert (
            planned_steps(make_method("isp", settings), trainer.training, 80, [parse_sparsity(target)])
            == 15 + rounds * 12
        )
        assert ticket.rounds[-1]["step"] == stop
        assert [record["agreement"] is None for record in ticket.rounds] == [False] * rounds + [True] * (
            target == "0.9"
        )


def test_look_ahead_as_a_share_of_an_epoch_equals_so_many_steps(make: MakeTrainer) -> None:
    """Epochs have 5 steps: 0.8 of one are C = 4, and nothing but the settings tells the tickets apart."""
    share = {key: value for key, value in QUICK.items() if key != "look_ahead_steps"} | {"look_ahead_fraction": 0.8}
    (steps,), (fraction,) = (find(make(), "0.85", **settings) for settings in (QUICK, share))
    assert equal(steps.weights, fraction.weights)
    assert (steps.cost, steps.rounds) == (fraction.cost, fraction.rounds)
    assert isp.Settings(look_ahead_fraction=0.01).look_ahead(5).look_ahead_steps == 1  # at least one
    assert isp.Settings(look_ahead_steps=7).look_ahead(5).look_ahead_steps == 7


@pytest.mark.parametrize("method", ["isp", "isp_code"])
def test_only_one_key_says_how_long_copies_train(method: str) -> None:
    for given, other in (("look_ahead_steps", "look_ahead_fraction"), ("look_ahead_fraction", "look_ahead_steps")):
        settings = make_method(method, {given: 1}).settings  # replaces a default of the other
        assert settings.model_dump()[other] is None
        assert make_method(method, settings.model_dump()).settings == settings
    default = make_method(method).settings
    assert make_method(method, default.model_dump()).settings == default
    for both in (1, None):
        with pytest.raises(ConfigError, match=r"look_ahead_steps = .*, look_ahead_fraction = .*: exactly one of them"):
            make_method(method, {"look_ahead_steps": both, "look_ahead_fraction": both})


def test_an_adjustment_at_the_target_needs_a_union() -> None:
    with pytest.raises(ConfigError, match="rule = 'mean_score': must be 'union' or 'literal' with adjust = 'target'"):
        make_method("isp", {"rule": "mean_score", "adjust": "target"})


def test_rounds_that_stop_early_by_hand() -> None:
    """0.2, 0.36, 0.488, 0.5904, …: before the fourth, 0.55 is 0.062 away; before the fifth it would be reached."""
    settings = isp.Settings(rate=0.2, stop_within=0.065)
    assert [str(s) for s in isp.sparsities(settings, Decimal("0.5500"))] == ["0.2000", "0.3600", "0.4880", "0.5500"]
    assert [str(s) for s in isp.sparsities(settings, Decimal("0.4000"))] == ["0.2000", "0.3600", "0.4000"]
    assert isp.rest_at_once(settings, Decimal("0.4880"), Decimal("0.5500"))
    assert not isp.rest_at_once(settings.model_copy(update={"stop_within": 0.0}), Decimal("0.55"), Decimal("0.55"))


def test_no_denoisers_and_the_literal_rule_both_equal_plain_magnitude_pruning(make: MakeTrainer) -> None:
    (none,) = find(make(), "0.85", **QUICK | {"denoisers": 0})
    (literal,) = find(make(), "0.85", method="isp_literal", **QUICK)
    (averaged,) = find(make(), "0.85", **QUICK)
    assert equal(none.weights, literal.weights)
    assert equal(none.weights, naive_isp(0.85, isp.Settings(**QUICK | {"denoisers": 0}), 30, 16).state_dict())
    assert not equal(none.weights, averaged.weights)


@pytest.mark.parametrize("rule", ["mean_score", "votes"])
def test_denoisers_change_something_in_every_round(make: MakeTrainer, rule: str) -> None:
    (ticket,) = find(make(learning_rate=0.03), "0.85", **QUICK | {"look_ahead_steps": 10, "rule": rule})
    assert [record["changed"] > 0 for record in ticket.rounds] == [True] * 4
    assert all(0 < record["agreement"] < 1 for record in ticket.rounds)
    for record in ticket.rounds:
        by_layer = record["agreement_by_layer"]
        assert set(by_layer) == set(ticket.mask)
        assert min(by_layer.values()) <= record["agreement"] <= max(by_layer.values())


def test_a_ticket_does_not_depend_on_which_others_are_asked_for(make: MakeTrainer) -> None:
    """0.64 is one of the chain's own sparsities, 0.6 leaves in the same round, 0.85 continues."""
    together = find(make(), "0.85", "0.6", "0.64", **QUICK)
    assert [str(ticket.sparsity) for ticket in together] == ["0.6000", "0.6400", "0.8500"]
    for ticket in together:
        (alone,) = find(make(), str(ticket.sparsity), **QUICK)
        assert equal(alone.weights, ticket.weights)
        assert equal(alone.mask, ticket.mask)
        assert alone.cost == ticket.cost
        assert alone.rounds == ticket.rounds


def test_cost_by_hand(make: MakeTrainer) -> None:
    """0.85 takes rounds of 1 + 2 + 3 + 4 = 10 steps and 4 * 3 * 4 look-ahead steps; 20 of the 30 steps are left."""
    trainer = make()
    (ticket,) = find(trainer, "0.85", **QUICK)
    assert (ticket.finding.steps, ticket.retraining.steps) == (10 + 48, 20)
    assert ticket.cost.samples == 78 * 16
    assert ticket.cost.flops == 78 * trainer.flops.total[0]


def test_planned_steps_are_those_of_a_run(make: MakeTrainer) -> None:
    done = []
    trainer = make()
    chosen, targets = make_method("isp", QUICK), [parse_sparsity(s) for s in ("0.6", "0.64", "0.85")]
    plan = planned_steps(chosen, trainer.training, 80, targets)
    counting = Trainer(**{**vars(trainer), "progress": done.append})
    list(find_tickets(chosen, counting, state_of(tiny_model()), targets))
    assert sum(done) == plan == 10 + 48 + (30 - 3) + (30 - 3) + (30 - 10)


def test_look_ahead_beyond_the_budget_stands_still(make: MakeTrainer) -> None:
    trainer = make()
    end, _ = trainer.run(state_of(trainer.model), 30)
    settings = isp.Settings(**QUICK, rule="mean_score")
    target = [parse_sparsity("0.5")]
    (contributed,), cost = denoised.look_ahead(settings, trainer, end, None, 0, 0, target, "magnitudes", "global")
    assert cost.steps == 4
    assert equal(contributed, {name: weight.abs() for name, weight in trainer.prunable_weights(end).items()})


@pytest.mark.parametrize("rule", ["mean_score", "votes"])
def test_rounds_through_files_with_fresh_objects_for_each_step(make: MakeTrainer, tmp_path: Path, rule: str) -> None:
    """Segments, look-aheads, aggregation and retraining as jobs that know nothing but what earlier ones wrote."""
    settings = isp.Settings(**QUICK, rule=rule)
    save, load = {
        "magnitudes": (artifacts.save_weights, artifacts.load_weights),
        "mask": (artifacts.save_mask, artifacts.load_mask),
    }[settings.contribution]
    rounds = isp.rounds(settings, parse_sparsity("0.85"), 5, 30)
    artifacts.save_state(tmp_path / "state", state_of(tiny_model()), {})
    within = None
    for round_ in rounds:
        state, _ = artifacts.load_state(tmp_path / "state")
        state, _ = make().run(state, round_.stop, within)
        artifacts.save_state(tmp_path / "state", state, {})
        for index in range(settings.denoisers):
            state, _ = artifacts.load_state(tmp_path / "state")
            (weak,), _ = denoised.look_ahead(
                settings,
                make(),
                state,
                within,
                round_.index,
                index,
                [round_.sparsity],
                settings.contribution,
                settings.scope,
            )
            save(tmp_path / f"weak{index}", weak, {})
        contributions = (load(tmp_path / f"weak{index}")[0] for index in range(settings.denoisers))
        superposed = add_up(settings.rule, contributions, round_.sparsity, within)
        state, _ = artifacts.load_state(tmp_path / "state")
        weights = make().prunable_weights(state)
        event = denoised.aggregate(superposed, weights, {})
        artifacts.save_mask(tmp_path / "mask", event.mask, {})
        within, _ = artifacts.load_mask(tmp_path / "mask")
    for stop in (17, 23, 30):  # also cut after the last event
        state, _ = artifacts.load_state(tmp_path / "state")
        state, _ = make().run(state, stop, within)
        artifacts.save_state(tmp_path / "state", state, {})
    (ticket,) = find(make(), "0.85", **QUICK, rule=rule)
    assert equal(state.weights, ticket.weights)


def test_a_look_ahead_that_diverges_keeps_the_state_of_the_run(make: MakeTrainer) -> None:
    trainer = make(clip_norm=None)
    with pytest.raises(TrainingDiverged, match=r"look-ahead 0 of round \d \(learning rate x 1e\+30\)") as caught:
        find(trainer, "0.85", **QUICK | {"learning_rate_factors": (1e30, 1e30)})
    run, _ = trainer.run(state_of(tiny_model()), 1)
    assert equal(caught.value.state.weights, run.weights)
    assert caught.value.state.step == 1


def test_a_look_ahead_without_enough_data_is_refused(make: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match=r"data_fraction = 0.1: a look-ahead's 8 of 80 training examples"):
        find(make(), "0.85", **QUICK | {"data_fraction": 0.1})


def test_isp_is_the_papers_union_and_isp_mean_the_mean_of_magnitudes(make: MakeTrainer) -> None:
    """Section 2.2.1: the union of the look-ahead masks without the own one, adjusted in every round."""
    default = isp.Settings()
    assert (default.rule, default.adjust, default.contribution) == ("union", "rounds", "mask")
    (union,) = find(make(), "0.85", rule="union", **QUICK)
    (paper,) = find(make(), "0.85", **QUICK)
    assert equal(union.weights, paper.weights)
    (mean,) = find(make(), "0.85", method="isp_mean", **QUICK)
    (by_setting,) = find(make(), "0.85", rule="mean_score", **QUICK)
    assert equal(mean.weights, by_setting.weights)
    assert not equal(mean.weights, paper.weights)
    with pytest.raises(ConfigError, match="settings of method 'isp_mean': rule = 'union'"):
        make_method("isp_mean", {"rule": "union"})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num", [0, 1, 4])
def test_an_event_records_what_its_masks_say(rule: Rule, num: int) -> None:
    """The share that was changed and the agreement of all pairs, from masks that are compared one by one."""
    weights, within, copies = random_event(1)
    copies = copies[:num]
    weak = [superposition.weak(isp.Settings(rule=rule).contribution, copy, Decimal("0.6"), within) for copy in copies]
    event = denoised.aggregate(add_up(rule, weak, Decimal("0.6"), within), weights, {})
    plain = masks.prune_by_magnitude(weights, Decimal("0.6"), within)
    assert event.record["changed"] == 1 - masks.num_kept(masks.intersection(event.mask, plain)) / 120
    pruned = [masks.prune_by_magnitude(copy, Decimal("0.6"), within) for copy in copies]
    pairs = [(a, b) for i, a in enumerate(pruned) for b in pruned[:i]]
    found = [masks.num_kept(masks.intersection(a, b)) / masks.num_kept(masks.union(a, b)) for a, b in pairs]
    assert event.record["agreement"] == (sum(found) / len(found) if found else None)
