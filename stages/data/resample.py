"""Bring a collection to one rate, mono, zero mean and one peak, as 16-bit FLAC; resumable file by file.

Each FLAC carries, as its tags, the hash of the audio it was made from, the settings, and the hash of its own
samples. So a file is finished exactly when it is there with the right tags, and there is no other record.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

import mutagen
import numpy as np
from mutagen.flac import FLAC

from stages import params
from stages.audio import io
from stages.data.manifest import MANIFEST, Manifest, Track, write_manifest
from stages.data.parallel import run_each
from stages.errors import DataError, DiskFullError
from stages.progress import Progress, silent
from stages.store import atomic_file, disk_errors, exclusive, require_space

TRACKS = "tracks"
FLAC_BYTES_PER_SAMPLE = 1.1  # of 16-bit mono music at 16 kHz and peak 0.5; the demo music takes 1.07
SPOOL_BYTES = 1 << 24  # of float32 samples that wait in memory: four minutes at 16 kHz
_SILENCE = 1 / io.FULL_SCALE  # a peak below one 16-bit step is not scaled up


@dataclass(frozen=True)
class Resampled:
    """What `resample_collection` did."""

    folder: Path
    tracks: int
    seconds: float
    written: int
    kept: int
    removed: int


def resample_collection(
    collection: Manifest,
    folder: Path,
    settings: params.Audio,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
) -> Resampled:
    """Write `folder`/tracks/<id>.flac for each track, and last `folder`/manifest.csv with paths to them.

    The mean over the whole track is removed and its peak scaled to `settings.peak`, in flat memory. Files made
    from the same audio with the same settings are kept; those of tracks no longer listed are removed. Raises
    DataError when a source is missing, damaged or altered since the manifest was made (after the other tracks
    are done), and when another process is at work in `folder`; DiskFullError, with the space that is needed,
    before anything is done or as soon as the disk is full. `jobs` threads, or a cluster (`run_each`).
    """
    with disk_errors(folder), exclusive(folder):
        (folder / TRACKS).mkdir(parents=True, exist_ok=True)
        finished = {track.id: row for track in collection.tracks if (row := _finished(track, folder, settings))}
        todo = [track for track in collection.tracks if track.id not in finished]
        removed = _remove_others(collection, folder)
        if todo or removed:
            (folder / MANIFEST).unlink(missing_ok=True)  # it lists what is about to change
        require_space(folder, _needed_bytes(todo, settings))
        made = _resample_all(collection, todo, folder, settings, jobs, dask, progress)
        _remove_others(collection, folder)  # what a worker that died has left
        rows = finished | made
        write_manifest(folder / MANIFEST, [rows[track.id] for track in collection.tracks])
    seconds = sum(row.seconds for row in rows.values())
    return Resampled(folder, len(rows), seconds, len(made), len(finished), removed)


def resample_track(source: Path, target: Path, track: Track, settings: params.Audio) -> Track:
    """Make one FLAC, whole or not at all, and return its manifest row. Raises DataError.

    The level is known only at the end, so what is resampled waits in memory or, if long, on disk; to decode
    twice would take twice as long.
    """
    with disk_errors(target), SpooledTemporaryFile(SPOOL_BYTES, dir=str(target.parent)) as spool:
        gain, mean = _decode(source, track, settings, spool)
        with atomic_file(target) as temporary:
            blocks = ((block - mean) * gain for block in _blocks(spool))
            digest = io.encode(temporary, blocks, settings.sample_rate)
            file = FLAC(temporary)
            file.update({"source_sha256": track.sha256, "settings": _describe(settings), "sha256": digest})
            _save(file)
            return _row(track, file)


def _save(file: FLAC) -> None:
    try:
        file.save()
    except mutagen.MutagenError as error:
        if error.args and isinstance(error.args[0], OSError):
            raise error.args[0] from error  # the disk's error, which mutagen wraps
        raise


def _decode(source: Path, track: Track, settings: params.Audio, spool: IO[bytes]) -> tuple[np.float32, np.float32]:
    """Write the resampled track to `spool` as float32; returns (gain, mean). Checks the source's hash."""
    total, count, low, high = 0.0, 0, np.inf, -np.inf
    digest = io.SampleHash(track.sample_rate)
    with io.open_audio(source) as audio:
        hashed = _hashed(audio.blocks(), digest)
        for block in io.resample(hashed, audio.sample_rate, settings.sample_rate):
            if len(block):
                low, high = min(low, float(block.min())), max(high, float(block.max()))
                total += float(block.sum(dtype=np.float64))
                count += len(block)
                spool.write(np.ascontiguousarray(block).data)
    if digest.hexdigest() != track.sha256:
        raise DataError(f"{source} was altered since the manifest was made.", "Run: musicldm prep manifest")
    if count == 0:
        raise DataError(f"{source} is too short to be resampled.")
    mean = total / count
    peak = max(high - mean, mean - low)
    return np.float32(settings.peak / peak if peak >= _SILENCE else 1.0), np.float32(mean)


