"""The scores of one-shot methods against naive formulas in fp64, on tiny networks and on CLIP and BERT."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from isp import masks, registry
from isp.backbones import _bert as bert
from isp.backbones import _open_clip as clip
from isp.backbones import clip_tiny
from isp.backbones._classifiers import ImageClassifier, TextClassifier
from isp.costs import Cost
from isp.counting import counting
from isp.errors import ConfigError
from isp.families import Method, make_method, one_shot
from isp.losses import default_loss
from isp.methods import Scored, synflow
from isp.prunable import prunable_names
from isp.sparsity import num_pruned, parse_sparsity
from isp.training import Trainer, Training, make_trainer, state_of
from tests.support.backbones import SMALL_BERT
from tests.support.models import Noisy, equal, tiny_model
from tests.support.naive import naive

METHODS = [name for name in registry.names("method") if registry.load("method", name).FAMILY == "one_shot"]
SCORED = [name for name in METHODS if hasattr(registry.load("method", name), "scores")]
BATCH = 8
SINGLE = ("query.weight", "key.weight", "value.weight", "out_proj.weight", "attention.output.dense.weight")


class Fixed:
    """40 examples that are not augmented, in the shape and type of `inputs`, of 3 classes."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.labels = torch.arange(40) % 3

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor) -> Any:
        if isinstance(self.inputs, dict):
            return {key: tensor[indices] for key, tensor in self.inputs.items()}, self.labels[indices]
        return self.inputs[indices], self.labels[indices]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def trainer_of(model: nn.Module, examples: Any, names: list[str] | None = None, loss: Any = default_loss) -> Trainer:
    training = Training(steps=10, batch_size=BATCH, learning_rate=1e-2)
    return make_trainer(model, examples, loss, training, names or prunable_names(model), seed=0)


def mlp() -> Trainer:
    """3 - 4 - 3 with a norm between: 24 prunable weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter += torch.linspace(-0.5, 0.5, 4)
    return trainer_of(model, Fixed(drawn(40, 3)))


def attentive() -> Trainer:
    return trainer_of(tiny_model().double(), Fixed(drawn(40, 5, 8)))


def tiny_clip() -> Trainer:
    architecture = clip_tiny.BACKBONE.described()
    vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 7, "image_size": 14}
    architecture["model"] = {**architecture["model"], "vision_cfg": vision, "embed_dim": 8}
    head = F.normalize(drawn(3, 8), dim=-1) * 10
    model = ImageClassifier(clip.build(architecture, 0).visual, head).double()
    return trainer_of(model, Fixed(drawn(40, 3, 14, 14)), prunable_names(model, clip.PRUNABLE))


def tiny_bert() -> Trainer:
    """Weights five times as large as drawn, so that attention is not uniform; the longest text has 7 tokens."""
    model = TextClassifier(bert.build({**SMALL_BERT, "initializer_range": 0.1}, 0), 3).double()
    tokens = torch.randint(5, SMALL_BERT["vocab_size"], (40, 7), generator=torch.Generator().manual_seed(1))
    attended = (torch.arange(7) < 3 + torch.arange(40)[:, None] % 5).long()
    inputs = {"input_ids": tokens * attended, "attention_mask": attended, "token_type_ids": torch.zeros_like(tokens)}
    return trainer_of(model, Fixed(inputs), prunable_names(model, bert.PRUNABLE))


class Recurrent(nn.Module):
    """Classes from the mean state of a recurrent layer of two levels and two directions."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(8, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(inputs)[0].mean(1))


def recurrent(kind: type[nn.RNNBase]) -> Trainer:
    torch.manual_seed(0)
    return trainer_of(Recurrent(kind).double(), Fixed(drawn(40, 4, 8)))


def normalised(norm: Callable[[nn.Module], nn.Module]) -> Trainer:
    """Weights that are computed from others; one layer is registered twice."""
    torch.manual_seed(0)
    middle = norm(nn.Linear(16, 16))
    return trainer_of(
        nn.Sequential(nn.Linear(6, 16), middle, nn.GELU(), middle, nn.Linear(16, 3)).double(), Fixed(drawn(40, 6))
    )


