"""A trained model folder as one function from prompts to sound.

text -> CLAP (B, D) -> guided reverse diffusion (B, C, T / P, F / P) -> VAE (B, T, F) -> vocoder (B, L)
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stages.clap.model import Clap, load_clap
from stages.errors import ModelError, UsageError
from stages.generate.edit import Init, encode
from stages.generate.manifest import Settings
from stages.generate.prompts import SEED_LIMIT, Prompt
from stages.generate.samplers import guided, make_scheduler, normal, sample
from stages.ldm.model import LatentDiffusion, load_ldm
from stages.params import Params
from stages.store import model_card, model_digest, verify_model
from stages.vae.model import Vae, load_vae
from stages.vocoder.model import Vocoder, load_vocoder

LONGEST_CLIPS = 12  # in one pass; the UNet's attention grows with the square of the length
CANDIDATE_STEP = 2_654_435_769  # 2^32 over the golden ratio: far from the seeds of neighbouring rows
SCHEDULER = Path("scheduler/scheduler_config.json")


@dataclass(frozen=True)
class Clip:
    """One finished clip: waveform (L,) float32 within [-1, 1], the gain that kept it there (1: untouched), and
    its CLAP similarity to the prompt, the best of its candidates."""

    prompt: Prompt
    waveform: Tensor
    gain: float
    clap_score: float
    candidate: int


class Pipeline(nn.Module):
    """UNet, CLAP, VAE and vocoder of one `ldm` folder, in float32 and eval mode."""

    def __init__(
        self, ldm: LatentDiffusion, clap: Clap, vae: Vae, vocoder: Vocoder, scheduler: dict[str, Any], digest: str
    ) -> None:
        super().__init__()
        self.params: Params = ldm.params
        self.ldm, self.clap, self.vae, self.vocoder = ldm, clap, vae, vocoder
        self.scheduler, self.digest = scheduler, digest

    @classmethod
    def load(cls, folder: Path, device: str | torch.device | None = None) -> "Pipeline":
        """On `device`, else on the accelerator there is, else on the CPU.

        Raises ModelError when there is no whole pipeline in `folder` or a file differs from its seal."""
        model_card(folder, "ldm")
        problems = verify_model(folder)
        if problems:
            raise ModelError(
                f"{folder} differs from its seal: {'; '.join(problems)}.", "Train, copy or import it again."
            )
        try:
            scheduler = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / SCHEDULER} cannot be read: {error}.", "Train the model again.") from error
        parts = load_ldm(folder), load_clap(folder), load_vae(folder), load_vocoder(folder)
        target = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        return cls(*parts, scheduler, model_digest(folder)).to(target).eval()

    @property
    def device(self) -> torch.device:
        return self.ldm.null.device

    def latent_frames(self, seconds: float) -> int:
        """Latent positions in time for a clip: at least a whole trained clip, else rounded up to the UNet's stride.

        Raises UsageError for a length that is nothing, or too long for one pass.
        """
        longest = LONGEST_CLIPS * self.params.audio.clip_seconds
        if not 0 < seconds <= longest or self.samples(seconds) == 0:
            raise UsageError(f"--seconds {seconds:g} is not above 0 and at most {longest:g}.")
        position = self.params.mel.hop_length * self.params.vae.downsampling
        stride = 2 ** (len(self.params.ldm.block_out_channels) - 1)
        wanted = math.ceil(self.samples(seconds) / (position * stride)) * stride
        return max(wanted, self.params.latent_shape[1])

    def timesteps(self, settings: Settings) -> Tensor:
        """The diffusion times that a run visits. Raises UsageError for settings that cannot be."""
        scheduler = make_scheduler(settings.sampler, self.scheduler, settings.steps, settings.eta)
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
        init: Init | None = None,
    ) -> Tensor:
        """Raw waveforms (B, L) of prompts of one length; `candidates[b]` counts the tries of prompt b.

        With `init` they begin from that clip.
        All randomness of a clip comes from a generator seeded by its own seed (and candidate).
        Raises ModelError when the model gives values that are not numbers.
        """
        channels, _, bins = self.params.latent_shape
        frames = self.latent_frames(prompts[0].seconds)
        seeds = [(p.seed + k * CANDIDATE_STEP) % SEED_LIMIT for p, k in zip(prompts, candidates, strict=True)]
        generators = [Generator().manual_seed(seed) for seed in seeds]
        noise = normal((channels, frames, bins), generators).to(self.device)
        condition, weight = self.embed([p.prompt for p in prompts]), [p.guidance for p in prompts]
        predict = guided(self.ldm, condition, self._null(prompts), torch.tensor(weight, device=self.device))
        scheduler = make_scheduler(settings.sampler, self.scheduler, settings.steps, settings.eta)
        start = None if init is None else encode(self, init, frames)
        strength = 1.0 if init is None else init.strength
        latents = sample(predict, noise, scheduler, generators, settings.eta, on_step, start, strength)
        audio = self.decode(latents)[:, : self.samples(prompts[0].seconds)]
        if not audio.isfinite().all():
            raise ModelError(
                "The model gave values that are not numbers.", "Check it: musicldm model verify; train again."
            )
        return audio

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, T / P, F / P) -> waveforms (B, L)."""
        return self.vocoder(self.vae.decode(latents / self.vae.scale)).float()

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

    def best(self, prompt: Prompt, waveforms: Tensor) -> Clip:
        """The candidate (of (N, L) waveforms) that fits the prompt best, scaled down where it would clip."""
        scores = self.score(prompt, waveforms)
        chosen = int(scores.argmax())
        peak = float(waveforms[chosen].abs().max())
        gain = 1.0 if peak <= 1 else 1 / peak
        return Clip(prompt, (waveforms[chosen] * gain).cpu(), gain, float(scores[chosen]), chosen)

    def _null(self, prompts: Sequence[Prompt]) -> Tensor:
        """What guidance leads away from, (B, D): the learned null vector, or the negative prompt's embedding."""
        return torch.stack([self.ldm.null if p.negative is None else self.embed([p.negative])[0] for p in prompts])
