"""A trained model folder as one function from prompts to sound.

text -> CLAP (B, D) -> guided reverse diffusion (B, C, T / P, F / P) -> VAE (B, T, F) -> vocoder (B, L)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stages.audio.level import limited
from stages.clap.model import Clap, load_clap
from stages.errors import ModelError
from stages.generate.canvas import Canvas
from stages.generate.edit import Edit
from stages.generate.gate import Nearest, Neighbour, steered
from stages.generate.prompts import SEED_LIMIT, Prompt
from stages.generate.reuse import Reuse, Split, SplitUnet
from stages.generate.samplers import (
    Away,
    Denoiser,
    diffusion,
    guided,
    keeping,
    make_scheduler,
    normal,
    sample,
)
from stages.generate.settings import FEW_STEPS, Settings, check_length, read_scheduler
from stages.generate.windows import blend, decode_mel, vocode
from stages.ldm import lora
from stages.ldm.model import LatentDiffusion, load_ldm
from stages.params import Params
from stages.store import model_card, model_digest, verify_model
from stages.vae.model import Vae, load_vae
from stages.vocoder.model import Vocoder, load_vocoder

CANDIDATE_STEP = 2_654_435_769  # 2^32 over the golden ratio: far from the seeds of neighbouring rows


@dataclass(frozen=True)
class Clip:
    """One finished clip: waveform (L,) float32 with headroom, the gain that made it (1: untouched), its
    CLAP similarity to the prompt, which candidate it is, and the nearest training clip where there is an index."""

    prompt: Prompt
    waveform: Tensor
    gain: float
    clap_score: float
    candidate: int
    neighbour: Neighbour | None = None
    too_close: bool = False


class Pipeline(nn.Module):
    """UNet, CLAP, VAE and vocoder of one `ldm` folder, in float32 and eval mode."""

    def __init__(
        self, ldm: LatentDiffusion, clap: Clap, vae: Vae, vocoder: Vocoder, scheduler: dict[str, Any], digest: str
    ) -> None:
        super().__init__()
        self.params: Params = ldm.params
        self.ldm, self.clap, self.vae, self.vocoder = ldm, clap, vae, vocoder
        self.scheduler, self.digest, self.few_steps = scheduler, digest, False

    @classmethod
    def load(cls, folder: Path, device: str | torch.device | None = None, few_steps: bool = False) -> "Pipeline":
        """On `device`, else on the accelerator there is, else on the CPU; with `few_steps` its weights for few steps.

        Raises ModelError when there is no whole pipeline in `folder` or a file differs from its seal."""
        model_card(folder, "ldm")
        problems = verify_model(folder)
        if problems:
            raise ModelError(
                f"{folder} differs from its seal: {'; '.join(problems)}.", "Train, copy or import it again."
            )
        scheduler = read_scheduler(folder)
        parts = load_ldm(folder), load_clap(folder), load_vae(folder), load_vocoder(folder)
        if few_steps:
            lora.update(parts[0], folder / lora.FEW_STEPS)
        target = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        pipeline = cls(*parts, scheduler, model_digest(folder)).to(target).eval()
        pipeline.few_steps = few_steps
        return pipeline

    @property
    def device(self) -> torch.device:
        return self.ldm.null.device

    @property
    def position_samples(self) -> int:
        """What one latent position stands for."""
        return self.params.position_samples

    def positions(self, seconds: float) -> int:
        """Latent positions in time for a result: at least a whole trained clip.

        Raises UsageError for a length that is nothing, or beyond LONGEST_SECONDS.
        """
        check_length(seconds, self.params.audio.sample_rate)
        return max(math.ceil(self.samples(seconds) / self.position_samples), self.params.latent_shape[1])

    def timesteps(self, settings: Settings) -> Tensor:
        """The diffusion times that a run visits. Raises UsageError for more than the diffusion has."""
        scheduler = make_scheduler(settings.sampler, self.scheduler, settings.steps)
        return torch.as_tensor(scheduler.timesteps)

    def samples(self, seconds: float) -> int:
        return round(seconds * self.params.audio.sample_rate)

    def truncated(self, text: str) -> bool:
        """Whether CLAP's tokenizer cuts the text."""
        tokens = self.clap.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return len(tokens) > self.params.clap.text.max_tokens

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(B, D), one text at a time, so that no embedding depends on what else was asked for."""
        return torch.cat([self.clap.embed_text([text]) for text in texts])

    @torch.no_grad()
    def waveforms(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[int],
        settings: Settings,
        on_step: Callable[[], None] = lambda: None,
        edit: Edit | None = None,
        nearest: Nearest | None = None,
    ) -> Tensor:
        """Raw waveforms (B, L) of prompts of one length; `candidates[b]` counts the tries of prompt b.

        Longer ones than a trained clip are made in overlapping windows that agree (stages.generate.windows).
        `nearest` finds the training clips that `settings.avoid` steers away from. All randomness of a clip comes
        from a generator seeded by its own seed (and candidate).
        Raises ModelError when the model gives values that are not numbers.
        """
        seconds = prompts[0].seconds
        canvas = self._plain(seconds) if edit is None else edit.canvas(self, seconds)
        seeds = [(p.seed + k * CANDIDATE_STEP) % SEED_LIMIT for p, k in zip(prompts, candidates, strict=True)]
        generators = [Generator().manual_seed(seed) for seed in seeds]
        channels, window, bins = self.params.latent_shape
        noise = normal((channels, canvas.positions, bins), generators).to(self.device)
        scheduler = make_scheduler(settings.sampler, self.scheduler, settings.steps)
        away = Away(settings.avoid) if settings.avoid and nearest is not None else None
        predict = self.denoiser(prompts, settings, away)

        def whole(latents: Tensor, timestep: Tensor) -> Tensor:
            return blend(lambda part: predict(part, timestep), latents, window, canvas.ring, (2, 2))

        found: Denoiser = whole
        process = diffusion(scheduler)
        if canvas.kept is not None and canvas.start is not None:
            found = keeping(found, canvas.start, canvas.kept, process)
        if away is not None and nearest is not None:
            found = steered(found, away, partial(self._like, canvas, nearest), process, scheduler.timesteps)
        start = None if canvas.kept is not None else canvas.start
        latents = sample(found, noise, scheduler, generators, settings.eta, on_step, start, canvas.strength)
        audio = canvas.finish(latents)
        if not audio.isfinite().all():
            raise ModelError(
                "The model gave values that are not numbers.", "Check it: musicldm model verify; train again."
            )
        return audio

    def denoiser(self, prompts: Sequence[Prompt], settings: Settings, away: Away | None = None) -> Denoiser:
        """Guided predictions for a window of each prompt's latents (B, C, T / P, F / P)."""
        condition = self.embed([p.prompt for p in prompts])
        weight = torch.tensor([p.guidance for p in prompts], device=self.device)
        total = int(self.scheduler["num_train_timesteps"])
        denoise: Callable[[Tensor, Tensor, Tensor], Tensor] = self.ldm
        if (settings.sampler == FEW_STEPS) != self.few_steps:
            raise ValueError(f"the pipeline was loaded with few_steps={self.few_steps}, for {settings.sampler}")
        if self.few_steps:  # guidance is in its weights
            return guided(denoise, condition, condition, torch.ones_like(weight))
        if settings.reuse > 1:
            unet = self.ldm.unet
            denoise = Reuse(unet if isinstance(unet, Split) else SplitUnet(unet), settings.reuse)
        return guided(denoise, condition, self._null(prompts), weight, settings.interval, total, away)

    def _plain(self, seconds: float) -> Canvas:
        return Canvas(self.positions(seconds), lambda latents: self.decode(latents)[:, : self.samples(seconds)])

    def _like(self, canvas: Canvas, nearest: Nearest, latents: Tensor) -> Tensor:
        """The conditions (B, D) of the training clips nearest to what the latents sound like."""
        return torch.stack([nearest(row.cpu()).vector for row in canvas.finish(latents)]).to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, H, F / P), of any length -> waveforms (B, H * P * hop_length)."""
        mel = decode_mel(self.vae, latents / self.vae.scale, self.params.latent_shape[1])
        return vocode(self.vocoder, mel, self.params.clip_frames).float()

    @torch.no_grad()
    def score(self, prompt: Prompt, waveforms: Tensor) -> Tensor:
        """CLAP similarity (B,) of waveforms (B, L) with the prompt, in [-1, 1].

        CLAP hears them as it heard its training clips: mean removed, peak at audio.peak.
        """
        centred = waveforms - waveforms.mean(1, keepdim=True)
        peaks = centred.abs().amax(1, keepdim=True).clamp(min=torch.finfo().tiny)
        heard, rate = centred * (self.params.audio.peak / peaks), self.params.audio.sample_rate
        audio = torch.cat([self.clap.embed_audio(row[None], rate) for row in heard])
        return (audio @ self.embed([prompt.prompt]).T)[:, 0]

    def ranked(self, prompt: Prompt, waveforms: Tensor, edit: Edit | None = None) -> list[Clip]:
        """The candidates (N, L), the one that fits the prompt best first, scaled down where they lack headroom.

        Those of an edit that keeps a file's samples stay as they are.
        """
        scores = self.score(prompt, waveforms)
        order = scores.argsort(descending=True, stable=True).tolist()
        finish = _unscaled if edit is not None and edit.keeps_samples else limited
        return [Clip(prompt, *finish(waveforms[k].cpu()), float(scores[k]), k) for k in order]

    def _null(self, prompts: Sequence[Prompt]) -> Tensor:
        """What guidance leads away from, (B, D): the learned null vector, or the negative prompt's embedding."""
        return torch.stack([self.ldm.null if p.negative is None else self.embed([p.negative])[0] for p in prompts])


def _unscaled(waveform: Tensor) -> tuple[Tensor, float]:
    return waveform, 1.0
