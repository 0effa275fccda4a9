"""`PruningCallback` in Trainers of transformers, on a tiny random BERT."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, EarlyStoppingCallback, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

import isp
from isp.errors import ConfigError
from isp.integrations.transformers import STATE, PruningCallback
from tests.support.models import equal

HEAD = ["classifier.*", "*pooler*"]
ISP = {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 2, "look_ahead_steps": 2}
METHODS = {"one_shot": {}, "gradual": {}, "isp": ISP, "snip": {}}


def bert(dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        classifier_dropout=dropout,
    )
    return BertForSequenceClassification(config)


def texts(num: int = 40) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 40, (num, 6), generator=generator)
    return [{"input_ids": row.tolist(), "labels": int(row[0] > row[1])} for row in tokens]


DATA = texts()


def arguments(folder: Path, **changed: Any) -> Arguments:
    given = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 12}
    given |= {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
    return Arguments(output_dir=str(folder), **given | changed)


def pruning(method: str = "isp", **changed: Any) -> PruningCallback:
    return PruningCallback(
        **{"method": method, "sparsity": 0.8, "settings": METHODS.get(method, {}), "exclude": HEAD, **changed}
    )


def make(
    folder: Path,
    callback: TrainerCallback,
    *,
    cls: type[Trainer] = Trainer,
    data: Any = DATA,
    others: list[Any] | None = None,
    dropout: float = 0.0,
    trainer: dict[str, Any] | None = None,
    **changed: Any,
) -> Trainer:
    return cls(
        bert(dropout),
        arguments(folder, **changed),
        train_dataset=data,
        callbacks=[callback, *(others or [])],
        **trainer or {},
    )


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.model.state_dict())


class At(TrainerCallback):
    """Calls a function at an event."""

    def __init__(self, event: str, act: Any) -> None:
        setattr(self, event, lambda args, state, control, **kwargs: act(args, state, control))


# --- a Trainer beside a loop by hand ------------------------------------------------------------------------------------


def by_hand(method: str) -> tuple[nn.Module, isp.Pruner]:
    """What a Trainer with these arguments does, written out: batches in the order of the data, a linear schedule."""
    model = bert()
    model.train()
    decayed = [p for n, p in model.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
    held = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in held]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (12 - step) / 12)

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([item[key] for item in items]) for key in ("input_ids", "labels")}

    def train_step(batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    pruner = isp.Pruner(
        model,
        optimizer,
        sparsity=0.8,
        steps=12,
        method=method,
        settings=METHODS[method],
        exclude=HEAD,
        seed=42,
        train_step=train_step,
        data=DATA,
        collate=collate,
        batch_size=8,
        loss=lambda model, batch: model(**batch).loss,
        scheduler=scheduler,
    )
    for step in range(12):
        start = step * 8 % len(DATA)
        train_step(collate(DATA[start : start + 8]))
        pruner.step()
    return model, pruner


@pytest.mark.parametrize("method", METHODS)
def test_a_trainer_equals_pruner_in_a_loop_by_hand_to_the_bit(method: str, tmp_path: Path) -> None:
    callback = pruning(method)
    trainer = make(tmp_path, callback, train_sampling_strategy="sequential")
    trainer.train()
    model, pruner = by_hand(method)
    ours, theirs = callback.ticket(), pruner.ticket()
    assert equal(ours.mask, theirs.mask)
    assert equal(state(trainer), dict(model.state_dict()))
    assert (ours.rounds, ours.finding, ours.retraining) == (theirs.rounds, theirs.finding, theirs.retraining)
    assert ours.retraining.flops > 0


class Weighted(Trainer):
    """A subclass with a loss of its own."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class Stop(Exception):
    pass


