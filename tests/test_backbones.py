"""The contract of every backbone (discovered by file name), and tests of each family in particular."""

from __future__ import annotations

import copy
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from isp import artifacts, registry
from isp.backbones import Backbone, clip_tiny
from isp.backbones import _bert as bert
from isp.backbones import _open_clip as clip
from isp.backbones._bert import BertBackbone
from isp.backbones._classifiers import ImageClassifier, TextClassifier
from isp.backbones._open_clip import ClipBackbone
from isp.data.sources import HubModel
from isp.definitions import backbone_of, task_of
from isp.errors import ConfigError, DataError
from isp.losses import default_loss
from isp.prunable import input_dims, prunable_names
from isp.replacing import without_data
from isp.tasks import ImageTask, Task, TextTask
from isp.training import Training, state_of
from tests.support.backbones import SMALL_BERT, WORDS, bert_folder, small

CLASSES, TEMPLATES = ("cat", "dog", "eel"), ("a photo of a {}.", "a drawing of a {}.")
FULL_SIZE = {
    "bert_base": {**SMALL_BERT, "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512},
    "minilm": {**SMALL_BERT, "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6}
    | {"num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512},
}


def task_for(backbone: Backbone, classes: tuple[str, ...] = CLASSES) -> tuple[Task, list[Any], torch.Tensor]:
    """A task that a backbone takes, a column of six inputs, and labels."""
    source: Any = None
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if classes else torch.linspace(0, 5, 6)
    if backbone.inputs == "texts":
        texts = ["a b", "b c d", "c", "ae d", "b", "df a b"]
        metrics = ("accuracy",) if classes else ("pearson",)
        return TextTask(source=source, num_examples=6, classes=classes, metrics=metrics), texts, labels
    pictures = list(np.random.Generator(np.random.PCG64(0)).integers(0, 256, (6, 28, 28, 3), dtype=np.uint8))
    return ImageTask(source=source, num_examples=6, classes=classes, templates=TEMPLATES), pictures, labels


# --- every backbone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names("backbone"))
def test_a_backbone_prepares_trains_saves_and_loads(name: str, tmp_path: Path) -> None:
    backbone: Backbone = registry.load("backbone", name).BACKBONE
    pretrained = small(name)
    task, column, labels = task_for(backbone)
    tensors = {**backbone.prepare([column], np.arange(6), pretrained, name), "labels": labels}
    assert all(len(tensor) == 6 for tensor in tensors.values())
    assert not any(tensor.is_floating_point() for tensor in tensors.values())  # bytes and numbers are kept
    examples = backbone.examples(tensors, pretrained.architecture, "crop")
    assert len(examples) == 6
    inputs, truth = examples.batch(torch.tensor([4, 2]))
    assert truth.tolist() == [1, 2]

    model = backbone.initial(pretrained, task, 0, random=False)
    assert model(inputs).shape == (2, 3)
    assert model(inputs).dtype == torch.float32
    names = prunable_names(model, backbone.prunable)
    default_loss(model, (inputs, truth)).backward()
    for each in names:
        weight = model.get_parameter(each)
        assert weight.dim() == 2
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    assert input_dims(model, names) == dict.fromkeys(names, 1)  # as the stages assume that impose an N:M pattern
    assert not any(part in each for each in names for part in ("embed", "norm", "head", "classifier", "pooler", "bias"))

    again = backbone.initial(pretrained, task, 0, random=False).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
    artifacts.save_state(tmp_path / "state", state_of(model), {})
    state, _ = artifacts.load_state(tmp_path / "state")
    restored = backbone.restore(state.weights, pretrained.architecture)
    model.eval()
    restored.eval()
    with torch.no_grad():
        assert torch.equal(model(inputs), restored(inputs))
    with pytest.raises(ConfigError, match=r"another model|are not those|are of no"):
        backbone.restore(
            {key: tensor for key, tensor in state.weights.items() if "0" not in key}, pretrained.architecture
        )


@pytest.mark.parametrize("name", ["bert_tiny", "clip_tiny", "bert_base", "clip_vit_b32"])
def test_a_model_built_without_data_is_the_model(name: str) -> None:
    """Against one that draws its weights: parameters, buffers (also those in no state), and outputs to the bit.

    Of the full-size models, two layers are enough.
    """
    backbone = backbone_of(name)
    generator = torch.Generator().manual_seed(0)
    inputs: Any
    if isinstance(backbone, BertBackbone):
        architecture = {**(backbone.architecture or FULL_SIZE[name]), "num_hidden_layers": 2}
        drawn: torch.nn.Module = TextClassifier(bert.build(architecture, 0), 3)
        ids = torch.randint(0, 30, (2, 9), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": (ids > 3).long(), "token_type_ids": ids % 2}
    else:
        assert isinstance(backbone, ClipBackbone)
        architecture = copy.deepcopy(backbone.described())
        architecture["model"]["vision_cfg"]["layers"] = 2
        head = torch.randn(3, architecture["model"]["embed_dim"], generator=generator)
        drawn = ImageClassifier(clip.build(architecture, 0).visual, head)
        inputs = torch.randn(2, 3, *[clip.image_size(architecture)] * 2, generator=generator)
    for tensor in drawn.parameters():
        tensor.data.mul_(1.25).add_(0.01)
    before = torch.get_rng_state()
    restored = backbone.restore(state_of(drawn).weights, architecture)
    assert torch.equal(torch.get_rng_state(), before)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)(remove_duplicate=False)) for model in (restored, drawn))
        assert list(ours) == list(theirs)
        for each, tensor in theirs.items():
            assert torch.equal(ours[each], tensor), each
            facts = [(t.dtype, t.device, t.stride(), t.requires_grad, type(t)) for t in (ours[each], tensor)]
            assert facts[0] == facts[1], each
            assert ours[each].data_ptr() != tensor.data_ptr()
    assert list(restored.state_dict()) == list(drawn.state_dict())
    assert torch.equal(restored.eval()(inputs), drawn.eval()(inputs))


def test_without_data_buffers_are_initialised_and_parameters_are_not() -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))
            self.register_buffer("scale", torch.zeros(2))
            for tensor in (self.weight, self.scale):
                assert torch.nn.init.constant_(tensor, 3.0) is tensor

    with without_data():
        half = Half()
    assert half.weight.is_meta
    assert half.scale.tolist() == [3.0, 3.0]
    assert Half().weight.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", registry.names("backbone"))
