"""`PruningCallback`: `isp.Pruner` in the Trainer of transformers.

    Trainer(model, args, train_dataset=data, callbacks=[PruningCallback(method="isp", sparsity=0.9)]).train()

Needs transformers and accelerate, the extra `isp[trainer]`.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import IterableDataset

from isp.artifacts import load_checkpoint, save_checkpoint
from isp.copies import LookAhead
from isp.errors import ArtifactError, ConfigError
from isp.examples import Dataset
from isp.families import make_method
from isp.pruner import Pruner
from isp.sparsity import parse_sparsity
from isp.tickets import Ticket

try:
    import accelerate  # noqa: F401  # the Trainer fails without it, but only when it is made
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        f"isp.integrations.transformers needs transformers and accelerate ({error}); in a clone of isp, run "
        "pip install '.[trainer]'"
    ) from error

STATE = "isp_pruner.safetensors"
"""File in a checkpoint folder of the Trainer that holds the state of the pruner."""


class PruningCallback(TrainerCallback):
    """Prunes the model that a Trainer trains with a method of the families one_shot, single_pass or denoised.

    T is the number of updates that the Trainer plans. Look-ahead copies train on random examples of the train dataset,
    batched by the loader's collate function. Each of their updates repeats one of the Trainer's: `training_step` for
    every micro-batch (including its `compute_loss`, label smoothing and autocast), clipping, the optimizer and the
    scheduler, but without logs and callbacks.

    A callback does not receive its Trainer, but look-aheads need it, because users often override `compute_loss`. At
    the beginning of training the callback therefore searches the callers of `on_train_begin` for the Trainer: the
    nearest method of a `Trainer` that lists this callback. This needs no second line of user code, also finds the
    folder from which training resumes, and relies only on Trainers calling their callbacks.

    It then moves to the front of the Trainer's callbacks, so that all others see the pruned model and complete logs.

    - Logs: every entry has "sparsity". Each round of look-aheads has its own entry with the number of the round, the
      fraction of kept weights that the denoisers changed, and the agreement of the copies.
    - Checkpoints contain the pruner's state, and `train(resume_from_checkpoint=…)` resumes to the bit.
    - Best model: the Trainer's best metric is reset whenever the mask changes or is below the target sparsity.
      Therefore only checkpoints under the final mask can be the best one, and the patience of `EarlyStoppingCallback`
      begins there.
    - After training the model contains the ticket as plain weights, so both `trainer.save_model` and `ticket` have it.

    Args:
        sparsity: Fraction of the prunable weights that are zero at the end, in (0, 1), at most four decimals.
        method: Name of the method, or path of its file; `isp list methods` lists the names.
        settings: Settings of the method; see its file.
        prunable: Patterns of prunable parameters; default: `isp.prunable.prunable_names`. Needed for LoRA adapters.
        exclude: Patterns of parameters that are never pruned, such as "classifier.*".
        seed: Seed of the method's random choices; default: that of the training arguments.

    Attributes:
        pruner: The `Pruner` of the latest `train()`, or None before the first.

    Raises:
        ConfigError: If the method, a setting or the sparsity is invalid. When training begins, also if `Pruner` refuses
            its arguments; with FSDP, DeepSpeed or tensor parallelism; for look-aheads on a dataset that is not
            indexed by number; and for a checkpoint without the pruner's state or with that of another run.
    """

    def __init__(
        self,
        *,
        sparsity: float | str | Decimal,
        method: str = "isp_mean",
        settings: Mapping[str, Any] | None = None,
        prunable: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int | None = None,
    ) -> None:
        parse_sparsity(sparsity)
        make_method(method, settings)
        self.pruner: Pruner | None = None
        self._sparsity, self._method, self._settings = sparsity, method, dict(settings or {})
        self._prunable, self._exclude, self._seed = prunable, exclude, seed
        self._trainer: Any = None

    def ticket(self) -> Ticket:
        """Return the ticket as `isp.prune` does, for `isp.save_ticket` and `isp.export`.

        Raises:
            ConfigError: If there was no training yet, or it ended before the target sparsity was reached.
        """
        if self.pruner is None:
            raise ConfigError("PruningCallback.ticket(): the model has not been trained; call trainer.train() first")
        return self.pruner.ticket()

    # --- events of the Trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach a pruner to the model and the optimizer, or resume that of the checkpoint."""
        trainer, checkpoint = _find_trainer(self)
        _check_supported(trainer)
        if checkpoint is None and state.global_step:
            raise ConfigError(
                f"PruningCallback: training resumes at step {state.global_step} from an unknown folder; call "
                "trainer.train(resume_from_checkpoint=…)"
            )
        others = trainer.callback_handler.callbacks
        others.remove(self)
        others.insert(0, self)
        self.close()
        self._trainer = trainer
        self.pruner = self._make_pruner(args, state, kwargs["train_dataloader"], checkpoint)
        if checkpoint is None:
            self._log_rounds(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune after an update, if the schedule says so."""
        pruner = self._running()
        rounds = len(pruner.record)
        changed = pruner.step()
        if changed or not pruner.reached:
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        if changed:
            self._log_rounds(rounds)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the sparsity to a log entry."""
        if self.pruner is None or logs is None:
            return
        logs["sparsity"] = self.pruner.sparsity
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1]["sparsity"] = self.pruner.sparsity

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the pruner's state into the checkpoint that was just written."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if not args.should_save or not folder.is_dir():  # a hyperparameter search uses other folders and never resumes
            return
        tensors = self._running().state_dict()
        content = json.loads(tensors.pop("about"))
        save_checkpoint(folder / STATE, tensors, content, self._batches(args))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach the pruner, and warn if the target sparsity was not reached."""
        pruner = self._running()
        self.close()
        if not pruner.reached:
            warnings.warn(
                f"PruningCallback: training ended after {pruner.steps_done} of {state.max_steps} updates at sparsity "
                f"{pruner.sparsity:.4f}, below the target {self._sparsity}. Resume training from a checkpoint, or plan "
                "fewer updates (max_steps, num_train_epochs), to which the schedule then adapts",
                stacklevel=2,
            )

    def close(self) -> None:
        """Remove the pruner's hooks from the model and the optimizer; called at the end of training."""
        if self.pruner is not None:
            self.pruner.close()

    # --- internals

    def _running(self) -> Pruner:
        assert self.pruner is not None
        return self.pruner

    def _make_pruner(self, args: Any, state: Any, loader: Any, checkpoint: Path | None) -> Pruner:
        trainer = self._trainer
        size = trainer.get_total_train_batch_size(args) // args.world_size
        micro = size // args.gradient_accumulation_steps
        dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
        by_number = collate is not None and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        by_number = by_number and not isinstance(dataset, IterableDataset)  # it inherits a __getitem__ that fails
        if not by_number and isinstance(make_method(self._method, self._settings).settings, LookAhead):
            raise ConfigError(
                f"PruningCallback: method {self._method!r} trains look-ahead copies on examples drawn by number, which "
                f"a train dataset of type {type(dataset).__name__} does not support; pass a map-style dataset, or "
                "choose a method without look-aheads, such as gradual"
            )

        def cut(items: list[Any]) -> list[Any]:
            """Form the micro-batches of one update in one process."""
            assert collate is not None
            return [collate(items[start : start + micro]) for start in range(0, len(items), micro)]

        # The Trainer's loader collates the items of a list of tensors, which Pruner would use as columns.
        data = Dataset(dataset, cut, next(trainer.model.parameters()), "train_dataset") if by_number else None
        updates = math.ceil(len(loader) / args.gradient_accumulation_steps) if by_number else None
        return Pruner(
            trainer.model,
            trainer.optimizer,
            sparsity=self._sparsity,
            steps=state.max_steps,
            method=self._method,
            settings=self._settings,
            prunable=self._prunable,
            exclude=self._exclude,
            seed=args.seed if self._seed is None else self._seed,
            train_step=self._train_step if by_number else None,
            data=data,
            batch_size=size,
            steps_per_epoch=updates,
            loss=self._loss if by_number else None,
            scheduler=trainer.lr_scheduler,
            scaler=trainer.accelerator.scaler,
            state=None if checkpoint is None else self._load(checkpoint, args, state),
        )

    def _load(self, checkpoint: Path, args: Any, state: Any) -> dict[str, Any]:
        """Read the pruner's state from a checkpoint of the Trainer."""
        path = checkpoint / STATE
        if not path.exists():
            raise ConfigError(
                f"{checkpoint}: contains no state of the pruner ({STATE}), because it was saved without "
                "PruningCallback or the run was killed while writing it. Resume from another checkpoint, or train from "
                "the beginning"
            )
        try:
            tensors, content, about = load_checkpoint(path)
        except ArtifactError as error:
            raise ArtifactError(f"{error} (or resume from another checkpoint)", error.kind) from None
        for key, ours in self._batches(args).items():
            if about.get(key) != ours:
                raise ConfigError(
                    f"{path}: {key} must be {about.get(key)} as in the interrupted run, got {ours}; look-aheads would "
                    "train on other batches. Resume with the original batch size and accumulation"
                )
        return {"about": json.dumps(content), **tensors}

    def _batches(self, args: Any) -> dict[str, int]:
        """Return the batch sizes that, besides the number of processes, must be the same after a resume."""
        return {
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "total_batch_size": self._trainer.get_total_train_batch_size(args),
        }

    def _train_step(self, micro_batches: list[Any]) -> None:
        """Make one update of a look-ahead copy as the Trainer's loop does."""
        trainer, args = self._trainer, self._trainer.args
        model, accelerator = trainer.model_wrapped, trainer.accelerator
        batches, num_items = trainer.get_batch_samples(iter(micro_batches), len(micro_batches), args.device)
        trainer.current_gradient_accumulation_steps = len(batches)
        for number, inputs in enumerate(batches, start=1):
            last = number == len(batches)
            accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else accelerator.no_sync(model=model):
                trainer.training_step(model, inputs, num_items)
        if args.max_grad_norm > 0:
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        trainer.optimizer.step()
        if not accelerator.optimizer_step_was_skipped and not _steps_by_metrics(trainer.lr_scheduler):
            trainer.lr_scheduler.step()
        model.zero_grad()

    def _loss(self, model: nn.Module, micro_batches: list[Any]) -> Tensor:
        """Compute the Trainer's loss of one update, the mean over its micro-batches."""
        trainer = self._trainer
        losses = [trainer.compute_loss(model, trainer._prepare_inputs(inputs)) for inputs in micro_batches]
        total: Tensor = sum(losses[1:], losses[0])
        return total / len(losses)

    def _log_rounds(self, before: int) -> None:
        """Log the effect of the denoisers in the rounds after the first `before` ones."""
        for entry in self._running().record[before:]:
            if "changed" in entry:
                logs = {f"pruning_{key}": entry[key] for key in ("round", "changed", "agreement")}
                self._trainer.log({key: value for key, value in logs.items() if value is not None})


