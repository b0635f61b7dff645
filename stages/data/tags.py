"""Metadata tags of audio files: title, artist, album, licence, and a caption made of them."""

import re
from collections.abc import Mapping
from pathlib import Path

import av
import mutagen
from mutagen.apev2 import TEXT, APEv2
from mutagen.id3 import ID3

from stages.audio.decoders import FORMATS
from stages.data.tables import Row, clean

# Our fields, and what ffmpeg and mutagen call the tags of all formats; the first that is there is used.
_KEYS = {
    "title": ("title",),
    "artist": ("artist", "author", "performer", "album_artist", "albumartist", "album artist"),
    "album": ("album",),
    "licence": ("license", "licence", "copyright"),
    "genre": ("genre",),
    "comment": ("comment", "description", "synopsis"),
}
_ID3 = {"TIT2": "title", "TPE1": "artist", "TPE2": "album_artist", "TALB": "album", "TCOP": "copyright"}
_NO_WORDS = re.compile(r"https?://\S+|\{.*\}")  # yt-dlp's comment is a page's address; our own audio's is JSON


def read_tags(path: Path) -> Row:
    """Title, artist, album and licence from the file's own tags, and a caption of title, genre and comment.

    Of a damaged file nothing is told; what is wrong with it shows when it is decoded.
    """
    found = {**_id3(path), **_ape(path), **_by_ffmpeg(path), **_artists(path)}
    row = {field: _first(found, field) for field in _KEYS}
    title = " by ".join(filter(None, (row["title"], row["artist"])))
    row["caption"] = ", ".join(filter(None, (title, row.pop("genre"), row.pop("comment"))))
    return row


def _first(found: Mapping[str, object], field: str) -> str:
    values = (clean(found.get(key)) for key in _KEYS[field])
    value = next((value for value in values if value and not _NO_WORDS.fullmatch(value)), "")
    return re.sub(r"\s*;\s*", ", ", value) if field in ("artist", "genre") else value  # ffmpeg joins several by it


def _by_ffmpeg(path: Path) -> dict[str, str]:
    """Tags of any container; those of Ogg are its audio stream's."""
    options = {"format_whitelist": FORMATS}
    try:
        with av.open(f"file:{path}", container_options=options, metadata_errors="surrogateescape") as file:
            found = [item for part in (*file.streams.audio[:1], file) for item in part.metadata.items()]
    except (av.FFmpegError, ValueError):
        return {}
    return {key.lower(): _decoded(value) for key, value in found}


def _decoded(value: str) -> str:
    """RIFF INFO names no encoding: what is not UTF-8 is taken for Windows' Western code page."""
    data = value.encode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _id3(path: Path) -> dict[str, list[str]]:
    """ID3 before or behind the sound (version 1), which ffmpeg passes over where it finds any other tag."""
    try:
        tags = ID3(path)
    except (mutagen.MutagenError, OSError, ValueError):
        return {}
    found = {name: list(map(str, tags[key].text)) for key, name in _ID3.items() if key in tags}
    comments = [
        text for comment in tags.getall("COMM") if comment.desc in ("", "ID3v1 Comment") for text in comment.text
    ]
    genres = [name for frame in tags.getall("TCON") for name in frame.genres]
    return found | {"comment": comments, "genre": genres}


def _ape(path: Path) -> dict[str, list[str]]:
    """APEv2 tags, which ffmpeg does not read from MP3."""
    try:
        return {key.lower(): list(value) for key, value in APEv2(path).items() if value.kind == TEXT}
    except (mutagen.MutagenError, OSError, ValueError):
        return {}


def _artists(path: Path) -> dict[str, list[str]]:
    """All artists of ID3 and MP4, of whom ffmpeg tells the first."""
    try:
        tags = dict(getattr(mutagen.File(path), "tags", None) or {})
    except (mutagen.MutagenError, OSError, ValueError):
        return {}
    artists = next((tags[key] for key in ("TPE1", "\xa9ART") if key in tags), None)
    return {} if artists is None else {"artist": list(getattr(artists, "text", artists))}
