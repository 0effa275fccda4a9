"""Texts with hidden words for masked-language pre-training; the pre-training data of the embedded BERT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from isp.data.texts import Texts, to_tokens
from isp.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MASK_RATE = 0.2
"""Share of the word pieces to guess, of which 80 % are hidden, 10 % replaced and 10 % left as they are (BERT's)."""


class Hidden(NamedTuple):
    """A batch: BERT inputs with hidden pieces, mask of the pieces to guess, bool (b, tokens), and their token ids."""

    inputs: dict[str, Tensor]
    chosen: Tensor
    answers: Tensor


@dataclass(frozen=True)
class MaskedTexts:
    """Texts whose word pieces are hidden at random at every step, with numbers from torch's generator.

    Attributes:
        texts: Token ids; the labels are not used.
        vocabulary: Word pieces in the order of their ids.
    """

    texts: Texts
    vocabulary: tuple[str, ...]

    @classmethod
    def make(cls, sentences: Sequence[str], vocabulary: Sequence[str], max_length: int) -> MaskedTexts:
        """Tokenize all sentences once."""
        tensors = to_tokens([sentences], range(len(sentences)), vocabulary, True, max_length)
        return cls(Texts(**tensors, labels=torch.zeros(len(sentences), dtype=torch.float32)), tuple(vocabulary))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each text."""
        return self.texts.lengths

    def batch(self, indices: Tensor, length: int | None = None) -> Hidden:
        """Return sentences with hidden pieces; special tokens are never hidden."""
        inputs, _ = self.texts.batch(indices, length)
        tokens = inputs["input_ids"]
        special = torch.tensor([self.vocabulary.index(word) for word in ("[PAD]", "[CLS]", "[SEP]")])
        chosen = ~torch.isin(tokens, special) & (torch.rand(tokens.shape, dtype=torch.float32) < MASK_RATE)
        how = torch.rand(tokens.shape, dtype=torch.float32)
        hidden = torch.where(chosen & (how < 0.8), self.vocabulary.index("[MASK]"), tokens)
        replacement = torch.randint(5, len(self.vocabulary), tokens.shape)
        hidden = torch.where(chosen & (how >= 0.9), replacement, hidden)
        return Hidden({**inputs, "input_ids": hidden}, chosen, tokens[chosen])