def test_from_scratch_is_the_same_head_on_random_weights(name: str) -> None:
    backbone: Backbone = registry.load("backbone", name).BACKBONE
    task = task_for(backbone)[0]
    models = {
        (seed, random): backbone.initial(small(name), task, seed, random).state_dict()
        for seed in (0, 1)
        for random in (False, True)
    }
    names = prunable_names(backbone.initial(small(name), task, 0, False), backbone.prunable)
    for each in names:
        assert torch.equal(models[0, False][each], models[1, False][each])
        assert not torch.equal(models[0, False][each], models[0, True][each])
        assert not torch.equal(models[0, True][each], models[1, True][each])
    heads = {
        key: {k: t for k, t in model.items() if k.startswith(("head", "classifier"))} for key, model in models.items()
    }
    for seed in (0, 1):
        assert all(torch.equal(tensor, heads[seed, True][key]) for key, tensor in heads[seed, False].items())


@pytest.mark.parametrize("name", registry.names("backbone"))
def test_a_backbone_is_complete(name: str) -> None:
    module = registry.load("backbone", name)
    assert isinstance(module.TRAINING, Training)
    assert registry.summary("backbone", name)
    source = module.BACKBONE.source
    if source is None:
        assert isinstance(module.PRETRAINING, Training)
        assert callable(module.pretrain)
    else:
        assert len(source.revision) == 40  # a commit: what is fetched never changes
        assert all(not file.endswith((".bin", ".pt", ".pkl")) for file in module.BACKBONE.files)


