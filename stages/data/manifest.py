"""manifest.csv: the tracks of a collection, their captions and splits; read and checked, or written."""

import csv
import io as text_io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

from stages.errors import DataError
from stages.store import read_json, read_text, write_text
from stages.tabular import csv_text

MANIFEST = "manifest.csv"
ROOT = "manifest.json"
SCHEMA = 1
SPLITS = ("train", "valid", "test")
_REMAKE = "Make it with: musicldm prep manifest DIR --captions FILE"
_ID = re.compile(r"[^\W_](?:[^\W_]|-){0,79}")


@dataclass(frozen=True)
class Track:
    """One row of manifest.csv."""

    id: str
    path: str  # relative to the manifest's root, with forward slashes
    caption: str
    title: str
    artist: str
    album: str
    licence: str
    split: str  # train, valid or test
    seconds: float
    sample_rate: int  # Hz
    sha256: str  # of the decoded samples
    recording: str = ""  # equal for all copies of one recording; empty where there is no copy


_COLUMNS = [field.name for field in fields(Track)]


@dataclass(frozen=True)
class Manifest:
    """The tracks of a manifest.csv and the folder their paths start from."""

    root: Path
    tracks: tuple[Track, ...]

    def audio_path(self, track: Track) -> Path:
        return self.root / track.path


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.csv, or the one in a folder.

    Raises DataError naming the line when a column is missing, an id is malformed or there twice, a value is
    malformed, or a path leaves the root.
    """
    path = path / MANIFEST if path.is_dir() else path
    reader = csv.DictReader(text_io.StringIO(read_text(path, _REMAKE), newline=""), strict=True)
    try:
        missing = [name for name in _COLUMNS if name != "recording" and name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path} lacks the column(s) {', '.join(missing)}.", _REMAKE)
        tracks = tuple(_track(row, f"{path}, line {reader.line_num}") for row in reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is malformed: {error}.", _REMAKE) from error
    twice = [id_ for id_, count in Counter(track.id for track in tracks).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the id {twice[0]} is there twice.", _REMAKE)
    if not tracks:
        raise DataError(f"{path} lists no track.", _REMAKE)
    return Manifest(_root(path.parent), tracks)


def write_manifest(path: Path, tracks: Sequence[Track]) -> None:
    """Write manifest.csv: UTF-8, one header, one line a track."""
    write_text(path, csv_text(_COLUMNS, [asdict(track) for track in tracks]))


def _track(row: Mapping[str, str | None], where: str) -> Track:
    if None in row.values() or None in row:
        raise DataError(f"{where} has more or fewer cells than the header.", _REMAKE)
    values = {field.name: row.get(field.name) or "" for field in fields(Track) if field.type is str}
    path = PurePosixPath(values["path"])
    if not values["path"] or path.is_absolute() or ".." in path.parts or "\0" in values["path"]:
        raise DataError(f"{where}: the path {values['path']!r} leaves the collection's folder.", _REMAKE)
    if not _ID.fullmatch(values["id"]) or values["id"] != unicodedata.normalize("NFC", values["id"].lower()):
        raise DataError(f"{where}: {values['id']!r} is no id (small letters, digits and dashes).", _REMAKE)
    if values["split"] not in SPLITS:
        raise DataError(f"{where}: the split {values['split']!r} is none of {', '.join(SPLITS)}.", _REMAKE)
    try:
        seconds, sample_rate = float(row["seconds"] or ""), int(row["sample_rate"] or "")
    except ValueError as error:
        raise DataError(f"{where}: {error}.", _REMAKE) from None
    if not 0 < seconds < float("inf") or sample_rate <= 0:
        raise DataError(f"{where}: seconds and sample_rate must be positive.", _REMAKE)
    return Track(**values, seconds=seconds, sample_rate=sample_rate)


def _root(folder: Path) -> Path:
    if not (folder / ROOT).exists():
        return folder
    data = read_json(folder / ROOT, _REMAKE)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("root"), str):
        raise DataError(f"{folder / ROOT} is not of schema {SCHEMA}.", _REMAKE)
    return Path(os.path.normpath(folder.resolve() / data["root"]))
