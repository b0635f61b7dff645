"""Catalogue a collection: which files can be used, their captions, which are copies, and the split of each.

Audio is hashed by its decoded samples (`stages.audio.io.SampleHash`), so that a copy in another lossless
format or with other tags is found as well, and sketched, so that lossy copies are; copies always share a split.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from stages import params
from stages.audio import io
from stages.data import splits, tables
from stages.data.manifest import MANIFEST, ROOT, SCHEMA, SPLITS, Track, csv_text, write_manifest
from stages.data.near_duplicates import Sketch, Sketcher, find_pairs
from stages.data.parallel import run_each
from stages.errors import DataError, MissingDependencyError, MusicldmError
from stages.progress import Progress, silent
from stages.store import atomic_folder, write_json, write_text

REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"
MIN_SECONDS = 1.0  # shorter files are no music; a tempo needs more still


@dataclass(frozen=True)
class Rejected:
    """A file, or a row of the caption table, that is left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """Two files of one recording: 1 for equal samples, else how much their sketches are alike."""

    path: str
    copy_of: str
    similarity: float


@dataclass(frozen=True)
class Catalogue:
    """What `make_manifest` wrote."""

    folder: Path
    tracks: tuple[Track, ...]
    rejected: tuple[Rejected, ...]
    duplicates: tuple[Duplicate, ...]

    @property
    def split_sizes(self) -> dict[str, int]:
        return {split: sum(track.split == split for track in self.tracks) for split in SPLITS}


def make_manifest(
    source: Path,
    captions: Path | None,
    folder: Path,
    settings: params.Manifest,
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    jobs: int | None = None,
    dask: str | None = None,
    progress: Progress = silent,
) -> Catalogue:
    """Catalogue every audio file below `source` into `folder`: manifest.csv and .json, rejected and duplicates.csv.

    Captions come from the table `captions` (default: one of the usual names in `source`), else from a sidecar
    file, else from tags. Every file is decoded whole, by `jobs` processes or a Dask cluster (`run_each`). Raises
    DataError, with nothing written, when there is nothing to use, or with `strict` when anything is rejected.
    """
    rejected: list[Rejected] = []
    paths = _audio_files(source, rejected)
    texts = _describe(source, paths, captions or tables.find_table(source), columns or {}, rejected)
    order = splits.spread(list(texts), [_group(path, text) for path, text in texts.items()], settings.seed)
    scanned = _scan(source, order, settings.limit, jobs, dask, rejected, progress)
    if strict and rejected:
        shown = "; ".join(f"{item.path}: {item.reason.rstrip('.')}" for item in rejected[:10])
        raise DataError(f"{len(rejected)} file(s) of {source} are rejected: {shown}.", "Mend them, or omit --strict.")
    if not scanned:
        first = f" The first: {rejected[0].path}: {rejected[0].reason}." if rejected else ""
        raise DataError(
            f"None of the {len(paths)} audio file(s) below {source} can be used.{first}",
            "Every file needs readable audio and a caption; name a table with --captions FILE.",
        )
    duplicates = _duplicates(scanned, settings.near_duplicate, progress)
    tracks = _tracks(scanned, texts, duplicates, settings)
    with atomic_folder(folder) as temporary:
        write_manifest(temporary / MANIFEST, tracks)
        root = source if source.is_absolute() else Path(os.path.relpath(source.resolve(), folder.resolve()))
        write_json(temporary / ROOT, {"schema": SCHEMA, "root": root.as_posix()})
        rows = [asdict(item) for item in sorted(rejected, key=lambda item: item.path)]
        write_text(temporary / REJECTED, csv_text(["path", "reason"], rows))
        rows = [asdict(item) for item in duplicates]
        write_text(temporary / DUPLICATES, csv_text(["path", "copy_of", "similarity"], rows))
    return Catalogue(folder, tracks, tuple(rejected), tuple(duplicates))


def track_id(path: str) -> str:
    """A file-system-safe id: a readable slug of the file's name, and 12 hex digits of its relative path."""
    path = unicodedata.normalize("NFC", path)
    ascii_name = unicodedata.normalize("NFKD", PurePosixPath(path).stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower())[:40].strip("-")
    digest = hashlib.sha256(path.encode("utf-8")).hexdigest()[:12]
    return f"{slug}-{digest}" if slug else digest


