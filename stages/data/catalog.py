"""What music can be had without an account: the embedded demo set, and a recipe for free game music.

Also the check of a whole manifest, file by file.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.audio import io
from stages.data.manifest import Track, read_manifest
from stages.data.parallel import run_each
from stages.errors import DataError
from stages.layout import packaged
from stages.progress import Progress, silent
from stages.store import atomic_file, sha256

ATTRIBUTION = "attribution.csv"


@dataclass(frozen=True)
class Collection:
    """One entry of `musicldm data list`."""

    name: str
    hours: float | None  # None: as much as you have of it
    licence: str
    what: str
    command: str


COLLECTIONS = (
    Collection(
        "demo",
        1.7,
        "CC-BY, CC-BY-SA, public domain",
        "108 excerpts of game music, 16 kHz mono, with captions; comes with musicldm",
        "musicldm data demo data/demo",
    ),
    Collection(
        "debian-games --licence cc",
        11.0,
        "CC-BY, CC-BY-SA, public domain",
        "whole tracks of free games, from Debian's packages",
        "musicldm data fetch debian-games data/games --licence cc",
    ),
    Collection(
        "debian-games --licence free",
        24.0,
        "the same, and GPL",
        "more of them, those under the GPL included",
        "musicldm data fetch debian-games data/games --licence free",
    ),
    Collection(
        "score-beats",
        None,
        "tunes public domain, grooves GPL-2+",
        "scores and grooves rendered here with exactly known beats, to train a beat tracker on",
        "musicldm data fetch score-beats data/score-beats",
    ),
    *(
        Collection(name, None, licence, f"{what}, if you have it on disk", f"musicldm data convert {name} DIR")
        for name, licence, what in (
            ("fma", "Creative Commons, by track", "Free Music Archive; caption from title, artist, genre, tags"),
            ("mtg-jamendo", "Creative Commons, by track", "MTG-Jamendo; caption from genre, instrument, mood tags"),
            ("musiccaps", "captions CC-BY-SA-4.0, audio from YouTube", "MusicCaps, 10 s clips with written captions"),
            ("song-describer", "Creative Commons, by track", "Song Describer, tracks with written captions"),
            ("gtzan", "unstated, for research", "GTZAN, 30 s excerpts of ten genres"),
            ("esc-50", "CC-BY-NC-3.0", "ESC-50, 5 s environmental sounds; for zero-shot evaluation"),
        )
    ),
)


def demo_folder() -> Path:
    """The embedded music. Raises DataError when the installation lacks it."""
    return packaged(f"data/demo/{ATTRIBUTION}").parent


def copy_demo(destination: Path, progress: Progress = silent) -> list[Path]:
    """Copy the demo music with its attribution and licences, attribution.csv last; equal files are kept.

    Raises DataError, before anything is copied, when another file of the same name is in the way.
    """
    source = demo_folder()
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == ATTRIBUTION)
    todo = []
    for path in files:
        target = destination / path.relative_to(source)
        if not target.exists():
            todo.append((path, target))
        elif not target.is_file() or sha256(target) != sha256(path):
            raise DataError(f"{target} is there already, and is another file.", "Choose another folder.")
    for done, (path, target) in enumerate(todo, start=1):
        with atomic_file(target) as temporary:
            shutil.copyfile(path, temporary)
        progress("copy", done, len(todo))
    return [destination / path.relative_to(source) for path in files]


def check_manifest(
    path: Path, jobs: int | None = None, progress: Progress = silent, *, dask: str | None = None
) -> tuple[int, list[str]]:
    """Decode every file of a manifest: how many there are, and one sentence for each that is not as listed.

    By `jobs` processes or a Dask cluster (`run_each`). Raises DataError when the manifest itself cannot be read.
    """
    collection = read_manifest(path)
    items = [(collection.audio_path(track).absolute(), track) for track in collection.tracks]
    found = dict(run_each(_problems, items, jobs=jobs, dask=dask, label="check", progress=progress))
    return len(items), [problem for index in range(len(items)) for problem in found[index]]


def _problems(path: Path, track: Track) -> list[str]:
    try:
        samples, rate, digest = io.scan(path)
    except DataError as error:
        return [error.message]
    return list(_differences(path, track, samples / rate, rate, digest))


def _differences(path: Path, track: Track, seconds: float, rate: int, digest: str) -> Iterator[str]:
    if rate != track.sample_rate:
        yield f"{path} has {rate} Hz, not the {track.sample_rate} Hz of the manifest."
    elif abs(seconds - track.seconds) > 1e-5:
        yield f"{path} is {seconds:.2f} s long, not the {track.seconds:.2f} s of the manifest."
    elif digest != track.sha256:
        yield f"{path} holds other audio than the manifest says."
    if not track.caption:
        yield f"{path} has no caption."
