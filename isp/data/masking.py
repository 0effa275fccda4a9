"""Texts with words hidden, for masked-language pre-training: what the embedded BERT is pre-trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from isp.data.texts import Texts, to_tokens
from isp.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MASK_RATE = 0.2
"""Share of the word pieces that are to be guessed; of these 80 % are hidden, 10 % replaced and 10 % left (BERT's)."""


class Hidden(NamedTuple):
    """A batch: inputs of a BERT with pieces hidden, which are to be guessed, bool (b, tokens), and what they are."""

    inputs: dict[str, Tensor]
    chosen: Tensor
    answers: Tensor


@dataclass(frozen=True)
class MaskedTexts:
    """Texts whose word pieces are hidden anew at every step, drawn from torch's generator.

    Attributes:
        texts: their token ids; the labels are not used.
        vocabulary: word pieces in the order of their numbers.
    """

    texts: Texts
    vocabulary: tuple[str, ...]

    @classmethod
    def make(cls, sentences: Sequence[str], vocabulary: Sequence[str], max_length: int) -> MaskedTexts:
        """Tokenize everything once."""
        tensors = to_tokens([sentences], range(len(sentences)), vocabulary, True, max_length)
        return cls(Texts(**tensors, labels=torch.zeros(len(sentences))), tuple(vocabulary))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each."""
        return self.texts.lengths

    def batch(self, indices: Tensor, length: int | None = None) -> Hidden:
        """Sentences with pieces hidden; special tokens never are."""
        inputs, _ = self.texts.batch(indices, length)
        tokens = inputs["input_ids"]
        special = torch.tensor([self.vocabulary.index(word) for word in ("[PAD]", "[CLS]", "[SEP]")])
        chosen = ~torch.isin(tokens, special) & (torch.rand(tokens.shape) < MASK_RATE)
        how = torch.rand(tokens.shape)
        hidden = torch.where(chosen & (how < 0.8), self.vocabulary.index("[MASK]"), tokens)
        replacement = torch.randint(5, len(self.vocabulary), tokens.shape)
        hidden = torch.where(chosen & (how >= 0.9), replacement, hidden)
        return Hidden({**inputs, "input_ids": hidden}, chosen, tokens[chosen])
