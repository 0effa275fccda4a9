"""BERT of any size with transformers: construction, task head, tokens, prunable parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isp.backbones import Pretrained
from isp.backbones._files import buildable, read_config, read_safetensors
from isp.data.images import Augmentation
from isp.data.sources import Column, HubModel
from isp.data.texts import Texts, to_tokens
from isp.errors import ConfigError, DataError
from isp.lazy import torch
from isp.rng import forked_rng
from isp.seeds import seed as named_seed
from isp.tasks import Inputs, Task
from isp.training import holding, load_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.models.bert.modeling_bert import BertModel

    from isp.backbones._classifiers import TextClassifier
    from isp.exported import Library

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocab.txt"
PRUNABLE = (
    "bert.encoder.layer.*.attention.self.query.weight",
    "bert.encoder.layer.*.attention.self.key.weight",
    "bert.encoder.layer.*.attention.self.value.weight",
    "bert.encoder.layer.*.attention.output.dense.weight",
    "bert.encoder.layer.*.intermediate.dense.weight",
    "bert.encoder.layer.*.output.dense.weight",
)
POOLER = "bert.pooler.dense.weight"
OUTPUT = "value"
"""Label of the single output of a regression."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class BertBackbone:
    """A BERT and its tokenizer.

    Attributes:
        source: Origin of the weights; None: pre-training in this package.
        architecture: Fields of transformers' `BertConfig`, for plans; None: known only from the file with the weights.
        prune_pooler: Whether the pooler's matrix is also prunable. Chen et al. (2020) prune it; the later code of the
            paper's authors (essential_sparsity) does not. BERT-base has 85,524,480 prunable weights with the pooler and
            84,934,656 without.
        random_pooler: Whether the weights lack a pooler. One is then drawn from a fixed seed and trained with the head.
        lower_case: Whether texts are lower-cased and stripped of accents, as for "uncased" models.
        max_length: Maximum number of tokens of a text or pair; longer inputs are truncated.
        version: Version, raised when the backbone's behaviour changes.
    """

    source: HubModel | None = None
    architecture: Mapping[str, Any] | None = None
    prune_pooler: bool = False
    random_pooler: bool = False
    lower_case: bool = True
    max_length: int = 128
    version: int = 1

    @property
    def inputs(self) -> Inputs:
        """Kind of inputs: texts."""
        return "texts"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of weights, configuration and vocabulary."""
        return (CONFIG, VOCABULARY, WEIGHTS)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Patterns of the six matrices of every layer, and of the pooler's matrix if it is prunable."""
        return (*PRUNABLE, POOLER) if self.prune_pooler else PRUNABLE

    def convert(self, folder: Path) -> Pretrained:
        """Load embeddings, encoder and pooler from the hub's files, without pre-training heads.

        Raises:
            ConfigError: If the weights do not belong to a BERT of that configuration, lack a pooler, or have one that
                should be random.
            DataError: If a file cannot be read.
        """
        architecture = read_config(folder / CONFIG)
        try:
            text = (folder / VOCABULARY).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / VOCABULARY}: cannot be read ({error})") from None
        vocabulary = tuple(text.removesuffix("\n").split("\n"))  # splitlines also splits at other characters
        if architecture.get("model_type") != "bert":
            raise ConfigError(f"{folder / CONFIG}: model_type must be 'bert', got {architecture.get('model_type')!r}")
        bert = buildable(folder / CONFIG, lambda: build(architecture, 0))
        if bert.config.max_position_embeddings < self.max_length:
            raise ConfigError(
                f"max_length = {self.max_length}: must be at most {bert.config.max_position_embeddings}, the limit of "
                f"{folder / CONFIG}"
            )
        self._check_vocabulary(folder / VOCABULARY, vocabulary, bert.config.vocab_size)
        stored = {_renamed(name): tensor for name, tensor in read_safetensors(folder / WEIGHTS).items()}
        random = bert.state_dict()
        pooler = {name: tensor for name, tensor in random.items() if name.startswith("pooler.") and name not in stored}
        if pooler and not self.random_pooler:
            raise ConfigError(
                f"{folder / WEIGHTS}: lacks {' and '.join(pooler)}, which a task's head needs. Use weights with a "
                "pooler, or set pooler: random in the backbone's definition to train one from random weights"
            )
        if self.random_pooler and not pooler:
            raise ConfigError(f"{folder / WEIGHTS}: has a pooler; pooler must be kept or pruned, got random")
        weights = {name: tensor for name, tensor in stored.items() if name in random or not _ignored(name)}
        load_weights(bert, {**pooler, **weights}, str(folder / WEIGHTS))
        return Pretrained(weights=dict(bert.state_dict()), architecture=architecture, vocabulary=vocabulary)

    def _check_vocabulary(self, path: Path, vocabulary: tuple[str, ...], size: int) -> None:
        missing = [word for word in SPECIAL if word not in vocabulary]
        if missing or vocabulary[0] != SPECIAL[0] or len(vocabulary) > size:
            raise ConfigError(
                f"{path}: {len(vocabulary)} words without {missing or 'nothing'}; the BERT of {CONFIG} needs at most "
                f"{size}, the first of them {SPECIAL[0]}, and {', '.join(SPECIAL[1:])}"
            )
        cased = any(word != word.lower() for word in vocabulary if not word.startswith("["))
        if cased == self.lower_case:
            has, right = ("capital letters", "kept") if cased else ("no capital letters", "lower")
            raise ConfigError(f"{path}: has {has}, so texts need case: {right}, as in pre-training")

    def prepare(
        self, columns: Sequence[Column], chosen: np.ndarray, pretrained: Pretrained, where: str
    ) -> dict[str, Tensor]:
        """Return `tokens`, `length` and `second`, described in `isp.data.texts.to_tokens`."""
        return to_tokens(columns, chosen.tolist(), pretrained.vocabulary, self.lower_case, self.max_length)

    def examples(
        self, tensors: Mapping[str, Tensor], architecture: Mapping[str, Any], augmentation: Augmentation
    ) -> Texts:
        """Make examples from texts and labels, on the device of the tensors; texts have no augmentation."""
        return Texts(**{key: tensors[key] for key in ("tokens", "length", "second", "labels")})

    def initial(self, pretrained: Pretrained, task: Task, seed: int, random: bool) -> TextClassifier:
        """Build the pre-trained BERT, or a random one, under a new task head drawn from the seed."""
        from isp.backbones._classifiers import TextClassifier

        if random:
            bert = build(pretrained.architecture, 1 + seed)
        else:
            make = partial(build, pretrained.architecture, 0)
            bert = holding(pretrained.weights, make, "the pre-trained weights")
        model = TextClassifier(bert, task.num_outputs)
        with forked_rng(), torch.no_grad():
            torch.manual_seed(named_seed("head", seed=seed))
            model.classifier.weight.normal_(0.0, bert.config.initializer_range)
            model.classifier.bias.zero_()
        return model

    def blank(
        self, task: Task, num_examples: int, data_root: Path
    ) -> tuple[TextClassifier, dict[str, Any], dict[str, Tensor]]:
        """Return a random model, its architecture and longest texts; raise DataError if its file is missing."""
        from isp.backbones._classifiers import TextClassifier

        if self.architecture is None:
            assert self.source is not None
            architecture = read_config(self.source.where(data_root) / CONFIG)
        else:
            architecture = dict(self.architecture)
        model = TextClassifier(build(architecture, 0), task.num_outputs)
        length = torch.full((num_examples,), self.max_length, dtype=torch.int32)
        labels = torch.zeros(num_examples, dtype=torch.int64 if task.classes else torch.float32)
        tokens = torch.ones(num_examples, self.max_length, dtype=torch.int32)
        return model, architecture, {"tokens": tokens, "length": length, "second": length, "labels": labels}

    def restore(self, weights: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> TextClassifier:
        """Build a classifier with these weights.

        Raises:
            ConfigError: If they belong to another model; the message names the first tensor that differs.
        """
        from isp.backbones._classifiers import TextClassifier

        if "classifier.bias" not in weights:
            raise ConfigError(
                "weights without 'classifier.bias' do not belong to a text classifier (stage: initialise)"
            )
        return holding(weights, lambda: TextClassifier(build(architecture, 0), len(weights["classifier.bias"])))

    @property
    def library(self) -> Library:
        """Library transformers: `AutoModelForSequenceClassification` and `AutoTokenizer` load the folder."""
        return "transformers"

    def export(
        self, folder: Path, weights: Mapping[str, Tensor], pretrained: Pretrained, task: Task, plain: bool
    ) -> None:
        """Write `config.json` with the labels, the tokenizer with `max_length`, and `model.safetensors` if `plain`."""
        from safetensors.torch import save_file
        from transformers.models.bert.configuration_bert import BertConfig
        from transformers.models.bert.tokenization_bert import BertTokenizer

        from isp.exported import PLAIN

        config = BertConfig.from_dict(dict(pretrained.architecture), attn_implementation="sdpa")
        names = task.classes or (OUTPUT,)
        config.architectures, config.dtype = ["BertForSequenceClassification"], torch.float32
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.problem_type = "single_label_classification" if task.classes else "regression"
        config.classifier_dropout = None  # use the encoder's
        config.input_columns = list(task.source.inputs)
        config.save_pretrained(folder)
        if plain:
            tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
            save_file(tensors, folder / PLAIN, {"format": "pt"})
        numbers = {word: number for number, word in enumerate(pretrained.vocabulary)}
        tokenizer = BertTokenizer(vocab=numbers, do_lower_case=self.lower_case, model_max_length=self.max_length)
        tokenizer.save_pretrained(folder)


def build(architecture: Mapping[str, Any], seed: int) -> BertModel:
    """Build embeddings, encoder and pooler with random weights drawn from `seed`."""
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    config = BertConfig.from_dict(dict(architecture), attn_implementation="sdpa")
    with forked_rng():
        torch.manual_seed(named_seed("build", seed=seed))
        return BertModel(config)


def _renamed(name: str) -> str:
    """Return a parameter's current name, without the prefix of a model with heads or TensorFlow's names of norms."""
    renamed = name.removeprefix("bert.")
    return renamed.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _ignored(name: str) -> bool:
    """Return whether a tensor is a pre-training head, or position ids that older versions stored with the weights."""
    return name.startswith(("cls.", "classifier.")) or name.endswith((".position_ids", ".token_type_ids"))
