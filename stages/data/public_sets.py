"""Caption tables for public sets that people have on disk, from the metadata files those sets come with.

Each gives rows of path, caption, title, artist, album, licence, as `prep manifest` reads them. `artist` is what
must stay in one split: the set's own artist, or its nearest stand-in (a video, a Freesound upload).
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stages import tabular
from stages.audio.walk import walk_audio
from stages.data.catalog import ATTRIBUTION
from stages.data.tables import COLUMNS, Row, clean
from stages.errors import DataError
from stages.store import write_text


@dataclass(frozen=True)
class Files:
    """The audio files of a folder, to be found by what a set's metadata calls them."""

    folder: Path
    paths: tuple[str, ...]  # relative, sorted

    def by_id(self) -> dict[str, str]:
        """By the name up to its first dot: `948` of both 48/948.mp3 and 48/948.low.mp3."""
        return {Path(path).name.split(".")[0]: path for path in reversed(self.paths)}

    def table(self, name: str) -> Path:
        """The metadata file of that name, wherever it lies in the folder. Raises DataError when there is none."""
        found = min(self.folder.rglob(name), key=lambda path: (len(path.parts), path), default=None)
        if found is None:
            raise DataError(f"There is no {name} below {self.folder}.", "It comes with the set; put it there.")
        return found


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote: rows with a file here, and how many rows had none."""

    path: Path
    tracks: int
    missing: int


def convert(name: str, folder: Path, out: Path | None = None) -> Converted:
    """Write the caption table of the set `name` (one of SETS) that lies in `folder`; default `folder`/attribution.csv.

    Raises DataError when the set's metadata is missing or malformed, none of its audio is there, or another
    file is in the way.
    """
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist.", f"Name the one that holds {name}.")
    target = out or folder / ATTRIBUTION
    header = ",".join(COLUMNS) + "\n"
    if target.exists() and not target.read_bytes().startswith(header.encode()):
        raise DataError(f"{target} is there already, and is another file.", "Write elsewhere: --out FILE")
    walk = walk_audio(folder)
    paths = [path.relative_to(folder).as_posix() for path in walk.files]
    try:
        rows = list(SETS[name](Files(folder, tuple(paths))))
    except (KeyError, ValueError, IndexError, SyntaxError, RecursionError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"The metadata of {name} in {folder} is not as published: {what}.") from error
    here = {row["path"]: row for row in reversed(rows) if row["path"]}  # of rows for one file the first counts
    if not here:
        walk.require()
        raise DataError(f"None of the {len(rows)} tracks of {name} has its audio below {folder}.")
    write_text(target, tabular.csv_text(COLUMNS, [here[path] for path in sorted(here)]))
    return Converted(target, len(here), sum(not row["path"] for row in rows))


def _row(path: str | None, caption: str, title: str = "", artist: str = "", album: str = "", licence: str = "") -> Row:
    values = (caption, title, artist, album, licence)
    return {"path": path or "", **dict(zip(COLUMNS[1:], map(clean, values), strict=True))}


def _read(path: Path, quoted: bool = True) -> list[dict[str, str]]:
    return tabular.read_table(path, quoted=quoted).cells()


def _fma(files: Files) -> Iterator[Row]:
    """tracks.csv has two header rows of (group, name), and a third with the index's name."""
    here = files.by_id()
    path = files.table("tracks.csv")
    rows = tabular.read_cells(path, tabular.read_text(path))
    (_, groups), (_, names), _ = islice(rows, 3)
    keys = list(zip(groups, names, strict=True))
    for line, cells in rows:
        if len(cells) != len(keys):
            raise ValueError(f"tracks.csv, line {line} has {len(cells)} cells under {len(keys)} columns")
        track = dict(zip(keys, cells, strict=True))
        genre, title, licence = (track["track", name] for name in ("genre_top", "title", "license"))
        artist, album = track["artist", "name"], track["album", "title"]
        tags = ast.literal_eval(track["track", "tags"] or "[]")
        words = ", ".join(dict.fromkeys([genre, *map(str, tags)] if genre else map(str, tags)))
        caption = ", ".join(filter(None, (f"{title} by {artist}", words)))
        yield _row(here.get(f"{int(cells[0]):06d}"), caption, title, artist, album, licence)


