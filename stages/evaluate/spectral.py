"""Does it sound copied, moment by moment: correlation of log-mel spectrograms at every time offset.

A spectrogram here is 32 mel bands of power, ten frames a second, in nats above a floor that each band sets for
itself. The similarity of a clip q (T, F) and a stretch x (T, F) of a training track is their normalised
cross-correlation after each band's mean over the stretch is taken off, so that gain and equalisation do not
count; it is 1 for a copy. Every offset of 0.1 s inside the track is tried and the largest kept, so a copy need
not start where a training window starts. It knows nothing of key or tempo: what it hears is when each band
sounds. CLAP's similarity hears style; this one hears copies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BANDS = 32
FRAMES_PER_SECOND = 10
F_MIN, F_MAX = 50.0, 8000.0  # or half the sample rate
FLOOR = 1e-4  # of a band's mean power: so low that a clip and its whole track agree, though their means differ
SILENCE = 1e-10  # power under which a band holds nothing
BLOCK_FRAMES = 1024  # of a track at once, in which clips slide
BLOCKS, QUERIES = 16, 128  # at once; together they bound the memory at about 0.3 GB
VERSION = f"log-mel correlation, {BANDS} bands, {FRAMES_PER_SECOND} frames/s, floor {FLOOR:g}"

Frames = NDArray[np.float16]


@dataclass
class Best:
    """The most similar stretch for each of N clips: similarity, track number (-1: none), start in seconds."""

    similarity: NDArray[np.float32]
    track: NDArray[np.int64]
    start: NDArray[np.float64]


def sketch(samples: NDArray[np.float32], sample_rate: int) -> Frames:
    """Samples (L,) -> (T, 32) float16, T = whole tenths of a second (at least one)."""
    from transformers.audio_utils import mel_filter_bank

    hop = sample_rate // (FRAMES_PER_SECOND * 10)
    n_fft = 1 << (hop * 6).bit_length() - 1
    filters = mel_filter_bank(
        n_fft // 2 + 1, BANDS, F_MIN, min(F_MAX, sample_rate / 2), sample_rate, norm="slaney", mel_scale="slaney"
    )
    audio = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    needed = 10 * hop + n_fft
    if len(audio) < needed:
        audio = torch.nn.functional.pad(audio, (0, needed - len(audio)))
    spectrum = torch.stft(audio, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True)
    power = (spectrum.real.square() + spectrum.imag.square()).T @ torch.from_numpy(filters).float()
    count = max(1, len(samples) * FRAMES_PER_SECOND // sample_rate)
    pooled = power[: count * 10].unflatten(0, (count, 10)).mean(1)
    floor = FLOOR * pooled.mean(0, keepdim=True) + SILENCE
    return (pooled + floor).log().half().numpy()


def search(queries: Sequence[Frames], tracks: Iterable[tuple[int, Frames]], own: Sequence[int] | None = None) -> Best:
    """The best stretch among `tracks`, (number, frames) one after the other, for each query (T, 32).

    `own` is each query's own track number, in which it does not look. A track shorter than a query is extended
    by its mean, which lowers the similarity in proportion. Silent (constant) clips are similar to nothing: 0.
    """
    best = Best(np.zeros(len(queries), np.float32), np.full(len(queries), -1), np.zeros(len(queries)))
    groups = [
        (length, rows[start : start + QUERIES])
        for length in sorted({len(query) for query in queries})
        for rows in [[i for i, query in enumerate(queries) if len(query) == length]]
        for start in range(0, len(rows), QUERIES)
    ]
    templates = [(rows, _template([queries[i] for i in rows], length), length) for length, rows in groups]
    for number, frames in tracks:
        for rows, template, length in templates:
            value, offset = _slide(template, torch.from_numpy(frames.astype(np.float32)), length)
            found, where = np.asarray(value), np.asarray(offset)
            for i, similarity, at in zip(rows, found, where, strict=True):
                if similarity > best.similarity[i] and (own is None or own[i] != number):
                    best.similarity[i], best.track[i], best.start[i] = similarity, number, at / FRAMES_PER_SECOND
    return best


def similarity(first: Frames, second: Frames) -> float:
    """The largest correlation of `first` with a stretch of `second`."""
    return float(search([first], [(0, second)]).similarity[0])


def _template(queries: list[Frames], length: int) -> Tensor:
    """(Q, T, F) without its means and of norm 1, as conjugate spectra (frequencies, Q, F) of the block's size."""
    stacked = torch.from_numpy(np.stack(queries).astype(np.float32))
    centred = stacked - stacked.mean(1, keepdim=True)
    norm = centred.square().sum((1, 2), keepdim=True).sqrt()
    unit = torch.where(norm > _least(length), centred / norm.clamp(min=1e-6), 0.0)
    return torch.fft.rfft(unit, _size(length), dim=1).conj().permute(1, 0, 2).contiguous()


def _least(length: int) -> float:
    """The norm of a stretch that hardly moves: rounding to float16 alone."""
    return 0.02 * float(np.sqrt(length * BANDS))


def _size(length: int) -> int:
    return max(BLOCK_FRAMES, 1 << (2 * length - 1).bit_length())


def _slide(template: Tensor, track: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The largest correlation (Q,) over all offsets of the track (T, F), and the offset (Q,)."""
    track = track - track.mean(0, keepdim=True)
    if len(track) < length:
        track = torch.nn.functional.pad(track, (0, 0, 0, length - len(track)))
    size = _size(length)
    step = size - length + 1
    offsets = len(track) - length + 1
    count = -(-offsets // step)
    energy = _energies(track, length)
    padded = torch.nn.functional.pad(track, (0, 0, 0, count * step + length - 1 - len(track)))
    blocks = padded.unfold(0, size, step)  # (count, F, size)
    best, where = torch.zeros(template.shape[1]), torch.zeros(template.shape[1], dtype=torch.long)
    for start in range(0, count, BLOCKS):
        some = torch.fft.rfft(blocks[start : start + BLOCKS], dim=2)  # (K, F, frequencies)
        product = torch.bmm(template, some.permute(2, 1, 0))  # (frequencies, Q, K)
        found = torch.fft.irfft(product.permute(1, 2, 0), size, dim=2)[..., :step].flatten(1)
        inside = found[:, : offsets - start * step]
        scaled = inside * energy[start * step : start * step + inside.shape[1]]
        value, at = scaled.max(1)
        where = torch.where(value > best, at + start * step, where)
        best = torch.maximum(best, value)
    return best.clamp(max=1.0), where


def _energies(track: Tensor, length: int) -> Tensor:
    """One over the norm of each stretch (offsets,) without its bands' means; 0 where it hardly moves."""
    exact = torch.nn.functional.pad(track.double(), (0, 0, 1, 0))
    sums, squares = exact.cumsum(0), exact.square().sum(1).cumsum(0)
    within = squares[length:] - squares[:-length]
    means = (sums[length:] - sums[:-length]).square().sum(1) / length
    norm = (within - means).clamp(min=0).sqrt()
    return torch.where(norm > _least(length), 1 / norm.clamp(min=1e-6), 0.0).float()
