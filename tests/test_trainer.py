"""`PruningCallback` in Trainers of transformers, on a tiny random BERT."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import isp
from isp.errors import ArtifactError, ConfigError
from isp.integrations.transformers import STATE, PruningCallback
from tests.support.models import equal
from tests.support.ranks import run_checks

HEAD = ["classifier.*", "*pooler*"]
ISP = {"rate": 0.4, "segment_fraction": 0.2, "denoisers": 2, "look_ahead_steps": 2}
METHODS = {"one_shot": {}, "gradual": {}, "isp": ISP, "snip": {}}


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Every `train` collects garbage, which takes longer than all its steps where everything imported is looked at."""
    gc.freeze()


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


def arguments(folder: Path, **changed: Any) -> TrainingArguments:
    given = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 12}
    given |= {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
    return TrainingArguments(output_dir=str(folder), **given | changed)


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


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.model.state_dict())


class At(TrainerCallback):
    """Calls a function at an event."""

    def __init__(self, event: str, act: Any) -> None:
        setattr(self, event, lambda args, state, control, **kwargs: act(args, state, control))


# --- a Trainer beside a loop by hand ----------------------------------------------------------------------------------


def by_hand(method: str, device: str = "cpu") -> tuple[nn.Module, isp.Pruner]:
    """What a Trainer with these arguments does, written out: batches in the order of the data, a linear schedule."""
    model = bert().to(device)
    model.train()
    decayed = [p for n, p in model.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
    held = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in held]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (12 - step) / 12)

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([item[key] for item in items], device=device) for key in ("input_ids", "labels")}

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


def check_against_a_loop_by_hand(method: str, folder: Path, device: str) -> None:
    callback = pruning(method)
    trainer = make(folder, callback, train_sampling_strategy="sequential", use_cpu=device == "cpu")
    trainer.train()
    assert trainer.args.device.type == device
    model, pruner = by_hand(method, device)
    ours, theirs = callback.ticket(), pruner.ticket()
    assert equal(ours.mask, theirs.mask)
    assert equal(state(trainer), dict(model.state_dict()))
    assert (ours.rounds, ours.finding, ours.retraining) == (theirs.rounds, theirs.finding, theirs.retraining)
    assert ours.retraining.flops > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_trainer_equals_pruner_in_a_loop_by_hand_to_the_bit(method: str, tmp_path: Path) -> None:
    check_against_a_loop_by_hand(method, tmp_path, "cpu")


@pytest.mark.gpu
@pytest.mark.process  # transformers calls nvidia-smi
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_a_trainer_equals_pruner_in_a_loop_by_hand_to_the_bit(method: str, tmp_path: Path) -> None:
    check_against_a_loop_by_hand(method, tmp_path, "cuda")


class Weighted(Trainer):
    """A subclass with another loss."""

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