def _blocks(spool: IO[bytes]) -> Iterator[io.Samples]:
    spool.seek(0)
    while data := spool.read(4 * io.BLOCK_SAMPLES):
        yield np.frombuffer(data, np.float32)


def _hashed(blocks: Iterator[io.Samples], digest: io.SampleHash) -> Iterator[io.Samples]:
    for block in blocks:
        digest.update(block)
        yield block


def _resample_all(
    collection: Manifest,
    todo: list[Track],
    folder: Path,
    settings: params.Audio,
    jobs: int | None,
    dask: str | None,
    progress: Progress,
) -> dict[str, Track]:
    made: dict[str, Track] = {}
    failed: dict[int, DataError] = {}
    root, target = collection.root.absolute(), folder.absolute()
    items = [(root / track.path, _target(target, track), track, settings) for track in todo]
    for index, result in run_each(
        _attempt, items, jobs=jobs, threads=True, dask=dask, label="resample", progress=progress
    ):
        if isinstance(result, DiskFullError):
            needed = _needed_bytes([track for track in todo if track.id not in made], settings)
            raise DiskFullError(f"{result.message} What is left needs about {needed / 1e6:.1f} MB.", result.remedy)
        if isinstance(result, DataError):
            failed[index] = result
        else:
            made[result.id] = result
    if failed:
        first = failed[min(failed)]
        more = f" ({len(failed) - 1} more failed as well)" if len(failed) > 1 else ""
        raise DataError(first.message + more, first.remedy or "Run again: musicldm prep manifest")
    return made


def _needed_bytes(tracks: list[Track], settings: params.Audio) -> float:
    """About how much space the FLACs of `tracks` take."""
    return FLAC_BYTES_PER_SAMPLE * settings.sample_rate * sum(track.seconds for track in tracks)


def _attempt(source: Path, target: Path, track: Track, settings: params.Audio) -> Track | DataError:
    try:
        return resample_track(source, target, track, settings)
    except DataError as error:
        return error


def _finished(track: Track, folder: Path, settings: params.Audio) -> Track | None:
    """The row of a track that was resampled from the same audio with the same settings before."""
    try:
        file = FLAC(_target(folder, track))
    except (mutagen.MutagenError, OSError):
        return None
    same = file.get("source_sha256") == [track.sha256] and file.get("settings") == [_describe(settings)]
    return _row(track, file) if same and "sha256" in file else None


def _row(track: Track, file: FLAC) -> Track:
    rate, samples = file.info.sample_rate, file.info.total_samples
    path = f"{TRACKS}/{track.id}.flac"
    return replace(track, path=path, seconds=round(samples / rate, 6), sample_rate=rate, sha256=file["sha256"][0])


def _describe(settings: params.Audio) -> str:
    return f"soxr VHQ {settings.sample_rate} Hz, mono, zero mean, peak {settings.peak!r}"


def _target(folder: Path, track: Track) -> Path:
    return folder / TRACKS / f"{track.id}.flac"


def _remove_others(collection: Manifest, folder: Path) -> int:
    """Remove the files of tracks no longer listed, and what an interrupted run left."""
    listed = {_target(folder, track) for track in collection.tracks}
    others = [path for path in (folder / TRACKS).iterdir() if path not in listed and not path.is_dir()]
    for path in others:
        path.unlink()
    return len(others)
