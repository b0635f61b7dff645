"""Windows, joins and chunks without any network: what must hold for audio of any length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import params
from stages.beats import decode
from stages.beats.features import chunks

FPS = 40


def pulses(bpm: float, seconds: float, metre: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations (T, 2) of a perfect network at 40 frames a second, and the bars they stand for.

    Between two frames a beat is shared by both, as training's targets and a network's doubt have it.
    """
    times = np.arange(0.5, seconds, 60 / bpm)
    positions = np.arange(len(times)) % metre + 1
    frames = np.arange(round(seconds * FPS))
    shape = np.maximum(1 - np.abs(frames[:, None] - times * FPS), 0)
    columns = [shape.max(axis=1), shape[:, positions == 1].max(axis=1)]
    return 0.9 * np.stack(columns, axis=1).astype(np.float32), np.stack([times, positions], axis=1)


@pytest.mark.parametrize(("bpm", "metre"), [(100.0, 4), (150.0, 3)])
def test_windows_join_without_a_lost_or_doubled_beat(monkeypatch, bpm, metre):
    monkeypatch.setattr(decode, "WINDOW_SECONDS", 20)
    activations, bars = pulses(bpm, 45, metre)
    assert len(decode._windows(activations, FPS)) == 4
    found = decode.decode(activations, FPS, params.Beats(beats_per_bar=[metre]))
    assert np.allclose(found[1:-1, 0], bars[1:-1, 0], atol=0.011)
    assert (found[1:-1, 1] == bars[1:-1, 1]).all()


def test_one_metre_holds_for_all_windows(monkeypatch):
    """A few bars of three amid many of four are decoded as the metre that most beats have."""
    monkeypatch.setattr(decode, "WINDOW_SECONDS", 20)
    four, three = pulses(120, 24, 4)[0], pulses(120, 15, 3)[0]
    found = decode.decode(np.concatenate([four, three, four]), FPS, params.Beats())
    bars = np.diff(np.flatnonzero(found[:, 1] == 1))
    assert (bars == 4).sum() >= len(bars) - 2  # a seam may cut one
    assert not (bars == 3).any()


@pytest.mark.parametrize("decoder", ["dbn", "peaks"])
@pytest.mark.parametrize("bpm", [61.0, 123.4, 207.0])
def test_beats_fall_between_frames(decoder, bpm):
    """Frames are 25 ms apart; the beats of a tempo that fits none of them come out within a few milliseconds."""
    activations, bars = pulses(bpm, 20, 4)
    found = decode.decode(activations, FPS, params.Beats(decoder=decoder, beats_per_bar=[4]))
    assert np.allclose(found[1:-1, 0], bars[1:-1, 0], atol=0.006)
    assert (found[1:-1, 1] == bars[1:-1, 1]).all()


@pytest.mark.parametrize(("bpm", "beats"), [(150, 8), (171, 6)])
def test_a_few_beats_heard_half_a_beat_off_do_not_move_the_others(bpm, beats):
    """As where only cymbals between the beats play; 171 BPM lies between two tempos of whole frames at 40 a second."""
    activations, bars = pulses(bpm, 60, 4)
    half, first, last = round(30 / bpm * FPS), 25 * FPS, int((25 + beats * 60 / bpm) * FPS)
    heard = activations.copy()
    heard[first:last] = activations[first - half : last - half]
    found = decode.decode(heard, FPS, params.Beats(beats_per_bar=[4]))
    assert np.abs(found[:, None, 0] - bars[:, 0]).min(axis=1).max() < 0.05


def test_peaks_count_on_from_each_downbeat():
    """A bar of three amid bars of four, which the decoder with one metre for all would not follow."""
    times = np.arange(1, 16) * 0.5
    activations = np.zeros((340, 2), dtype=np.float32)
    activations[np.rint(times * FPS).astype(int), 0] = 0.8
    activations[np.rint(times[[0, 4, 7, 11]] * FPS).astype(int), 1] = 0.7
    found = decode.decode(activations, FPS, params.Beats(decoder="peaks"))
    assert found[:, 1].tolist() == [1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize("decoder", ["dbn", "peaks"])
@pytest.mark.parametrize("frames", [0, 1, 300])
def test_nothing_is_decoded_from_nothing(frames, decoder):
    assert decode.decode(np.zeros((frames, 2), dtype=np.float32), FPS, params.Beats(decoder=decoder)).shape == (0, 2)


@given(st.floats(0.3, 1.0), st.floats(0, 3), st.floats(4, 10), st.floats(-0.02, 0.02))
def test_join_of_two_views_of_one_grid_is_the_grid(period, first, overlap, jitter):
    grid = first + period * np.arange(60)
    bars = np.stack([grid, np.arange(60) % 4 + 1.0], axis=1)
    middle = grid[30]
    left, right = bars[grid <= middle + overlap / 2], bars[grid >= middle - overlap / 2] + [jitter, 0]
    joined = decode.join(left, right)
    assert len(joined) == 60
    assert (joined[:, 1] == bars[:, 1]).all()
    assert np.allclose(joined[:, 0], grid, atol=0.021)


def test_join_with_an_empty_side_is_the_other():
    bars = np.array([[1.0, 1.0], [1.5, 2.0]])
    empty = np.empty((0, 2))
    assert decode.join(bars, empty) is bars
    assert decode.join(empty, bars) is bars
    assert decode.join(empty, empty).shape == (0, 2)


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(5, 40), st.integers(0, 5))
def test_chunks_hold_every_sample_once_amid_its_context(lengths, size, context):
    total = sum(lengths)
    signal = np.arange(total, dtype=np.float32)
    blocks = np.split(signal, np.cumsum(lengths)[:-1]) if lengths else []
    seen = 0
    for samples, start, stop in chunks(blocks, size, context):
        assert samples[start] == seen
        assert start == min(context, seen)
        assert len(samples) - stop == context or samples[-1] == total - 1
        assert len(samples) <= size + 3 * context
        seen += stop - start
        assert samples[stop - 1] == seen - 1
    assert seen == total
