"""What a training changes from step to step, and how its optimizer, schedule and moving average are made."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from stages.params import Training
from stages.training.samples import Sample


@dataclass
class State:
    """Everything a checkpoint holds beside the step.

    The first of `modules` is the network being trained, and the one `ema` averages; others are its
    adversaries. Optimizers and schedulers have the names of the modules they move. `uses` says how often what
    is made for several steps was trained on since step 0, by the rank of the process that made it and its number.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    schedulers: dict[str, LRScheduler] = field(default_factory=dict)
    ema: AveragedModel | None = None
    uses: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def network(self) -> nn.Module:
        return next(iter(self.modules.values()))


class Backward(Protocol):
    """What the loop hands to a task's step: the way from a loss to an optimizer."""

    def __call__(self, name: str, loss: Tensor) -> None:
        """Add the gradients of `loss` () for the optimizer `name`; it steps when the whole batch is done."""

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a detached tensor over all processes."""


class Task(Protocol):
    """One training: its data, its networks, and what a step of it is."""

    name: str
    settings: Training
    state: State
    dataset: Any  # takes (window index, draw seed), as stages.data.dataset.ClipDataset
    valid_dataset: Any  # the same, or None

    def step(self, batch: dict[str, Tensor], step: int, backward: Backward) -> dict[str, Tensor]:
        """Named scalar losses of one (micro-)batch; calls `backward` for each optimizer that is to move.

        A network that is to learn must be called as `self.state.modules[name](...)`, where it is wrapped for
        several processes, and once a step; a judge within `frozen` by the task's own reference, unwrapped.
        """

    def validate(self, batch: dict[str, Tensor], generator: torch.Generator, /) -> dict[str, Tensor]:
        """Named scalar figures, `loss` among them; random draws (on the CPU) from `generator` only."""

    def track_id(self, track: int) -> str:
        """The id of a batch's `track` number, for messages."""


@runtime_checkable
class Surveying(Protocol):
    """A task whose loss is no mean over micro-batches, so that it must see all of them before its steps."""

    def survey(self, parts: list[dict[str, Tensor]]) -> None:
        """Look at the micro-batches of a step, without gradients; torch's random numbers come again in its steps."""


@runtime_checkable
class Sampling(Protocol):
    """A task of which one can see and hear something."""

    def samples(self, batch: dict[str, Tensor], generator: torch.Generator) -> list[Sample]:
        """What the networks make of a batch of the valid split; random draws from `generator` only."""


def build_state(modules: dict[str, nn.Module], settings: Training, items: int) -> State:
    """One optimizer and schedule for each module, and the first one's moving average where settings want it.

    `items` is the length of the training set.
    """
    optimizers = {name: build_optimizer(module.parameters(), settings) for name, module in modules.items()}
    schedulers: dict[str, LRScheduler] = {
        name: build_scheduler(optimizer, settings, items) for name, optimizer in optimizers.items()
    }
    return State(modules, optimizers, schedulers, build_ema(next(iter(modules.values())), settings))


def build_optimizer(parameters: Iterable[nn.Parameter], settings: Training) -> Optimizer:
    """AdamW, which with weight_decay 0 is Adam."""
    first, second = settings.betas
    return torch.optim.AdamW(
        [p for p in parameters if p.requires_grad],
        lr=settings.learning_rate,
        betas=(first, second),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def build_scheduler(optimizer: Optimizer, settings: Training, items: int) -> LambdaLR:
    """Linear warm-up over warmup_steps, then constant, or half a cosine down to 0 at the last step, or lr_decay to the
    power of the finished passes over the training set of `items` (as HiFi-GAN's)."""

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "exponential":
            return float(settings.lr_decay ** (step * settings.batch_size // items))
        share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return LambdaLR(optimizer, factor)


def ema_decay(limit: float, updates: int) -> float:
    """min(limit, (1 + n) / (10 + n)) after n updates (latent-diffusion, ldm/modules/ema.py)."""
    return min(limit, (1 + updates) / (10 + updates))


def build_ema(module: nn.Module, settings: Training) -> AveragedModel | None:
    """The moving average, or None for ema_decay 0. Its first update copies, the n-th later one uses decay(n)."""
    if settings.ema_decay == 0:
        return None

    def average(averaged: Any, current: Any, updates: Any) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(settings.ema_decay, int(updates)))

    return AveragedModel(module, multi_avg_fn=average)


@contextmanager
def averaged_weights(state: State) -> Iterator[None]:
    """Within it the network holds its moving average, where there is one; after it, its own weights again."""
    if state.ema is None or int(state.ema.n_averaged) == 0:
        yield
        return
    own = list(state.network.parameters())
    kept = [p.detach().clone() for p in own]
    with torch.no_grad():
        for parameter, mean in zip(own, state.ema.module.parameters(), strict=True):
            parameter.copy_(mean)
        try:
            yield
        finally:
            for parameter, value in zip(own, kept, strict=True):
                parameter.copy_(value)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it no graph reaches the module's parameters, so that a generator's loss leaves its judge alone."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
