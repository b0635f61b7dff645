import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from stages.audio.descriptors import Descriptors, describe, find_key
from stages.data.captions import SPOKEN, find_words, join, write_captions
from stages.errors import DataError
from stages.params import resolve

PARAMS = resolve({"preset": "tiny"})
FILES = ["flare_battle_theme", "hyperrogue_hr3_hell", "warzone_broken_dreams"]  # hell has no beats here
NO_TEMPO = {"tempo_bpm": None, "tempo_confidence": 0.0}
SILENT = Descriptors(None, 0.0, None, None, 0.0, 0.0, {})


def tones(*hertz, seconds=4.0, peak=0.5):
    """Sines one after another, each with half as loud an octave."""
    time = np.arange(round(seconds / len(hertz) * 16_000)) / 16_000
    notes = [np.sin(2 * np.pi * pitch * time) + 0.5 * np.sin(4 * np.pi * pitch * time) for pitch in hertz]
    sound = np.concatenate(notes)
    return (peak * sound / np.abs(sound).max()).astype(np.float32)


def degrees(tonic_hertz, *semitones):
    return [tonic_hertz * 2 ** (step / 12) for step in semitones]


def test_a_sines_measures_are_known():
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(64_000) / 16_000).astype(np.float32)
    found = describe(sine, None)
    assert found.loudness_dbfs == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)
    assert found.brightness_hz == pytest.approx(1000, rel=0.03)  # its abrupt ends are bright
    steps = np.repeat([1.0, 0.1], 32_000).astype(np.float32)  # 20 dB between its halves
    assert describe(sine * steps, None).dynamics_db == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize(
    ("tonic", "steps", "key"),
    [
        (261.63, (0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0), "C major"),
        (220.0, (0, 2, 3, 5, 7, 8, 11, 12, 7, 3, 0), "A minor"),
        (311.13, (0, 4, 7, 12, 7, 4, 0), "E flat major"),
    ],
)
def test_scales_have_their_key(tonic, steps, key):
    found = describe(tones(*degrees(tonic, *steps), seconds=8.0), None)
    assert found.key == key
    assert found.key_correlation > 0.6
    assert found.key_margin > 0


def test_a_profile_fits_itself():
    from stages.audio.descriptors import PROFILES, TONICS

    for mode, profile in PROFILES.items():
        for shift, tonic in enumerate(TONICS):
            name, correlation, margin = find_key(np.roll(profile, shift))
            assert (name, correlation) == (f"{tonic} {mode}", pytest.approx(1.0))
            assert margin > 0.1


def test_silence_is_not_described():
    found = describe(np.zeros(32_000, dtype=np.float32), None)
    assert found == SILENT
    assert find_words(found, NO_TEMPO, PARAMS) == []
    assert join("a caption.", [], np.random.default_rng(0)) == "a caption."


def test_words_follow_the_numbers():
    def texts(tempo=NO_TEMPO, **changes):
        plain = {"loudness_dbfs": -20.0, "dynamics_db": 6.0, "brightness_hz": 1200.0, "key": "C major",
                 "key_correlation": 0.2, "key_margin": 0.2, "tags": {}}  # fmt: skip
        return [word.text for word in find_words(Descriptors(**(plain | changes)), tempo, PARAMS)]

    assert texts() == []
    assert texts(tempo={"tempo_bpm": 150.4, "tempo_confidence": 0.9}) == ["150 BPM", "fast"]
    assert texts(tempo={"tempo_bpm": 70.0, "tempo_confidence": 0.5}) == ["70 BPM", "slow"]
    assert texts(tempo={"tempo_bpm": 150.4, "tempo_confidence": 0.49}) == []
    assert texts(key_correlation=0.9) == ["C major"]
    assert texts(key_correlation=0.9, key_margin=0.01) == []
    assert texts(loudness_dbfs=-15.0, dynamics_db=2.0, brightness_hz=3000.0) == ["loud", "even level", "bright sound"]
    assert texts(loudness_dbfs=-30.0, dynamics_db=15.0, brightness_hz=300.0) == ["quiet", "wide dynamics", "dark sound"]
    tags = {"fast": 0.9, "classic": 0.5, "classical": 0.6, "guitar": 0.2, "weird": 0.8, "harp": 0.09, "drums": 0.3}
    assert texts(tags=tags) == ["classical", "drums", "guitar"]
    assert texts(tags={"no vocals": 0.4, "singing": 0.3, "harp": 0.2}) == ["instrumental", "harp"]
    assert texts(tags={"no vocals": 0.2, "singing": 0.3, "harp": 0.2}) == ["vocals", "harp"]


def test_every_spoken_label_is_one_of_the_taggers():
    from stages.audio.musicnn import LABELS

    assert len(SPOKEN) > 20
    assert set(SPOKEN) <= set(LABELS["MTT_musicnn"])


