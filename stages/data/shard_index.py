"""What a folder of shards must hold: its index.json, and the HDF5 files' layout as read back from them."""

import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stages.data.hdf5 import attribute, dataset, member
from stages.errors import DataError
from stages.store import read_json, sha256

SCHEMA = 2
INDEX = "index.json"
AGAIN = "Write the shards again: musicldm prep shards"
DATASETS = {"audio": "i2", "beats": "f8", "downbeats": "f8"}  # of each track, one-dimensional
READ_AT_ONCE = 2**16  # elements of a dataset in one piece


@dataclass(frozen=True)
class TrackInfo:
    """One track as the index lists it. `samples` at the index's sample rate; None where not measured."""

    id: str
    split: str
    samples: int
    title: str
    artist: str
    caption: str
    tempo_bpm: float | None
    mean_bpm: float | None
    tempo_confidence: float
    metre: int | None
    n_downbeats: int
    recording: str = ""  # equal for copies of one recording; empty where there is no copy


@dataclass(frozen=True)
class Shard:
    """One file of the index; `key` is the digest of what went into it, also kept inside the file."""

    file: str
    bytes: int
    sha256: str
    key: str
    tracks: tuple[TrackInfo, ...]


@dataclass(frozen=True)
class Index:
    """index.json, checked for form; the files it names are not touched."""

    params_digest: str
    sample_rate: int
    shards: list[Shard]


def read_index(folder: Path) -> Index:
    """Raises DataError when there is no index, it is malformed, or of another schema than this version's."""
    path = folder / INDEX
    raw = read_json(path, AGAIN)
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise DataError(f"{path} has schema {schema}; this version reads up to {SCHEMA}.", "Update musicldm.")
    try:
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}")
        shards = [
            Shard(**(shard | {"tracks": tuple(TrackInfo(**track) for track in shard["tracks"])}))
            for shard in raw["shards"]
        ]
        strange = [shard.file for shard in shards if not re.fullmatch(r"shard-\d{5,}\.h5", shard.file)]
        if strange:
            raise ValueError(f"it names a file {strange[0]!r}")
        return Index(str(raw["params_digest"]), int(raw["sample_rate"]), shards)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not an index of shards: {error}.", AGAIN) from error


def describe(path: Path, ids: list[str], name: str | None = None) -> Shard:
    """A shard's index row, from the file itself."""
    with h5py.File(path, "r", locking=False) as file:
        tracks = tuple(_track_info(file, track_id) for track_id in ids)
        key = attribute(file, "key", str)
    return Shard(name or path.name, path.stat().st_size, sha256(path), key, tracks)


def _track_info(file: h5py.File, track_id: str) -> TrackInfo:
    group = member(file, track_id)
    tempo_bpm, mean_bpm = (attribute(group, name, float) for name in ("tempo_bpm", "mean_bpm"))
    return TrackInfo(
        id=group.name.lstrip("/"),
        split=attribute(group, "split", str),
        samples=len(track_dataset(file, track_id, "audio")),
        title=attribute(group, "title", str),
        artist=attribute(group, "artist", str),
        caption=attribute(group, "caption", str),
        tempo_bpm=None if np.isnan(tempo_bpm) else tempo_bpm,
        mean_bpm=None if np.isnan(mean_bpm) else mean_bpm,
        tempo_confidence=attribute(group, "tempo_confidence", float),
        metre=attribute(group, "metre", int) or None,
        n_downbeats=len(track_dataset(file, track_id, "downbeats")),
        recording=attribute(group, "recording", str),
    )


def track_dataset(file: h5py.File, track_id: str, name: str) -> h5py.Dataset:
    """One of a track's DATASETS. Raises KeyError and OSError (stages.data.hdf5.dataset)."""
    return dataset(file, f"{track_id}/{name}", DATASETS[name], (None,))


def check_size(folder: Path, shard: Shard) -> None:
    try:
        size = (folder / shard.file).stat().st_size
    except OSError as error:
        raise DataError(f"The shard {folder / shard.file} is missing ({error.strerror}).", AGAIN) from error
    if size != shard.bytes:
        change = "cut short" if size < shard.bytes else "made longer"
        raise DataError(
            f"The shard {folder / shard.file} was {change}: it has {size:,} bytes, its index says {shard.bytes:,}; "
            f"none of its {len(shard.tracks)} tracks can be trusted.",
            AGAIN,
        )


def fault(path: Path, ids: list[str]) -> str | None:
    """The first place of a shard that cannot be read or fails its checksum; None when there is none."""
    place = "its header"
    try:
        with h5py.File(path, "r", locking=False) as file:
            for track_id in ids:
                for name in DATASETS:
                    place = f"track {track_id}, {name}"
                    found = track_dataset(file, track_id, name)
                    step = found.chunks[0] if found.chunks else READ_AT_ONCE
                    for start in range(0, len(found), step):
                        place = f"track {track_id}, {name}, elements {start} to {start + step}"
                        found[start : start + step]
                place = f"track {track_id}, attributes"
                _track_info(file, track_id)
            surplus = set(file) - set(ids)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        return f"{place}: {cause(error)}"
    return f"track {min(surplus)} is not in the index" if surplus else None


def cause(error: Exception) -> str:
    """Why a read failed. The one filter of our files is the checksum, which HDF5's message does not say."""
    return "its bytes do not match their checksum" if "filter returned failure" in str(error) else str(error)
