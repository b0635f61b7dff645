"""Clips of folders and shards through a fixed network: what all three evaluations measure.

Every clip is mono at the model's rate, one window of the clip length (longer audio is cut into such windows
from its start, its tail dropped; shorter audio is padded with silence), mean removed, scaled to one peak.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io as audio_io
from stages.audio.walk import find_audio
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.evaluate.backbones import Backbone
from stages.evaluate.cache import EmbeddingCache, Entry, key
from stages.evaluate.search import nearest
from stages.params import Audio
from stages.progress import Progress, silent

T = TypeVar("T")
BATCH = 4
SILENCE_PEAK = 1e-4  # -80 dB of full scale
SHORTEST_SECONDS = 0.5


@dataclass(frozen=True)
class Segment:
    """One window: the name of its file or track, where it starts, and its samples (L,) float32."""

    name: str
    start_seconds: float
    samples: NDArray[np.float32]
    source_rate: int


@dataclass(frozen=True)
class Embedded:
    """N windows: names, starts in seconds, vectors (N, D) float64, tag logits (N, K) or None."""

    names: list[str]
    starts: NDArray[np.float64]
    vectors: NDArray[np.float64]
    logits: NDArray[np.float64] | None
    backbone: str
    preprocessing: str
    rates: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_tracks(self) -> int:
        return len(set(self.names))

    def place(self, row: int) -> tuple[str, float]:
        """Name and start in seconds of a row."""
        return self.names[row], float(self.starts[row])

    def search(self, queries: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The largest dot product (Q,) of each query (Q, D) with a row, and the row."""
        return nearest(queries, self.vectors)


def windows(samples: int, size: int) -> list[int]:
    """Starts of the whole windows in a track; a track shorter than one has a single, padded one."""
    return list(range(0, samples - size + 1, size)) or [0]


def folder_files(folder: Path) -> list[Path]:
    """The audio files of a folder, in name order. Raises DataError when there are none or two share a stem."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Make clips with: musicldm generate --prompts FILE")
    files = find_audio(folder, deep=False)
    stems = [path.stem for path in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise DataError(f"{folder} holds two files called {twice}; clips are told apart by name.", "Remove one.")
    return files


def folder_segments(files: Iterable[Path], audio: Audio) -> Iterator[Segment]:
    """Windows of audio files, resampled to the model's rate. Raises DataError for files that are not whole."""
    for path in files:
        rate = audio_io.probe(path).sample_rate
        samples, _ = audio_io.read(path, audio.sample_rate)
        if len(samples) < SHORTEST_SECONDS * audio.sample_rate:
            raise DataError(f"{path} is shorter than {SHORTEST_SECONDS} s.", "Remove it from the folder.")
        for start in windows(len(samples), audio.clip_samples):
            part = samples[start : start + audio.clip_samples]
            yield Segment(path.stem, start / audio.sample_rate, part, rate)


def shard_segments(reader: ShardReader, split: str, audio: Audio, most: int | None = None) -> Iterator[Segment]:
    """Windows of a split's tracks; with `most` at most that many, spread evenly over all music of the split.

    Raises DataError when the shards are of another rate.
    """
    if reader.sample_rate != audio.sample_rate:
        raise DataError(
            f"The shards are at {reader.sample_rate} Hz, audio.sample_rate is {audio.sample_rate}.",
            "Write the shards again: musicldm prep shards",
        )
    places = [
        (index, start)
        for index, track in enumerate(reader.tracks)
        for start in (windows(track.samples, audio.clip_samples) if track.split == split else ())
    ]
    for index, start in evenly(places, most):
        track = reader.tracks[index]
        stop = min(start + audio.clip_samples, track.samples)
        part = reader.audio(index, start, stop).astype(np.float32) / np.float32(audio_io.FULL_SCALE)
        yield Segment(track.id, start / reader.sample_rate, part, reader.sample_rate)


def evenly(items: Sequence[T], most: int | None) -> list[T]:
    """All items, or `most` of them at equal distances."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def normalised(samples: NDArray[np.float32], audio: Audio, keeps_level: bool = False) -> Tensor:
    """(clip_samples,): mean removed, peak at audio.peak unless the level is kept, padded with zeros; what is
    silent is zeros."""
    centred = torch.from_numpy(np.ascontiguousarray(samples))
    centred = centred - centred.mean()
    peak = centred.abs().max()
    if peak <= SILENCE_PEAK:
        centred = torch.zeros_like(centred)
    elif not keeps_level:
        centred = centred * (audio.peak / peak)
    return torch.nn.functional.pad(centred, (0, audio.clip_samples - len(centred)))


def preprocessing(audio: Audio, backbone: Backbone) -> str:
    """What every window goes through before the network hears it; part of every figure's name."""
    level = "own level" if backbone.keeps_level else f"peak {audio.peak:g}"
    patches = f", one vector for each {backbone.patch_seconds:g} s" if backbone.patch_seconds else ""
    return f"{audio.sample_rate} Hz mono, {audio.clip_seconds:g} s windows, mean removed, {level}{patches}"


