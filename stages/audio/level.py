"""DC removal and peak limiting of generated audio.

`without_offset` and `limiter` see only the samples near each sample, so audio made in pieces with enough context is the
same as audio made at once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import fftconvolve

PEAK = 0.89  # -1 dBFS, of the loudest sample
OFFSET_SECONDS = 0.1  # of sound that an offset is the mean of
LIMITER_SECONDS = 0.01  # before and after a peak in which the limiter's gain moves


def without_offset(audio: Tensor, sample_rate: int) -> Tensor:
    """Waveforms (B, L) float32 less their local mean, weighted by a Hann window of OFFSET_SECONDS: zero phase.

    A constant is removed, 10 Hz is halved, and from 20 Hz on the gain is 1 within 3%. At the ends the mean is over the
    samples there are.
    """
    half, length = round(OFFSET_SECONDS / 2 * sample_rate), audio.shape[1]
    window = torch.hann_window(2 * half + 1, periodic=False, device=audio.device)
    sums, at = F.pad(window.cumsum(0), (1, 0)), torch.arange(length, device=audio.device)
    there = sums[(half + length - at).clamp(max=2 * half + 1)] - sums[(half - at).clamp(min=0)]
    return audio - fftconvolve(audio, window[None], "full")[:, half:-half] / there


def limited(audio: Tensor) -> tuple[Tensor, float]:
    """A waveform (L,), scaled as a whole to at most PEAK, and the gain: 1 where it is no louder."""
    gain = PEAK / max(float(audio.abs().max()), PEAK)
    return audio * gain, gain


def limiter(audio: Tensor, sample_rate: int) -> Tensor:
    """A waveform (L,) at most at PEAK, with its gain lowered around louder peaks only.

    The gain that a peak needs is held for LIMITER_SECONDS on both sides, then smoothed by a Hann window of that length,
    so that no sample gets more gain than it needs.
    """
    half = round(LIMITER_SECONDS * sample_rate)
    loud = audio.abs().clamp(min=PEAK)
    held = F.max_pool1d(((loud - PEAK) / loud)[None], 2 * half + 1, 1, half)
    window = torch.hann_window(2 * half + 1, periodic=False, device=audio.device)
    smooth = F.conv1d(F.pad(held, (half, half), "replicate")[None], (window / window.sum())[None, None])
    return (audio * (1 - smooth[0, 0])).clamp(-PEAK, PEAK)
