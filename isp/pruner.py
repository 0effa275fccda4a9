"""`Pruner`: a method of this package in an existing training loop.

The loop stays unchanged except for a call of `pruner.step()` after every `optimizer.step()`. A loop that repeats
`isp.prune` (the same batches, schedule and seeds) gives the same masks and weights to the bit; see
examples/plain_loop.py.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from isp import attached, masks, rng
from isp.checkpoints import pack, unpack
from isp.copies import LookAhead, Member
from isp.costs import Cost, StepFlops
from isp.divergence import explain_computed, first_not_finite
from isp.errors import ConfigError, MaskError, shown
from isp.examples import Collate, Dataset, make_examples
from isp.families import (
    Method,
    attach,
    check_function,
    check_layers,
    check_reachable,
    make_method,
    patterns_of,
    planned_steps,
)
from isp.families.denoised import check_subset
from isp.losses import default_loss
from isp.masked import DIVERGED, MaskedParameters
from isp.masks import Mask, Weights
from isp.prunable import input_dims, prunable_names
from isp.ranks import Ranks
from isp.seeds import integer
from isp.settings import parse
from isp.snapshot import restored, undisturbed
from isp.sparsity import num_pruned, parse_sparsity
from isp.tensors import by_all_names, check_module, tensors_of, unwrapped
from isp.tickets import Ticket, check_ticket
from isp.training import (
    BatchOrder,
    Examples,
    LossFunction,
    State,
    Trainer,
    Training,
    TrainingDiverged,
    lengths_of,
    make_trainer,
    state_of,
)

VERSION = 1
"""Version of the content of `state_dict`."""
TENSOR = "tensor "
"""Beginning of the keys of tensors in a `state_dict`."""


class Pruner:
    """Prunes a model while an existing training loop trains it.

    Masked weights, and the moments that the optimizer keeps for them, are exactly zero after every step. The gradient
    of a masked weight is set to zero as soon as it is accumulated, before it is clipped or read, and again before each
    update, in case other code has written to it, such as gradient noise. A model in half precision is pruned without
    fp32 master weights, so use autocast with a model in fp32, or an optimizer with its own master weights.

    Under FSDP2, masks and moments are sharded like the parameters, and all ranks must call the constructor, `step`,
    `ticket` and `load_state_dict`; docs/how-to/distributed.md lists the supported features.

    Call `close` when the run ends, also if it ends early. A pruner that is still attached is closed as soon as another
    `Pruner` or `isp.prune` begins on one of its parameters, or another optimizer updates one, which has then had its
    gradients masked in that update. This warns, except at the beginning of a run if the earlier one was complete
    (T steps, or its ticket was returned). Several pruners of disjoint parameters do not affect each other; if one has
    look-aheads, all must be of one optimizer.

    Args:
        model: Model in training; one wrapped by `DistributedDataParallel`, `DataParallel` or `torch.compile` is
            unwrapped.
        optimizer: Its optimizer, with all prunable parameters. A wrapper such as accelerate's is unwrapped.
        sparsity: Fraction of the prunable weights that are zero at the end, in (0, 1), at most four decimals.
        steps: T, number of updates that the loop makes; schedules of methods are fractions of it.
        method: Method of the families one_shot, single_pass or denoised; `isp list methods` lists the names.
        settings: Settings of the method; see its file.
        prunable: Patterns of prunable parameters; default: `isp.prunable.prunable_names`.
        exclude: Patterns of parameters that are never pruned, such as "classifier.*".
        seed: Seed of the method's random choices: protocols and data of look-ahead copies, scores.
        train_step: Function, for look-aheads, that makes one update of the model on a batch with this optimizer as the
            loop does: forward, backward, clipping, `optimizer.step()`, `zero_grad()`, and `scheduler.step()` if there
            is one. It must have no other effects, such as logs, averages of weights or updates by other optimizers.
        data: Training examples, for look-aheads and for scores that need them, in any form that `isp.prune` accepts; a
            `DataLoader`, whose dataset, collate function and batch size are used, and whose sampler must not leave out
            examples; or a function of a seed that returns an iterable of batches, from which each copy takes its own.
        collate: Function that forms a batch from a list of items of a map-style dataset; default for a `DataLoader`:
            its own.
        batch_size: Number of examples of one update in one process, including accumulation. Default: the loader's.
        steps_per_epoch: Updates per epoch, the unit of ISP's segments. Default: whole batches in `data`.
        loss: Function from (model, batch) to a scalar, for scores that need it (default: that of `isp.prune`) and for
            counting FLOPs, which are 0 in the ticket without it, or if the data do not fill a batch.
        scheduler: Learning-rate scheduler; restored after look-aheads.
        scaler: A `GradScaler`. A step that it skips counts as one of T. One that is not enabled counts as none.
        look_aheads: How several processes train the copies. "alike": all processes train each copy, every one on its
            part of the batch, so `train_step` must average gradients, as a model under `DistributedDataParallel` does.
            "shared": each process trains some of the copies alone, on whole batches of `batch_size` times the number of
            processes, so `train_step` must not communicate and must use the wrapped module.
        scale_learning_rate: Whether the learning rates of a copy's updates are multiplied by the factor that it draws.
            False: `train_step` does so itself, with `learning_rate_factor`.
        state: Result of `state_dict`, for resuming in a loop that loads the model and the optimizer before it creates
            the pruner: nothing is pruned at step 0, and the state is loaded as in `load_state_dict`.

    Attributes:
        mask: Current mask, True = kept; None before the first.
        sparsity: Fraction of the prunable weights that the current mask drops, in [0, 1).
        steps_done: Number of calls of `step` so far.
        record: Records of the rounds, as in a ticket.
        learning_rate_factor: Factor of the look-ahead copy in training; 1 outside of one.
        optimizer: Optimizer of the run, unwrapped.
        num_updates: Number of its updates, including those of look-aheads.

    Raises:
        ConfigError: If the method needs its own loop, T is too short for the schedule, the optimizer lacks prunable
            parameters, or an argument that the method needs is missing.
        MaskError: If a weight is NaN, which has no rank; also raised by `step`.
        TrainingDiverged: Raised by `step` if a look-ahead copy diverges; its `state` has the run's weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        sparsity: float | str | Decimal,
        steps: int,
        method: str = "isp_mean",
        settings: Mapping[str, Any] | None = None,
        prunable: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
        train_step: Callable[[Any], Any] | None = None,
        data: Any = None,
        collate: Collate | None = None,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        loss: LossFunction | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        scale_learning_rate: bool = True,
        look_aheads: Literal["alike", "shared"] = "alike",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self.optimizer = unwrapped(check_module("model", model)), _unwrapped_optimizer(optimizer)
        self._rewrites = _may_rewrite(optimizer)
        _reshard(self._model)
        self._method = make_method(method, settings)
        self._sparsity = parse_sparsity(sparsity)
        seed = integer("seed", seed)
        batch_size = None if batch_size is None else integer("batch_size", batch_size, least=1)
        steps_per_epoch = None if steps_per_epoch is None else integer("steps_per_epoch", steps_per_epoch, least=1)
        check_function("loss", loss, "(model, batch)")
        check_function("train_step", train_step, "a batch")
        check_function("collate", collate, "a list of items")
        prunable = None if prunable is None else patterns_of("prunable", prunable)
        names = prunable_names(self._model, prunable, patterns_of("exclude", exclude))
        self._train_step, self._scaler, self._ranks = train_step, scaler, Ranks.here()
        self._masked = MaskedParameters(self._model, names, self.optimizer, self._ranks)
        self._parameters = self._masked.parameters
        _check_optimizer(self.optimizer, self._parameters)
        if look_aheads not in ("alike", "shared"):
            raise ConfigError(f"look_aheads = {look_aheads!r}: must be 'alike' or 'shared'")
        self._shared = look_aheads == "shared" and self._ranks.size > 1
        if self._shared and self._masked.layout is not None:
            raise ConfigError("look_aheads = 'shared': every step of a sharded model communicates; use 'alike'")
        self._others = {"scheduler": scheduler, "scaler": scaler}
        self._others = {name: other for name, other in self._others.items() if other is not None}
        for name, other in self._others.items():
            _check_stateful(name, other)
        if scaler is not None and not scaler.is_enabled():  # it skips no update
            self._scaler = None
        self._scales = scale_learning_rate
        self._source = data if callable(data) and not hasattr(data, "__getitem__") else None
        examples, batch_size = self._examples(data, collate, batch_size)
        training = _protocol(steps, (batch_size or 1) * self._ranks.size)
        num_examples = len(examples)
        if steps_per_epoch is not None:
            num_examples = steps_per_epoch * training.batch_size
        self.steps_per_epoch = num_examples // training.batch_size
        counts = data is not None and self._source is None and loss is not None and self._masked.layout is None
        counts = counts and len(examples) >= training.batch_size  # otherwise there is no batch to count on
        self.trainer = self._trainer(examples, loss, training, names, seed, counts)
        self.steps_done = 0
        self.learning_rate_factor = 1.0
        self._samples = 0 if batch_size is None else training.batch_size
        self._finding, self._since = Cost(), 0  # cost until the last change of the mask, and the steps since then
        self._stepped = self._copying = self._unchecked = self._loaded = self._closed = self._closure = False
        self._updated = False  # whether there was an update that the scaler did not skip, for methods that observe
        self._observed = False  # whether a method that observes has seen gradients
        self._copy_updates = 0
        self._rates: list[Any] | None = None  # rates of a copy with its own schedule
        self._unscaled: list[Any] = []
        self.num_updates = 0
        self._delivered = False  # whether a ticket was returned
        self._gradients: dict[str, Tensor] = {}
        self._check_needs(data, steps_per_epoch)
        planned_steps(_on_all_examples(self._method), training, num_examples, [self._sparsity])
        check_reachable(self._sparsity, masks.num_weights(self._parameters))
        self._attached = attach(self._method, self._sparsity, self)
        check_layers(self._method, self.trainer, State(step=0, weights=tensors_of(self._model)))
        attached.detach(self._parameters.values(), "isp.Pruner()", stacklevel=2)
        self._handles = self._register()
        try:
            if state is None:
                self._look()
            else:
                self.load_state_dict(state)
        except BaseException:
            self.close()
            raise

    # --- interface for a loop

    def step(self) -> bool:
        """Register an update of the optimizer, and prune if the schedule says so; call it at the end of each step.

        Inside `train_step`, while a look-ahead copy is trained, this does nothing.

        Returns:
            Whether the mask changed.

        Raises:
            ConfigError: If the optimizer has made no update since the last call, the pruner is closed, the method needs
                gradients that it did not see, or a round is overdue. After an error in a look-ahead or a ranking,
                nothing has changed, and `step` can be called again. Also raised if a pruned parameter was replaced, or
                other code has written to masked weights in place.
            MaskError: If a weight is NaN.
        """
        if self._copying or attached.is_looking_ahead(self.optimizer):
            return False
        if self._closed:
            raise ConfigError(
                f"pruner.step(): the pruner was closed after {self.steps_done} steps, so it no longer prunes; call "
                "pruner.close() after the last step, or create another Pruner"
            )
        if not self._stepped and self._scaler is None:
            raise ConfigError(
                f"pruner.step(): optimizer.step() was not called since the last call, after {self.steps_done} steps; "
                "call pruner.step() once after every optimizer.step(), and pass scaler= if a GradScaler may skip some"
            )
        if not self._stepped:
            self._gradients.clear()  # the scaler skipped the update, so the method must not see its gradients
        if self.steps_done & (self.steps_done - 1) == 0:  # 0, 1, 2, 4, 8, …: soon, and at no measurable cost
            self._masked.check_in_place("pruner.step()")
        if self._rewrites:
            self._masked.apply()
        else:
            self._masked.check_written("pruner.step()", self.steps_done)
        with self._undone_by_errors():
            self._stepped = False
            self.steps_done += 1
            self._since += 1
            changed = self.steps_done < self.trainer.training.steps and self._look()
        self._masked.remember_writes()
        return changed

    @property
    def mask(self) -> Mask | None:
        """Current mask, True = kept; None before the first."""
        return self._masked.mask

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that the current mask drops, in [0, 1)."""
        return self._masked.sparsity

    @property
    def record(self) -> list[dict[str, Any]]:
        """Records of the rounds so far; for a method that prunes within one run, one record of all its events."""
        return list(self._attached.rounds)

    @property
    def reached(self) -> bool:
        """Whether the current mask has exactly the target sparsity."""
        wanted, dropped = self._pruned()
        return dropped == wanted

    def ticket(self) -> Ticket:
        """Return the ticket as `isp.prune` does: mask, a copy of the weights, cost and records.

        For a sharded model, every rank gets the whole ticket.

        Raises:
            ConfigError: If the mask does not have the target sparsity yet, a pruned parameter was replaced, or masked
                weights are not zero.
            MaskError: If a weight of the model is NaN or infinite.
        """
        self._masked.check_in_place("pruner.ticket()")
        wanted, dropped = self._pruned()
        if self.mask is None or dropped != wanted:
            total = masks.num_weights(self._parameters)
            raise ConfigError(
                f"pruner.ticket(): after {self.steps_done} of {self.trainer.training.steps} steps {dropped} of {total} "
                f"weights are pruned, but the target is {wanted}; train further, or pass the loop's number of steps"
            )
        self._masked.check_zeros("pruner.ticket()", self.steps_done)
        weights = tensors_of(self._model)
        trained = {name: weights[name] for name, p in self._model.named_parameters() if p.requires_grad}
        if (broken := first_not_finite(trained)) is not None:
            raise MaskError(f"pruner.ticket(): {self._not_finite(broken)}")
        retraining = self._cost(self._since)
        ticket = Ticket(
            method=self._method.name,
            sparsity=self._sparsity,
            mask=masks.gathered(self.mask),
            weights=by_all_names(masks.gathered(weights), self._model),
            finding=self._finding,
            retraining=retraining,
            rounds=self.record,
            origin=self._origin(),
        )
        check_ticket(ticket)
        self._delivered = True
        return ticket

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name, and a text with the rest, from which `load_state_dict` continues to the bit.

        The tensors are copies, which further training does not change. The model, the optimizer, the scheduler and the
        scaler have their own state.

        Raises:
            ConfigError: If `step` was not called after the last update, or raised an error: a run that continued from
                such a state would make that step twice.
        """
        if self._stepped:
            raise ConfigError(
                f"pruner.state_dict(): called between optimizer.step() and pruner.step(), after {self.steps_done} "
                "steps; call it after pruner.step()"
            )
        tensors: dict[str, Tensor] = {}
        at = self._attached.at
        content = {
            "at": {each.name: getattr(at, each.name) for each in fields(at)},
            "finding": self._finding,
            "since": self._since,
            "steps_done": self.steps_done,
        }
        about = {**self._identity(), "content": pack(content, tensors)}
        return {"about": json.dumps(about), **{f"{TENSOR}{key}": tensor.clone() for key, tensor in tensors.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a result of `state_dict`, which is not changed; load the model and the optimizer as well.

        Raises:
            ConfigError: If the state is not one of a pruner, or belongs to another method, settings, T, seed or model,
                or to other steps per epoch if the rounds depend on them.
            MaskError: If its mask belongs to another model.
        """
        about, content = _parts_of(state)
        ours = json.loads(json.dumps(self._identity()))
        for key in sorted({*about, *ours}):
            if key == "steps_per_epoch" and key not in about:  # the state is older than this entry
                continue
            if about.get(key) != ours.get(key):
                raise ConfigError(
                    f"pruner.load_state_dict(): {key} is {about.get(key)!r} in the state and {ours.get(key)!r} here; "
                    "continue with the settings with which the run began"
                )
        tensors = {key.removeprefix(TENSOR): value.clone() for key, value in state.items() if key.startswith(TENSOR)}
        device = next(iter(self._parameters.values())).device  # the run may have been on another one
        try:
            content_ = unpack(content, tensors, device)
        except KeyError as error:
            raise ConfigError(
                f"pruner.load_state_dict(): the state lacks '{TENSOR}{error.args[0]}'; pass the whole result of "
                "pruner.state_dict()"
            ) from None
        if (mask := content_["at"]["mask"]) is not None:
            masks.check_fits(mask, self._parameters)
        self._attached.at = type(self._attached.at)(**content_["at"])
        self._finding, self._since = content_["finding"], content_["since"]
        self._masked.set_mask(mask)
        self._masked.forget_writes()
        self.steps_done = content_["steps_done"]
        self._stepped, self._unchecked, self._loaded = False, True, True

    def apply(self, module: nn.Module) -> None:
        """Set the weights that the mask drops to +0.0 in another module with parameters of the same names.

        Averages of weights over several steps (EMA, SWA) contain weights from before they were dropped. Nothing
        changes as long as there is no mask.

        Args:
            module: Copy of the model, or a `torch.optim.swa_utils.AveragedModel`; wrappers are removed as from the
                model.

        Raises:
            ConfigError: If it is not a module, or lacks a pruned parameter.
            MaskError: If a parameter has another shape.
        """
        module = unwrapped(check_module("module", module))
        module = unwrapped(module.module) if isinstance(module, AveragedModel) else module
        parameters = dict(module.named_parameters())
        mask = self.mask or {}
        for name in mask:
            if name not in parameters:
                raise ConfigError(
                    f"pruner.apply(): the {type(module).__name__} has no parameter {name!r}; pass a copy of the model "
                    "with the same names of parameters"
                )
        copies = {name: parameters[name].detach() for name in mask}
        masks.check_fits(mask, copies)
        masks.apply_({name: kept.to(copies[name].device) for name, kept in mask.items()}, copies)

    def close(self) -> None:
        """Remove the hooks from the model and the optimizer; afterwards training may revive masked weights."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._closed = [], True
        attached.remove(self)

    # --- interface for isp.attached

    @property
    def complete(self) -> bool:
        """Whether the run has ended: after T steps, or after its ticket was returned."""
        return self._delivered or self.steps_done >= self.trainer.training.steps

    @property
    def progress(self) -> str:
        """Description of the run for messages."""
        return f"method {self._method.name!r}, after {self.steps_done} of {self.trainer.training.steps} steps"

    def masks_any(self, parameters: Iterable[Tensor]) -> bool:
        """Return whether one of the parameters has a hook of this pruner."""
        return not self._held.isdisjoint(map(id, parameters))

    # --- interface for a method (isp.families.Loop)

    def spend(self, cost: Cost) -> None:
        """Count the cost of work in addition to the loop's own steps."""
        self._finding += cost

    def look_ahead(
        self, settings: LookAhead, members: Mapping[str, Member], contribute: Callable[[Weights], Weights]
    ) -> Iterator[Weights]:
        """Train copies with `train_step`, one after the other, and restore everything after each."""
        self.spend(self._cost(len(members) * settings.look_ahead_steps))
        if not self._shared:
            for name, member in members.items():
                with self._copy(settings, member, name) as weights:
                    contributed = contribute(weights)
                yield contributed
            return
        ours, error = {}, None
        try:
            for name in list(members)[self._ranks.rank :: self._ranks.size]:
                with self._copy(settings, members[name], name) as weights:
                    ours[name] = contribute(weights)
        except Exception as problem:
            error = problem
        self._ranks.fail_together(error)
        for index, name in enumerate(members):
            owner = index % self._ranks.size
            yield self._ranks.broadcast(ours.pop(name, None), owner, self._parameters)

    # --- internals

    @contextmanager
    def _undone_by_errors(self) -> Iterator[None]:
        """Undo what `step` has changed if it raises, so that the round is not lost.

        `step` can then be called again, and until it has succeeded, the next update is an error.
        """
        at = self._attached.at
        # Methods change the containers of their progress in place, but not the tensors in a mask or a record.
        progress = {each.name: copy.copy(getattr(at, each.name)) for each in fields(at)}
        before = self._masked.current()
        ours = {name: getattr(self, name) for name in ("_finding", "_since", "steps_done")}
        try:
            yield
        except BaseException:
            self._attached.at = type(at)(**progress)
            self._masked.restore(before)
            vars(self).update(ours, _stepped=True)
            raise

    @contextmanager
    def _copy(self, settings: LookAhead, member: Member, name: str) -> Iterator[Weights]:
        """Provide the weights of a copy trained under its own protocol and data."""
        whose = f"train_step, in {name}"
        start = 0 if settings.warmup_steps else self.steps_done
        rates = [group["lr"] for group in self.optimizer.param_groups]
        current = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]  # schedulers write to tensors
        self.learning_rate_factor = member.learning_rate_factor
        try:
            with restored(self._model, self.optimizer, self._others, whose), attached.looking_ahead(self, whose):
                self._copying = True
                if settings.optimizer == "fresh":
                    self.optimizer.state.clear()
                self._set_weight_decay(member)
                batches = self._batches(member, start)
                seed_step = rng.seed_step if self._shared else self._ranks.seed_step
                for step in range(start, start + settings.look_ahead_steps):
                    seed_step(member.seed, step)
                    self._copy_updates = 0
                    if settings.warmup_steps:
                        self._rates = _own_schedule(current, member, settings.warmup_steps, step)
                    self._call_train_step(next(batches), whose)
                _reshard(self._model)
                self._check_finite(name, member)
                yield {n: parameter.detach() for n, parameter in self._parameters.items()}
        except TrainingDiverged as error:
            error.state = state_of(self._model, self.steps_done)  # the state of the run, which was restored
            raise
        finally:
            self._copying, self.learning_rate_factor, self._rates = False, 1.0, None
            self._gradients.clear()

    def _call_train_step(self, batch: Any, whose: str) -> None:
        assert self._train_step is not None
        self._train_step(batch)
        if self._rewrites:
            self._masked.apply()
        if self._copy_updates != 1 and not (self._copy_updates == 0 and self._scaler is not None):
            raise ConfigError(
                f"{whose}: called optimizer.step() {self._copy_updates} times; it must make exactly one update, with "
                "the optimizer passed to Pruner"
            )

    def _batches(self, member: Member, start: int) -> Iterator[Any]:
        """Yield the batches of a copy, in the order of its seed."""
        if self._source is not None:
            batches = self._source(member.seed)
            if not isinstance(batches, Iterable):
                raise ConfigError(
                    f"data: the function of a seed must return an iterable of batches, got {shown(batches)}"
                )
            yield from batches
            raise ConfigError("data: the function returned fewer batches than a look-ahead has steps")
        order = self._order(member)
        step = start
        while True:
            indices = order(step)
            yield self.trainer.examples.batch(indices if self._shared else self._ranks.share(indices))
            step += 1

    def _order(self, member: Member) -> BatchOrder:
        examples, training = self.trainer.examples, self.trainer.training
        return BatchOrder(len(examples), training.batch_size, member.seed, member.subset, lengths_of(examples))

    def _set_weight_decay(self, member: Member) -> None:
        """Set a copy's weight decay in groups with prunable parameters; others often have none on purpose."""
        pruned = {id(parameter) for parameter in self._parameters.values()}
        for group in self.optimizer.param_groups:
            if member.weight_decay is not None and any(id(p) in pruned for p in group["params"]):
                group["weight_decay"] = member.weight_decay

    def _check_finite(self, name: str, member: Member) -> None:
        broken = first_not_finite(self._parameters)
        if broken is not None:
            problem = f"{name} (learning rate x {member.learning_rate_factor:.3g}) diverged: parameter {broken!r}"
            problem += f" contains NaN or infinite values{explain_computed(self._model)[0]}"
            raise TrainingDiverged(problem, self.steps_done, State(step=self.steps_done, weights={}), self.mask)

    def _look(self) -> bool:
        """Let the method look at the weights, and apply the mask that it may return."""
        if self._updated and not self._observed:
            raise ConfigError(
                f"pruner.step(): method {self._method.name!r} scores weights by their gradients, but no prunable "
                "parameter had one when optimizer.step() was called; compute gradients before it, not in a closure"
            )
        try:
            pruned = self._attached.prune(self.steps_done, self._parameters)
        except MaskError:
            broken = first_not_finite(self._parameters)
            if broken is None and self._attached.observes and self._scaler is not None and not self._observed:
                return False  # the scaler skipped all updates so far; wait for the next event
            if broken is None:
                raise
            raise MaskError(
                f"pruner: {self._not_finite(broken, 'so its weights have no rank, and nothing was pruned')}"
            ) from None
        if pruned is None:
            return False
        self._masked.check_in_place("pruner.step()")
        self._finding, self._since = self._finding + self._cost(self._since), 0
        self._masked.set_mask(pruned)
        self._masked.apply()
        return True

    def _not_finite(self, name: str, consequence: str = "") -> str:
        """Return a message about a parameter that is not finite: after which step, the likely cause, and advice."""
        clause, advice = explain_computed(self._model)
        consequence = consequence and f", {consequence}"
        return (
            f"parameter {name!r} contains NaN or infinite values after {self.steps_done} steps{consequence}{clause}. "
            f"{advice or DIVERGED}"
        )

    def _register(self) -> list[Any]:
        optimizer: Any = self.optimizer
        parameters: Mapping[str, Any] = self._parameters
        self._held = {id(parameter) for parameter in parameters.values()}
        attached.add(self)
        return [
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
            optimizer.register_load_state_dict_post_hook(self._after_load),
            *(p.register_post_accumulate_grad_hook(self._accumulated(name)) for name, p in parameters.items()),
        ]

    def _accumulated(self, name: str) -> Callable[[Tensor], None]:
        """Return a hook that masks the gradient of a parameter after every accumulation.

        It does not keep the pruner alive, because Python's garbage collector does not see the hooks of a tensor, so
        that neither the pruner nor the model would ever be freed. The hooks of the optimizer keep it alive.
        """
        reference = weakref.ref(self)

        def hook(parameter: Tensor) -> None:
            pruner = reference()
            if pruner is None or parameter.grad is None:
                return
            pruner._masked.mask_gradient(name)
            if pruner._attached.observes and not attached.is_looking_ahead(pruner.optimizer):
                pruner._gradients[name] = parameter.grad.detach().clone()  # before it is clipped

        return hook

    def _before_update(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin an update at the outer of nested calls: an optimizer and its base class may both call the hooks."""
        if _is_nested(self.optimizer):
            return
        self._closure = any(map(callable, (*args[1:], *kwargs.values())))  # args[0] is the optimizer
        self._masked.mask_gradients()  # again, because other code may have written to them
        self._begin_update()

    def _after_update(self, *_: Any) -> None:
        if not _is_nested(self.optimizer):
            self.num_updates += 1
            self._end_update()

    def _after_load(self, _: Any) -> None:
        """Remember that moments of masked weights may not be zero."""
        self._loaded = True

    def _begin_update(self) -> None:
        if self._copying:
            self._unscaled = [group["lr"] for group in self.optimizer.param_groups]
            if self._rates is None and self._scales:
                self._set_learning_rates([rate * self.learning_rate_factor for rate in self._unscaled])
            elif self._rates is not None:
                self._set_learning_rates(self._rates)
            return
        if attached.is_looking_ahead(self.optimizer):  # of another pruner, which restores everything
            return
        if self._stepped:
            raise ConfigError(
                f"optimizer.step(): called again after {self.steps_done} steps without pruner.step(), which must be "
                "called once after every update, and again if it raised an error; call pruner.close() to stop pruning"
            )
        if self._unchecked:
            self._check_loaded()
        else:
            self._masked.check_written("optimizer.step()", self.steps_done)
        if self._attached.observes:
            self._observe()

    def _end_update(self) -> None:
        if self._loaded or self._ranks.size > 1 or self._closure or not self._masked.keeps_zeros():
            self._masked.apply()
        if not attached.is_looking_ahead(self.optimizer):
            self._stepped, self._loaded = True, False
            self._masked.remember_writes()
            return
        if not self._copying:
            return
        self._copy_updates += 1
        self._set_learning_rates(self._unscaled)

    def _set_learning_rates(self, rates: Sequence[Any]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _observe(self) -> None:
        """Show the method the gradients as they were accumulated: masked, neither clipped nor scaled.

        A gradient that was assigned instead of accumulated is shown as it is before the update.
        """
        if getattr(self.optimizer, "found_inf", None):  # a scaler leaves it to fused optimizers to skip the update
            self._gradients.clear()
            return
        self._updated = True
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        # A scaler leaves it to fused optimizers to divide gradients during the update.
        still_scaled = getattr(self.optimizer, "grad_scale", None) is not None
        clipped = {name: parameter.grad for name, parameter in self._parameters.items()}
        gradients: dict[str, Tensor] = {}
        for name, gradient in (clipped | self._gradients).items():
            if gradient is not None:
                scaled = scale != 1.0 and (name in self._gradients or still_scaled)
                gradients[name] = gradient / scale if scaled else gradient
        try:
            gradients = self._ranks.average(gradients, self._parameters)
            if not gradients:
                return
            for name, parameter in self._parameters.items():
                parameter.grad = gradients.get(name)
            self._attached.observe(self._parameters)
            self._observed = True
        finally:
            for name, parameter in self._parameters.items():
                parameter.grad = clipped[name]
            self._gradients.clear()

    def _check_loaded(self) -> None:
        """Refuse to continue with weights that are not zero where the loaded mask drops them."""
        self._unchecked = False
        if (revived := self._masked.revived()) is not None:
            name, alive = revived
            raise ConfigError(
                f"pruner.load_state_dict(): {alive} weights of parameter {name!r} that the loaded mask drops are "
                "not zero; load the state of the model and of the optimizer that was saved with it"
            )

    def _pruned(self) -> tuple[int, int]:
        """Return the target number of pruned weights and the current one."""
        return num_pruned(self._sparsity, masks.num_weights(self._parameters)), self._masked.num_dropped

    def _cost(self, steps: int) -> Cost:
        flops, sparse_flops = self.trainer.flops.steps(Counter({0: steps}), self.mask)
        return Cost(steps=steps, samples=steps * self._samples, flops=flops, sparse_flops=sparse_flops)

    def _identity(self) -> dict[str, Any]:
        """Return the values that a state and the pruner that loads it must have in common."""
        scheduled = isinstance(self._method.settings, LookAhead)  # in rounds that are measured in epochs
        return {
            "version": VERSION,
            "method": self._method.name,
            "settings": self._method.settings.model_dump(mode="json"),
            "sparsity": str(self._sparsity),
            "steps": self.trainer.training.steps,
            "seed": self.trainer.seed,
            "world_size": self._ranks.size,
            "prunable": sorted(self._parameters),
            **({"steps_per_epoch": self.steps_per_epoch} if scheduled else {}),
        }

    def _origin(self) -> dict[str, Any]:
        return {
            "version": self._method.module.VERSION,
            "settings": self._method.settings.model_dump(mode="json"),
            "training": {
                "steps": self.trainer.training.steps,
                "optimizer": type(self.optimizer).__name__,
                "loop": "isp.Pruner",
            },
            "seed": self.trainer.seed,
            "device": str(next(iter(self._parameters.values())).device),
        }

    def _examples(self, data: Any, collate: Collate | None, batch_size: int | None) -> tuple[Examples, int | None]:
        """Return indexable examples, if there are any, and the number of examples in an update."""
        if self._source is not None:
            _check_source(self._source)
        if data is None or self._source is not None:
            _check_collate(collate, data)
            return _NoExamples(self._method.name, (batch_size or 1) * self._ranks.size), batch_size
        if isinstance(data, DataLoader):
            if batch_size is None and data.batch_size is None:
                raise ConfigError("data: a DataLoader with a batch_sampler also needs batch_size=")
            batch_size = data.batch_size if batch_size is None else batch_size
            collate = collate or data.collate_fn
            examples = make_examples(data.dataset, self._model, "data", collate, by_item=True)
            self._check_sampler(data)
            return examples, batch_size
        if batch_size is None:
            raise ConfigError("batch_size: missing; it is the number of examples of data= in one update")
        examples = make_examples(data, self._model, "data", collate)
        if not isinstance(examples, Dataset):
            _check_collate(collate, data)
        return examples, batch_size

    def _check_sampler(self, loader: DataLoader[Any]) -> None:
        """Refuse a loader whose sampler leaves examples out if the method would draw from all of them."""
        sampler, dataset = loader.sampler, loader.dataset
        shuffles = isinstance(sampler, RandomSampler | SequentialSampler | DistributedSampler)
        whole = shuffles or (isinstance(sampler, Sized) and isinstance(dataset, Sized) and len(sampler) == len(dataset))
        settings = self._method.settings
        draws = getattr(settings, "denoisers", 0) or hasattr(settings, "batches")  # copies, or batches for scores
        if draws and not whole:
            raise ConfigError(
                f"data: the DataLoader has a {type(sampler).__name__}, but method {self._method.name!r} would "
                "draw from its whole dataset; pass torch.utils.data.Subset(dataset, indices), or for look-aheads a "
                "function of a seed that returns the loader (lambda seed: loader)"
            )

    def _trainer(
        self,
        examples: Examples,
        loss: LossFunction | None,
        training: Training,
        names: list[str],
        seed: int,
        count: bool,
    ) -> Trainer:
        """Return the run's trainer for methods; FLOPs are counted only if there is a loss."""
        if not count:
            return Trainer(
                model=self._model,
                examples=examples,
                loss=loss or default_loss,
                training=training,
                prunable=tuple(names),
                seed=seed,
                flops=StepFlops(total=(0,)),
                input_dims=input_dims(self._model, names),
            )
        assert loss is not None
        with undisturbed(self._model):
            return make_trainer(self._model, examples, loss, training, names, seed)

    def _check_needs(self, data: Any, steps_per_epoch: int | None) -> None:
        """Refuse rounds and look-aheads whose arguments are missing."""
        settings, name = self._method.settings, self._method.name
        if not isinstance(settings, LookAhead):
            return
        if steps_per_epoch is None and (data is None or self._source is not None):
            raise ConfigError(
                f"steps_per_epoch: missing; the rounds of method {name!r} are measured in updates of an epoch, whose "
                "number is known only if data= has a length"
            )
        if not getattr(settings, "denoisers", 0):
            return
        for argument, given in (("train_step", self._train_step), ("data", data)):
            if given is None:
                raise ConfigError(
                    f"{argument}: missing; method {name!r} trains look-ahead copies with train_step, a function that "
                    "makes one update on a batch of data. Without both arguments, denoisers must be 0"
                )
        if self._source is None:  # a function of a seed gives batches, not examples of a subset
            check_subset(settings, self.trainer.training, len(self.trainer.examples), "a look-ahead")


def _on_all_examples(method: Method) -> Method:
    """Return a method whose copies train on all examples, for planning.

    The plan counts examples by `steps_per_epoch`, but copies draw theirs from the data.
    """
    if not isinstance(method.settings, LookAhead):
        return method
    return replace(method, settings=method.settings.model_copy(update={"data_fraction": 1.0}))


def _parts_of(state: Any) -> tuple[dict[str, Any], Any]:
    """Return the description of the run in a state of a pruner, and the packed progress.

    Raises:
        ConfigError: If it is not a state of a pruner.
    """
    try:
        about = json.loads(state["about"])
        return about, about.pop("content")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        kind = f"a dict of {len(state)} other entries" if isinstance(state, Mapping) else shown(state)
        raise ConfigError(
            f"pruner.load_state_dict(): not a state of a pruner, which has a valid 'about'; pass a result of "
            f"pruner.state_dict(), not that of a model or an optimizer, got {kind}"
        ) from None


def _own_schedule(current: Sequence[Any], member: Member, warmup: int, step: int) -> list[Any]:
    """Return a copy's learning rates under its own schedule, which rises to the run's current ones and then falls."""
    share = (step + 1) / warmup if step < warmup else max(0.0, (2 * warmup - step) / warmup)
    return [rate * member.learning_rate_factor * share for rate in current]


def _check_collate(collate: Collate | None, data: Any) -> None:
    """Refuse a collate function for data without items that it could collate."""
    if collate is not None:
        kind = "nothing" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"collate: data must be a map-style dataset or a DataLoader, got {kind}")


class _NoExamples:
    """Placeholder for missing training examples."""

    def __init__(self, method: str, number: int) -> None:
        self._method, self._number = method, number

    def __len__(self) -> int:
        return self._number

    def batch(self, indices: Tensor) -> Any:
        raise ConfigError(f"data: missing; method {self._method!r} scores weights on training examples")


def _reshard(model: nn.Module) -> None:
    """Make the parameters of an FSDP2 model the sharded ones; do nothing to other models."""
    if "torch.distributed.fsdp" in sys.modules:
        from isp import sharded

        sharded.reshard(model)


def _unwrapped_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise ConfigError(f"optimizer: must be a torch.optim.Optimizer, got a {type(optimizer).__name__}")
        optimizer = inner
    return optimizer


def _check_source(source: Callable[..., Any]) -> None:
    """Refuse a function of batches that cannot be called with a seed."""
    try:
        inspect.signature(source).bind(0)
    except TypeError as error:
        raise ConfigError(
            f"data: a function must accept a seed and return batches, but calling it fails ({error})"
        ) from None
    except ValueError:  # a function without a known signature
        return


def _check_stateful(name: str, other: Any) -> None:
    """Refuse a scheduler or scaler that cannot be restored after look-aheads."""
    methods = ("state_dict", "load_state_dict", *(("get_scale", "is_enabled") if name == "scaler" else ()))
    if any(not callable(getattr(other, method, None)) for method in methods):
        kind = "a torch.amp.GradScaler" if name == "scaler" else "one scheduler, with state_dict and load_state_dict"
        raise ConfigError(f"{name} = {shown(other)}: must be {kind}, or None")


def _is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the caller, a hook of `optimizer.step`, is called within another `step` of the same optimizer."""
    return attached.is_updating(optimizer, sys._getframe(2))  # torch's function around `step`, which calls the hooks


def _may_rewrite(optimizer: Any) -> bool:
    """Return whether an optimizer is a wrapper that may write to weights after the update of the one that it contains.

    Those of torch and accelerate do not; Lookahead and averages of weights do.
    """
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        if type(optimizer).__module__.partition(".")[0] not in ("torch", "accelerate"):
            return True
        optimizer = inner
    return False


def _check_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in held]
    if missing:
        raise ConfigError(
            f"optimizer: lacks {len(missing)} of {len(parameters)} prunable parameters, such as {missing[0]!r}"
            "; create it from the parameters of this model after moving them to their device. If another optimizer "
            "trains those parameters, leave them out with exclude=, or create one Pruner per optimizer with disjoint "
            "prunable= patterns"
        )


def _protocol(steps: int, batch_size: int) -> Training:
    """Return a protocol with T and the batch size for methods; they never use its learning rate."""
    return parse(Training, {"steps": steps, "batch_size": batch_size, "learning_rate": 1.0}, "Pruner")
