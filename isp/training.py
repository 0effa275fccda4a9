"""One training loop: a model, batches, a schedule and a mask, from step a to step b. No paths, no hidden state.

Everything random is drawn from seeds of (seed, epoch) or (seed, step), so cutting a run anywhere and going on from the
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
from isp.seeds import seed as named_seed
from isp.settings import Settings
from isp.tensors import by_first_name, is_half, tensors_of

if TYPE_CHECKING:
    from torch import Tensor, nn

LossFunction: TypeAlias = "Callable[[nn.Module, Any], Tensor]"
Observe: TypeAlias = "Callable[[Mapping[str, nn.Parameter]], None]"
"""Looks at the trained parameters and their gradients, changes neither."""
Prune: TypeAlias = "Callable[[int, Mapping[str, nn.Parameter]], Mask | None]"
"""Given the updates done so far and the trained parameters, which it must not change: a new mask, or None to keep the
current one. Runs without gradients."""


VERSION = 2
"""Raised when the loop's results change."""
MOMENTS = {"exp_avg", "exp_avg_sq"}
"""AdamW's memory of each weight."""
COMPILED_ON_A_GPU = "compile = true: a compiled model is trained on a GPU only"


class Training(Settings):
    """A training protocol: AdamW under one learning-rate schedule over the budget of T = `steps` steps."""

    steps: int = Field(ge=1, le=10**9, description="T, the training budget of every ticket, in optimizer updates")
    batch_size: int = Field(
        default=128, ge=1, description="examples a step; the last, smaller batch of an epoch is dropped"
    )
    learning_rate: float = Field(gt=0, description="peak of the schedule (the paper: 1e-5 for CLIP, 2e-5 for BERT)")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear rise, before the linear fall to zero at T")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled (AdamW), on all trained parameters")
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="largest gradient norm, over kept weights; null: none"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast, weights and moments stay fp32"
    )
    compile: bool = Field(
        default=False, strict=True, description="true: train a compiled model; on a GPU only, and with other bits"
    )

    @model_serializer(mode="wrap")
    def _without_default(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As without the field if it is not set, so that jobs of earlier studies have the params that they had."""
        return {key: value for key, value in dumped(self).items() if key != "compile" or value}

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps}: allowed are 0 to {self.steps - 1}, below steps")
        return self


def learning_rate(training: Training, step: int) -> float:
    """Learning rate of the update that leads from `step` to `step + 1` (linear warm-up, linear decay to zero at T).

    After T it is 0: a look-ahead that reaches beyond the budget stands still there.
    """
    if step < training.warmup_steps:
        factor = (step + 1) / training.warmup_steps
    else:
        factor = (training.steps - step) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * min(max(factor, 0.0), 1.0)


class Examples(Protocol):
    """Training examples by number; `batch` forms (and augments) a batch, drawing from torch's generators.

    If they have an attribute `lengths`, int (n,), batches are made of examples of similar length, and `batch` takes a
    second argument, the length to cut or fill up to.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Any:
        """The batch of the examples `indices` (int64, CPU)."""
        ...


BLOCK = 50
"""Batches among which examples are sorted by length."""


@dataclass(frozen=True)
class BatchOrder:
    """Which examples step k sees: every epoch a permutation from (seed, epoch), cut into batches, the rest dropped.

    With `lengths` the permutation is sorted by length within blocks of 50 batches, and the batches are shuffled; so
    texts of a batch are about equally long, and little of it is padding.

    Attributes:
        num_examples: size of the training set.
        batch_size: examples a batch.
        seed: seed of the order.
        subset: example numbers to draw from instead of all of them (a look-ahead's own data), int64.
        lengths: of the examples, (num_examples,).
    """

    num_examples: int
    batch_size: int
    seed: int
    subset: Tensor | None = None
    lengths: Tensor | None = None
    _epochs: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"batch_size = {self.batch_size}: larger than the {self._pool} training examples there are"
            )

    @property
    def _pool(self) -> int:
        return self.num_examples if self.subset is None else len(self.subset)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches an epoch."""
        return self._pool // self.batch_size

    def __call__(self, step: int) -> Tensor:
        """Numbers of the examples of step `step`, int64, shape (batch_size,)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._epoch(epoch)
        return self._epochs[epoch][index * self.batch_size : (index + 1) * self.batch_size]

    def length(self, indices: Tensor) -> int:
        """The length of a batch: its longest example's, 0 where examples have none."""
        return 0 if self.lengths is None else int(self.lengths[indices].max())

    def _epoch(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(named_seed("batch order", seed=self.seed, epoch=epoch))
        order = torch.randperm(self._pool, generator=generator)
        order = order if self.subset is None else self.subset[order]
        if self.lengths is None:
            return order
        order = order[: self.steps_per_epoch * self.batch_size]  # else the longest would always be dropped
        blocks = [
            block[self.lengths[block].argsort(stable=True)] for block in torch.split(order, BLOCK * self.batch_size)
        ]
        batches = torch.cat(blocks).view(-1, self.batch_size)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything a run needs to go on: the step reached, the weights, the optimizer's memory.

    Attributes:
        step: updates done under the schedule.
        weights: all parameters and persistent buffers, tied ones under their first name (see `isp.tensors`).
        optimizer: AdamW's `step`, `exp_avg`, `exp_avg_sq` by parameter name; empty: a fresh optimizer.
        masters: fp32 values of the trained fp16 and bf16 parameters, which are these values rounded; empty: `weights`
            are exact, as they always are for fp32 models.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    masters: dict[str, Tensor] = field(default_factory=dict)


class TrainingDiverged(IspError):
    """The loss, the gradient norm or a trained weight stopped being finite.

    Attributes:
        step: the step whose loss, gradients or update were not finite.
        state: the last good state of the run; of the run itself, too, when it was a look-ahead copy that diverged.
        mask: the mask the run was trained under; None: dense.
        advice: what to change, as a sentence.
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
    """A copy of the model's weights as a state with a fresh optimizer."""
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
    """Keeps states of runs now and then, so that the same work, begun again, goes on from the last of them."""

    def leg(self, state: State, until: int) -> AbstractContextManager[tuple[Cost, State]]:
        """A context for a run: its cost so far, and the state to resume from; nothing and `state` if none was kept."""
        ...

    def due(self) -> bool:
        """Whether a state is wanted; asked after every step."""
        ...

    def keep(self, state: State, spent: Cost) -> None:
        """Keep a state of the run and its cost so far. The state shares its memory with the run until this returns."""
        ...

    def loop(self, progress: Progress) -> Progress:
        """The progress that was kept, or the given one; it is kept with every state from now on."""
        ...


@dataclass(frozen=True)
class _Unread:
    """A step of which it is not known yet whether it was finite, and the model's buffers before it."""

    step: int
    loss: Tensor
    norm: Tensor
    buffers: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What to train and how; `run` is a function of the state given to it.

    Attributes:
        model: the workspace: `run` overwrites its weights. Only parameters with `requires_grad` are trained.
        examples: training examples; never validation or test ones.
        loss: maps (model, batch) to a scalar, the mean over the batch.
        training: the protocol.
        prunable: names of the prunable parameters.
        seed: seed of data order, augmentation and dropout.
        flops: FLOPs of one step, from `count_step_flops`.
        subset: train on these examples only.
        progress: called with 1 after every step; first with how many a checkpoint saved.
        checkpoint: keeps states of runs and gives back the last one; None: nothing is kept.
        evaluating: names of the modules that stay in evaluation mode while the model is trained, such as frozen norms.
        input_dims: the input dimension of each prunable parameter whose layer is known, from `isp.prunable.input_dims`.
        read_every: after how many steps it is read whether they were finite; None: 1 on a CPU, 20 on a GPU, which need
            not be waited for in between. The results are the same.
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
        """The order of the training data."""
        lengths = lengths_of(self.examples)
        return BatchOrder(len(self.examples), self.training.batch_size, self.seed, self.subset, lengths)

    def cost(self, steps: Iterable[int], mask: Mask | None = None) -> Cost:
        """The cost of training at these steps under one mask."""
        order = self.order
        return self._cost(Counter(order.length(order(step)) for step in steps), mask)

    def _cost(self, counts: Counter[int], mask: Mask | None) -> Cost:
        """The cost of steps under one mask; `counts` holds their number by the length of the batch."""
        flops, sparse_flops = self.flops.steps(counts, mask)
        num = counts.total()
        return Cost(steps=num, samples=num * self.training.batch_size, flops=flops, sparse_flops=sparse_flops)

    def prunable_weights(self, state: State) -> dict[str, Tensor]:
        """The prunable weights of a state, fp32 where the state has master weights."""
        return {name: state.masters.get(name, state.weights[name]) for name in self.prunable}

    def resumed(self, progress: Progress) -> Progress:
        """What a loop of several runs goes on from: its progress as the last checkpoint has it, else the given one.

        To be called before the first of the runs. From here on checkpoints keep the progress, as it is when they are
        made; so it may change between runs and by `observe` and `prune` only, and must lead the loop back to the run
        that it is in. What that run had reached is the business of `run`, whatever state it is called with; the mask
        must be the one that the progress has.

        Args:
            progress: a dataclass of tensors, numbers, texts, costs, states, and dicts (by name) and lists of these.
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
        """Train from `state.step` to step `until` under `mask`, and under the masks that `prune` puts in its place.

        A mask is applied once to the weights and to both moments, and to the gradients of every step before they are
        clipped; AdamW then leaves masked weights at exactly zero (with gradients masked alone, momentum revives them).
        A mask from `prune` changes the run in place, and gives the bits of a run that is cut there and continued under
        the new mask.

        Parameters in fp16 or bf16 have fp32 master weights: gradients are cast to fp32, AdamW updates the masters, and
        the model gets them back rounded. Without them most updates would be lost to rounding. A masked weight is zero
        in both; a kept one may round to zero in the model.

        Args:
            state: where to begin; it is not changed.
            until: the step to reach, `state.step` or later.
            mask: over the prunable parameters, or None for dense training.
            observe: called before every update with the trained parameters (masters where there are any), whose
                gradients are masked but not clipped.
            prune: called before every step, `until` excluded, with the same parameters.

        Returns:
            The state at `until`, and the cost, each step counted under the mask that it was made under.

        Raises:
            TrainingDiverged: loss, gradient norm or an updated weight not finite; carries the last good state.
            ConfigError: the protocol wants a compiled model, and the model is not on a GPU.
        """
        device = next(self.model.parameters()).device
        if self.training.compile and device.type != "cuda":
            raise ConfigError(f"training: {COMPILED_ON_A_GPU}, not on {device.type!r}")
        mask = None if mask is None else _on(device, by_first_name(mask, self.model, "the mask"))
        checkpoint = self.checkpoint
        leg = nullcontext((Cost(), state)) if checkpoint is None else checkpoint.leg(state, until)
        with leg as (spent, state), self._workspace(state, mask, device) as (optimizer, parameters, masters):
            if spent.steps:
                self.progress(spent.steps)  # steps that the checkpoint saved
            order, training = self.order, self.training
            counts: Counter[int] = Counter()  # steps since the mask changed, by the length of the batch
            cast = nullcontext if training.precision == "fp32" else _bf16_autocast(device)
            limit = math.inf if training.clip_norm is None else training.clip_norm
            model: Any = self.model
            if training.compile:  # with the random numbers of an eager model
                model = torch.compile(self.model, options={"fallback_random": True})
            has_buffers = any(True for _ in self.model.buffers())
            read_every = self._read_every(device) if observe is None and prune is None else 1
            unread: list[_Unread] = []  # steps of which it is not known whether they were finite
            broken = torch.zeros((), device=device)
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
                # a forward pass changes those of norms
                buffers = [buffer.clone() for buffer in self.model.buffers()] if has_buffers else []
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
                unread.append(_Unread(step, loss.detach(), norm, buffers))
                if read_every > 1:  # no update after a step that is not finite, until it is noticed
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
        """After how many steps it is read whether they were finite, which waits for the device."""
        return self.read_every or (1 if device.type == "cpu" else 20)

    def _read(
        self,
        unread: list[_Unread],
        begun: State,
        mask: Mask | None,
        optimizer: torch.optim.AdamW,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        """Raise TrainingDiverged if one of the unread steps was not finite; else forget them.

        Nothing was updated from the first such step on, so the workspace is as before it but for the buffers.
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
        _restore(self.model, first.buffers)
        done = self._leave(optimizer, parameters, first.step)
        values = f"loss {first.loss.item()}, gradient norm {first.norm.item()}"
        problem = f"training diverged at step {first.step}: {values}{cause}"
        raise TrainingDiverged(problem, first.step, done, mask, advice)

    def _refuse_infinite_weights(self, begun: State, step: int, mask: Mask | None) -> None:
        """Raise TrainingDiverged if the weights after `step` steps are not finite; its last good state is `begun`."""
        name = first_not_finite({n: p for n, p in self.model.named_parameters() if p.requires_grad})
        if name is None:
            return
        if step <= begun.step:
            problem = f"parameter {name!r} holds NaN or infinite values at step {begun.step}, before any update"
            raise TrainingDiverged(problem, begun.step, begun, mask, "Begin from finite weights.")
        problem = f"training diverged: the update of step {step - 1} left NaN or infinite values in parameter {name!r}"
        raise TrainingDiverged(problem, step - 1, begun, mask)

    @contextmanager
    def _workspace(
        self, state: State, mask: Mask | None, device: torch.device
    ) -> Iterator[tuple[torch.optim.AdamW, dict[str, nn.Parameter], Masters]]:
        """Load state and mask into the model and an optimizer; random generators are put back afterwards.

        Yields the optimizer, what it trains by name, and the pairs of model parameters and their masters.
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
        """Set what the mask drops to +0.0, in the weights and in both moments, in place."""
        check_fits(mask, {name: parameters[name] for name in self.prunable})
        apply_(mask, parameters)
        for name, kept in mask.items():
            memory = optimizer.state.get(parameters[name], {})
            apply_(dict.fromkeys(memory.keys() & MOMENTS, kept), memory)

    def _leave(self, optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], step: int) -> State:
        """What the workspace holds as a state. Weights are copied, for the model stays; the rest ends with the run."""
        optimizer.zero_grad(set_to_none=True)
        here = self._reached(optimizer, parameters, step)
        return replace(here, weights={name: tensor.clone() for name, tensor in here.weights.items()})

    def _reached(self, optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], step: int) -> State:
        """What the workspace holds, not copied."""
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
    """A trainer; the FLOPs of its step are counted unless they are known.

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
    """Lengths of the examples, for those that have any."""
    return getattr(examples, "lengths", None)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str = "the weights") -> None:
    """Copy weights (parameters and persistent buffers by name) into the model, in place.

    A tied parameter may come under any of its names, or under several with the same values.

    Raises:
        ConfigError: they are of another model, or two names of one parameter have different values; names the first
            tensor that is wrong, and leaves the model untouched.
    """
    own, weights = tensors_of(model), by_first_name(weights, model, what)
    for name in sorted({*own, *weights}):
        shapes = [tuple(tensors[name].shape) if name in tensors else "missing" for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"{what} are of another model: {name!r} has shape {shapes[0]}, in the model {shapes[1]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


Model = TypeVar("Model", bound="nn.Module")


def holding(weights: Mapping[str, Tensor], make: Callable[[], Model], what: str = "the weights") -> Model:
    """What `make` builds, holding copies of these weights; its own are never drawn.

    Raises:
        ConfigError: as `load_weights`.
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


def _restore(model: nn.Module, buffers: list[Tensor]) -> None:
    for buffer, saved in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(saved)


def _bf16_autocast(device: torch.device) -> Callable[[], Any]:
    return lambda: torch.autocast(device.type, torch.bfloat16)