VARIANTS: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "bf16": {"bf16": True},
    "clipping": {"max_grad_norm": 0.01},
    "no clipping": {"max_grad_norm": 0.0},
    "warm-up": {"warmup_steps": 4, "lr_scheduler_type": "cosine"},
    "SGD": {"optim": "sgd"},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
    "loss of a subclass": {"cls": Weighted, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_of_a_look_ahead_is_one_of_the_trainer(variant: str, tmp_path: Path) -> None:
    """The same two batches, once by the Trainer's loop and once by the step of look-aheads."""
    trained: list[dict[str, torch.Tensor]] = []
    changed = {"train_sampling_strategy": "sequential", "trainer": {"eval_dataset": DATA[:8]}, **VARIANTS[variant]}

    def keep(args: Any, state: Any, control: Any) -> None:
        trained.append(copy.deepcopy(dict(trainer.model.state_dict())))
        control.should_training_stop = state.global_step == 2

    trainer = make(tmp_path, pruning("one_shot"), others=[At("on_step_end", keep)], **changed)
    trainer.train()

    def step_twice(args: Any, state: Any, control: Any) -> None:
        for number in range(2):
            callback._train_step(callback.pruner.trainer.examples.batch(torch.arange(8 * number, 8 * number + 8)))
            callback.pruner.step()
            assert equal(dict(stepped.model.state_dict()), trained[number])
        raise Stop

    callback = pruning("one_shot")
    stepped = make(tmp_path, callback, others=[At("on_train_begin", step_twice)], **changed)
    with pytest.raises(Stop):
        stepped.train()
    assert not equal(trained[0], trained[1])


# --- T, logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "steps", "updates"),
    [
        ({"max_steps": -1, "num_train_epochs": 2}, 10, 5),
        ({"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 12}, 8, 4),  # 40 / 12, rounded up
        ({"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 2}, 9, 3),
        ({"max_steps": 7}, 7, 5),
    ],
)
def test_steps_are_those_of_the_trainer(changed: dict[str, Any], steps: int, updates: int, tmp_path: Path) -> None:
    callback = pruning("gradual", sparsity=0.5)
    trainer = make(tmp_path, callback, **changed)
    trainer.train()
    pruner = callback.pruner
    assert pruner is not None
    assert (pruner.trainer.training.steps, pruner.steps_done, pruner.steps_per_epoch) == (steps, steps, updates)
    assert trainer.state.global_step == steps
    size = changed.get("per_device_train_batch_size", 8) * changed.get("gradient_accumulation_steps", 1)
    assert callback.ticket().cost.samples == steps * size


def test_logs_have_the_sparsity_and_the_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[dict[str, Any]] = []
    callback = pruning("isp")
    trainer = make(tmp_path, callback)
    watcher = At("on_log", lambda *_: None)
    watcher.on_log = lambda args, state, control, logs, **kwargs: seen.append(dict(logs))  # type: ignore[method-assign]
    trainer.callback_handler.callbacks.insert(0, watcher)  # as reporters, before what the user gives
    trainer.train()
    history = trainer.state.log_history
    assert all("sparsity" in entry for entry in history)
    assert all("sparsity" in entry for entry in seen)
    losses = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(1, 13))  # logs of rounds suppress none
    assert losses[-1]["sparsity"] == callback.pruner.sparsity  # type: ignore[union-attr]
    assert [entry["sparsity"] for entry in losses] == sorted(entry["sparsity"] for entry in losses)
    rounds = [entry for entry in history if "pruning_round" in entry]
    assert [entry["pruning_changed"] for entry in rounds] == [entry["changed"] for entry in callback.ticket().rounds]
    assert [entry["step"] for entry in rounds] == [entry["step"] for entry in callback.ticket().rounds]
    assert "'pruning_round'" in capsys.readouterr().out


# --- checkpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["one_shot", "gradual", "isp"])
@pytest.mark.parametrize("at", [6, 5])  # within an epoch, and at the end of one
def test_a_resumed_run_equals_an_uncut_one_to_the_bit(method: str, at: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": at, "dropout": 0.1}
    whole = pruning(method)
    trainer = make(tmp_path / "whole", whole, **saving)
    trainer.train()
    half = pruning(method)
    cut = At("on_save", lambda args, state, control: setattr(control, "should_training_stop", True))
    stop = make(tmp_path / "cut", half, **saving, others=[cut])
    if method == "gradual":
        with pytest.warns(UserWarning, match="training ended after"):
            stop.train()
    else:
        stop.train()
    resumed = pruning(method)
    second = make(tmp_path / "cut", resumed, **saving)
    torch.rand(3)
    second.train(resume_from_checkpoint=True if at == 6 else str(tmp_path / "cut" / f"checkpoint-{at}"))
    assert equal(resumed.ticket().mask, whole.ticket().mask)
    assert equal(state(second), state(trainer))
    assert resumed.ticket().rounds == whole.ticket().rounds
    assert resumed.ticket().cost == whole.ticket().cost
    assert [e["sparsity"] for e in second.state.log_history] == [e["sparsity"] for e in trainer.state.log_history]