# --- the paper's ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "tensors", "weights"),
    [
        ("clip_vit_b32", 48, 84_934_656),
        ("bert_base", 72, 84_934_656),
        ("{family: bert, id: google-bert/bert-base-uncased, pooler: pruned}", 73, 85_524_480),
        ("minilm", 36, 10_616_832),
    ],
)
def test_prunable_weights_at_full_size(definition: str, tensors: int, weights: int) -> None:
    """Counted on models without weights."""
    backbone = backbone_of(definition)
    with torch.device("meta"):
        if isinstance(backbone, ClipBackbone):
            tower = clip.build(backbone.described(), 0).visual
            model: torch.nn.Module = ImageClassifier(tower, torch.zeros(10, 512))
        else:
            model = TextClassifier(bert.build(FULL_SIZE.get(definition, FULL_SIZE["bert_base"]), 0), 2)
    names = prunable_names(model, backbone.prunable)
    assert len(names) == tensors
    assert sum(model.get_parameter(name).numel() for name in names) == weights


# --- CLIP -------------------------------------------------------------------------------------------------------------


def clip_folder(folder: Path, **changed: Any) -> HubModel:
    """A small CLIP in the files of open_clip."""
    folder.mkdir(exist_ok=True)
    described = clip_tiny.BACKBONE.described()
    config = {"model_cfg": {**described["model"], **changed}, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (folder / clip.CONFIG).write_text(json.dumps(config))
    (folder / clip.WEIGHTS).write_bytes(small_clip())
    return HubModel(folder=str(folder))


@cache
def small_clip() -> bytes:
    """Return the file of its weights, whatever its activation."""
    return save(clip.build(clip_tiny.BACKBONE.described(), 3).state_dict())


def test_a_clip_of_ones_own(tmp_path: Path) -> None:
    backbone = backbone_of(f"{{family: clip, folder: {tmp_path}}}")
    clip_folder(tmp_path, quick_gelu=True)
    pretrained = backbone.convert(tmp_path)
    assert pretrained.architecture["mean"] == [0.1] * 3
    model = backbone.initial(pretrained, task_for(backbone)[0], 0, False)
    activations = {type(module).__name__ for name, module in model.named_modules() if name.endswith("mlp.gelu")}
    assert activations == {"QuickGELU"}
    assert torch.equal(model.state_dict()["visual.proj"], clip.build(pretrained.architecture, 3).visual.proj)


def test_a_wrong_activation_is_an_error(tmp_path: Path) -> None:
    """OpenAI's weights under open_clip's ViT-B-32, which has another activation; open_clip would only warn."""
    clip_folder(tmp_path)
    source = registry.load("backbone", "clip_vit_b32").BACKBONE.source
    wrong = ClipBackbone(architecture="ViT-B-32", source=source)
    with pytest.raises(ConfigError, match=r"trained with QuickGELU, but architecture 'ViT-B-32' has GELU"):
        wrong.convert(tmp_path)
    assert registry.load("backbone", "clip_vit_b32").BACKBONE.described()["model"]["quick_gelu"]


def test_files_of_another_clip(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"open_clip_model.safetensors are of another model: 'ln_final.bias'|another"):
        ClipBackbone(architecture="ViT-B-32-quickgelu").convert(tmp_path)
    with pytest.raises(ConfigError, match="unknown open_clip architecture 'ViT-B-3'; did you mean 'ViT-B-32'"):
        ClipBackbone(architecture="ViT-B-3").convert(tmp_path)
    (tmp_path / clip.WEIGHTS).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(DataError, match=r"open_clip_model.safetensors: not a complete safetensors file"):
        ClipBackbone(architecture=None).convert(tmp_path)
    (tmp_path / clip.CONFIG).write_text("{}")
    clip_folder(tmp_path / "more")
    (tmp_path / "more" / clip.CONFIG).write_text("{}")
    with pytest.raises(DataError, match=r"open_clip_config.json: not an open_clip configuration"):
        ClipBackbone(architecture=None).convert(tmp_path / "more")


@pytest.mark.parametrize(
    ("family", "task", "name"), [("bert", "half_order", bert.CONFIG), ("clip", "digits", clip.CONFIG)]
)
def test_a_plan_of_a_model_that_is_not_downloaded_yet(tmp_path: Path, family: str, task: str, name: str) -> None:
    """The message has the command that downloads it, and no advice to download it "again"."""
    backbone = backbone_of(f"{{family: {family}, id: a/b}}")
    with pytest.raises(DataError) as caught:
        backbone.blank(task_of(task), 4, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'a/b' / name}: no such file. A model of the hub that")
    assert "`snakemake --configfile FILE --until download`" in str(caught.value)
    assert "again" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "must contain the keys and values of a configuration, got list"),
        ("{", "cannot be read as JSON"),
        (
            {"preprocess_cfg": {"resize_mode": "squash"}},
            "resize_mode .* must be 'shortest', got 'squash'",
        ),
        ({"preprocess_cfg": {"interpolation": "bilinear"}}, "interpolation .* must be 'bicubic', got 'bilinear'"),
        ({"text_cfg": {"hf_tokenizer_name": "x"}}, r"its own tokenizer \(hf_tokenizer_name\)"),
        ({"text_cfg": {"vocab_size": 32000}}, r"its own tokenizer \(vocab_size\)"),
        ({"vision_cfg": {"patch_size": 0}}, r"no model can be built from it \(ZeroDivisionError"),
        ({"vision_cfg": {"image_size": 35}}, "are of another model"),
        ({"vision_cfg": {"image_size": [28, 42]}}, r"image_size must be the side .* got \[28, 42\]"),
        ({"vision_cfg": {"image_size": None}}, "image_size must be the side .* got None"),
        ({"vision_cfg": {"image_size": "28"}}, "image_size must be the side .* got '28'"),
        (
            {"vision_cfg": {"layers": [1, 1, 1, 1]}},
            r"layers of vision_cfg is \[1, 1, 1, 1\], which describes a ResNet",
        ),
        ({"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}}, "the image tower is timm's 'vit_tiny_patch16"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, r"its own tokenizer \(hf_model_name\)"),
        ({"text_cfg": {"width": "x" * 10**6}}, r"^.{0,900}$"),
        ({"vision_cfg": {"width": None}}, "no model can be built from it"),
        ({"vision_cfg": {"patch_sise": 7}}, "unknown key of vision_cfg 'patch_sise'; did you mean 'patch_size'"),
        ({"text_cfg": {"layer": 7}}, "unknown key of text_cfg 'layer'; did you mean 'layers'"),
        ({"model_cfg": {"custom_text": True}}, "custom_text renames the parameters of the text tower"),
        ({"model_cfg": {"multimodal_cfg": {}}}, "unknown key of model_cfg 'multimodal_cfg'"),
        ({"model_cfg": {"embed_dim": None}}, "embed_dim must be a positive integer, got None"),
        ({"model_cfg": {"vision_cfg": None}}, "model_cfg has no vision_cfg"),
        ({"model_cfg": {"text_cfg": [1]}}, "model_cfg has no text_cfg"),
        ({"preprocess_cfg": {"mean": [0.5]}}, r"mean must be a number or one for each of three channels, got \[0.5\]"),
        ({"preprocess_cfg": {"mean": {"r": 1}}}, "mean must be a number or one for each"),
        (
            {"preprocess_cfg": {"std": ["a", "b", "c"]}},
            "std must be a number or one for each of three channels, above 0",
        ),
        ({"preprocess_cfg": {"std": [0.5, 0, 0.5]}}, "std must be .* above 0"),
        ({"preprocess_cfg": {"std": float("inf")}}, "std must be .* got inf"),
        ({"preprocess_cfg": {"mode": "L"}}, "mode of the preprocessing must be 'RGB', got 'L'"),
    ],
)
def test_clips_that_would_be_run_wrongly(tmp_path: Path, config: Any, message: str) -> None:
    clip_folder(tmp_path)
    if isinstance(config, dict):
        whole = json.loads((tmp_path / clip.CONFIG).read_text())
        config = dict(config)
        whole["preprocess_cfg"] |= config.pop("preprocess_cfg", {})
        whole["model_cfg"] |= config.pop("model_cfg", {})
        for part, changed in config.items():
            whole["model_cfg"][part] = {**whole["model_cfg"][part], **changed}
        config = json.dumps(whole)
    (tmp_path / clip.CONFIG).write_text(config)
    with pytest.raises((ConfigError, DataError), match=message):
        backbone_of(f"{{family: clip, folder: {tmp_path}}}").convert(tmp_path)


