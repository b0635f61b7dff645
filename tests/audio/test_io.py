"""Reading and writing audio: what is damaged is refused, what is whole arrives exactly."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from mutagen.ogg import OggPage

from stages.audio import io
from stages.errors import DataError, MissingDependencyError

RATE = 16_000


def noise(seconds: float = 5.0, channels: int = 1, rate: int = RATE) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((round(seconds * rate), channels)) * 0.1).astype(np.float32)


def save(path: Path, samples: np.ndarray, rate: int = RATE, **kwargs: Any) -> Path:
    if path.suffix == ".opus":
        kwargs = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, samples, rate, **kwargs)
    return path


@pytest.mark.parametrize("share", [0.99, 0.5, 0.1])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"])
def test_a_truncated_file_is_an_error_and_the_whole_one_is_not(tmp_path: Path, suffix: str, share: float) -> None:
    whole = save(tmp_path / f"whole{suffix}", noise())
    assert len(io.read(whole)[0]) == 5 * RATE
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(DataError, match=r"truncated|decoded|not audio") as caught:
        io.read(cut)
    assert str(cut) in caught.value.message


def test_an_ogg_that_counts_from_before_its_first_sample_is_whole(tmp_path: Path) -> None:
    path, pages = save(tmp_path / "a.ogg", noise()), []
    with path.open("rb") as file:
        while file.tell() < path.stat().st_size:
            pages.append(OggPage(file))
    pages[-1].position += 104  # as tracks in Debian's hyperrogue-music do
    path.write_bytes(b"".join(page.write() for page in pages))
    assert soundfile.info(path).frames == 5 * RATE + 104
    assert len(io.read(path)[0]) in (5 * RATE, 5 * RATE + 104)


def test_an_mp3_of_variable_rate_without_its_header_is_refused(tmp_path: Path) -> None:
    data = save(tmp_path / "a.mp3", noise(rate=44_100), 44_100).read_bytes()
    assert b"Xing" in data[:60]
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(data[data.index(b"\xff\xfb", 4) :])
    with soundfile.SoundFile(bare) as file:
        assert file.frames < 0.5 * 5 * 44_100, "libsndfile has learned to read this: the check can go"
    with pytest.raises(DataError, match="variable bit rate"):
        io.read(bare)


def test_an_mp3_of_constant_rate_without_its_header_is_read_to_its_end(tmp_path: Path) -> None:
    data = save(tmp_path / "a.mp3", noise(), bitrate_mode="CONSTANT", compression_level=0.5).read_bytes()
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(data[data.index(data[:2], 4) :] + bytes(1000))  # as a tag at the end, it makes the guess too long
    with soundfile.SoundFile(bare) as file:
        assert file.frames > 5 * RATE + 576
    assert len(io.read(bare)[0]) == pytest.approx(5 * RATE, abs=3 * 576)


def bad_files(folder: Path) -> dict[str, Path]:
    """Everything that is named like audio and must be refused, by what is wrong with it."""
    names = ("zero bytes", "no samples", "nan", "infinity", "text", "zip", "folder", "dangling", "loop", "fifo", "none")
    paths = {name: folder / f"{name.replace(' ', '_')}.wav" for name in names}
    paths["zero bytes"].touch()
    save(paths["no samples"], noise(0))
    for name, value in (("nan", np.nan), ("infinity", np.inf)):
        samples = noise()
        samples[70_000] = value
        save(paths[name], samples, subtype="FLOAT")
    paths["text"].write_text("this is a note, not a sound\n" * 100)
    paths["zip"].write_bytes(b"PK\x03\x04" + bytes(1000))
    paths["folder"].mkdir()
    paths["dangling"].symlink_to("nowhere.wav")
    paths["loop"].symlink_to("loop.wav")
    os.mkfifo(paths["fifo"])
    return paths


def test_every_bad_file_is_refused_by_name(tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    assert len(bad) == 11
    for what, path in bad.items():
        with pytest.raises(DataError) as caught:
            io.scan(path)
        assert str(path) in caught.value.message, what
    with pytest.raises(DataError, match="not a file"):
        io.scan(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("suffix", "channels", "rate", "subtype"),
    [(".wav", 8, RATE, "PCM_16"), (".wav", 1, 384_000, "PCM_24"), (".wav", 1, 8000, "PCM_U8"),
     (".flac", 2, 96_000, "PCM_24"), (".wav", 2, RATE, "DOUBLE"), (".ogg", 2, 44_100, "VORBIS")],
)  # fmt: skip
def test_unusual_files_are_read_and_mixed_down(
    tmp_path: Path, suffix: str, channels: int, rate: int, subtype: str
) -> None:
    path = save(tmp_path / f"a{suffix}", noise(2, channels, rate), rate, subtype=subtype)
    assert io.probe(path) == io.Info(2.0, rate, channels)
    samples, found = io.read(path)
    assert (samples.dtype, found) == (np.float32, rate)
    expected = soundfile.read(path, always_2d=True)[0].mean(axis=1)
    np.testing.assert_allclose(samples, expected, atol=1e-6)
    assert len(io.read(path, RATE)[0]) == 2 * RATE


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    path = save(tmp_path / "really.ogg", noise())
    renamed = path.rename(tmp_path / "really.wav")
    assert len(io.read(renamed)[0]) == 5 * RATE


@pytest.mark.parametrize(
    "name", ["new\nline.wav", "quo\"te'.wav", "🎵 ünï.wav", "-rf.wav", "a" * 251 + ".wav", "é" * 125 + "a.wav"]
)
def test_any_file_name_is_read(tmp_path: Path, name: str) -> None:
    assert io.scan(save(tmp_path / name, noise(1)))[:2] == (RATE, RATE)


def test_a_path_longer_than_libsndfile_takes_is_read(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 200] * 6)
    deep.mkdir(parents=True)
    path = save(tmp_path / "a.wav", noise(1)).rename(deep / "a.wav")
    assert io.scan(path)[0] == RATE


def test_one_sample_is_read_but_leaves_nothing_at_a_lower_rate(tmp_path: Path) -> None:
    path = save(tmp_path / "one.wav", noise(1)[:1], 48_000)
    assert len(io.read(path)[0]) == 1
    assert len(io.read(path, 16_000)[0]) == 0


def test_a_wav_from_a_pipe_without_its_size_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(1))
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff" * 4
    path.write_bytes(data)
    assert io.scan(path)[0] == RATE


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 384_000])
def test_streamed_resampling_equals_soxr_in_one_go_and_keeps_a_tone(tmp_path: Path, rate: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * rate) / rate)).astype(np.float32)
    path = save(tmp_path / "tone.wav", tone, rate, subtype="FLOAT")
    blocks = list(io.stream(path, RATE))
    streamed = np.concatenate(blocks)
    np.testing.assert_array_equal(streamed, soxr.resample(tone, rate, RATE, "VHQ"))
    np.testing.assert_array_equal(streamed, np.concatenate(list(io.stream(path, RATE))))
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * RATE) / RATE)
    np.testing.assert_allclose(streamed[4000:-4000], wanted[4000:-4000], atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.integers(-32768, 32767), min_size=1, max_size=300))
def test_16_bit_samples_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("exact") / f"a{suffix}"
    samples = np.array(steps, np.float32) / 32768
    io.write(path, samples, RATE)
    np.testing.assert_array_equal(io.read(path)[0], samples)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_equal_audio_is_equal_bytes_with_its_comment(tmp_path: Path, suffix: str) -> None:
    samples = noise(12)[:, 0]
    for name in ("a", "b"):
        io.write(tmp_path / f"{name}{suffix}", samples, RATE, comment="prompt: slow piano")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with soundfile.SoundFile(tmp_path / f"a{suffix}") as file:
        assert (file.comment, file.frames) == ("prompt: slow piano", 12 * RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_a_wav_may_tell_the_hash_of_its_own_samples_and_is_not_longer_than_its_header_can_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = noise(1)[:, 0]
    digest = io.encode(tmp_path / "a.wav", [samples], RATE, lambda digest: f"sha256 {digest}")
    assert io.scan(tmp_path / "a.wav") == (RATE, RATE, digest)
    with io.open_audio(tmp_path / "a.wav") as audio:
        assert audio.comment == f"sha256 {digest}"
    monkeypatch.setattr(io, "_WAV_BYTES", 2 * RATE)
    with pytest.raises(DataError, match="at most"):
        io.write(tmp_path / "b.wav", samples, RATE)
    assert not (tmp_path / "b.wav").exists()


def test_audio_that_would_clip_or_is_not_finite_is_not_written(tmp_path: Path) -> None:
    for value, words in ((1.01, "clip"), (-1.01, "clip"), (np.nan, "finite"), (np.inf, "finite")):
        with pytest.raises(DataError, match=words):
            io.write(tmp_path / "a.wav", np.array([0, value], np.float32), RATE)
    with pytest.raises(DataError, match="only"):
        io.write(tmp_path / "a.mp3", np.zeros(10, np.float32), RATE)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_the_sound_and_not_of_the_file(tmp_path: Path) -> None:
    samples = np.round(noise() * 32768).astype(np.int16)
    a, b = save(tmp_path / "a.wav", samples), save(tmp_path / "b.flac", samples)
    stereo = save(tmp_path / "c.flac", np.repeat(samples, 2, axis=1))
    assert io.scan(a) == io.scan(b) == io.scan(stereo)
    assert io.scan(save(tmp_path / "d.wav", samples, 8000))[2] != io.scan(a)[2]


def fake_ffmpeg(folder: Path, script: str) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_aac_goes_through_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "song.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A ")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="ffmpeg"):
        io.scan(path)
    wav = save(tmp_path / "decoded.wav", noise(1), subtype="FLOAT")
    fake_ffmpeg(tmp_path, f"import shutil, sys; shutil.copy({str(wav)!r}, sys.argv[-1])")
    assert io.scan(path) == io.scan(wav)
    fake_ffmpeg(tmp_path, "import sys; sys.exit('moov atom not found')")
    with pytest.raises(DataError, match="moov atom not found"):
        io.scan(path)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
@pytest.mark.parametrize(
    ("suffix", "codec", "source"),
    [(".m4a", "aac", ".wav"), (".mp4", "aac", ".wav"), (".aac", "aac", ".wav"), (".opus", "libopus", ".wav"),
     (".opus", "libopus", ".ogg")],  # from Vorbis, the pages are counted so that libsndfile gives up
)  # fmt: skip
def test_what_ffmpeg_wrote_is_read_whole_and_cut_short_refused(
    tmp_path: Path, suffix: str, codec: str, source: str
) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(5 * 48_000) / 48_000).astype(np.float32)
    original, path = save(tmp_path / f"a{source}", tone, 48_000), tmp_path / f"b{suffix}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", original, "-c:a", codec, path], check=True)
    samples, rate = io.read(path)
    assert (rate, len(samples)) == (48_000, pytest.approx(5 * 48_000, abs=3000))  # AAC's priming and padding
    spectrum = np.abs(np.fft.rfft(samples[48_000 : 2 * 48_000]))
    assert spectrum.argmax() == 440
    assert spectrum[440] / 24_000 == pytest.approx(0.5, rel=0.02)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"truncated|decoded"):
        io.read(path)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            io.probe(tmp_path / "pipe.wav")
        except DataError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert len(errors) == 1
