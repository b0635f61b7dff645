"""Which tracks may be mixed, and where: partners of one tempo, clips that start on a downbeat (paper, section 3.2).

Both are derived from the tracks' measurements on demand, so a change of the section `tempo` takes effect at once and
nothing is tracked or written again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages import params
from stages.beats.tempo import group, octave_place

Indices = NDArray[np.int64]

_CIRCLE = 10**9 + 1  # steps to the octave. Whole, so that "within" is symmetric; odd, so that none is half way round


@dataclass(frozen=True)
class Candidate:
    """What decides whether a track may be mixed, and with which.

    `starts` counts the downbeats with a full clip after them (`clip_starts`), of `downbeats` in all. `recording`
    names what the track was cut from; empty strings are unknown and match nothing.
    """

    tempo_bpm: float | None
    mean_bpm: float | None
    confidence: float
    metre: int | None
    downbeats: int
    starts: int
    artist: str = ""
    title: str = ""
    recording: str = ""

    def bpm(self, settings: params.Tempo) -> float | None:
        """The tempo by which the rule goes."""
        return self.mean_bpm if settings.rule == "bpm-div-3" else self.tempo_bpm


class Partners(Sequence[Indices]):
    """For each track the sorted indices of the tracks it may be mixed with; listed when asked for.

    All lists together would grow with the square of the collection; this holds a few numbers per track. `counts` (N,)
    are their lengths.
    """

    def __init__(self, order: Indices, low: Indices, high: Indices, recordings: Indices) -> None:
        self._order, self._low, self._high = order, low, high
        self._columns = [_Places(column, order) for column in recordings.T]
        pair = recordings[:, 0] * (recordings.max(initial=0) + 1) + recordings[:, 1]
        both = _Places(np.unique(pair, return_inverse=True)[1], order)
        names, sources, twice = (labels.count(low, high) for labels in (*self._columns, both))
        self.counts: Indices = high - low - names - sources + twice

    def __len__(self) -> int:
        return len(self._low)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """(n,) int64 for an index, a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        low, high = self._low[index], self._high[index]
        return np.sort(np.delete(self._order[low:high], self._own(index) - low))

    def draw(self, index: int, generator: np.random.Generator) -> int:
        """One of a track's partners, all with the same chance; in O(log N) and the track's own copies.

        Raises ValueError for a track that has none.
        """
        number, own = int(generator.integers(self.counts[index])), self._own(index)
        before = np.searchsorted(own - self._low[index] - np.arange(len(own)), number, side="right")
        return int(self._order[self._low[index] + number + before])

    def _own(self, index: int) -> Indices:
        """Places of this track's own recording among its neighbours, sorted."""
        low, high = self._low[index], self._high[index]
        return np.unique(np.concatenate([column.within(index, low, high) for column in self._columns]))


class _Places:
    """The places of each label in an order of tracks."""

    def __init__(self, labels: Indices, order: Indices) -> None:
        self._labels, self._size = labels, len(order) + 1
        self._sorted = np.sort(labels[order] * self._size + np.arange(len(order)))

    def count(self, low: Indices, high: Indices) -> Indices:
        """For each track, how many of its label stand in low .. high - 1."""
        first, last = (np.searchsorted(self._sorted, self._labels * self._size + edge) for edge in (low, high))
        return last - first

    def within(self, index: int, low: int, high: int) -> Indices:
        """The places in low .. high - 1 of one track's label."""
        start = self._labels[index] * self._size
        first, last = np.searchsorted(self._sorted, (start + low, start + high))
        return self._sorted[first:last] - start


