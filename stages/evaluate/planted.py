"""Can the audit be trusted: training excerpts, disguised and hidden among other music, and how many it finds.

For each similarity the alarm level is set where 1% of the innocent clips (real music that was not trained on)
raise a false alarm; the recall of a disguise is the share of its copies above that level. Excerpts start
anywhere in their track, not where the index's windows do.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile
from librosa.effects import pitch_shift, time_stretch
from numpy.typing import NDArray
from scipy.signal import fftconvolve, firwin2

from stages.audio.io import FULL_SCALE
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.evaluate.embeddings import Segment
from stages.evaluate.intervals import share_figure
from stages.evaluate.novelty import Found

Samples = NDArray[np.float32]
FALSE_ALARMS = 0.01
STRETCH = 1.03
SEMITONES = 1.0
MIX_DB = -6.0  # level of the copy against the music it is hidden under
OGG_QUALITY, MP3_QUALITY = 0.9, 0.9  # libsndfile's compression level: close to its smallest files
EQUALISER = ((150.0, -9.0), (400.0, 0.0), (1000.0, 6.0), (2000.0, 0.0), (4000.0, 6.0))  # Hz, dB
EQUALISER_TAPS = 1025
INNOCENT = "innocent"


@dataclass(frozen=True)
class Excerpt:
    """Samples (L,) and, for L plus a margin, what follows them; and the music to hide it under (L,)."""

    samples: Samples
    longer: Samples
    cover: Samples
    sample_rate: int


def copy(excerpt: Excerpt) -> Samples:
    return excerpt.samples


def ogg(excerpt: Excerpt) -> Samples:
    return _encoded(excerpt, "OGG", "VORBIS", OGG_QUALITY)


def mp3(excerpt: Excerpt) -> Samples:
    return _encoded(excerpt, "MP3", "MPEG_LAYER_III", MP3_QUALITY)


def _encoded(excerpt: Excerpt, container: str, codec: str, quality: float) -> Samples:
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", excerpt.sample_rate, 1, codec, format=container, compression_level=quality
    ) as file:
        file.write(excerpt.samples)
    decoded, _ = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32")
    return _fit(decoded, len(excerpt.samples))


def pitched(excerpt: Excerpt) -> Samples:
    """A semitone higher, at the same speed (phase vocoder)."""
    return np.asarray(pitch_shift(excerpt.samples, sr=excerpt.sample_rate, n_steps=SEMITONES))


def stretched(excerpt: Excerpt) -> Samples:
    """3% faster at the same pitch (phase vocoder)."""
    return _fit(time_stretch(excerpt.longer, rate=STRETCH), len(excerpt.samples))


def equalised(excerpt: Excerpt) -> Samples:
    """Bass 9 dB down, a bump of 6 dB at 1 kHz, treble 6 dB up."""
    hertz, decibels = zip(*EQUALISER, strict=True)
    nyquist = excerpt.sample_rate / 2
    at = np.array([0.0, *(f for f in hertz if f < nyquist), nyquist])
    gains = np.interp(at, hertz, 10 ** (np.array(decibels) / 20))
    taps = firwin2(EQUALISER_TAPS, at, gains, fs=excerpt.sample_rate)
    return np.asarray(0.25 * fftconvolve(excerpt.samples, taps, mode="same"), np.float32)


def mixed(excerpt: Excerpt) -> Samples:
    """Under other music, which is 6 dB louder."""
    gain = _level(excerpt.cover) / max(_level(excerpt.samples), 1e-9) * 10 ** (MIX_DB / 20)
    both = excerpt.cover + np.float32(gain) * excerpt.samples
    return np.asarray(both / max(1.0, float(np.abs(both).max())), np.float32)


DISGUISES: dict[str, Callable[[Excerpt], Samples]] = {
    "copy": copy, "ogg": ogg, "mp3": mp3, "pitch_1_semitone": pitched, "stretch_3_percent": stretched,
    "equalised": equalised, "mixed_at_-6_dB": mixed,
}  # fmt: skip


class Hidden:
    """The innocent clips, then `per_kind` training excerpts in each disguise; a segment's name is `<kind>:<track>`.

    The same clips each time they are gone through, so that they need not be held. The covers are innocent clips.
    Raises DataError when no training track holds a clip and its margin.
    """

    def __init__(
        self, reader: ShardReader, clip_samples: int, innocents: list[Segment], per_kind: int, seed: int
    ) -> None:
        self.reader, self.innocents, self.per_kind, self.seed = reader, innocents, per_kind, seed
        self.clip_samples, self.margin = clip_samples, int(clip_samples * STRETCH) + 1
        self.tracks = [i for i, t in enumerate(reader.tracks) if t.split == "train" and t.samples >= self.margin]
        if not self.tracks or not innocents:
            raise DataError(
                "Planted copies need training tracks longer than a clip, and music that was not trained on.",
                "Check the splits: musicldm data check, or give other music with --others DIR.",
            )

    def __iter__(self) -> Iterator[Segment]:
        for segment in self.innocents:
            yield replace(segment, name=f"{INNOCENT}:{segment.name}")
        generator = np.random.default_rng(self.seed)
        for disguise, change in DISGUISES.items():
            for _ in range(self.per_kind):
                track, start, excerpt = self._excerpt(generator)
                samples = np.ascontiguousarray(change(excerpt), np.float32)
                yield Segment(f"{disguise}:{track}", start, samples, 0)

    def _excerpt(self, generator: np.random.Generator) -> tuple[str, float, Excerpt]:
        """A training track, a start in seconds, and what is there."""
        number = int(generator.choice(self.tracks))
        track, rate = self.reader.tracks[number], self.reader.sample_rate
        start = int(generator.integers(track.samples - self.margin + 1))
        longer = self.reader.audio(number, start, start + self.margin).astype(np.float32) / np.float32(FULL_SCALE)
        cover = _fit(self.innocents[int(generator.integers(len(self.innocents)))].samples, self.clip_samples)
        return track.id, start / rate, Excerpt(longer[: self.clip_samples], longer, cover, rate)


def recalls(names: list[str], found: Found) -> tuple[dict[str, Any], list[str]]:
    """Alarm level at 1% false alarms among the innocent clips, recall of each disguise, and of the right track.

    Also returns what limits these figures.
    """
    kinds = np.array([name.split(":")[0] for name in names])
    innocent = np.sort(found.similarity[kinds == INNOCENT])[::-1]
    allowed = int(FALSE_ALARMS * len(innocent))
    level = float(innocent[allowed])  # alarms are strictly above: at most `allowed` of the innocent
    result: dict[str, Any] = {"alarm_level": level, "false_alarms": share_figure(
        int((innocent > level).sum()), len(innocent))}  # fmt: skip
    own = np.array([name.partition(":")[2] for name in names])
    right = own == np.array(found.tracks)
    for disguise in DISGUISES:
        alarmed = found.similarity[kinds == disguise] > level
        result[f"recall {disguise}"] = share_figure(int(alarmed.sum()), len(alarmed))
        result[f"right track {disguise}"] = share_figure(int((alarmed & right[kinds == disguise]).sum()), len(alarmed))
    warnings = []
    if len(innocent) < 1 / FALSE_ALARMS:
        warnings.append(
            f"1% of {len(innocent)} innocent clips is less than one; the alarm level is the largest of their "
            "similarities. Give more with --others DIR."
        )
    return result, warnings


def table(names: list[str], found: dict[str, Found]) -> list[dict[str, Any]]:
    """One row for each clip: what each similarity says of it."""
    return [
        {"clip": name} | {
            column: value
            for measure, by in found.items()
            for column, value in ((measure, round(float(by.similarity[i]), 6)), (f"{measure}_track", by.tracks[i]))
        }
        for i, name in enumerate(names)
    ]  # fmt: skip


def _fit(samples: Samples, length: int) -> Samples:
    cut = np.asarray(samples[:length], np.float32)
    return np.pad(cut, (0, length - len(cut)))


def _level(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples), dtype=np.float64)))
