"""Audio to audio: begin the reverse diffusion from a given clip instead of from noise (SDEdit, Meng et al. 2021)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.audio import io as audio_io
from stages.audio.mel import clip_mel
from stages.errors import DataError, UsageError

if TYPE_CHECKING:
    from stages.generate.pipeline import Pipeline

SILENT_PEAK = 1e-4


@dataclass(frozen=True)
class Init:
    """A clip to begin from: its samples (L,) float32 at the model's rate, their hash, and how far to leave it:
    `strength` 0 gives its reconstruction by VAE and vocoder, 1 ignores it."""

    samples: Tensor
    sha256: str
    strength: float

    def identity(self) -> dict[str, Any]:
        return {"init_sha256": self.sha256, "strength": self.strength}


def read_init(path: Path, sample_rate: int, strength: float) -> Init:
    """Raises UsageError for a strength outside 0 to 1, DataError for a file that is not whole, or silent."""
    samples, _ = audio_io.read(path, sample_rate)
    digest = audio_io.SampleHash(sample_rate)
    digest.update(samples)
    return make_init(torch.from_numpy(samples), digest.hexdigest(), strength)


def make_init(samples: Tensor, sha256: str, strength: float) -> Init:
    """Raises UsageError for a strength outside 0 to 1, DataError for silence."""
    if not 0 <= strength <= 1:
        raise UsageError(f"--strength {strength:g} is not between 0 and 1.")
    if not len(samples) or float(samples.abs().max()) < SILENT_PEAK:
        raise DataError("The audio to begin from is silent.", "Choose another file.")
    return Init(samples, sha256, strength)


@torch.no_grad()
def encode(pipeline: "Pipeline", init: Init, frames: int) -> Tensor:
    """Scaled latents (1, C, frames, F / P) of the clip's start, normalised as in training, padded with silence."""
    audio, mel = pipeline.params.audio, clip_mel(pipeline.params).to(pipeline.device)
    positions = frames * pipeline.params.vae.downsampling
    length = positions * pipeline.params.mel.hop_length
    samples = init.samples[:length].to(pipeline.device)
    samples = samples - samples.mean()
    samples = samples * (audio.peak / samples.abs().max().clamp(min=SILENT_PEAK))
    padded = torch.nn.functional.pad(samples, (0, length - len(samples)))
    mean, _ = pipeline.vae.encode(mel(padded[None]))
    return mean * pipeline.vae.scale


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
