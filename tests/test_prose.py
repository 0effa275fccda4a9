"""The embedded prose, the tasks made of it, and the BERT that is pre-trained on it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from isp.backbones import _bert as bert
from isp.backbones import bert_tiny
from isp.data import prose
from isp.data.masking import MASK_RATE, Hidden, MaskedTexts

DOCSTRING = """Compute the sum of values along an axis.

The `axis` is a number that :func:`numpy.sum` understands, and **this** is one sentence
over two lines. Short one. Is this (also) a sentence of the text?

Parameters
----------
x : array_like
    The values that are added up by this function here.

>>> add(1)  # no prose at all here, as one may easily see.

.. note::

    What stands in a directive is left out of it all.

- An item of a list is not taken for a sentence.
y = a + b is a formula and not a sentence here.
"""


def test_sentences_of_a_docstring() -> None:
    found = [sentence for paragraph in prose.paragraphs(DOCSTRING) for sentence in prose.prose(paragraph)]
    assert found == [
        "Compute the sum of values along an axis.",
        "The axis is a number that numpy.sum understands, and this is one sentence over two lines.",
        "Is this (also) a sentence of the text?",
        "The values that are added up by this function here.",
    ]


def test_parts_share_no_docstring_and_no_sentence() -> None:
    sentences = prose.sentences()
    assert len(sentences) > 20_000
    parts: dict[int, set[str]] = {}
    for sentence in sentences:
        parts.setdefault(sentence.docstring, set()).add(sentence.part)
    assert all(len(found) == 1 for found in parts.values())
    texts = [sentence.text.lower() for sentence in sentences]
    assert len(set(texts)) == len(texts)
    counts = Counter(sentence.part for sentence in sentences)
    assert counts["pretraining"] > 2 * counts["train"] > 2 * counts["test"] > 0


def test_word_order() -> None:
    held_out = {sentence.text for sentence in prose.sentences() if sentence.part == "train"}
    texts, labels = prose.word_order("train")
    assert (len(texts), Counter(labels)) == (3400, {0: 1700, 1: 1700})
    for text, label in zip(texts[:400], labels, strict=False):
        words = text.split()
        assert 6 <= len(words) <= 16
        assert (text in held_out) == bool(label)
    intact = {tuple(sorted(text.split())): text.split() for text in held_out}
    for text, label in zip(texts[:400], labels, strict=False):
        own = intact[tuple(sorted(text.split()))]  # the same words as a sentence that was held out
        assert (own[0], own[-1]) == (text.split()[0], text.split()[-1])
        moved = [place for place, (a, b) in enumerate(zip(own, text.split(), strict=True)) if a != b]
        assert not moved if label else moved[-1] - moved[0] < 6
    assert prose.word_order("train")[0] == texts
    assert not set(texts) & set(prose.word_order("test")[0])


def test_half_order() -> None:
    held_out = {s.text.lower().rstrip(".!?") for s in prose.sentences() if s.part == "test"}
    firsts, seconds, labels = prose.half_order("test")
    assert (len(firsts), Counter(labels)) == (1000, {0: 500, 1: 500})
    for first, second, label in zip(firsts, seconds, labels, strict=True):
        whole = f"{first} {second}" if label else f"{second} {first}"
        assert whole in held_out
        assert min(len(first.split()), len(second.split())) >= 3


@pytest.mark.process
def test_the_same_in_every_process() -> None:
    """Also the vocabulary, which the library's own trainer makes differently every time."""
    code = (
        "import hashlib; from isp.data import prose; "
        "print(prose.checksum(), hashlib.sha256(repr(prose.vocabulary(300)).encode()).hexdigest())"
    )
    own = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout.split()
    here = hashlib.sha256(repr(prose.vocabulary(300)).encode()).hexdigest()
    assert own == [prose.checksum(), here]


def test_the_vocabulary_spells_everything() -> None:
    words = prose.vocabulary(400)
    assert tuple(words[:5]) == bert.SPECIAL == prose.SPECIAL
    assert len(set(words)) == len(words) == 400
    texts = MaskedTexts.make(prose.corpus()[:500], words, 32).texts
    assert not (texts.tokens == words.index("[UNK]")).any()


@pytest.fixture
def masked() -> MaskedTexts:
    return MaskedTexts.make(prose.corpus()[:200], prose.vocabulary(400), 32)


def test_hidden_pieces(masked: MaskedTexts) -> None:
    torch.manual_seed(0)
    indices = torch.arange(200)
    inputs, chosen, answers = masked.batch(indices)
    original, _ = masked.texts.batch(indices)
    tokens = original["input_ids"]
    assert torch.equal(tokens[chosen], answers)
    assert torch.equal(inputs["input_ids"][~chosen], tokens[~chosen])
    assert not torch.isin(answers, torch.tensor([0, 2, 3])).any()  # [PAD], [CLS], [SEP]
    pieces = int((original["attention_mask"].sum() - 2 * 200).item())
    assert chosen.sum() / pieces == pytest.approx(MASK_RATE, abs=0.02)
    hidden = inputs["input_ids"][chosen]
    assert (hidden == 4).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (hidden == answers).float().mean() == pytest.approx(0.1, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(masked.batch(indices).inputs["input_ids"], inputs["input_ids"])


def test_the_loss_is_transformers_own(masked: MaskedTexts) -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig.from_dict({**bert_tiny.ARCHITECTURE, "vocab_size": 400}))
    batch = masked.batch(torch.arange(16))
    labels = torch.full(batch.chosen.shape, -100)
    labels[batch.chosen] = batch.answers
    theirs = model(**batch.inputs, labels=labels).loss
    torch.testing.assert_close(bert_tiny.masked_language_loss(model, batch), theirs)


def test_pretraining_learns_and_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = prose.corpus()[:400]
    monkeypatch.setattr(prose, "corpus", lambda: corpus)
    short = {"steps": 25, "warmup_steps": 5, "batch_size": 32}
    monkeypatch.setattr(bert_tiny, "PRETRAINING", bert_tiny.PRETRAINING.model_copy(update=short))
    monkeypatch.setattr(bert_tiny, "ARCHITECTURE", {**bert_tiny.ARCHITECTURE, "vocab_size": 400})
    losses: list[float] = []
    original = bert_tiny.masked_language_loss

    def recorded(model: torch.nn.Module, batch: Hidden) -> torch.Tensor:
        loss = original(model, batch)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(bert_tiny, "masked_language_loss", recorded)
    first, second = bert_tiny.pretrain(0), bert_tiny.pretrain(0)
    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in first.weights.items())
    assert np.mean(losses[20:25]) < np.mean(losses[:5]) - 0.3
    assert first.data == prose.checksum()
    model = bert.build(first.architecture, 0)
    model.load_state_dict(first.weights)
    untrained = bert.build(first.architecture, 0)
    assert not torch.equal(model.embeddings.word_embeddings.weight, untrained.embeddings.word_embeddings.weight)