MODELS: dict[str, Callable[[], Trainer]] = {
    "mlp": mlp,
    "attention": attentive,
    "clip": tiny_clip,
    "bert": tiny_bert,
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU),
    "weight_norm": lambda: normalised(parametrizations.weight_norm),
    "spectral_norm": lambda: normalised(parametrizations.spectral_norm),
}


def score(trainer: Trainer, name: str, **settings: Any) -> tuple[dict[str, Tensor], Cost]:
    method = make_method(name, settings)
    return one_shot.probe(
        trainer,
        state_of(trainer.model),
        lambda probe: method.module.scores(probe, settings=method.settings, seed=0),
    )


def find(trainer: Trainer, method: Method, sparsity: str) -> masks.Mask:
    ((mask, _),) = one_shot.find(method, trainer, state_of(trainer.model), [parse_sparsity(sparsity)])
    return mask


def batches(trainer: Trainer, count: int) -> Iterator[Any]:
    return (trainer.examples.batch(trainer.order(step)) for step in range(count))


def plain(trainer: Trainer) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy of the model in evaluation mode, and its prunable parameters."""
    model = copy.deepcopy(trainer.model).eval()
    return model, [model.get_parameter(name) for name in trainer.prunable]


def check(found: dict[str, Tensor], expected: list[Tensor], relative: float = 1e-6) -> None:
    """Every tensor of scores equals the expected one, relative to its largest score."""
    assert all(tensor.dtype == torch.float64 for tensor in found.values())
    for tensor, right in zip(found.values(), expected, strict=True):
        assert right.abs().max() > 0
        torch.testing.assert_close(tensor, right, rtol=relative, atol=relative * right.abs().max().item())


def check_masks(trainer: Trainer, name: str, found: dict[str, Tensor], **settings: Any) -> None:
    """The masks are those of a plain sort of the scores."""
    ties = {each: trainer.model.get_parameter(each).detach() for each in found}
    for scope in ("global", "layer"):
        mask = find(trainer, make_method(name, {**settings, "scope": scope}), "0.6")
        assert equal(mask, naive(found, ties, None, Decimal("0.6"), False, scope))


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_method_is_exact_deterministic_and_leaves_the_model_alone(name: str, kind: str) -> None:
    trainer = MODELS[kind]()
    module = registry.load("method", name)
    assert hasattr(module, "scores") != hasattr(module, "mask")
    assert issubclass(module.Settings, Scored)
    quick = {key: value for key, value in {"rounds": 3, "batches": 2}.items() if key in module.Settings.model_fields}
    model, before = trainer.model, copy.deepcopy(trainer.model.state_dict())
    functions = {key: getattr(F, key) for key in ("layer_norm", "softmax", "scaled_dot_product_attention")}
    for scope in ("global", "layer"):
        method = make_method(name, {**quick, "scope": scope})
        found = [find(trainer, method, "0.7") for _ in range(2)]
        assert equal(*found)
        mask = found[0]
        total = masks.num_weights(mask)
        assert masks.num_kept(mask) == total - num_pruned(Decimal("0.7"), total)
        if scope == "layer":
            assert all(abs(int(kept.sum()) - 0.3 * kept.numel()) <= 1 for kept in mask.values())
    assert equal(model.state_dict(), before)
    assert not any(module.training for module in model.modules())  # as it was given to the method
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert functions == {key: getattr(F, key) for key in functions}


# --- SNIP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_snip_equals_autograd(kind: str) -> None:
    trainer = MODELS[kind]()
    found, _ = score(trainer, "snip", batches=2)
    model, weights = plain(trainer)
    (sum(default_loss(model, batch) for batch in batches(trainer, 2)) / 2).backward()
    check(found, [(weight * weight.grad).abs() for weight in weights])
    check_masks(trainer, "snip", found, batches=2)


def test_snip_is_the_slope_at_removing_a_weight() -> None:
    """(L(c = 1 + e) - L(c = 1 - e)) / 2e, weight by weight."""
    trainer = mlp()
    found, _ = score(trainer, "snip", batches=1)
    model, weights = plain(trainer)
    (batch,) = batches(trainer, 1)
    expected = []
    with torch.no_grad():
        for weight in weights:
            slopes = torch.zeros(weight.numel(), dtype=torch.float64)
            for index, value in enumerate(weight.flatten().tolist()):
                losses = []
                for factor in (1 + 1e-5, 1 - 1e-5):
                    weight.view(-1)[index] = factor * value
                    losses.append(default_loss(model, batch).item())
                weight.view(-1)[index] = value
                slopes[index] = abs(losses[0] - losses[1]) / 2e-5
            expected.append(slopes.view_as(weight))
    check(found, expected)


def test_a_weight_that_the_loss_ignores_scores_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)}).double()
    loss = lambda model, batch: F.cross_entropy(torch.tanh(model["used"](batch[0])), batch[1])  # noqa: E731
    trainer = trainer_of(model, Fixed(drawn(40, 3)), loss=loss)
    for name, settings in (("snip", {}), ("grasp", {"temperature": 1.0})):
        found, _ = score(trainer, name, **settings)
        assert not found["unused.weight"].any()
        assert found["used.weight"].all()


# --- GraSP ------------------------------------------------------------------------------------------------------------


def naive_grasp_loss(trainer: Trainer, model: nn.Module, temperature: float, count: int) -> Tensor:
    losses = [F.cross_entropy(model(inputs) / temperature, labels) for inputs, labels in batches(trainer, count)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_equals_an_explicit_hessian(temperature: float) -> None:
    trainer = mlp()
    found, _ = score(trainer, "grasp", batches=2, temperature=temperature)
    model, weights = plain(trainer)
    shapes = [weight.shape for weight in weights]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        own = {n: part.view(shape) for n, part, shape in zip(trainer.prunable, parts, shapes, strict=True)}
        call = lambda inputs: torch.func.functional_call(model, own, (inputs,))  # noqa: E731
        return naive_grasp_loss(trainer, call, temperature, 2)  # type: ignore[arg-type]

    flat = torch.cat([weight.detach().flatten() for weight in weights])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    removed_first = -flat * (hessian @ gradient)  # the paper's score
    parts = zip(removed_first.split([shape.numel() for shape in shapes]), shapes, strict=True)
    check(found, [-part.view(shape) for part, shape in parts])
    check_masks(trainer, "grasp", found, batches=2, temperature=temperature)


@pytest.mark.parametrize("kind", MODELS)
def test_grasp_equals_finite_differences_of_the_gradient(kind: str) -> None:
    """Hg = (g(w + eg) - g(w - eg)) / 2e, through all kinds of attention."""
    trainer = MODELS[kind]()
    found, _ = score(trainer, "grasp", batches=2)
    model, weights = plain(trainer)

    def gradient() -> list[Tensor]:
        return list(torch.autograd.grad(naive_grasp_loss(trainer, model, 200.0, 2), weights))

    start = gradient()
    step = 1e-5 / max(part.abs().max().item() for part in start)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, part in zip(weights, start, strict=True):
                weight += sign * step * part
        ends.append(gradient())
        with torch.no_grad():
            for weight, part in zip(weights, start, strict=True):
                weight -= sign * step * part
    check(found, [w.detach() * (a - b) / (2 * step) for w, a, b in zip(weights, *ends, strict=True)])


class OwnLoss(nn.Module):
    """Takes a dict and returns an object with its loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3)).double()

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.layers(x)
        return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


