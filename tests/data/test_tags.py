"""A file's own tags, as taggers, ffmpeg, Windows and yt-dlp write them into every container."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from mutagen import aiff, apev2, flac, id3, mp4, wave

from stages.data.tags import read_tags

RATE = 48_000
TONE = (10_000 * np.sin(np.arange(RATE // 2) / 20)).astype(np.int16)
WORDS = {
    "title": "Tïtle",
    "artist": "Ärtist",
    "album": "Album",
    "genre": "House",
    "comment": "driving bass",
    "copyright": "CC-BY",
}
ROW = {
    "title": "Tïtle",
    "artist": "Ärtist",
    "album": "Album",
    "licence": "CC-BY",
    "caption": "Tïtle by Ärtist, House, driving bass",
}


def tone(path: Path) -> Path:
    soundfile.write(path, TONE, RATE)
    return path


def by_ffmpeg(path: Path, codec: str, kind: str | None = None, **words: str) -> Path:
    """Written as ffmpeg does with -metadata."""
    with av.open(str(path), "w", format=kind) as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono")
        file.metadata.update(words)
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=size)
        frame = av.AudioFrame.from_ndarray(TONE[None], "s16", "mono")
        frame.sample_rate = RATE
        for part in [*resampler.resample(frame), None]:
            file.mux(stream.encode(part))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.wav", "pcm_s16le", None),
        ("a.mp3", "libmp3lame", None),
        ("a.flac", "flac", None),
        ("a.oga", "libopus", "ogg"),
        ("a.opus", "libopus", None),
        ("a.webm", "libopus", None),
        ("a.mka", "pcm_s16le", None),
        ("a.mkv", "aac", None),
        ("a.m4a", "aac", None),
        ("a.m4b", "aac", "mp4"),
        ("a.mp4", "aac", None),
        ("a.caf", "pcm_s16le", None),
    ],
)
def test_ffmpegs_tags_are_read_from_every_container(tmp_path: Path, name: str, codec: str, kind: str | None) -> None:
    assert read_tags(by_ffmpeg(tmp_path / name, codec, kind, **WORDS)) == ROW


def test_formats_with_fewer_tags_give_those(tmp_path: Path) -> None:
    assert read_tags(by_ffmpeg(tmp_path / "a.au", "pcm_s16be", **WORDS))["caption"] == "Tïtle by Ärtist, House"
    assert read_tags(by_ffmpeg(tmp_path / "a.aiff", "pcm_s16be", **WORDS))["caption"] == "Tïtle, driving bass"
    assert read_tags(tone(tmp_path / "none.wav")) == dict.fromkeys(ROW, "")


FRAMES = [id3.TIT2, id3.TPE1, id3.TALB, id3.TCON, id3.TCOP]
TEXTS = ["Tïtle", ["Ärtist", "Zwei"], "Album", "(17)", "CC-BY"]
OF_ID3 = ROW | {"artist": "Ärtist, Zwei", "caption": "Tïtle by Ärtist, Zwei, Rock, driving bass"}


def frames(encoding: int) -> list[id3.Frame]:
    texts = [frame(encoding=encoding, text=text) for frame, text in zip(FRAMES, TEXTS, strict=True)]
    itunes = id3.COMM(encoding=0, lang="eng", desc="iTunNORM", text=" 00000A3C")
    return [*texts, itunes, id3.COMM(encoding=encoding, lang="eng", desc="", text="driving\nbass")]


@pytest.mark.parametrize("encoding", range(4), ids=["latin-1", "utf-16", "utf-16be", "utf-8"])
@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.aiff"])
def test_id3_in_every_encoding_and_container(tmp_path: Path, name: str, encoding: int) -> None:
    file = {".mp3": id3.ID3FileType, ".wav": wave.WAVE, ".aiff": aiff.AIFF}[name[1:]](tone(tmp_path / name))
    file.add_tags()
    for frame in frames(encoding):
        file.tags.add(frame)
    file.save()
    assert read_tags(tmp_path / name) == OF_ID3


def test_id3_in_flac_and_id3v1_and_ape(tmp_path: Path) -> None:
    tags = id3.ID3()
    tags.add(id3.TIT2(text="In FLAC"))
    tags.save(tone(tmp_path / "a.flac"))
    assert read_tags(tmp_path / "a.flac")["title"] == "In FLAC"
    old = tone(tmp_path / "old.mp3")
    cells = [("Tïtle", 30), ("Ärtist", 30), ("Album", 30), ("1999", 4), ("slow", 30)]
    packed = b"".join(text.encode("latin-1").ljust(size, b"\0") for text, size in cells)
    old.write_bytes(old.read_bytes() + b"TAG" + packed + bytes([17]))
    assert read_tags(old) == ROW | {"licence": "", "caption": "Tïtle by Ärtist, Rock, slow"}
    ape = apev2.APEv2()
    ape.update({"Title": "Tïtle", "Artist": ["X", "Y"], "Genre": "Dub", "Cover Art (Front)": apev2.APEValue(b"\0", 1)})
    ape.save(tone(tmp_path / "ape.mp3"))
    assert read_tags(tmp_path / "ape.mp3")["caption"] == "Tïtle by X, Y, Dub"


def chunk(kind: bytes, data: bytes, order: str) -> bytes:
    return kind + struct.pack(f"{order}I", len(data)) + data + b"\0" * (len(data) % 2)


def append(path: Path, data: bytes, order: str) -> Path:
    """Chunks at the end of a RIFF or AIFF file."""
    whole = path.read_bytes() + data
    path.write_bytes(whole[:4] + struct.pack(f"{order}I", len(whole) - 8) + whole[8:])
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_riff_info_as_ffmpeg_and_windows_write_it(tmp_path: Path, encoding: str) -> None:
    info = {
        b"INAM": "Tïtle",
        b"IART": "Ärtist",
        b"IPRD": "Album",
        b"ICMT": "naïve\r\nwords",
        b"IGNR": "Pop",
        b"ICOP": "© me",
    }
    chunks = b"".join(chunk(kind, text.encode(encoding) + b"\0", "<") for kind, text in info.items())
    path = append(tone(tmp_path / "a.wav"), chunk(b"LIST", b"INFO" + chunks, "<"), "<")
    expected = {"licence": "© me", "caption": "Tïtle by Ärtist, Pop, naïve words"}
    assert read_tags(path) == ROW | expected


def test_aiffs_own_chunks(tmp_path: Path) -> None:
    texts = {b"NAME": "Tune", b"AUTH": "Me", b"ANNO": "a note", b"(c) ": "2001 Me"}
    chunks = b"".join(chunk(kind, text.encode(), ">") for kind, text in texts.items())
    found = read_tags(append(tone(tmp_path / "a.aiff"), chunks, ">"))
    assert found == {
        "title": "Tune",
        "artist": "Me",
        "album": "",
        "licence": "2001 Me",
        "caption": "Tune by Me, a note",
    }


def test_several_artists_empty_tags_and_comments_that_are_no_words(tmp_path: Path) -> None:
    many = flac.FLAC(tone(tmp_path / "a.flac"))
    many.update(
        {
            "title": "A; B",
            "artist": ["One", "Two"],
            "album": "",
            "license": "CC0",
            "comment": "https://youtu.be/x",
            "description": "the words",
        }
    )
    many.save()
    assert read_tags(tmp_path / "a.flac") == {
        "title": "A; B",
        "artist": "One, Two",
        "album": "",
        "licence": "CC0",
        "caption": "A; B by One, Two, the words",
    }
    both = mp4.MP4(by_ffmpeg(tmp_path / "a.m4a", "aac", title="T"))
    both["\xa9ART"], both["aART"] = ["One", "Two"], ["Band"]
    both.save()
    assert read_tags(tmp_path / "a.m4a")["artist"] == "One, Two"
    ours = '{"source_sha256": "0123", "settings": "soxr VHQ"}'
    assert read_tags(by_ffmpeg(tmp_path / "ours.wav", "pcm_s16le", comment=ours)) == dict.fromkeys(ROW, "")


def test_a_playlist_named_like_music_opens_no_other_file(tmp_path: Path) -> None:
    other = by_ffmpeg(tmp_path / "other.mp3", "libmp3lame", title="Secret")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{other}\n#EXT-X-ENDLIST\n"
    for name, text in (("hls.mp3", playlist), ("concat.mp3", f"ffconcat version 1.0\nfile {other.name}\n")):
        (tmp_path / name).write_text(text)
        assert read_tags(tmp_path / name) == dict.fromkeys(ROW, "")
    with av.open(str(tmp_path / "concat.mp3")) as file:
        assert file.format.name == "concat", "without the list of containers it is opened"


@pytest.mark.parametrize("name", ["v1.mp3", "v2.flac"])
def test_id3_is_read_beside_the_name_of_an_encoder(tmp_path: Path, name: str) -> None:
    path = by_ffmpeg(tmp_path / name, "libmp3lame" if name == "v1.mp3" else "flac")
    tags = id3.ID3()
    tags.add(id3.TIT2(3, ["Title"]))
    tags.add(id3.TPE1(3, ["Artist"]))
    tags.add(id3.TALB(3, ["Album"]))
    tags.add(id3.TCON(3, ["House"]))
    tags.save(path, v1=id3.ID3v1SaveOptions.CREATE)
    if name == "v1.mp3":
        id3.delete(path, delete_v1=False)
    row = read_tags(path)
    assert (row["title"], row["artist"], row["album"]) == ("Title", "Artist", "Album")
    assert row["caption"] == "Title by Artist, House"
