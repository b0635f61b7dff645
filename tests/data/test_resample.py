"""Resampling a collection: exact levels, resumable, the same bytes on every run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from filelock import FileLock

from stages import params
from stages.audio import io
from stages.data.collect import make_manifest
from stages.data.manifest import Manifest, read_manifest
from stages.data.resample import resample_collection
from stages.errors import DataError

SETTINGS = params.Audio()


@pytest.fixture
def collection(tmp_path: Path) -> Manifest:
    """A loud stereo track with an offset, a quiet one at 8 kHz, one above 8 kHz only, one lasting several blocks."""
    draw = np.random.default_rng(1)
    sounds = {
        "loud.wav": (44_100, 0.2 + 0.3 * draw.standard_normal((2 * 44_100, 2)).clip(-2, 2)),
        "quiet.flac": (8000, 0.001 * np.sin(np.arange(16_000) / 5)),
        "shrill.wav": (44_100, 0.1 * np.hanning(88_200) * np.sin(2 * np.pi * 15_000 * np.arange(88_200) / 44_100)),
        "long.ogg": (16_000, 0.1 * draw.standard_normal(12 * 16_000)),
    }
    (tmp_path / "music").mkdir()
    for name, (rate, samples) in sounds.items():
        soundfile.write(tmp_path / "music" / name, samples, rate)
        (tmp_path / "music" / name).with_suffix(".txt").write_text(f"a {name} sound")
    make_manifest(tmp_path / "music", None, tmp_path / "manifest", params.Manifest())
    return read_manifest(tmp_path / "manifest")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_levels_and_samples_against_soxr_in_one_go(collection: Manifest, tmp_path: Path) -> None:
    resample_collection(collection, tmp_path / "audio", SETTINGS)
    made = read_manifest(tmp_path / "audio")
    assert [track.id for track in made.tracks] == [track.id for track in collection.tracks]
    for source, track in zip(collection.tracks, made.tracks, strict=True):
        info = soundfile.info(made.audio_path(track))
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 16_000, 1)
        assert track.seconds == info.frames / 16_000
        samples, rate = soundfile.read(collection.audio_path(source), always_2d=True, dtype="float32")
        wanted = soxr.resample(samples.mean(axis=1), rate, 16_000, "VHQ").astype(np.float64)
        wanted -= wanted.mean()
        if np.abs(wanted).max() > 1 / 32768:
            wanted *= SETTINGS.peak / np.abs(wanted).max()
        found = soundfile.read(made.audio_path(track))[0]
        np.testing.assert_allclose(found, wanted, atol=1.01 / 32768)
        assert io.scan(made.audio_path(track)) == (info.frames, 16_000, track.sha256)
        assert abs(np.abs(found).max() - (0.0 if "shrill" in source.path else SETTINGS.peak)) < 2 / 32768


def test_a_second_run_keeps_every_file_and_a_new_one_makes_the_same_bytes(collection: Manifest, tmp_path: Path) -> None:
    first = resample_collection(collection, tmp_path / "audio", SETTINGS)
    assert (first.written, first.kept) == (4, 0)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "audio" / "tracks").iterdir()}
    second = resample_collection(collection, tmp_path / "audio", SETTINGS, jobs=1)
    assert (second.written, second.kept) == (0, 4)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "audio" / "tracks").iterdir()}
    resample_collection(collection, tmp_path / "other", SETTINGS, jobs=1)
    assert contents(tmp_path / "audio") == contents(tmp_path / "other")


def test_only_what_changed_is_done_again(collection: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    resample_collection(collection, folder, SETTINGS)
    before = contents(folder)
    tracks = sorted((folder / "tracks").iterdir())
    tracks[0].unlink()
    tracks[1].write_bytes(tracks[1].read_bytes()[:20])
    (folder / "tracks" / "stale.wav").touch()
    (folder / "tracks" / ".tmp-left.wav").touch()
    again = resample_collection(collection, folder, SETTINGS)
    assert (again.written, again.kept, again.removed) == (2, 2, 1)
    assert contents(folder) == before
    fewer = resample_collection(replace(collection, tracks=collection.tracks[:1]), folder, SETTINGS)
    assert (fewer.written, fewer.kept, fewer.removed) == (0, 1, 3)
    louder = resample_collection(collection, folder, params.Audio(peak=0.9))
    assert louder.written == 4
    assert contents(folder) != before


def test_an_interrupted_run_goes_on(collection: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resample_collection(collection, tmp_path / "whole", SETTINGS)
    encode, calls = io.encode, []

    def interrupted(path: Path, blocks: Iterator[io.Samples], sample_rate: int, comment: Any) -> str:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(path, blocks, sample_rate, comment)

    monkeypatch.setattr(io, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resample_collection(collection, tmp_path / "audio", SETTINGS, jobs=1)
    assert not (tmp_path / "audio" / "manifest.csv").exists()
    monkeypatch.undo()
    made = resample_collection(collection, tmp_path / "audio", SETTINGS)
    assert (made.written, made.kept) == (2, 2)
    assert contents(tmp_path / "audio") == contents(tmp_path / "whole")


def test_a_source_altered_or_gone_since_the_manifest_is_an_error(collection: Manifest, tmp_path: Path) -> None:
    (tmp_path / "music" / "quiet.flac").unlink()
    soundfile.write(tmp_path / "music" / "shrill.wav", np.ones(44_100) * 0.1, 22_050)
    with pytest.raises(DataError, match=r"quiet.flac cannot be opened.*1 more failed") as caught:
        resample_collection(collection, tmp_path / "audio", SETTINGS)
    assert "prep manifest" in caught.value.remedy
    assert not (tmp_path / "audio" / "manifest.csv").exists()
    assert len(list((tmp_path / "audio" / "tracks").iterdir())) == 2, "the good ones are done all the same"


def test_a_finished_file_says_what_it_was_made_from(collection: Manifest, tmp_path: Path) -> None:
    resample_collection(collection, tmp_path / "audio", SETTINGS)
    track = collection.tracks[0]
    with soundfile.SoundFile(tmp_path / "audio" / "tracks" / f"{track.id}.wav") as file:
        said = json.loads(file.comment)
    assert said["source_sha256"] == track.sha256
    assert "16000 Hz" in said["settings"]
    assert said["sha256"] == read_manifest(tmp_path / "audio").tracks[0].sha256


def test_two_runs_on_one_folder_exclude_each_other(collection: Manifest, tmp_path: Path) -> None:
    with FileLock(tmp_path / "work" / ".audio.lock"):
        command = [sys.executable, "-m", "musicldm_cli", "prep", "resample", "manifest"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "Another process" in done.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 written" in done.stdout