class Dicts(Fixed):
    def batch(self, indices: Tensor) -> Any:
        return {"x": self.inputs[indices], "labels": self.labels[indices]}


def test_a_temperature_needs_logits() -> None:
    trainer = trainer_of(OwnLoss(), Dicts(drawn(40, 3)))
    with pytest.raises(
        ConfigError, match=r"temperature = 200.0: must be 1 .* output has type SimpleNamespace, .*\{.temperature.: 1\}"
    ):
        score(trainer, "grasp")
    assert not trainer.model._forward_hooks
    assert score(trainer, "grasp", temperature=1.0)[0].keys() == {"layers.0.weight", "layers.2.weight"}
    parts = lambda model, batch: F.cross_entropy(model[2](torch.tanh(model[0](batch[0]))), batch[1])  # noqa: E731
    with pytest.raises(ConfigError, match=r"temperature = 200.0: must be 1 .* calls only parts of the model"):
        score(trainer_of(mlp().model, Fixed(drawn(40, 3)), loss=parts), "grasp")


# --- SynFlow ----------------------------------------------------------------------------------------------------------


def synflow_by_hand(model: nn.Module, kept: list[Tensor]) -> list[Tensor]:
    """The network `mlp` for an input of ones: GELU in place, the norm a division by a constant."""
    first, norm, _, last = (layer for layer in model)  # type: ignore[union-attr]
    w1, b1, gamma, beta, w2 = (
        part.detach().abs() for part in (first.weight, first.bias, norm.weight, norm.bias, last.weight)
    )
    w1, w2 = w1 * kept[0], w2 * kept[1]
    hidden = w1.sum(1) + b1
    scale = gamma / (hidden.square().mean() + 1e-5).sqrt()
    z = scale * hidden + beta
    normal = torch.distributions.Normal(0.0, 1.0)
    slope = normal.cdf(z) + z * normal.log_prob(z).exp()  # of z * cdf(z)
    return [w1 * (w2.sum(0) * slope * scale)[:, None], w2 * z * normal.cdf(z)]