def _audio_files(source: Path, rejected: list[Rejected]) -> list[str]:
    """Paths of everything named like audio below `source`, sorted; linked folders are followed once."""

    def closed(error: OSError) -> None:
        rejected.append(
            Rejected(Path(error.filename).relative_to(source).as_posix(), f"cannot be opened: {error.strerror}")
        )

    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise DataError(f"The collection {source} {what}.", "Try the demo music: musicldm data demo data/demo")
    found, seen = [], {os.path.realpath(source)}
    for folder, folders, names in os.walk(source, followlinks=True, onerror=closed):
        new = {name: os.path.realpath(Path(folder, name)) for name in sorted(folders)}
        folders[:] = [name for name, real in new.items() if not name.startswith(".") and real not in seen]
        seen.update(new.values())
        audio = [name for name in names if Path(name).suffix.lower() in io.SUFFIXES and not name.startswith(".")]
        found += [Path(folder, name).relative_to(source).as_posix() for name in audio]
    if not found:
        if rejected:
            raise DataError(f"{source / rejected[0].path} {rejected[0].reason}.", "Allow yourself to read it.")
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
    sources = (listed, tables.sidecar(path, columns), tables.tags(path) if tables.is_file(path) else {})
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
    sketch: Sketch


def _scan(
    source: Path,
    order: list[str],
    limit: int | None,
    jobs: int | None,
    dask: str | None,
    rejected: list[Rejected],
    progress: Progress,
) -> list[_Scan]:
    """Decode files in `order` until `limit` of them are found good; sorted by path."""
    good: list[_Scan] = []
    wanted = min(limit or len(order), len(order))
    done = 0
    while done < len(order) and len(good) < wanted:
        batch = [(source.absolute(), path) for path in order[done : done + wanted - len(good)]]
        for _, result in run_each(_scan_file, batch, jobs=jobs, dask=dask):
            if isinstance(result, _Scan):
                good.append(result)
            else:
                rejected.append(result)
            done += 1
            progress("manifest", done, max(wanted, done))
    return sorted(good, key=lambda scan: scan.path)


def _scan_file(source: Path, path: str) -> _Scan | Rejected:
    try:
        with io.open_audio(source / path) as audio:
            rate, samples = audio.sample_rate, 0
            digest, sketcher = io.SampleHash(rate), Sketcher(rate)
            for block in audio.blocks():
                digest.update(block)
                sketcher.update(block)
                samples += len(block)
    except (DataError, MissingDependencyError) as error:  # the rest of the collection does not need ffmpeg
        return Rejected(path, _reason(source / path, error))
    if samples < MIN_SECONDS * rate:
        return Rejected(path, f"is {samples / rate:.3f} s long, less than {MIN_SECONDS:g} s")
    return _Scan(path, round(samples / rate, 6), rate, digest.hexdigest(), sketcher.sketch())


def _reason(path: Path, error: MusicldmError) -> str:
    """The message without the path, which has a column of its own, and how to mend it where that is known."""
    return f"{error.message.removeprefix(str(path))} {error.remedy}".strip()


def _duplicates(scanned: list[_Scan], threshold: float | None, progress: Progress) -> list[Duplicate]:
    """Files of equal samples, and those whose sketches correlate by `threshold` (None: not compared)."""
    first: dict[str, str] = {}
    for scan in scanned:
        first.setdefault(scan.sha256, scan.path)
    equal = [Duplicate(scan.path, first[scan.sha256], 1.0) for scan in scanned if first[scan.sha256] != scan.path]
    if threshold is None:
        return equal
    different = [scan for scan in scanned if first[scan.sha256] == scan.path]
    pairs = find_pairs([scan.sketch for scan in different], threshold, progress)
    near = [Duplicate(different[p.second].path, different[p.first].path, round(p.similarity, 3)) for p in pairs]
    return equal + near


def _tracks(
    scanned: list[_Scan], texts: Mapping[str, tables.Row], duplicates: list[Duplicate], settings: params.Manifest
) -> tuple[Track, ...]:
    recordings = _joined((item.path, item.copy_of) for item in duplicates)
    own = {scan.path: _group(scan.path, texts[scan.path]) for scan in scanned}
    joined = _joined((own[path], f"recording {recordings[path]}") for path in recordings)
    groups = {path: joined.get(group, group) for path, group in own.items()}
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
            recording=track_id(recordings[scan.path]) if scan.path in recordings else "",
            **texts[scan.path],
        )
        for scan in scanned
    )


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name of the pairs the first (by its letters) of all that are joined to it by some chain of pairs."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for pair in pairs:
        first, second = sorted(map(top, pair))
        parent[second] = first
    return {name: top(name) for name in list(parent)}
