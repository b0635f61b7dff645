"""Partners and pairs against the definition written out as a double loop."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import params
from stages.beats import align, tempo

SETTINGS = params.Tempo()
PUBLIC = params.Tempo(rule="bpm-div-3")


@st.composite
def collections(draw):
    settings = draw(st.sampled_from([SETTINGS, PUBLIC, params.Tempo(tolerance=0.1, min_downbeats=3)]))
    rows = draw(
        st.lists(
            st.tuples(
                st.one_of(st.none(), st.floats(60, 200), st.sampled_from([100.0, 102.9, 103.0, 50.0, 200.0])),
                st.sampled_from([3, 4, 4, None]),
                st.integers(0, 4),
                st.sampled_from(["", "a", "b"]),
                st.sampled_from(["", "x", "y"]),
                st.sampled_from(["", "", "1", "2"]),
            ),
            max_size=25,
        )
    )
    tracks = [
        align.TrackTempo(
            bpm, None if bpm is None else tempo.group(bpm, settings), metre, np.arange(n) * 9, artist, title, source
        )
        for bpm, metre, n, artist, title, source in rows
    ]
    return settings, tracks


def may_mix(a: align.TrackTempo, b: align.TrackTempo, settings: params.Tempo) -> bool:
    if a is b or a.tempo_bpm is None or b.tempo_bpm is None or a.metre is None or a.metre != b.metre:
        return False
    if min(len(a.starts), len(b.starts)) < settings.min_downbeats:
        return False
    if (a.artist and a.title and (a.artist, a.title) == (b.artist, b.title)) or (a.source and a.source == b.source):
        return False
    if settings.rule == "bpm-div-3":
        return a.tempo_bpm // 3 == b.tempo_bpm // 3
    low, high = sorted(float(tempo.fold(x.tempo_bpm, settings.low_bpm)) for x in (a, b))
    return high / low <= 1 + settings.tolerance


@given(collections())
def test_partners_are_those_of_the_definition(collection):
    settings, tracks = collection
    found = align.partners(tracks, settings)
    assert len(found) == len(tracks)
    for i, mine in enumerate(found):
        assert mine.tolist() == [j for j, other in enumerate(tracks) if may_mix(tracks[i], other, settings)]
        assert all(i in found[j] for j in mine)


@given(collections(), st.integers(0, 2**63))
def test_a_pair_is_a_pure_function_of_its_seed_and_starts_on_downbeats(collection, seed):
    settings, tracks = collection
    allowed = align.partners(tracks, settings)
    for first in range(len(tracks)):
        pair = align.draw_pair(tracks, allowed, first, seed)
        assert pair == align.draw_pair(tracks, align.partners(tracks, settings), first, seed)
        assert (pair is None) == (len(allowed[first]) == 0)
        if pair is not None:
            assert pair.first == first
            assert pair.second in allowed[first]
            assert pair.first_start in tracks[first].starts
            assert pair.second_start in tracks[pair.second].starts


def test_neighbours_across_a_group_edge_may_pair():
    edge = SETTINGS.low_bpm * 2 ** (5 / tempo.group_count(SETTINGS))
    tracks = [
        align.TrackTempo(bpm, tempo.group(bpm, SETTINGS), 4, np.arange(3)) for bpm in (edge * 0.999, edge * 1.001)
    ]
    assert tracks[0].tempo_group != tracks[1].tempo_group
    assert [mine.tolist() for mine in align.partners(tracks, SETTINGS)] == [[1], [0]]


def test_draws_reach_every_partner_and_every_downbeat():
    tracks = [align.TrackTempo(100.0, tempo.group(100.0, SETTINGS), 4, np.array([3, 7])) for _ in range(4)]
    allowed = align.partners(tracks, SETTINGS)
    pairs = {align.draw_pair(tracks, allowed, 1, seed) for seed in range(300)}
    assert len(pairs) == 3 * 2 * 2


@given(st.lists(st.floats(-1, 100), max_size=30), st.integers(0, 1_600_000), st.integers(1, 200_000))
def test_usable_downbeats_have_a_full_clip_after(downbeats, samples, clip_samples):
    starts = align.usable_downbeats(downbeats, samples, 16_000, clip_samples)
    assert ((starts >= 0) & (starts + clip_samples <= samples)).all()
    expected = {round(x * 16_000) for x in downbeats} & set(range(max(0, samples - clip_samples + 1)))
    assert set(starts.tolist()) == expected


def test_a_downbeat_exactly_one_clip_before_the_end_counts():
    assert align.usable_downbeats([0.0, 1.0, 1.1], 200, 100, 100).tolist() == [0, 100]


@pytest.mark.parametrize("settings", [SETTINGS, PUBLIC])
def test_a_hundred_thousand_tracks_in_seconds(settings):
    bpms = np.random.default_rng(0).uniform(60, 200, 100_000).round()
    starts = np.arange(3)
    groups = {bpm: tempo.group(bpm, settings) for bpm in np.unique(bpms)}
    tracks = [align.TrackTempo(bpm, groups[bpm], 4, starts, "x", str(i)) for i, bpm in enumerate(bpms)]
    began = time.process_time()
    found = align.partners(tracks, settings)
    pairs = [align.draw_pair(tracks, found, first, first) for first in range(0, 100_000, 1000)]
    assert time.process_time() - began < 8
    assert None not in pairs