@pytest.mark.parametrize(
    ("preprocessing", "mean", "std"),
    [
        ({"mean": 0.5, "std": 0.25}, [0.5] * 3, [0.25] * 3),
        ({"mean": [0.1, 0.2, 0.3], "std": 1}, [0.1, 0.2, 0.3], [1] * 3),
        ({"mean": None, "std": None}, None, None),
        ({"mean": 0, "std": []}, None, None),
        ({"resize_mode": None, "interpolation": None, "mode": None}, None, None),
    ],
)
def test_preprocessing_is_open_clips(tmp_path: Path, preprocessing: dict[str, Any], mean: Any, std: Any) -> None:
    """What is not stated, null or zero is OpenAI's, as in open_clip; one number counts for every channel."""
    import open_clip

    clip_folder(tmp_path)
    content = json.loads((tmp_path / clip.CONFIG).read_text())
    content["model_cfg"]["vision_cfg"]["image_size"] = [28, 28]
    content["model_cfg"]["custom_text"] = False
    (tmp_path / clip.CONFIG).write_text(json.dumps({**content, "preprocess_cfg": preprocessing}))
    backbone = backbone_of(f"{{family: clip, folder: {tmp_path}}}")
    pretrained = backbone.convert(tmp_path)
    found = pretrained.architecture
    assert (found["mean"], found["std"]) == (
        mean or list(open_clip.OPENAI_DATASET_MEAN),
        std or list(open_clip.OPENAI_DATASET_STD),
    )
    theirs = open_clip.image_transform(28, False, preprocessing.get("mean"), preprocessing.get("std")).transforms[-1]
    assert (found["mean"], found["std"]) == (list(theirs.mean), list(theirs.std))
    assert clip.image_size(found) == 28
    task, inputs, _ = task_for(backbone)
    model = backbone.initial(pretrained, task, 0, False)
    tensors = backbone.prepare([inputs], np.arange(6), pretrained, "x")
    examples = backbone.examples({**tensors, "labels": torch.zeros(6)}, found, "none")
    assert model(examples.batch(torch.arange(2))[0]).shape == (2, len(task.classes))


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32", "RN50", "coca_ViT-B-32", "convnext_base"])
def test_architectures_of_other_libraries_are_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(ConfigError, match=f"architecture: '{name}' has a tower or tokenizer of another library"):
        backbone_of(f"{{family: clip, id: a/b, architecture: {name}}}")
    with pytest.raises(
        ConfigError, match=r"transformers are supported|its own tokenizer|must be|unknown key of model_cfg"
    ):
        ClipBackbone(architecture=name).described()


