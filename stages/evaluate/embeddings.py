"""Clips of folders and shards through a fixed network: what all three evaluations measure.

Every clip is mono at the model's rate, one window of the clip length (longer audio is cut into such windows
from its start, its tail dropped; shorter audio is padded with silence), mean removed, scaled to one peak.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io as audio_io
from stages.data.shards import ShardReader
from stages.errors import DataError, ModelError
from stages.params import Audio
from stages.progress import Progress, silent
from stages.store import atomic_file, model_digest

BATCH = 8
SILENCE_PEAK = 1e-4  # -80 dB of full scale
SHORTEST_SECONDS = 0.5
TAG_EPSILON = 1e-9  # probabilities this near to 0 or 1 have no finite logit in float32


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


class Backbone(Protocol):
    """`name` with version; call: (B, L) float32 at the clip rate -> vectors (B, D), logits (B, K) or None."""

    @property
    def name(self) -> str: ...
    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor | None]: ...


class ClapBackbone:
    """The audio tower of a trained CLAP folder (or of the CLAP inside an `ldm` folder)."""

    def __init__(self, folder: Path, sample_rate: int) -> None:
        from stages.clap.model import load_clap

        if not folder.is_dir():
            raise ModelError(f"There is no model folder {folder}.", "Make it with: dvc repro, or: musicldm train clap")
        self.clap, self.sample_rate = load_clap(folder), sample_rate
        self.name = f"clap {model_digest(folder)}"

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, None]:
        return self.clap.embed_audio(waveform, self.sample_rate), None


class MusicnnBackbone:
    """musicnn trained on MagnaTagATune: 200-d embedding, 50 tags, means over 3 s patches.

    The tags' logits are those of the mean probabilities.
    """

    def __init__(self, sample_rate: int) -> None:
        from stages.audio.musicnn import load_musicnn

        self.network, self.sample_rate = load_musicnn("MTT_musicnn"), sample_rate
        self.name = "musicnn MTT_musicnn"

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        from torchaudio.functional import resample

        from stages.audio.musicnn import SAMPLE_RATE

        tags, vectors = self.network(resample(waveform, self.sample_rate, SAMPLE_RATE))
        return vectors, torch.logit(tags.double(), eps=TAG_EPSILON)


def windows(samples: int, size: int) -> list[int]:
    """Starts of the whole windows in a track; a track shorter than one has a single, padded one."""
    return list(range(0, samples - size + 1, size)) or [0]


def folder_files(folder: Path) -> list[Path]:
    """The audio files of a folder, in name order. Raises DataError when there are none or two share a stem."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Make clips with: musicldm generate --prompts FILE")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in audio_io.SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"{folder} holds no audio.", "Make clips with: musicldm generate --prompts FILE")
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


def shard_segments(reader: ShardReader, split: str, audio: Audio) -> Iterator[Segment]:
    """Windows of a split's tracks. Raises DataError when the shards are of another rate."""
    if reader.sample_rate != audio.sample_rate:
        raise DataError(
            f"The shards are at {reader.sample_rate} Hz, audio.sample_rate is {audio.sample_rate}.",
            "Write the shards again: musicldm prep shards",
        )
    for index, track in enumerate(reader.tracks):
        for start in windows(track.samples, audio.clip_samples) if track.split == split else ():
            stop = min(start + audio.clip_samples, track.samples)
            part = reader.audio(index, start, stop).astype(np.float32) / np.float32(audio_io.FULL_SCALE)
            yield Segment(track.id, start / reader.sample_rate, part, reader.sample_rate)


def normalised(samples: NDArray[np.float32], audio: Audio) -> Tensor:
    """(clip_samples,): mean removed, peak at audio.peak, padded with zeros; silence stays silence."""
    centred = torch.from_numpy(np.ascontiguousarray(samples))
    centred = centred - centred.mean()
    peak = centred.abs().max()
    scaled = centred * (audio.peak / peak) if peak > SILENCE_PEAK else torch.zeros_like(centred)
    return torch.nn.functional.pad(scaled, (0, audio.clip_samples - len(scaled)))


def embed(
    segments: Iterable[Segment], backbone: Backbone, audio: Audio, what: str, progress: Progress = silent
) -> Embedded:
    """Embed windows in batches. Raises DataError when there are none, or all are silent.

    `what` names the set in warnings and progress.
    """
    names: list[str] = []
    starts: list[float] = []
    rates: set[int] = set()
    mute: set[str] = set()
    vectors: list[Tensor] = []
    logits: list[Tensor] = []

    def flush(batch: list[Tensor]) -> None:
        found, tags = backbone(torch.stack(batch))
        vectors.append(found.double().cpu())
        logits.extend([] if tags is None else [tags.double().cpu()])
        progress(f"Embed {what}", len(names), 0)

    batch: list[Tensor] = []
    for segment in segments:
        names.append(segment.name)
        starts.append(segment.start_seconds)
        rates.add(segment.source_rate)
        batch.append(normalised(segment.samples, audio))
        if not batch[-1].any():
            mute.add(segment.name)
        if len(batch) == BATCH:
            flush(batch)
            batch = []
    if batch:
        flush(batch)
    if not names:
        raise DataError(f"The set `{what}` has no clips.", "Check the splits of the manifest: musicldm data check")
    if mute == set(names):
        raise DataError(f"All {len(names)} clips of the set `{what}` are silent.", "Train the model longer.")
    preprocessing = f"{audio.sample_rate} Hz mono, {audio.clip_seconds:g} s windows, mean removed, peak {audio.peak:g}"
    return Embedded(
        names, np.asarray(starts), torch.cat(vectors).numpy(), torch.cat(logits).numpy() if logits else None,
        backbone.name, preprocessing, sorted(rates), _warnings(what, rates, mute, names),
    )  # fmt: skip


def _warnings(what: str, rates: set[int], mute: set[str], names: list[str]) -> list[str]:
    found = []
    if len(rates) > 1:
        found.append(f"The set `{what}` mixes sample rates ({', '.join(f'{rate} Hz' for rate in sorted(rates))}).")
    if mute:
        found.append(f"{len(mute)} of {len(set(names))} in the set `{what}` have silent windows: {sorted(mute)[0]} ...")
    return found


def cached(path: Path, make: Callable[[], Embedded]) -> Embedded:
    """The embeddings stored at `path` (.npz), else made and stored there. The path must name all inputs' digests."""
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as data:
                found = {key: data[key] for key in data.files}
            return Embedded(
                found["names"].tolist(), found["starts"], found["vectors"],
                found.get("logits"), str(found["backbone"]), str(found["preprocessing"]),
                found["rates"].tolist(), found["warnings"].tolist(),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, BadZipFile):
            path.unlink()  # not ours, or cut short: it is made anew below
    embedded = make()
    arrays = {key: np.asarray(value) for key, value in vars(embedded).items() if value is not None}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return embedded