def _mtg_jamendo(files: Files) -> Iterator[Row]:
    """autotagging.tsv has one more column for each further tag; names are in raw.meta.tsv, if that is there."""
    here = files.by_id()
    names = {row["TRACK_ID"]: row for path in files.folder.rglob("raw.meta.tsv") for row in _read(path, quoted=False)}
    path = files.table("autotagging.tsv")
    (_, header), *rows = tabular.read_cells(path, tabular.read_text(path), quoted=False)
    if header[:6] != ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]:
        raise ValueError("autotagging.tsv has other columns")
    for _, (track, artist, album, file, _, *tags) in rows:
        known = names.get(track, {})
        caption = ", ".join(tag.partition("---")[2] for tag in sorted(tags))  # genre, instrument, mood/theme
        yield _row(here.get(Path(file).name.split(".")[0]), caption, known.get("TRACK_NAME", ""),
                   known.get("ARTIST_NAME", artist), known.get("ALBUM_NAME", album),
                   "Creative Commons, see jamendo.com")  # fmt: skip


def _musiccaps(files: Files) -> Iterator[Row]:
    """Files are named by the video: ID.wav, ID_30.wav, [ID]-[30-40].wav, YID.wav, or `Title [ID].wav` of yt-dlp."""
    rows = _read(files.table("musiccaps-public.csv"))
    ids = {row["ytid"] for row in rows}
    here = {video: path for path in reversed(files.paths) for video in _video(Path(path).stem, ids)}
    for row in rows:
        video = f"youtube {row['ytid']}"
        yield _row(here.get(row["ytid"]), row["caption"], f"{video} at {row['start_s']} s", video)


def _video(name: str, ids: set[str]) -> list[str]:
    """The first of `ids` that a file's name has: in brackets, as the whole of it, at its start or end; or none."""
    bare = name.removeprefix("Y")
    found = [*re.findall(r"\[([^][]{11})\]", name), name, bare, name[:11], bare[:11], name[-11:]]
    return [video for video in found if video in ids][:1]


def _song_describer(files: Files) -> Iterator[Row]:
    """Of several captions of a track, the first of the valid subset where that is marked, else the first."""
    here = files.by_id()
    rows = sorted(_read(files.table("song_describer.csv")), key=lambda row: row.get("is_valid_subset") == "False")
    for row in rows:
        artist = row.get("artist_id") or f"track {row['track_id']}"
        yield _row(here.get(Path(row["path"]).name.split(".")[0]), row["caption"], artist=artist,
                   album=row.get("album_id", ""), licence="Creative Commons, see jamendo.com")  # fmt: skip


def _gtzan(files: Files) -> Iterator[Row]:
    """genres/blues/blues.00000.wav; the set names no artists, so each track stands alone."""
    for path in files.paths:
        genre, found = Path(path).parent.name, re.fullmatch(r"([a-z]+)\.\d{5}", Path(path).stem)
        if found and found[1] == genre:
            spoken = {"hiphop": "hip hop"}.get(genre, genre)
            yield _row(path, f"{spoken} music", artist=f"unknown, {Path(path).stem}")


def _esc50(files: Files) -> Iterator[Row]:
    """Names are fold-upload-take-target.wav; takes of one Freesound upload stay together."""
    here = files.by_id()
    for row in _read(files.table("esc50.csv")):
        upload = f"freesound {row['filename'].split('-')[1]}"
        caption = f"the sound of {row['category'].replace('_', ' ')}"
        yield _row(here.get(Path(row["filename"]).stem), caption, artist=upload, licence="CC-BY-NC-3.0")


SETS: dict[str, Callable[[Files], Iterator[Row]]] = {
    "fma": _fma,
    "mtg-jamendo": _mtg_jamendo,
    "musiccaps": _musiccaps,
    "song-describer": _song_describer,
    "gtzan": _gtzan,
    "esc-50": _esc50,
}
