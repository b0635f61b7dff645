"""From beat times to a tempo, how far it can be trusted, and where it lies on the circle of octaves."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages import params

BEATS = "beats.jsonl"  # one Rhythm a line
INTERVAL_TOLERANCE = 0.05  # of the median; beat times lie on a 10 ms grid, 3.6% of a beat at 215 BPM
TRUSTED_INTERVALS = 16  # four bars of four; fewer intervals prove less
CLEAR = 0.6  # salience of beats that are plainly there: half of the demo music has 0.7, speech-like bursts 0.3 to 0.4


@dataclass(frozen=True)
class Rhythm:
    """What was measured of one track's beat: a row of beats.jsonl. Nothing in it depends on the section `tempo`.

    `beats` and `downbeats` are seconds, `metre` beats a bar; `tempo_bpm` is 60 over the typical interval
    (`median_bpm`), `mean_bpm` that of the public code.
    """

    id: str
    beats: list[float]
    downbeats: list[float]
    metre: int | None
    tempo_bpm: float | None
    mean_bpm: float | None
    tempo_confidence: float

    @classmethod
    def measure(cls, track_id: str, bars: NDArray[np.float64], seconds: float, salience: float = 1.0) -> "Rhythm":
        """Tempo and confidence of a track of `seconds` from `bars` (N, 2): time, position in the bar from 1.

        The confidence is that of the beats' times, less what `salience`, how clearly they were heard, lacks of CLEAR.
        """
        beats, positions = bars[:, 0], bars[:, 1].astype(int)
        bpm = median_bpm(beats)
        return cls(
            id=track_id,
            beats=beats.round(4).tolist(),
            downbeats=beats[positions == 1].round(4).tolist(),
            metre=metre(positions),
            tempo_bpm=None if bpm is None else round(bpm, 4),
            mean_bpm=mean_bpm(beats),
            tempo_confidence=round(confidence(beats, seconds) * min(1.0, salience / CLEAR), 4),
        )


def median_bpm(beats: ArrayLike) -> float | None:
    """60 over the typical inter-beat interval, of beat times in seconds; None for fewer than two beats.

    The typical interval is the mean of those within 5% of their median. The bare median of times on a
    10 ms grid is off by up to 1.8% at 215 BPM, more than half of the tolerance that partners have.
    """
    intervals = np.diff(np.asarray(beats, dtype=np.float64))
    if not intervals.size:
        return None
    typical = intervals[_near(intervals, float(np.median(intervals)))]
    return float(60 / (typical.mean() if typical.size else np.median(intervals)))


def mean_bpm(beats: ArrayLike) -> float | None:
    """round((n - 1) / (last - first) * 60), the tempo of the public MusicLDM code; None for fewer than two beats."""
    times = np.asarray(beats, dtype=np.float64)
    return float(round((times.size - 1) / (times[-1] - times[0]) * 60)) if times.size > 1 else None


def confidence(beats: ArrayLike, seconds: float) -> float:
    """How far a track's tempo can be trusted, 0..1, from the regularity of its beats.

    regularity * coverage * evidence, where regularity is the share of inter-beat intervals within 5% of
    their median, coverage the share of the track that the beats span, at one median interval a beat, and
    evidence min(1, intervals / 16). A steady track is 1, one with beats in its first half only 0.5, and
    half-time sections, gaps and rubato take away their share.
    """
    times = np.asarray(beats, dtype=np.float64)
    intervals = np.diff(times)
    if not intervals.size or seconds <= 0:
        return 0.0
    median = float(np.median(intervals))
    regularity = float(np.mean(_near(intervals, median)))
    coverage = min(1.0, times.size * median / seconds)
    evidence = min(1.0, intervals.size / TRUSTED_INTERVALS)
    return regularity * coverage * evidence


def octave_place(bpm: ArrayLike, low_bpm: float) -> NDArray[np.float64]:
    """Where tempos lie on the circle of octaves, in [0, 1): 0 is `low_bpm`, its half and its double.

    The distance of two tempos, up to octaves, is the shorter way round: 139 and 141 BPM are neighbours across 0.
    """
    return np.log2(np.asarray(bpm, dtype=np.float64) / low_bpm) % 1.0 % 1.0  # a tiny negative one would give 1.0


def group_count(settings: params.Tempo) -> int:
    """Into how many equal arcs the circle of octaves is cut, none wider than the tolerance."""
    return int(np.ceil(np.log(2) / np.log1p(settings.tolerance)))


def group(bpm: float, settings: params.Tempo) -> int:
    """The tempo group of a tempo, for counts and pictures: partners are also found across the edges of groups.

    `octave-log`: 0 .. group_count - 1, equal arcs of the circle of octaves from low_bpm on, so that two members
    differ by at most the tolerance, and the last group is the first one's neighbour. `bpm-div-3`: bpm // 3,
    unfolded, as in the public code.
    """
    if settings.rule == "bpm-div-3":
        return int(bpm // 3)
    count = group_count(settings)
    return min(int(count * octave_place(bpm, settings.low_bpm)), count - 1)


def metre(positions: ArrayLike) -> int | None:
    """Beats in the most common whole bar, from each beat's position in its bar (1 is the downbeat).

    None where there is no whole bar. Of equally common lengths the longer is taken.
    """
    downbeats = np.flatnonzero(np.asarray(positions) == 1)
    lengths = Counter(np.diff(downbeats).tolist())
    return max(lengths, key=lambda length: (lengths[length], length), default=None)


def octave_doubt(rhythm: Rhythm, settings: params.Tempo) -> str | None:
    """One clause on why a track's tempo may be off by an octave; None when nothing speaks for it.

    Doubtful are tempos outside [low_bpm, 2 * low_bpm), which count as their octave in it, and tracks in which at
    least a tenth of the intervals are double or half of the median: the tracker changed its mind.
    """
    if rhythm.tempo_bpm is None:
        return None
    intervals = np.diff(rhythm.beats)
    median = float(np.median(intervals))
    for factor, name in ((2.0, "double"), (0.5, "half")):
        share = float(np.mean(_near(intervals, factor * median)))
        if share >= 0.1:
            return f"{share:.0%} of its intervals are {name} the median"
    if settings.low_bpm <= rhythm.tempo_bpm < 2 * settings.low_bpm:
        return None
    octave = settings.low_bpm * 2 ** float(octave_place(rhythm.tempo_bpm, settings.low_bpm))
    return f"{rhythm.tempo_bpm:.1f} BPM counts as {octave:.1f}"


def _near(intervals: NDArray[np.float64], target: float) -> NDArray[np.bool_]:
    # the slack keeps an interval that is off by exactly the tolerance inside, whatever the rounding
    return np.abs(intervals - target) <= INTERVAL_TOLERANCE * target + 1e-9
