"""Does it sound copied, moment by moment: correlation of whitened spectrograms at every time offset.

A sketch is 80 bands of power a semitone apart, ten frames a second, in nats above a floor that each band sets for
itself, from which the mean of its neighbours in frequency and in time is taken off: what is left is where a sound
stands out of its surroundings, whatever the loudness, the equalisation and the tone of the whole. The similarity of
a clip q (T, F) and a stretch x (T, F) of a training track is their normalised cross-correlation after each band's
mean is taken off; it is 1 for a copy. Every offset of 0.1 s inside the track is tried and the largest kept, so a
copy need not start where a training window starts. CLAP's similarity hears style; this one hears copies, and of
disguised ones enough is left to tell them from other music (`musicldm eval planted`).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from stages.progress import Progress, silent

BANDS = 80
FRAMES_PER_SECOND = 10
F_MIN, F_MAX = 65.0, 7000.0  # or half the sample rate
FLOOR = 1e-4  # of a band's mean power: so low that a clip and its whole track agree, though their means differ
SILENCE = 1e-10  # power under which a band holds nothing
NEAR_BANDS, NEAR_SECONDS = 11, 4.0  # whose means are taken off
BLOCK_FRAMES = 1024  # of music at once, in which clips slide
BLOCKS, QUERIES = 32, 256  # at once; together they bound the memory at about 0.4 GB
VERSION = (
    f"log power correlation, {BANDS} bands {F_MIN:g}-{F_MAX:g} Hz, {FRAMES_PER_SECOND} frames/s, floor {FLOOR:g}, "
    f"less means of {NEAR_BANDS} bands and {NEAR_SECONDS:g} s"
)

Frames = NDArray[np.float16]


@dataclass(frozen=True)
class _Tape:
    """Tracks end to end: frames (T, BANDS) less each track's mean, the tracks' numbers (N,), and where each begins
    and the last one ends (N + 1,)."""

    frames: Tensor
    numbers: NDArray[np.int64]
    edges: NDArray[np.int64]


@dataclass
class Best:
    """The most similar stretch for each of N clips: similarity, track number (-1: none), start in seconds."""

    similarity: NDArray[np.float32]
    track: NDArray[np.int64]
    start: NDArray[np.float64]


def sketch(samples: NDArray[np.float32], sample_rate: int) -> Frames:
    """Samples (L,) -> (T, BANDS) float16, T = whole tenths of a second (at least one)."""
    hop = sample_rate // (FRAMES_PER_SECOND * 10)
    n_fft = 1 << (hop * 12).bit_length()
    audio = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    needed = 10 * hop + n_fft
    if len(audio) < needed:
        audio = pad(audio, (0, needed - len(audio)))
    spectrum = torch.stft(audio, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True)
    power = (spectrum.real.square() + spectrum.imag.square()).T @ _filters(n_fft, sample_rate)
    count = max(1, len(samples) * FRAMES_PER_SECOND // sample_rate)
    pooled = power[: count * 10].unflatten(0, (count, 10)).mean(1)
    level = (pooled + FLOOR * pooled.mean(0, keepdim=True) + SILENCE).log()
    level = level - _moving_mean(level, NEAR_BANDS)
    return (level - _moving_mean(level.T, int(NEAR_SECONDS * FRAMES_PER_SECOND) | 1).T).half().numpy()


def _filters(n_fft: int, sample_rate: int) -> Tensor:
    """(n_fft / 2 + 1, BANDS): triangles of sum 1, evenly spaced in pitch, none narrower than a bin."""
    edges = np.geomspace(F_MIN, min(F_MAX, sample_rate / 2), BANDS + 2)
    bin_hertz = sample_rate / n_fft
    away = np.arange(n_fft // 2 + 1)[:, None] * bin_hertz - edges[1:-1]
    width = np.where(away < 0, np.diff(edges)[:-1], np.diff(edges)[1:]).clip(bin_hertz)
    weights = (1 - np.abs(away) / width).clip(0)
    return torch.from_numpy((weights / weights.sum(0)).astype(np.float32))


def _moving_mean(rows: Tensor, width: int) -> Tensor:
    """Of the `width` (odd) nearest columns; at the ends of those there are."""
    return avg_pool1d(rows[None], width, 1, width // 2, count_include_pad=False)[0]


def search(
    queries: Sequence[Frames], tracks: Collection[tuple[int, Frames]], own: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Best:  # fmt: skip
    """The best stretch among `tracks`, each (number, frames), for each query (T, BANDS).

    `own` is each query's own track number, in which it does not look. A track shorter than a query is extended
    by its mean, which lowers the similarity in proportion. Silent (constant) clips are similar to nothing: 0.
    """
    best = Best(np.zeros(len(queries), np.float32), np.full(len(queries), -1), np.zeros(len(queries)))
    excluded = np.full(len(queries), -1) if own is None else np.asarray(own)
    groups, done = list(_groups(queries)), 0
    for rows in groups:
        length = len(queries[rows[0]])
        template = _template([queries[i] for i in rows], length)
        for tape in _tapes(tracks, length):
            value, offset = _slide(template, tape, length, excluded[rows])
            nearer = value > best.similarity[rows]
            won, at = rows[nearer], offset[nearer]
            track = np.searchsorted(tape.edges, at, side="right") - 1
            best.similarity[won], best.track[won] = value[nearer], tape.numbers[track]
            best.start[won] = (at - tape.edges[track]) / FRAMES_PER_SECOND
            done += len(tape.numbers)
            progress("Compare spectrograms", done, len(groups) * len(tracks))
    return best


def _groups(queries: Sequence[Frames]) -> Iterator[NDArray[np.int64]]:
    """Numbers of up to QUERIES queries of equal length."""
    lengths = np.array([len(query) for query in queries])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield from (rows[start : start + QUERIES] for start in range(0, len(rows), QUERIES))


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


def _tapes(tracks: Iterable[tuple[int, Frames]], length: int) -> Iterator[_Tape]:
    """The tracks in pieces of about BLOCKS * BLOCK_FRAMES frames, so that short ones do not each fill a block."""
    some: list[tuple[int, Frames]] = []
    frames = 0
    for track in tracks:
        some.append(track)
        frames += max(len(track[1]), length)
        if frames >= BLOCKS * BLOCK_FRAMES:
            yield _tape(some, length)
            some, frames = [], 0
    if some:
        yield _tape(some, length)


def _tape(tracks: list[tuple[int, Frames]], length: int) -> _Tape:
    edges = np.cumsum([0, *(max(len(frames), length) for _, frames in tracks)])
    joined = np.zeros((edges[-1], BANDS), np.float32)
    for start, (_, frames) in zip(edges, tracks, strict=False):
        joined[start : start + len(frames)] = frames - frames.mean(0, dtype=np.float32)
    return _Tape(torch.from_numpy(joined), np.array([number for number, _ in tracks]), edges)


def _slide(
    template: Tensor, tape: _Tape, length: int, own: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest correlation (Q,) over all offsets inside the tape's tracks save the query's own (Q,), and the
    offset (Q,)."""
    size = _size(length)
    step = size - length + 1
    offsets = len(tape.frames) - length + 1
    count = -(-offsets // step)
    norms = _inverse_norms(tape, length)
    padded = pad(tape.frames, (0, 0, 0, count * step + length - 1 - len(tape.frames)))
    blocks = padded.unfold(0, size, step)  # (count, F, size)
    best, where = torch.zeros(template.shape[1]), torch.zeros(template.shape[1], dtype=torch.long)
    mine = [(query, *tape.edges[at : at + 2]) for query, at in np.argwhere(own[:, None] == tape.numbers)]
    for start in range(0, count, BLOCKS):
        some = torch.fft.rfft(blocks[start : start + BLOCKS], dim=2)  # (K, F, frequencies)
        turned = some.permute(2, 1, 0).contiguous()  # MKL multiplies strided batches three times slower
        product = torch.bmm(template, turned)  # (frequencies, Q, K)
        found = torch.fft.irfft(product.permute(1, 2, 0), size, dim=2)[..., :step].flatten(1)
        first = start * step
        scaled = found[:, : offsets - first] * norms[first : first + found.shape[1]]
        for query, begin, end in mine:
            scaled[query, max(0, begin - first) : max(0, end - first)] = 0
        value, at = scaled.max(1)
        where = torch.where(value > best, at + first, where)
        best = torch.maximum(best, value)
    return best.clamp(max=1.0).numpy(), where.numpy()


def _inverse_norms(tape: _Tape, length: int) -> Tensor:
    """One over the norm of each stretch (offsets,) without its bands' means; 0 where it hardly moves, or would
    reach into the next track."""
    exact = pad(tape.frames.double(), (0, 0, 1, 0))
    sums, squares = exact.cumsum(0), exact.square().sum(1).cumsum(0)
    within = squares[length:] - squares[:-length]
    means = (sums[length:] - sums[:-length]).square().sum(1) / length
    norm = (within - means).clamp(min=0).sqrt()
    ends = torch.from_numpy(np.repeat(tape.edges[1:], np.diff(tape.edges)))[: len(norm)]
    inside = torch.arange(len(norm)) + length <= ends
    return torch.where(inside & (norm > _least(length)), 1 / norm.clamp(min=1e-6), 0.0).float()
