"""Training loop: a model, batches, a schedule and a mask, from step a to step b. No paths, no hidden state.

All random numbers come from seeds of (seed, epoch) or (seed, step), so stopping a run anywhere and resuming it from its
state, in the same process or another, never changes its bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from isp.costs import Cost, StepFlops, interpolate_flops
from isp.divergence import SLOWER, explain, first_not_finite
from isp.errors import ConfigError, IspError, MaskError
from isp.lazy import torch
from isp.masks import Mask, apply_, check_fits
from isp.replacing import without_data
from isp.rng import forked_rng, seed_all, seed_step
from isp.seeds import integer
from isp.seeds import seed as named_seed
from isp.settings import Settings
from isp.tensors import by_first_name, is_half, remember_buffers, tensors_beside, tensors_of

if TYPE_CHECKING:
    from torch import Tensor, nn

LossFunction: TypeAlias = "Callable[[nn.Module, Any], Tensor]"
Observe: TypeAlias = "Callable[[Mapping[str, nn.Parameter]], None]"
"""Function that reads the trained parameters and their gradients, without changing either."""
Prune: TypeAlias = "Callable[[int, Mapping[str, nn.Parameter]], Mask | None]"
"""Function from the number of updates so far and the trained parameters, which it must not change, to a new mask, or to
None to keep the current one. It runs without gradients."""


VERSION = 2
"""Version of the loop, raised when its results change."""
MOMENTS = {"exp_avg", "exp_avg_sq"}
"""Keys of AdamW's memory of each weight."""
COMPILED_ON_A_GPU = "compile = true: a compiled model is trained on a GPU only"


