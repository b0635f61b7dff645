"""Latents on disk: what the diffusion model trains on, made once, one HDF5 part for each shard.

Per window: the VAE's posterior (mean and log-variance, fp16), CLAP's embeddings of the clip and of its
track's caption, its track and first sample, and whether it is of the even grid, starts on a downbeat, or both.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stages.audio.mel import clip_mel
from stages.beats.align import clip_starts
from stages.clap.model import Clap, load_clap
from stages.data.dataset import Draw, normalise
from stages.data.hdf5 import OpenHandles, attribute, dataset, new_hdf5, open_keyed
from stages.data.shard_index import read_index
from stages.data.shards import ShardReader, TrackInfo
from stages.errors import DataError
from stages.params import Params
from stages.progress import Progress, silent
from stages.store import atomic_file, exclusive, model_digest, read_json, sha256, write_json
from stages.vae.model import Vae, load_vae

SCHEMA = 2
INDEX = "index.json"
WINDOWS = "windows.npy"  # of all parts, to be read at once
SPLITS = ("train", "valid")  # nobody may train on the test split, by mixing neither
AGAIN = "Make the latents again: musicldm prep latents"
PART = re.compile(r"latents-\d{5,}\.h5")

# One clip: its track (position in the index of shards), its first sample (a WAV holds fewer than 2**31), and whether
# that is on the grid, on a downbeat, or both. Ten bytes, since there are millions.
WINDOW = np.dtype([("track", "i4"), ("start", "i4"), ("on_grid", "?"), ("on_downbeat", "?")])
Windows = np.recarray  # (N,) of WINDOW, by track and then start


def choose_windows(track: int, info: TrackInfo, downbeats: NDArray[np.float64], params: Params) -> Windows:
    """A track's windows in time order: those of a grid, and evenly spread downbeats with a full clip after them.

    `downbeats` in seconds. A track shorter than a clip gives one window, to be padded with silence.
    """
    clip, rate = params.audio.clip_samples, params.audio.sample_rate
    starts = clip_starts(downbeats, info.samples, rate, clip)
    count = min(len(starts), params.latents.downbeats_per_track)
    beats = starts[np.linspace(0, len(starts) - 1, count).round().astype(int)] if count else starts[:0]
    grid = np.arange(0, max(1, info.samples - clip + 1), round(params.latents.grid_seconds * rate))
    both = np.union1d(grid, beats)
    columns = np.full(len(both), track), both, np.isin(both, grid), np.isin(both, beats)
    return np.rec.fromarrays(columns, dtype=WINDOW)


def _items(latent_shape: Sequence[int], width: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of what a part holds for each window."""
    latent, vector = (tuple(latent_shape), "f2"), ((width,), "f4")
    return {"mean": latent, "logvar": latent, "audio": vector, "text": vector}


def joined(windows: Sequence[NDArray[Any]]) -> Windows:
    return np.concatenate([np.empty(0, WINDOW), *windows], dtype=WINDOW).view(np.recarray)


def read_clip(shards: ShardReader, track: int, start: int, params: Params) -> NDArray[np.float32]:
    """One normalised clip (clip_samples,), padded with silence behind a short track's end."""
    stop = min(start + params.audio.clip_samples, shards.tracks[track].samples)
    clip = normalise(shards.audio(track, start, stop), params.audio.peak)
    return np.pad(clip, (0, params.audio.clip_samples - len(clip)))


def prepare(
    params: Params, shards: Path, vae: Path, clap: Path, out: Path, progress: Progress = silent
) -> dict[str, int]:
    """Encode every window of the train and valid splits into `out`, index.json last; returns counts.

    Each part is written whole or not at all, and a part that was made of the same shard by the same models
    is kept, so a run that was stopped goes on. Raises DataError and ModelError, and DataError
    while another process makes them.
    """
    with exclusive(out):
        return _prepare(params, shards, vae, clap, out, progress)


