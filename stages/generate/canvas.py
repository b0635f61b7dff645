"""How edits are made: what of the latents is given, and how the rest is put together with the file's own samples.

Audio to audio begins the reverse diffusion from a given clip instead of from noise (SDEdit, Meng et al. 2021).
Continuation and inpainting hold the latents of what is kept at every step, so that the rest is made to fit; what is
kept comes out as the samples that went in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.audio.mel import clip_mel
from stages.generate.edit import SILENT_PEAK, Continuation, Init, Inpainting, Sound
from stages.generate.join import bridge, crossfade, level_like
from stages.generate.windows import encode_mel

if TYPE_CHECKING:
    from stages.generate.pipeline import Pipeline

CONTEXT_SHARE = 0.5  # of a trained clip: how much of a file's end a continuation listens to
FADE_SECONDS = 0.02


@dataclass(frozen=True)
class Canvas:
    """What one sampling works on: so many latent positions in time, perhaps as a ring, and what is given of them.

    `start` (1, C, H, W) is where sampling begins at `strength`, or is held wherever `kept` (1, 1, H, 1) is true.
    `finish` turns the denoised latents (B, C, H, W) into the resulting waveforms (B, L).
    """

    positions: int
    finish: Callable[[Tensor], Tensor]
    ring: bool = False
    start: Tensor | None = None
    strength: float = 1.0
    kept: Tensor | None = None


def of_init(edit: Init, pipeline: "Pipeline", seconds: float) -> Canvas:
    positions = pipeline.positions(seconds)
    samples = torch.from_numpy(edit.sound.samples)[: positions * pipeline.position_samples]
    start = encode(pipeline, samples, positions)

    def finish(latents: Tensor) -> Tensor:
        return pipeline.decode(latents)[:, : pipeline.samples(seconds)]

    return Canvas(positions, finish, start=start, strength=edit.strength)


def of_continuation(edit: Continuation, pipeline: "Pipeline", seconds: float) -> Canvas:
    """The file's end, as many whole latent positions as half a clip has, then what is new. Raises DataError."""
    edit.check(pipeline.params)
    size, clip = pipeline.position_samples, pipeline.params.latent_shape[1]
    samples = torch.from_numpy(edit.sound.samples)
    new = pipeline.samples(edit.seconds(seconds, 0)) - len(samples)
    known = min(round(clip * CONTEXT_SHARE), len(samples) // size)
    context = samples[-known * size :]
    positions = max(clip, known - (-new // size))
    start = encode(pipeline, mirrored(context, positions * size), positions)
    kept = (torch.arange(positions, device=start.device) < known).view(1, 1, -1, 1)
    fade = min(new, _fade_samples(edit.sound))

    def finish(latents: Tensor) -> Tensor:
        audio = pipeline.decode(latents)
        audio = level_like(audio, context.to(audio), slice(0, len(context)))
        old = samples.to(audio)
        return torch.stack([torch.cat([old, bridge(old, row[len(context) :][:new], fade)]) for row in audio])

    return Canvas(positions, finish, start=start, kept=kept)


def of_inpainting(edit: Inpainting, pipeline: "Pipeline") -> Canvas:
    """The span and the music around it. Raises UsageError."""
    (begin, end), (origin, kept) = edit.span, edit.layout(pipeline.params)
    samples = torch.from_numpy(edit.sound.samples)
    part = samples[origin : origin + len(kept) * pipeline.position_samples]
    start = encode(pipeline, part, len(kept))

    def finish(latents: Tensor) -> Tensor:
        audio = pipeline.decode(latents)[:, : len(part)]
        outside = torch.ones(len(part), dtype=torch.bool, device=audio.device)
        outside[begin - origin : end - origin] = False
        audio = level_like(audio, part.to(audio), outside)
        return torch.stack([_filled(edit, samples.to(row), row[begin - origin : end - origin]) for row in audio])

    return Canvas(len(kept), finish, start=start, kept=torch.from_numpy(kept).view(1, 1, -1, 1).to(start.device))


def _filled(edit: Inpainting, samples: Tensor, new: Tensor) -> Tensor:
    """`samples` (L,) with `new` in the edit's span, faded over at both ends but those of the file."""
    begin, end = edit.span
    fade = min(len(new) // 2, _fade_samples(edit.sound))
    old = samples[begin:end]
    if begin > 0:
        new = torch.cat([crossfade(old[:fade], new[:fade]), new[fade:]])
    if end < len(samples):
        new = torch.cat([new[:-fade], crossfade(new[-fade:], old[-fade:])])
    return torch.cat([samples[:begin], new.clamp(-1, 1), samples[end:]])


def _fade_samples(sound: Sound) -> int:
    return round(FADE_SECONDS * sound.sample_rate)


@torch.no_grad()
def encode(pipeline: "Pipeline", samples: Tensor, positions: int) -> Tensor:
    """Scaled latents (1, C, positions, F / P) of samples (L,), normalised as in training, padded with silence."""
    peak, mel = pipeline.params.audio.peak, clip_mel(pipeline.params).to(pipeline.device)
    samples = samples.to(pipeline.device)
    samples = samples - samples.mean()
    samples = samples * (peak / samples.abs().max().clamp(min=SILENT_PEAK))
    padded = torch.nn.functional.pad(samples, (0, positions * pipeline.position_samples - len(samples)))
    return encode_mel(pipeline.vae, mel(padded[None]), pipeline.params.latent_shape[1]) * pipeline.vae.scale


def mirrored(samples: Tensor, length: int) -> Tensor:
    """`samples` (L,), then themselves backwards, forwards and so on up to `length`: no edge where they end."""
    both = torch.cat([samples, samples.flip(0)])
    return both.repeat(-(-length // len(both)))[:length]
