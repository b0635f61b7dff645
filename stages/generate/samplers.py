"""The reverse diffusion: four samplers of diffusers behind one name, and what is wrapped around the network in them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stages.generate.settings import FEW_STEPS, SAMPLERS, check_steps
from stages.ldm.diffusion import few_times

DDIM_ONLY = ("clip_sample", "set_alpha_to_one", "thresholding")
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents (B, C, H, W), timestep scalar) -> prediction (B, C, H, W) of noise or velocity."""


def make_scheduler(name: str, config: Mapping[str, Any], steps: int) -> Any:
    """A diffusers scheduler, of one of SAMPLERS or for FEW_STEPS, with its `steps` timesteps set.

    `config` is the saved scheduler's (betas, prediction type, timestep spacing), so that every sampler solves
    the same diffusion. Raises UsageError for more steps than the diffusion has.
    """
    import diffusers

    check_steps(steps, config)
    kept = {k: v for k, v in config.items() if not k.startswith("_") and (name == "ddim" or k not in DDIM_ONLY)}
    if name == FEW_STEPS:  # DPM-Solver++ of the first order is DDIM, and takes any times
        few = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(kept, **few)
        scheduler.set_timesteps(timesteps=few_times(steps, int(config["num_train_timesteps"]))[:-1].tolist())
        return scheduler
    if steps == int(config["num_train_timesteps"]):
        kept["steps_offset"] = 0  # every time is visited, and an offset would lead beyond the last
    elif name != "ddim":
        kept["timestep_spacing"] = "linspace"  # "leading", DDIM's own, leaves out the noisiest times: docs/LOG.md
    scheduler = getattr(diffusers, SAMPLERS[name]).from_config(kept)
    scheduler.set_timesteps(steps)
    return scheduler


@dataclass
class Away:
    """What guidance steers away from, beside the null vector: conditions (B, D), None as long as there are none."""

    weight: float
    condition: Tensor | None = None


def guided(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    condition: Tensor,
    null: Tensor,
    weight: Tensor,
    interval: tuple[float, float] = (0.0, 1.0),
    total: int = 1000,
    away: Away | None = None,
) -> Denoiser:
    """Classifier-free guidance, all branches in one batch: e = e_null + w (e_condition - e_null) (paper, 4.1).

    `denoise(latents, timestep, condition)`; `condition` and `null` (B, D), `weight` (B,). Outside of `interval`, in
    shares of the `total` diffusion steps, w is 1 (Kynkaanniemi et al. 2024). `away` subtracts its weight times
    (e_away - e_null). Branches that would vanish are not computed.
    """
    unguided = bool((weight == 1).all())

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        plain = unguided or not interval[0] <= float(timestep) / total <= interval[1]
        avoided = None if away is None else away.condition
        if plain and avoided is None:
            return denoise(latents, timestep, condition)
        branches = [null, condition] if avoided is None else [null, condition, avoided]
        found = denoise(torch.cat([latents] * len(branches)), timestep, torch.cat(branches)).chunk(len(branches))
        result = found[1] if plain else found[0] + weight.view(-1, 1, 1, 1) * (found[1] - found[0])
        return result if away is None or avoided is None else result - away.weight * (found[2] - found[0])

    return predict


@dataclass(frozen=True)
class Diffusion:
    """The forward process that a network was trained to undo: alpha_bar (N,), and what the network predicts.

    Networks see x = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise whichever the sampler.
    """

    alpha_bar: Tensor
    prediction: str

    def clean(self, x: Tensor, timestep: Tensor, predicted: Tensor) -> Tensor:
        """The latents z that a prediction stands for."""
        a = self._at(timestep)
        if self.prediction == "v_prediction":
            return a.sqrt() * x - (1 - a).sqrt() * predicted
        return (x - (1 - a).sqrt() * predicted) / a.sqrt()

    def predicted(self, x: Tensor, timestep: Tensor, clean: Tensor) -> Tensor:
        """The prediction that stands for the latents `clean`."""
        a = self._at(timestep)
        return ((a.sqrt() * x if self.prediction == "v_prediction" else x) - self._scale(a) * clean) / (1 - a).sqrt()

    def _at(self, timestep: Tensor) -> Tensor:
        """alpha_bar; between whole times, which Euler visits, by the line between their noise levels, as there."""
        low, high = math.floor(timestep), math.ceil(timestep)
        sigma = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        return 1 / (1 + torch.lerp(sigma[low], sigma[high], float(timestep) - low).square())

    def _scale(self, a: Tensor) -> Tensor:
        return torch.ones_like(a) if self.prediction == "v_prediction" else a.sqrt()


def diffusion(scheduler: Any) -> Diffusion:
    return Diffusion(torch.as_tensor(scheduler.alphas_cumprod), str(scheduler.config.prediction_type))


def keeping(predict: Denoiser, known: Tensor, kept: Tensor, process: Diffusion) -> Denoiser:
    """Hold the latents to `known` (1, C, H, W) wherever `kept` (1, 1, H, 1) is true: there the prediction is the one
    that leads to them, so any sampler ends there, and the rest is made to fit."""

    def predict_rest(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.where(kept, process.predicted(x, timestep, known), predict(x, timestep))

    return predict_rest


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


def steps_taken(steps: int, strength: float) -> int:
    """How many of a run's denoising steps remain when it begins at `strength`."""
    return math.ceil(steps * strength)


def begin(init: Tensor, noise: Tensor, scheduler: Any, strength: float) -> tuple[Tensor, Tensor]:
    """The latents (B, C, H, W) to begin from, and the timesteps that remain: `init` (1 or B, C, H, W) with the
    noise of the first of them. At strength 1 that is noise alone, at 0 nothing is left to do."""
    times = scheduler.timesteps
    skipped = len(times) - steps_taken(len(times), strength)
    if skipped == 0:
        return noise * scheduler.init_noise_sigma, times
    init = init.expand_as(noise)
    if skipped == len(times):
        return init, times[:0]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return scheduler.add_noise(init, noise, times[skipped].expand(len(noise))), times[skipped:]
