"""N:M sparsity: what is kept of every group, on the way there and at its end, for every method; and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import isp
from isp import families, masks, registry, superposition
from isp.config import load_study, parse_study
from isp.errors import ConfigError, MaskError
from isp.families import Method, denoised, find_tickets, iterative, make_method, one_shot
from isp.masks import Mask
from isp.methods import Event
from isp.methods import random as random_method
from isp.prunable import input_dims, prunable_names
from isp.sparsity import Pattern, num_pruned, parse_scope
from isp.superposition import Superposition
from isp.training import Trainer, Training, make_trainer, state_of
from isp.workflow.plan import make_plan
from tests.support.methods import find, quick, tiny_trainer
from tests.support.models import Noisy, equal, tiny_model
from tests.support.naive import naive_pattern
from tests.support.studies import ROOT

METHODS = registry.names("method")
FAMILIES = {name: registry.load("method", name).FAMILY for name in METHODS}
MIXED = [name for name in METHODS if FAMILIES[name] in ("souped", "pooled", "instant")]
PATTERNED = [name for name in METHODS if name not in (*MIXED, "dense")]
HALF, QUARTERS = Decimal("0.5000"), Decimal("0.7500")
SPARSITIES = {"2:4": HALF, "1:4": QUARTERS, "4:8": HALF}


def row(*values: float) -> dict[str, Tensor]:
    """Eight weights of one output, under one name."""
    return {"w": torch.tensor([values])}


def places(mask: Mask) -> list[int]:
    """The flat places of what is kept of "w"."""
    return mask["w"].flatten().nonzero().flatten().tolist()


# --- names of scopes --------------------------------------------------------------------------------------------------


def test_sparsity_follows_from_the_pattern() -> None:
    assert {scope: parse_scope(scope).sparsity for scope in SPARSITIES} == SPARSITIES  # type: ignore[union-attr]
    assert parse_scope("1:16") == Pattern(n=1, m=16)
    assert Pattern(n=1, m=16).sparsity == Decimal("0.9375")
    assert parse_scope("global") is parse_scope("layer") is None


@pytest.mark.parametrize("scope", ["4:4", "4:2", "0:4", "2:0", "-1:4", "2:4:8", "2 : 4", "2/4", "all", ""])
def test_what_is_no_scope_is_refused(scope: str) -> None:
    with pytest.raises(ConfigError, match="must be 'global', 'layer', or a pattern 'N:M' with 1 <= N < M"):
        make_method("lth", {"scope": scope})


def test_a_pattern_whose_sparsity_has_more_than_four_decimals_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scope = '1:3': sparsities have four decimals, and 1 - 1/3 has more"):
        make_method("lth", {"scope": "1:3"})


@pytest.mark.parametrize("scope", SPARSITIES)
def test_a_pattern_without_quotes_is_a_number_in_yaml_and_the_message_says_so(scope: str) -> None:
    with pytest.raises(ConfigError, match=f'put a pattern in quotes, "{scope}"; YAML reads {scope} as a number'):
        make_method("lth", yaml.safe_load(f"scope: {scope}"))


# --- eight weights by hand --------------------------------------------------------------------------------------------

WEIGHTS = (8.0, -1.0, 7.0, -6.0, 3.0, 2.0, -4.0, 5.0)
KEPT = {"2:4": [0, 2, 6, 7], "1:4": [0, 7], "4:8": [0, 2, 3, 7]}


@pytest.mark.parametrize("scope", KEPT)
def test_magnitude_by_hand(scope: str) -> None:
    kept = masks.prune_by_magnitude(row(*WEIGHTS), SPARSITIES[scope], scope=scope)
    assert places(kept) == KEPT[scope]


def test_groups_are_along_the_inputs_by_hand() -> None:
    """Two outputs of four inputs, and the same layer with its inputs first."""
    weights = {"w": torch.tensor([[8.0, -1.0, 7.0, -6.0], [3.0, 2.0, -4.0, 5.0]])}
    kept = masks.prune_by_magnitude(weights, HALF, scope="2:4")["w"]
    assert kept.tolist() == [[True, False, True, False], [False, False, True, True]]
    transposed = masks.prune_by_magnitude({"w": weights["w"].T}, HALF, scope="2:4", input_dims={"w": 0})["w"]
    assert torch.equal(transposed.T, kept)
    assert transposed.is_contiguous()


def test_groups_of_a_convolution_are_of_its_input_channels_by_hand() -> None:
    """One output, four channels, a kernel of two: each place of the kernel is a group."""
    weights = {"w": torch.tensor([[[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]]])}
    kept = masks.prune_by_magnitude(weights, HALF, scope="2:4")["w"]
    assert kept[0, :, 0].tolist() == [False, False, True, True]
    assert kept[0, :, 1].tolist() == [True, True, False, False]


def test_ties_in_a_group_go_to_the_second_key_then_to_position() -> None:
    scores = row(1, 1, 1, 1, 0, 2, 0, 0)
    assert places(masks.keep_top(scores, sparsity=HALF, scope="2:4")) == [0, 1, 4, 5]
    ties = row(0, 0, -9, 1, 0, 0, 0, -1)
    assert places(masks.keep_top(scores, sparsity=HALF, ties=ties, scope="2:4")) == [2, 3, 5, 7]


def test_what_was_dropped_stays_dropped_by_hand() -> None:
    within = {"w": torch.tensor([[False, True, True, True, True, True, True, False]])}
    assert places(masks.prune_by_magnitude(row(*WEIGHTS), HALF, within, scope="2:4")) == [2, 3, 4, 6]
    within["w"][0, 1:3] = False
    with pytest.raises(MaskError, match=r"parameter 'w': only 1 of 4 weights of a group are alive, fewer than the 2"):
        masks.prune_by_magnitude(row(*WEIGHTS), QUARTERS - Decimal("0.25"), within, scope="2:4")


def test_before_the_last_round_every_group_keeps_enough_by_hand() -> None:
    """The four largest are all of the first group; the second keeps its largest, which the pattern then needs."""
    weights = row(9, 8, 7, 6, 4, 3, 2, 1)
    assert places(masks.prune_by_magnitude(weights, HALF)) == [0, 1, 2, 3]
    halfway = masks.prune_by_magnitude(weights, HALF, scope="1:4")
    assert places(halfway) == [0, 1, 2, 4]
    assert places(masks.prune_by_magnitude(weights, QUARTERS, halfway, scope="1:4")) == [0, 4]
    assert places(masks.prune_by_magnitude(weights, Decimal(0), scope="1:4")) == list(range(8))
    with pytest.raises(MaskError, match=r"sparsity 0\.7500 is not reachable: scope '2:4' ends at 0\.5000"):
        masks.prune_by_magnitude(weights, QUARTERS, scope="2:4")


# --- a naive implementation beside it ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_selection_equals_a_naive_one(data: st.DataObject) -> None:
    """Many ties, any order of dimensions, candidates that leave every group enough, sparsities on the way."""
    scope = data.draw(st.sampled_from(["2:4", "1:4", "4:8", "1:2", "3:5"]))
    pattern = parse_scope(scope)
    assert pattern is not None
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    shapes, dims = {}, {}
    for index in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
        dims[f"p{index}"] = data.draw(st.integers(0, 1))
        shape[dims[f"p{index}"]] *= pattern.m
        shapes[f"p{index}"] = tuple(shape)
    draw = lambda: {n: torch.randint(-3, 4, s, generator=generator).float() for n, s in shapes.items()}  # noqa: E731
    scores, ties = draw(), draw() if data.draw(st.booleans()) else None
    absolute, within = data.draw(st.booleans()), None
    total = sum(tensor.numel() for tensor in scores.values())
    least = total - num_pruned(pattern.sparsity, total)
    if data.draw(st.booleans()):
        alive = Decimal(data.draw(st.integers(0, int(pattern.sparsity * 100)))) / 100
        within = masks.keep_top(draw(), sparsity=alive, scope=scope, input_dims=dims)
    available = total if within is None else masks.num_kept(within)
    wanted = data.draw(st.integers(least, available))
    sparsity = min(1 - Decimal(wanted) / total, pattern.sparsity)
    if num_pruned(sparsity, total) != total - wanted:
        return
    ranked: dict[str, Any] = {"ties": ties, "within": within, "absolute": absolute}
    kept = masks.keep_top(scores, sparsity=sparsity, scope=scope, input_dims=dims, **ranked)
    assert masks.num_kept(kept) == wanted
    assert equal(kept, naive_pattern(scores, ties, within, wanted, absolute, pattern, dims))
    end = masks.keep_top(draw(), sparsity=pattern.sparsity, within=kept, scope=scope, input_dims=dims)
    masks.check_pattern(end, pattern, dims)
    assert masks.num_kept(end) == least
    assert not any((end[name] & ~kept[name]).any() for name in end)


# --- rules of superposition by hand -----------------------------------------------------------------------------------

COPIES = [row(8, 7, 0, 1, 1, 0, 6, 5), row(8, 0, 7, 1, 0, 6, 5, 1), row(0, 1, 8, 7, 6, 5, 0, 1)]
"""Their 2:4 masks keep 0, 1, 6, 7; then 0, 2, 5, 6; then 2, 3, 4, 5."""


def aggregate(
    rule: Any, weights: Mask, parts: Sequence[Mask], sparsity: Decimal, within: Mask | None, scope: str
) -> denoised.Event:
    """The mask of a round, from the contributions of its copies."""
    superposed = Superposition(rule=rule, sparsity=sparsity, within=within, scope=scope)
    for part in parts:
        superposed.add(part)
    return denoised.aggregate(superposed, weights, {})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("votes", [0, 2, 5, 6]),  # two votes each, the others one
        ("union", [2, 3, 4, 5]),  # the union has all, so the largest weights
        ("literal", [2, 3, 4, 5]),
        ("mean_score", [0, 2, 5, 6]),  # sums 16, 8, 15, 9 and 7, 11, 11, 7
    ],
)
def test_the_last_round_imposes_the_pattern_on_what_is_superposed(rule: Any, expected: list[int]) -> None:
    weights = row(1, 2, 3, 4, 8, 7, 6, 5)
    contribution = "magnitudes" if rule == "mean_score" else "mask"
    parts = [superposition.weak(contribution, copy, HALF, None, "2:4") for copy in COPIES]
    event = aggregate(rule, weights, parts, HALF, None, "2:4")
    assert places(event.mask) == expected
    assert event.record["changed"] == len(set(expected) - {2, 3, 4, 5}) / 4


def test_a_union_has_weights_only_that_a_copy_kept() -> None:
    parts = [superposition.weak("mask", copy, QUARTERS, None, "1:4") for copy in COPIES]
    assert [places(part) for part in parts] == [[0, 6], [0, 5], [2, 4]]
    event = aggregate("union", row(1, 9, 3, 9, 5, 6, 7, 9), parts, QUARTERS, None, "1:4")
    assert places(event.mask) == [2, 6]


def test_rounds_of_superposition_end_in_the_pattern() -> None:
    """The first round, at 0.25, keeps two of each group in any case; every mask lies in the one before."""
    weights, quarter = row(9, 8, 7, 6, 4, 3, 2, 1), Decimal("0.2500")
    parts = [superposition.weak("mask", copy, quarter, None, "2:4") for copy in COPIES]
    assert all(masks.num_kept(part) == 6 for part in parts)  # type: ignore[arg-type]
    first = aggregate("votes", weights, parts, quarter, None, "2:4").mask
    assert masks.num_kept(first) == 6
    parts = [superposition.weak("mask", copy, HALF, first, "2:4") for copy in COPIES]
    last = aggregate("votes", weights, parts, HALF, first, "2:4").mask
    masks.check_pattern(last, Pattern(n=2, m=4))
    assert set(places(last)) <= set(places(first))


# --- methods by hand --------------------------------------------------------------------------------------------------

INPUTS = [8 / 1, 1 / 2, 7 / 3, 6 / 4, 3 / 5, 2 / 6, 4 / 7, 5 / 8]
"""Of the eight weights 1, 2, …, 8: their products are |WEIGHTS|."""


class One:
    """A single example."""

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([INPUTS]), torch.zeros(1)


def eight() -> Trainer:
    """A linear layer of the weights 1, 2, …, 8 and half the square of its output as its loss."""
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 9.0))
    protocol = Training(steps=2, batch_size=1, learning_rate=0.1)
    return make_trainer(model, One(), lambda model, batch: model(batch[0]).square().sum() / 2, protocol, ["weight"], 0)


LARGEST = {"2:4": [2, 3, 6, 7], "1:4": [3, 7], "4:8": [4, 5, 6, 7]}


@pytest.mark.parametrize("scope", KEPT)
@pytest.mark.parametrize(
    ("name", "extra", "expected"),
    [
        ("one_shot", {}, LARGEST),
        ("synflow", {"rounds": 1}, LARGEST),
        ("synflow", {"rounds": 5}, LARGEST),
        ("snip", {}, KEPT),
        ("wanda", {}, KEPT),
        ("grasp", {"temperature": 1}, KEPT),
    ],
)
def test_one_shot_methods_by_hand(name: str, extra: dict[str, Any], expected: dict[str, list[int]], scope: str) -> None:
    """Magnitude and flow are |w|; sensitivity, |w| * |x| and w * Hg are in proportion to the products."""
    trainer = eight()
    ((mask, _),) = one_shot.find(
        make_method(name, {**extra, "scope": scope}), trainer, state_of(trainer.model), [SPARSITIES[scope]]
    )
    assert places({"w": mask["weight"]}) == expected[scope]


@pytest.mark.parametrize("scope", KEPT)
def test_random_keeps_the_highest_of_each_group_of_its_scores(scope: str) -> None:
    trainer, pattern = eight(), parse_scope(scope)
    assert pattern is not None
    probe = one_shot.Probe(weights={"weight": trainer.model.weight}, model=trainer.model, loss=None, batches=None)  # type: ignore[arg-type, dict-item]
    scores = random_method.scores(probe, random_method.Settings(), 0)
    method = make_method("random", {"scope": scope})
    ((mask, _),) = one_shot.find(method, trainer, state_of(trainer.model), [pattern.sparsity])
    assert equal(mask, naive_pattern(scores, None, None, 8 * pattern.n // pattern.m, False, pattern, {}))


@pytest.mark.parametrize("name", ["gradual", "progressive", "movement", "early_bird"])
def test_single_pass_methods_by_hand(name: str) -> None:
    """On the way 1:4 keeps the largest of each group beside the largest of all, at the end nothing else.

    The ramp's sparsity at step 5 of 9 is 0.6842, so 3 of 8 are kept.
    """
    settings: dict[str, Any] = {"early_bird": {"interval": 0.5}, "progressive": {"rate": 0.5, "period": 0.3}}.get(
        name, {"every": 5, "end": 0.9}
    )
    if name == "movement":
        settings["begin"] = 0
    method = make_method(name, {**settings, "scope": "1:4"})
    weights = row(9, 8, 7, 6, 4, 3, 2, 1)
    memory = {f"score {key}": tensor.clone() for key, tensor in weights.items()} if name == "movement" else {}
    within, kept = None, []
    for step in method.module.events(method.settings, QUARTERS, 10):
        event = Event(step=step, steps=10, sparsity=QUARTERS, weights=weights, within=within, memory=memory)
        within = method.module.prune(event, method.settings)
        kept.append(places(within))
    ramp = [[0, 1, 4], [0, 4]]
    assert kept == {"progressive": [[0, 1, 2, 4], [0, 4]], "early_bird": [[0, 4]]}.get(name, ramp)


def test_rounds_of_iterative_pruning_by_hand() -> None:
    first, _ = iterative.prune(row(9, 8, 7, 6, 4, 3, 2, 1), HALF, None, "1:4", 0, 10)
    assert places(first) == [0, 1, 2, 4]
    last, _ = iterative.prune(row(1, 2, 3, 9, 1, 9, 9, 9), QUARTERS, first, "1:4", 1, 10)
    assert places(last) == [2, 4]


# --- every method -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make() -> Callable[..., Trainer]:
    """Trainers of the tiny model that leave out its layer of 21 inputs."""
    return partial(tiny_trainer, exclude=("head.*", "down.*"))


def test_every_method_has_patterns_or_refuses_them() -> None:
    for name in METHODS:
        assert families.traits_of(registry.load("method", name)).patterns == (name in PATTERNED)


@pytest.mark.parametrize("scope", SPARSITIES)
@pytest.mark.parametrize("name", PATTERNED)
def test_every_group_of_a_ticket_is_exact(make: Callable[..., Trainer], name: str, scope: str) -> None:
    trainer = make(steps=12)
    (ticket,) = find(trainer, name, str(SPARSITIES[scope]), scope=scope)
    n, m = map(int, scope.split(":"))
    assert len(ticket.mask) == 3
    for key in ticket.mask:
        groups = ticket.weights[key].reshape(-1, m)
        assert ((groups != 0).sum(1) == n).all()
        assert torch.equal(ticket.weights[key] != 0, ticket.mask[key])
    (again,) = find(make(steps=trainer.training.steps), name, str(SPARSITIES[scope]), scope=scope)
    assert equal(again.weights, ticket.weights)


@pytest.mark.parametrize("rule", ["votes", "union", "mean_score", "literal"])
@pytest.mark.parametrize("settings", [{}, {"adjust": "target"}, {"rounds": "measured", "stop_within": 0.1}])
def test_every_rule_and_kind_of_rounds_ends_in_the_pattern(
    make: Callable[..., Trainer], rule: str, settings: dict[str, Any]
) -> None:
    if settings.get("adjust") and rule in ("votes", "mean_score"):
        return
    (ticket,) = find(make(steps=100), "isp", "0.75", scope="1:4", rule=rule, rate=0.3, **settings)
    masks.check_pattern(ticket.mask, Pattern(n=1, m=4))
    assert len(ticket.rounds) > 2


@pytest.mark.parametrize("name", MIXED)
def test_methods_that_mix_models_refuse_a_pattern(name: str) -> None:
    message = (
        f"settings of method '{name}': scope = '2:4': must be 'global' or 'layer', because this method mixes weights"
    )
    with pytest.raises(ConfigError, match=message):
        make_method(name, {"scope": "2:4"})


def test_a_method_of_its_own_that_ignores_the_scope_is_refused(make: Callable[..., Trainer], tmp_path: Path) -> None:
    lines = (ROOT / "isp/methods/random.py").read_text().split("def scores")[0]
    lines += "def mask(probe, settings, seed, sparsity):\n    from isp.masks import keep_top\n"
    (tmp_path / "own.py").write_text(lines + "    return keep_top(probe.weights, sparsity=sparsity)\n")
    trainer = make()
    method = make_method(str(tmp_path / "own.py"), {"scope": "2:4"})
    with pytest.raises(MaskError, match=r"must pass `scope` and `input_dims` to `isp\.masks\.keep_top`"):
        list(find_tickets(method, trainer, state_of(trainer.model), [HALF]))


# --- models -----------------------------------------------------------------------------------------------------------


def transformers_conv1d(outputs: int, inputs: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_the_input_dimension_of_every_known_layer() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 3),
            "conv": nn.Conv2d(4, 3, 2),
            "up": nn.ConvTranspose1d(4, 3, 2),
            "gpt": transformers_conv1d(3, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "apart": nn.MultiheadAttention(4, 2, kdim=8),
            "rnn": nn.LSTM(4, 8, proj_size=4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
            "old": nn.utils.weight_norm(nn.ConvTranspose1d(4, 3, 2)),
        }
    )
    names = prunable_names(model)
    dims = input_dims(model, names)
    assert list(dims) == names
    assert {name for name, dim in dims.items() if dim == 0} == {"up.weight", "gpt.weight", "old.weight_v"}
    assert all(model.get_parameter(name).shape[dim] in (4, 8) for name, dim in dims.items())


def prune(model: nn.Module, **options: Any) -> Any:
    options = {"sparsity": 0.5, "method": "one_shot", "settings": {"scope": "2:4"}, "steps": 2} | options
    return isp.prune(model, (Noisy().inputs, Noisy().labels), batch_size=16, learning_rate=1e-2, **options)


class Block(nn.Module):
    """GPT-2's layers: the weight of `Conv1D` is (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = transformers_conv1d(6, 8), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs.mean(1))))