def test_synflow_equals_its_formula_round_by_round() -> None:
    trainer = mlp()
    model, weights = plain(trainer)
    inputs = synflow.example((drawn(5, 3), torch.zeros(5)))
    assert inputs[0][0].tolist() == [[1.0, 1.0, 1.0]]
    kept = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    for k in range(1, 6):
        expected = synflow_by_hand(model, kept)
        own = dict(zip(trainer.prunable, kept, strict=True))
        check(synflow.flow(model, synflow.positive_state(model), own, inputs), expected)
        count = 24 - round(24 * (1 - (1 - 0.75) ** (k / 5)))
        flat = torch.cat([torch.where(alive, part, -1).flatten() for alive, part in zip(kept, expected, strict=True)])
        top = torch.zeros(24, dtype=torch.bool).index_fill_(0, flat.argsort(descending=True, stable=True)[:count], True)
        kept = [part.view_as(weight) for part, weight in zip(top.split([12, 12]), weights, strict=True)]
    mask = find(trainer, make_method("synflow", {"rounds": 5}), "0.75")
    assert equal(mask, dict(zip(trainer.prunable, kept, strict=True)))


@pytest.mark.parametrize("kind", ["attention", "clip", "bert"])
def test_synaptic_flow_is_conserved_through_attention(kind: str) -> None:
    """Without biases, queries, keys, values and the output projection carry the same flow, so none is pruned away."""
    trainer = MODELS[kind]()
    model, _ = plain(trainer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("in_proj_bias", "query.bias", "key.bias", "value.bias")):
                parameter.zero_()
    kept = masks.ones({name: model.get_parameter(name) for name in trainer.prunable})
    (batch,) = batches(trainer, 1)
    flows = synflow.flow(model, synflow.positive_state(model), kept, synflow.example(batch))
    sums: dict[str, list[float]] = {}
    for name, own in flows.items():
        layer = name.split("attn")[0].split("attention")[0]
        if name.endswith("in_proj_weight"):
            sums.setdefault(layer, []).extend(part.sum().item() for part in own.chunk(3))
        elif name.endswith(
            ("query.weight", "key.weight", "value.weight", "out_proj.weight", "attention.output.dense.weight")
        ):
            sums.setdefault(layer, []).append(own.sum().item())
    assert len(sums) == (1 if kind == "attention" else 2)
    for values in sums.values():
        assert len(values) == 4
        if kind == "clip":  # the unit length of its features makes flows of both signs; their absolute values differ
            values = values[:2]
        assert values == pytest.approx([values[0]] * len(values), rel=1e-9)
    mask = find(trainer, make_method("synflow", {"rounds": 10}), "0.7")
    for name, own in mask.items():
        assert all(part.any() for part in own.chunk(3 if name.endswith("in_proj_weight") else 1))


