"""Reading and writing audio: what is damaged is refused, what is whole arrives exactly."""

import os
import struct
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from mutagen.ogg import OggPage

from stages.audio import io
from stages.errors import DataError

RATE = 16_000


def noise(seconds: float = 5.0, channels: int = 1, rate: int = RATE) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((round(seconds * rate), channels)) * 0.1).astype(np.float32)


def save(path: Path, samples: np.ndarray, rate: int = RATE, **kwargs: Any) -> Path:
    if path.suffix == ".opus":
        kwargs = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, samples, rate, **kwargs)
    return path


def tone(seconds: float, rate: int, hertz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)[:, None].astype(np.float32)


def encoded(
    path: Path, codec: str, samples: np.ndarray, rate: int, channels: int, more: np.ndarray | None = None
) -> Path:
    """Samples (n, 1) or (n, channels) by one of libav's encoders; `more` becomes another track."""
    layout = "stereo" if channels == 2 else "mono"
    kinds = {".m4a": "ipod", ".aac": "adts", ".mka": "matroska", ".mkv": "matroska"}
    with av.open(str(path), "w", format=kinds.get(path.suffix, path.suffix[1:])) as container:
        sounds = [samples] if more is None else [samples, more]
        streams = [container.add_stream(codec, rate=rate, layout=layout) for _ in sounds]
        for stream in streams:
            form = {"wavpack": "s16p", "tta": "s16"}.get(codec, stream.codec_context.format.name)
            stream.codec_context.format = av.AudioFormat(form)
        for stream, sound in zip(streams, sounds, strict=True):
            wide = np.ascontiguousarray(np.broadcast_to(sound, (len(sound), channels)).T)
            frame = av.AudioFrame.from_ndarray(wide, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            context = stream.codec_context
            queue = av.AudioResampler(context.format, context.layout, rate, frame_size=context.frame_size or 1024)
            for part in [*queue.resample(frame), *queue.resample(None), None]:
                container.mux(stream.encode(part))
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


def test_an_mp3_of_variable_rate_without_its_header_is_read_to_its_end(tmp_path: Path) -> None:
    data = save(tmp_path / "a.mp3", noise(rate=44_100), 44_100).read_bytes()
    assert b"Xing" in data[:60]
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(data[data.index(b"\xff\xfb", 4) :])
    assert len(io.read(bare)[0]) == pytest.approx(5 * 44_100, abs=3 * 1152)
    bare.write_bytes(bare.read_bytes()[:-100])
    with pytest.raises(DataError, match="its last frame is cut"):
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


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_equal_audio_is_equal_bytes_with_its_comment(tmp_path: Path, suffix: str) -> None:
    samples = noise(12)[:, 0]
    for name in ("a", "b"):
        io.write(tmp_path / f"{name}{suffix}", samples, RATE, comment="prompt: schönes 音楽")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with soundfile.SoundFile(tmp_path / f"a{suffix}") as file:
        assert (file.comment, file.frames) == ("prompt: schönes 音楽", 12 * RATE)
    with io.open_audio(tmp_path / f"a{suffix}") as audio:
        assert audio.comment == "prompt: schönes 音楽"
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
        io.write(tmp_path / "a.m4a", np.zeros(10, np.float32), RATE)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_the_sound_and_not_of_the_file(tmp_path: Path) -> None:
    samples = np.round(noise() * 32768).astype(np.int16)
    a, b = save(tmp_path / "a.wav", samples), save(tmp_path / "b.flac", samples)
    stereo = save(tmp_path / "c.flac", np.repeat(samples, 2, axis=1))
    assert io.scan(a) == io.scan(b) == io.scan(stereo)
    assert io.scan(save(tmp_path / "d.wav", samples, 8000))[2] != io.scan(a)[2]


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [("a.m4a", "aac", 44_100, 2), ("a.mp4", "aac", 48_000, 1), ("a.aac", "aac", 48_000, 2),
     ("a.mov", "pcm_s16le", RATE, 2), ("alac.m4a", "alac", 44_100, 2), ("a.mka", "flac", 44_100, 2),
     ("a.mkv", "aac", 48_000, 2), ("a.webm", "libopus", 48_000, 2),
     ("a.ogg", "flac", RATE, 1), ("a.wv", "wavpack", RATE, 2), ("a.tta", "tta", RATE, 2), ("a.mp2", "mp2", 48_000, 1),
     ("a.mp3", "libmp3lame", 44_100, 2), ("mp3.wav", "libmp3lame", 44_100, 2), ("alac.caf", "alac", RATE, 2)],
)  # fmt: skip
def test_what_libav_wrote_is_read_whole_and_cut_short_refused(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int
) -> None:
    path = encoded(tmp_path / name, codec, tone(4, rate), rate, channels)
    samples, found = io.read(path)
    assert (found, len(samples)) == (rate, pytest.approx(4 * rate, abs=3000))  # AAC's priming and padding
    spectrum = np.abs(np.fft.rfft(samples[rate : 2 * rate]))
    assert spectrum.argmax() == 440
    assert spectrum[440] / (rate / 2) == pytest.approx(0.5, rel=0.06)
    assert io.probe(path) == io.Info(len(samples) / rate, rate, channels)
    for share in (0.98, 0.5):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(DataError, match=r"truncated|decoded|not audio|no audio"):
            io.read(cut)