@pytest.mark.parametrize("method", ["one_shot", "synflow", "gradual", "lth", "isp"])
def test_isp_prune_knows_the_transposed_layer_of_gpt2(method: str) -> None:
    model = Block()
    settings = quick(method, scope="2:4").settings.model_dump()
    ticket = prune(model, method=method, settings=settings, exclude=["last.*"], steps=40)
    kept = ticket.mask["first.weight"]
    assert kept.shape == (8, 6)
    assert (kept.T.reshape(-1, 4).sum(1) == 2).all()
    assert torch.equal(model.first.weight != 0, kept)


@pytest.mark.parametrize("method", ["one_shot", "gradual", "lth", "isp"])
def test_a_layer_that_the_groups_do_not_divide_is_refused_by_name(method: str) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    message = r"scope 2:4: parameter 'down.weight' of shape \(8, 21\) has 21 inputs .* exclude the parameter"
    with pytest.raises(ConfigError, match=message):
        prune(model, method=method, settings=quick(method, scope="2:4").settings.model_dump(), steps=40)
    assert equal(model.state_dict(), before)
    prune(model, exclude=["down.*"])


class Unknown(Block):
    """A matrix of no known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(8, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs @ self.matrix)


class Shared(nn.Module):
    """One square weight, read along both dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), transformers_conv1d(8, 8), nn.Linear(8, 3)
        self.two.weight = self.one.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.two(self.one(inputs.mean(1))))


