"""Fetch the music of free games from Debian's packages, without root: download, unpack, keep music and credits.

`debian_games.csv` beside this file lists every track (package, path in it, licence, title, artist, caption).
The captions come from titles, tags and the music's role in its game; nobody listened to write them.
"""

import csv
import io
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Literal

from stages.data import debian
from stages.progress import Progress, silent
from stages.store import atomic_file, disk_errors, write_text
from stages.tabular import csv_text

Licence = Literal["cc", "free"]
ATTRIBUTION = "attribution.csv"
COLUMNS = ("path", "caption", "title", "artist", "licence", "source_package", "source_file")
_ARCHIVED = "/unpacked/"  # stands in the list for a zip file in the folder before it
_ARCHIVES = (".pk3", ".zip")
_PERMISSIVE = ("CC-", "public-domain")


@dataclass(frozen=True)
class Source:
    """One track of the list."""

    package: str
    source: str  # path in the package
    file: str  # path below audio/<package>
    seconds: float
    licence: str
    title: str
    artist: str
    caption: str

    @property
    def target(self) -> str:
        return f"audio/{self.package}/{self.file}"


@dataclass(frozen=True)
class Fetched:
    """What `fetch` left in its folder, and the tracks that the packages of this release do not hold."""

    folder: Path
    tracks: tuple[Source, ...]
    missing: tuple[Source, ...]


def listed(licence: Licence = "cc", hours: float | None = None) -> list[Source]:
    """The tracks under CC or in the public domain ("cc"), or all ("free"), smallest packages first.

    With `hours`, the first that reach it.
    """
    text = (files("stages.data") / "debian_games.csv").read_text(encoding="utf-8")
    rows = [Source(**{**row, "seconds": float(row["seconds"])}) for row in csv.DictReader(io.StringIO(text))]  # type: ignore[arg-type]
    rows = [row for row in rows if licence == "free" or row.licence.startswith(_PERMISSIVE)]
    size = {package: sum(row.seconds for row in rows if row.package == package) for package in _packages(rows)}
    rows.sort(key=lambda row: (size[row.package], row.package, row.source))
    chosen, seconds = [], 0.0
    for row in rows:
        if hours is not None and seconds >= hours * 3600:
            break
        chosen.append(row)
        seconds += row.seconds
    return chosen


def fetch(
    destination: Path, licence: Licence = "cc", hours: float | None = None, progress: Progress = silent
) -> Fetched:
    """Download what `listed` names into `destination`: audio/, licences/, and attribution.csv last.

    Files that are there already are kept, so that an interrupted run goes on with the next package. Raises
    MissingDependencyError without apt-get and dpkg, DataError when a package cannot be had.
    """
    debian.check_programs()
    wanted = listed(licence, hours)
    packages = _packages(wanted)
    with disk_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        for done, package in enumerate(packages):
            progress("packages", done, len(packages))
            todo = [row for row in wanted if row.package == package and not (destination / row.target).is_file()]
            if todo:
                _fetch_package(package, todo, destination)
        progress("packages", len(packages), len(packages))
    found = tuple(row for row in wanted if (destination / row.target).is_file())
    write_text(destination / ATTRIBUTION, _attribution(found))
    return Fetched(destination, found, tuple(row for row in wanted if row not in found))


def _fetch_package(package: str, rows: list[Source], destination: Path) -> None:
    """Download and unpack one package in a temporary folder, and copy its music and copyright file."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=destination) as name:
        tree = Path(name) / "tree"
        debian.unpack(package, tree)
        _copy(tree / "usr/share/doc" / package / "copyright", destination / "licences" / f"{package}.copyright")
        packed = {row.source: row for row in rows if _ARCHIVED in row.source}
        for row in rows:
            if row.source not in packed:
                _copy(tree / row.source, destination / row.target)
        for folder in sorted({source.split(_ARCHIVED)[0] for source in packed}):
            for archive in sorted(path for path in (tree / folder).glob("*") if path.suffix in _ARCHIVES):
                _copy_from_archive(archive, f"{folder}{_ARCHIVED}", packed, destination)


def _copy(source: Path, target: Path) -> None:
    """Copy a regular file of a package; one that this release does not have is left out."""
    if source.is_file() and not source.is_symlink():
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)


def _copy_from_archive(archive: Path, place: str, packed: dict[str, Source], destination: Path) -> None:
    """Copy what `archive` has of the tracks at `place` in the list and no earlier archive had; it is opened once."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.namelist():
            row = packed.get(f"{place}{member}")
            if row is not None and not (destination / row.target).is_file():
                with (
                    opened.open(member) as source,
                    atomic_file(destination / row.target) as temporary,
                    temporary.open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy)


def _packages(rows: list[Source]) -> list[str]:
    return list(dict.fromkeys(row.package for row in rows))


def _attribution(rows: tuple[Source, ...]) -> str:
    return csv_text(COLUMNS, [
        (PurePosixPath(row.target).as_posix(), row.caption, row.title, row.artist, row.licence, row.package, row.source)
        for row in rows
    ])  # fmt: skip
