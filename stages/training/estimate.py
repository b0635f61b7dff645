"""What a training will take, from a few of its own steps on this device, before any of it is begun."""

import math
import resource
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from stages.progress import Progress, silent
from stages.training.checkpoint import Position
from stages.training.log import Journal
from stages.training.loop import Run
from stages.training.state import State, Task

WARM, MEASURED = 2, 5  # steps
SHORTEST = 2.0  # seconds that are measured at least: a moment of a shared machine says little of the next hours


class Phased(Task, Protocol):
    """A task that says from which steps on a step costs something else."""

    phases: tuple[int, ...]  # first 0, then e.g. where the adversary begins


@runtime_checkable
class WithExtra(Protocol):
    """A task that spends time beside its steps."""

    def extra_seconds(self, device: torch.device) -> float:
        """Seconds a step, on average over the training."""


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, times in seconds."""

    device: str
    precision: str
    processes: int
    steps: int
    parameters: dict[str, int]  # by network
    trained: int
    state_bytes: int  # weights, gradients, both moments of Adam, moving average
    peak_bytes: int  # of this process on a CPU, of the device on a GPU; loader workers not counted
    step_seconds: dict[int, float]  # by the first step they hold from
    extra_seconds: float  # a step, e.g. for mixed clips
    valid_seconds: float  # one validation, without samples
    total_seconds: float


def estimate(task: Phased, progress: Progress = silent) -> Estimate:
    """Take some steps of each phase of `task`, writing nothing; its state is of no use afterwards.

    Samples, checkpoints, the start and the end are not counted. Raises what a step raises.
    """
    run = Run(task, Path(), {}, progress, _nobody, _nobody)
    run.to_device()
    device, steps = run.accelerator.device, task.settings.steps
    parameters, trained, state = sizes(task.state)
    extra = task.extra_seconds(device) if isinstance(task, WithExtra) else 0.0
    firsts = sorted({first for first in task.phases if first < steps})
    with run.wrapped() as backward:
        seconds = {first: _measure(run, backward, first) for first in firsts}
        valid = _measure_validation(run)
    lengths = [after - first for first, after in pairwise([*firsts, steps])]
    return Estimate(
        device=str(device), precision=run.accelerator.mixed_precision.replace("no", "fp32"),
        processes=run.accelerator.num_processes,
        steps=steps, parameters=parameters, trained=trained, state_bytes=state, peak_bytes=_peak(device),
        step_seconds=seconds, extra_seconds=extra, valid_seconds=valid,
        total_seconds=extra * steps + valid * math.ceil(steps / task.settings.valid_every)
        + sum(n * seconds[first] for first, n in zip(firsts, lengths, strict=True)),
    )  # fmt: skip


def sizes(state: State) -> tuple[dict[str, int], int, int]:
    """Numbers of parameters by network, how many are trained, and bytes of the whole training state."""
    networks = state.modules if state.ema is None else {**state.modules, "moving average": state.ema.module}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in networks.items()}
    trained = [p for module in state.modules.values() for p in module.parameters() if p.requires_grad]
    held = sum(_bytes(module) for module in networks.values())
    return counts, sum(p.numel() for p in trained), held + sum(3 * p.numel() * p.element_size() for p in trained)


def _measure(run: Run, backward: Any, first: int) -> float:
    """Mean seconds of a step from step `first` on, the loader's part included: steps that mix clips take longer."""
    run.position = Position(first)
    marks, unwritten = [time.perf_counter()], Journal(None)
    for number, (step, batch) in enumerate(run.batches(), start=1):
        run.step(batch, step, backward, unwritten)
        run.progress(f"measuring from step {first}", min(number, WARM + MEASURED), WARM + MEASURED)
        marks.append(time.perf_counter())
        if number >= WARM + MEASURED and marks[-1] - marks[WARM] >= SHORTEST:
            break
    seconds = np.diff(marks)
    return float(np.mean(seconds[WARM:] if len(seconds) > WARM else seconds))


def _measure_validation(run: Run) -> float:
    """Seconds of a validation, by its first batch; whole clips may need more memory than a step's segments."""
    batches = run.valid_batches()
    begun = time.perf_counter()
    if batches:
        run.valid_figures(batches[:1])
    return (time.perf_counter() - begun) * len(batches)


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in [*module.parameters(), *module.buffers()])


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _nobody(_text: str) -> None:
    return None