@pytest.mark.parametrize(("model", "name"), [(Unknown, "matrix"), (Shared, "one.weight")])
def test_a_parameter_whose_inputs_are_not_known_is_refused_by_name(model: type[nn.Module], name: str) -> None:
    with pytest.raises(ConfigError, match=f"scope '2:4': parameter '{name}' does not belong to exactly one known kind"):
        prune(model(), prunable=[name])
    prune(model(), prunable=[name], settings={})


def test_another_sparsity_than_that_of_the_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'one_shot': scope '2:4' keeps 2 of every 4 .* only sparsity is 0\.5000"):
        prune(tiny_model(), sparsity=0.9)


# --- studies ----------------------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "study": "patterns",
    "training": {"clip_tiny": {"steps": 40, "batch_size": 32, "learning_rate": 5e-4}},
    "variants": {"structured": {"method": "lth", "settings": {"scope": "2:4"}}},
    "grid": [
        {"backbone": "clip_tiny", "tasks": ["digits"], "variants": ["structured"], "sparsities": ["0.5"], "seeds": [0]}
    ],
}


def changed(**settings: Any) -> dict[str, Any]:
    study: dict[str, Any] = copy.deepcopy(STUDY)
    study["variants"]["structured"]["settings"] |= settings
    return study


def test_a_study_that_asks_for_another_sparsity_is_refused_by_variant_scope_and_sparsity() -> None:
    message = r"grid\.0: method 'lth': scope '1:4' keeps 1 of every 4 weights, so its only sparsity is 0\.7500, not "
    with pytest.raises(ConfigError, match=message + r"0\.5000 \(variant 'structured'\)"):
        parse_study(changed(scope="1:4"), "test")
    parse_study(STUDY, "test")


def test_a_study_whose_soup_has_a_pattern_is_refused_by_variant() -> None:
    study = copy.deepcopy(STUDY)
    study["variants"]["structured"]["method"] = "greedy_soup"
    with pytest.raises(ConfigError, match=r"variants\.structured: settings of method 'greedy_soup': scope = '2:4'"):
        parse_study(study, "test")


def test_the_plan_refuses_a_layer_that_the_groups_do_not_divide() -> None:
    make_plan(parse_study(STUDY, "test"), 1e9, 1.0, 1)
    with pytest.raises(ConfigError, match=r"variants\.structured: scope 64:128: parameter 'visual\..*' of shape "):
        make_plan(parse_study(changed(scope="64:128"), "test"), 1e9, 1.0, 1)


def test_the_ablation_asks_for_the_sparsities_of_its_patterns() -> None:
    study = load_study(ROOT / "config/ablations/pattern.yaml")
    found: dict[str, set[Decimal]] = {}
    for group in study.groups():
        method: Method = study.method(group.variant, group.backbone)
        if pattern := parse_scope(families.scope_of(method)):
            found.setdefault(f"{pattern.n}:{pattern.m}", set()).update(group.sparsities)
    assert found == {"2:4": {HALF}, "1:4": {QUARTERS}}
