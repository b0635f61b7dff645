"""HDF5 shards: audio, beats and captions of a collection, read only through a checksummed index."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from stages.data.hdf5 import OpenHandles, open_keyed
from stages.data.parallel import run_each
from stages.data.shard_index import (
    AGAIN,
    INDEX,
    Shard,
    TrackInfo,
    cause,
    check_size,
    describe,
    fault,
    read_index,
    track_dataset,
)
from stages.data.shard_writer import write_shards
from stages.errors import DataError
from stages.progress import Progress, silent
from stages.store import sha256

__all__ = ["ShardReader", "TrackInfo", "verify", "write_shards"]


class ShardReader:
    """Random access to the tracks of a folder of shards.

    Sizes are compared with the index when it is made, each file's key when it is first opened, and each
    chunk's checksum when it is read; any difference is a DataError. Files are opened once per process, so a
    reader may be pickled or forked into DataLoader workers; datasets stay open, the latest KEPT_OPEN of
    them, without a cache of chunks. `verify` hashes everything.
    """

    def __init__(self, folder: Path) -> None:
        index = read_index(folder)
        self.folder, self.sample_rate, self.params_digest = folder, index.sample_rate, index.params_digest
        self.digest = sha256(folder / INDEX)[:12]
        self.tracks = [track for shard in index.shards for track in shard.tracks]
        self._shards = [shard for shard in index.shards for _ in shard.tracks]  # one for each track
        self._files: OpenHandles[h5py.File] = OpenHandles()
        self._datasets: OpenHandles[h5py.Dataset] = OpenHandles()
        for shard in index.shards:
            check_size(folder, shard)

    def audio(self, i: int, start: int, stop: int) -> NDArray[np.int16]:
        """Samples start .. stop of track i, int16 (stop - start,). Raises IndexError beyond the track."""
        if not 0 <= start <= stop <= self.tracks[i].samples:
            raise IndexError(f"{start} .. {stop} is not within the {self.tracks[i].samples} samples of track {i}")
        with self._reading(i):
            return np.asarray(self._dataset(i, "audio")[start:stop])

    def beats(self, i: int) -> NDArray[np.float64]:
        """Beat times of track i in seconds."""
        with self._reading(i):
            return np.asarray(self._dataset(i, "beats")[:])

    def downbeats(self, i: int) -> NDArray[np.float64]:
        """Downbeat times of track i in seconds."""
        with self._reading(i):
            return np.asarray(self._dataset(i, "downbeats")[:])

    def _dataset(self, i: int, name: str) -> h5py.Dataset:
        return self._datasets.get(f"{self.tracks[i].id}/{name}", lambda: self._open(i, name))

    def _open(self, i: int, name: str) -> h5py.Dataset:
        track, shard = self.tracks[i], self._shards[i]
        file = self._files.get(shard.file, lambda: open_keyed(self.folder / shard.file, shard.key))
        found = track_dataset(file, track.id, name)
        wanted = {"audio": track.samples, "downbeats": track.n_downbeats}.get(name, len(found))
        if len(found) != wanted:
            raise OSError(f"{name} has {len(found)} elements, the index says {wanted}")
        return found

    @contextmanager
    def _reading(self, i: int) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, RuntimeError) as error:
            where = self.folder / self._shards[i].file
            raise DataError(
                f"{where}, track {self.tracks[i].id}: {cause(error)}.",
                f"Find what differs: musicldm prep verify. {AGAIN}",
            ) from error


def verify(
    folder: Path, progress: Progress = silent, *, jobs: int | None = None, dask: str | None = None
) -> dict[str, int]:
    """Read every byte of the shards again: sizes, SHA-256, chunk checksums, rows of the index. Returns counts.

    By `jobs` processes, a shard each, or a Dask cluster (`run_each`). Raises DataError for the first difference,
    naming the shard, the track and the cause.
    """
    shards = read_index(folder).shards
    for shard in shards:
        check_size(folder, shard)
    items = [(folder.absolute() / shard.file, shard) for shard in shards]
    found = dict(run_each(_difference, items, jobs=jobs, dask=dask, label="Verify", progress=progress))
    for number, shard in enumerate(shards):
        if found[number] is not None:
            raise DataError(f"The shard {folder / shard.file} was altered: {found[number]}.", AGAIN)
    return {
        "shards": len(shards),
        "tracks": sum(len(shard.tracks) for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
    }


def _difference(path: Path, shard: Shard) -> str | None:
    ids = [track.id for track in shard.tracks]
    problem = fault(path, ids)
    if problem is not None:
        return problem
    found = describe(path, ids)
    if found.sha256 != shard.sha256:
        return "its SHA-256 is not the index's, though all audio and beats can be read"
    for mine, listed in zip(found.tracks, shard.tracks, strict=True):
        if mine != listed:
            return f"track {mine.id}: its row in the index is another"
    return None if found.key == shard.key else "its key is not the index's"
