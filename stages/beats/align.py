"""Which tracks may be mixed, and where: partners of one tempo, clips that start on a downbeat (paper, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages import params
from stages.beats.tempo import fold

Indices = NDArray[np.int64]

_OCTAVE = 10**9  # log tempo in whole steps of a billionth of an octave, so that "within" is exactly symmetric


@dataclass(frozen=True)
class TrackTempo:
    """What decides whether a track may be mixed.

    `starts` are sample positions of downbeats with a full clip after (`usable_downbeats`). `source` names
    the recording that the track was cut from (a hash, or any key); empty strings are unknown and match nothing.
    """

    tempo_bpm: float | None
    tempo_group: int | None
    metre: int | None
    starts: Indices
    artist: str = ""
    title: str = ""
    source: str = ""


@dataclass(frozen=True)
class Pair:
    """Two clips to mix: track indices and first samples."""

    first: int
    first_start: int
    second: int
    second_start: int


class Partners(Sequence[Indices]):
    """For each track the sorted indices of the tracks it may be mixed with; made when asked for.

    All lists together would grow with the square of the collection; this holds four numbers a track.
    """

    def __init__(self, order: Indices, low: Indices, high: Indices, recordings: NDArray[np.int64]) -> None:
        self._order, self._low, self._high, self._recordings = order, low, high, recordings

    def __len__(self) -> int:
        return len(self._low)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """(n,) int64 for an index, a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        near = self._order[self._low[index] : self._high[index]]
        other = (self._recordings[near] != self._recordings[index]).all(axis=1)
        return np.sort(near[other])


def partners(tracks: Sequence[TrackTempo], settings: params.Tempo) -> Partners:
    """For each track the indices it may be mixed with; symmetric, and empty for a track that must not be mixed.

    Two tracks are partners when both have a tempo group and at least `min_downbeats` usable downbeats,
    their metre is the same, they are not of one recording (same artist and title, or same source; so never
    the track itself), and their tempos agree: for `octave-log` the folded tempos differ by a factor of at
    most 1 + tolerance, across the edges of groups too; for `bpm-div-3` the groups are equal.
    O(N log N) time and O(N) memory.
    """
    keys = _keys(tracks, settings)
    order = np.argsort(keys, kind="stable")
    order = order[keys[order] >= 0]
    width = int(np.log2(1 + settings.tolerance) * _OCTAVE) if settings.rule == "octave-log" else 0
    low = np.searchsorted(keys[order], keys - width, side="left")
    high = np.searchsorted(keys[order], keys + width, side="right")
    return Partners(order, low, np.where(keys >= 0, high, low), recordings(tracks))


def usable_downbeats(downbeats: ArrayLike, samples: int, sample_rate: int, clip_samples: int) -> Indices:
    """Sorted first samples (n,) of the downbeats (seconds) that have a full clip after them in a track of `samples`."""
    starts = np.unique(np.rint(np.asarray(downbeats, dtype=np.float64) * sample_rate).astype(np.int64))
    return starts[(starts >= 0) & (starts <= samples - clip_samples)]


def draw_pair(
    tracks: Sequence[TrackTempo], allowed: Sequence[Indices], first: int, seed: int | Sequence[int]
) -> Pair | None:
    """A partner for track `first`, and a downbeat on each side, all drawn evenly; None when it has no partner.

    A pure function of its arguments: equal seeds give equal pairs.
    """
    candidates = allowed[first]
    if not len(candidates):
        return None
    generator = np.random.default_rng(seed)
    second = int(generator.choice(candidates))
    first_start, second_start = (int(generator.choice(tracks[index].starts)) for index in (first, second))
    return Pair(first, first_start, second, second_start)


def _keys(tracks: Sequence[TrackTempo], settings: params.Tempo) -> Indices:
    """Numbers (N,) that sort by metre, then tempo; metres lie four octaves apart. -1: never mixed."""
    mixable = [
        (index, track.metre, track.tempo_bpm, track.tempo_group)
        for index, track in enumerate(tracks)
        if None not in (track.tempo_group, track.tempo_bpm, track.metre) and len(track.starts) >= settings.min_downbeats
    ]
    keys = np.full(len(tracks), -1, dtype=np.int64)
    if not mixable:
        return keys
    index, metre, bpm, group = (np.array(column) for column in zip(*mixable, strict=True))
    if settings.rule == "octave-log":
        place = np.rint(np.log2(fold(bpm, settings.low_bpm) / settings.low_bpm) * _OCTAVE).astype(np.int64)
    else:
        place = group
    keys[index] = metre * 4 * _OCTAVE + place
    return keys


def recordings(tracks: Sequence[TrackTempo]) -> NDArray[np.int64]:
    """(N, 2) numbers: equal in the first column for one artist and title, in the second for one source."""
    seen: dict[tuple[str, ...], int] = {}
    rows = []
    for index, track in enumerate(tracks):
        name = ("name", track.artist.strip().casefold(), track.title.strip().casefold())
        source = ("source", track.source)
        own = ("own", str(index))
        rows.append([seen.setdefault(key if all(key) else own, len(seen)) for key in (name, source)])
    return np.array(rows, dtype=np.int64).reshape(-1, 2)