def test_attention_of_a_positive_flow_by_hand() -> None:
    """One query and three keys with logits 1, 2 and 5."""
    query, key = torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0], [5.0]])
    value = torch.eye(3)
    with synflow.positive_functions():
        attend = F.scaled_dot_product_attention
        assert attend(query, key, value).tolist() == [[1 / 8, 2 / 8, 5 / 8]]
        assert attend(query, key, value, torch.tensor([[True, True, False]])).tolist() == [
            pytest.approx([1 / 3, 2 / 3, 0])
        ]
        added = torch.tensor([[0.0, math.log(2), -math.inf]])
        assert attend(query, key, value, added).tolist() == [pytest.approx([1 / 5, 4 / 5, 0])]
        assert attend(query.expand(3, 1), key, value, is_causal=True)[1].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
        assert F.softmax(torch.tensor([1.0, 3.0, -math.inf]), dim=-1).tolist() == [0.25, 0.75, 0]
        assert nn.Tanh()(torch.tensor(3.0)) == 3
        assert F.layer_norm(torch.tensor([3.0, 4.0]), (2,), eps=0.0).tolist() == pytest.approx(
            [3 / 12.5**0.5, 4 / 12.5**0.5]
        )


def test_a_deep_flow_does_not_overflow() -> None:
    """60 layers of gain 1e4, 1e240 in total, far beyond fp32; every layer has the same flow and loses about half."""
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(60)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model:
            layer.weight.uniform_(500, 1500, generator=generator)
    mask = find(trainer_of(model, Fixed(drawn(40, 10).float())), make_method("synflow", {"rounds": 3}), "0.5")
    assert all(0.3 < masks.sparsity({"": own}) < 0.7 for own in mask.values())


def test_synflow_takes_the_logits_of_an_object() -> None:
    trainer = trainer_of(OwnLoss(), Dicts(drawn(40, 3)))
    assert masks.num_kept(find(trainer, make_method("synflow", {"rounds": 2}), "0.5")) == 12

    class Nothing(OwnLoss):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            return {"loss": super().forward(x, labels).loss}

    loss = lambda model, batch: model(**batch)["loss"]  # noqa: E731
    with pytest.raises(ConfigError, match=r"'synflow': the model's output must be a tensor, or .*, got a dict"):
        find(trainer_of(Nothing(), Dicts(drawn(40, 3)), loss=loss), make_method("synflow"), "0.5")
    assert F.layer_norm.__module__ == "torch.nn.functional"  # put back after the error


# --- Wanda ------------------------------------------------------------------------------------------------------------


def norms(inputs: list[Tensor]) -> Tensor:
    """||x_j|| of each feature over all batches and tokens."""
    return torch.cat([part.detach().flatten(0, -2) for part in inputs]).square().sum(0).sqrt()


@pytest.mark.parametrize("kind", ["mlp", "bert"])
def test_wanda_equals_hooks_on_linear_layers(kind: str) -> None:
    trainer = MODELS[kind]()
    found, _ = score(trainer, "wanda", batches=2)
    model, weights = plain(trainer)
    seen: dict[str, list[Tensor]] = {name: [] for name in trainer.prunable}
    for name in trainer.prunable:
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0])
        )
    for inputs, _ in batches(trainer, 2):
        model(inputs)
    check(found, [w.detach().abs() * norms(seen[n]) for n, w in zip(trainer.prunable, weights, strict=True)])
    check_masks(trainer, "wanda", found, batches=2)


