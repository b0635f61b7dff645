"""What the Beat Transformer trains on: crops of rendered pieces, stretched, shifted, coloured; and their targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io
from stages.audio.walk import find_audio
from stages.beats.features import FLOOR_DB, MIX, Mel, log_mel
from stages.beats.transformer import N_MELS, TEMPO_BINS
from stages.data.dataset import Draw
from stages.data.score_beats.collection import Piece
from stages.progress import Progress, silent
from stages.store import atomic_file, sha256

SMEAR = (0.25, 0.5, 1.0, 0.5, 0.25)  # of a beat over its frame and the neighbours
MAX_STRETCH = 0.25  # of the tempo's logarithm
MAX_SHIFT = 0.12  # of the logarithm of mel bins
BEGINNING_SHARE = 0.25  # of the crops begin with the piece: where music sets in tells the bar, if little else does
UNHEARD_SHARE = 0.04  # of the crops have no beat: noise, or frames in disorder
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Taught:
    """A recording without known beats, and a teacher's probabilities (T, 2) of beats and downbeats in it."""

    audio: Path
    probabilities: NDArray[np.float32]
    fps: float

    def at(self, seconds: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, 2) at these times."""
        frames = seconds * self.fps
        columns = [np.interp(frames, np.arange(len(self.probabilities)), column) for column in self.probabilities.T]
        return np.stack(columns, axis=1).astype(np.float32)


def listen(folder: Path, cache: Path, progress: Progress = silent) -> list[Taught]:
    """What madmom's networks hear in every audio file below `folder`, kept in `cache`. Raises DataError."""
    from stages.beats.backends import MADMOM_FPS, Madmom

    files = find_audio(folder)
    teacher, made = None, []
    for done, path in enumerate(files):
        progress("teacher", done, len(files))
        kept = cache / f"{sha256(path)}-madmom.npy"
        if not kept.is_file():
            teacher = teacher or Madmom()
            _keep(kept, teacher.activations(path)[0].astype(np.float16))
        made.append(Taught(path, np.load(kept).astype(np.float32), MADMOM_FPS))
    return made


