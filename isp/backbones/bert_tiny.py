"""Tiny BERT (2 layers of width 64, 1,500 word pieces), pre-trained here on docstrings of installed packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isp.backbones import Pretrained
from isp.backbones._bert import BertBackbone, build
from isp.lazy import F, torch
from isp.rng import forked_rng
from isp.seeds import seed as named_seed
from isp.training import Training, make_trainer, state_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isp.data.masking import Hidden

ARCHITECTURE: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 1500,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,  # BERT's 0.02 suits a width of 768; here it would raise the pre-training loss by 0.4
}

BACKBONE = BertBackbone(max_length=32, architecture=ARCHITECTURE)

PRETRAINING = Training(steps=2000, batch_size=48, learning_rate=4e-3, warmup_steps=100, weight_decay=0.2)

TRAINING = Training(steps=200, batch_size=32, learning_rate=2e-3, warmup_steps=20, weight_decay=0.1)
"""Protocol with which `isp run` fine-tunes."""


def masked_language_loss(model: nn.Module, batch: Hidden) -> Tensor:
    """Compute the mean cross-entropy of the hidden pieces; only their positions are scored against the vocabulary."""
    hidden = model.bert(**batch.inputs).last_hidden_state  # type: ignore[operator]
    return F.cross_entropy(model.cls(hidden[batch.chosen]), batch.answers)  # type: ignore[operator]


def pretrain(seed: int = 0, progress: Callable[[int], None] = lambda _: None) -> Pretrained:
    """Pre-train embeddings and encoder for `PRETRAINING.steps` steps from random weights; the pooler stays random.

    Input and output embeddings are tied, as in BERT.
    """
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertForMaskedLM

    from isp.data import prose
    from isp.data.masking import MaskedTexts

    words = prose.vocabulary(ARCHITECTURE["vocab_size"])
    with forked_rng():
        torch.manual_seed(named_seed("masked-language model", seed=seed))
        model = BertForMaskedLM(BertConfig.from_dict(ARCHITECTURE, attn_implementation="sdpa"))
    texts = MaskedTexts.make(prose.corpus(), words, BACKBONE.max_length)
    trainer = make_trainer(model, texts, masked_language_loss, PRETRAINING, [], seed, progress)
    state, _ = trainer.run(state_of(model), PRETRAINING.steps)
    encoder = {name.removeprefix("bert."): tensor for name, tensor in state.weights.items() if name.startswith("bert.")}
    untrained = build(ARCHITECTURE, seed).state_dict()
    return Pretrained(
        weights={**untrained, **encoder},
        architecture=ARCHITECTURE,
        vocabulary=tuple(words),
        data=prose.checksum(),
    )