def embed_stream(
    segments: Iterable[Segment], backbone: Backbone, audio: Audio, what: str,
    cache: EmbeddingCache | None = None, progress: Progress = silent,
) -> Iterator[list[tuple[Segment, Entry, bool]]]:  # fmt: skip
    """Batches of windows with their embeddings, and whether each is silent; what `cache` holds is not computed.

    The network always sees BATCH rows, if need be of silence: the bits of a row must not depend on how many
    neighbours it happens to have.
    """
    how, done = preprocessing(audio, backbone), 0
    for batch in _batches(segments):
        clips = [normalised(segment.samples, audio, backbone.keeps_level) for segment in batch]
        keys = [key(clip.numpy(), backbone.name, how) for clip in clips]
        nothing: list[Entry | None] = [None] * len(batch)
        entries = cache.find(keys) if cache is not None else nothing
        new = [i for i, entry in enumerate(entries) if entry is None]
        if new:
            made = _run(backbone, [clips[i] for i in new])
            for i, entry in zip(new, made, strict=True):
                entries[i] = entry
            if cache is not None:
                cache.add([keys[i] for i in new], made)
        done += len(batch)
        progress(f"Embed {what}", done, 0)
        yield [(s, e, not c.any()) for s, e, c in zip(batch, entries, clips, strict=True) if e is not None]


def _batches(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    iterator = iter(segments)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _run(backbone: Backbone, clips: list[Tensor]) -> list[Entry]:
    padding = [torch.zeros_like(clips[0])] * (BATCH - len(clips))
    vectors, logits = backbone(torch.stack([*clips, *padding]))
    rows = (vectors if vectors.ndim == 3 else vectors[:, None]).float().cpu().numpy()
    tags = None if logits is None else logits.double().cpu().numpy()
    return [Entry(rows[i], None if tags is None else tags[i]) for i in range(len(clips))]


def embed(
    segments: Iterable[Segment], backbone: Backbone, audio: Audio, what: str,
    cache: EmbeddingCache | None = None, progress: Progress = silent,
) -> Embedded:  # fmt: skip
    """Embed windows in batches. Raises DataError when there are none, or all are silent.

    `what` names the set in warnings and progress. A window of a network with patches gives a row for each.
    """
    names: list[str] = []
    starts: list[float] = []
    rates: set[int] = set()
    mute: set[str] = set()
    vectors: list[NDArray[np.float32]] = []
    logits: list[NDArray[np.float64]] = []
    sounds: dict[str, bytes] = {}
    for batch in embed_stream(segments, backbone, audio, what, cache, progress):
        for segment, entry, is_mute in batch:
            names += [segment.name] * len(entry.vectors)
            starts += [segment.start_seconds + patch * backbone.patch_seconds for patch in range(len(entry.vectors))]
            rates.add(segment.source_rate)
            sounds[segment.name] = sounds.get(segment.name, b"") + sha256(entry.vectors.tobytes()).digest()
            vectors.append(entry.vectors)
            logits += [] if entry.logits is None else [entry.logits]
            mute |= {segment.name} if is_mute else set()
    if not names:
        raise DataError(f"The set `{what}` has no clips.", "See how it is divided: musicldm prep manifest")
    if mute == set(names):
        raise DataError(f"All {len(mute)} clips of the set `{what}` are silent.", "Train the model longer.")
    return Embedded(
        names, np.asarray(starts), np.concatenate(vectors).astype(np.float64), np.stack(logits) if logits else None,
        backbone.name, preprocessing(audio, backbone), sorted(rates),
        _warnings(what, rates, mute, sounds),
    )  # fmt: skip


def _warnings(what: str, rates: set[int], mute: set[str], sounds: dict[str, bytes]) -> list[str]:
    """`sounds` are digests of the embeddings, by name: equal where nothing but the level differs."""
    found = []
    if len(rates) > 1:
        found.append(f"The set `{what}` mixes sample rates ({', '.join(f'{rate} Hz' for rate in sorted(rates))}).")
    if mute:
        found.append(f"{len(mute)} of {len(sounds)} in the set `{what}` have silent windows: {sorted(mute)[0]} ...")
    first: dict[bytes, str] = {}
    copies = [(name, first.setdefault(sound, name)) for name, sound in sounds.items() if name not in mute]
    copies = [(name, of) for name, of in copies if name != of]
    if copies:
        name, of = copies[0]
        found.append(f"{len(copies)} of {len(sounds)} in the set `{what}` sound exactly like another one: {name} like "
                     f"{of}. They count as different clips.")  # fmt: skip
    return found
