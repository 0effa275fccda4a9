"""Texts, converted once to token ids of the backbone's vocabulary; a batch is as long as its longest text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isp.data.sources import Column
from isp.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_PER_WORD = 1.08
"""Average number of tokens per word or punctuation mark."""
_WORD = re.compile(r"\w+|[^\w\s]")
CHUNK = 10_000
"""Number of texts that are encoded at a time; the library's result takes 6 KB per pair."""
PADDING = 0
"""Id of [PAD] in the vocabularies of BERT; padding is never attended to."""


def to_tokens(
    columns: Sequence[Column], chosen: Sequence[int], vocabulary: Sequence[str], lower_case: bool, max_length: int
) -> dict[str, Tensor]:
    """Encode texts as [CLS] first [SEP], or [CLS] first [SEP] second [SEP], the formats of BERT's pre-training.

    If a text (or pair) is too long, tokens are removed from the end (of the longer one).

    Returns:
        tokens: int32, (n, longest), padded with `PADDING`.
        length: int32, (n,), number of tokens of each.
        second: int32, (n,), start of the second text (`token_type_ids` are 1 from there); `length` if there is none.
    """
    from tokenizers import BertWordPieceTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise it uses all cores, beyond the job's share
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = BertWordPieceTokenizer(vocab=numbers, lowercase=lower_case, strip_accents=None)
    tokenizer.enable_truncation(max_length)
    tokens = np.full((len(chosen), max_length), PADDING, dtype=np.int32)
    length, second = np.zeros(len(chosen), dtype=np.int32), np.zeros(len(chosen), dtype=np.int32)
    for begin in range(0, len(chosen), CHUNK):
        rows = chosen[begin : begin + CHUNK]
        texts = [[column[index] for index in rows] for column in columns]
        encoded = tokenizer.encode_batch(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
        for row, each in enumerate(encoded, start=begin):
            ids = each.ids
            tokens[row, : len(ids)] = ids
            length[row], second[row] = len(ids), len(ids) - sum(each.type_ids)
    longest = int(length.max(initial=0))
    return {
        "tokens": torch.from_numpy(np.ascontiguousarray(tokens[:, :longest])),
        "length": torch.from_numpy(length),
        "second": torch.from_numpy(second),
    }


def estimate_lengths(columns: Sequence[Column], chosen: Sequence[int], max_length: int) -> Tensor:
    """Estimate without a vocabulary how many tokens `to_tokens` makes of texts or pairs; int64, (n,).

    BERT's English vocabulary makes 1.04 to 1.12 tokens per word or punctuation mark on GLUE's tasks (measured on 2,000
    examples of six of them, with the uncased vocabulary of all-MiniLM-L6-v2).
    """
    words = [sum(len(_WORD.findall(str(column[index]))) for column in columns) for index in chosen]
    tokens = TOKENS_PER_WORD * torch.tensor(words, dtype=torch.float64) + 1 + len(columns)
    return tokens.round().to(torch.int64).clamp(max=max_length)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Labelled texts on a device.

    Attributes:
        tokens: Token ids from `to_tokens`.
        length: Lengths from `to_tokens`.
        second: Starts of second texts from `to_tokens`.
        labels: Labels, (n,), int64 classes or fp32 numbers.
    """

    tokens: Tensor
    length: Tensor
    second: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each text, on the CPU; examples of similar length share a batch."""
        return self.length.cpu()

    def batch(self, indices: Tensor, length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs of a BERT, int64 (b, longest), and labels, truncated or padded to `length` if it is given."""
        indices = indices.to(self.tokens.device)
        lengths = self.length[indices, None]
        longest = int(lengths.max()) if length is None else length
        tokens = self.tokens[indices, :longest].long()
        tokens = torch.nn.functional.pad(tokens, (0, longest - tokens.shape[1]), value=PADDING)
        place = torch.arange(longest, device=tokens.device)
        inputs = {
            "input_ids": tokens,
            "attention_mask": (place < lengths).long(),
            "token_type_ids": ((place >= self.second[indices, None]) & (place < lengths)).long(),
        }
        return inputs, self.labels[indices]


def padding_share(lengths: Tensor, batches: Iterable[Tensor]) -> float:
    """Return the share of padding among the tokens of batches, each as long as its longest text."""
    filled = total = 0
    for indices in batches:
        batch = lengths[indices]
        filled += int(batch.sum())
        total += int(batch.max()) * len(batch)
    return 1 - filled / total
