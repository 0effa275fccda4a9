"""The Python blocks of pages, and the set-up of each page before its first block."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[2]
NOT_RUN = "<!-- not run: "
"""Begins the line before a block that is only compiled; the reason follows."""


def blocks(page: Path) -> list[tuple[str, bool]]:
    """The Python blocks of a page, in their order, and whether each is run."""
    fence = r"^(?P<before>[^\n]*)\n\n?(?P<indent> *)```python\n(?P<code>.*?)^ *```"
    found = re.finditer(fence, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [
        (re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE), not match["before"].startswith(NOT_RUN))
        for match in found
    ]


def _data() -> dict[str, Any]:
    """A classifier of 16 numbers and its examples, which are easy."""
    labels = torch.arange(256) % 4
    inputs = 2 * torch.randn(4, 16)[labels] + torch.randn(256, 16)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    return {"model": model, "inputs": inputs, "labels": labels, "train": (inputs, labels), "example": inputs[:8]}


def _loop() -> dict[str, Any]:
    """A loop's model, optimizer, schedule, loader and loss."""
    data = _data()
    dataset = torch.utils.data.TensorDataset(*data["train"])
    optimizer = torch.optim.AdamW(data["model"].parameters(), lr=1e-2)

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return data | {
        "loader": torch.utils.data.DataLoader(dataset, batch_size=32, drop_last=True),
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "loss": loss,
        "epochs": 3,
        "T": 24,
    }


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=25, pad_token_id=0, **sizes))


def _trainer() -> dict[str, Any]:
    """What a Trainer of transformers needs, a few steps of it."""
    from transformers import Trainer, TrainingArguments

    words = torch.randint(5, 25, (64, 4))
    args = TrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    return {
        "model": _bert(),
        "args": args,
        "data": [{"input_ids": row, "labels": int(row[0] > row[1])} for row in words],
        "Trainer": Trainer,
    }


def _readme() -> dict[str, Any]:
    """What a Trainer of a BERT needs."""
    trainer = _trainer()
    return {**trainer, "bert": trainer["model"]}


def _models() -> dict[str, Any]:
    """A BERT and examples for it."""
    words = torch.randint(5, 25, (256, 4))
    return {"model": _bert(), "train": {"input_ids": words, "labels": (words[:, 0] > words[:, 1]).long()}}


def _pruned() -> dict[str, Any]:
    """A model with zeros, and an example for it."""
    data = _data()
    with torch.no_grad():
        data["model"][0].weight[1:] = 0
    return data


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": _readme,
    "docs/explanation/inference.md": _pruned,
    "docs/explanation/patterns.md": _data,
    "docs/how-to/loops.md": _loop,
    "docs/how-to/models.md": _models,
    "docs/how-to/trainer.md": _trainer,
}
"""What a page assumes to exist, by its path; the other pages need nothing."""
CHEAP = 'settings={"denoisers": 1, "look_ahead_steps": 1}'
SHORTER = {
    "docs/explanation/patterns.md": {'settings={"scope": "2:4"}': 'settings={"scope": "2:4", "denoisers": 1}'},
    "docs/how-to/models.md": {"steps=1000": f"steps=200, {CHEAP}"},
    "docs/how-to/prune.md": {
        'method="isp"': f'method="isp", {CHEAP}',
        "learning_rate=1e-2, loss": f"learning_rate=1e-2, {CHEAP}, loss",
        "learning_rate=1e-2, exclude": f"learning_rate=1e-2, {CHEAP}, exclude",
    },
}
"""What a test replaces in the blocks of a page, so that they take seconds."""
