"""Writing HDF5 shards, in parallel and only those that changed.

A shard is a function of its tracks alone, so writing it again gives the same bytes. Shards that hold what
they should are left as they are, and tracks added to the collection go into new shards at the end.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stages.audio import io
from stages.data.hdf5 import attribute, new_hdf5
from stages.data.manifest import Track, read_manifest
from stages.data.parallel import run_each
from stages.data.shard_index import INDEX, SCHEMA, Shard, describe, fault, read_index
from stages.errors import DataError, DiskFullError
from stages.params import Params
from stages.progress import Progress, silent
from stages.store import atomic_file, exclusive, read_jsonl, require_space, sha256, write_json

BEAT_KEYS = {"beats", "downbeats", "metre", "tempo_bpm", "mean_bpm", "tempo_confidence"}  # of a row of beats.jsonl


@dataclass(frozen=True)
class Source:
    """What one track's group is written from: an audio file, and everything else as plain data."""

    audio: Path
    content: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.content["id"])


def write_shards(
    audio_manifest: Path,
    beats: Path,
    captions: Path,
    out: Path,
    params: Params,
    progress: Progress = silent,
    *,
    jobs: int | None = None,
    dask: str | None = None,
) -> dict[str, int]:
    """Write the shards of a resampled collection into `out`, index.json last; returns counts.

    `audio_manifest` lists mono 16-bit files at audio.sample_rate; `beats` and `captions` are the JSON-lines
    files of `prep beats` and `prep captions` with one row for each track. One process writes one shard,
    `jobs` at a time (default: one for each CPU), or the workers of a Dask cluster.
    Raises DataError for a track without beats, caption or readable audio, and when another process is at work
    in `out`; DiskFullError where the disk has too little space for what is missing. Shards written until then
    are kept and taken up by the next run.
    """
    with exclusive(out):
        return _write_shards(_sources(audio_manifest, beats, captions), out, params, progress, jobs, dask)


def _write_shards(
    sources: list[Source], out: Path, params: Params, progress: Progress, jobs: int | None, dask: str | None
) -> dict[str, int]:
    old = _old_shards(out, params)
    plan = _plan(sources, old, params)
    require_space(out, _needed_bytes(plan, out, params))
    items = [
        (out.absolute() / f"shard-{number:05d}.h5", sources, old[number] if number < len(old) else None, params)
        for number, sources in enumerate(plan)
    ]
    made: dict[int, Shard] = {}
    written = 0
    try:
        for number, (shard, new) in run_each(
            _make_shard, items, jobs=jobs, dask=dask, label="Shards", progress=progress
        ):
            made[number] = shard
            written += new
    except DiskFullError as error:
        needed = _needed_bytes(plan, out, params)
        raise DiskFullError(f"{error.message} What is left needs about {needed / 1e6:.1f} MB.", error.remedy) from error
    shards = [made[number] for number in range(len(plan))]
    index = {"schema": SCHEMA, "params_digest": _params_digest(params), "sample_rate": params.audio.sample_rate}
    write_json(out / INDEX, index | {"shards": [asdict(shard) for shard in shards]})
    for stale in set(out.glob("shard-*.h5")) - {out / shard.file for shard in shards}:
        stale.unlink()
    tracks = [track for shard in shards for track in shard.tracks]
    return {
        "shards": len(shards),
        "written": written,
        "tracks": len(tracks),
        "seconds": sum(track.samples for track in tracks) // params.audio.sample_rate,
        "bytes": sum(shard.bytes for shard in shards),
    }


def _needed_bytes(plan: list[list[Source]], out: Path, params: Params) -> float:
    """About how much space the shards take that are not there yet: 16-bit samples, uncompressed."""
    missing = [sources for number, sources in enumerate(plan) if not (out / f"shard-{number:05d}.h5").exists()]
    seconds = sum(source.content["seconds"] for sources in missing for source in sources)
    return float(2 * params.audio.sample_rate * seconds)


def _params_digest(params: Params) -> str:
    return params.digest("audio", "shards")