class Scaled(Trainer):
    """Scales losses as fp16 does, by a power of two, on a CPU."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)


def test_scaled_losses_change_no_bit(tmp_path: Path) -> None:
    tickets = []
    for cls in (Trainer, Scaled):
        callback = pruning("isp")
        trainer = make(tmp_path, callback, cls=cls, max_grad_norm=0.0)
        trainer.train()
        tickets.append(callback.ticket())
    assert trainer.accelerator.scaler.get_scale() == 4096.0  # doubled twice in 12 steps; look-aheads do not count
    assert equal(tickets[0].mask, tickets[1].mask)
    assert equal(tickets[0].weights, tickets[1].weights)


def test_copies_train_on_collated_items_of_a_list_of_tensors(tmp_path: Path) -> None:
    """As the Trainer does; such a list is not a list of columns."""

    def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack(rows)[:, :-1], "labels": torch.stack(rows)[:, -1]}

    rows = [torch.tensor([*each["input_ids"], each["labels"]]) for each in DATA]
    results = []
    for data, trainer in ((DATA, None), (rows, {"data_collator": collate})):
        callback = pruning()
        make(tmp_path, callback, data=data, trainer=trainer, remove_unused_columns=False).train()
        results.append(callback.ticket())
    assert equal(results[0].mask, results[1].mask)
    assert equal(results[0].weights, results[1].weights)


# --- T, logs ----------------------------------------------------------------------------------------------------------


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


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "at"), [("one_shot", 5), ("gradual", 6), ("isp", 5), ("isp", 6)])
def test_a_resumed_run_equals_an_uncut_one_to_the_bit(method: str, at: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": at, "dropout": 0.1}  # 5: at the end of an epoch; 6: within one
    whole = pruning(method)
    trainer = make(tmp_path / "whole", whole, **saving)
    trainer.train()
    half = pruning(method)
    cut = At("on_save", lambda args, state, control: setattr(control, "should_training_stop", True))
    stop = make(tmp_path / "cut", half, **saving, others=[cut])
    with nullcontext() if method == "one_shot" else pytest.warns(UserWarning, match=f"ended after {at} of 12 updates"):
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


def interrupted(folder: Path, callback: PruningCallback, **changed: Any) -> Path:
    """The checkpoint at step 4 of a longer run."""
    stop = At("on_save", lambda args, state, control: setattr(control, "should_training_stop", True))
    trainer = make(folder, callback, others=[stop], save_strategy="steps", save_steps=4, **changed)
    trainer.train()
    return folder / "checkpoint-4"


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "method": ({"method": "random"}, {}, "method is 'one_shot' in the state and 'random' here"),
    "sparsity": ({"sparsity": 0.7}, {}, "sparsity is '0.8000' in the state and '0.7000' here"),
    "T": ({}, {"max_steps": 20}, "steps is 12 in the state and 20 here"),
    "batch size": (
        {},
        {"per_device_train_batch_size": 4},
        "total_batch_size must be 8 as in the .* run, got 4",
    ),
    "accumulation": (
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "gradient_accumulation_steps must be 1 as in the interrupted run, got 2",
    ),
}


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path, pruning("one_shot"))
    before = (checkpoint / STATE).read_bytes()
    for callback, changed, message in OTHERS.values():
        with pytest.raises(ConfigError, match=message):
            make(tmp_path, pruning(**{"method": "one_shot", **callback}), **changed).train(
                resume_from_checkpoint=str(checkpoint)
            )
    (checkpoint / STATE).write_bytes(before[:-8])
    with pytest.raises(ArtifactError, match=f"{STATE}.*or resume from another checkpoint"):
        make(tmp_path, pruning("one_shot")).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE).unlink()
    with pytest.raises(ConfigError, match="checkpoint-4: contains no state of the pruner"):
        make(tmp_path, pruning("one_shot")).train(resume_from_checkpoint=str(checkpoint))


def test_checkpoints_hold_no_pickle_of_ours_and_are_rotated(tmp_path: Path) -> None:
    callback = pruning("one_shot")
    make(tmp_path, callback, save_strategy="steps", save_steps=3, save_total_limit=2).train()
    folders = sorted(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    assert [folder.name for folder in folders] == ["checkpoint-9", "checkpoint-12"]
    assert all((folder / STATE).exists() for folder in folders)
    assert not list(tmp_path.rglob("*.part*"))


# --- two processes ----------------------------------------------------------------------------------------------------


def check_two_processes(folder: Path) -> None:
    """Compare runs of this rank and another with those of one process, and resume from one of those."""
    rank = str(dist.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # of no use, the processes are connected
    expected = torch.load(folder / "expected.pt")
    # transformers 5.23 multiplies a loss by the number of processes to undo a mean over tokens which a BERT classifier
    # does not take; without that both runs have the same gradients
    changed = {"train_sampling_strategy": "sequential", "average_tokens_across_devices": False}
    for method in ("isp", "snip"):
        callback = pruning(method)
        trainer = make(folder / method, callback, per_device_train_batch_size=4, **changed)
        assert trainer.args.world_size == 2
        trainer.train()
        ticket = callback.ticket()
        assert equal(ticket.mask, expected[method]["mask"])
        torch.testing.assert_close(ticket.weights, expected[method]["weights"], rtol=0, atol=2e-5)
    with pytest.raises(ConfigError, match="world_size is 1 in the state and 2 here"):
        make(folder / "one", pruning("isp"), per_device_train_batch_size=4).train(
            resume_from_checkpoint=str(folder / "one" / "checkpoint-12")
        )


@pytest.mark.process
def test_two_processes_prune_as_one_does(tmp_path: Path) -> None:
    expected = {}
    for method in ("snip", "isp"):
        callback = pruning(method)
        saving = {"train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": 12}
        make(tmp_path / "one", callback, **saving).train()
        expected[method] = {"mask": callback.ticket().mask, "weights": callback.ticket().weights}
    torch.save(expected, tmp_path / "expected.pt")
    assert run_checks({"all": partial(check_two_processes, tmp_path)}, 2, tmp_path) == {"all": ""}


# --- the best model, early ends ---------------------------------------------------------------------------------------


def evaluated(folder: Path, callback: PruningCallback, **changed: Any) -> Trainer:
    """A Trainer whose every evaluation is worse than that before, so that the first one would be the best."""
    scores = count()
    given: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    given |= {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    evaluation = {"eval_dataset": DATA[:8], "compute_metrics": lambda predictions: {"score": -next(scores)}}
    return make(folder, callback, trainer=evaluation, **given | changed)


def test_the_best_model_is_one_under_the_final_mask(tmp_path: Path) -> None:
    callback = pruning("gradual")
    trainer = evaluated(tmp_path, callback, save_total_limit=3)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint).name
    logged = {e["step"]: e["sparsity"] for e in trainer.state.log_history if "eval_score" in e}
    first = min(step for step, sparsity in logged.items() if sparsity == callback.pruner.sparsity)  # type: ignore[union-attr]
    assert 1 < first < 12
    assert best == f"checkpoint-{first}"
    ticket = callback.ticket()  # asserts that no masked weight came back
    assert all(equal({n: ticket.weights[n]}, {n: trainer.model.state_dict()[n]}) for n in ticket.mask)


def test_early_stopping_has_patience_until_the_target(tmp_path: Path) -> None:
    callback = pruning("gradual")
    trainer = evaluated(tmp_path, callback, others=[EarlyStoppingCallback(early_stopping_patience=1)])
    trainer.train()
    sparsities = [entry["sparsity"] for entry in trainer.state.log_history if "eval_score" in entry]
    assert sparsities[-1] == sparsities[-2] == callback.pruner.sparsity  # type: ignore[union-attr]
    assert sparsities[-3] < sparsities[-2]
    callback.ticket()


def test_an_end_before_the_target_is_told(tmp_path: Path) -> None:
    callback = pruning("gradual")
    stop = At("on_step_end", lambda args, state, control: setattr(control, "should_training_stop", True))
    with pytest.warns(UserWarning, match=r"ended after 1 of 12 updates at sparsity 0\.\d+, below the target 0.8"):
        make(tmp_path, callback, others=[stop]).train()
    with pytest.raises(ConfigError, match="after 1 of 12 steps"):
        callback.ticket()


# --- afterwards -------------------------------------------------------------------------------------------------------


def test_the_model_is_the_ticket_and_can_be_saved_and_trained_on(tmp_path: Path) -> None:
    callback = pruning("one_shot")
    trainer = make(tmp_path, callback)
    trainer.train()
    ticket = callback.ticket()
    trainer.save_model(str(tmp_path / "saved"))
    saved = dict(BertForSequenceClassification.from_pretrained(tmp_path / "saved").state_dict())
    assert equal(saved, state(trainer))
    assert all(not saved[name][~kept].any() for name, kept in ticket.mask.items())
    isp.save_ticket(tmp_path / "ticket.safetensors", ticket)
    loaded = isp.load_ticket(tmp_path / "ticket.safetensors", bert())
    assert equal(loaded.weights, ticket.weights)
    first = callback.pruner
    trainer.train()  # from here, with a new pruner; the hooks of the first are gone
    assert callback.pruner is not first
    assert callback.pruner.steps_done == 12  # type: ignore[union-attr]
    loss = trainer.model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([1])).loss
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.step()  # nobody counts any more


def test_a_model_that_the_trainer_makes_itself_is_pruned(tmp_path: Path) -> None:
    callback = pruning("one_shot")
    trainer = Trainer(
        args=arguments(tmp_path, max_steps=3), model_init=lambda: bert(), train_dataset=DATA, callbacks=[callback]
    )
    trainer.train()
    name = next(iter(callback.ticket().mask))
    assert not trainer.model.state_dict()[name][~callback.ticket().mask[name]].any()


# --- bad input --------------------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from DATA


class Sized(Stream):
    def __len__(self) -> int:
        return len(DATA)


def test_streams_are_pruned_without_look_aheads_and_refused_with_them(tmp_path: Path) -> None:
    for stream in (Stream(), Sized()):
        callback = pruning("gradual")
        make(tmp_path, callback, data=stream).train()
        assert float(callback.ticket().sparsity) == 0.8
        with pytest.raises(ConfigError, match="'isp' trains look-ahead copies on examples drawn by number"):
            make(tmp_path, pruning("isp"), data=stream).train()
    with pytest.raises(ValueError, match="max_steps"):  # the Trainer's own
        make(tmp_path, pruning("gradual"), data=Stream(), max_steps=-1).train()


def test_what_cannot_be_is_refused_before_an_update(tmp_path: Path) -> None:
    for given, message in (
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"settings": {"rte": 0.1}}, "rte"),
    ):
        with pytest.raises(ConfigError, match=message):
            pruning(**{"method": "isp", **given})
    before = dict(bert().state_dict())
    for callback, changed, message in (
        (pruning("isp"), {"max_steps": 2}, "rounds exceed the budget.*the budget is 2 steps"),
        (pruning("lth"), {}, "method 'lth'.*trains the model more than once"),
    ):
        trainer = make(tmp_path, callback, **changed)
        with pytest.raises(ConfigError, match=message):
            trainer.train()
        assert equal(state(trainer), before)
    with pytest.raises(ConfigError, match="the model has not been trained"):
        pruning().ticket()
    with pytest.raises(ConfigError, match="must be a callback of a transformers"):
        pruning().on_train_begin(None, None, None)


def test_a_batch_larger_than_the_data_set_is_pruned_without_flops(tmp_path: Path) -> None:
    callback = pruning("gradual")
    make(tmp_path, callback, per_device_train_batch_size=100, max_steps=4).train()
    assert callback.ticket().cost.flops == 0
    assert callback.ticket().cost.steps == 4


def test_adapters_are_pruned_only_by_pattern(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        return get_peft_model(
            bert(), LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
        )

    def trained(callback: PruningCallback) -> Trainer:
        trainer = Trainer(adapted(), arguments(tmp_path, max_steps=4), train_dataset=DATA, callbacks=[callback])
        trainer.train()
        return trainer

    with pytest.raises(ConfigError, match=r"LoRA adapters.*prunable="):
        trained(PruningCallback(method="one_shot", sparsity=0.5))
    callback = PruningCallback(method="one_shot", sparsity=0.5, prunable=["*lora_A*"])
    trained(callback)
    assert {name.split(".")[-3] for name in callback.ticket().mask} == {"lora_A"}


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "isp.integrations.transformers")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[trainer\]'"):
        import isp.integrations.transformers  # noqa: F401


@pytest.mark.process
def test_isp_imports_neither_library() -> None:
    code = "import isp, sys; isp.Pruner; print({'transformers', 'accelerate'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_run_that_was_interrupted_changes_no_later_one(tmp_path: Path) -> None:
    """Ctrl-C leaves `train` without `on_train_end`; another callback on the same model then closes the pruner."""

    def stop(args: Any, state: Any, control: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    fresh = pruning("gradual")
    make(tmp_path / "a", fresh).train()
    interrupted = make(tmp_path / "b", pruning("one_shot"), others=[At("on_step_end", stop)])
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    interrupted.model.load_state_dict(bert().state_dict())
    again = pruning("gradual")
    trainer = Trainer(interrupted.model, arguments(tmp_path / "c"), train_dataset=DATA, callbacks=[again])
    with pytest.warns(UserWarning, match=r"closed a Pruner \(method 'one_shot', after 3 of 12 steps\)"):
        trainer.train()
    assert equal(again.ticket().weights, fresh.ticket().weights)
