"""Fine-tuning by low-rank updates of the UNet's layers (LoRA, Hu et al. 2021), for small devices and little data."""

import copy

from stages.errors import MissingDependencyError
from stages.ldm.model import LatentDiffusion

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
