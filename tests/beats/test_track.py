"""Beat tracking of sounds with a known beat, of sounds without any, and of a collection."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from musicldm_cli.app import app
from stages import params
from stages.audio import io
from stages.beats import backends, report, track
from stages.beats.align import Candidate, untrusted
from stages.beats.tempo import Rhythm
from stages.data.manifest import Manifest, Track, write_manifest
from stages.errors import DataError, MissingDependencyError, ModelError, UsageError
from stages.evaluate.beats import score
from stages.store import write_json
from tests.beats.conftest import SAMPLE_RATE as RATE
from tests.beats.conftest import click_track

DEMO = Path(__file__).parents[2] / "data/demo"
TINY = params.resolve({"preset": "tiny"}, [], origin="test")


def judged(backend: backends.Backend, samples: np.ndarray, folder: Path) -> Rhythm:
    file = folder / "sound.wav"
    io.write(file, samples.astype(np.float32).clip(-1, 1), RATE)
    found = backends.track(backend, file, params.Beats())
    return Rhythm.measure("a", found.bars, found.seconds, found.salience)


def trusted(rhythm: Rhythm) -> bool:
    candidate = Candidate(rhythm.tempo_bpm, rhythm.mean_bpm, rhythm.tempo_confidence, rhythm.metre,
                          len(rhythm.downbeats), 1)  # fmt: skip
    return untrusted(candidate, params.Tempo()) is None


def test_a_click_track_is_tracked(backend, tmp_path):
    samples, bars = click_track(120, 25)
    rhythm = judged(backend, samples, tmp_path)
    assert score(np.array(rhythm.beats), bars[:, 0])["f_measure"] > 0.95
    assert score(np.array(rhythm.downbeats), bars[bars[:, 1] == 1, 0])["f_measure"] > 0.95
    assert rhythm.tempo_bpm == pytest.approx(120, rel=0.005)
    assert rhythm.metre == 4
    assert trusted(rhythm)
    assert rhythm.tempo_confidence > 0.9


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(RATE * 10),
        np.random.default_rng(0).normal(0, 0.2, RATE * 15),
        click_track(120, 3)[0],
        np.zeros(10),
    ],
    ids=["silence", "noise", "three-seconds", "ten-samples"],
)
def test_no_group_without_evidence(backend, samples, tmp_path):
    rhythm = judged(backend, samples, tmp_path)
    assert not trusted(rhythm)
    assert rhythm.tempo_confidence < 0.5


def babble(seconds: float, seed: int) -> np.ndarray:
    """Like speech: bursts of buzz with moving formants, of irregular length and pause."""
    generator = np.random.default_rng(seed)
    parts, made = [], 0.0
    while made < seconds:
        length, pause = generator.uniform(0.06, 0.3), generator.choice([0.02, 0.05, 0.1, 0.5])
        clock = np.arange(round(length * RATE)) / RATE
        buzz = np.sign(np.sin(2 * np.pi * generator.uniform(90, 160) * clock)) * np.hanning(len(clock))
        parts += [buzz * np.sin(2 * np.pi * generator.uniform(300, 2500) * clock), np.zeros(round(pause * RATE))]
        made += length + pause
    return 0.5 * np.concatenate(parts)


def rubato(seconds: float) -> np.ndarray:
    """Drums whose beats last from a third of a second to one second, every next one another length."""
    generator = np.random.default_rng(2)
    samples = np.zeros(round((seconds + 1) * RATE))
    kick = click_track(120, 1.0, start=0.0)[0][: round(0.2 * RATE)]
    time = 0.2
    while time < seconds:
        samples[round(time * RATE) : round(time * RATE) + len(kick)] += kick
        time += generator.uniform(0.33, 1.0)
    return samples / np.abs(samples).max()


@pytest.mark.parametrize("samples", [babble(20, 1), babble(20, 5), rubato(25)], ids=["speech", "more", "rubato"])
def test_no_group_without_a_steady_beat(backend, samples, tmp_path):
    rhythm = judged(backend, samples, tmp_path)
    assert not trusted(rhythm), rhythm
    assert rhythm.tempo_confidence < 0.5


def test_chunks_give_the_activations_of_the_whole(monkeypatch):
    """madmom's networks in chunks of twelve seconds, whatever the blocks that the audio comes in."""
    samples, _ = io.read(DEMO / "warzone_aftershocks.ogg", RATE)
    samples = samples[: 30 * RATE]
    madmom = backends.Madmom()
    whole = madmom.of_blocks([samples])
    monkeypatch.setattr(backends, "CHUNK_SECONDS", 12)
    parts = madmom.of_blocks(np.array_split(samples, 7))
    assert parts.shape == whole.shape == (3000, 2)
    assert np.corrcoef(parts[:, 0], whole[:, 0])[0, 1] > 0.99


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Manifest:
    """Two clicks of one tempo, the second at -46 dB, a demo excerpt, and silence; twelve seconds each."""
    root = tmp_path_factory.mktemp("music")
    samples, _ = click_track(120, 20)
    demo, _ = io.read(DEMO / "hyperrogue_hr3_caves.ogg", RATE)
    sounds = {"loud": samples * 0.9, "quiet": samples * 0.005, "demo": demo[: RATE * 12], "silent": np.zeros(RATE * 12)}
    for name, sound in sounds.items():
        io.write(root / f"{name}.wav", sound.astype(np.float32), RATE)
    tracks = tuple(
        Track(name, f"{name}.wav", "", name, "someone", "", "CC0-1.0", "train", len(sound) / RATE, RATE, f"{i}" * 64)
        for i, (name, sound) in enumerate(sounds.items())
    )
    return Manifest(root, tracks)