def _prepare(params: Params, shards: Path, vae: Path, clap: Path, out: Path, progress: Progress) -> dict[str, int]:
    reader, index = ShardReader(shards), read_index(shards)
    made_by = {"vae": model_digest(vae), "clap": model_digest(clap), "params_digest": params.digest("audio", "latents")}
    encoder: _Encoder | None = None
    rows: list[dict[str, Any]] = []
    windows: list[NDArray[Any]] = []
    written = first = 0
    for number, shard in enumerate(index.shards):
        key = hashlib.sha256(json.dumps([SCHEMA, shard.key, made_by], sort_keys=True).encode()).hexdigest()
        path = out / f"latents-{number:05d}.h5"
        if not _holds(path, key):
            encoder = encoder or _Encoder(load_vae(vae), load_clap(clap), params)
            tracks = range(first, first + len(shard.tracks))
            _write_part(path, key, reader, tracks, encoder, progress, f"Latents {number + 1}/{len(index.shards)}")
            written += 1
        with h5py.File(path, "r", locking=False) as file:
            found, shape, width = _windows(file), file["mean"].shape[1:], file["audio"].shape[1]
        found["track"] += first
        windows.append(found)
        rows.append({"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), "key": key,
                     "windows": len(found)})  # fmt: skip
        first += len(shard.tracks)
    for stale in set(out.glob("latents-*.h5")) - {out / row["file"] for row in rows}:
        stale.unlink()
    with atomic_file(out / WINDOWS) as temporary:
        np.save(temporary, joined(windows), allow_pickle=False)
    head = {"schema": SCHEMA, "shards": reader.digest, **made_by, "scale": load_vae(vae).scale,
            "windows_sha256": sha256(out / WINDOWS)}  # fmt: skip
    write_json(out / INDEX, head | {"latent_shape": shape, "condition_dim": width, "parts": rows})
    total = sum(row["windows"] for row in rows)
    return {"parts": len(rows), "written": written, "windows": total, "bytes": sum(row["bytes"] for row in rows)}


class _Encoder:
    """VAE and CLAP on the device there is, and the clip to them."""

    def __init__(self, vae: Vae, clap: Clap, params: Params) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae, self.clap, self.params = vae.to(device), clap.to(device), params
        self.mel, self.device = clip_mel(vae.params).to(device), device
        self.latent_shape = vae.params.model_copy(update={"audio": params.audio}).latent_shape
        self.width = clap.params.clap.projection_dim

    @torch.no_grad()
    def __call__(self, clips: NDArray[np.float32], captions: list[str]) -> dict[str, NDArray[Any]]:
        audio = torch.from_numpy(clips).to(self.device)
        mean, logvar = self.vae.encode(self.mel(audio))
        unique, place = np.unique(captions, return_inverse=True)  # windows of one track share their caption
        return {
            "mean": mean.half().cpu().numpy(),
            "logvar": logvar.half().cpu().numpy(),
            "audio": self.clap.embed_audio(audio, self.params.audio.sample_rate).cpu().numpy(),
            "text": self.clap.embed_text(unique.tolist()).cpu().numpy()[place],
        }


def _write_part(
    path: Path, key: str, shards: ShardReader, tracks: range, encoder: _Encoder, progress: Progress, label: str
) -> None:
    params = encoder.params
    windows = joined([
        choose_windows(track, shards.tracks[track], shards.downbeats(track), params)
        for track in tracks
        if shards.tracks[track].split in SPLITS
    ])  # fmt: skip
    shape, width, size = encoder.latent_shape, encoder.width, params.latents.batch_size
    with atomic_file(path) as temporary, new_hdf5(temporary) as file:
        for name, (item, dtype) in _items(shape, width).items():
            chunks = (1, *item) if len(windows) else None
            file.create_dataset(name, (len(windows), *item), dtype, chunks=chunks, fletcher32=len(windows) > 0)
        own = windows.copy()
        own.track -= tracks.start  # a part is of its shard alone, wherever that stands in the index
        file["windows"] = own
        file.attrs["key"] = key
        for begin in range(0, len(windows), size):
            progress(label, begin, len(windows))
            batch = windows[begin : begin + size]
            clips = np.stack([read_clip(shards, window.track, window.start, params) for window in batch])
            captions = [shards.tracks[window.track].caption for window in batch]
            for name, values in encoder(clips, captions).items():
                file[name][begin : begin + size] = values
        progress(label, len(windows), len(windows))


def _holds(path: Path, key: str) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return attribute(file, "key", str) == key
    except (OSError, KeyError):
        return False


def _windows(part: h5py.File) -> NDArray[Any]:
    return np.asarray(dataset(part, "windows", WINDOW, (None,))[:])


