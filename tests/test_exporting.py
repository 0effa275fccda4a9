"""Exported tickets: the content of a folder, its equality with the ticket, and labels predicted by both."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import isp
from isp import artifacts, cli, exported, exporting, masks, prediction, read_ticket, registry
from isp.acceleration import accelerate
from isp.backbones._bert import BertBackbone
from isp.backbones._open_clip import ClipBackbone
from isp.errors import ArtifactError, ConfigError, IspError
from isp.tickets import Ticket
from isp.training import state_of
from tests.support.backbones import SMALL_BERT
from tests.support.exports import pretrained_of, redefined, workflow_ticket, write_record
from tests.support.models import TiedHead, TinyModel, equal

ROOT = Path(__file__).parents[1]
BACKBONES = registry.names("backbone")
TASKS = {"texts": ("sst2", "half_order", "stsb"), "pictures": ("digits", "cifar10")}
"""One text, a pair, a regression on pairs; of images."""
CELLS = [
    (backbone, task) for backbone in BACKBONES for task in TASKS[registry.load("backbone", backbone).BACKBONE.inputs]
]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process; another test does so in a separate process."""
    monkeypatch.setattr(exporting, "ask", lambda request, scratch, folder: exported.answer(request))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A ticket on pairs of texts."""
    return workflow_ticket(tmp_path, "bert_tiny", "half_order")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A ticket on images."""
    return workflow_ticket(tmp_path, "clip_tiny", "digits")


def picture(path: Path, height: int = 40, width: int = 60) -> Path:
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, arguments)))
    return int(caught.value.code or 0)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- tickets of the workflow ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("backbone", "task"), CELLS)
def test_a_folder_holds_the_ticket_to_the_bit(backbone: str, task: str, tmp_path: Path) -> None:
    """Every backbone, on every kind of task: weights, zeros, labels, tokens or pixels, and logits."""
    path = workflow_ticket(tmp_path, backbone, task)
    ticket, made = artifacts.load_ticket(path), registry.load("backbone", backbone).BACKBONE
    done = isp.export(path, None, tmp_path / "out")
    zero = masks.num_weights(ticket.mask) * 9 // 10
    assert abs(done.zero_weights - zero) <= 1
    assert (done.library, done.num_tensors) == (made.library, len(ticket.weights))
    assert done.num_inputs == (len(exporting.TEXTS) if made.inputs == "texts" else len(exporting.SHAPES))
    assert done.sizes.keys() == names(tmp_path / "out")

    plain = tmp_path / "out" / ("model.safetensors" if made.inputs == "texts" else "open_clip_model.safetensors")
    weights = load_file(plain)
    assert sum(int((weights[name] == 0).sum()) for name in ticket.mask) == done.zero_weights
    assert all(torch.equal(weights[name] != 0, kept) for name, kept in ticket.mask.items())
    classes = registry.load("task", task).TASK.classes
    if isinstance(made, BertBackbone):
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert list(config["id2label"].values()) == list(classes or ["value"])
        assert config["problem_type"] == ("single_label_classification" if classes else "regression")
        tokenizer = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
        assert tokenizer["model_max_length"] == made.max_length
    else:
        assert json.loads((tmp_path / "out/classes.json").read_text()) == list(classes)
        assert torch.equal(load_file(tmp_path / "out/head.safetensors")["head"], ticket.weights["head"])
        assert weights.keys() == pretrained_of(backbone).weights.keys()  # the text tower as well

    compact = isp.export(path, None, tmp_path / "compact", compact=True)
    assert (compact.zero_weights, compact.num_inputs) == (done.zero_weights, done.num_inputs)
    again = isp.load_ticket(tmp_path / "compact/ticket.safetensors")
    assert equal(again.weights, ticket.weights)
    assert equal(again.mask, ticket.mask)
    assert names(tmp_path) == {"resources", "results", "out", "compact"}
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "out").iterdir()}
    assert modes == {stat.S_IMODE((tmp_path / "out/README.md").stat().st_mode)}