def test_a_collection_is_tracked_once_and_judged_anew(collection, tmp_path, monkeypatch):
    first = track.track_collection(collection, TINY, tmp_path, jobs=1)
    assert [rhythm.id for rhythm in first] == ["loud", "quiet", "demo", "silent"]
    assert first == report.read_rhythms(tmp_path / track.BEATS)
    assert first[0].tempo_bpm == pytest.approx(first[1].tempo_bpm, rel=0.01)  # level does not matter
    assert score(np.array(first[1].beats), np.array(first[0].beats))["f_measure"] > 0.95
    assert first[3].tempo_bpm is None
    assert report.summarise(first, collection, TINY).share_with_partner >= 0.5
    content = (tmp_path / track.BEATS).read_bytes()

    monkeypatch.setattr(track, "_track_file", None)  # nothing may be tracked again
    assert track.track_collection(collection, TINY, tmp_path, jobs=1) == first
    assert (tmp_path / track.BEATS).read_bytes() == content
    strict = params.resolve({"preset": "tiny", "tempo": {"min_downbeats": 60}}, [], origin="test")
    assert track.track_collection(collection, strict, tmp_path, jobs=1) == first
    assert report.summarise(first, collection, strict).tracked == 0


def test_an_interrupted_run_keeps_what_was_done(collection, tmp_path, monkeypatch):
    def broken(*_, **__):
        yield 0, track.Tracked(np.array([[0.5, 1.0]]), 1.0, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(track, "track_files", broken)
    with pytest.raises(KeyboardInterrupt):
        track.track_collection(collection, TINY, tmp_path)
    assert len(list((tmp_path / track.CACHE).iterdir())) == 1
    assert not (tmp_path / track.BEATS).exists()


def test_a_bad_file_of_a_collection_costs_nothing_but_itself(collection, tmp_path):
    """It is named after the others are tracked, and they are not tracked again."""
    root = tmp_path / "music"
    shutil.copytree(collection.root, root)
    (root / "quiet.wav").write_bytes(b"RIFF")
    broken = Manifest(root, collection.tracks)
    with pytest.raises(DataError, match=r"1 of 4 files could not be tracked:\n  .*quiet\.wav"):
        track.track_collection(broken, TINY, tmp_path / "out", jobs=1)
    assert len(list((tmp_path / "out" / track.CACHE).iterdir())) == 3
    shutil.copy(collection.root / "quiet.wav", root)
    assert len(track.track_collection(broken, TINY, tmp_path / "out", jobs=1)) == 4


def test_what_changes_the_beats_has_its_own_results():
    digest = backends.backend_digest(params.Beats())
    assert digest == backends.backend_digest(params.Beats(crop_seconds=5.0))  # of training only
    assert digest != backends.backend_digest(params.Beats(min_bpm=60.0))
    assert digest != backends.backend_digest(params.Beats(backend="madmom"))


def test_a_missing_network_is_told_with_its_remedy(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="There is no beat tracker"):
        backends.load_backend(params.Beats(model=str(tmp_path / "nothing")))
    monkeypatch.setitem(sys.modules, "beat_this", None)
    with pytest.raises(MissingDependencyError) as caught:
        backends.load_backend(params.Beats(backend="beat-this"))
    assert "musicldm[beat-this]" in caught.value.remedy


def test_two_files_of_one_name_are_refused(tmp_path):
    for suffix in (".wav", ".flac"):
        io.write(tmp_path / f"a{suffix}", np.zeros(100, np.float32), RATE)
    with pytest.raises(DataError, match=r"a\.flac and .*a\.wav would both become"):
        track.track_audio(tmp_path, tmp_path / "out", params.Beats())
    with pytest.raises(DataError, match="nowhere cannot be opened: No such file"):
        track.track_audio(tmp_path / "nowhere", tmp_path / "out", params.Beats())


def test_the_command_tracks_a_manifest_and_mixes_clicks(collection, tmp_path):
    folder = tmp_path / "work/manifest"
    write_manifest(folder / "manifest.csv", collection.tracks)
    write_json(folder / "manifest.json", {"schema": 1, "root": str(collection.root)})
    tiny = tmp_path / "params.yaml"
    tiny.write_text("preset: tiny\n")
    words = ["--json", "--params", str(tiny), "--work", str(tmp_path / "work"), "prep", "beats"]

    def invoke(*more: str) -> dict:
        done = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        return json.loads(done.stdout)

    made = invoke("--report", "--jobs", "1")
    assert made["tracks"] == made["training_tracks"] == 4
    assert made["tracked"] >= 2
    assert [Path(path).name for path in made["paths"]] == ["beats.jsonl", "report.html"]
    assert all(Path(path).stat().st_size for path in made["paths"])
    assert [Path(path).name for path in invoke("--listen", "loud")["paths"]] == ["loud.wav", "loud.png"]
    with pytest.raises(UsageError, match="--audio goes without"):
        invoke("--audio", str(collection.root), "--report")


def test_the_commands_track_files_and_score_them(collection, tmp_path):
    """`prep beats --audio` in two processes, then `eval beats` against the same and against itself."""
    music = tmp_path / "music"
    (music / "sub").mkdir(parents=True)
    shutil.copy(collection.root / "loud.wav", music)
    shutil.copy(collection.root / "demo.wav", music / "sub")

    words = [sys.executable, "-m", "musicldm_cli", "--json", "prep", "beats", "--audio", "music", "--out", "found"]
    done = subprocess.run([*words, "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout)
    assert made["paths"] == ["found/loud.beats", "found/sub/demo.beats"]
    lines = (tmp_path / "found/loud.beats").read_text().splitlines()
    assert [line.split("\t")[1] for line in lines[:5]] == ["1", "2", "3", "4", "1"]
    reference = tmp_path / "reference"
    reference.mkdir()
    times = click_track(120, 20)[1]
    (reference / "loud.csv").write_text("time,position\n" + "".join(f"{t},{p:.0f}\n" for t, p in times))
    found = CliRunner().invoke(
        app, ["--json", "eval", "beats", str(tmp_path / "found"), str(reference)], catch_exceptions=False
    )
    scores = json.loads(found.stdout)
    assert scores["n"] == scores["n_downbeats"] == 1
    assert scores["beats"]["f_measure"] > 0.95
    assert scores["downbeats"]["f_measure"] > 0.95