def test_what_open_clip_knows_of_published_weights_is_taken() -> None:
    (found,) = clip._published("laion/CLIP-ViT-L-14-laion2B-s32B-b82K")
    assert found[1]["mean"] == (0.5, 0.5, 0.5)
    names = [name for name, _ in clip._published("timm/vit_base_patch32_clip_224.openai")]
    assert any("ViT-B-32-quickgelu, openai" in name for name in names)


def test_the_zero_shot_head_equals_open_clips_own() -> None:
    import open_clip

    model = clip.build(clip_tiny.BACKBONE.described(), 0)
    head = clip.classifier(model, CLASSES, TEMPLATES).head
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, list(CLASSES), list(TEMPLATES))
    torch.testing.assert_close(head, theirs.T * model.logit_scale.exp())
    assert not head.requires_grad


def test_contrastive_loss_by_hand() -> None:
    """Two images of glyph 0, one of glyph 2, of three glyphs; features along the axes, scale 1."""

    class Fake(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = torch.zeros(())

        def encode_image(self, pictures: torch.Tensor, normalize: bool) -> torch.Tensor:
            return pictures

        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            return tokens

    pictures = torch.eye(3)[[0, 0, 2]]
    loss = clip_tiny.contrastive_loss(Fake(), (pictures, torch.tensor([0, 0, 2]), torch.eye(3)))
    e = torch.e
    to_text = torch.tensor(e / (e + 2)).log()
    to_pictures = (torch.tensor(e / (2 * e + 1)).log() + torch.tensor(e / (e + 2)).log()) / 2
    torch.testing.assert_close(loss, -(to_text + to_pictures) / 2)


def test_pretraining_learns_and_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    from isp.data.glyphs import CaptionedGlyphs

    short = clip_tiny.PRETRAINING.model_copy(update={"steps": 12, "warmup_steps": 0, "batch_size": 62})
    monkeypatch.setattr(clip_tiny, "PRETRAINING", short)
    a, b = clip_tiny.pretrain(0), clip_tiny.pretrain(0)
    assert all(torch.equal(tensor, b.weights[name]) for name, tensor in a.weights.items())
    backbone = clip_tiny.BACKBONE
    glyphs = CaptionedGlyphs.render(28, partial(clip.tokenize, context_length=16), backbone.mean, backbone.std)
    torch.manual_seed(0)
    batch = glyphs.batch(torch.arange(0, len(glyphs), 9))
    untrained, trained = clip.build(a.architecture, 0), clip.build(a.architecture, 0)
    trained.load_state_dict(a.weights)
    with torch.no_grad():
        before, after = (clip_tiny.contrastive_loss(model, batch) for model in (untrained, trained))
    assert after < before
    assert torch.equal(trained.token_embedding.weight, untrained.token_embedding.weight)


# --- BERT -------------------------------------------------------------------------------------------------------------


def test_weights_with_the_names_of_old(tmp_path: Path) -> None:
    """As Google's are: a prefix, gamma and beta, heads of pre-training, numbers of positions; fp16 becomes fp32."""
    own = {name: tensor.half() for name, tensor in bert.build(SMALL_BERT, 3).state_dict().items()}
    named = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in own.items()
    }
    named |= {"cls.predictions.bias": torch.zeros(11), "bert.embeddings.position_ids": torch.arange(32)}
    bert_folder(tmp_path, named)
    backbone = backbone_of(f"{{family: bert, folder: {tmp_path}, max_length: 32}}")
    pretrained = backbone.convert(tmp_path)
    assert pretrained.vocabulary == WORDS
    assert pretrained.weights.keys() == own.keys()
    assert all(torch.equal(pretrained.weights[name], tensor.float()) for name, tensor in own.items())


