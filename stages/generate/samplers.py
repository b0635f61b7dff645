"""The reverse diffusion: four samplers of diffusers behind one name, and classifier-free guidance around them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from stages.errors import UsageError
from stages.generate.edit import begin

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
DDIM_ONLY = ("clip_sample", "set_alpha_to_one", "thresholding")
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents (B, C, H, W), timestep scalar) -> prediction (B, C, H, W) of noise or velocity."""


def make_scheduler(name: str, config: Mapping[str, Any], steps: int, eta: float) -> Any:
    """A diffusers scheduler with its `steps` timesteps set.

    `config` is the saved scheduler's (betas, prediction type, timestep spacing), so that every sampler solves
    the same diffusion. Raises UsageError for an unknown name, a number of steps that the diffusion does not
    have, or noise (`eta`, DDIM paper eq. 16) for a sampler without any.
    """
    import diffusers

    if name not in SAMPLERS:
        raise UsageError(f"--sampler {name} is none of {', '.join(SAMPLERS)}.")
    total = int(config["num_train_timesteps"])
    if not 1 <= steps <= total:
        raise UsageError(f"--steps {steps} is not between 1 and the model's {total} diffusion steps.")
    if not 0 <= eta <= 1:
        raise UsageError(f"--eta {eta:g} is not between 0 and 1.")
    if eta > 0 and name != "ddim":
        raise UsageError(f"--eta belongs to the sampler ddim; {name} adds no noise.", "Leave it out, or take ddim.")
    kept = {k: v for k, v in config.items() if not k.startswith("_") and (name == "ddim" or k not in DDIM_ONLY)}
    if steps == total:
        kept["steps_offset"] = 0  # every time is visited, and an offset would lead beyond the last
    scheduler = getattr(diffusers, SAMPLERS[name]).from_config(kept)
    scheduler.set_timesteps(steps)
    return scheduler


def guided(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor, null: Tensor, weight: Tensor
) -> Denoiser:
    """Classifier-free guidance, both branches in one batch: e = e_null + w (e_condition - e_null) (paper, 4.1).

    `denoise(latents, timestep, condition)`; `condition` and `null` (B, D), `weight` (B,). Where every weight
    is 1 the unconditional branch would vanish and is not computed.
    """
    if bool((weight == 1).all()):
        return lambda latents, timestep: denoise(latents, timestep, condition)
    both = torch.cat([null, condition])

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        without, with_ = denoise(torch.cat([latents, latents]), timestep, both).chunk(2)
        return without + weight.view(-1, 1, 1, 1) * (with_ - without)

    return predict


def sample(
    predict: Denoiser,
    noise: Tensor,
    scheduler: Any,
    generators: Sequence[Generator],
    eta: float = 0.0,
    on_step: Callable[[], None] = lambda: None,
    init: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Latents (B, C, H, W) from standard normal `noise` of the same shape, or from `init` with noise (`begin`).

    With `eta` > 0 the noise of every step of clip b is drawn from `generators[b]`, so that a clip does not
    depend on its neighbours in the batch.
    """
    latents, times = noise * scheduler.init_noise_sigma, scheduler.timesteps
    if init is not None:
        latents, times = begin(init, noise, scheduler, strength)
    for timestep in times:
        prediction = predict(scheduler.scale_model_input(latents, timestep), timestep)
        extra = {"eta": eta, "variance_noise": normal(noise.shape[1:], generators, noise)} if eta > 0 else {}
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
        on_step()
    return latents


def normal(shape: Sequence[int], generators: Sequence[Generator], like: Tensor | None = None) -> Tensor:
    """Standard normal (B, *shape), row b from the CPU generator b, on the device and of the dtype of `like`."""
    rows = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
    return rows if like is None else rows.to(like)
