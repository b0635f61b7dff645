"""Catalogue a collection: which files can be used, their captions, which are copies, and the split of each.

Audio is hashed by its decoded samples (`stages.audio.io.SampleHash`), so that a copy in another lossless
format or with other tags is found as well, and sketched, so that lossy copies are; copies always share a split.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from stages import params
from stages.audio import io
from stages.audio.suffixes import SUFFIXES
from stages.audio.walk import Walk, unread, walk_audio
from stages.data import splits, tables
from stages.data.manifest import MANIFEST, ROOT, SCHEMA, SPLITS, Track, write_manifest
from stages.data.near_duplicates import Sketch, Sketcher, find_pairs
from stages.data.parallel import run_each
from stages.data.tags import read_tags
from stages.errors import DataError, MusicldmError
from stages.progress import Progress, silent
from stages.store import atomic_folder, write_json, write_text
from stages.tabular import csv_text

REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"
SLUG_BYTES = 80  # an id with its hash and a suffix is a file name, also as a prompt's (120)
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
    left_out: tuple[str, ...]  # good or not, but beyond manifest.limit
    duplicates: tuple[Duplicate, ...]
    division: splits.Division
    notes: tuple[str, ...]  # what was guessed of the caption table, and how the splits were made

    @property
    def hours(self) -> float:
        return sum(track.seconds for track in self.tracks) / 3600

    @property
    def split_sizes(self) -> dict[str, int]:
        return {split: sum(track.split == split for track in self.tracks) for split in SPLITS}

    def reasons(self, most: int) -> list[tuple[int, Rejected]]:
        """The commonest kinds of reasons (alike but for their numbers): how many, and the first of each."""
        kinds: dict[str, list[Rejected]] = {}
        for item in self.rejected:
            kinds.setdefault(re.sub(r"\d[\d.]*", "N", item.reason), []).append(item)
        return sorted(((len(items), items[0]) for items in kinds.values()), key=lambda kind: -kind[0])[:most]


def make_manifest(
    source: Path,
    captions: Path | None,
    folder: Path,
    settings: params.Manifest,
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    results: Path | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    progress: Progress = silent,
) -> Catalogue:
    """Catalogue every audio file below `source` into `folder`: manifest.csv and .json, rejected and duplicates.csv.

    Captions come from the table `captions` (default: one of the usual names in `source`), else from a sidecar
    file, else from tags; `columns` go before those of the settings. Every file is decoded whole, by `jobs`
    processes or a Dask cluster (`run_each`). A folder of `results` below `source` holds what was made of the music,
    and is passed over. Raises DataError, with nothing written, when there is nothing to use, or with `strict` when
    anything is rejected.
    """
    walk = _walk(source, results)
    paths = [path.relative_to(source).as_posix() for path in walk.files]
    refused = sorted({**walk.closed, **walk.unread}.items())
    rejected = [Rejected(_shown(path.relative_to(source).as_posix()), why) for path, why in refused]
    notes: list[str] = []
    named: dict[str, str] = {**settings.columns, **(columns or {})}
    texts = _describe(source, paths, captions or tables.find_table(source), named, rejected, notes)
    order = splits.spread(list(texts), [splits.group(path, text) for path, text in texts.items()], settings.seed)
    scanned, left_out = _scan(source, order, settings.limit, jobs, dask, rejected, progress)
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
    used = {scan.path: texts[scan.path] for scan in scanned}
    division = splits.divide_tracks(used, [(item.path, item.copy_of) for item in duplicates], settings)
    tracks = _tracks(scanned, texts, division.split_of, duplicates)
    notes += division.notes
    made = Catalogue(folder, tracks, tuple(rejected), tuple(left_out), tuple(duplicates), division, tuple(notes))
    _write(made, source, settings)
    return made


def _write(made: Catalogue, source: Path, settings: params.Manifest) -> None:
    left_out = [Rejected(path, f"is left out by manifest.limit={settings.limit}") for path in made.left_out]
    root = source if source.is_absolute() else Path(os.path.relpath(source.resolve(), made.folder.resolve()))
    about = {"schema": SCHEMA, "root": root.as_posix(), "split_by": made.division.by, "notes": made.notes}
    with atomic_folder(made.folder) as temporary:
        write_manifest(temporary / MANIFEST, made.tracks)
        write_json(temporary / ROOT, about)
        rows = [asdict(item) for item in sorted([*made.rejected, *left_out], key=lambda item: item.path)]
        write_text(temporary / REJECTED, csv_text(["path", "reason"], rows))
        rows = [asdict(item) for item in made.duplicates]
        write_text(temporary / DUPLICATES, csv_text(["path", "copy_of", "similarity"], rows))


def track_id(path: str) -> str:
    """A file-system-safe id: a readable slug of the file's name, and 12 hex digits of its relative path.

    Latin letters lose their accents; those of other scripts stay, but for marks that only join another letter.
    """
    path = unicodedata.normalize("NFC", path)
    plain = re.sub("(?<=[A-Za-z])[\u0300-\u036f]+", "", unicodedata.normalize("NFKD", PurePosixPath(path).stem))
    letters = (c for c in unicodedata.normalize("NFC", plain.lower()) if unicodedata.category(c)[0] != "M")
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", "".join(letters)))
    slug = words[:40].encode()[:SLUG_BYTES].decode(errors="ignore").strip("-")
    digest = hashlib.sha256(path.encode("utf-8")).hexdigest()[:12]
    return f"{slug}-{digest}" if slug else digest


def _shown(path: str) -> str:
    """Bytes of a name that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(source: Path, results: Path | None) -> Walk:
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise DataError(f"The collection {source} {what}.", "Try the demo music: musicldm data demo data/demo")
    walk = walk_audio(source, without=results)
    walk.require()
    return walk