class Training(Settings):
    """A training protocol: AdamW under one learning-rate schedule over the budget of T = `steps` steps."""

    steps: int = Field(ge=1, le=10**9, description="T, the training budget of every ticket, in optimizer updates")
    batch_size: int = Field(
        default=128, ge=1, description="examples per step; the last, smaller batch of an epoch is dropped"
    )
    learning_rate: float = Field(gt=0, description="peak of the schedule (the paper: 1e-5 for CLIP, 2e-5 for BERT)")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear rise before the linear decay to zero at T")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay of all trained parameters")
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="largest gradient norm, over kept weights; null: none"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast; weights and moments stay fp32"
    )
    compile: bool = Field(
        default=False, strict=True, description="whether to train a compiled model, on a GPU only and with other bits"
    )

    @model_serializer(mode="wrap")
    def _without_default(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the field if it is not set, so that jobs of earlier studies keep their params."""
        return {key: value for key, value in dumped(self).items() if key != "compile" or value}

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps}: must be in 0 to {self.steps - 1}, below steps")
        return self


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of the update from `step` to `step + 1` (linear warm-up, linear decay to zero at T).

    After T it is 0, so a look-ahead that reaches beyond the budget no longer moves.
    """
    if step < training.warmup_steps:
        factor = (step + 1) / training.warmup_steps
    else:
        factor = (training.steps - step) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * min(max(factor, 0.0), 1.0)


class Examples(Protocol):
    """Training examples by index; `batch` forms (and augments) a batch with torch's generators.

    If they have an attribute `lengths`, int (n,), batches consist of examples of similar length, and `batch` accepts a
    second argument, the length to which to truncate or pad.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Any:
        """Return the batch of the examples `indices` (int64, CPU)."""
        ...


BLOCK = 50
"""Number of batches within which examples are sorted by length."""


@dataclass(frozen=True)
class BatchOrder:
    """Order of the examples: every epoch is a permutation from (seed, epoch), cut into batches, dropping the rest.

    With `lengths` the permutation is sorted by length within blocks of 50 batches, and the batches are shuffled, so
    that texts of a batch have similar lengths and little padding.

    Attributes:
        num_examples: Size of the training set.
        batch_size: Examples per batch.
        seed: Seed of the order.
        subset: Indices of the examples to use instead of all (a look-ahead's own data), int64.
        lengths: Lengths of the examples, (num_examples,).
    """

    num_examples: int
    batch_size: int
    seed: int
    subset: Tensor | None = None
    lengths: Tensor | None = None
    _epochs: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", integer("seed", self.seed))
        object.__setattr__(self, "batch_size", integer("batch_size", self.batch_size, least=1))
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"batch_size = {self.batch_size}: larger than the {self._pool} training examples there are"
            )

    @property
    def _pool(self) -> int:
        return self.num_examples if self.subset is None else len(self.subset)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches per epoch."""
        return self._pool // self.batch_size

    def __call__(self, step: int) -> Tensor:
        """Return the indices of the examples of step `step`, int64, shape (batch_size,)."""
        epoch, index = divmod(integer("step", step), self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._epoch(epoch)
        return self._epochs[epoch][index * self.batch_size : (index + 1) * self.batch_size]

    def length(self, indices: Tensor) -> int:
        """Return the length of a batch: that of its longest example, or 0 if examples have no lengths."""
        return 0 if self.lengths is None else int(self.lengths[indices].max())

    def _epoch(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(named_seed("batch order", seed=self.seed, epoch=epoch))
        order = torch.randperm(self._pool, generator=generator)
        order = order if self.subset is None else self.subset[order]
        if self.lengths is None:
            return order
        order = order[: self.steps_per_epoch * self.batch_size]  # otherwise the longest would always be dropped
        blocks = [
            block[self.lengths[block].argsort(stable=True)] for block in torch.split(order, BLOCK * self.batch_size)
        ]
        batches = torch.cat(blocks).view(-1, self.batch_size)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything from which a run can resume: the current step, the weights, the optimizer's memory.

    Attributes:
        step: Number of updates done under the schedule.
        weights: All parameters and persistent buffers, tied ones under their first name (see `isp.tensors`).
        optimizer: AdamW's `step`, `exp_avg`, `exp_avg_sq` by parameter name; empty: a fresh optimizer.
        masters: Values in fp32 of the trained fp16 and bf16 parameters, which are these values rounded; empty:
            `weights` are exact, as always for fp32 models.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    masters: dict[str, Tensor] = field(default_factory=dict)


class TrainingDiverged(IspError):
    """A loss, gradient norm or trained weight that is not finite.

    Attributes:
        step: Step whose loss, gradients or update were not finite.
        state: Last good state of the run, even if a look-ahead copy diverged.
        mask: Mask under which the run was trained; None: dense.
        advice: Remedy, as a sentence.
    """

    def __init__(
        self,
        problem: str,
        step: int,
        state: State,
        mask: Mask | None,
        advice: str = SLOWER,
    ) -> None:
        self.problem = problem
        self.step = step
        self.state = state
        self.mask = mask
        self.advice = advice
        super().__init__(f"{problem}. The last good state, after {state.step} steps, is kept. {advice}")


def state_of(model: nn.Module, step: int = 0) -> State:
    """Copy the model's weights into a state with a fresh optimizer."""
    return State(step=step, weights={name: tensor.clone() for name, tensor in tensors_of(model).items()})


Masters: TypeAlias = "list[tuple[nn.Parameter, nn.Parameter]]"
"""Parameters of the model in fp16 or bf16, each with its fp32 master weights."""


def _raise_gradients(masters: Masters) -> None:
    """Move the gradients of the model's parameters to their masters, as fp32."""
    for parameter, master in masters:
        if parameter.grad is not None:
            master.grad, parameter.grad = parameter.grad.float(), None


def _write_back(masters: Masters) -> None:
    """Round the masters to the model's parameters."""
    with torch.no_grad():
        for parameter, master in masters:
            parameter.copy_(master)


Progress = TypeVar("Progress")


class Checkpoint(Protocol):
    """Store of states of runs, from the last of which the same work resumes when it is restarted."""

    def leg(self, state: State, until: int) -> AbstractContextManager[tuple[Cost, State]]:
        """Provide a run's cost so far and the state from which to resume; zero and `state` if none was stored."""
        ...

    def due(self) -> bool:
        """Return whether to store a state; called after every step."""
        ...

    def keep(self, state: State, spent: Cost) -> None:
        """Store a state of the run and its cost so far. The state shares memory with the run until this returns."""
        ...

    def loop(self, progress: Progress) -> Progress:
        """Return the stored progress, or the given one; from now on it is stored with every state."""
        ...


@dataclass(frozen=True)
class _Unread:
    """A step not yet checked for finite values, and what restores the model's buffers before it."""

    step: int
    loss: Tensor
    norm: Tensor
    restore_buffers: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A model and its training; `run` is a function of the state given to it.

    Attributes:
        model: Model whose weights `run` overwrites. Only parameters with `requires_grad` are trained.
        examples: Training examples; never validation or test ones.
        loss: Function from (model, batch) to a scalar, the mean over the batch.
        training: Training protocol.
        prunable: Names of the prunable parameters.
        seed: Seed of data order, augmentation and dropout.
        flops: FLOPs of one step, from `count_step_flops`.
        subset: Indices of the training examples to use; None: all.
        progress: Function called with 1 after every step, and at first with the number of steps saved by a checkpoint.
        checkpoint: Store of states of runs; None: nothing is stored.
        evaluating: Names of the modules that stay in evaluation mode during training, such as frozen norms.
        input_dims: Input dimension of each prunable parameter whose layer is known, from `isp.prunable.input_dims`.
        read_every: Number of steps between checks for finite values; None: 1 on a CPU, 20 on a GPU, which need not be
            waited for in between. The results are the same.
    """

    model: nn.Module
    examples: Examples
    loss: LossFunction
    training: Training
    prunable: tuple[str, ...]
    seed: int
    flops: StepFlops
    subset: Tensor | None = None
    progress: Callable[[int], None] = lambda _: None
    checkpoint: Checkpoint | None = None
    evaluating: frozenset[str] = frozenset()
    input_dims: Mapping[str, int] = field(default_factory=dict)
    read_every: int | None = None

    @property
    def order(self) -> BatchOrder:
        """Order of the training data."""
        lengths = lengths_of(self.examples)
        return BatchOrder(len(self.examples), self.training.batch_size, self.seed, self.subset, lengths)

    def cost(self, steps: Iterable[int], mask: Mask | None = None) -> Cost:
        """Return the cost of training at these steps under one mask."""
        order = self.order
        return self._cost(Counter(order.length(order(step)) for step in steps), mask)

    def _cost(self, counts: Counter[int], mask: Mask | None) -> Cost:
        """Return the cost of steps under one mask, given their number by the length of the batch."""
        flops, sparse_flops = self.flops.steps(counts, mask)
        num = counts.total()
        return Cost(steps=num, samples=num * self.training.batch_size, flops=flops, sparse_flops=sparse_flops)

    def prunable_weights(self, state: State) -> dict[str, Tensor]:
        """Return the prunable weights of a state, in fp32 if the state has master weights."""
        return {name: state.masters.get(name, state.weights[name]) for name in self.prunable}

    def resumed(self, progress: Progress) -> Progress:
        """Return the progress from which a loop of several runs resumes: that of the last checkpoint, or the given one.

        Call it before the first of the runs. Afterwards checkpoints store the progress as it is when they are made.
        Therefore only code between runs, `observe` and `prune` may change it, and it must lead the loop back to its
        current run. `run` itself restores how far that run had come, whatever state it is called with; the mask must be
        that of the progress.

        Args:
            progress: Dataclass of tensors, numbers, strings, costs, states, and dicts (by name) and lists of these.
        """
        return progress if self.checkpoint is None else self.checkpoint.loop(progress)

    def run(
        self,
        state: State,
        until: int,
        mask: Mask | None = None,
        observe: Observe | None = None,
        prune: Prune | None = None,
    ) -> tuple[State, Cost]:
        """Train from `state.step` to step `until` under `mask`, and under masks with which `prune` replaces it.

        A mask is applied once to the weights and to both moments, and to the gradients of every step before they are
        clipped; AdamW then leaves masked weights at exactly zero (with gradients masked alone, momentum revives them).
        A mask from `prune` changes the run in place, with the same bits as a run that is stopped there and continued
        under the new mask.

        Parameters in fp16 or bf16 have fp32 master weights: gradients are cast to fp32, AdamW updates the masters, and
        the model receives them rounded. Without them most updates would be lost to rounding. A masked weight is zero in
        both; a kept one may round to zero in the model.

        Args:
            state: Initial state, which is not changed.
            until: Step to reach, `state.step` or later.
            mask: Mask over the prunable parameters, or None for dense training.
            observe: Function called before every update with the trained parameters (masters if there are any), whose
                gradients are masked but not clipped.
            prune: Function called before every step except `until`, with the same parameters.

        Returns:
            State at `until`, and the cost, in which each step counts under its own mask.

        Raises:
            TrainingDiverged: If the loss, gradient norm or an updated weight is not finite; has the last good state.
            ConfigError: If the protocol requires a compiled model, but the model is not on a GPU.
        """
        device = next(self.model.parameters()).device
        if self.training.compile and device.type != "cuda":
            raise ConfigError(f"training: {COMPILED_ON_A_GPU}, not on {device.type!r}")
        mask = None if mask is None else _on(device, by_first_name(mask, self.model, "the mask"))
        checkpoint = self.checkpoint
        leg = nullcontext((Cost(), state)) if checkpoint is None else checkpoint.leg(state, until)
        with leg as (spent, state), self._workspace(state, mask, device) as (optimizer, parameters, masters):
            if spent.steps:
                self.progress(spent.steps)  # steps saved by the checkpoint
            order, training = self.order, self.training
            counts: Counter[int] = Counter()  # steps since the mask changed, by the length of the batch
            cast = nullcontext if training.precision == "fp32" else _bf16_autocast(device)
            limit = math.inf if training.clip_norm is None else training.clip_norm
            model: Any = self.model
            if training.compile:  # with the random numbers of an eager model
                model = torch.compile(self.model, options={"fallback_random": True})
            read_every = self._read_every(device) if observe is None and prune is None else 1
            unread: list[_Unread] = []  # steps not yet checked for finite values
            broken = torch.zeros((), dtype=torch.float32, device=device)  # as fused AdamW reads it
            for step in range(state.step, until):
                try:
                    with torch.no_grad():
                        pruned = None if prune is None else prune(step, parameters)
                except MaskError:  # weights that are NaN have no rank
                    self._refuse_infinite_weights(state, step, mask)
                    raise
                if pruned is not None:
                    spent, counts = spent + self._cost(counts, mask), Counter()
                    mask = _on(device, pruned)
                    self._mask_(mask, parameters, optimizer)
                    _write_back(masters)
                seed_step(self.seed, step)
                indices = order(step)
                batch = self.examples.batch(indices)
                restore_buffers = remember_buffers(self.model)  # the forward pass of a norm changes its buffers
                with cast():
                    loss = self.loss(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                _raise_gradients(masters)
                if mask is not None:
                    for name, kept in mask.items():
                        gradient = parameters[name].grad
                        if gradient is not None:
                            gradient.mul_(kept)
                if observe is not None:
                    observe(parameters)
                norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
                unread.append(_Unread(step, loss.detach(), norm, restore_buffers))
                if read_every > 1:  # prevent updates after a step that is not finite until it is noticed
                    broken = torch.maximum(broken, 1 - torch.isfinite(loss.detach() + norm).all().float())
                    optimizer.found_inf = broken  # type: ignore[attr-defined]
                if len(unread) == read_every:
                    self._read(unread, state, mask, optimizer, parameters)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(training, step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                _write_back(masters)
                counts[order.length(indices)] += 1
                self.progress(1)
                if checkpoint is not None and checkpoint.due():
                    self._read(unread, state, mask, optimizer, parameters)
                    self._refuse_infinite_weights(state, step + 1, mask)
                    checkpoint.keep(self._reached(optimizer, parameters, step + 1), spent + self._cost(counts, mask))
            self._read(unread, state, mask, optimizer, parameters)
            self._refuse_infinite_weights(state, until, mask)
            done = self._leave(optimizer, parameters, max(until, state.step))
        return done, spent + self._cost(counts, mask)

    def _read_every(self, device: torch.device) -> int:
        """Return the number of steps between checks for finite values, which wait for the device."""
        return self.read_every or (1 if device.type == "cpu" else 20)

    def _read(
        self,
        unread: list[_Unread],
        begun: State,
        mask: Mask | None,
        optimizer: torch.optim.AdamW,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        """Raise TrainingDiverged if one of the unread steps was not finite; otherwise forget them.

        No update was made from the first such step on, so the workspace is unchanged since then except for the buffers.
        """
        finite = (
            torch.stack([torch.isfinite(each.loss + each.norm).all() for each in unread]).tolist() if unread else []
        )
        if all(finite):
            unread.clear()
            return
        first = unread[finite.index(False)]
        self._refuse_infinite_weights(begun, first.step, mask)
        seed_step(self.seed, first.step)
        indices = self.order(first.step)
        cause, advice = explain(self.model, self.examples.batch(indices), indices)
        first.restore_buffers()
        done = self._leave(optimizer, parameters, first.step)
        values = f"loss {first.loss.item()}, gradient norm {first.norm.item()}"
        problem = f"training diverged at step {first.step}: {values}{cause}"
        raise TrainingDiverged(problem, first.step, done, mask, advice)

    def _refuse_infinite_weights(self, begun: State, step: int, mask: Mask | None) -> None:
        """Raise TrainingDiverged, with `begun` as last good state, if weights after `step` steps are not finite."""
        name = first_not_finite({n: p for n, p in self.model.named_parameters() if p.requires_grad})
        if name is None:
            return
        if step <= begun.step:
            problem = f"parameter {name!r} contains NaN or infinite values at step {begun.step}, before any update"
            raise TrainingDiverged(problem, begun.step, begun, mask, "Start from finite weights.")
        problem = f"training diverged: the update of step {step - 1} left NaN or infinite values in parameter {name!r}"
        raise TrainingDiverged(problem, step - 1, begun, mask)

    @contextmanager
    def _workspace(
        self, state: State, mask: Mask | None, device: torch.device
    ) -> Iterator[tuple[torch.optim.AdamW, dict[str, nn.Parameter], Masters]]:
        """Load state and mask into the model and an optimizer; random generators are restored afterwards.

        Yields the optimizer, its parameters by name, and the pairs of model parameters and their masters.
        """
        load_weights(self.model, state.weights)
        parameters = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        masters: Masters = []
        for name, parameter in parameters.items():
            if is_half(parameter.dtype):
                value = state.masters.get(name, parameter.detach())
                parameters[name] = torch.nn.Parameter(value.to(device, torch.float32, copy=True))
                masters.append((parameter, parameters[name]))
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=self.training.weight_decay, fused=True)
        for name, memory in state.optimizer.items():
            optimizer.state[parameters[name]] = {key: tensor.to(device, copy=True) for key, tensor in memory.items()}
        if mask is not None:
            self._mask_(mask, parameters, optimizer)
        _write_back(masters)
        set_training(self.model, self.evaluating)
        self.model.zero_grad(set_to_none=True)
        with forked_rng(device):
            yield optimizer, parameters, masters

    def _mask_(self, mask: Mask, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW) -> None:
        """Set dropped weights and both of their moments to +0.0, in place."""
        check_fits(mask, {name: parameters[name] for name in self.prunable})
        apply_(mask, parameters)
        for name, kept in mask.items():
            memory = optimizer.state.get(parameters[name], {})
            apply_(dict.fromkeys(memory.keys() & MOMENTS, kept), memory)

    def _leave(self, optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], step: int) -> State:
        """Return the workspace as a state at the end of a run; weights are copied because the model stays in use."""
        optimizer.zero_grad(set_to_none=True)
        here = self._reached(optimizer, parameters, step)
        return replace(here, weights={name: tensor.clone() for name, tensor in here.weights.items()})

    def _reached(self, optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], step: int) -> State:
        """Return the workspace as a state, without copying."""
        weights = tensors_of(self.model)
        memory = {
            name: {key: tensor.detach() for key, tensor in optimizer.state[parameter].items()}
            for name, parameter in parameters.items()
            if parameter in optimizer.state
        }
        masters = {n: p.detach() for n, p in parameters.items() if p.dtype != weights[n].dtype}
        return State(step=step, weights=weights, optimizer=memory, masters=masters)


def make_trainer(
    model: nn.Module,
    examples: Examples,
    loss: LossFunction,
    training: Training,
    prunable: list[str],
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
    flops: StepFlops | None = None,
) -> Trainer:
    """Make a trainer, counting the FLOPs of its step unless they are given.

    Modules in evaluation mode inside a model in training mode stay in it; a model in evaluation mode is trained whole.
    """
    from isp.counting import count_step_flops
    from isp.prunable import input_dims

    evaluating = frozenset(name for name, module in model.named_modules() if model.training and not module.training)
    if flops is None:
        set_training(model, evaluating)
        with forked_rng(next(model.parameters()).device):
            seed_all(named_seed("step flops", seed=seed))
            indices = BatchOrder(len(examples), training.batch_size, seed)(0)
            if lengths_of(examples) is None:
                flops = count_step_flops(model, loss, examples.batch(indices), prunable)
            else:
                at = {length: examples.batch(indices, length) for length in (8, 9, 10)}  # type: ignore[call-arg]
                flops = interpolate_flops({n: count_step_flops(model, loss, at[n], prunable) for n in at})
    return Trainer(
        model=model,
        examples=examples,
        loss=loss,
        training=training,
        prunable=tuple(prunable),
        seed=seed,
        flops=flops,
        progress=progress,
        evaluating=evaluating,
        input_dims=input_dims(model, prunable),
    )


def set_training(model: nn.Module, evaluating: Collection[str]) -> None:
    """Put the model into training mode, except for the modules of these names."""
    model.train()
    for name, module in model.named_modules():
        if name in evaluating:
            module.training = False


def lengths_of(examples: Any) -> Tensor | None:
    """Return the lengths of the examples, or None if they have none."""
    return getattr(examples, "lengths", None)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str = "the weights") -> None:
    """Copy weights (parameters and persistent buffers by name) into the model, in place.

    A tied parameter may be given under any of its names, or under several with the same values.

    Raises:
        ConfigError: If they belong to another model, or two names of one parameter have different values. The message
            names the first wrong tensor, and the model is unchanged.
    """
    own, weights = tensors_beside(weights, model, what)
    for name in sorted({*own, *weights}):
        shapes = [tuple(tensors[name].shape) if name in tensors else "missing" for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"{what} are of another model: {name!r} has shape {shapes[0]}, in the model {shapes[1]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


Model = TypeVar("Model", bound="nn.Module")


def holding(weights: Mapping[str, Tensor], make: Callable[[], Model], what: str = "the weights") -> Model:
    """Return the model that `make` builds, with copies of these weights and without drawing initial ones.

    Raises:
        ConfigError: If the weights belong to another model.
    """
    with without_data():
        model = make()
    for parameter in list(model.parameters()):
        if parameter.is_meta:
            filled = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
            torch.utils.swap_tensors(parameter, filled)  # type: ignore[no-untyped-call]
    load_weights(model, weights, what)
    return model


def _on(device: torch.device, mask: Mask) -> Mask:
    return {name: kept.to(device) for name, kept in mask.items()}


def _bf16_autocast(device: torch.device) -> Callable[[], Any]:
    return lambda: torch.autocast(device.type, torch.bfloat16)
