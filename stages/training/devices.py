"""Where a training runs: Accelerate with the wanted precision, and the way from losses to optimizer steps."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from stages.errors import Interrupted, ParamsError
from stages.params import Training
from stages.precision import cpu_multiplies_bfloat16
from stages.training.state import State


def build_accelerator(settings: Training) -> Accelerator:
    """Accelerate with settings.precision; `auto` is bf16 where the hardware multiplies it, else fp32.

    Raises ParamsError where Accelerate's launcher was asked for FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ParamsError(
            "Training in shards (FSDP) is not supported; each process holds the whole network.",
            "Start it with accelerate launch --config_file docs/accelerate/ddp.yaml, or cpu.yaml without GPUs.",
        )
    precision = settings.precision
    if precision == "auto":
        cuda = torch.cuda.is_available()
        precision = "bf16" if (torch.cuda.is_bf16_supported() if cuda else cpu_multiplies_bfloat16()) else "fp32"
    AcceleratorState._reset_state(reset_partial_state=True)  # or one process could not train twice, each in its way
    processes()
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def processes() -> PartialState:
    """This process among all of its training. Without GPUs Accelerate must be told, or each would train alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


@contextmanager
def float_norms(modules: Iterable[nn.Module], accelerator: Accelerator) -> Iterator[None]:
    """Meanwhile group norms compute in float32 on a CPU that trains in bf16.

    torch's backward of a bf16 group norm in channels_last takes five times as long: half of a VAE's step.
    """
    needed = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    norms = [m for module in modules for m in module.modules() if isinstance(m, nn.GroupNorm)] if needed else []
    hooks = [norm.register_forward_pre_hook(lambda _norm, given: (given[0].float(),)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def leave_processes() -> None:
    """Part from the other processes of a training, if there are any: at the end of the command, however it ends."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the one of its training that writes and reports."""
    return bool(processes().is_main_process)


@contextmanager
def lost_processes(run: Path) -> Iterator[None]:
    """Turn the end of another process of the same training, seen in an exchange with it, into Interrupted.

    What this process holds may be of half a step; the checkpoints in `run` are whole.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise Interrupted(
            f"Another process of this training is gone; its last checkpoint is in {run}.",
            "The same command goes on from there, with any number of processes.",
        ) from error


class Backpropagation:
    """Gathers gradients over micro-batches, and takes all optimizers' steps together or none of them."""

    def __init__(self, accelerator: Accelerator, settings: Training, state: State, steppers: dict[str, Any]) -> None:
        self.accelerator, self.settings, self.state, self.steppers = accelerator, settings, state, steppers
        self.used: set[str] = set()

    def __call__(self, name: str, loss: Tensor) -> None:
        self.used.add(name)
        self.accelerator.backward(loss / self.settings.accumulation)

    def mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "mean")

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around one micro-batch: processes exchange gradients only in the last one."""
        with ExitStack() as stack:
            for module in self.state.modules.values() if not last else ():
                stack.enter_context(self.accelerator.no_sync(module))
            yield

    def clip(self) -> dict[str, float]:
        """Gradient norms before clipping, by optimizer."""
        norms = {}
        for name in sorted(self.used):
            parameters = [p for group in self.steppers[name].param_groups for p in group["params"]]
            limit = self.settings.grad_clip or float("inf")
            norms[name] = float(self.accelerator.clip_grad_norm_(parameters, limit))
        return norms

    def finish(self, take: bool) -> None:
        for name in sorted(self.used) if take else ():
            self.steppers[name].step()
            self.state.schedulers[name].step()
        for stepper in self.steppers.values():
            stepper.zero_grad(set_to_none=True)
        self.used.clear()