def test_lossless_samples_come_exactly_through_libav(tmp_path: Path) -> None:
    samples = np.round(noise(2, 2) * 32768) / np.float32(32768)
    expected = io.mixdown(samples)
    for name, codec in (("a.mka", "flac"), ("a.wv", "wavpack"), ("a.mov", "pcm_s16le"), ("a.m4a", "alac")):
        path = encoded(tmp_path / name, codec, samples, RATE, 2)
        np.testing.assert_allclose(io.read(path)[0], expected, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("rate", "mode"), [(44_100, "CONSTANT"), (48_000, "VARIABLE"), (22_050, "AVERAGE")])
def test_mp3_by_libav_is_mp3_by_libmpg123_without_its_talk(
    tmp_path: Path, rate: int, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.mp3", noise(3, 2, rate), rate, bitrate_mode=mode, compression_level=0.3)
    expected = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    capfd.readouterr()
    np.testing.assert_allclose(io.read(path)[0], expected, atol=1e-5)
    frames = b"COMM\0\0\0\4\0\0\0eng\0\0"  # a comment without its text, of which libmpg123 writes to stderr
    path.write_bytes(b"ID3\3\0\0\0\0\0\x10" + frames + path.read_bytes())
    np.testing.assert_allclose(io.read(path)[0], expected, atol=1e-5)
    path.write_bytes(path.read_bytes() + bytes(range(1, 200)) * 20)
    io.read(path)
    assert capfd.readouterr() == ("", "")


def test_mp3_files_joined_to_one_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [save(tmp_path / f"{i}.mp3", noise(2, 1, rate), rate).read_bytes() for i, rate in enumerate((RATE, 24_000))]
    path = tmp_path / "joined.mp3"
    path.write_bytes(parts[0] + b"TAG" + bytes(125) + parts[0])
    assert len(io.read(path)[0]) == pytest.approx(4 * RATE, abs=4 * 576)
    path.write_bytes(parts[0] + parts[1])
    with pytest.raises(DataError, match="changes from 16000 to 24000 Hz"):
        io.read(path)
    stereo = save(tmp_path / "stereo.mp3", noise(2, 2)).read_bytes()
    path.write_bytes(parts[0] + stereo)
    assert len(io.read(path)[0]) == pytest.approx(4 * RATE, abs=4 * 576)


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_link_by_link(tmp_path: Path, coding: str) -> None:
    links = [(16_000, 1, 440), (48_000, 2, 880), (24_000, 1, 1760)]
    path, seconds = tmp_path / "chain.ogg", 2
    for number, (rate, channels, hertz) in enumerate(links):
        sound = np.repeat(tone(seconds, rate, hertz), channels, axis=1)
        save(tmp_path / f"{number}.ogg", sound, rate, format="OGG", subtype=coding)
    parts = [(tmp_path / f"{number}.ogg").read_bytes() for number in range(3)]
    path.write_bytes(b"".join(parts))
    samples, rate = io.read(path)
    assert (rate, len(samples)) == (16_000, 6 * 16_000)
    assert io.probe(path) == io.Info(6.0, 16_000, 1)
    for number, (_, _, hertz) in enumerate(links):
        middle = samples[(2 * number) * 16_000 + 8000 :][:16_000]
        assert np.abs(np.fft.rfft(middle)).argmax() == hertz
    np.testing.assert_array_equal(samples[:32_000], io.read(tmp_path / "0.ogg")[0])
    path.write_bytes(parts[0][: len(parts[0]) // 2] + parts[1])
    with pytest.raises(DataError, match="truncated"):
        io.read(path)
    path.write_bytes(parts[0] + parts[1][: len(parts[1]) // 2])
    with pytest.raises(DataError, match="truncated"):
        io.read(path)


def test_of_several_tracks_one_is_read_and_of_video_the_sound(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mka", "a.ogg"):
        path = tmp_path / name
        codec = "flac" if name == "a.ogg" else "aac"
        encoded(path, codec, tone(2, RATE), RATE, 1, more=tone(2, RATE, 880))
        samples = io.read(path)[0]
        assert len(samples) == pytest.approx(2 * RATE, abs=3000)
        assert np.abs(np.fft.rfft(samples[8000:24_000])).argmax() == 440


def test_an_ogg_behind_zeros_is_read_and_one_without_its_first_flag_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ogg", noise())
    whole = path.read_bytes()
    path.write_bytes(bytes(3000) + whole)
    assert len(io.read(path)[0]) == 5 * RATE
    path.write_bytes((bytes(3000) + whole)[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        io.read(path)
    path.write_bytes(whole[:5] + b"\0" + whole[6:])
    with pytest.raises(DataError, match=r"not audio|no audio|decoded|truncated"):
        io.read(path)


def riff(*chunks: tuple[bytes, bytes, int | None], total: int | None = None) -> bytes:
    """A WAV of chunks (name, content, size that is stated)."""
    body = b"".join(name + struct.pack("<I", len(data) if size is None else size) + data for name, data, size in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body) if total is None else total) + b"WAVE" + body


FORM = (b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16), None)
PCM = (noise(2)[:, 0] * 32767).astype("<i2").tobytes()
ODD_WAV = {
    "two data chunks": (riff(FORM, (b"data", PCM, None), (b"data", PCM, None)), "2 data chunks"),
    "more than there is": (riff(FORM, (b"data", PCM, 2 * len(PCM))), "truncated"),
    "less than there is": (riff(FORM, (b"data", PCM, len(PCM) // 2)), "goes on for 32000 bytes"),
    "two files": (2 * riff(FORM, (b"data", PCM, None)), "goes on for 64044 bytes"),
    "block align": (
        riff((b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 7, 16), None), (b"data", PCM, None)),
        "contradicts itself: blocks of 7 bytes for 1 channel",
    ),
    "1 Hz": (riff((b"fmt ", struct.pack("<HHIIHH", 1, 1, 1, 2, 2, 16), None), (b"data", PCM, None)), "rate is 1 Hz"),
    "no data": (riff(FORM), "not audio"),
}


@pytest.mark.parametrize("name", ODD_WAV)
def test_a_wav_whose_header_lies_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    data, reason = ODD_WAV[name]
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        io.read(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "data",
    [riff(FORM, (b"data", PCM, 0)), riff(FORM, (b"data", PCM, 0xFFFFFFFF), total=0xFFFFFFFF),
     riff(FORM, (b"LIST", b"INFO", None), (b"data", PCM, None), (b"note", b"any", None)),
     riff(FORM, (b"data", PCM, None)) + b"z" * 500],
    ids=["size 0", "size unknown", "other chunks, one not padded", "a tag at the end"],
)  # fmt: skip
def test_a_wav_that_is_only_unusual_is_read_whole(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    assert len(io.read(tmp_path / "a.wav")[0]) == 2 * RATE


@pytest.mark.parametrize("name", ["a.au", "a.w64", "a.caf", "a.aifc", "rf64.wav"])
def test_other_containers_of_plain_samples(tmp_path: Path, name: str) -> None:
    kind = {"a.aifc": "AIFF", "rf64.wav": "RF64"}.get(name, name.removeprefix("a.").upper())
    path = save(tmp_path / name, noise(2), format=kind, subtype="ULAW" if name == "a.aifc" else "PCM_16")
    assert len(io.read(path)[0]) == 2 * RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    with pytest.raises(DataError, match="truncated"):
        io.read(path)


def test_flac_files_joined_to_one_are_refused_and_tags_behind_one_are_not(tmp_path: Path) -> None:
    path = save(tmp_path / "a.flac", noise(2))
    whole = path.read_bytes()
    path.write_bytes(b"ID3\4\0\0\0\0\0\x10" + bytes(16) + whole + b"TAG" + bytes(125))
    assert len(io.read(path)[0]) == 2 * RATE
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="several FLAC streams"):
        io.read(path)


@pytest.mark.parametrize("name", ["a.au", "a.w64", "a.caf", "a.aiff", "a.m4a"])
def test_two_files_joined_to_one_are_refused_where_only_the_first_would_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.m4a":
        encoded(path, "aac", noise(2), RATE, 1)
    else:
        save(path, noise(2), format=name.removeprefix("a.").upper(), subtype="PCM_16")
    assert len(io.read(path)[0]) >= 2 * RATE
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(DataError, match=r"goes on for \d+ bytes|several MP4 files"):
        io.read(path)


PLAYLISTS = {
    "hls.m4a": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n",
    "concat.mp3": "ffconcat version 1.0\nfile '{0}'\n",
    "sdp.aac": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 97\n",
    "dash.webm": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{0}</BaseURL></Period></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_no_other_file(tmp_path: Path, name: str) -> None:
    secret = save(tmp_path / "secret.wav", noise())
    for reference in (secret, secret.name, f"file:{secret}", "http://127.0.0.1:9/a.mp3"):
        (tmp_path / name).write_text(PLAYLISTS[name].format(reference))
        with pytest.raises(DataError, match=r"not audio|no audio|decoded"):
            io.read(tmp_path / name)


def test_what_cannot_be_mixed_down_has_a_fault(tmp_path: Path) -> None:
    left = noise(3)
    other = np.random.default_rng(1).standard_normal(left.shape).astype(np.float32) * 0.1
    sounds = {
        "mono": (left, None),
        "wide": (np.hstack([left, other]), None),
        "half of it": (np.hstack([left, np.concatenate([-left[: RATE], left[RATE:]])]), None),
        "one side": (np.hstack([left, np.zeros_like(left)]), None),
        "one of eight": (np.hstack([left, *[np.zeros_like(left)] * 7]), None),
        "faint": (left / 1000, None),
        "inverted": (np.hstack([left, -left]), "cancel"),
        "nearly inverted": (np.hstack([left, -0.9 * left]), "cancel"),
        "inverted, with an offset": (np.hstack([left, -left]) + np.float32(0.2), "cancel"),
        "silent": (np.zeros_like(left), "is silent"),
        "silent stereo": (np.zeros((3 * RATE, 2)), "is silent"),
        "constant": (np.full_like(left, 0.25), "one value throughout, 0.250"),
        "two constants": (np.full((3 * RATE, 2), [0.3, -0.3]), "is silent"),
    }  # fmt: skip
    for name, (samples, words) in sounds.items():
        levels = io.Levels()
        io.read(save(tmp_path / "a.wav", samples, subtype="FLOAT"), levels=levels)
        fault = levels.fault()
        assert (fault is None) == (words is None), (name, fault)
        assert words is None or words in str(fault), name


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_a_clip_comes_back_as_long_as_it_was(tmp_path: Path, suffix: str) -> None:
    samples = tone(1.2345, RATE)[:, 0]
    io.write(tmp_path / f"a{suffix}", samples, RATE)
    back = io.read(tmp_path / f"a{suffix}")[0]
    assert len(back) == len(samples)  # MP3's delay and padding are cut off
    assert np.corrcoef(back, samples)[0, 1] > 0.99


def test_a_rate_that_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    for name, rate in (("a.opus", 44_100), ("a.mp3", 96_000)):
        with pytest.raises(DataError, match=f"{name} is not written: .* holds no {rate} Hz"):
            io.write(tmp_path / name, np.zeros(10, np.float32), rate)
    assert list(tmp_path.iterdir()) == []


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
