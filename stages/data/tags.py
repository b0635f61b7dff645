"""What an audio file says of itself: title, artist, album, and a caption made of its tags."""

from pathlib import Path

import mutagen
from mutagen.mp4 import MP4Tags

from stages.data.tables import Row, clean


def read_tags(path: Path) -> Row:
    """Title, artist and album from the file's own tags, and a caption made of title, genre and comment."""
    try:
        file = mutagen.File(path, easy=True)
        comment = clean(_comment(path))
    except (mutagen.MutagenError, OSError, ValueError):
        return {}  # what is wrong with the file is told by decoding it
    found = dict(file.tags or {}) if file is not None else {}
    row = {field: clean(found.get(field)) for field in ("title", "artist", "album")}
    title = " by ".join(filter(None, (row["title"], row["artist"])))
    row["caption"] = ", ".join(filter(None, (title, clean(found.get("genre")), comment)))
    return row


def _comment(path: Path) -> object:
    """The comment of ID3 (COMM frames), MP4 (its own key) or Vorbis comments."""
    file = mutagen.File(path)
    found = file.tags if file is not None else None
    if not found:
        return None
    if hasattr(found, "getall"):
        return [text for frame in found.getall("COMM") if not frame.desc for text in frame.text]
    return found.get("\xa9cmt" if isinstance(found, MP4Tags) else "comment")
