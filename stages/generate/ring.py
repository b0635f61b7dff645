"""How loops are made: latents, mels and sound that are rings, whose end is as near to their start as any two places.

The latents are a ring (stages.generate.windows) from the first noise to the vocoder. One latent position is no whole
part of a bar, so the log-mel is stretched, by half a position at most, to the nearest whole frame, and the waveform
by half a frame at most, as a band-limited periodic signal, to the exact number of samples: both keep the ring closed,
and less than 0.1% of a loop of a few seconds is far below what one hears as another pitch.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.audio.mel import clip_mel
from stages.generate.canvas import Canvas
from stages.generate.loop import Loop
from stages.generate.windows import decode_mel, vocode

if TYPE_CHECKING:
    from stages.generate.pipeline import Pipeline

SMOOTH_FRAMES = 2  # onsets count for the beat when they are so near to it


def of_loop(loop: Loop, pipeline: "Pipeline", seconds: float) -> Canvas:
    length = pipeline.samples(seconds)
    positions = max(1, round(length / pipeline.position_samples))

    def finish(latents: Tensor) -> Tensor:
        audio = ring_audio(pipeline, latents, length)
        shifts = [first_downbeat(row, pipeline, loop.bars, loop.metre) for row in audio]
        return torch.stack([row.roll(-shift) for row, shift in zip(audio, shifts, strict=True)])

    return Canvas(positions, finish, ring=True)


@torch.no_grad()
def ring_audio(pipeline: "Pipeline", latents: Tensor, length: int) -> Tensor:
    """Scaled latents of a ring (B, C, H, W) -> one period of its sound (B, length)."""
    params = pipeline.params
    clip = params.latent_shape[1]
    mel = decode_mel(pipeline.vae, latents / pipeline.vae.scale, clip, ring=True)
    mel = stretch_ring(mel, max(1, round(length / params.mel.hop_length)))
    audio = vocode(pipeline.vocoder, mel, params.clip_frames, ring=True).float()
    return resample_ring(audio, length)


def stretch_ring(mel: Tensor, frames: int) -> Tensor:
    """A periodic log-mel (B, T, F) at `frames` equal steps of its period, linearly interpolated: (B, frames, F)."""
    total = mel.shape[1]
    at = torch.arange(frames, device=mel.device, dtype=torch.float64) * (total / frames)
    low = at.floor().long()
    share = (at - low).to(mel.dtype).view(1, -1, 1)
    return torch.lerp(mel[:, low % total], mel[:, (low + 1) % total], share)


def resample_ring(audio: Tensor, length: int) -> Tensor:
    """A periodic signal (B, L) at `length` equal steps of its period, by its Fourier series."""
    if audio.shape[1] == length:
        return audio
    spectrum = torch.fft.rfft(audio.double())
    bins, kept = length // 2 + 1, min(audio.shape[1], length)
    spectrum = torch.nn.functional.pad(spectrum[:, :bins], (0, max(0, bins - spectrum.shape[1])))
    spectrum[:, (kept + 1) // 2 :] = 0  # at and above the lower Nyquist frequency there is no sure sign
    return (torch.fft.irfft(spectrum, length) * (length / audio.shape[1])).to(audio.dtype)


def first_downbeat(audio: Tensor, pipeline: "Pipeline", bars: int, metre: int) -> int:
    """The sample (of one period (L,)) to begin a loop at: where onsets fit its beats best, and of these beats the
    one of a bar with most onset. A ring may begin anywhere; so it begins on the beat."""
    hop, length = pipeline.params.mel.hop_length, len(audio)
    edge = math.ceil(pipeline.params.mel.n_fft / hop)
    around = torch.arange(-edge * hop, length + edge * hop, device=audio.device) % length
    mel = clip_mel(pipeline.params).to(audio.device)(audio[around][None])[0, edge : edge + length // hop].exp()
    rise = (mel - mel.roll(1, 0)).clamp(min=0).sum(1)
    onsets = sum(rise.roll(k) for k in range(-SMOOTH_FRAMES, SMOOTH_FRAMES + 1))
    assert isinstance(onsets, Tensor)  # noqa: S101  (the sum is not empty)
    beat = length / hop / (bars * metre)
    steps = torch.arange(bars * metre, dtype=torch.float64) * beat
    phases = torch.arange(max(1, math.floor(beat)), dtype=torch.float64)
    at = (phases[:, None] + steps).round().long() % len(onsets)
    phase = int(onsets[at].sum(1).argmax())
    by_beat = onsets[at[phase]].unflatten(0, (bars, metre)).sum(0)
    return round((phase + int(by_beat.argmax()) * beat) * hop) % length
