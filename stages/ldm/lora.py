"""Fine-tuning by low-rank updates of the UNet's layers (LoRA, Hu et al. 2021), for small devices and little data."""

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.errors import MissingDependencyError, ModelError
from stages.ldm.model import LatentDiffusion
from stages.tensors import read_tensors

FEW_STEPS = "few_steps.safetensors"  # in a pipeline folder: what makes few steps do (stages.ldm.few_steps)

# Attention's projections, the residual blocks' convolutions, and the layers through which they hear the condition.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj"]


def add(model: LatentDiffusion, rank: int) -> None:
    """Freeze all of `model` and give its UNet's layers updates of `rank`, zero at first, that alone are trained.

    Raises MissingDependencyError without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("LoRA needs peft, which is not installed.", "Run: pip install peft") from error
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
    model.unet = get_peft_model(model.unet, config)


def merged(model: LatentDiffusion) -> LatentDiffusion:
    """A copy of a model that `add` was called on, as an ordinary one: the updates are added to its weights."""
    plain = copy.deepcopy(model)
    plain.unet = plain.unet.merge_and_unload()
    return plain


def save(model: LatentDiffusion, path: Path) -> None:
    """The updates of a model that `add` was called on, in half precision: LAYER.down and LAYER.up."""
    parts = {"lora_A.default": "down", "lora_B.default": "up"}
    state: dict[str, Tensor] = {}
    for name, value in model.unet.base_model.model.named_parameters():
        for part, short in parts.items():
            if name.endswith(f".{part}.weight"):
                state[name.replace(f"{part}.weight", short)] = value.detach().half().cpu().contiguous()
    save_file(state, path)


def update(model: LatentDiffusion, path: Path) -> None:
    """Add the updates of a file of `save` to the weights of a model's UNet. Raises ModelError."""
    try:
        state = {name: value.float() for name, value in read_tensors(path).items()}
        with torch.no_grad():
            for name in sorted({name.rpartition(".")[0] for name in state}):
                weight = model.unet.get_parameter(f"{name}.weight")
                down, up = state[f"{name}.down"], state[f"{name}.up"]
                weight += (up.flatten(1) @ down.flatten(1)).view_as(weight).to(weight)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{path} does not fit its UNet: {error}.", "Make it again: musicldm train few-steps"
        ) from error