@pytest.fixture(scope="module")
def work(tmp_path_factory, write_collection):
    """Captions of three real tracks, written by the command."""
    work = tmp_path_factory.mktemp("captions")
    write_collection(work, FILES, seconds=8.0, test=(FILES[0], FILES[1]))
    (work / "captions" / "captions.jsonl").unlink()
    command = [sys.executable, "-m", "musicldm_cli", "--json", "--work", str(work), "prep", "captions", "-j", "1"]
    done = subprocess.run([*command, "-S", "preset=tiny"], capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["tracks"] == 3
    return work


def rows_of(folder):
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def test_captions_keep_the_users_words_and_add_only_measured_ones(work):
    rows = rows_of(work / "captions")
    assert [row["id"] for row in rows] == [name.replace("_", "-") for name in FILES]
    for row, name in zip(rows, FILES, strict=True):
        assert row["original"] == f"music called {name}"
        assert row["original"] in row["caption"]
        rest = row["caption"].replace(row["original"], "").lower()
        for word in row["words"]:
            assert word["text"].lower() in rest
            assert isinstance(word["value"], float)
            rest = rest.replace(word["text"].lower(), "", 1)
        assert set(rest.split()) <= {"in", "and", ",", ":", ".", ",,"}, rest
    measures = [{word["measure"] for word in row["words"]} for row in rows]
    assert "tempo_bpm" in measures[0]
    assert "tempo_bpm" not in measures[1]
    assert {"classical", "techno"} <= {word["text"] for row in rows for word in row["words"]}


def test_the_command_says_that_it_adds_words_and_can_leave_it(work, typed, tmp_path):
    beats, audio = ("--beats", work / "beats"), ("--audio", work / "audio")
    shared = ("prep", "captions", *audio, *beats, "-j", "1", "-S", "preset=tiny")
    code, said, _ = typed(tmp_path, *shared, "--out", work / "captions")
    first = rows_of(work / "captions")[0]
    assert code == 0
    assert "measured words were added, and some will be wrong; captions.measured: false adds none" in said
    assert f"before: {first['original']}\n  after:  {first['caption']}" in said
    assert first["original"] != first["caption"]
    code, said, _ = typed(tmp_path, *shared, "--out", tmp_path / "own", "-S", "captions.measured=false")
    assert (code, "They are your own" in said, "after:" in said) == (0, True, False)
    assert [(row["caption"], row["words"]) for row in rows_of(tmp_path / "own")] == [
        (row["original"], []) for row in rows_of(work / "captions")
    ]
    assert not (tmp_path / "own" / "tracks").exists()  # nothing was measured


def test_prompts_are_the_captions_of_the_test_split(work):
    with (work / "captions" / "prompts.csv").open(newline="") as file:
        prompts = list(csv.DictReader(file))
    expected = [{"id": row["id"], "prompt": row["caption"]} for row in rows_of(work / "captions")[:2]]
    assert prompts == expected


def test_captions_are_a_function_of_audio_and_seed(work, tmp_path):
    def write(seed, folder):
        settings = resolve({"preset": "tiny", "captions": {"seed": seed, "tags": 0}})
        write_captions(work / "audio" / "manifest.csv", work / "beats" / "beats.jsonl", folder, settings, jobs=1)
        return rows_of(folder)

    first = write(0, tmp_path / "a")
    assert write(0, tmp_path / "b") == first
    others = [write(seed, tmp_path / "c") for seed in range(1, 5)]
    assert any(other != first for other in others)
    assert all(o["words"] == f["words"] for other in others for o, f in zip(other, first, strict=True))


def test_measurements_are_kept_and_an_interrupted_run_goes_on(work, tmp_path):
    manifest, beats = work / "audio" / "manifest.csv", work / "beats" / "beats.jsonl"
    settings = resolve({"preset": "tiny", "captions": {"tags": 0}})
    write_captions(manifest, beats, tmp_path, settings, jobs=1)
    first, measured = (tmp_path / "captions.jsonl").read_bytes(), sorted((tmp_path / "tracks").iterdir())
    assert len(measured) == 3
    measured[1].unlink()
    (tmp_path / "captions.jsonl").unlink()
    times = {file: file.stat().st_mtime_ns for file in (measured[0], measured[2])}
    write_captions(manifest, beats, tmp_path, settings, jobs=1)
    assert (tmp_path / "captions.jsonl").read_bytes() == first
    assert sorted((tmp_path / "tracks").iterdir()) == measured
    assert {file: file.stat().st_mtime_ns for file in times} == times
    measured[0].write_text('{"loudness": 3}')
    with pytest.raises(DataError, match="other measurements"):
        write_captions(manifest, beats, tmp_path, settings, jobs=1)


def test_a_track_without_beats_row_is_named(work, tmp_path):
    path = tmp_path / "beats.jsonl"
    path.write_text("".join((work / "beats" / "beats.jsonl").read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="no row for track warzone-broken-dreams"):
        write_captions(work / "audio" / "manifest.csv", path, tmp_path, PARAMS, jobs=1)
    assert not (tmp_path / "captions.jsonl").exists()
