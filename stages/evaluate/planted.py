"""Can the audit be trusted: training excerpts, disguised and hidden among other music, and how many it finds.

For each similarity the alarm level is set where 1% of the innocent clips (real music that was not trained on)
raise a false alarm; the recall of a disguise is the share of its copies above that level. Excerpts start
anywhere in their track, not where the index's windows do.
"""

import io
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
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
from stages.progress import Progress, silent
from stages.store import disk_errors

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


class Spool:
    """Segments on disk, in an unnamed file in `folder` that goes with the process: long sets in flat memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (it lives as long as the spool)
        self._kept: list[tuple[str, float, int, int, int]] = []

    def add(self, segment: Segment) -> None:
        with disk_errors(self._folder):
            at = self._file.seek(0, io.SEEK_END)
            self._file.write(np.ascontiguousarray(segment.samples, np.float32).tobytes())
        self._kept.append((segment.name, segment.start_seconds, segment.source_rate, at, len(segment.samples)))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Segment:
        name, start, rate, at, length = self._kept[i]
        self._file.seek(at)
        return Segment(name, start, np.array(np.frombuffer(self._file.read(4 * length), np.float32)), rate)


def hide(
    reader: ShardReader, clip_samples: int, innocents: Iterable[Segment], per_kind: int, seed: int, clips: Spool,
    progress: Progress = silent,
) -> int:  # fmt: skip
    """Put into `clips` the innocent ones, whose number it returns, then `per_kind` training excerpts in each disguise.

    A segment's name is `<kind>:<track>`; covers are innocent clips. Raises DataError when no training track holds
    a clip and its margin, or nothing is innocent.
    """
    for segment in innocents:
        clips.add(replace(segment, name=f"{INNOCENT}:{segment.name}"))
        progress("Read innocent clips", len(clips), 0)
    count, margin = len(clips), int(clip_samples * STRETCH) + 1
    tracks = [i for i, t in enumerate(reader.tracks) if t.split == "train" and t.samples >= margin]
    if not tracks or not count:
        raise DataError(
            "Planted copies need training tracks longer than a clip, and music that was not trained on.",
            "Check the splits: musicldm data check, or give other music with --others DIR.",
        )
    generator = np.random.default_rng(seed)
    for disguise, change in DISGUISES.items():
        for _ in range(per_kind):
            number = int(generator.choice(tracks))
            track, rate = reader.tracks[number], reader.sample_rate
            start = int(generator.integers(track.samples - margin + 1))
            longer = reader.audio(number, start, start + margin).astype(np.float32) / np.float32(FULL_SCALE)
            cover = _fit(clips[int(generator.integers(count))].samples, clip_samples)
            samples = change(Excerpt(longer[:clip_samples], longer, cover, rate))
            clips.add(Segment(f"{disguise}:{track.id}", start / rate, samples, 0))
            progress("Disguise excerpts", len(clips) - count, per_kind * len(DISGUISES))
    return count


def recalls(names: list[str], found: Found) -> tuple[dict[str, Any], list[str]]:
    """Alarm level at 1% false alarms among the innocent clips, recall of each disguise, and of the right track.

    Also returns what limits these figures.
    """
    kinds = np.array([name.split(":")[0] for name in names])
    innocent = np.sort(found.similarity[kinds == INNOCENT])[::-1]
    allowed = int(FALSE_ALARMS * len(innocent))
    level = float(innocent[allowed])  # alarms are strictly above: at most `allowed` of the innocent
    own = np.array([name.partition(":")[2] for name in names])
    right = own == np.array(found.tracks)

    def share(kind: str, hits: NDArray[np.bool_]) -> dict[str, Any]:
        return share_figure(int(hits.sum()), len(hits), len(set(own[kinds == kind])))

    alarmed = found.similarity > level
    result: dict[str, Any] = {"alarm_level": level, "false_alarms": share(INNOCENT, alarmed[kinds == INNOCENT])}
    for disguise in DISGUISES:
        some = kinds == disguise
        result[f"recall {disguise}"] = share(disguise, alarmed[some])
        result[f"right track {disguise}"] = share(disguise, (alarmed & right)[some])
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