def _sources(audio_manifest: Path, beats: Path, captions: Path) -> list[Source]:
    manifest = read_manifest(audio_manifest)
    beat_rows = {row["id"]: row for row in read_jsonl(beats, "Track the beats: musicldm prep beats")}
    caption_rows = {row["id"]: row for row in read_jsonl(captions, "Write the captions: musicldm prep captions")}
    for rows, keys, file, command in (
        (beat_rows, BEAT_KEYS, beats, "beats"),
        (caption_rows, {"caption"}, captions, "captions"),
    ):
        missing = [track.id for track in manifest.tracks if not keys <= rows.get(track.id, {}).keys()]
        if missing:
            raise DataError(
                f"{file} has no row for track {missing[0]}, or an older version's ({len(missing)} are missing).",
                f"Make them: musicldm prep {command}",
            )
    return [
        Source(
            manifest.audio_path(track).absolute(),
            _content(track, beat_rows[track.id], caption_rows[track.id]["caption"]),
        )
        for track in manifest.tracks
    ]


def _content(track: Track, beats: dict[str, Any], caption: str) -> dict[str, Any]:
    names = ("id", "split", "title", "artist", "licence", "recording", "seconds", "sha256")
    own = {name: getattr(track, name) for name in names} | {"caption": caption}
    return own | {key: beats[key] for key in sorted(BEAT_KEYS)}


def _old_shards(out: Path, params: Params) -> list[Shard]:
    """The shards that are there, if they are of these params; an index that cannot be read counts as none."""
    try:
        index = read_index(out)
    except DataError:
        return []
    return index.shards if index.params_digest == _params_digest(params) else []


def _plan(sources: list[Source], old: list[Shard], params: Params) -> list[list[Source]]:
    """Which tracks go into which shard: as they are now, new ones behind; all anew once a track is gone."""
    by_id = {source.id: source for source in sources}
    kept = [[track.id for track in shard.tracks] for shard in old]
    if any(name not in by_id for names in kept for name in names):
        kept = []
    plan = [[by_id.pop(name) for name in names] for names in kept]
    target_seconds = params.shards.target_megabytes * 1e6 / 2 / params.audio.sample_rate
    filled = target_seconds
    for source in by_id.values():
        seconds = source.content["seconds"]
        if filled + seconds > target_seconds:
            plan.append([])
            filled = 0.0
        plan[-1].append(source)
        filled += seconds
    return plan


def _make_shard(path: Path, sources: list[Source], old: Shard | None, params: Params) -> tuple[Shard, bool]:
    """The index row of a shard, and whether it had to be written."""
    made_of = [SCHEMA, params.audio.sample_rate, params.audio.clip_samples, [source.content for source in sources]]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    ids = [source.id for source in sources]
    if _holds(path, key):
        if old is not None and old.key == key and old.sha256 == sha256(path):
            return old, False
        if old is None and fault(path, ids) is None:  # of a run that was stopped before its index
            return describe(path, ids), False
    with atomic_file(path) as temporary:
        with new_hdf5(temporary) as file:
            file.attrs["key"] = key
            for source in sources:
                _write_track(file, source, params)
        shard = describe(temporary, ids, path.name)
    return shard, True


def _holds(path: Path, key: str) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return attribute(file, "key", str) == key
    except (OSError, KeyError):
        return False


def _write_track(file: h5py.File, source: Source, params: Params) -> None:
    content = source.content
    samples = _read_audio(source.audio, params.audio.sample_rate, content["sha256"])
    group = file.create_group(content["id"])
    _dataset(group, "audio", samples, params.audio.clip_samples)
    for name in ("beats", "downbeats"):
        _dataset(group, name, np.asarray(content[name], dtype=np.float64), len(content[name]))
    for name in ("caption", "licence", "title", "artist", "recording", "split", "tempo_confidence"):
        group.attrs[name] = content[name]
    for name in ("tempo_bpm", "mean_bpm"):
        group.attrs[name] = np.nan if content[name] is None else content[name]
    group.attrs["metre"] = content["metre"] or 0


def _dataset(group: h5py.Group, name: str, data: NDArray[Any], chunk: int) -> None:
    """No timestamps, so that equal data gives equal bytes; HDF5 cannot chunk an empty dataset."""
    chunked = {"chunks": (min(chunk, len(data)),), "fletcher32": True} if len(data) else {}
    group.create_dataset(name, data=data, track_times=False, **chunked)


def _read_audio(path: Path, sample_rate: int, digest: str) -> NDArray[np.int16]:
    again = "Make it again: musicldm prep resample"
    with io.open_audio(path) as audio:
        if audio.sample_rate != sample_rate:
            raise DataError(f"{path} is at {audio.sample_rate} Hz, not {sample_rate} Hz.", again)
        samples = np.concatenate(list(audio.blocks()))
    found = io.SampleHash(sample_rate)
    found.update(samples)
    if found.hexdigest() != digest:
        raise DataError(f"{path} was altered since its manifest was made.", again)
    return io.quantise(samples)
