"""Token ids, batches of texts of similar length, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isp.backbones._bert import SPECIAL, BertBackbone
from isp.counting import count_step_flops
from isp.data.texts import Texts, estimate_lengths, padding_share, to_tokens
from isp.losses import default_loss
from isp.prunable import prunable_names
from isp.seeds import seed as named_seed
from isp.tasks import TextTask
from isp.training import BLOCK, BatchOrder, Training, make_trainer, state_of
from tests.support.backbones import small

WORDS = (*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), ".", "é")
TEXTS = ["The cat sat.", "Été à Paris", "", "a" * 150, "x y z. " * 30, "naïve  spaces\ttabs", "你好 a"]


@pytest.mark.parametrize("lower_case", [True, False])
def test_tokens_are_those_of_transformers(tmp_path: Path, lower_case: bool) -> None:
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    theirs = BertTokenizerFast(vocab=vocabulary, do_lower_case=lower_case)
    others = TEXTS[::-1]
    for columns in ([TEXTS], [TEXTS, others]):
        ours = to_tokens(columns, range(len(TEXTS)), WORDS, lower_case, 40)
        expected = theirs(*columns, truncation=True, max_length=40, padding=True, return_tensors="pt")
        labels = torch.zeros(len(TEXTS), dtype=torch.int64)
        inputs, _ = Texts(**ours, labels=labels).batch(torch.arange(len(TEXTS)))
        for key, tensor in inputs.items():
            assert torch.equal(tensor, expected[key]), key


def texts(lengths: list[int]) -> Texts:
    """Texts of given lengths; the numbers of the tokens mean nothing."""
    longest = max(lengths)
    length = torch.tensor(lengths, dtype=torch.int32)
    tokens = (torch.arange(longest) < length[:, None]).int() * 6
    return Texts(tokens=tokens, length=length, second=length, labels=torch.arange(len(lengths)) % 3)


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    inputs, labels = texts([2, 5, 3, 9]).batch(torch.tensor([2, 1]))
    assert inputs["input_ids"].tolist() == [[6, 6, 6, 0, 0], [6] * 5]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert labels.tolist() == [2, 1]
    assert texts([2, 5]).batch(torch.tensor([1]), 3)[0]["input_ids"].shape == (1, 3)
    assert texts([2, 5]).batch(torch.tensor([1]), 8)[0]["attention_mask"].tolist() == [[1] * 5 + [0] * 3]


def naive_epoch(lengths: list[int], pool: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Permute, drop the rest, sort by length inside blocks, shuffle the batches; in plain Python."""
    order = [pool[index] for index in torch.randperm(len(pool), generator=generator)]
    order = order[: len(pool) // batch_size * batch_size]
    batches = []
    for start in range(0, len(order), BLOCK * batch_size):
        block = sorted(order[start : start + BLOCK * batch_size], key=lambda number: lengths[number])
        batches += [block[begin : begin + batch_size] for begin in range(0, len(block), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator)]


@given(lengths=st.lists(st.integers(1, 40), min_size=8, max_size=400), batch_size=st.integers(1, 8), some=st.booleans())
def test_batches_of_similar_length_against_plain_python(lengths: list[int], batch_size: int, some: bool) -> None:
    pool = list(range(0, len(lengths), 2)) if some and len(lengths) // 2 >= batch_size else list(range(len(lengths)))
    subset = torch.tensor(pool) if some else None
    pool = pool if some else list(range(len(lengths)))
    if len(pool) < batch_size:
        return
    order = BatchOrder(len(lengths), batch_size, 3, subset, torch.tensor(lengths))
    for epoch in (1, 0):  # any order of asking
        generator = torch.Generator().manual_seed(named_seed("batch order", seed=3, epoch=epoch))
        expected = naive_epoch(lengths, pool, batch_size, generator)
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        found = [order(step).tolist() for step in steps]
        assert found == expected
        numbers = [number for batch in found for number in batch]
        assert len(set(numbers)) == len(numbers) == len(pool) // batch_size * batch_size


def test_padding_by_hand_and_how_much_grouping_saves() -> None:
    lengths = torch.tensor([2, 4, 8, 2])
    assert padding_share(lengths, [torch.tensor([0, 1]), torch.tensor([2, 3])]) == 1 - (6 + 10) / (8 + 16)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 60, (3200,), generator=generator)
    plain, grouped = (BatchOrder(3200, 32, 0, lengths=each) for each in (None, lengths))
    shares = [padding_share(lengths, map(order, range(order.steps_per_epoch))) for order in (plain, grouped)]
    assert shares[0] > 0.4
    assert shares[1] < 0.05


def test_flops_follow_the_length_of_every_batch() -> None:
    """Interpolated from three lengths, against counting each step's own batch."""
    backbone = BertBackbone()
    examples = texts([3 + number % 17 for number in range(40)])
    task = TextTask(source=None, num_examples=40, classes=("a", "b", "c"))  # type: ignore[arg-type]
    model = backbone.initial(small("bert_base"), task, 0, False)
    names = prunable_names(model, backbone.prunable)
    trainer = make_trainer(
        model, examples, default_loss, Training(steps=12, batch_size=8, learning_rate=1e-3), names, 0
    )
    mask = {name: torch.rand(model.get_parameter(name).shape) < 0.3 for name in names}
    _, cost = trainer.run(state_of(model), 12, mask)
    executed = sparse = 0
    for step in range(12):
        counted = count_step_flops(model, default_loss, examples.batch(trainer.order(step)), names)
        own = counted.steps({0: 1}, mask)
        executed, sparse = executed + own[0], sparse + own[1]
    assert cost.flops == executed
    assert cost.sparse_flops == sparse
    assert cost.samples == 96
    change = trainer.run(state_of(model), 12, prune=lambda step, _: mask if step == 5 else None)[1]
    assert change == trainer.cost(range(5)) + trainer.cost(range(5, 12), mask)
    assert len({int(examples.lengths[trainer.order(step)].max()) for step in range(12)}) > 1


def test_lengths_are_estimated_by_words() -> None:
    """Words and punctuation marks times 1.08, [CLS] and a [SEP] a text; no longer than texts may be."""
    first, second = ["a b c.", "word", "x " * 99], ["", "one, two", "y"]
    assert estimate_lengths([first], [0, 1, 2], 50).tolist() == [6, 3, 50]
    assert estimate_lengths([first, second], [1, 0], 50).tolist() == [7, 7]  # 4 * 1.08 + 3
