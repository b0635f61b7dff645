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


def track(bpm, metre=4, downbeats=9, starts=3, artist="", title="", recording="", confidence=1.0):
    mean = None if bpm is None else float(round(bpm))
    return align.Candidate(bpm, mean, confidence, metre, downbeats, starts, artist, title, recording)


@st.composite
def collections(draw):
    settings = draw(st.sampled_from([SETTINGS, PUBLIC, params.Tempo(tolerance=0.1, min_downbeats=3),
                                     params.Tempo(tolerance=0.45), params.Tempo(low_bpm=100.0)]))  # fmt: skip
    tempos = st.sampled_from([100.0, 102.9, 103.0, 50.0, 200.0, 139.0, 141.0, 69.5, 70.0, 70.5, 139.99999999999997])
    rows = st.builds(
        track,
        st.one_of(st.none(), st.floats(60, 200), tempos),
        st.sampled_from([3, 4, 4, None]),
        st.integers(1, 4),
        st.integers(0, 2),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["", "x", "y"]),
        st.sampled_from(["", "", "1", "2"]),
        st.sampled_from([1.0, 1.0, 0.4]),
    )
    return settings, draw(st.lists(rows, max_size=25))


def octaves_apart(a: float, b: float) -> float:
    """The shorter way round the circle: of a and every octave of b the nearest."""
    return min(abs(np.log2(a / b) - octave) for octave in range(-4, 5))


def may_mix(a: align.Candidate, b: align.Candidate, settings: params.Tempo) -> bool:
    if a is b or a.tempo_bpm is None or b.tempo_bpm is None or a.metre is None or a.metre != b.metre:
        return False
    if min(a.downbeats, b.downbeats) < settings.min_downbeats or not (a.starts and b.starts):
        return False
    if min(a.confidence, b.confidence) < settings.min_confidence:
        return False
    if (a.artist and a.title and (a.artist, a.title) == (b.artist, b.title)) or (
        a.recording and a.recording == b.recording
    ):
        return False
    if settings.rule == "bpm-div-3":
        return a.mean_bpm // 3 == b.mean_bpm // 3
    return octaves_apart(a.tempo_bpm, b.tempo_bpm) <= np.log2(1 + settings.tolerance) + 1e-9


@given(collections())
def test_partners_are_those_of_the_definition(collection):
    settings, tracks = collection
    found = align.partners(tracks, settings)
    assert len(found) == len(found.counts) == len(tracks)
    assert [len(mine) for mine in found] == found.counts.tolist()
    why = align.reasons(tracks, settings)
    for i, mine in enumerate(found):
        assert mine.tolist() == [j for j, other in enumerate(tracks) if may_mix(tracks[i], other, settings)]
        assert all(i in found[j] for j in mine)
        assert (why[i] is None) == (len(mine) > 0)


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [(139, 141, True), (69.5, 70.5, True), (139, 70.5, True), (141, 69.5, True), (137, 141.5, False), (70, 140, True),
     (100, 51.4, True), (100, 51.6, False), (60, 200, False)],
)  # fmt: skip
def test_tempos_are_a_circle_of_octaves(a, b, near):
    assert align.partners([track(float(a)), track(float(b))], SETTINGS).counts.tolist() == [near, near]


@given(collections(), st.integers(0, 2**63))
def test_a_draw_is_a_partner_and_a_pure_function_of_its_seed(collection, seed):
    settings, tracks = collection
    for allowed in (align.partners(tracks, settings), align.others(tracks)):
        for first in range(len(tracks)):
            if allowed.counts[first]:
                drawn = allowed.draw(first, np.random.default_rng(seed))
                assert drawn in allowed[first]
                assert drawn == allowed.draw(first, np.random.default_rng(seed))
            else:
                assert not len(allowed[first])
                with pytest.raises(ValueError, match="high"):
                    allowed.draw(first, np.random.default_rng(seed))


@given(collections())
def test_the_others_are_all_of_other_recordings(collection):
    _, tracks = collection

    def one_recording(a, b):
        return (
            a is b
            or bool(a.artist and a.title and (a.artist, a.title) == (b.artist, b.title))
            or bool(a.recording and a.recording == b.recording)
        )

    for mine, found in zip(tracks, align.others(tracks), strict=True):
        assert found.tolist() == [j for j, other in enumerate(tracks) if not one_recording(mine, other)]


