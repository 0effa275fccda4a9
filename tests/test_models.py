"""Pruning models of transformers, torchvision and timm: the default choice, docs/how-to/models.md, whole runs."""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import isp
from isp import masks
from isp.counting import count_step_flops
from isp.errors import ConfigError
from isp.losses import default_loss
from isp.prunable import input_dims, prunable_names
from tests.support.models import equal

DOCS = Path(__file__).parents[1] / "docs" / "how-to" / "models.md"
WORDS, LENGTH, TOP_K = 96, 8, 2


def configured(name: str, config: str) -> Callable[..., nn.Module]:
    """What builds a model of transformers from the settings of its configuration."""
    return lambda **settings: getattr(transformers, name)(getattr(transformers, config)(**settings))


def residual(layers: Sequence[int] = (2, 2, 2, 2), num_stages: int = 4, num_classes: int = 1000) -> nn.Module:
    """A ResNet without its last, wide stages."""
    from torchvision.models import resnet

    model = resnet.ResNet(resnet.BasicBlock, list(layers), num_classes)
    for stage in range(num_stages + 1, 5):
        setattr(model, f"layer{stage}", nn.Identity())
    if num_stages < 4:
        model.fc = nn.Linear(64 * 2 ** (num_stages - 1), num_classes)
    return model


def imported(module: str, name: str) -> Callable[..., nn.Module]:
    """A class of a library that takes seconds to import, for which every worker would wait before its first test."""
    return lambda **sizes: getattr(importlib.import_module(module), name)(**sizes)


