"""Rendered scores: that the beats said are the beats played."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.score_beats import arrange, collection, grooves, tunes
from stages.data.score_beats.perform import MAX_BPM, MAX_SECONDS, MIN_BPM, draw_bpm, perform
from stages.data.score_beats.score import DRUMS, Score, notes


def scale(metre: int, first: int, bars: int = 12, compound: bool = False) -> Score:
    """A note of C major on every beat, and one half a beat later."""
    beats = first + bars * metre
    pitches = [60 + (0, 2, 4, 5, 7, 9, 11)[beat % 7] for beat in range(beats)]
    rows = [(beat + half, 0.5, pitches[beat], 90, 0) for beat in range(beats) for half in (0, 0.5)]
    return Score("scale", "A scale", "test", "CC0-1.0", metre, first, beats, notes(rows), (0,), compound)


@given(st.sampled_from([2, 3, 4]), st.integers(0, 3), st.floats(55, 215), st.integers(0, 2**32))
def test_beats_are_where_the_notes_of_the_score_are(metre, pickup, bpm, seed):
    score = scale(metre, min(pickup, metre - 1))
    played = perform(score, bpm, np.random.default_rng(seed), lead_in=0.4)
    assert len(played.beats) == len(played.positions) <= score.beats
    assert played.beats[0] == pytest.approx(0.4)
    assert (np.diff(played.beats) > 0).all()
    assert played.beats[-1] < MAX_SECONDS
    assert (np.diff(played.positions) % metre == 1 % metre).all()
    assert played.positions[score.first] == 1
    starts = played.notes["start"]
    nearest = np.abs(starts[:, None] - played.beats[None, :]).min(axis=0)
    assert nearest.max() < 0.07  # the touch is at most some hundredths of a second


@given(st.sampled_from([3, 4]), st.integers(0, 3), st.booleans(), st.integers(0, 2**32))
def test_an_arrangement_keeps_the_bars(metre, pickup, compound, seed):
    score = scale(metre, min(pickup, metre - 1), compound=compound)
    longer = arrange.lengthen(score, 70)
    assert longer.beats >= 70
    assert (longer.beats - score.beats) % metre == 0  # bar to bar
    made = arrange.arrange(longer, np.random.default_rng(seed))
    assert made.beats == longer.beats
    assert made.first == longer.first
    assert made.metre == metre
    assert set(made.notes["part"]) <= set(range(len(made.programs)))
    assert made.notes["pitch"].min() >= 0
    assert made.notes["pitch"].max() < 128


@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 2**32))
def test_a_tempo_is_one_at_which_such_beats_are_counted(density, seed):
    """No sixteenths so fast that every second of the beats would be counted, no eighths so slow that twice as many."""
    rows = [(beat + part / density, 0.1, 60, 90, 0) for beat in range(16) for part in range(density)]
    score = dataclasses.replace(scale(4, 0, 4), notes=notes(rows))
    bpm = draw_bpm(score, 112.0, np.random.default_rng(seed))
    fastest = {1: 150, 2: MAX_BPM, 3: 160, 4: 125, 6: 125}[density]
    assert MIN_BPM <= bpm <= fastest
    assert density != 2 or bpm >= 68
    assert 80 <= draw_bpm(dataclasses.replace(score, amplified=(0,)), 112.0, np.random.default_rng(seed)) <= MAX_BPM


def test_chords_hold_the_melody():
    """C E G C in the first bar and G B D G in the second are their own chords, for each half bar and each bar."""
    pitches = [60, 64, 67, 72, 67, 71, 74, 79]
    score = dataclasses.replace(
        scale(4, 0, 2), notes=notes([(beat, 1.0, pitch, 90, 0) for beat, pitch in enumerate(pitches)])
    )
    assert [set(chord) for chord in arrange.harmony(score, 2.0).triads[1:4:2]] == [{0, 4, 7}, {7, 11, 2}]
    bars = arrange.harmony(score, 4.0)
    assert [set(bars.at(beat)) for beat in range(8)] == [{0, 4, 7}] * 4 + [{7, 11, 2}] * 4


@pytest.mark.parametrize(("chords_a_bar", "read"), [(2, "C G|Am F"), (1, "C C|G G"), (0.5, "C C|C C")])
def test_a_groove_changes_chords_where_its_bars_begin(chords_a_bar, read):
    """But for two chords a bar, whose second one is at the middle."""
    groove = grooves.Groove("lib/rock", "Rock", 4)
    lines = grooves._chart(groove, ["C", "G", "Am", "F"], chords_a_bar, 2).splitlines()[2:]
    assert "|".join(" ".join(line.replace("/", "").split()[1:]) for line in lines) == read


@pytest.mark.parametrize(
    ("feel", "kicks", "snares"),
    [("four", [0, 2, 4, 6], [2, 6]), ("half", [0], [4]), ("skank", [0, 2, 4, 6], [1, 3, 5, 7]), ("back", [0], [2, 6])],
)
def test_a_drum_pattern_has_its_kicks_and_snares_where_its_feel_says(feel, kicks, snares):
    """Eighths of a bar of four, over 200 patterns: these places are hit in most of them, the others in few."""
    drawn = np.random.default_rng(0)
    patterns = [arrange._pattern(scale(4, 0), 2, drawn, loud=False, feel=feel) for _ in range(200)]
    share = np.mean([pattern[arrange.KICK] > 0 for pattern in patterns], axis=0)
    assert set(kicks) <= set(np.flatnonzero(share > 0.8)) <= {*kicks, 4}
    backs = [pattern.get(pitch) for pattern in patterns for pitch in (arrange.SNARE, arrange.RIM, arrange.CLAP)]
    share = np.mean([hits > 0 for hits in backs if hits is not None], axis=0)
    assert np.flatnonzero(share > 0.8).tolist() == snares


def test_all_is_drawn_from_the_seed_and_no_tune_is_in_two_splits():
    catalogue = [(name, f"/corpus/{name}/{n}.abc", None) for name in tunes.COLLECTIONS for n in range(150)]
    library = [grooves.Groove(f"lib/{n}", name, 4) for n in range(60) for name in ("A", "B")]
    plans = collection._plan(catalogue, library, 400, seed=3)
    assert plans == collection._plan(catalogue, library, 400, seed=3)
    assert plans[:100] == collection._plan(catalogue, library, 100, seed=3)  # fewer pieces are the first of more
    assert plans != collection._plan(catalogue, library, 400, seed=4)
    for keys in ([plan.tune for plan in plans], [plan.groove and plan.groove.file for plan in plans]):
        split_of: dict[object, set[str]] = {}
        for key, plan in zip(keys, plans, strict=True):
            if key is not None:
                split_of.setdefault(key, set()).add(plan.split)
        assert all(len(splits) == 1 for splits in split_of.values())
    assert {plan.split for plan in plans} == {"train", "valid", "test"}


def test_the_metre_of_a_groove_is_what_its_file_says(tmp_path):
    lib = tmp_path / "lib" / "stdlib"
    lib.mkdir(parents=True)
    (lib / "waltz.mma").write_text("Time 3\nTimeSig 3 4\nDefGroove Waltz A waltz.\nDefGroove Waltz1Sus\n")
    (lib / "rock.mma").write_text(
        "".join(f"DefGroove {name}\n" for name in ("Rock", "RockFillAA", "RockIntro8", "RockEnd"))
    )
    (lib / "jig.mma").write_text("Time 6\nTimesig 6/8\nDefGroove Jig\n")
    (lib / "five.mma").write_text("Time 5\nTimesig 5 4\nDefGroove Five\n")
    found = {groove.name: groove.metre for groove in grooves.library(tmp_path)}
    assert found == {"Waltz": 3, "Waltz1Sus": 3, "Rock": 4}  # and neither two, five, nor a fill by itself


def corpus_piece(collection_name: str, stem: str) -> Score:
    pytest.importorskip("music21")
    from music21 import corpus

    (path,) = [p for p in corpus.corpora.CoreCorpus().getPaths() if p.stem == stem and p.parent.name == collection_name]
    score = tunes.read_tune(collection_name, str(path), None)
    assert score is not None
    return score


def test_a_reel_with_a_pickup_and_bars_cut_by_repeats():
    """Acacia Reel: 2/4, two bars are one here, an eighth before the first; bars 8 and 9 are halves around a repeat."""
    reel = corpus_piece("ryansMammoth", "AcaciaReel")
    assert (reel.metre, reel.first, reel.compound) == (4, 1, False)
    assert reel.notes["start"][0] == 0.5  # the pickup's half beat before the first downbeat
    assert reel.positions[:4].tolist() == [4, 1, 2, 3]
    assert reel.beats == 1 + 2 * 16


def test_a_chorale_with_a_pickup():
    chorale = corpus_piece("bach", "bwv101.7")
    assert (chorale.metre, chorale.first, len(chorale.programs)) == (4, 1, 4)
    assert chorale.notes["start"][0] == 0
    assert chorale.beats == 1 + 4 * 12 - 1


def test_sound_begins_where_the_beats_are():
    """A wood block on every beat, rendered: its energy rises within 15 ms of each beat."""
    pytest.importorskip("tinysoundfont")
    pretty_midi = pytest.importorskip("pretty_midi")
    from stages.data.score_beats.render import RENDER_RATE, _synthesise

    score = dataclasses.replace(
        scale(4, 0, 4), programs=(DRUMS,), notes=notes([(beat, 0.3, 76, 110, 0) for beat in range(16)]), swings=False
    )
    played = perform(score, 100.0, np.random.default_rng(1))
    exact = dataclasses.replace(played, notes=played.notes.copy())
    exact.notes["start"] = played.beats
    fonts = {"gm": Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"}
    sound = _synthesise(exact, score.programs, fonts, ("gm", "gm"), np.random.default_rng(0))
    level = np.abs(sound).reshape(-1, RENDER_RATE // 1000 if len(sound) % (RENDER_RATE // 1000) == 0 else 1).max(axis=1)
    step = len(level) / len(sound) * RENDER_RATE
    for beat in played.beats:
        window = level[round((beat - 0.1) * step) : round((beat + 0.1) * step)]
        onset = np.argmax(window > 0.3 * window.max()) / step - 0.1
        assert abs(onset) < 0.015
