"""Find the same recording in another encoding, at another level, or cut a few seconds earlier or later.

A track's sketch is its first minute as levels of 24 bands, four times a second. Two sketches are compared by
their correlation at the best shift, after each band's mean is removed, so that gain and equalisation do not
count, and each moment's mean, so that two pieces do not seem one because both fade in. What is compared at all
are each track's nearest neighbours by the bands' statistics, so that of 100,000 tracks about a million pairs are
compared instead of five billion.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from stages.audio.io import Samples
from stages.progress import Progress, silent

Sketch = NDArray[np.int8]
"""(frames, BANDS) natural-log energies in steps of 1 / STEPS around each band's mean."""

Levels = NDArray[np.float64]
Counts = NDArray[np.int64]

BANDS = 24
LOW_HZ, HIGH_HZ = 200.0, 3600.0  # kept by a telephone, and by every lossy codec
RATE = 4  # frames a second
SECONDS = 60
STEPS = 8
MAX_SHIFT_SECONDS = 6
MIN_SECONDS = 5.0  # of overlap, which is also at least half of the shorter sketch
NEIGHBOURS = 16
BLOCK_TRACKS = 64  # whose neighbours are searched at once
BLOCK_PAIRS = 256  # compared at once
_FINE = 4  # raw frames for each frame of the sketch, smoothed over four of the latter
_FLOOR = 1e-5  # of the loudest band and moment


@dataclass(frozen=True)
class Pair:
    """Two tracks that sound the same, and how much (1 is the most)."""

    first: int
    second: int
    similarity: float