@dataclass(frozen=True)
class Tried:
    """A model of the table in docs/how-to/models.md.

    Attributes:
        name: as the table has it.
        build: builds it from sizes.
        small: sizes that are trained here.
        full: sizes that the table speaks of.
        data: the key of its training data in `DATA`.
        exclude: patterns that leave the weights inside the blocks.
        prunable: patterns, for a model that the default refuses.
    """

    name: str
    build: Callable[..., nn.Module]
    small: dict[str, Any]
    full: dict[str, Any]
    data: str
    exclude: tuple[str, ...] = ()
    prunable: tuple[str, ...] | None = None

    def tiny(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build(**self.small).train()


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = {"vocab_size": WORDS, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
DECODER = {**SIZES, **TEXTS, "num_key_value_heads": 1}
CLASSIFIER = {**SIZES, **TEXTS, "num_labels": 3}
LLAMA = configured("LlamaForCausalLM", "LlamaConfig")
LLAMA_1B = {
    **{"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    **{"num_key_value_heads": 8, "tie_word_embeddings": True},
}
GPT2 = {"vocab_size": WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
OPT_350M = {"hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
DISTILBERT = {"vocab_size": WORDS, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "num_labels": 3}
VIT = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
VIT_B = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
SWIN = {"patch_size": [2, 2], "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": [2, 2]}
SWIN_T = {"patch_size": [4, 4], "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}

MODELS = [
    Tried("GPT-2", configured("GPT2LMHeadModel", "GPT2Config"), GPT2, {}, "text"),
    Tried("Llama 2 7B", LLAMA, DECODER, {}, "text"),
    Tried("Llama 3.2 1B (tied)", LLAMA, {**DECODER, "tie_word_embeddings": True}, LLAMA_1B, "text"),
    Tried(
        "Mixtral 8x7B",
        configured("MixtralForCausalLM", "MixtralConfig"),
        {**DECODER, "num_local_experts": 4, "num_experts_per_tok": TOP_K},
        {},
        "text",
        prunable=("*.experts.*", "*_proj.weight"),
    ),
    Tried(
        "OPT-350M",
        configured("OPTForCausalLM", "OPTConfig"),
        {**SIZES, **TEXTS, "ffn_dim": 32, "word_embed_proj_dim": 8},
        {**OPT_350M, "word_embed_proj_dim": 512},
        "text",
        ("*.project_in.*", "*.project_out.*"),
    ),
    Tried(
        "T5-small",
        configured("T5ForConditionalGeneration", "T5Config"),
        {**T5, "decoder_start_token_id": 0},
        {},
        "text",
    ),
    Tried(
        "BERT base",
        configured("BertForSequenceClassification", "BertConfig"),
        CLASSIFIER,
        {},
        "classes",
        ("*.pooler.*", "classifier.*"),
    ),
    Tried(
        "RoBERTa base",
        configured("RobertaForSequenceClassification", "RobertaConfig"),
        CLASSIFIER,
        {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1},
        "classes",
        ("classifier.*",),
    ),
    Tried(
        "DistilBERT base",
        configured("DistilBertForSequenceClassification", "DistilBertConfig"),
        DISTILBERT,
        {},
        "classes",
        ("pre_classifier.*", "classifier.*"),
    ),
    Tried(
        "DeBERTa-v2 xlarge",
        configured("DebertaV2ForSequenceClassification", "DebertaV2Config"),
        {**CLASSIFIER, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
        {"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]},
        "classes",
        ("pooler.*", "classifier.*"),
    ),
    Tried(
        "ModernBERT base",
        configured("ModernBertForSequenceClassification", "ModernBertConfig"),
        {**CLASSIFIER, "cls_token_id": 0, "sep_token_id": 1},
        {},
        "classes",
        ("head.*", "classifier.*"),
    ),
    Tried(
        "ViT-B/16",
        configured("ViTForImageClassification", "ViTConfig"),
        {**SIZES, "image_size": 16, "patch_size": 8, "num_labels": 3},
        {"num_labels": 1000},
        "pixels",
        ("*.patch_embeddings.*", "classifier.*"),
    ),
    Tried(
        "ViT-B/16",
        imported("torchvision.models", "VisionTransformer"),
        {**VIT, "num_classes": 3},
        VIT_B,
        "images",
        ("conv_proj.*", "heads.*"),
    ),
    Tried(
        "ViT-B/16",
        imported("timm.models.vision_transformer", "VisionTransformer"),
        TIMM,
        {},
        "images",
        ("patch_embed.*", "head.*"),
    ),
    Tried(
        "Swin-T",
        imported("torchvision.models", "SwinTransformer"),
        {**SWIN, "num_classes": 3},
        {**SWIN_T, "window_size": [7, 7]},
        "images",
        ("features.0.*", "head.*"),
    ),
    Tried(
        "ResNet-18",
        residual,
        {"layers": [1, 1, 1, 1], "num_stages": 2, "num_classes": 3},
        {},
        "images",
        ("conv1.*", "fc.*"),
    ),
]
each_model = pytest.mark.parametrize(
    "tried", MODELS, ids=[f"{index} {tried.name}" for index, tried in enumerate(MODELS)]
)

TOKENS = (torch.arange(LENGTH) + torch.arange(64)[:, None]) % 8 + 3
CLASSES = torch.arange(64) % 3
IMAGES = CLASSES.view(-1, 1, 1, 1) + torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA: dict[str, Any] = {
    "text": {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": TOKENS},
    "classes": {"input_ids": CLASSES[:, None] + TOKENS, "labels": CLASSES},
    "pixels": {"pixel_values": IMAGES, "labels": CLASSES},
    "images": (IMAGES, CLASSES),
}
PROTOCOL: dict[str, Any] = {"steps": 8, "batch_size": 16, "learning_rate": 1e-2}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "one_shot": ("one_shot", {}),
    "gradual": ("gradual", {}),
    "isp_mean": ("isp_mean", {"rate": 0.5, "denoisers": 2, "look_ahead_steps": 1}),
    "2:4": ("one_shot", {"scope": "2:4"}),
}


@contextmanager
def no_warnings() -> Iterator[None]:
    """The library must be silent; tiny image models, whose class token is more than 1 %, aside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(prunable|FLOPs)")
        warnings.filterwarnings("ignore", message="prunable: the default leaves out 96 of")
        yield


# --- the default choice and the table ---------------------------------------------------------------------------------


def chosen(tried: Tried, model: nn.Module, exclude: tuple[str, ...] = ()) -> list[str]:
    with no_warnings():
        return prunable_names(model, tried.prunable, exclude)


def row(tried: Tried) -> str:
    """The model's line in the table, from a model of full size that has no memory."""
    with torch.device("meta"):
        model = tried.build(**tried.full)
    num = sum(model.get_parameter(name).numel() for name in chosen(tried, model))
    total = sum(parameter.numel() for parameter in model.parameters())
    kind = f"`{type(model).__module__.split('.')[0]}.{type(model).__name__}`"
    shown = f"{num / 1e6:,.1f} of {total / 1e6:,.1f} million ({num / total:.1%})"
    patterns = ", ".join(f"`{pattern}`" for pattern in tried.exclude) or "nothing"
    if tried.prunable:
        shown += f" with `prunable={list(tried.prunable)}`; the default refuses".replace("'", '"')
    return f"| {tried.name} | {kind} | {shown} | {patterns} |"


def test_the_table_in_the_docs() -> None:
    rows = [
        line
        for line in DOCS.read_text("utf-8").splitlines()
        if re.search(r"\| `(transformers|torchvision|timm)\.", line)
    ]
    expected = [row(tried) for tried in MODELS]
    assert rows == expected, "docs/how-to/models.md must have these lines:\n" + "\n".join(expected)


@each_model
def test_with_exclude_exactly_the_matrices_of_the_blocks_are_left(tried: Tried) -> None:
    """By rules of this test's own: in a numbered block, two or more dimensions, no table of positions."""
    model = tried.tiny()
    by_rule = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2
        and re.search(r"[._]\d+\.", name)
        and not re.search(r"relative_(attention|position)_bias|features\.0\.|mlp\.gate\.", name)
    ]
    assert chosen(tried, model, tried.exclude) == by_rule
    outside = set(chosen(tried, model)) - set(by_rule)
    assert bool(outside) == bool(tried.exclude)
    assert not any(name.startswith(("lm_head", "model.embed")) for name in outside)


def test_a_vocabulary_head_is_left_alone_tied_or_not_and_pruned_by_name() -> None:
    tried = MODELS[1]
    model = tried.tiny()
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert "lm_head.weight" not in prunable_names(model)
    assert "lm.lm_head.weight" not in prunable_names(nn.ModuleDict({"lm": model, "other": nn.Linear(4, 4)}))
    assert prunable_names(model, ["lm_head.weight"]) == ["lm_head.weight"]
    roberta = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**CLASSIFIER, tie_word_embeddings=False))
    names = prunable_names(roberta)
    assert "lm_head.decoder.weight" not in names
    assert "lm_head.dense.weight" in names
    own = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "block": nn.Linear(4, 4), "lm_head": nn.Linear(4, 9)})
    assert prunable_names(own) == ["block.weight", "lm_head.weight"]  # of an unknown model, nothing identifies the head
    assert prunable_names(own, exclude=["lm_head.*"]) == ["block.weight"]


def test_packed_experts_are_refused_by_name() -> None:
    model = MODELS[3].tiny()
    with pytest.raises(
        ConfigError, match=r"leave out 12,416 of 13,952 .*'model.layers.0.mlp.experts.gate_up_proj' \(Mix"
    ):
        prunable_names(model)
    with pytest.raises(
        ConfigError, match=r"'2:4': parameter 'model.layers.0.mlp.experts.gate_up_proj' does not belong to"
    ):
        run(MODELS[3], model, "2:4")
    assert not any("experts" in name for name in prunable_names(model, exclude=["*.mlp.*"]))


# --- runs -------------------------------------------------------------------------------------------------------------


def run(tried: Tried, model: nn.Module, kind: str) -> isp.Ticket:
    method, settings = RUNS[kind]
    with no_warnings():
        return isp.prune(
            model, DATA[tried.data], sparsity=0.5, method=method, settings=settings,
            prunable=tried.prunable, exclude=tried.exclude, **PROTOCOL,
        )  # fmt: skip


def loss_of(model: nn.Module, data: Any) -> float:
    """In training mode, because norms have seen too few batches for their running statistics."""
    torch.manual_seed(0)
    with torch.no_grad():
        return float(default_loss(copy.deepcopy(model).train(), data))


def num_zeros(model: nn.Module, names: list[str]) -> dict[str, int]:
    return {name: int((model.get_parameter(name) == 0).sum()) for name in names}


@pytest.mark.parametrize(
    ("tried", "kind"),
    [
        pytest.param(tried, kind, id=f"{index} {tried.name} {kind}")
        for index, tried in enumerate(MODELS)
        for kind in RUNS
        if not (tried.prunable and kind == "2:4")  # refused, see above
    ],
)
def test_a_run(tried: Tried, kind: str, tmp_path: Path) -> None:
    model = tried.tiny()
    names = chosen(tried, model, tried.exclude)
    others = [name for name, p in model.named_parameters() if p.dim() >= 2 and name not in names]
    before, loss = num_zeros(model, others), loss_of(model, DATA[tried.data])
    dims = input_dims(model, names)
    ticket = run(tried, model, kind)

    assert list(ticket.mask) == names
    total = masks.num_weights(ticket.mask)
    assert total - masks.num_kept(ticket.mask) == total // 2
    assert not any(model.get_parameter(name)[~kept].any() for name, kept in ticket.mask.items())
    after = num_zeros(model, others)
    assert all(after[name] <= before[name] for name in others)  # rows of padding, which a tied head trains
    assert loss_of(model, DATA[tried.data]) < loss
    assert 0.4 < ticket.retraining.sparse_flops / ticket.retraining.flops < 0.7
    if kind == "2:4":
        for name, kept in ticket.mask.items():
            groups = kept.movedim(dims[name], -1).unflatten(-1, (-1, 4))
            assert (groups.sum(-1) == 2).all()

    fresh = tried.tiny()
    fresh.load_state_dict(ticket.weights)
    assert equal(fresh.state_dict(), model.state_dict())
    if kind == "one_shot" and isinstance(model, transformers.PreTrainedModel):
        check_pretrained(model, fresh, ticket, tmp_path)


def check_pretrained(model: Any, fresh: Any, ticket: isp.Ticket, folder: Path) -> None:
    """Tied weights are still tied; transformers' own files keep the zeros; a decoder generates."""
    head = model.get_output_embeddings()
    if head is not None:
        tied = fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight
        assert tied == (head.weight is model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    assert equal(loaded.state_dict(), model.state_dict())
    assert not any(loaded.get_parameter(name)[~kept].any() for name, kept in ticket.mask.items())
    if model.can_generate():
        inputs = {key: DATA["text"][key][:2] for key in ("input_ids", "attention_mask")}
        texts = [each.eval().generate(**inputs, max_new_tokens=3, do_sample=False) for each in (model, loaded)]
        assert torch.equal(*texts)


# --- FLOPs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tried", MODELS[:4], ids=lambda tried: tried.name)
def test_flops_of_a_step_by_weight(tried: Tried) -> None:
    """A weight takes one multiplication and one addition for each token, in forward and twice in backward.

    A token goes through two of the four experts.
    """
    model = tried.tiny()
    names = chosen(tried, model)
    with no_warnings():
        counted = count_step_flops(model, default_loss, {key: part[:16] for key, part in DATA["text"].items()}, names)
    for name in names:
        share = TOP_K / 4 if "experts" in name else 1
        assert counted.by_weight[name] == (6 * 16 * LENGTH * model.get_parameter(name).numel() * share,)


def test_packed_experts_count_as_a_loop_over_experts() -> None:
    model = MODELS[3].tiny()
    batch = {key: part[:16] for key, part in DATA["text"].items()}
    counts = []
    for way in ("grouped_mm", "eager"):
        model.set_experts_implementation(way)
        counts.append(count_step_flops(model, default_loss, batch, chosen(MODELS[3], model)))
    assert counts[0] == counts[1]


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(model: nn.Module, config: str, **settings: Any) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, getattr(peft, config)(**settings))


def with_lora(tried: Tried, **settings: Any) -> Any:
    """Rank 2, which is 128 weights in each block: c_attn is (16, 48), query and value are (16, 16)."""
    return adapted(tried.tiny(), "LoraConfig", r=2, **settings).train()


def lora_gpt2() -> Any:
    return with_lora(MODELS[0], target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def lora_bert() -> Any:
    return with_lora(MODELS[6], target_modules=["query", "value"], task_type="SEQ_CLS")


def prune_text(model: nn.Module, tried: Tried = MODELS[0], **arguments: Any) -> dict[str, int]:
    """The number of zeros in each pruned parameter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(prunable|FLOPs)")
        ticket = isp.prune(model, DATA[tried.data], sparsity=0.5, method="one_shot", **arguments, **PROTOCOL)
    return num_zeros(model, list(ticket.mask))


def test_lora_adapters_are_pruned_only_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"one of 4 matrices of LoRA adapters.*merge_and_unload\(\).requires_grad_\(True\)"
    ):
        prune_text(lora_gpt2())
    model = lora_gpt2()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    zeros = prune_text(model, prunable=["*lora_*"])
    assert len(zeros) == 4
    assert sum(zeros.values()) >= 2 * 128 // 2
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in frozen.items())


def test_without_the_adapters_frozen_weights_are_no_silent_choice() -> None:
    with pytest.raises(
        ConfigError, match=r"no prunable parameter is left: .*base_layer.weight', call their requires_grad_"
    ):
        prune_text(lora_gpt2(), exclude=["*lora_*"])
    with pytest.raises(ConfigError, match=r"base_layer.weight' does not require grad.*requires_grad_\(True\)"):
        prune_text(lora_gpt2(), prunable=["*.base_layer.weight"])
    message = r"4,400 weights of 14 layers, .* are frozen .*only 48 others, such as those of '.*classifier"
    with pytest.warns(UserWarning, match=message):
        prunable_names(lora_bert(), exclude=["*lora_*"])
    with pytest.warns(UserWarning, match=r"4,352 weights of 13 layers"):
        prunable_names(lora_bert().merge_and_unload())
    model = lora_gpt2().requires_grad_(True)
    zeros = prune_text(model, exclude=["*lora_*"])
    assert sum(zeros.values()) == 3072
    assert not any("lora_" in name for name in zeros)


def test_merged_adapters_are_pruned_as_weights() -> None:
    model = lora_gpt2().merge_and_unload().requires_grad_(True)
    assert list(prune_text(model)) == prunable_names(MODELS[0].tiny())
    model = lora_bert().merge_and_unload().requires_grad_(True)
    assert sum(prune_text(model, MODELS[6]).values()) == 2200


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("LoHaConfig", {"r": 2}),
        ("LoKrConfig", {"r": 2}),
        ("IA3Config", {"feedforward_modules": []}),
        ("LoraConfig", {"r": 2, "use_dora": True}),
    ],
)
def test_no_adapter_of_any_kind_is_pruned_by_default(config: str, settings: dict[str, Any]) -> None:
    model = adapted(MODELS[6].tiny(), config, target_modules=["query"], **settings)
    with pytest.raises(ConfigError, match=r"merge_and_unload\(\)"):
        prunable_names(model)