def _describe(
    source: Path,
    paths: list[str],
    table: Path | None,
    columns: Mapping[str, str],
    rejected: list[Rejected],
    notes: list[str],
) -> dict[str, tables.Row]:
    """Caption, title, artist, album and licence of each file, from table, sidecar, tags in this order."""
    listed = {} if table is None else _listed(source, paths, table, columns, rejected, notes)
    texts: dict[str, tables.Row] = {}
    for path in paths:
        try:
            path.encode("utf-8")
            text = _first_words(source / path, listed.get(path, {}), columns)
        except UnicodeEncodeError:
            rejected.append(Rejected(_shown(path), "its name is not UTF-8"))
        except DataError as error:
            rejected.append(Rejected(path, _reason(source / path, error)))
        else:
            if text["caption"]:
                texts[path] = text
            else:
                rejected.append(Rejected(path, "has no caption in a table, a sidecar file or its tags"))
    return texts


def _listed(
    source: Path,
    paths: list[str],
    table: Path,
    columns: Mapping[str, str],
    rejected: list[Rejected],
    notes: list[str],
) -> dict[str, tables.Row]:
    """The row of each file that the table names; what it names beside them is rejected."""
    rows = tables.read_captions(table, columns, notes)
    listed, left_out = tables.Lookup(source, table, paths).match(rows)
    refused = tables.Lookup(source, table, [item.path for item in rejected])
    for path, reason in left_out:
        if not refused.find(path).is_named:  # else it is listed already, with a better reason
            rejected.append(Rejected(path, _why_no_audio(source / path, reason)))
    return listed


def _why_no_audio(path: Path, reason: str) -> str:
    return unread(path) if tables.is_file(path) and path.suffix.lower() not in SUFFIXES else reason


def _first_words(path: Path, listed: tables.Row, columns: Mapping[str, str]) -> tables.Row:
    sources = (listed, tables.sidecar(path, columns), read_tags(path) if tables.is_file(path) else {})
    found = {field: next((row[field] for row in sources if row.get(field)), "") for field in tables.FIELDS}
    return {field: tables.checked(text, f"its {field}") for field, text in found.items()}


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
) -> tuple[list[_Scan], list[str]]:
    """Decode files in `order` until `limit` of them are found good, sorted by path; and those that are left."""
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
    return sorted(good, key=lambda scan: scan.path), order[done:]


def _scan_file(source: Path, path: str) -> _Scan | Rejected:
    try:
        with io.open_audio(source / path) as audio:
            rate, samples = audio.sample_rate, 0
            digest, sketcher, levels = io.SampleHash(rate), Sketcher(rate), io.Levels()
            for block in audio.blocks(levels):
                digest.update(block)
                sketcher.update(block)
                samples += len(block)
    except DataError as error:
        return Rejected(path, _reason(source / path, error))
    if samples < MIN_SECONDS * rate:
        return Rejected(path, f"is {samples / rate:.3f} s long, less than {MIN_SECONDS:g} s")
    if fault := levels.fault():
        return Rejected(path, fault)
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
    scanned: list[_Scan],
    texts: Mapping[str, tables.Row],
    split_of: Mapping[str, splits.Split],
    duplicates: list[Duplicate],
) -> tuple[Track, ...]:
    recordings = splits.joined((item.path, item.copy_of) for item in duplicates)
    return tuple(
        Track(
            id=track_id(scan.path),
            path=scan.path,
            split=split_of[scan.path],
            seconds=scan.seconds,
            sample_rate=scan.sample_rate,
            sha256=scan.sha256,
            recording=track_id(recordings[scan.path]) if scan.path in recordings else "",
            **texts[scan.path],
        )
        for scan in scanned
    )
