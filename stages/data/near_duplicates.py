"""Find the same recording in another encoding, at another level, or cut a few seconds earlier or later.

A track's sketch is its first minute as levels of 24 bands, four times a second. Two sketches are compared by
their correlation at the best shift, after each band's mean is removed, so that gain and equalisation do not
count, and each moment's mean, so that two pieces do not seem one because both fade in. What is compared at all
are each track's nearest neighbours by the bands' statistics (faiss), since comparing every pair would grow with
the square of the collection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from stages.audio.io import Samples

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


def find_pairs(sketches: Sequence[Sketch], threshold: float) -> list[Pair]:
    """The pairs, by index and first < second, whose `similarity` reaches `threshold`."""
    heard = [index for index, sketch in enumerate(sketches) if len(sketch) and _varies(sketch)]
    pairs = []
    for a, b in _candidates([sketches[index] for index in heard]):
        alike = similarity(sketches[heard[a]], sketches[heard[b]])
        if alike >= threshold:
            pairs.append(Pair(heard[a], heard[b], alike))
    return pairs


def similarity(first: Sketch, second: Sketch) -> float:
    """The largest correlation of two sketches over all shifts up to MAX_SHIFT_SECONDS, in [-1, 1].

    -1 where they overlap by less than MIN_SECONDS or half of the shorter, or neither changes.
    """
    a, b = (levels - levels.mean(axis=1, keepdims=True) for levels in (first, second))
    shifts = np.arange(-MAX_SHIFT_SECONDS * RATE, MAX_SHIFT_SECONDS * RATE + 1)
    start_a, start_b = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    count = np.minimum(len(a) - start_a, len(b) - start_b)
    long_enough = count >= max(round(MIN_SECONDS * RATE), min(len(a), len(b)) // 2)
    if not long_enough.any():
        return -1.0
    shifts, start_a, start_b, count = (x[long_enough] for x in (shifts, start_a, start_b, count))
    every = a @ b.T  # of any two moments, so that the diagonals sum to the products at each shift
    products = np.array([np.trace(every, -shift) for shift in shifts])
    sum_a, squares_a = _sums(a, start_a, count)
    sum_b, squares_b = _sums(b, start_b, count)
    covariance = products - (sum_a * sum_b).sum(axis=1) / count
    norm = np.sqrt((squares_a - (sum_a**2).sum(axis=1) / count) * (squares_b - (sum_b**2).sum(axis=1) / count))
    return float(np.max(np.divide(covariance, norm, out=np.full(len(norm), -1.0), where=norm > 1.0)))


def _sums(levels: Levels, start: Counts, count: Counts) -> tuple[Levels, Levels]:
    """Of each stretch start .. start + count: the bands' sums (n, BANDS), and the sum of all squares (n,)."""
    sums = np.concatenate([np.zeros((1, levels.shape[1])), np.cumsum(levels, axis=0)])
    squares = np.concatenate([[0.0], np.cumsum((levels**2).sum(axis=1))])
    return sums[start + count] - sums[start], squares[start + count] - squares[start]


def _varies(sketch: Sketch) -> bool:
    """Whether anything happens: of a steady tone or noise the sketch holds only its rounding."""
    return float(sketch.std(axis=0).mean()) > 1.0


def _candidates(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Pairs (a, b), a < b, of each sketch and its nearest neighbours by the bands' statistics."""
    if len(sketches) < 2:
        return
    import faiss

    vectors = np.stack([_statistics(sketch) for sketch in sketches])
    vectors = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    faiss.normalize_L2(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    _, near = index.search(vectors, min(NEIGHBOURS + 1, len(vectors)))
    yield from sorted({(min(a, int(b)), max(a, int(b))) for a, row in enumerate(near) for b in row if a != b})


def _statistics(sketch: Sketch) -> NDArray[np.float32]:
    """(3 * BANDS,): mean level against the whole, deviation, and deviation of the change, of each band."""
    levels = sketch.astype(np.float32)
    return np.concatenate(
        [levels.mean(axis=0) - levels.mean(), levels.std(axis=0), np.diff(levels, axis=0).std(axis=0)]
    )
