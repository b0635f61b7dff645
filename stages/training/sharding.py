"""A network too large for one device: weights, gradients, moments and average in shards over all processes (FSDP2).

Accelerate does it where its configuration says so. Checkpoints are whole, so that a training goes on with any number
of processes, sharded or not.
"""

import copy
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from stages.errors import ParamsError
from stages.training.state import State


def check_shards(accelerator: Accelerator, state: State, name: str) -> None:
    """Raise ParamsError where shards were asked for and the training `name` cannot have them."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and accelerator.num_processes > 1
    if not asked:
        return
    scalars = any(not parameter.ndim for parameter in state.network.parameters())
    if len(state.modules) > 1 or scalars:
        raise ParamsError(
            f"The training of {name} cannot be spread in shards (FSDP); only that of the diffusion model can.",
            "Train it with a copy on each device: accelerate launch --config_file docs/accelerate/ddp.yaml",
        )
    if accelerator.distributed_type is not DistributedType.FSDP:  # Accelerate would train copies and say nothing
        raise ParamsError(
            "Shards (FSDP) need GPUs, and there are none.",
            "On CPUs train with a copy in each process: accelerate launch --config_file docs/accelerate/cpu.yaml",
        )
    if not accelerator.is_fsdp2:
        raise ParamsError("Shards need FSDP's version 2.", "Set fsdp_version: 2, as docs/accelerate/fsdp.yaml does.")


class Sharding:
    """The shards of a state that `check_shards` let pass, made of the whole of it and put together again."""

    def __init__(self, accelerator: Accelerator, state: State) -> None:
        self.accelerator, self.state = accelerator, state
        ((self.name, self.module),) = state.modules.items()
        for module in (self.module, *([state.ema] if state.ema is not None else [])):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # shards know no other
        self.whole_module, self.whole_ema = copy.deepcopy(self.module).cpu(), copy.deepcopy(state.ema)

    def begin(self) -> Any:
        """Shard the state; returns Accelerate's optimizer."""
        optimizer = self.state.optimizers[self.name]
        moments = optimizer.state_dict()["state"]
        self.state.modules[self.name], stepper = self.accelerator.prepare(self.module, optimizer)
        parameters = optimizer.param_groups[0]["params"]
        optimizer.state.clear()  # of the whole parameters
        for index, values in moments.items():
            mine = parameters[index]
            optimizer.state[mine] = {key: _like(value, mine) for key, value in values.items()}
        if self.state.ema is not None:
            _replace(self.state.ema.module, self.module, lambda average, shard: _like(average.detach(), shard))
        return stepper

    def gathered(self) -> State:
        """A whole copy on the CPU, for a checkpoint; all processes must ask for it."""
        optimizer = self.state.optimizers[self.name]
        with torch.no_grad():
            _copy(self.state.network, self.whole_module)
            if self.state.ema is not None and self.whole_ema is not None:
                _copy(self.state.ema, self.whole_ema)
        held: Any = _Held(_gather(optimizer.state_dict()))
        schedulers, uses = self.state.schedulers, self.state.uses
        return State({self.name: self.whole_module}, {self.name: held}, schedulers, self.whole_ema, uses)

    def end(self) -> None:
        """Every process has the whole network and its average again."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                held = part._get_fsdp_state()
                held._pre_forward_hook_handle.remove()
                held._post_forward_hook_handle.remove()
                part.__class__ = type(part).__bases__[1]
        for module in (self.module, *([self.state.ema] if self.state.ema is not None else [])):
            _replace(module, module, lambda shard, _: _gather(shard.detach()))


class _Held:
    """What an optimizer says of itself, already gathered."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def state_dict(self) -> Any:
        return self.values


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, equal on all processes, in the shards of a parameter; counters stay whole."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.contiguous(), parameter.device_mesh, parameter.placements, src_data_rank=None)


def _replace(module: nn.Module, model: nn.Module, of: Any) -> None:
    """Put of(parameter, the model's parameter of the same name) in the place of each parameter."""
    others = dict(model.named_parameters())
    for name, parameter in list(module.named_parameters()):
        owner, _, last = name.rpartition(".")
        made = nn.Parameter(of(parameter, others[name]), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), last, made)


def _gather(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _gather(value) for key, value in values.items()}
    return values.full_tensor().cpu() if isinstance(values, DTensor) else values


def _copy(source: nn.Module, whole: nn.Module) -> None:
    for (_, value), (_, kept) in zip(source.state_dict().items(), whole.state_dict().items(), strict=True):
        kept.copy_(_gather(value))