def _find_trainer(callback: PruningCallback) -> tuple[Any, Path | None]:
    """Return the Trainer that calls this callback, and the checkpoint from which it resumes."""
    trainer: Any = None
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if trainer is None and isinstance(caller, Trainer) and callback in caller.callback_handler.callbacks:
            trainer = caller
        if trainer is not None and caller is trainer and "resume_from_checkpoint" in frame.f_locals:
            folder = frame.f_locals["resume_from_checkpoint"]
            return trainer, Path(folder) if isinstance(folder, str | os.PathLike) else None
        frame = frame.f_back
    if trainer is not None:
        return trainer, None
    raise ConfigError(
        "PruningCallback: must be a callback of a transformers.Trainer or of a subclass, and be called by its loop"
    )


def _check_supported(trainer: Trainer) -> None:
    """Refuse ways of splitting a model after which processes do not have whole parameters."""
    split = {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}
    split["tensor parallelism"] = getattr(trainer.model, "_tp_size", None) not in (None, 1)
    for name, enabled in split.items():
        if enabled:
            raise ConfigError(
                f"PruningCallback: {name} splits parameters over processes, but masks need whole parameters; train on "
                "one device or under DDP"
            )


def _steps_by_metrics(scheduler: Any) -> bool:
    """Return whether a scheduler is stepped with metrics after evaluations instead of after updates."""
    return "metrics" in inspect.signature(type(scheduler).step).parameters
