"""Tempo, confidence and groups against analytic cases and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import params
from stages.beats import align, tempo

SETTINGS = params.Tempo()
PUBLIC = params.Tempo(rule="bpm-div-3")
bpms = st.floats(20, 400)


def grid(bpm: float, seconds: float = 60.0, metre: int = 4) -> np.ndarray:
    times = np.arange(0, seconds, 60 / bpm)
    return np.stack([times, np.arange(len(times)) % metre + 1.0], axis=1)


@given(bpms, st.floats(30, 120))
def test_a_place_on_the_circle_is_that_of_every_octave(bpm, low):
    place = float(tempo.octave_place(bpm, low))
    assert 0 <= place < 1
    octaves = np.log2(bpm / (low * 2**place))
    assert octaves == pytest.approx(round(octaves), abs=1e-9)
    assert float(tempo.octave_place(2 * low * (1 - 1e-17), low)) == 0


@given(bpms, bpms, st.floats(0.005, 0.4))
def test_members_of_a_group_differ_by_at_most_the_tolerance(a, b, tolerance):
    settings = params.Tempo(tolerance=tolerance)
    groups = tempo.group(a, settings), tempo.group(b, settings)
    assert all(0 <= group < tempo.group_count(settings) for group in groups)
    apart = abs(float(tempo.octave_place(a, settings.low_bpm)) - float(tempo.octave_place(b, settings.low_bpm)))
    if groups[0] == groups[1]:
        assert 2**apart <= 1 + tolerance + 1e-9
    else:
        assert apart > 0


@given(bpms)
def test_double_and_half_tempo_share_a_group_only_where_folded(bpm):
    assert tempo.group(bpm, SETTINGS) == tempo.group(2 * bpm, SETTINGS)
    assert tempo.group(round(bpm), PUBLIC) != tempo.group(2 * round(bpm), PUBLIC)


@given(st.lists(st.floats(0.2, 1.5), min_size=1, max_size=60), st.floats(0, 10))
def test_public_rule_is_the_public_formula(intervals, start):
    beats = start + np.concatenate([[0], np.cumsum(intervals)])
    n, first, last = len(beats), beats[0], beats[-1]
    expected = round((n - 1) / (last - first) * 60) // 3
    assert tempo.group(tempo.mean_bpm(beats), PUBLIC) == expected


@given(st.lists(st.floats(0.1, 3), min_size=0, max_size=60), st.floats(1, 300))
def test_confidence_is_a_share(intervals, seconds):
    assert 0 <= tempo.confidence(np.cumsum(intervals), seconds) <= 1


@given(st.floats(55, 215))
def test_a_steady_track_is_trusted_and_its_tempo_found(bpm):
    found = tempo.Rhythm.measure("a", grid(bpm), 60.0)
    assert found.tempo_bpm == pytest.approx(bpm, rel=1e-4)
    assert found.mean_bpm == round(bpm)
    assert found.tempo_confidence > 0.99
    assert found.metre == 4


def test_median_withstands_a_gap_that_moves_the_public_mean():
    beats = np.concatenate([np.arange(0, 20, 0.5), np.arange(40, 60, 0.5)])
    assert tempo.median_bpm(beats) == pytest.approx(120)
    assert tempo.mean_bpm(beats) == 80
    assert tempo.confidence(beats, 60) == pytest.approx(78 / 79 * 40 / 60, abs=0.01)


def test_confidence_falls_with_irregular_beats_and_with_little_evidence():
    generator = np.random.default_rng(0)
    ragged = np.cumsum(generator.uniform(0.2, 0.9, 100))
    assert tempo.confidence(ragged, ragged[-1]) < 0.4
    assert tempo.confidence(np.arange(6) * 0.5, 3.0) == pytest.approx(5 / 16)
    half = np.arange(0, 30, 0.5)
    assert tempo.confidence(half, 60) == pytest.approx(0.5)


@pytest.mark.parametrize("settings", [SETTINGS, PUBLIC])
@pytest.mark.parametrize(
    ("bars", "seconds", "reason"),
    [
        (np.empty((0, 2)), 60.0, "without beats"),
        (np.array([[1.0, 1.0]]), 60.0, "without beats"),
        (grid(120, 2), 60.0, "downbeats"),
        (grid(120, 20), 60.0, "trusted less"),
    ],
)
def test_an_unsure_track_gets_no_group_and_a_reason(bars, seconds, reason, settings):
    found = tempo.Rhythm.measure("a", bars, seconds)
    candidate = align.Candidate(found.tempo_bpm, found.mean_bpm, found.tempo_confidence, found.metre,
                                len(found.downbeats), 9)  # fmt: skip
    assert align.tempo_group(candidate, settings) is None
    assert reason in (align.untrusted(candidate, settings) or "")


@given(st.integers(2, 7), st.integers(0, 6), st.integers(2, 20))
def test_metre_survives_a_pickup(metre, pickup, bars):
    positions = [*range(metre - pickup % metre + 1, metre + 1), *(list(range(1, metre + 1)) * bars)]
    assert tempo.metre(positions) == metre


def test_metre_needs_a_whole_bar():
    assert tempo.metre([]) is None
    assert tempo.metre([3, 4, 1, 2, 3]) is None
