"""Where one piece of sound goes over into another."""

import numpy as np
import torch
from torch import Tensor

from stages.audio.level import PEAK

PREDICTED_FROM = 2048  # samples of the end that a continuation's first moments are predicted from
ORDER = 64
WHITE_NOISE = 1e-5  # added to the autocorrelation at lag 0, so that pure tones have a solution, too
MOST_GAIN = 4.0  # 12 dB, either way


def crossfade(old: Tensor, new: Tensor) -> Tensor:
    """(L,) from old to new with weights cos^2 and sin^2: they sum to 1, so what is alike on both sides stays."""
    weight = torch.sin(torch.linspace(0, torch.pi / 2, len(old) + 2, device=old.device)[1:-1]).square()
    return old + weight * (new - old)


def bridge(old: Tensor, new: Tensor, fade: int) -> Tensor:
    """`new` (L,) to be put behind `old` without a click: over its first `fade` samples it comes in while `old`,
    predicted onward, goes out. At most full scale."""
    joined = torch.cat([crossfade(predicted(old, fade), new[:fade]), new[fade:]])
    return joined.clamp(-1, 1)


def predicted(samples: Tensor, count: int) -> Tensor:
    """The next `count` samples (count,) by linear prediction from the last ones (autocorrelation method)."""
    from scipy.linalg import solve_toeplitz  # half a second that only a continuation has to pay
    from scipy.signal import lfilter, lfiltic

    past = samples[-PREDICTED_FROM:].double().cpu().numpy()
    order = min(ORDER, len(past) - 1)
    if order < 1 or not past.any():
        return torch.zeros(count).to(samples)
    windowed = past * np.hanning(len(past) + 2)[1:-1]
    spectrum = np.fft.rfft(windowed, 2 * len(windowed))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: order + 1]
    correlation[0] *= 1 + WHITE_NOISE
    a = np.concatenate([[1.0], -solve_toeplitz(correlation[:-1], correlation[1:])])
    state = lfiltic([1.0], a, past[::-1][:order])
    onward, _ = lfilter([1.0], a, np.zeros(count), zi=state)
    return torch.from_numpy(onward.copy()).to(samples)


def level_like(audio: Tensor, reference: Tensor, where: slice | Tensor) -> Tensor:
    """Waveforms (B, L) scaled so that at `where` they are as loud (RMS) as `reference` is there, each by at most
    MOST_GAIN and to at most PEAK: vocoders do not keep the level of what they were given."""
    wanted = reference[where].square().mean().sqrt()
    heard = audio[:, where].square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
    gain = (wanted / heard).clamp(1 / MOST_GAIN, MOST_GAIN)
    return audio * torch.minimum(gain, PEAK / audio.abs().amax(1, keepdim=True).clamp(min=1e-6))