@pytest.mark.parametrize(
    ("tracks", "settings", "helps"),
    [
        ([track(100.0, confidence=0.4), track(101.0)], SETTINGS, ["a lower tempo.min_confidence"]),
        ([track(100.0, downbeats=2), track(101.0)], params.Tempo(min_downbeats=4), ["a lower tempo.min_downbeats"]),
        ([track(100.0), track(120.0)], SETTINGS, ["a higher tempo.tolerance"]),
        ([track(98.0), track(99.0)], PUBLIC, ["tempo.rule octave-log"]),
        ([track(100.0, starts=0), track(101.0)], SETTINGS, ["a smaller audio.clip_seconds"]),
        ([track(100.0, metre=3), track(100.0)], SETTINGS, []),
        ([track(100.0, recording="x"), track(100.0, recording="x")], SETTINGS, []),
        ([track(100.0, confidence=0.4, starts=0), track(120.0)], SETTINGS, []),  # no single one would
    ],
)
def test_only_what_helps_is_a_remedy(tracks, settings, helps):
    assert not align.partners(tracks, settings).counts.any()
    found = align.remedies(tracks, settings)
    assert len(found) == len(helps)
    assert all(name.startswith(wanted) for name, wanted in zip(found, helps, strict=True))


def test_reasons_are_told_the_most_frequent_first():
    tracks = [track(None), track(100.0, starts=0), track(100.0, starts=0), track(100.0), track(130.0, metre=None)]
    why = align.reasons([*tracks, track(90.0, confidence=0.1), track(90.0, downbeats=1)], SETTINGS)
    told = align.counted(why).split(", ")
    assert told[0] == "2 too short for a clip (audio.clip_seconds) after a downbeat"
    assert set(told[1:]) == {
        "1 without beats",
        "1 whose tempo and metre no other recording shares that may be mixed",
        "1 without a whole bar",
        "1 whose tempo is trusted less than 0.5 (tempo.min_confidence)",
        "1 with fewer than 2 downbeats (tempo.min_downbeats)",
    }


def test_one_usable_downbeat_of_two_is_enough():
    assert align.partners([track(100.0, downbeats=2, starts=1)] * 2, SETTINGS).counts.tolist() == [1, 1]
    assert align.partners([track(100.0, downbeats=1, starts=1)] * 2, SETTINGS).counts.tolist() == [0, 0]


def test_neighbours_across_a_group_edge_may_pair():
    for number in (5, 0):  # an inner edge, and that between the last group and the first
        edge = SETTINGS.low_bpm * 2 ** (number / tempo.group_count(SETTINGS))
        tracks = [track(edge * 0.999), track(edge * 1.001)]
        groups = [align.tempo_group(one, SETTINGS) for one in tracks]
        assert groups == [(number - 1) % tempo.group_count(SETTINGS), number]
        assert [mine.tolist() for mine in align.partners(tracks, SETTINGS)] == [[1], [0]]


def test_draws_reach_every_partner_alike():
    tracks = [track(100.0, recording=name) for name in "abcabcd"]
    allowed, generator = align.partners(tracks, SETTINGS), np.random.default_rng(0)
    drawn = [allowed.draw(1, generator) for _ in range(2000)]
    assert np.bincount(drawn, minlength=7)[[1, 4]].tolist() == [0, 0]
    assert np.abs(np.bincount(drawn)[[0, 2, 3, 5, 6]] / 400 - 1).max() < 0.15


@given(st.lists(st.floats(-1, 100), max_size=30), st.integers(0, 1_600_000), st.integers(1, 200_000))
def test_clip_starts_have_a_full_clip_after(downbeats, samples, clip_samples):
    starts = align.clip_starts(downbeats, samples, 16_000, clip_samples)
    assert ((starts >= 0) & (starts + clip_samples <= samples)).all()
    expected = {round(x * 16_000) for x in downbeats} & set(range(max(0, samples - clip_samples + 1)))
    assert set(starts.tolist()) == expected


def test_a_downbeat_exactly_one_clip_before_the_end_counts():
    assert align.clip_starts([0.0, 1.0, 1.1], 200, 100, 100).tolist() == [0, 100]


@pytest.mark.parametrize("settings", [SETTINGS, PUBLIC])
def test_a_hundred_thousand_tracks_in_seconds(settings):
    bpms = np.random.default_rng(0).uniform(60, 200, 100_000).round()
    tracks = [track(bpm, title=str(i), artist="x", recording=str(i // 3)) for i, bpm in enumerate(bpms.tolist())]
    began = time.process_time()
    for found in (align.partners(tracks, settings), align.others(tracks)):
        assert (found.counts > 0).all()
        generator = np.random.default_rng(0)
        for first in range(0, 100_000, 100):
            found.draw(first, generator)
    assert time.process_time() - began < 8