class Sketcher:
    """Makes the sketch of a track from its mono blocks, in flat memory."""

    def __init__(self, sample_rate: int) -> None:
        self._size = max(2, round(sample_rate / (RATE * _FINE)))
        hertz = np.arange(self._size // 2 + 1) * sample_rate / self._size
        edges = np.searchsorted(hertz, np.geomspace(LOW_HZ, HIGH_HZ, BANDS + 1))
        self._edges = np.minimum(edges, len(hertz) - 1)
        self._window = np.hanning(self._size).astype(np.float32)
        self._rest = np.zeros(0, np.float32)
        self._energies: list[NDArray[np.float32]] = []
        self._left = SECONDS * RATE * _FINE

    def update(self, block: Samples) -> None:
        if self._left == 0:
            return
        samples = np.concatenate([self._rest, block])
        count = min(len(samples) // self._size, self._left)
        frames = samples[: count * self._size].reshape(count, self._size)
        spectrum = scipy.fft.rfft(frames * self._window, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2) / np.float32(self._size**2)
        self._energies.append(np.add.reduceat(power, self._edges, axis=1)[:, :BANDS])
        self._rest = samples[count * self._size :]
        self._left -= count

    def sketch(self) -> Sketch:
        """What was heard until now; of no frames where that is less than MIN_SECONDS, or silent."""
        energies = np.concatenate(self._energies) if self._energies else np.zeros((0, BANDS), np.float32)
        if len(energies) < MIN_SECONDS * RATE * _FINE or not energies.any():
            return np.zeros((0, BANDS), np.int8)
        kernel = np.hanning(4 * _FINE + 2)[1:-1]
        smooth = np.stack([np.convolve(band, kernel, "same") for band in energies.T], axis=1)[_FINE // 2 :: _FINE]
        levels = np.log(np.maximum(smooth, _FLOOR * smooth.max()))
        return np.clip(np.rint(STEPS * (levels - levels.mean())), -128, 127).astype(np.int8)


def find_pairs(sketches: Sequence[Sketch], threshold: float, progress: Progress = silent) -> list[Pair]:
    """The pairs, by index and first < second, whose `similarity` reaches `threshold`; on all cores, in flat memory."""
    varied = np.array([index for index, sketch in enumerate(sketches) if len(sketch) and _varies(sketch)], np.int64)
    if len(varied) < 2:
        return []
    pairs = varied[_candidates([sketches[index] for index in varied], progress)]
    alike = _in_blocks(lambda block: _similarities(sketches, block), pairs, BLOCK_PAIRS, "Compare tracks", progress)
    return [Pair(int(pairs[i, 0]), int(pairs[i, 1]), float(alike[i])) for i in np.flatnonzero(alike >= threshold)]


def similarity(first: Sketch, second: Sketch) -> float:
    """The largest correlation of two sketches over all shifts up to MAX_SHIFT_SECONDS, in [-1, 1].

    -1 where they overlap by less than MIN_SECONDS or half of the shorter, or neither changes.
    """
    return float(_similarities([first, second], np.array([[0, 1]]))[0])


def _similarities(sketches: Sequence[Sketch], pairs: NDArray[np.int64]) -> Levels:
    """The `similarity` (P,) of pairs of indices (P, 2)."""
    which, inverse = np.unique(pairs, return_inverse=True)
    a, b = inverse.reshape(pairs.shape).T
    shifts = np.arange(-MAX_SHIFT_SECONDS * RATE, MAX_SHIFT_SECONDS * RATE + 1)
    lengths = np.array([len(sketches[index]) for index in which])
    levels = np.zeros((len(which), max(lengths.max(), shifts[-1] + 1), BANDS))
    for row, index in zip(levels, which, strict=True):
        sketch = sketches[index]
        row[: len(sketch)] = sketch - sketch.mean(axis=1, keepdims=True)
    start_a, start_b = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    count = np.minimum(lengths[a, None] - start_a, lengths[b, None] - start_b)
    least = np.maximum(round(MIN_SECONDS * RATE), np.minimum(lengths[a], lengths[b]) // 2)
    compared = count >= least[:, None]
    count = np.where(compared, count, 1)
    sums, squares = _running(levels), _running((levels**2).sum(axis=2))
    sum_a, sum_b = _within(sums, a, start_a, count), _within(sums, b, start_b, count)
    spread_a = _within(squares, a, start_a, count) - (sum_a**2).sum(axis=2) / count
    spread_b = _within(squares, b, start_b, count) - (sum_b**2).sum(axis=2) / count
    covariance = _products(levels, a, b, shifts) - (sum_a * sum_b).sum(axis=2) / count
    norm = np.sqrt(np.maximum(spread_a * spread_b, 0))
    found = np.divide(covariance, norm, out=np.full(norm.shape, -1.0), where=compared & (norm > 1.0))
    return np.asarray(found.max(axis=1))


def _products(levels: Levels, a: Counts, b: Counts, shifts: Counts) -> Levels:
    """(P, S): sums over moments and bands of levels[a] times levels[b] that many moments earlier."""
    size = scipy.fft.next_fast_len(levels.shape[1] + int(shifts[-1]), real=True)
    spectra = scipy.fft.rfft(levels.transpose(0, 2, 1), size)
    return np.asarray(scipy.fft.irfft((spectra[a] * spectra[b].conj()).sum(axis=1), size)[:, shifts])


def _running(levels: Levels) -> Levels:
    """Sums over the first 0, 1, 2, ... moments."""
    return np.concatenate([np.zeros_like(levels[:, :1]), np.cumsum(levels, axis=1)], axis=1)


def _within(running: Levels, rows: Counts, start: Counts, count: Counts) -> Levels:
    """Sums of those rows over the stretches start (S,) .. start + count (P, S)."""
    return np.asarray(running[rows[:, None], start + count] - running[rows[:, None], start])


def _in_blocks(
    function: Callable[[Any], NDArray[Any]], items: NDArray[Any], size: int, label: str, progress: Progress
) -> NDArray[Any]:
    """`function` of `size` items at a time, by a thread on each core; the results in order."""
    results = []
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        for result in pool.map(function, (items[start : start + size] for start in range(0, len(items), size))):
            results.append(result)
            progress(label, min(len(results) * size, len(items)), len(items))
    return np.concatenate(results)


def _varies(sketch: Sketch) -> bool:
    """Whether anything happens: of a steady tone or noise the sketch holds only its rounding."""
    return float(sketch.std(axis=0).mean()) > 1.0


def _candidates(sketches: Sequence[Sketch], progress: Progress) -> NDArray[np.int64]:
    """Pairs (P, 2) in order, the smaller index first: each sketch and its nearest by the bands' statistics."""
    vectors = np.stack([_statistics(sketch) for sketch in sketches])
    vectors = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = min(NEIGHBOURS + 1, len(vectors))  # most are their own nearest

    def nearest(rows: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.argpartition(rows @ vectors.T, -count, axis=1)[:, -count:].copy()  # a view would keep all columns

    near = _in_blocks(nearest, vectors, BLOCK_TRACKS, "Look for similar tracks", progress)
    pairs = np.sort(np.stack([np.repeat(np.arange(len(near)), count), near.ravel()], axis=1), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _statistics(sketch: Sketch) -> NDArray[np.float32]:
    """(3 * BANDS,): mean level against the whole, deviation, and deviation of the change, of each band."""
    levels = sketch.astype(np.float32)
    return np.concatenate(
        [levels.mean(axis=0) - levels.mean(), levels.std(axis=0), np.diff(levels, axis=0).std(axis=0)]
    )
