"""Texts: turned into token ids once, by the backbone's vocabulary; a batch is as long as its longest text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isp.data.sources import Column

PADDING = 0
"""Number of [PAD] in the vocabularies of BERT; it is never attended to."""


def to_tokens(
    columns: Sequence[Column], chosen: Sequence[int], vocabulary: Sequence[str], lower_case: bool, max_length: int
) -> dict[str, Tensor]:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP], as BERT was pre-trained on.

    Of a text (or pair) that is too long, tokens are taken off the end (of the longer one).

    Returns:
        tokens: int32, (n, longest), padded with `PADDING`.
        length: int32, (n,), tokens of each.
        second: int32, (n,), where the second text begins (`token_type_ids` are 1 from there); `length` without one.
    """
    from tokenizers import BertWordPieceTokenizer

    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = BertWordPieceTokenizer(vocab=numbers, lowercase=lower_case, strip_accents=None)
    tokenizer.enable_truncation(max_length)
    texts = [[column[index] for index in chosen] for column in columns]
    encoded = tokenizer.encode_batch(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    length = torch.tensor([len(each.ids) for each in encoded], dtype=torch.int32)
    tokens = torch.full((len(encoded), int(length.max()) if len(encoded) else 0), PADDING, dtype=torch.int32)
    for row, each in zip(tokens, encoded, strict=True):
        row[: len(each.ids)] = torch.tensor(each.ids, dtype=torch.int32)
    second = torch.tensor([len(each.ids) - sum(each.type_ids) for each in encoded], dtype=torch.int32)
    return {"tokens": tokens, "length": length, "second": second}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Labelled texts on a device.

    Attributes:
        tokens, length, second: from `to_tokens`.
        labels: (n,), int64 classes or fp32 numbers.
    """

    tokens: Tensor
    length: Tensor
    second: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each, on the CPU: examples of similar length share a batch."""
        return self.length.cpu()

    def batch(self, indices: Tensor, length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of a BERT, int64 (b, longest), and labels; cut or padded to `length` if that is given."""
        indices = indices.to(self.tokens.device)
        own = self.length[indices, None]
        longest = int(own.max()) if length is None else length
        tokens = self.tokens[indices, :longest].long()
        tokens = torch.nn.functional.pad(tokens, (0, longest - tokens.shape[1]), value=PADDING)
        place = torch.arange(longest, device=tokens.device)
        inputs = {
            "input_ids": tokens,
            "attention_mask": (place < own).long(),
            "token_type_ids": ((place >= self.second[indices, None]) & (place < own)).long(),
        }
        return inputs, self.labels[indices]


def padding_share(lengths: Tensor, batches: Iterable[Tensor]) -> float:
    """The share of padding among the tokens of batches, each as long as its longest text."""
    filled = total = 0
    for indices in batches:
        own = lengths[indices]
        filled += int(own.sum())
        total += int(own.max()) * len(own)
    return 1 - filled / total
