"""Latents longer than a clip, and latents that are rings: one network, as long as it was trained for, at a time.

Windows of the trained length overlap by half; what the network says of a position is averaged over the windows
it lies in, each weighing most in its middle and nearly nothing at its edges (MultiDiffusion, Bar-Tal et al. 2023,
with smooth weights). Done at every denoising step, the windows agree on one piece without a seam. On a ring the
windows go around: the end is as near to the start as any position to the next.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stages.vae.model import Vae
from stages.vocoder.model import Vocoder

CONTEXT_FRAMES = 40  # more than what bears on a frame from either side: a HiFi-GAN V1's about 22, a Vocos' of 8 blocks
# and its STFT's 31, then 5 of the offset and 2 of a stream's limiter
Function = Callable[[Tensor], Tensor]


def window_starts(total: int, size: int, ring: bool = False) -> list[int]:
    """First positions of windows of `size` that cover `total` positions, overlapping by half or more.

    Off a ring the first is 0 and the last flush with the end; what is shorter than a window is one of its own
    length.
    """
    if ring:
        count = max(1, math.ceil(2 * total / size))
        return [round(index * total / count) for index in range(count)]
    if total <= size:
        return [0]
    count = math.ceil((total - size) / max(1, size // 2)) + 1
    return [round(index * (total - size) / (count - 1)) for index in range(count)]


def window_weights(size: int) -> Tensor:
    """(size,): how much each position of a window counts, sin^2 over the window, nowhere 0."""
    return torch.sin(math.pi * (torch.arange(size) + 0.5) / size).square()


def blend(function: Function, x: Tensor, size: int, ring: bool, dims: tuple[int, int], ratio: float = 1.0) -> Tensor:
    """`function` applied to overlapping windows of `size` along dims[0] of `x`, averaged along dims[1] of its result.

    The result has `ratio` positions for each of x; window and total must come out whole. What fits one window
    goes through the function as it is.
    """
    total = x.shape[dims[0]]
    if total <= size and not ring:
        return function(x)
    length, made = round(total * ratio), round(size * ratio)
    weight = window_weights(made).to(x.device)
    summed, weights = torch.zeros(0), torch.zeros(length, device=x.device)
    for start in window_starts(total, size, ring):
        rows = (torch.arange(size, device=x.device) + start) % total
        part = function(x.index_select(dims[0], rows))
        shape = [1] * part.ndim
        shape[dims[1]] = made
        if not summed.numel():
            summed = part.new_zeros([length if axis == dims[1] else n for axis, n in enumerate(part.shape)])
        target = (torch.arange(made, device=x.device) + round(start * ratio)) % length
        summed.index_add_(dims[1], target, part * weight.view(shape).to(part.dtype))
        weights.index_add_(0, target, weight)
    shape = [1] * summed.ndim
    shape[dims[1]] = length
    return summed / weights.view(shape).to(summed.dtype)


def encode_mel(vae: Vae, mel: Tensor, positions: int, ring: bool = False) -> Tensor:
    """Log-mel (B, T, F) -> unscaled latent means (B, C, T / P, F / P), by windows of `positions` latent positions."""
    factor = vae.params.vae.downsampling
    return blend(lambda part: vae.encode(part)[0], mel, positions * factor, ring, (1, 2), 1 / factor)


def decode_mel(vae: Vae, latents: Tensor, positions: int, ring: bool = False) -> Tensor:
    """Unscaled latents (B, C, H, W) -> log-mel (B, H * P, F), by windows of `positions`."""
    return blend(vae.decode, latents, positions, ring, (2, 1), vae.params.vae.downsampling)


def vocode(vocoder: Vocoder, mel: Tensor, frames: int, ring: bool = False) -> Tensor:
    """Log-mel (B, T, F) -> waveform (B, T * hop_length), at most `frames` frames at a time.

    The vocoder only convolves, so pieces with enough context make the samples that one pass would.
    """
    total, hop = mel.shape[1], vocoder.params.mel.hop_length
    if ring:
        around = torch.arange(-CONTEXT_FRAMES, total + CONTEXT_FRAMES, device=mel.device) % total
        audio = vocode(vocoder, mel.index_select(1, around), frames)
        return audio[:, CONTEXT_FRAMES * hop : (CONTEXT_FRAMES + total) * hop]
    size = max(frames, 4 * CONTEXT_FRAMES)
    if total <= size:
        return vocoder(mel)
    pieces = []
    for first in range(0, total, size - 2 * CONTEXT_FRAMES):
        last = min(first + size - 2 * CONTEXT_FRAMES, total)
        begin = min(max(first - CONTEXT_FRAMES, 0), total - size)
        pieces.append(vocoder(mel[:, begin : begin + size])[:, (first - begin) * hop : (last - begin) * hop])
    return torch.cat(pieces, 1)