class BeatClips(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Crops of `frames` frames: {"mel" (frames, 128) dB, "beats" (frames, 2), "tempo" (300,), "track"}.

    An index is a piece, the draw's seed gives its crop and, in training, all that is done to it. After the pieces
    come the files of `taught`, whose targets are what a teacher heard. Spectrograms are kept in `cache` in steps of
    a third of a decibel.
    """

    def __init__(
        self,
        folder: Path,
        pieces: list[Piece],
        frames: int,
        cache: Path,
        augment: bool,
        progress: Progress = silent,
        taught: Sequence[Taught] = (),
    ) -> None:
        self.frames, self.augment, self.taught = frames, augment, taught
        self.ids = [piece.id for piece in pieces] + [file.audio.name for file in taught]
        self.mels: list[NDArray[np.uint8]] = []
        self.bars = [np.loadtxt(folder / piece.beats, ndmin=2) for piece in pieces]
        audio = [folder / piece.audio for piece in pieces] + [file.audio for file in taught]
        for done, path in enumerate(audio):
            progress("features", done, len(audio))
            self.mels.append(_cached_mel(path, cache / f"{sha256(path)}.npy"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        index, seed = draw
        generator = np.random.Generator(np.random.Philox(key=seed))
        mel = self.mels[index]
        stretch = float(np.exp(generator.uniform(-MAX_STRETCH, MAX_STRETCH))) if self.augment else 1.0
        span = self.frames * stretch
        from_the_beginning = not self.augment or generator.random() < BEGINNING_SHARE
        start = 0.0 if from_the_beginning else generator.uniform(0, max(len(mel) - span, 1))
        places = start + stretch * np.arange(self.frames)
        clip, (target, tempo) = _resampled(mel, places), self._targets(index, places, stretch)
        if self.augment:
            clip = _coloured(clip, generator)
            if generator.random() < UNHEARD_SHARE:
                clip, target, tempo = _unheard(clip, generator), np.zeros_like(target), np.zeros_like(tempo)
        made = {"mel": clip, "beats": target, "tempo": tempo}
        return {name: torch.from_numpy(value) for name, value in made.items()} | {"track": torch.tensor(index)}

    def _targets(
        self, index: int, places: NDArray[np.floating], stretch: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(frames, 2) and (300,) of the crop at these frames of a piece."""
        if index >= len(self.bars):
            return self.taught[index - len(self.bars)].at(places / MIX.fps), tempo_target(np.empty(0))
        bars = self.bars[index]
        beats = (bars[:, 0] * MIX.fps - places[0]) / stretch
        inside = beats[(beats >= 0) & (beats < self.frames)]
        return targets(beats, bars[:, 1] == 1, self.frames), tempo_target(inside / MIX.fps)


def targets(beats: Times, down: NDArray[np.bool_], frames: int) -> NDArray[np.float32]:
    """(frames, 2): beats and downbeats at fractional frames, each widened to its neighbours."""
    made = np.zeros((frames + 2 * len(SMEAR), 2), dtype=np.float32)
    places = np.rint(beats).astype(int) + len(SMEAR)
    inside = (places >= len(SMEAR) - 2) & (places < frames + len(SMEAR) + 2)
    for column, chosen in ((0, inside), (1, inside & down)):
        for offset, value in enumerate(SMEAR, start=-(len(SMEAR) // 2)):
            np.maximum.at(made[:, column], places[chosen] + offset, np.float32(value))
    return made[len(SMEAR) : len(SMEAR) + frames]


def tempo_target(beats: Times) -> NDArray[np.float32]:
    """(300,) that sums to 1 around the tempo of beat times in seconds; zeros where there is none."""
    made = np.zeros(TEMPO_BINS, dtype=np.float32)
    if len(beats) > 2:
        bpm = round(60 / float(np.median(np.diff(beats))))
        for offset, value in enumerate(SMEAR, start=-2):
            if 0 <= bpm + offset < TEMPO_BINS:
                made[bpm + offset] = value
        made /= max(float(made.sum()), 1e-9)
    return made


def _cached_mel(audio: Path, cache: Path) -> NDArray[np.uint8]:
    if not cache.is_file():
        mel = log_mel(io.stream(audio, MIX.sample_rate), MIX)
        _keep(cache, np.rint((mel - FLOOR_DB) / -FLOOR_DB * 255).astype(np.uint8))
    return np.asarray(np.load(cache, mmap_mode="r"))


def _keep(path: Path, values: NDArray[Any]) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def _resampled(mel: NDArray[np.uint8], places: NDArray[np.floating]) -> Mel:
    """Decibels at fractional frames; beyond the last frame the floor."""
    low = np.floor(places).astype(int)
    share = (places - low)[:, None].astype(np.float32)
    last = len(mel) - 1
    rows = mel[np.clip(low, 0, last)] * (1 - share) + mel[np.clip(low + 1, 0, last)] * share
    rows[places > last] = 0
    return np.asarray(rows * np.float32(-FLOOR_DB / 255) + FLOOR_DB, dtype=np.float32)


def _coloured(mel: Mel, generator: np.random.Generator) -> Mel:
    """Other pitch, equaliser, dynamics, noise floor and band, then the loudest bin at 0 dB again."""
    if generator.random() < 0.5:
        factor = np.exp(generator.uniform(-MAX_SHIFT, MAX_SHIFT))
        places = np.clip(np.arange(N_MELS) * factor, 0, N_MELS - 1)
        low = np.minimum(places.astype(int), N_MELS - 2)
        share = (places - low).astype(np.float32)
        mel = mel[:, low] * (1 - share) + mel[:, low + 1] * share
    knots = generator.normal(0, generator.uniform(0, 6), 7)
    mel = mel + np.interp(np.arange(N_MELS), np.linspace(0, N_MELS - 1, 7), knots).astype(np.float32)
    if generator.random() < 0.3:
        mel = mel * np.float32(generator.uniform(0.6, 1.1))
    if generator.random() < 0.4:
        floor = generator.uniform(-75, -20) + generator.uniform(-0.15, 0.05) * np.arange(N_MELS)
        noise = floor + generator.normal(0, 3.5, mel.shape)
        mel = np.logaddexp(mel * 0.23, noise.astype(np.float32) * 0.23) / 0.23  # decibels of power added
    if generator.random() < 0.2:
        mel[:, int(generator.integers(64, N_MELS)) :] = 2 * FLOOR_DB
    return np.asarray(np.clip(mel - mel.max(), FLOOR_DB, 0), dtype=np.float32)


def _unheard(mel: Mel, generator: np.random.Generator) -> Mel:
    """The same frames in pieces of random length and order, or noise of their mean spectrum."""
    if generator.random() < 0.5:
        return np.asarray(np.clip(mel.mean(0) + generator.normal(0, 4, mel.shape), FLOOR_DB, 0), dtype=np.float32)
    cuts = np.sort(generator.choice(np.arange(1, len(mel)), size=len(mel) // 12, replace=False))
    pieces = np.split(mel, cuts)
    return np.concatenate([pieces[place] for place in generator.permutation(len(pieces))])