def partners(tracks: Sequence[Candidate], settings: params.Tempo) -> Partners:
    """For each track the indices it may be mixed with; symmetric, and empty for a track that must not be mixed.

    Two tracks are partners when nothing of `why_not_mixable` holds for either, their metre is the same, they are not
    of one recording (same artist and title, or same recording; so never the track itself), and their tempos agree:
    for `octave-log` they differ, up to octaves, by a factor of at most 1 + tolerance, across the edges of groups
    too; for `bpm-div-3` the groups are equal. O(N log N) time and O(N) memory.
    """
    keys = _keys(tracks, settings)
    mixable = np.flatnonzero(keys >= 0)
    if settings.rule == "octave-log":
        width = min(int(np.ceil(np.log2(1 + settings.tolerance) * _CIRCLE)), _CIRCLE // 2)
        turns = [-_CIRCLE, 0, _CIRCLE]  # every track also stands one turn before and after its place
    else:
        width, turns = 0, [0]
    places = np.concatenate([keys[mixable] + turn for turn in turns])
    order = np.argsort(places, kind="stable")
    places, order = places[order], np.tile(mixable, len(turns))[order]
    low = np.searchsorted(places, keys - width, side="left")
    high = np.searchsorted(places, keys + width, side="right")
    return Partners(order, low, np.where(keys >= 0, high, low), _recordings(tracks))


def others(tracks: Sequence[Candidate]) -> Partners:
    """The partners of simple mixup: every track of another recording."""
    everybody = np.arange(len(tracks))
    return Partners(everybody, np.zeros_like(everybody), np.full_like(everybody, len(tracks)), _recordings(tracks))


def clip_starts(downbeats: ArrayLike, samples: int, sample_rate: int, clip_samples: int) -> Indices:
    """Sorted first samples (n,) of the downbeats (seconds) that have a full clip after them in a track of `samples`."""
    starts = np.unique(np.rint(np.asarray(downbeats, dtype=np.float64) * sample_rate).astype(np.int64))
    return starts[(starts >= 0) & (starts <= samples - clip_samples)]


def untrusted(track: Candidate, settings: params.Tempo) -> str | None:
    """Why a track's tempo cannot be trusted, as said of several: "3 without beats"; None where it can."""
    if track.bpm(settings) is None:
        return "without beats"
    if track.downbeats < settings.min_downbeats:
        return f"with fewer than {settings.min_downbeats} downbeats (tempo.min_downbeats)"
    if track.confidence < settings.min_confidence:
        return f"whose tempo is trusted less than {settings.min_confidence:g} (tempo.min_confidence)"
    return None


def why_not_mixable(track: Candidate, settings: params.Tempo) -> str | None:
    """Why a track is never mixed, as `untrusted` says it; None where it may be."""
    if (reason := untrusted(track, settings)) is not None:
        return reason
    if track.metre is None:
        return "without a whole bar"
    return None if track.starts else "too short for a clip (audio.clip_seconds) after a downbeat"


def reasons(tracks: Sequence[Candidate], settings: params.Tempo) -> list[str | None]:
    """For each track why it has no partner; None where it has one."""
    lonely = "whose tempo and metre no other recording shares that may be mixed"
    counts = partners(tracks, settings).counts
    return [None if n else why_not_mixable(track, settings) or lonely for track, n in zip(tracks, counts, strict=True)]


def counted(found: Iterable[str | None]) -> str:
    """Reasons in one clause, the most frequent first: "4 without beats, 1 without a whole bar"."""
    return ", ".join(f"{n} {reason}" for reason, n in Counter(filter(None, found)).most_common())


def remedies(tracks: Sequence[Candidate], settings: params.Tempo) -> list[str]:
    """The settings that, each alone, would give these tracks at least one pair where there is none."""
    looser: dict[str, dict[str, float | str]] = {
        "a lower tempo.min_confidence": {"min_confidence": 0.0},
        "a lower tempo.min_downbeats": {"min_downbeats": 2},
        "a higher tempo.tolerance": {"tolerance": 0.49},
        "tempo.rule octave-log": {"rule": "octave-log"},
    }
    found = [
        name for name, change in looser.items() if partners(tracks, settings.model_copy(update=change)).counts.any()
    ]
    longer = [replace(track, starts=1) for track in tracks]
    if partners(longer, settings).counts.any():
        found.append("a smaller audio.clip_seconds, and everything made anew for it (dvc repro)")
    return found


def tempo_group(track: Candidate, settings: params.Tempo) -> int | None:
    """The group of a track whose tempo can be trusted, else None."""
    bpm = track.bpm(settings)
    return None if bpm is None or untrusted(track, settings) is not None else group(bpm, settings)


def _keys(tracks: Sequence[Candidate], settings: params.Tempo) -> Indices:
    """Numbers (N,) that sort by metre, then place on the circle or group; metres lie four turns apart. -1: never
    mixed."""
    keys = np.full(len(tracks), -1, dtype=np.int64)
    mixable = [index for index, track in enumerate(tracks) if why_not_mixable(track, settings) is None]
    if not mixable:
        return keys
    bpm = np.array([tracks[index].bpm(settings) for index in mixable], dtype=np.float64)
    metre = np.array([tracks[index].metre for index in mixable], dtype=np.int64)
    if settings.rule == "octave-log":
        place = np.rint(octave_place(bpm, settings.low_bpm) * _CIRCLE).astype(np.int64) % _CIRCLE
    else:
        place = np.array([group(one, settings) for one in bpm], dtype=np.int64)
    keys[mixable] = metre * 4 * _CIRCLE + place
    return keys


def _recordings(tracks: Sequence[Candidate]) -> Indices:
    """(N, 2) numbers: equal in the first column for one artist and title, in the second for one recording."""
    seen: dict[tuple[str, ...], int] = {}
    rows = []
    for index, track in enumerate(tracks):
        name = ("name", track.artist.strip().casefold(), track.title.strip().casefold())
        recording = ("recording", track.recording)
        own = ("own", str(index))
        rows.append([seen.setdefault(key if all(key) else own, len(seen)) for key in (name, recording)])
    return np.array(rows, dtype=np.int64).reshape(-1, 2)