class LatentReader:
    """Random access to the windows of a latents folder; may be pickled or forked.

    `windows` lists them (WINDOW); `scale` multiplies VAE latents to about unit variance. Sizes are compared with the
    index when it is made and checksums when data is read; any difference is a DataError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_json(folder / INDEX, AGAIN)
        if not isinstance(self.index, dict) or self.index.get("schema") != SCHEMA:
            raise DataError(f"{folder / INDEX} is not an index of latents that this version reads.", AGAIN)
        self._items: OpenHandles[dict[str, h5py.Dataset]] = OpenHandles()  # of each part
        try:
            self.scale = float(self.index["scale"])
            self._parts = self.index["parts"]
            self._first = np.cumsum([0, *(part["windows"] for part in self._parts)])  # window of each part
            self.windows = self._listed()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / INDEX} lacks or mistypes a value: {error}.", AGAIN) from error

    def __len__(self) -> int:
        return len(self.windows)

    def posterior(self, i: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of window i, unscaled, each (C, T / P, F / P) float32."""
        mean, logvar = (torch.from_numpy(self._read(name, i).astype(np.float32)) for name in ("mean", "logvar"))
        return mean, logvar

    def embedding(self, i: int, kind: str) -> Tensor:
        """CLAP's (D,) embedding of window i, `audio` or `text`."""
        return torch.from_numpy(self._read(kind, i))

    def check(self, shards: ShardReader, vae: Path, clap: Path, params: Params) -> None:
        """Raises DataError when the latents were made of other shards, by other models or with other params."""
        now = {"shards": shards.digest, "vae": model_digest(vae), "clap": model_digest(clap),
               "params_digest": params.digest("audio", "latents"), "latent_shape": list(params.latent_shape),
               "condition_dim": params.clap.projection_dim}  # fmt: skip
        for name, digest in now.items():
            if self.index[name] != digest:
                raise DataError(
                    f"{self.folder} is out of date: its {name} was {self.index[name]}, now {digest}.", AGAIN
                )

    def _listed(self) -> Windows:
        for part in self._parts:
            path = self.folder / part["file"]
            if not PART.fullmatch(part["file"]):
                raise ValueError(f"it names a file {part['file']!r}")
            if not path.is_file() or path.stat().st_size != part["bytes"]:
                raise DataError(f"{path} is missing or was altered.", AGAIN)
        path = self.folder / WINDOWS
        with self._reading(path):
            if sha256(path) != self.index["windows_sha256"]:
                raise OSError("it is not the one that the index names")
            windows = np.load(path, allow_pickle=False)
            if windows.dtype != WINDOW or windows.shape != (self._first[-1],):
                raise OSError("it does not list the windows of the parts")
            return windows.view(np.recarray)

    def _read(self, name: str, i: int) -> NDArray[Any]:
        number = int(np.searchsorted(self._first, i, side="right")) - 1
        part = self._parts[number]
        with self._reading(self.folder / part["file"]):
            items = self._items.get(part["file"], lambda: self._opened(part))
            return np.asarray(items[name][i - self._first[number]])

    def _opened(self, part: dict[str, Any]) -> dict[str, h5py.Dataset]:
        file = open_keyed(self.folder / part["file"], part["key"])
        items = _items(self.index["latent_shape"], self.index["condition_dim"])
        return {name: dataset(file, name, dtype, (part["windows"], *item)) for name, (item, dtype) in items.items()}

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}.", AGAIN) from error


class LatentDataset(Dataset):
    """The windows of one split's grid, as (mean, logvar, condition, track).

    One item a window; or, `by_track`, one a track, whose window the draw seed chooses, as the paper's loader draws a
    track and then a clip of it. Windows that are on a downbeat alone are for mixing.
    """

    def __init__(
        self, latents: LatentReader, tracks: list[TrackInfo], split: str, condition: str, by_track: bool = False
    ) -> None:
        self.latents, self.condition = latents, condition
        windows, chosen = latents.windows, np.array([track.split == split for track in tracks], dtype=bool)
        self.rows = np.flatnonzero(windows.on_grid & chosen[windows.track])
        new = np.diff(windows.track[self.rows], prepend=-1) > 0 if by_track else np.ones(len(self.rows), dtype=bool)
        self._first = np.append(np.flatnonzero(new), len(self.rows))  # row of each item

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, seed = draw
        first, stop = self._first[index : index + 2].tolist()
        row = int(self.rows[first + seed % (stop - first)])
        mean, logvar = self.latents.posterior(row)
        return {
            "mean": mean,
            "logvar": logvar,
            "condition": self.latents.embedding(row, self.condition),
            "track": int(self.latents.windows[row].track),
        }


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor, scale: float) -> Tensor:
    """z = scale * (mean + exp(logvar / 2) * noise), all of one shape."""
    return scale * (mean + (0.5 * logvar).exp() * noise)