def attention_by_hand(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What goes into `out_proj`: (b, tokens, width)."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    heads = [
        (x @ w.T + b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    ]
    shares = (heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(module.head_dim)).softmax(-1)
    return (shares @ heads[2]).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("need_weights", [False, True])
def test_wanda_knows_the_inputs_of_attention(need_weights: bool) -> None:
    """Separate queries, keys and values; `out_proj`, which is never called, gets what the heads give."""
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True).double()
    nn.init.normal_(model.in_proj_bias)
    x = drawn(40, 5, 8)
    q, k, v = (lambda x: x), (lambda x: 2 * x.flip(1)[:, :3]), (lambda x: x[:, :3] ** 2)
    loss = lambda model, batch: model(q(batch[0]), k(batch[0]), v(batch[0]), need_weights=need_weights)[0].sum()  # noqa: E731
    trainer = trainer_of(model, Fixed(x), ["in_proj_weight", "out_proj.weight"], loss)
    found, cost = score(trainer, "wanda", batches=2)
    seen = [inputs for inputs, _ in batches(trainer, 2)]
    rows = torch.cat([norms([of(x) for x in seen]).expand(8, 8) for of in (q, k, v)])
    out = norms([attention_by_hand(model, q(x), k(x), v(x)) for x in seen])
    check(found, [model.in_proj_weight.abs().detach() * rows, model.out_proj.weight.abs().detach() * out])
    assert cost.samples == 2 * BATCH


def test_wanda_on_clip() -> None:
    """The first block's attention by hand, its MLP by hooks."""
    trainer = tiny_clip()
    found, _ = score(trainer, "wanda", batches=2)
    model, _ = plain(trainer)
    block = model.visual.transformer.resblocks[0]
    attended: list[Tensor] = []
    between: list[Tensor] = []
    block.ln_1.register_forward_hook(lambda module, args, out: attended.append(out))
    block.mlp.c_proj.register_forward_pre_hook(lambda module, args: between.append(args[0]))
    for inputs, _ in batches(trainer, 2):
        model(inputs)
    into_out = [attention_by_hand(block.attn, x, x, x) for x in attended]
    expected = {
        "attn.in_proj_weight": norms(attended),
        "attn.out_proj.weight": norms(into_out),
        "mlp.c_proj.weight": norms(between),
    }
    for name, norm in expected.items():
        own = f"visual.transformer.resblocks.0.{name}"
        check({own: found[own]}, [block.get_parameter(name).detach().abs() * norm])


