"""From beat and downbeat activations to beats with their position in the bar.

Activations are (T, 2) float32, the probabilities of a beat (downbeats too) and of a downbeat in each frame. Bars
are (N, 2) float64: seconds, and the position in the bar from 1, the downbeat. The dynamic Bayesian network is
madmom's (Böck, Krebs and Widmer, "Joint Beat and Downbeat Tracking with Recurrent Neural Networks", 2016).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from stages import params

WINDOW_SECONDS = 90  # the decoder keeps every state of every frame: at 100 a second 60 kB each, 0.5 GB a window
OVERLAP_SECONDS = 10
SAME_BEAT_SECONDS = 0.05
DECODER_FPS = 60.0  # at least: at 40 a second the tempos of whole frames are 7% apart at 170 BPM
LEAST = 1e-4  # probability of anything: the decoder takes logarithms
REFINE_FRAMES = 2  # on either side of a beat

Activations = NDArray[np.float32]
Bars = NDArray[np.float64]


def decode(activations: Activations, fps: float, settings: params.Beats) -> Bars:
    """Beats of one track from activations at `fps` frames a second, by the decoder that `settings` name."""
    found = _by_network(activations, fps, settings) if settings.decoder == "dbn" else pick(activations, fps, settings)
    return refine(found, activations[:, 0], fps)


def _by_network(activations: Activations, fps: float, settings: params.Beats) -> Bars:
    """The most likely beats of one track under a bar-pointer model with constant metre.

    Longer activations than a window are decoded in overlapping windows, so that memory stays bounded; the
    metre that most beats were given is then imposed on all, and neighbours are joined at a beat both found.
    """
    if len(activations) and fps < DECODER_FPS:
        activations, fps = _resampled(activations, fps), DECODER_FPS
    beat, downbeat = activations.T
    exclusive = np.stack([beat - downbeat, downbeat], axis=1).clip(LEAST, 1 - 2 * LEAST)
    exclusive *= np.minimum((1 - LEAST) / exclusive.sum(axis=1, keepdims=True), 1)
    windows = _windows(exclusive, fps)
    decoder = _dbn(settings, settings.beats_per_bar, fps)
    bars = [_shift(decoder(window), start) for start, window in windows]
    metre = _common_metre(bars)
    if metre is not None and len(windows) > 1:
        one = _dbn(settings, [metre], fps)
        bars = [
            found if _common_metre([found]) in (metre, None) else _shift(one(window), start)
            for found, (start, window) in zip(bars, windows, strict=True)
        ]
    return reduce(join, bars)


def _resampled(activations: Activations, fps: float) -> Activations:
    """At DECODER_FPS, on the lines between the frames."""
    frames = np.arange(int(len(activations) * DECODER_FPS / fps)) * (fps / DECODER_FPS)
    columns = [np.interp(frames, np.arange(len(activations)), column) for column in activations.T]
    return np.stack(columns, axis=1).astype(np.float32)


def pick(activations: Activations, fps: float, settings: params.Beats) -> Bars:
    """Beats at the peaks of the activation, downbeats at the peaks of theirs; no model of tempo or metre.

    A peak reaches settings.threshold and is the highest within half a beat of the fastest tempo. A downbeat belongs
    to the nearest beat; positions count on from it, up to the longest bar of settings.beats_per_bar.
    """
    from scipy.signal import find_peaks

    apart = max(1.0, 60 / settings.max_bpm * fps * 0.75)
    frames, _ = find_peaks(np.pad(activations[:, 0], 1), height=settings.threshold, distance=apart)
    downs, _ = find_peaks(np.pad(activations[:, 1], 1), height=settings.threshold, distance=2 * apart)
    if not len(frames):
        return np.empty((0, 2))
    near = {int(np.argmin(np.abs(frames - down))) for down in downs}
    positions, place = [], 0
    for index in range(len(frames)):
        place = 1 if index in near or place >= max(settings.beats_per_bar) else place + 1
        positions.append(place)
    return np.stack([(frames - 1) / fps, positions], axis=1)


def refine(bars: Bars, activation: NDArray[np.float32], fps: float) -> Bars:
    """Each beat moved to the centre of mass of the activation around it, within a frame and a half.

    Frames are 25 ms apart, a tenth of a fast beat; the network's doubt between two of them tells where between.
    """
    made, size = bars.copy(), len(activation)
    for row, time in enumerate(bars[:, 0]):
        middle = round(time * fps)
        places = np.arange(max(middle - REFINE_FRAMES, 0), min(middle + REFINE_FRAMES + 1, size))
        weight = activation[places].astype(np.float64)
        if weight.sum() > REFINE_FRAMES * 0.1:
            made[row, 0] = float((places * weight).sum() / weight.sum()) / fps
    return made


def salience(bars: Bars, activations: Activations, fps: float) -> float:
    """How clearly the beats were heard, 0..1: the mean of the highest activation within two frames of each.

    The decoder finds a regular grid in anything; in speech the network hardly hears what lies on it.
    """
    middles = np.rint(bars[:, 0] * fps).astype(int)[:, None] + np.arange(-REFINE_FRAMES, REFINE_FRAMES + 1)
    return float(activations[middles.clip(0, len(activations) - 1), 0].max(axis=1).mean()) if len(bars) else 0.0


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


def _windows(activations: Activations, fps: float) -> list[tuple[float, Activations]]:
    """(start in seconds, activations) of each window; the last one may be shorter."""
    size, overlap = round(WINDOW_SECONDS * fps), round(OVERLAP_SECONDS * fps)
    starts = range(0, max(len(activations) - overlap, 1), size - overlap)
    return [(start / fps, activations[start : start + size]) for start in starts]


def _dbn(settings: params.Beats, metres: Sequence[int], fps: float) -> Callable[[Activations], Bars]:
    from madmom.features.downbeats import DBNDownBeatTrackingProcessor

    processor = DBNDownBeatTrackingProcessor(
        beats_per_bar=list(metres),
        min_bpm=settings.min_bpm,
        max_bpm=settings.max_bpm,
        transition_lambda=settings.transition_lambda,
        observation_lambda=settings.observation_lambda,
        threshold=settings.threshold,
        fps=fps,
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