def test_the_lines_of_the_docs_read_a_compact_folder(tmp_path: Path, texts: Path, inside: None) -> None:
    code = (ROOT / "docs/reference/tickets.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    source = Path(read_ticket.__file__).read_text(encoding="utf-8")
    assert source.split('"""\n\n', 1)[1] == code
    isp.export(texts, None, tmp_path / "out", compact=True)
    assert (tmp_path / "out/read_ticket.py").read_text(encoding="utf-8") == source
    ticket = artifacts.load_ticket(texts)
    weights, mask = read_ticket.read_ticket(str(tmp_path / "out/ticket.safetensors"))
    assert weights.keys() == ticket.weights.keys()
    assert all(np.array_equal(weights[name], ticket.weights[name].numpy()) for name in weights)
    assert all(np.array_equal(mask[name], kept.numpy()) for name, kept in ticket.mask.items())


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_the_lines_of_a_card_label_an_input(
    kind: str, compact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(kind)
    isp.export(source, None, tmp_path / "out", compact=compact)
    image = picture(tmp_path / "out/image.png")
    printed: list[str] = []
    run_card(tmp_path / "out", monkeypatch, print=printed.append)
    predictor = prediction.load_predictor(tmp_path / "out")
    given: Any = {"texts": ["first"], "seconds": ["second"]} if kind == "texts" else {"images": [image]}
    ((best, *_),) = prediction.predict(predictor, **given)
    assert printed == [best[0]]
    if kind == "pictures" and not compact:
        docs = (ROOT / "docs/how-to/export.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
        exec(docs, {"print": printed.append, "folder": tmp_path / "out", "picture": image})
        assert printed == [best[0]] * 2


@pytest.mark.usefixtures("inside")
def test_a_card_says_scores_with_intervals_over_seeds(tmp_path: Path) -> None:
    """60, 62, 64: mean 62, standard error 2 / √3, t(0.975, 2) = 4.303."""
    for seed, accuracy in enumerate((60.0, 62.0, 64.0)):
        ticket = workflow_ticket(tmp_path, "bert_tiny", "half_order", seed)
        write_record(ticket, accuracy)
    isp.export(ticket, None, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "| accuracy, test | 64.00 | 62.00 | 57.03 to 66.97 |" in card
    assert "| | seed 2 (these weights) | mean over 3 seeds |" in card
    content = artifacts.lineage.read_header(ticket)
    assert content is not None
    for part in ("3,686 of 4,096 prunable weights", "method: one_shot", "classes: [swapped, in order]", "steps: 20"):
        assert part in card
    assert f"digest: {content['content']}" in card
    assert "| together | 20 | 640 | 2 G | 1 G |" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


@pytest.mark.usefixtures("inside")
def test_a_card_of_two_seeds_has_both_scores(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((60.0, 62.0)):
        ticket = workflow_ticket(tmp_path, "bert_tiny", "half_order", seed)
        write_record(ticket, accuracy)
    isp.export(ticket, None, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "| | seed 1 (these weights) | mean over 2 seeds | both seeds |" in card
    assert "| accuracy, test | 62.00 | 61.00 | 60.00 / 62.00 |" in card
    assert "interval" not in card


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("accuracies", "content", "says"),
    [((), None, "not scored"), ((60.0,), None, "seed 0, the only one"), ((60.0,), "xxh3:0", "not scored")],
)
def test_a_card_of_one_seed_or_none(
    accuracies: tuple[float, ...], content: str | None, says: str, tmp_path: Path, texts: Path
) -> None:
    """A record of an earlier ticket in this place does not count."""
    for accuracy in accuracies:
        write_record(texts, accuracy, content)
    isp.export(texts, None, tmp_path / "out")
    assert says in (tmp_path / "out/README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("inside")
def test_a_card_runs_no_method_of_a_file(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    redefined(texts, method="mine.py")
    isp.export(texts, None, tmp_path / "out")
    assert "A method from outside the package." in (tmp_path / "out/README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("inside")
def test_what_a_study_defines_is_exported(tmp_path: Path, texts: Path) -> None:
    """The backbone and the task are in the header, the name of the former's weights in the ticket's place."""
    backbone = {"family": "bert", "folder": "here", "case": "kept", "max_length": 9}
    task = {
        "kind": "texts",
        "id": "me/sets",
        "inputs": ['say "x"', "y"],
        "num_examples": 9,
        "classes": ["swapped", "ordered"],
    }
    redefined(texts, backbone=json.dumps(backbone), task=json.dumps({**task, "metrics": ["accuracy"]}))
    isp.export(texts, None, tmp_path / "out")
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert (config["do_lower_case"], config["model_max_length"]) == (False, 9)
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert 'tokenizer("say \\"x\\"", "y", truncation' in card
    assert "# bert_tiny on half_order, 90 % of its prunable weights zero" in card
    (best, _) = prediction.predict(prediction.load_predictor(tmp_path / "out"), texts=["a"], seconds=["b"])[0]
    assert best[0] in task["classes"]


@pytest.mark.usefixtures("inside")
def test_a_dense_model_is_exported(tmp_path: Path) -> None:
    for compact in (False, True):
        done = isp.export(
            workflow_ticket(tmp_path, "bert_tiny", "stsb", sparsity="0"), None, tmp_path / f"{compact}", compact=compact
        )
        assert done.zero_weights == 0
    assert "# bert_tiny on stsb, dense" in (tmp_path / "False/README.md").read_text(encoding="utf-8")


# --- models of one's own ----------------------------------------------------------------------------------------------


def ticket_of(model: nn.Module, prunable: tuple[str, ...], sparsity: str = "0.5") -> Ticket:
    weights = state_of(model).weights
    mask = masks.prune_by_magnitude({name: weights[name] for name in prunable}, Decimal(sparsity))
    masks.apply_(mask, weights)
    return Ticket(method="one_shot", sparsity=Decimal(sparsity), mask=mask, weights=weights)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("make", "prunable"), [(TinyModel, ("up.weight", "down.weight")), (TiedHead, ("embedding.weight",))]
)
def test_any_module_becomes_plain_weights(
    make: Callable[[], nn.Module], prunable: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ticket = ticket_of(model, prunable)
    done = isp.export(ticket, model, tmp_path / "out")
    assert (done.library, done.num_inputs) == ("safetensors", 0)
    assert names(tmp_path / "out") == {"model.safetensors", "README.md"}
    assert equal(before, model.state_dict())  # untouched
    other = make().to(dtype)
    other.load_state_dict(load_file(tmp_path / "out/model.safetensors"))
    assert equal(state_of(other).weights, ticket.weights)

    artifacts.save_ticket(tmp_path / "ticket", ticket)
    isp.export(tmp_path / "ticket", model, tmp_path / "compact", compact=True)
    assert names(tmp_path / "compact") == {"ticket.safetensors", "read_ticket.py", "README.md"}
    read = isp.load_ticket(tmp_path / "compact/ticket.safetensors", other)
    assert equal(read.mask, ticket.mask)
    with pytest.raises(ConfigError, match="out: contains the weights of your own model, without a task or labels"):
        prediction.load_predictor(tmp_path / "out")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_weight_that_a_norm_computes_is_exported(
    norm: Callable[[nn.Module], nn.Module], compact: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)  # a row without weights has no norm
    model = nn.Sequential(norm(nn.Linear(8, 6)), nn.Linear(6, 3))
    data = (torch.randn(32, 8), torch.arange(32) % 3)
    ticket = isp.prune(model, data, method="one_shot", sparsity=0.3, steps=2, learning_rate=1e-2, batch_size=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = isp.export(ticket, model, tmp_path / "out", compact=compact)
    assert done.num_tensors == len(ticket.weights)
    assert equal(before, model.state_dict())
    if not compact:
        assert equal(load_file(tmp_path / "out/model.safetensors"), dict(ticket.weights))


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
def test_a_checkpointed_block_is_exported_under_the_names_of_its_state(compact: bool, tmp_path: Path) -> None:
    model = nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Linear(8, 6))), nn.Linear(6, 3))
    plain = nn.Sequential(nn.Sequential(nn.Linear(8, 6)), nn.Linear(6, 3))
    data = (torch.randn(32, 8), torch.arange(32) % 3)
    ticket = isp.prune(model, data, method="one_shot", sparsity=0.5, steps=2, learning_rate=1e-2, batch_size=8)
    for number, each in enumerate((model, plain)):
        out = tmp_path / f"out{number}"
        done = isp.export(ticket, each, out, compact=compact)
        assert done.zero_weights == 33
        if compact:
            assert list(isp.load_ticket(out / "ticket.safetensors").mask) == ["0.0.weight", "1.weight"]
            isp.load_ticket(out / "ticket.safetensors", plain)
        else:
            plain.load_state_dict(load_file(out / "model.safetensors"))
        assert equal(plain.state_dict(), model.state_dict())


@pytest.mark.usefixtures("inside")
def test_the_card_of_a_ticket_with_an_empty_mask(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(0, 6)})
    ticket = ticket_of(model, ("a.weight", "b.weight"))
    isp.export(ticket, model, tmp_path / "out")
    assert "24 of 48 prunable weights" in (tmp_path / "out/README.md").read_text()


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("cls", "dtype"),
    [
        ("BertForSequenceClassification", torch.float32),
        ("BertForSequenceClassification", torch.bfloat16),
        ("BertForMaskedLM", torch.float32),
    ],
)
def test_a_hugging_face_model_is_loaded_by_its_class(
    cls: str, dtype: torch.dtype, compact: bool, tmp_path: Path
) -> None:
    """Tied embeddings included, which the latter has; logits are those of its dummy inputs."""
    import transformers

    config = transformers.BertConfig(**SMALL_BERT, num_labels=3, id2label={0: "x", 1: "y", 2: "z"})
    model = getattr(transformers, cls)(config).to(dtype)
    tokenizer = transformers.BertTokenizer(
        vocab={word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"))}
    )
    ticket = ticket_of(model, ("bert.encoder.layer.0.output.dense.weight",))
    done = isp.export(ticket, model, tmp_path / "out", tokenizer=tokenizer, compact=compact)
    assert (done.library, done.num_inputs, done.zero_weights) == ("transformers", 3, 256)
    assert "tokenizer.json" in names(tmp_path / "out")
    without = isp.export(ticket, model, tmp_path / "without", compact=compact)
    assert "tokenizer.json" not in without.sizes
    with pytest.raises(ConfigError, match=f"without: a {cls} without a tokenizer or labels"):
        prediction.load_predictor(tmp_path / "without")
    if cls == "BertForMaskedLM":
        with pytest.raises(ConfigError, match="out: a BertForMaskedLM without a tokenizer or labels"):
            prediction.load_predictor(tmp_path / "out")
    else:
        predictor = prediction.load_predictor(tmp_path / "out")
        assert len(prediction.predict(predictor, texts=["a a"])[0]) == 3
        assert predictor.labels == ("x", "y", "z")


@pytest.mark.usefixtures("inside")
def test_a_compiled_model_is_the_one_inside(tmp_path: Path) -> None:
    model, other = nn.Linear(6, 4), nn.Linear(6, 4)
    data = (torch.randn(8, 6), torch.arange(8) % 4)
    training = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    ticket = isp.prune(torch.compile(model), data, sparsity=0.5, method="one_shot", prunable=["weight"], **training)
    assert ticket.weights.keys() == {"weight", "bias"}
    artifacts.save_ticket(tmp_path / "ticket", ticket)
    isp.export(ticket, torch.compile(model), tmp_path / "out")
    assert equal(load_file(tmp_path / "out/model.safetensors"), ticket.weights)
    isp.load_ticket(tmp_path / "ticket", torch.compile(other))
    assert equal(state_of(other).weights, ticket.weights)


def small_t5() -> Any:
    """Its dummy inputs have one tensor under two names."""
    import transformers

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def small_bert(cls: str = "BertModel", attention: str = "sdpa", **options: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SMALL_BERT, **options})
    return getattr(transformers, cls)._from_config(config, attn_implementation=attention)


def code_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> dict[str, Any]:
    """Run the lines of a model card in its folder, and return their variables."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "read_ticket", raising=False)
    variables: dict[str, Any] = {"print": lambda text: None, **given}
    exec(code_of(folder), variables)
    return variables


def dtypes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in tensors.items()}


def small_vit() -> Any:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=16, patch_size=8))


def small_resnet() -> Any:
    """Its buffers have floats and integers."""
    import transformers

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))


def small_llama() -> Any:
    """Its buffers are not saved, and float32 in a model of any type."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=100))


LAYER = "encoder.layer.0.output.dense.weight"
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "module": (TinyModel, "up.weight"),
    "tied module": (TiedHead, "embedding.weight"),
    "bert": (small_bert, LAYER),
    "classifier": (partial(small_bert, "BertForSequenceClassification"), f"bert.{LAYER}"),
    "tied bert": (partial(small_bert, "BertForMaskedLM"), f"bert.{LAYER}"),
    "t5": (small_t5, "encoder.block.0.layer.0.SelfAttention.q.weight"),
    "llama": (small_llama, "model.layers.0.mlp.up_proj.weight"),
    "vit": (small_vit, "classifier.weight"),
    "resnet": (small_resnet, "classifier.1.weight"),
}
"""Models of one's own and a prunable weight of each; they have no tokenizer."""
LOADED = [
    (kind, dtype)
    for kind in KINDS
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    if (kind, dtype) != ("t5", torch.float16)  # transformers loads some of its layers in float32
]


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), LOADED)
def test_the_lines_of_a_card_load_the_ticket_to_the_bit(
    kind: str, dtype: torch.dtype, compact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the types of the ticket, and with buffers that are not saved like those of the model."""
    torch.manual_seed(0)
    make, prunable = KINDS[kind]
    model, other = made(make, dtype), made(make, dtype)
    for each in other.parameters():
        each.data.fill_(1)
    ticket = ticket_of(model, (prunable,))
    isp.export(ticket, model, tmp_path / "out", compact=compact)
    assert "okenizer" not in code_of(tmp_path / "out")
    loaded = run_card(tmp_path / "out", monkeypatch, model=other)["model"]
    assert type(loaded) is type(model)
    assert dtypes(loaded.state_dict()) == dtypes(model.state_dict())
    assert equal(state_of(loaded).weights, ticket.weights)
    if exported.library_of(tmp_path / "out") == "transformers":
        weights = exported._read_ticket(tmp_path / "out") if compact else None
        for each in (loaded, exported.load(tmp_path / "out", weights).model):
            assert not each.training
            assert dtypes(dict(each.named_buffers())) == dtypes(dict(model.named_buffers()))


def made(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """Return a model that was built in a type, as `from_pretrained` does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make().eval()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_the_lines_of_a_card_load_a_ticket_of_the_workflow(
    kind: str, compact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(kind)
    isp.export(source, None, tmp_path / "out", compact=compact)
    picture(tmp_path / "out/image.png")
    variables = run_card(tmp_path / "out", monkeypatch)
    loaded = {**variables["model"].state_dict(), **{name: variables[name] for name in ("head",) if name in variables}}
    weights = artifacts.load_ticket(source).weights
    assert equal({name: loaded[name] for name in weights}, weights)
    assert dtypes({name: loaded[name] for name in weights}) == dtypes(weights)
    assert ("tokenizer" in variables) == (kind == "texts")


@pytest.mark.usefixtures("inside")
def test_the_lines_of_a_card_load_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that NumPy lacks arrive as bits, and those that safetensors lacks as bytes."""
    torch.manual_seed(0)
    model, other = AllKinds(), AllKinds()
    for each in (model, other):
        each.register_buffer("phase", torch.randn(2, 3, dtype=torch.complex128))
        each.register_buffer("scalar", torch.randn((), dtype=torch.complex128))
    ticket = ticket_of(model, ("conv.weight", "head.weight"))
    isp.export(ticket, model, tmp_path / "out", compact=True)
    run_card(tmp_path / "out", monkeypatch, model=other)
    for name, tensor in other.state_dict().items():
        assert exporting._equal(tensor, ticket.weights[name]), name


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
def test_the_lines_of_a_card_load_a_tokenizer_if_there_is_one(
    compact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_bert()
    isp.export(ticket_of(model, (LAYER,)), model, tmp_path / "out", tokenizer=small_tokenizer(), compact=compact)
    assert run_card(tmp_path / "out", monkeypatch)["tokenizer"]("a a")["input_ids"] == [2, 4, 4, 3]


def small_tokenizer(*words: str) -> Any:
    """A tokenizer of a few words, without a limit of length."""
    import transformers

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", *words)
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("given", "has"),
    [
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("kind", ["module", "tied module", "bert", "tied bert"])
def test_a_model_of_another_type_is_refused(kind: str, given: torch.dtype, has: torch.dtype, tmp_path: Path) -> None:
    """A copy would be rounded, or silently be of another type than what the ticket has."""
    torch.manual_seed(0)
    make, prunable = KINDS[kind]
    ticket = ticket_of(make().to(given), (prunable,))
    model = make().to(has)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    isp.save_ticket(tmp_path / "ticket", ticket)
    old, new = (str(each).removeprefix("torch.") for each in (given, has))
    says = rf"'.*' is {old}, but {new} in the model; first convert the model, or its tensor: model\.to\(torch\.{old}\)"
    with pytest.raises(ConfigError, match=f"the weights of the ticket .*ticket: {says}"):
        isp.load_ticket(tmp_path / "ticket", model)
    for compact in (False, True):
        with pytest.raises(ConfigError, match=f"the ticket's weights: {says}"):
            isp.export(ticket, model, tmp_path / "out", compact=compact)
        with pytest.raises(ConfigError, match=f"the weights of the ticket .*ticket: {says}"):
            isp.export(tmp_path / "ticket", model, tmp_path / "out", compact=compact)
    assert equal(model.state_dict(), before)
    assert names(tmp_path) == {"ticket"}
    isp.load_ticket(tmp_path / "ticket", model.to(given))
    assert equal(state_of(model).weights, ticket.weights)


@pytest.mark.usefixtures("inside")
def test_a_single_tensor_of_another_type_is_refused(tmp_path: Path) -> None:
    """A large running variance in a half model, and a counter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    ticket = ticket_of(model, ("0.weight",))
    isp.save_ticket(tmp_path / "ticket", ticket)
    for name, other in (("running_var", torch.float16), ("num_batches_tracked", torch.int32)):
        changed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        changed[1].register_buffer(name, changed[1].get_buffer(name).to(other))
        with pytest.raises(ConfigError, match=f"ticket: '1.{name}' is .*, but {str(other).removeprefix('torch.')} in"):
            isp.load_ticket(tmp_path / "ticket", changed)
        with pytest.raises(ConfigError, match=f"the ticket's weights: '1.{name}' is"):
            isp.export(ticket, changed, tmp_path / "out")
    assert names(tmp_path) == {"ticket"}


@pytest.mark.usefixtures("inside")
def test_a_model_that_transformers_cannot_save_is_named(tmp_path: Path) -> None:
    """One whose configuration of generation is invalid, and a number in place of a tokenizer."""
    torch.manual_seed(0)
    model = small_t5()
    ticket = ticket_of(model, (KINDS["t5"][1],))
    for compact in (False, True):
        with pytest.raises(ConfigError, match=r"a T5ForC.* that transformers cannot save \(AttributeError: 'int' obj"):
            isp.export(ticket, model, tmp_path / "out", tokenizer=1, compact=compact)
    model.generation_config.update(temperature=0.5, do_sample=False)
    with pytest.raises(ConfigError, match=r"that transformers cannot save \(ValueError: .*temperature"):
        isp.export(ticket, model, tmp_path / "out")
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("inside")
def test_a_model_of_several_types_is_told_why_it_cannot_be_exported(tmp_path: Path) -> None:
    model = small_bert().bfloat16()
    model.embeddings.LayerNorm.float()
    with pytest.raises(IspError, match=r"one type, but the model has torch.bfloat16, torch.float32: convert it before"):
        isp.export(ticket_of(model, (LAYER,)), model, tmp_path / "out", compact=True)
    assert names(tmp_path) == set()


class AllKinds(nn.Module):
    """Weights in other orders of memory, and buffers of types that NumPy lacks or that are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.head = nn.Linear(6, 4)
        self.head.weight = nn.Parameter(torch.randn(6, 4).t())
        types = (torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.uint16, torch.int8)
        buffers = [torch.ones(3).to(dtype) for dtype in types]
        buffers += [torch.empty(0), torch.empty(0, 4), torch.ones(8)[::2][:1]]
        for number, buffer in enumerate(buffers):
            self.register_buffer(f"buffer{number}", buffer)


@pytest.mark.usefixtures("inside")
def test_tensors_of_any_order_and_type_are_exported(tmp_path: Path) -> None:
    model = AllKinds()
    ticket = ticket_of(model, ("conv.weight", "head.weight"))
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    for compact in (False, True):
        done = isp.export(ticket, model, tmp_path / f"{compact}", compact=compact)
        assert (done.zero_weights, done.num_tensors) == (66, 13)
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == strides
    plain, kept = load_file(tmp_path / "False/model.safetensors"), exported._read_ticket(tmp_path / "True")
    for name, tensor in ticket.weights.items():
        for found in (plain[name], kept[name]):
            assert (found.dtype, found.shape, found.tolist()) == (tensor.dtype, tensor.shape, tensor.tolist())


@pytest.mark.usefixtures("inside")
def test_types_that_safetensors_lacks_need_a_compact_folder(tmp_path: Path) -> None:
    model = nn.Linear(16, 4)
    model.register_buffer("phase", torch.ones(3, dtype=torch.complex128))
    ticket = ticket_of(model, ("weight",))
    with pytest.raises(ConfigError, match=r"'phase' is complex128, .* export with `compact=True`"):
        isp.export(ticket, model, tmp_path / "out")
    assert isp.export(ticket, model, tmp_path / "out", compact=True).num_tensors == 3


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("make", "prunable"),
    [
        (small_t5, "encoder.block.0.layer.0.SelfAttention.q.weight"),
        (partial(small_bert, vocab_size=3), "encoder.layer.0.output.dense.weight"),
        (partial(small_bert, attention="eager"), "encoder.layer.0.output.dense.weight"),
        (
            partial(small_bert, "BertForSequenceClassification", "eager"),
            "bert.encoder.layer.0.output.dense.weight",
        ),
    ],
    ids=["t5", "three tokens", "eager", "eager classifier"],
)
def test_hugging_face_models_compute_the_same_in_a_folder(
    make: Callable[[], Any], prunable: str, compact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tensor under two names, a vocabulary smaller than the dummy tokens, and other attention implementations."""
    model = make()
    implementations = []
    answer = exported.outputs

    def outputs(predictor: exported.Predictor, inputs: Any) -> dict[str, torch.Tensor]:
        implementations.append(predictor.model.config._attn_implementation)
        return answer(predictor, inputs)

    monkeypatch.setattr(exported, "outputs", outputs)
    done = isp.export(ticket_of(model, (prunable,)), model, tmp_path / "out", compact=compact)
    assert done.num_inputs == 3
    assert implementations == [model.config._attn_implementation] * 2


@pytest.mark.usefixtures("inside")
def test_a_model_that_cannot_read_dummy_inputs_is_named(tmp_path: Path) -> None:
    model = small_bert(max_position_embeddings=3)
    ticket = ticket_of(model, ("encoder.layer.0.output.dense.weight",))
    with pytest.raises(ConfigError, match="a BertModel that cannot compute transformers' dummy inputs, 5 tokens each"):
        isp.export(ticket, model, tmp_path / "out")


# --- what differs is refused ------------------------------------------------------------------------------------------


def _one_weight(folder: Path) -> None:
    _edit(folder, "model.safetensors", "open_clip_model.safetensors", change=lambda name, each: each[0].add_(1e-3))


def _a_zero(folder: Path) -> None:
    def fill(name: str, tensor: torch.Tensor) -> None:
        if "mlp.c_fc.weight" in name or "intermediate.dense.weight" in name:
            tensor[tensor == 0] = 1e-30

    _edit(folder, "model.safetensors", "open_clip_model.safetensors", change=fill)


def _the_head(folder: Path) -> None:
    _edit(folder, "head.safetensors", "model.safetensors", change=lambda name, each: each.mul_(1.001))


def _edit(folder: Path, *files: str, change: Callable[[str, torch.Tensor], object]) -> None:
    from safetensors.torch import save_file

    for path in (folder / name for name in files):
        if path.exists():
            tensors = load_file(path)
            for name, tensor in tensors.items():
                if tensor.dim():
                    change(name, tensor)
            save_file(tensors, path, {"format": "pt"})


def _preparation(folder: Path) -> None:
    """Another mean, or texts whose case is kept."""
    for name, old, new in (
        ("open_clip_config.json", '"mean": [\n   0.2', '"mean": [\n   0.3'),
        ("tokenizer_config.json", '"model_max_length": 32', '"model_max_length": 31'),
    ):
        if (folder / name).exists():
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))


def _architecture(folder: Path) -> None:
    """Other heads or another activation, which the shapes of weights do not show."""
    for name, old, new in (
        ("open_clip_config.json", '"head_width": 32', '"head_width": 64'),
        ("config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"'),
    ):
        if (folder / name).exists():
            (folder / name).write_text((folder / name).read_text().replace(old, new))


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_one_weight, "tensor '.*' differs"),
        (_a_zero, "tensor '.*' differs"),
        (_the_head, "tensor '.*' differs"),
        (_preparation, "input '.*' differs"),
        (_architecture, "the output differs"),
    ],
)
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_a_folder_that_differs_from_the_ticket_is_not_kept(
    kind: str,
    damage: Callable[[Path], None],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    source, cls = request.getfixturevalue(kind), BertBackbone if kind == "texts" else ClipBackbone
    write = cls.export

    def export(self: Any, folder: Path, *arguments: Any) -> None:
        write(self, folder, *arguments)
        damage(folder)

    monkeypatch.setattr(cls, "export", export)
    with pytest.raises(IspError, match=f"out: {says} between the ticket and the copy .* nothing was kept"):
        isp.export(source, None, tmp_path / "new/out")
    assert names(tmp_path) == {"resources", "results"}


@pytest.mark.usefixtures("inside")
def test_zeros_are_compared_by_themselves(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "digest", lambda tensor: torch.zeros(32))
    monkeypatch.setattr(exporting, "_equal", torch.equal)
    counts = iter(range(100))
    monkeypatch.setattr(exported, "zeros", lambda tensor: torch.tensor(next(counts)))
    with pytest.raises(IspError, match=r"out: the number of zeros of 'bert\.encoder\.layer\.0"):
        isp.export(texts, None, tmp_path / "out")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inside")
def test_tickets_that_cannot_be_exported(tmp_path: Path, texts: Path, pictures: Path) -> None:
    out, weights = tmp_path / "out", tmp_path / "resources/backbones/bert_tiny.safetensors"

    def refused(error: type[IspError], says: str, *arguments: Any, **options: Any) -> None:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(error, match=says):
            isp.export(*arguments, **options)
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    mine = ticket_of(TinyModel(), ("up.weight",))
    artifacts.save_ticket(tmp_path / "mine", mine)
    (tmp_path / "cut").write_bytes(texts.read_bytes()[:-9])
    flipped = bytearray(texts.read_bytes())
    flipped[-1] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    shutil.copy(pictures, tmp_path / "moved.safetensors")
    (tmp_path / "file").touch()
    refused(ArtifactError, "absent: no such ticket file", tmp_path / "absent", None, out)
    refused(ArtifactError, "must be a ticket file", tmp_path, None, out)
    refused(ArtifactError, "cut: truncated or not a safetensors", tmp_path / "cut", None, out)
    refused(
        ArtifactError,
        "flipped: altered or damaged, because its checksum",
        tmp_path / "flipped",
        None,
        out,
    )
    refused(ArtifactError, "bert_tiny.safetensors: contains backbone, but ticket is needed", weights, None, out)
    refused(
        ConfigError,
        "the ticket of your own model, because its header has no backbone",
        tmp_path / "mine",
        None,
        out,
    )
    refused(
        ConfigError,
        "the ticket's weights are of another model: 'attention.in_proj_bias' has",
        mine,
        nn.Linear(2, 2),
        out,
    )
    refused(ConfigError, "the ticket .*mine are of another model", tmp_path / "mine", nn.Linear(2, 2), out)
    refused(ConfigError, "a ticket in memory needs its model", mine, None, out)
    refused(ConfigError, "weights: only a ticket of the workflow", mine, TinyModel(), out, weights=weights)
    refused(
        ConfigError,
        "tokenizer: belongs to a Hugging Face model, but the model is a TinyModel",
        mine,
        TinyModel(),
        out,
        tokenizer=1,
    )
    dense = replace(mine, weights={name: tensor + 1 for name, tensor in mine.weights.items()})
    refused(ConfigError, "'up.weight' has masked weights that are not zero", dense, TinyModel(), out)
    refused(IspError, "results: already exists; name a new folder", texts, None, tmp_path / "results")
    refused(IspError, "file: already exists", texts, None, tmp_path / "file")
    refused(IspError, "file/out: cannot be written .*; nothing was left behind", texts, None, tmp_path / "file/out")
    moved, clip = tmp_path / "moved.safetensors", tmp_path / "resources/backbones/clip_tiny.safetensors"
    refused(ConfigError, "moved.safetensors: the ticket is no longer in the folder of its study", moved, None, out)
    refused(ArtifactError, "not the pre-trained backbone of", texts, None, out, weights=clip)
    foreign = {**pretrained_of("clip_tiny").weights, "text_projection": torch.eye(64)}
    artifacts.save_backbone(tmp_path / "foreign", replace(pretrained_of("clip_tiny"), weights=foreign), {})
    says = "the zero-shot head was made with another text tower"
    refused(ConfigError, says, pictures, None, out, weights=tmp_path / "foreign")
    isp.export(moved, None, out, weights=clip)
    clip.unlink()
    says = "clip_tiny.safetensors: no such file, but .* whose text tower is needed"
    refused(ArtifactError, says, pictures, None, tmp_path / "other")


@pytest.mark.usefixtures("inside")
def test_the_pretrained_weights_are_those_of_the_study(tmp_path: Path, texts: Path) -> None:
    """By the digest in the header of the training data, where they are still those that the ticket was trained on."""
    weights = tmp_path / "resources/backbones/bert_tiny.safetensors"
    header = artifacts.lineage.read_header(weights)
    assert header is not None
    data = "resources/prepared/bert_tiny/half_order/train.safetensors"
    about = {"inputs": {"weights": "w"}, "contents": {"w": header["content"]}}
    artifacts.save_examples(tmp_path / data, {"labels": torch.zeros(3)}, "train", about)
    prepared = artifacts.lineage.read_header(tmp_path / data)
    assert prepared is not None
    redefined(texts, inputs={"data": data}, contents={data: prepared["content"]})
    isp.export(texts, None, tmp_path / "out")
    changed = replace(pretrained_of("bert_tiny"), vocabulary=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"zyxwvu"))
    changed.weights["pooler.dense.bias"] += 1
    artifacts.save_backbone(weights, changed, {})
    changed.weights["pooler.dense.bias"] -= 1
    with pytest.raises(ArtifactError, match=r"bert_tiny.safetensors: not the pre-trained backbone of .*ticket"):
        isp.export(texts, None, tmp_path / "other")


