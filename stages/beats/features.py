"""What the Beat Transformer hears: log-mel frames of a whole track, relative to its loudest bin."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stages.audio.mel import MelSpectrogram
from stages.beats.transformer import N_MELS

CHUNK_SECONDS = 60
FLOOR_DB = -80.0  # below the loudest bin
SILENCE_DB = -80.0  # absolute: a track whose loudest bin is below this is silent

Waveform = NDArray[np.float32]
Mel = NDArray[np.float32]


@dataclass(frozen=True)
class FrontEnd:
    """Rate, STFT and mel range. With `lag_frames` n, frame i is centred on sample (i - n) * hop_length."""

    sample_rate: int
    n_fft: int
    hop_length: int
    f_min: float
    f_max: float
    lag_frames: int = 0

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length


MIX = FrontEnd(16_000, 1024, 400, 30.0, 8000.0)
# The published network's: its spectrograms come from Spleeter, which puts 4096 zeros before the sound.
PUBLISHED = FrontEnd(44_100, 4096, 1024, 30.0, 11_000.0, lag_frames=2)


def log_mel(blocks: Iterable[Waveform], front_end: FrontEnd) -> Mel:
    """Mono blocks (n,) at the front end's rate -> (T, 128) dB in [-80, 0], T = ceil(L / hop); silence is -80.

    Memory is that of the result and one chunk, however long the sound.
    """
    mel, hop = _mel(front_end), front_end.hop_length
    context = -(-front_end.n_fft // hop) * hop
    size = int(CHUNK_SECONDS * front_end.fps) * hop
    parts = [np.empty((0, N_MELS), dtype=np.float32)]
    for samples, start, stop in chunks(blocks, size, context):
        if len(samples) <= front_end.n_fft // 2:  # too short for its edges to be mirrored
            samples = np.pad(samples, (0, front_end.n_fft))
        with torch.inference_mode():
            frames = mel(torch.from_numpy(np.ascontiguousarray(samples)).unsqueeze(0))[0]
        parts.append(frames[start // hop : -(-stop // hop)].numpy())
    decibels = np.concatenate(parts)
    if front_end.lag_frames:
        lead = np.full((min(front_end.lag_frames, len(decibels)), N_MELS), -np.inf, dtype=np.float32)
        decibels = np.concatenate([lead, decibels])[: len(decibels)]
    return relative(decibels)


def relative(decibels: Mel) -> Mel:
    """dB against the loudest bin, not below FLOOR_DB; FLOOR_DB throughout where that bin is below SILENCE_DB."""
    loudest = float(decibels.max(initial=-np.inf))
    if loudest < SILENCE_DB:
        return np.full(decibels.shape, FLOOR_DB, dtype=np.float32)
    return np.asarray(np.clip(decibels - loudest, FLOOR_DB, 0.0), dtype=np.float32)


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


@lru_cache(maxsize=2)
def _mel(front_end: FrontEnd) -> MelSpectrogram:
    return MelSpectrogram(
        front_end.sample_rate, front_end.n_fft, front_end.n_fft, front_end.hop_length, N_MELS, front_end.f_min,
        front_end.f_max, floor=1e-10, scale="db-power",
    )  # fmt: skip