def test_a_bert_without_a_pooler_is_refused_unless_a_random_one_is_asked_for(tmp_path: Path) -> None:
    own = bert.build(SMALL_BERT, 3).state_dict()
    bert_folder(tmp_path, {name: tensor for name, tensor in own.items() if "pooler" not in name})
    with pytest.raises(ConfigError, match=r"lacks pooler.dense.weight and pooler.dense.bias.*pooler: random"):
        BertBackbone(max_length=32).convert(tmp_path)
    backbone = backbone_of(f"{{family: bert, folder: {tmp_path}, max_length: 32, pooler: random}}")
    pretrained = backbone.convert(tmp_path)
    assert torch.equal(pretrained.weights["pooler.dense.weight"], bert.build(SMALL_BERT, 0).pooler.dense.weight)
    assert torch.equal(
        pretrained.weights["encoder.layer.0.output.dense.weight"], own["encoder.layer.0.output.dense.weight"]
    )
    bert_folder(tmp_path, own)
    with pytest.raises(ConfigError, match="has a pooler; pooler must be kept or pruned, got random"):
        backbone.convert(tmp_path)


def test_files_of_another_model(tmp_path: Path) -> None:
    own = bert.build(SMALL_BERT, 3).state_dict()
    layer = "encoder.layer.1.output.dense.weight"
    for change, message in (
        ({"hidden_size": 32}, "are of another model"),
        ({"hidden_size": 33}, "no model can be built from it"),
        ({"hidden_act": "none"}, "no model can be built from it"),
        ({"max_position_embeddings": 16}, r"max_length = 32: must be at most 16, the limit of .*config.json"),
        ({"model_type": "roberta"}, "model_type must be 'bert', got 'roberta'"),
        ({"vocab_size": 5}, "the BERT of config.json needs at most 5"),
    ):
        bert_folder(tmp_path, own, **change)
        with pytest.raises(ConfigError, match=message):
            BertBackbone(max_length=32).convert(tmp_path)
    bert_folder(tmp_path, own)
    with pytest.raises(ConfigError, match=r"no capital letters, .*case: lower"):
        BertBackbone(max_length=32, lower_case=False).convert(tmp_path)
    (tmp_path / bert.VOCABULARY).write_text("\n".join((*WORDS[:-1], "The")))
    with pytest.raises(ConfigError, match=r"capital letters, .*case: kept"):
        BertBackbone(max_length=32).convert(tmp_path)
    bert_folder(tmp_path, {name: tensor for name, tensor in own.items() if name != layer})
    with pytest.raises(ConfigError, match=f"another model: '{layer}' has shape missing"):
        BertBackbone(max_length=32).convert(tmp_path)
    bert_folder(tmp_path, {**own, "encoder.layer.2.output.dense.weight": own[layer].clone()})
    with pytest.raises(ConfigError, match=r"'encoder.layer.2.output.dense.weight' .* in the model missing"):
        BertBackbone(max_length=32).convert(tmp_path)
    (tmp_path / bert.CONFIG).write_text("{")
    with pytest.raises(DataError, match=r"config.json: cannot be read"):
        BertBackbone(max_length=32).convert(tmp_path)


