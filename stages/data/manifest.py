"""The catalogue of a collection: which files can be used, their captions, and the split of each.

Audio is hashed by its decoded samples (`stages.audio.io.SampleHash`), so that a copy in another lossless
format or with other tags is found as well; copies always share a split.
"""

import csv
import hashlib
import io as text_io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

from joblib import Parallel, cpu_count, delayed

from stages import params
from stages.audio import io
from stages.data import splits, tables
from stages.errors import DataError
from stages.progress import Progress, silent
from stages.store import atomic_folder, read_json, write_json, write_text

MANIFEST = "manifest.csv"
ROOT = "manifest.json"
REJECTED = "rejected.csv"
SCHEMA = 1
MIN_SECONDS = 1.0  # shorter files are no music; a tempo needs more still
SPLITS = ("train", "valid", "test")
_REMAKE = "Make it with: musicldm prep manifest DIR --captions FILE"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


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


@dataclass(frozen=True)
class Manifest:
    """The tracks of a manifest.csv and the folder their paths start from."""

    root: Path
    tracks: tuple[Track, ...]

    def audio_path(self, track: Track) -> Path:
        return self.root / track.path


@dataclass(frozen=True)
class Rejected:
    """A file, or a row of the caption table, that is left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """What `make_manifest` wrote."""

    folder: Path
    tracks: tuple[Track, ...]
    rejected: tuple[Rejected, ...]

    @property
    def split_sizes(self) -> dict[str, int]:
        return {split: sum(track.split == split for track in self.tracks) for split in SPLITS}

    @property
    def duplicates(self) -> list[list[str]]:
        """Paths of equal audio, one list for each recording that is there more than once."""
        copies: dict[str, list[str]] = {}
        for track in self.tracks:
            copies.setdefault(track.sha256, []).append(track.path)
        return [paths for paths in copies.values() if len(paths) > 1]


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.csv, or the one in a folder.

    Raises DataError naming the line when a column is missing, an id is malformed or there twice, a value is
    malformed, or a path leaves the root.
    """
    path = path / MANIFEST if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no manifest {path}.", _REMAKE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", _REMAKE) from error
    reader = csv.DictReader(text_io.StringIO(text, newline=""), strict=True)
    try:
        missing = [field.name for field in fields(Track) if field.name not in (reader.fieldnames or [])]
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
    write_text(path, _csv_text([field.name for field in fields(Track)], [asdict(track) for track in tracks]))


def make_manifest(
    source: Path,
    captions: Path | None,
    folder: Path,
    settings: params.Manifest,
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Catalogue:
    """Catalogue every audio file below `source` into `folder` (manifest.csv, manifest.json, rejected.csv).

    Captions come from the table `captions` (default: one of the usual names in `source`), else from a sidecar
    file, else from tags. Every file is decoded whole, `jobs` at a time (default: one for each CPU). Raises
    DataError, with nothing written, when there is nothing to use, or with `strict` when anything is rejected.
    """
    paths = _audio_files(source)
    rejected: list[Rejected] = []
    texts = _describe(source, paths, captions or tables.find_table(source), columns or {}, rejected)
    order = splits.spread(list(texts), [_group(path, text) for path, text in texts.items()], settings.seed)
    scanned = _scan(source, order, settings.limit, jobs or cpu_count(), rejected, progress)
    if strict and rejected:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in rejected[:10])
        raise DataError(f"{len(rejected)} file(s) of {source} are rejected: {shown}.", "Mend them, or omit --strict.")
    if not scanned:
        first = f" The first: {rejected[0].path}: {rejected[0].reason}." if rejected else ""
        raise DataError(
            f"None of the {len(paths)} audio file(s) below {source} can be used.{first}",
            "Every file needs readable audio and a caption; name a table with --captions FILE.",
        )
    tracks = _tracks(scanned, texts, settings)
    with atomic_folder(folder) as temporary:
        write_manifest(temporary / MANIFEST, tracks)
        root = source if source.is_absolute() else Path(os.path.relpath(source.resolve(), folder.resolve()))
        write_json(temporary / ROOT, {"schema": SCHEMA, "root": root.as_posix()})
        rows = [asdict(item) for item in sorted(rejected, key=lambda item: item.path)]
        write_text(temporary / REJECTED, _csv_text(["path", "reason"], rows))
    return Catalogue(folder, tracks, tuple(rejected))


def track_id(path: str) -> str:
    """A file-system-safe id: a readable slug of the file's name, and 12 hex digits of its relative path."""
    path = unicodedata.normalize("NFC", path)
    ascii_name = unicodedata.normalize("NFKD", PurePosixPath(path).stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower())[:40].strip("-")
    digest = hashlib.sha256(path.encode("utf-8")).hexdigest()[:12]
    return f"{slug}-{digest}" if slug else digest


def _audio_files(source: Path) -> list[str]:
    """Paths of everything named like audio below `source`, sorted; linked folders are followed once."""
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise DataError(f"The collection {source} {what}.", "Try the demo music: musicldm data demo data/demo")
    found, seen = [], {os.path.realpath(source)}
    for folder, folders, names in os.walk(source, followlinks=True):
        new = {name: os.path.realpath(Path(folder, name)) for name in sorted(folders)}
        folders[:] = [name for name, real in new.items() if not name.startswith(".") and real not in seen]
        seen.update(new.values())
        audio = [name for name in names if Path(name).suffix.lower() in io.SUFFIXES and not name.startswith(".")]
        found += [Path(folder, name).relative_to(source).as_posix() for name in audio]
    if not found:
        raise DataError(f"There is no audio file below {source}.", f"Known are: {', '.join(io.SUFFIXES)}")
    return sorted(found)


