"""From beat and downbeat activations to beats with their position in the bar.

Activations are (T, 2) float32 at 100 frames a second: the probability of a beat that is no downbeat, and of
a downbeat (Böck, Krebs and Widmer, "Joint Beat and Downbeat Tracking with Recurrent Neural Networks", 2016).
Bars are (N, 2) float64: seconds, and the position in the bar from 1, the downbeat.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from stages import params

FPS = 100
WINDOW_SECONDS = 90  # the decoder keeps every state of every frame: 60 kB a frame, 0.5 GB a window
OVERLAP_SECONDS = 10
SAME_BEAT_SECONDS = 0.05

Activations = NDArray[np.float32]
Bars = NDArray[np.float64]


def decode(activations: Activations, settings: params.Beats) -> Bars:
    """The most likely beats of one track under a bar-pointer model with constant metre.

    Longer activations than a window are decoded in overlapping windows, so that memory stays bounded; the
    metre that most beats were given is then imposed on all, and neighbours are joined at a beat both found.
    """
    windows = _windows(activations)
    decoder = _dbn(settings, settings.beats_per_bar)
    bars = [_shift(decoder(window), start) for start, window in windows]
    metre = _common_metre(bars)
    if metre is not None and len(windows) > 1:
        one = _dbn(settings, [metre])
        bars = [
            found if _common_metre([found]) in (metre, None) else _shift(one(window), start)
            for found, (start, window) in zip(bars, windows, strict=True)
        ]
    return reduce(join, bars)


def join(left: Bars, right: Bars) -> Bars:
    """Two neighbours' bars as one: the left one's up to a beat that both hold, then the right one's.

    Of the shared beats the one nearest to the middle of the overlap is taken; without any, the middle.
    """
    if not len(left) or not len(right):
        return left if len(left) else right
    nearest = np.abs(left[:, 0, None] - right[None, :, 0]).min(axis=1)
    shared = left[nearest <= SAME_BEAT_SECONDS, 0]
    middle = (left[-1, 0] + right[0, 0]) / 2
    seam = shared[np.argmin(np.abs(shared - middle))] if len(shared) else middle
    head = left[left[:, 0] <= seam]
    return np.concatenate([head, right[right[:, 0] > seam + SAME_BEAT_SECONDS]])


def _windows(activations: Activations) -> list[tuple[float, Activations]]:
    """(start in seconds, activations) of each window; the last one may be shorter."""
    size, hop = WINDOW_SECONDS * FPS, (WINDOW_SECONDS - OVERLAP_SECONDS) * FPS
    starts = range(0, max(len(activations) - OVERLAP_SECONDS * FPS, 1), hop)
    return [(start / FPS, activations[start : start + size]) for start in starts]


def _dbn(settings: params.Beats, metres: Sequence[int]) -> Callable[[Activations], Bars]:
    from madmom.features.downbeats import DBNDownBeatTrackingProcessor

    processor = DBNDownBeatTrackingProcessor(
        beats_per_bar=list(metres),
        min_bpm=settings.min_bpm,
        max_bpm=settings.max_bpm,
        transition_lambda=settings.transition_lambda,
        observation_lambda=settings.observation_lambda,
        threshold=settings.threshold,
        fps=FPS,
    )
    return lambda activations: np.asarray(processor(activations), dtype=np.float64).reshape(-1, 2)


def _shift(bars: Bars, seconds: float) -> Bars:
    return bars + np.array([seconds, 0.0])


def _common_metre(windows: list[Bars]) -> int | None:
    """The metre that most beats were decoded with; None without beats."""
    beats = Counter[int]()
    for bars in windows:
        if len(bars):
            beats[int(bars[:, 1].max())] += len(bars)
    return max(beats, key=lambda metre: (beats[metre], metre), default=None)