@pytest.mark.usefixtures("inside")
def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_bytes", full)
    with pytest.raises(IspError, match=r"out: cannot be written \(No space left on device\); nothing was left behind"):
        isp.export(texts, None, tmp_path / "a/b/out")
    assert names(tmp_path) == {"resources", "results"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.usefixtures("inside")
def test_a_folder_that_may_not_be_written(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(IspError, match="Permission denied"):
        isp.export(texts, None, tmp_path / "locked/out")


# --- prediction -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("backbone", "task"), [("bert_tiny", "half_order"), ("clip_tiny", "digits")])
def test_an_accelerated_model_predicts_the_same(
    backbone: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workflow_ticket(tmp_path, backbone, task)
    options: tuple[object, ...] = ("--text", "a b c", "--second", "c d")
    if backbone == "clip_tiny":
        options = ("--image", picture(tmp_path / "one.png"))
    isp.export(path, None, tmp_path / "out")
    monkeypatch.setattr(prediction, "accelerate", partial(accelerate, measure=sparse_is_faster))
    for source in (path, tmp_path / "out"):
        capsys.readouterr()
        assert run("predict", source, *options) == 0
        plain = capsys.readouterr().out
        assert run("predict", source, *options, "--accelerate") == 0
        done = capsys.readouterr()
        assert done.err == ""
        assert done.out.startswith(plain)
        (line,) = done.out.removeprefix(plain).splitlines()
        assert line.startswith("2000.00 ms as it was, 1000.00 ms accelerated (2.00 times faster")
        assert int(re.findall(r"csr (\d+)", line)[0]) > 8


def sparse_is_faster(calls: Mapping[str, object]) -> dict[str, float]:
    """A timer of `isp.accelerate` by which CSR, and what has it, takes half the time of everything else."""
    return {name: 1.0 if name in ("csr", "replaced", "accelerated") else 2.0 for name in calls}


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("backbone", "task"), [("bert_tiny", task) for task in TASKS["texts"]] + [("clip_tiny", "digits")]
)
def test_a_ticket_and_its_folders_predict_the_same(
    backbone: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, definition = workflow_ticket(tmp_path, backbone, task), registry.load("task", task).TASK
    options: tuple[object, ...] = ("--text", "a b c", "--text", "D")
    if len(definition.source.inputs) == 2:
        options = (*options, "--second", "c d", "--second", "b")
    if definition.inputs == "pictures":
        options = ("--image", picture(tmp_path / "one.png"), "--image", picture(tmp_path / "two.png", 80, 50))
    isp.export(path, None, tmp_path / "out")
    isp.export(path, None, tmp_path / "compact", compact=True)
    capsys.readouterr()
    printed = []
    for source in (path, tmp_path / "out", tmp_path / "compact"):
        assert run("predict", source, *options, "--top", 2) == 0
        done = capsys.readouterr()
        assert done.err == ""
        printed.append(done.out)
    assert printed[1:] == printed[:1] * 2
    lines = printed[0].splitlines()
    if not definition.classes:
        assert [re.sub(r"-?\d+\.\d{4}", "1", line) for line in lines] == [
            "a b c | c d",
            "  value  1",
            "D | b",
            "  value  1",
        ]
        return
    assert len(lines) == 6
    for number in (0, 3):
        labels = [line.split("  ")[1].strip() for line in lines[number + 1 : number + 3]]
        shares = [float(line.rstrip("%").split()[-1]) for line in lines[number + 1 : number + 3]]
        assert set(labels) <= set(definition.classes)
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.2) or len(definition.classes) > 2


@pytest.mark.usefixtures("inside")
def test_an_exported_folder_refuses_deep_grey_levels(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ticket of the workflow scales them; open_clip's transform would clip nearly all of them to white."""
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(deep)
    assert run("predict", pictures, "--image", deep) == 0
    isp.export(pictures, None, tmp_path / "out")
    capsys.readouterr()
    assert run("predict", tmp_path / "out", "--image", deep) == 2
    assert "deep.png: grey levels of more than 8 bits; store the image with 8 bits" in " ".join(
        capsys.readouterr().err.split()
    )


def test_probabilities_are_the_softmax_of_the_logits(pictures: Path, tmp_path: Path) -> None:
    predictor = prediction.load_predictor(pictures)
    paths = [picture(tmp_path / "large.png"), picture(tmp_path / "small.png", 8, 8)]
    both = prediction.predict(predictor, images=paths)
    for path, scores in zip(paths, both, strict=True):
        assert dict(prediction.predict(predictor, images=[path])[0]) == pytest.approx(dict(scores), abs=1e-6)
    logits = predictor.logits(predictor.prepare([[str(path)] for path in paths][:1]))[0].double()
    shares = (logits.exp() / logits.exp().sum()).tolist()
    assert dict(both[0]) == pytest.approx(dict(zip(predictor.labels, shares, strict=True)), abs=1e-6)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("problem", "num_labels"),
    [
        ("multi_label_classification", 3),
        ("multi_label_classification", 1),
        ("single_label_classification", 3),
        (None, 1),
    ],
)
def test_probabilities_of_several_labels_and_of_one_output(
    problem: str | None, num_labels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sigmoids where several labels may apply, the softmax where one does, and the value where there is no other."""
    import transformers

    model = small_bert("BertForSequenceClassification", num_labels=num_labels, problem_type=problem)
    vocabulary = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"))}
    ticket = ticket_of(model, ("bert.encoder.layer.0.output.dense.weight",))
    isp.export(ticket, model, tmp_path / "out", tokenizer=transformers.BertTokenizer(vocab=vocabulary))
    predictor = prediction.load_predictor(tmp_path / "out")
    logits = predictor.logits(predictor.prepare([["a a"]]))[0].double()
    names_ = [f"LABEL_{number}" for number in range(num_labels)]
    if problem == "multi_label_classification":
        expected = dict(zip(names_, (1 / (1 + (-logits).exp())).tolist(), strict=True))
    elif num_labels == 1:
        expected = {prediction.VALUE: float(logits[0])}
    else:
        expected = dict(zip(names_, (logits.exp() / logits.exp().sum()).tolist(), strict=True))
    assert dict(prediction.predict(predictor, texts=["a a"])[0]) == pytest.approx(expected, abs=1e-6)
    capsys.readouterr()
    assert run("predict", tmp_path / "out", "--text", "a a") == 0
    assert ("%" in capsys.readouterr().out) == bool(predictor.labels)


def classifier_of_words(kind: str, **options: Any) -> Any:
    """A classifier with 20 positions, if its family counts them."""
    import transformers

    torch.manual_seed(0)
    sizes = {**SMALL_BERT, "max_position_embeddings": 20, **options}
    if kind == "GPT2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20, "vocab_size": 5, "pad_token_id": 0}
    elif kind == "XLNet":
        sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "vocab_size": 5}
    elif kind == "Roberta":
        sizes |= {"pad_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("limit", [None, 11, 512])
@pytest.mark.parametrize(("kind", "positions"), [("Bert", 20), ("Roberta", 18), ("GPT2", 20), ("XLNet", 302)])
def test_a_text_is_cut_to_what_the_model_reads(
    kind: str, positions: int, limit: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the smaller of the limits of the tokenizer, which may have none, and of the model."""
    model, tokenizer = classifier_of_words(kind), small_tokenizer()
    if limit is not None:
        tokenizer.model_max_length = limit
    name = next(name for name, each in model.named_parameters() if each.dim() == 2 and "embed" not in name)
    isp.export(ticket_of(model, (name,)), model, tmp_path / "out", tokenizer=tokenizer)
    inputs = prediction.load_predictor(tmp_path / "out").prepare([["a " * 300, "a"]])
    assert inputs["input_ids"].shape == (2, min(limit or 302, positions))
    assert run("predict", tmp_path / "out", "--text", "a " * 300, "--text", "a") == 0
    assert "LABEL_0" in capsys.readouterr().out


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("compact", [False, True])
def test_inputs_that_a_model_cannot_compute_are_named(
    compact: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer has a word that the vocabulary of the model lacks."""
    model = classifier_of_words("Bert", vocab_size=5)
    ticket = ticket_of(model, (f"bert.{LAYER}",))
    isp.export(ticket, model, tmp_path / "out", tokenizer=small_tokenizer("b"), compact=compact)
    assert run("predict", tmp_path / "out", "--text", "a") == 0
    capsys.readouterr()
    assert run("predict", tmp_path / "out", "--text", "b") == 2
    done = " ".join(capsys.readouterr().err.split())
    assert "the model: a BertForSequenceClassification that cannot compute these inputs (IndexError: " in done
    assert "Traceback" not in done


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("texts", (), "nothing to predict: give --text"),
        ("texts", ("--text", "a"), "takes pairs of texts; give the second of each pair by --second"),
        ("texts", ("--text", "a", "--second", "b", "--second", "c"), "--second: given 2 times, but --text 1 times"),
        ("texts", ("--image", "a.png"), "--image: this model takes texts; give them by --text"),
        ("pictures", (), "nothing to predict: give --image"),
        ("pictures", ("--text", "a"), "--text: this model takes images; give them by --image"),
        ("pictures", ("--image", "a.png", "--second", "a"), "--second: this model takes images"),
        ("pictures", ("--image", "absent.png"), "absent.png: not an image (No such file or directory)"),
        (
            "pictures",
            ("--image", "notes.txt"),
            "not an image (damaged, or in a format that Pillow cannot read)",
        ),
        ("pictures", ("--image", "cut.png"), "cut.png: not an image"),
        ("pictures", ("--image", "."), ".: not an image (Is a directory)"),
    ],
)
def test_inputs_that_are_refused(
    kind: str,
    options: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    source = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(picture(tmp_path / "a.png").read_bytes()[:200])
    assert run("predict", source, *options) == 2
    done = capsys.readouterr()
    assert says in " ".join(done.err.split())
    assert done.out == ""


@pytest.mark.usefixtures("inside")
def test_single_texts_have_no_second(tmp_path: Path) -> None:
    path = workflow_ticket(tmp_path, "bert_tiny", "sst2")
    with pytest.raises(ConfigError, match="takes single texts, not pairs"):
        prediction.predict(prediction.load_predictor(path), texts=["a"], seconds=["b"])


def test_sources_that_cannot_predict(tmp_path: Path, texts: Path) -> None:
    artifacts.save_ticket(tmp_path / "mine", ticket_of(TinyModel(), ("up.weight",)))
    for path, error, says in (
        (tmp_path / "absent", ArtifactError, "no such ticket file"),
        (tmp_path / "results", IspError, "not written by `isp export`, because it has none of config.json"),
        (tmp_path / "mine", ConfigError, "its header has no backbone"),
    ):
        with pytest.raises(error, match=says):
            prediction.load_predictor(path)
    redefined(texts, task="sst3")
    with pytest.raises(ConfigError, match=r"ticket.safetensors: unknown task 'sst3'; did you mean 'sst2'\?"):
        prediction.load_predictor(texts)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_named(name: str, tmp_path: Path, texts: Path) -> None:
    isp.export(texts, None, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes((tmp_path / "out" / name).read_bytes()[:-30])
    with pytest.raises(IspError, match=r"out: transformers cannot use it \("):
        prediction.load_predictor(tmp_path / "out")


@pytest.mark.usefixtures("inside")
def test_a_damaged_compact_folder_is_named(tmp_path: Path, pictures: Path) -> None:
    isp.export(pictures, None, tmp_path / "out", compact=True)
    path = tmp_path / "out/ticket.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"out/ticket.safetensors: altered or damaged, because its checksum"):
        prediction.load_predictor(tmp_path / "out")
    path.unlink()
    with pytest.raises(IspError, match=r"out: open_clip cannot use it .*no open_clip_model"):
        prediction.load_predictor(tmp_path / "out")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_no_code_of_a_folder_runs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Neither the lines of NumPy beside a ticket, nor code that a configuration names, nor a pickle."""
    out, given = (
        tmp_path / "out",
        {"texts": ["a"], "seconds": ["b"]} if kind == "texts" else {"images": [picture(tmp_path / "a.png")]},
    )
    isp.export(request.getfixturevalue(kind), None, out, compact=True)
    before = prediction.predict(prediction.load_predictor(out), **given)
    for name in ("read_ticket.py", "modeling_x.py", "tokenization_x.py"):
        (out / name).write_text("raise SystemExit('was run')")
    for name, entry in (
        ("config.json", "AutoModelForSequenceClassification"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ):
        if (out / name).exists():
            module = "modeling_x.X" if name == "config.json" else ["tokenization_x.X", None]
            config = json.loads((out / name).read_text()) | {"auto_map": {entry: module}}
            (out / name).write_text(json.dumps(config))
    (out / "open_clip_pytorch_model.bin").write_bytes(b"a pickle")
    assert prediction.predict(prediction.load_predictor(out), **given) == before


# --- in a process of its own ------------------------------------------------------------------------------------------


@pytest.mark.process
def test_another_process_finds_the_same_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of folders, by one process in which the package cannot be imported."""
    asked: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}

    def ask(request: Any, scratch: Path, folder: Path) -> dict[str, torch.Tensor]:
        answer = exported.answer(request)
        kept = tmp_path / f"{folder.name}.inputs"
        shutil.copytree(scratch, kept)
        moved = json.dumps({**request, "folder": str(folder)}).replace(str(scratch), str(kept))
        asked[folder.name] = (json.loads(moved), answer)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "ask", ask)
        for backbone, task in (("bert_tiny", "half_order"), ("bert_tiny", "stsb"), ("clip_tiny", "digits")):
            path = workflow_ticket(tmp_path, backbone, task)
            for compact in (False, True):
                isp.export(path, None, tmp_path / f"{task}-{compact}", compact=compact)
        isp.export(ticket_of(TinyModel(), ("up.weight",)), TinyModel(), tmp_path / "mine", compact=True)
        for name, model, prunable in (
            ("eager", small_bert(attention="eager"), "encoder.layer.0.output.dense.weight"),
            ("t5", small_t5(), "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ):
            isp.export(ticket_of(model, (prunable,)), model, tmp_path / name)
    (tmp_path / "requests.json").write_text(json.dumps({name: request for name, (request, _) in asked.items()}))
    code = (
        "import json, runpy, sys\n"
        "main = runpy.run_path(sys.argv[1])['main']\n"
        "for name, request in json.load(open('requests.json')).items():\n"
        "    json.dump(request, open('request.json', 'w'))\n"
        "    main('request.json', name + '.answer')\n"
        "try: import isp.masks\n"
        "except ImportError: print('no isp')\n"
    )
    command = [sys.executable, "-P", "-c", code, exported.__file__]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no isp\n"
    for name, (_, answer) in asked.items():
        found = load_file(tmp_path / f"{name}.answer")
        assert equal(found, answer), name


@pytest.mark.process
def test_a_folder_that_another_process_cannot_load_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyModel()
    ticket = ticket_of(model, ("up.weight",))
    done = isp.export(ticket, model, tmp_path / "out")
    assert done.zero_weights == 84
    monkeypatch.setattr(exporting, "save_file", lambda tensors, path: path.write_bytes(b"no tensors"))
    with pytest.raises(IspError, match=r"bad: cannot be loaded without this package \(.*\); nothing was kept"):
        isp.export(ticket, model, tmp_path / "bad")
    assert names(tmp_path) == {"out"}
