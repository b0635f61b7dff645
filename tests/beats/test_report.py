"""The report's counts, its self-containedness, and clicks where the beats are."""

import re
from dataclasses import replace

import numpy as np
import pytest

from stages import params
from stages.audio import io
from stages.beats import report
from stages.beats.tempo import Rhythm, octave_doubt
from stages.data.manifest import Manifest, Track
from stages.errors import DataError
from stages.store import write_jsonl
from tests.beats.test_tempo import grid

SETTINGS = params.resolve({"preset": "small"}, [], origin="test")
BPMS = {"a": 120.0, "b": 121.0, "c": 60.0, "d": 200.0, "<e>": None}


@pytest.fixture
def collection(tmp_path) -> tuple[list[Rhythm], Manifest]:
    rhythms, tracks = [], []
    for name, bpm in BPMS.items():
        bars = grid(bpm, 60) if bpm else np.empty((0, 2))
        rhythms.append(Rhythm.measure(name, bars, 60.0))
        tracks.append(Track(name, f"{name}.wav", "", f"title of {name}", "x", "", "", "train", 60.0, 22_050, name * 9))
    return rhythms, Manifest(tmp_path, tuple(tracks))


def test_the_summary_counts_partners(collection):
    """120, 121 and, an octave down, 60 BPM go together; 200 has nobody; the last has no beats."""
    alone = "1 whose tempo and metre no other recording shares that may be mixed, 1 without beats"
    assert report.summarise(*collection, SETTINGS) == report.Summary(5, 4, 2, 5, 0.6, alone)


def test_only_training_tracks_have_partners(collection):
    """As in training: b is held out, and c is another excerpt of a's recording."""
    rhythms, manifest = collection
    changes = {"a": {"recording": "r"}, "b": {"split": "test"}, "c": {"recording": "r"}}
    tracks = tuple(replace(track, **changes.get(track.id, {})) for track in manifest.tracks)
    found = report.summarise(rhythms, replace(manifest, tracks=tracks), SETTINGS)
    assert (found.tracks, found.tracked, found.training_tracks, found.share_with_partner) == (5, 4, 4, 0.0)


def test_the_page_is_self_contained_and_tells_doubts_and_rejections(collection, tmp_path):
    summary = report.write_report(*collection, SETTINGS, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert summary.tracks == 5
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=\"(?!#)", page.replace("xlink:href", "href"))
    assert "Suspected octave errors: 2" in page
    assert "60.0 BPM counts as 120.0" in page
    assert "Training tracks without a partner, and why: 2" in page
    assert "&lt;e&gt;" in page
    assert "<td>title of &lt;e&gt;</td><td>&lt;e&gt;</td>" in page, "who reads an id wants the name"
    report.write_report(*collection, SETTINGS, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_a_tracker_that_changes_its_mind_is_doubtful():
    steady = np.arange(0, 40, 0.5)
    rhythm = Rhythm("a", [*steady, *np.arange(40, 60, 1.0)], [], 4, 120.0, 120.0, 0.7)
    assert octave_doubt(rhythm, SETTINGS.tempo) == "19% of its intervals are double the median"
    assert octave_doubt(Rhythm("a", list(steady), [], 4, 120.0, 120.0, 1.0), SETTINGS.tempo) is None


def test_clicks_are_heard_on_beats_and_higher_on_downbeats(tmp_path):
    rate = 22_050
    io.write(tmp_path / "a.wav", np.zeros(rate * 6, np.float32), rate)
    manifest = Manifest(tmp_path, (Track("a", "a.wav", "", "", "", "", "", "train", 6.0, rate, "0"),))
    rhythm = Rhythm.measure("a", grid(120, 6), 6.0)
    write_jsonl(tmp_path / "beats.jsonl", [vars(rhythm)])
    wav, png = report.write_clicks_of("a", manifest, tmp_path)
    assert (wav, png) == (tmp_path / "listen/a.wav", tmp_path / "listen/a.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    sound, _ = io.read(wav)
    for time in rhythm.beats:
        first = round(time * rate)
        click = sound[first : first + round(0.04 * rate)]
        assert np.abs(sound[max(first - 200, 0) : first]).max(initial=0) < 1e-3
        pitch = np.argmax(np.abs(np.fft.rfft(click, rate)))
        wanted = report.DOWNBEAT_HZ if time in rhythm.downbeats else report.BEAT_HZ
        assert pitch == pytest.approx(wanted, abs=30)
    with pytest.raises(DataError, match="no track nobody"):
        report.write_clicks_of("nobody", manifest, tmp_path)