def _describe(
    source: Path, paths: list[str], table: Path | None, columns: Mapping[str, str], rejected: list[Rejected]
) -> dict[str, tables.Row]:
    """Caption, title, artist, album and licence of each file, from table, sidecar, tags in this order."""
    listed: dict[str, tables.Row] = {}
    if table is not None:
        lookup = tables.Lookup(source, table, paths)
        for row in tables.read_table(table, columns):
            path = lookup.find(row["path"])
            if path is None:
                rejected.append(Rejected(row["path"], "is in the caption table, but is no audio file of the folder"))
            elif path in listed:
                rejected.append(Rejected(row["path"], "is in the caption table again; the first row is used"))
            else:
                listed[path] = row
    texts: dict[str, tables.Row] = {}
    for path in paths:
        try:
            path.encode("utf-8")
            text = _first_words(source / path, listed.get(path, {}), columns)
        except UnicodeEncodeError:
            rejected.append(Rejected(os.fsencode(path).decode("ascii", "backslashreplace"), "its name is not UTF-8"))
        except DataError as error:
            rejected.append(Rejected(path, _reason(source / path, error)))
        else:
            if text["caption"]:
                texts[path] = text
            else:
                rejected.append(Rejected(path, "has no caption in a table, a sidecar file or its tags"))
    return texts


def _first_words(path: Path, listed: tables.Row, columns: Mapping[str, str]) -> tables.Row:
    sources = (listed, tables.sidecar(path, columns), tables.tags(path) if path.is_file() else {})
    return {field: next((row[field] for row in sources if row.get(field)), "") for field in tables.FIELDS}


def _group(path: str, text: tables.Row) -> str:
    """What must stay in one split: the artist, else the album, else the parent folder, else the file."""
    for kind in ("artist", "album"):
        if text[kind]:
            return f"{kind} {text[kind].casefold()}"
    parent = PurePosixPath(path).parent.as_posix()
    return f"folder {parent}" if parent != "." else f"file {path}"


@dataclass(frozen=True)
class _Scan:
    path: str
    seconds: float
    sample_rate: int
    sha256: str


def _scan(
    source: Path, order: list[str], limit: int | None, jobs: int, rejected: list[Rejected], progress: Progress
) -> list[_Scan]:
    """Decode files in `order` until `limit` of them are found good; sorted by path."""
    good: list[_Scan] = []
    wanted = min(limit or len(order), len(order))
    done = 0
    with Parallel(n_jobs=jobs, backend="threading", return_as="generator") as parallel:
        while done < len(order) and len(good) < wanted:
            batch = order[done : done + wanted - len(good)]
            for result in parallel(delayed(_scan_file)(source, path) for path in batch):
                (good if isinstance(result, _Scan) else rejected).append(result)
                done += 1
                progress("manifest", done, max(wanted, done))
    return sorted(good, key=lambda scan: scan.path)


def _scan_file(source: Path, path: str) -> _Scan | Rejected:
    try:
        samples, rate, digest = io.scan(source / path)
    except DataError as error:
        return Rejected(path, _reason(source / path, error))
    if samples < MIN_SECONDS * rate:
        return Rejected(path, f"is {samples / rate:.3f} s long, less than {MIN_SECONDS:g} s")
    return _Scan(path, round(samples / rate, 6), rate, digest)


def _reason(path: Path, error: DataError) -> str:
    """The message without the path, which has a column of its own."""
    return error.message.removeprefix(str(path)).strip()


def _tracks(scanned: list[_Scan], texts: Mapping[str, tables.Row], settings: params.Manifest) -> tuple[Track, ...]:
    groups = _joined_groups(scanned, texts)
    sizes = Counter(groups.values())
    split_of = splits.divide(sizes, settings.valid_share, settings.test_share, settings.seed)
    return tuple(
        Track(
            id=track_id(scan.path),
            path=scan.path,
            split=split_of[groups[scan.path]],
            seconds=scan.seconds,
            sample_rate=scan.sample_rate,
            sha256=scan.sha256,
            **texts[scan.path],
        )
        for scan in scanned
    )


def _joined_groups(scanned: list[_Scan], texts: Mapping[str, tables.Row]) -> dict[str, str]:
    """The group of each path, where groups that share a recording have become one."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for scan in scanned:
        first, second = sorted((top(_group(scan.path, texts[scan.path])), top(f"sha256 {scan.sha256}")))
        parent[second] = first
    return {scan.path: top(_group(scan.path, texts[scan.path])) for scan in scanned}


def _track(row: Mapping[str, str | None], where: str) -> Track:
    if None in row.values() or None in row:
        raise DataError(f"{where} has more or fewer cells than the header.", _REMAKE)
    values = {field.name: row[field.name] or "" for field in fields(Track) if field.type is str}
    path = PurePosixPath(values["path"])
    if not values["path"] or path.is_absolute() or ".." in path.parts or "\0" in values["path"]:
        raise DataError(f"{where}: the path {values['path']!r} leaves the collection's folder.", _REMAKE)
    if not _ID.fullmatch(values["id"]):
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


def _csv_text(header: list[str], rows: list[dict[str, object]]) -> str:
    text = text_io.StringIO(newline="")
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
