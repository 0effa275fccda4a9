"""Models that are fine-tuned: a pre-trained tower under the head of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.bert.modeling_bert import BertModel


class TextClassifier(nn.Module):
    """BERT under a task head: dropout and a linear layer on the pooled first token, all of it trained.

    Its parameters have the same names as those of transformers' `BertForSequenceClassification`.

    Attributes:
        bert: Embeddings, encoder and pooler.
        classifier: Linear layer with weight (outputs, width); one output for a regression.
    """

    def __init__(self, bert: BertModel, num_outputs: int) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = nn.Dropout(bert.config.hidden_dropout_prob)
        self.classifier = nn.Linear(bert.config.hidden_size, num_outputs)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute logits (b, outputs) from `input_ids`, `attention_mask` and `token_type_ids`, each (b, tokens)."""
        logits: Tensor = self.classifier(self.dropout(self.bert(**inputs).pooler_output))
        return logits


class ImageClassifier(nn.Module):
    """CLIP's image tower under a frozen zero-shot head (section 4 of the paper).

    Attributes:
        visual: Image tower, all of whose parameters are trained.
        head: Unit rows times exp(logit_scale), (classes, features). It is a buffer, so it is never trained or pruned.
    """

    head: Tensor

    def __init__(self, visual: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("head", head)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (b, classes) from normalised images (b, 3, size, size)."""
        return F.normalize(self.visual(images), dim=-1) @ self.head.T