def test_a_classifier_equals_transformers_own() -> None:
    """Names and outputs of `BertForSequenceClassification`."""
    from transformers import BertConfig, BertForSequenceClassification

    backbone = BertBackbone()
    task, column, labels = task_for(backbone)
    pretrained = small("bert_base")
    model = backbone.initial(pretrained, task, 0, False).eval()
    theirs = BertForSequenceClassification(BertConfig.from_dict({**SMALL_BERT, "num_labels": 3})).eval()
    theirs.load_state_dict(model.state_dict())
    tensors = {**backbone.prepare([column, column[::-1]], np.arange(6), pretrained, "x"), "labels": labels}
    inputs, _ = backbone.examples(tensors, SMALL_BERT, "none").batch(torch.arange(6))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), theirs(**inputs).logits)


def test_padding_changes_nothing_but_rounding() -> None:
    backbone = BertBackbone()
    task, column, labels = task_for(backbone)
    model = backbone.initial(small("bert_base"), task, 0, False).eval()
    tensors = {**backbone.prepare([column], np.arange(6), small("bert_base"), "x"), "labels": labels}
    texts = backbone.examples(tensors, SMALL_BERT, "none")
    with torch.no_grad():
        long, short = model(texts.batch(torch.tensor([2]), 20)[0]), model(texts.batch(torch.tensor([2]))[0])
    torch.testing.assert_close(long, short)


def test_a_regression_has_one_output_and_squared_errors() -> None:
    backbone = BertBackbone()
    task, column, labels = task_for(backbone, classes=())
    model = backbone.initial(small("bert_base"), task, 0, False).eval()
    tensors = {**backbone.prepare([column], np.arange(6), small("bert_base"), "x"), "labels": labels}
    inputs, truth = backbone.examples(tensors, SMALL_BERT, "none").batch(torch.arange(6))
    outputs = model(inputs)
    assert outputs.shape == (6, 1)
    torch.testing.assert_close(default_loss(model, (inputs, truth)), ((outputs[:, 0] - truth) ** 2).mean())
