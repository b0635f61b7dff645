"""Bring a collection to one rate, mono, zero mean and one peak, as 16-bit WAV; resumable file by file.

Each WAV carries, in its comment, the hash of the audio it was made from, the settings, and the hash of its own
samples. So a file is finished exactly when it is there with the right comment, and there is no other record.
WAV and not FLAC, which would be a third smaller, since encoding that took a sixth of the whole time, and
`prep shards` need not decode.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO
from unicodedata import normalize

import numpy as np

from stages import params
from stages.audio import io
from stages.data.manifest import MANIFEST, Manifest, Track, write_manifest
from stages.data.parallel import run_each
from stages.errors import DataError, DiskFullError
from stages.progress import Progress, silent
from stages.store import atomic_file, disk_errors, exclusive, require_space

TRACKS = "tracks"
BYTES_PER_SAMPLE = 2
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
    """Write `folder`/tracks/<id>.wav for each track, and last `folder`/manifest.csv with paths to them.

    The mean over the whole track is removed and its peak scaled to `settings.peak`, in flat memory. Files made
    from the same audio with the same settings are kept; those of tracks no longer listed are removed. Raises
    DataError when a source is missing, damaged or altered since the manifest was made (after the other tracks
    are done), and when another process is at work in `folder`; DiskFullError, with the space that is needed,
    before anything is done or as soon as the disk is full. `jobs` processes, or a cluster (`run_each`).
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
        rows = finished | made
        write_manifest(folder / MANIFEST, [rows[track.id] for track in collection.tracks])
    seconds = sum(row.seconds for row in rows.values())
    return Resampled(folder, len(rows), seconds, len(made), len(finished), removed)


def resample_track(source: Path, target: Path, track: Track, settings: params.Audio) -> Track:
    """Make one WAV, whole or not at all, and return its manifest row. Raises DataError.

    The level is known only at the end, so what is resampled waits in memory or, if long, on disk; to decode
    twice would take twice as long.
    """
    with disk_errors(target), SpooledTemporaryFile(SPOOL_BYTES, dir=str(target.parent)) as spool:
        gain, mean, samples = _decode(source, track, settings, spool)
        origin = _origin(track, settings)
        with atomic_file(target) as temporary:
            blocks = ((block - mean) * gain for block in _blocks(spool))
            digest = io.encode(
                temporary, blocks, settings.sample_rate, lambda digest: json.dumps({**origin, "sha256": digest})
            )
    return _row(track, settings, samples, digest)


def _decode(source: Path, track: Track, settings: params.Audio, spool: IO[bytes]) -> tuple[np.float32, np.float32, int]:
    """Write the resampled track to `spool` as float32; returns (gain, mean, samples). Checks the source's hash."""
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
    return np.float32(settings.peak / peak if peak >= _SILENCE else 1.0), np.float32(mean), count


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
    for index, result in run_each(_attempt, items, jobs=jobs, dask=dask, label="resample", progress=progress):
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
    """How much space the WAVs of `tracks` take, but for some bytes of header."""
    return BYTES_PER_SAMPLE * settings.sample_rate * sum(track.seconds for track in tracks)


def _attempt(source: Path, target: Path, track: Track, settings: params.Audio) -> Track | DataError:
    try:
        return resample_track(source, target, track, settings)
    except DataError as error:
        return error


def _finished(track: Track, folder: Path, settings: params.Audio) -> Track | None:
    """The row of a track that was resampled from the same audio with the same settings before."""
    try:
        with io.open_audio(_target(folder, track)) as audio:
            comment, samples = json.loads(audio.comment), audio.frames
    except (DataError, ValueError):
        return None
    digest = comment.get("sha256", "") if isinstance(comment, dict) else ""
    if not (samples and digest and comment == {**_origin(track, settings), "sha256": digest}):
        return None
    return _row(track, settings, samples, digest)


def _row(track: Track, settings: params.Audio, samples: int, digest: str) -> Track:
    rate, path = settings.sample_rate, f"{TRACKS}/{track.id}.wav"
    return replace(track, path=path, seconds=round(samples / rate, 6), sample_rate=rate, sha256=digest)


def _origin(track: Track, settings: params.Audio) -> dict[str, str]:
    """What a track's file is made from, as it says itself."""
    how = f"soxr VHQ {settings.sample_rate} Hz, mono, zero mean, peak {settings.peak!r}"
    return {"source_sha256": track.sha256, "settings": how}


def _target(folder: Path, track: Track) -> Path:
    return folder / TRACKS / f"{track.id}.wav"


def _remove_others(collection: Manifest, folder: Path) -> int:
    """Remove the files of tracks no longer listed."""
    listed = {_target(folder, track).name for track in collection.tracks}
    files = [path for path in (folder / TRACKS).iterdir() if not path.is_dir()]
    others = [path for path in files if normalize("NFC", path.name) not in listed]  # some disks keep names as NFD
    for path in others:
        path.unlink()
    return len(others)
