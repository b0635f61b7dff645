"""Beat tracking of audio files, many in parallel; what was tracked before is kept."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import params
from stages.audio.walk import find_audio
from stages.beats import backends
from stages.beats.backends import LICENCES, Tracked, backend_digest
from stages.beats.tempo import BEATS, Rhythm
from stages.data.manifest import Manifest
from stages.data.parallel import run_each
from stages.errors import DataError
from stages.progress import Progress, silent
from stages.store import read_json, write_json, write_jsonl, write_text

__all__ = [
    "BEATS",
    "LICENCES",
    "Beats",
    "Tracked",
    "find_beats",
    "track_audio",
    "track_collection",
    "track_file",
    "track_files",
]

CACHE = "tracks"
SUFFIX = ".beats"
NAMED = 20  # files in one message


def track_files(
    paths: Sequence[Path],
    settings: params.Beats,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, Tracked]]:
    """(index, result) of each file as it gets ready, from `jobs` processes (default: every CPU) or a Dask cluster.

    Every process loads the network once, to `device`. Raises DataError after the last file when some are no whole
    audio, naming them; ModelError for a network that cannot be loaded, MissingDependencyError for one whose package
    is missing.
    """
    items = [(path.absolute(), settings.model_dump_json(), device) for path in paths]
    failed: dict[int, DataError] = {}
    for index, found in run_each(_track_file, items, jobs=jobs, dask=dask, label="beats", progress=progress):
        if isinstance(found, DataError):
            failed[index] = found
        else:
            yield index, found
    if failed:
        raise _failure([failed[index] for index in sorted(failed)], len(paths))


def track_file(path: Path, settings: params.Beats, device: str = "cpu") -> Rhythm:
    """The rhythm of one file, in this process. Raises what `track_files` does."""
    found = backends.track(_backend(settings.model_dump_json(), device), path, settings)
    return Rhythm.measure(path.stem, found.bars.round(4), found.seconds, round(found.salience, 4))


@dataclass(frozen=True)
class Beats:
    """Beats and downbeats (N,) in seconds, beats a bar, beats a minute, and how far these can be trusted, 0 to 1."""

    beats: NDArray[np.float64]
    downbeats: NDArray[np.float64]
    metre: int | None
    bpm: float | None
    confidence: float


def find_beats(path: Path) -> Beats:
    """The beats of one file by the default preset's tracker. Raises DataError for a file that is not whole."""
    found = track_file(path, params.preset(params.DEFAULT_PRESET).beats)
    times = np.array(found.beats), np.array(found.downbeats)
    return Beats(*times, found.metre, found.tempo_bpm, found.tempo_confidence)


def track_collection(
    manifest: Manifest,
    settings: params.Params,
    folder: Path,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
    device: str = "cpu",
) -> list[Rhythm]:
    """Track every file of a manifest and write `folder`/beats.jsonl; one Rhythm a track, in the manifest's order.

    Each result is kept in `folder`/tracks under the audio's hash and the tracker's settings, so that an
    interrupted run goes on, and new captions track nothing again. The section `tempo` plays no part in it.
    """
    key = backend_digest(settings.beats)
    kept = [folder / CACHE / f"{track.sha256}-{key}.json" for track in manifest.tracks]
    missing = {file: manifest.audio_path(track) for file, track in zip(kept, manifest.tracks, strict=True)
               if not file.exists()}  # fmt: skip
    targets = list(missing)
    for index, found in track_files(list(missing.values()), settings.beats, jobs, progress, dask=dask, device=device):
        row = {"seconds": found.seconds, "salience": round(found.salience, 4), "bars": found.bars.round(4).tolist()}
        write_json(targets[index], row)
    rhythms = [_rhythm(track.id, file) for track, file in zip(manifest.tracks, kept, strict=True)]
    write_jsonl(folder / BEATS, [asdict(rhythm) for rhythm in rhythms])
    return rhythms


def track_audio(
    source: Path,
    folder: Path,
    settings: params.Beats,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Track a file, or every audio file below a folder; one `<name>.beats` each below `folder`.

    A line is the beat's time in seconds, a tab, and its position in the bar. Raises DataError when there is
    no audio, or two files would share a name.
    """
    paths = [source] if source.is_file() else find_audio(source)
    root = source.parent if source.is_file() else source
    targets: dict[Path, Path] = {}
    for path in paths:
        target = folder / path.relative_to(root).with_suffix(SUFFIX)
        if target in targets:
            raise DataError(f"{targets[target]} and {path} would both become {target}.", "Rename one of them.")
        targets[target] = path
    names = list(targets)
    for index, found in track_files(paths, settings, jobs, progress, dask=dask, device=device):
        write_text(names[index], "".join(f"{time:.3f}\t{position:.0f}\n" for time, position in found.bars))
    return names


def _rhythm(track_id: str, file: Path) -> Rhythm:
    kept = read_json(file, f"Remove {file} and run again: musicldm prep beats")
    bars = np.array(kept["bars"], dtype=np.float64).reshape(-1, 2)
    return Rhythm.measure(track_id, bars, kept["seconds"], kept["salience"])


def _track_file(path: Path, settings: str, device: str) -> Tracked | DataError:
    """What is wrong with one file is a result too: the others are tracked all the same."""
    parsed = params.Beats.model_validate_json(settings)
    backend = _backend(settings, device)
    try:
        return backends.track(backend, path, parsed)
    except DataError as error:
        return error


def _failure(errors: list[DataError], files: int) -> DataError:
    if len(errors) == files == 1:
        return errors[0]
    shown = "\n".join(f"  {error.message}" for error in errors[:NAMED])
    more = f"\n  and {len(errors) - NAMED} more" if len(errors) > NAMED else ""
    return DataError(
        f"{len(errors)} of {files} files could not be tracked:\n{shown}{more}",
        "The others are tracked, and kept. Mend these or take them away, then run the same command again.",
    )


@lru_cache(maxsize=1)
def _backend(settings: str, device: str) -> backends.Backend:
    return backends.load_backend(params.Beats.model_validate_json(settings), device)