def test_wanda_without_biases_and_as_bmm() -> None:
    """Products without a bias, and one weight expanded over a batch."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4, bias=False)
            self.expanded = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.bmm(self.linear(x), self.expanded.weight.T.expand(len(x), 4, 3))
            return hidden.mean(1)

    model = Products().double()
    trainer = trainer_of(model, Fixed(drawn(40, 5, 3)))
    found, _ = score(trainer, "wanda", batches=2)
    seen = [inputs for inputs, _ in batches(trainer, 2)]
    hidden = [model.linear(x) for x in seen]
    check(found, [layer.weight.abs() * norms(x) for layer, x in ((model.linear, seen), (model.expanded, hidden))])


def test_wanda_refuses_a_convolution() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(6, 3)).double()
    with pytest.raises(ConfigError, match=r"parameter '0.weight': .* it supports weights of nn.Linear,"):
        score(trainer_of(model, Fixed(drawn(40, 2, 3))), "wanda")


# --- cost -------------------------------------------------------------------------------------------------------------


def test_flops_of_scoring_by_hand() -> None:
    """The network 3 - 4 - 3, both weights prunable, so a product of `a` or `b` multiply-adds an example, 2 FLOPs each.

    Forward a + b; gradients: second weight b, hidden b, first weight a. The second backward pass goes through these
    three (to the outputs' gradient and the hidden layer: b and b; to the hidden gradient: a; to the outputs' gradient
    and the second weight: b and b) and the forward pass (b, b, a).
    """
    a, b = 2 * 3 * 4, 2 * 4 * 3
    forward, backward, double = a + b, a + 2 * b, 2 * a + 6 * b
    trainer = mlp()

    def cost(examples: int, flops: int) -> Cost:
        return Cost(samples=examples, flops=flops, sparse_flops=flops)

    assert score(trainer, "wanda", batches=3)[1] == cost(3 * BATCH, 3 * BATCH * forward)
    assert score(trainer, "snip", batches=3)[1] == cost(3 * BATCH, 3 * BATCH * (forward + backward))
    twice = 2 * (forward + backward) + double
    assert score(trainer, "grasp", batches=3)[1] == cost(2 * 3 * BATCH, 3 * BATCH * twice)
    for name in ("one_shot", "random"):
        assert score(trainer, name)[1] == Cost()
    rounds = make_method("synflow", {"rounds": 7})
    sparsities = [parse_sparsity("0.5"), parse_sparsity("0.8")]
    for _, spent in one_shot.find(rounds, trainer, state_of(trainer.model), sparsities):
        assert spent == cost(7, 7 * (forward + backward))


def test_only_the_models_work_is_counted() -> None:
    """Not the products that augmentation makes; but everything, also under inference mode and in attention."""

    class Augmented(Noisy):
        def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            inputs, labels = super().batch(indices)
            return inputs @ torch.eye(8), labels

    names = prunable_names(tiny_model())
    trainer = trainer_of(tiny_model(), Augmented(), names)

    def look(probe: Any) -> None:
        for batch in probe.batches(2):
            probe.loss(probe.model, batch).backward()

    assert one_shot.probe(trainer, state_of(trainer.model), look)[1].flops == 2 * trainer.flops.total[0]
    (batch,) = batches(trainer, 1)
    counts = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with counting(trainer.model) as counter, mode():
            default_loss(trainer.model, batch)
        counts.append(counter.cost())
    assert counts[0] == counts[1] == counts[2]
    assert counts[0].samples == BATCH
    assert counts[0].flops > 0
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_wanda_follows_computed_weights_to_their_products(kind: str) -> None:
    trainer = MODELS[kind]()
    found, _ = score(trainer, "wanda", batches=2)
    model, weights = plain(trainer)
    seen: dict[int, list[Tensor]] = {index: [] for index in (0, 1, 4)}
    for index, inputs in seen.items():
        model[index].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))  # type: ignore[index]
    for inputs, _ in batches(trainer, 2):
        model(inputs)
    check(found, [weight.detach().abs() * norms(seen[index]) for weight, index in zip(weights, seen, strict=True)])


def test_wanda_tells_weights_in_one_storage_apart() -> None:
    apart, together = mlp(), mlp()
    vector = nn.utils.parameters_to_vector(together.model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, together.model.parameters())
    assert equal(score(apart, "wanda")[0], score(together, "wanda")[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_default_type_of_torch_changes_no_mask(name: str) -> None:
    trainer, method = mlp(), make_method(name, {"rounds": 5} if name == "synflow" else {})
    expected = find(trainer, method, "0.5")
    torch.set_default_dtype(torch.float64)
    try:
        assert equal(find(trainer, method, "0.5"), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["snip", "grasp", "wanda"])
def test_scores_in_half_precision_are_near_those_of_the_same_weights(name: str, dtype: torch.dtype) -> None:
    """Weights and examples are the same; hardly any score vanishes."""
    inputs, trained = drawn(40, 5, 8).to(dtype), attentive().model.to(dtype)
    half = score(trainer_of(trained, Fixed(inputs)), name)[0]
    exact = score(trainer_of(copy.deepcopy(trained).double(), Fixed(inputs.double())), name)[0]
    for key, expected in exact.items():
        assert torch.cosine_similarity(half[key].double().flatten(), expected.flatten(), dim=0) > 0.97
        assert half[key].count_nonzero() >= 0.98 * expected.count_nonzero()
