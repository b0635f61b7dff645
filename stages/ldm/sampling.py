"""A few clips from a model in training, by diffusers' DDIM; `stages.generate` is for everything else."""

import torch
from torch import Tensor

from stages.ldm.folder import scheduler
from stages.ldm.model import LatentDiffusion


@torch.no_grad()
def sample(
    model: LatentDiffusion, condition: Tensor, steps: int, guidance: float, generator: torch.Generator
) -> Tensor:
    """Conditions (B, D) -> scaled latents (B, C, T / P, F / P), with classifier-free guidance.

    The first noise comes from `generator`, on the CPU.
    """
    ddim = scheduler(model.params.ldm)
    ddim.set_timesteps(min(steps, model.params.ldm.diffusion_steps))
    z = torch.randn(len(condition), *model.params.latent_shape, generator=generator).to(condition.device)
    both = torch.cat([condition, model.null.to(condition).expand_as(condition)])
    for t in ddim.timesteps:
        told, untold = model(torch.cat([z, z]), t.expand(len(both)).to(z.device), both).float().chunk(2)
        z = ddim.step(untold + guidance * (told - untold), t, z).prev_sample
    return z
