"""Folders of generated clips to a blind survey: equal length, loudness, format and size, names that say nothing."""

import math
import os
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.audio import io as audio_io
from stages.audio.loudness import lufs
from stages.errors import DataError, UsageError
from stages.generate.manifest import MANIFEST
from stages.progress import Progress, silent
from stages.store import read_jsonl, sha256

HIGHEST_RATE = 48_000
SHORTEST_SECONDS = 0.5
FADE_SECONDS = 0.5
TARGET_LUFS = -20.0  # lowered for all where one clip would be cut off
HIGHEST_PEAK = 0.98
MAKE = "Make clips with: musicldm generate --prompts FILE --out DIR"

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """One generated clip: the id of its caption (equal over the folders), its model's name, its file."""

    item: str
    caption: str
    model: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Prepared:
    """One clip as a participant hears it; `token` names its file and is drawn at random."""

    token: str
    source: Source
    seconds: float


def find_sources(folders: Sequence[Path]) -> tuple[list[Source], list[str]]:
    """The clips that every folder has (items in name order, models in the folders' order), and ids left out.

    A model is called after its folder. Raises UsageError and DataError for what cannot be compared blindly.
    """
    if len({folder.resolve() for folder in folders}) < 2:
        raise UsageError("A listening test compares at least two folders of clips.", MAKE)
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"Two folders are called {_twice(names)}; models are told apart by it.", "Rename one.")
    rows = [_captions(folder) for folder in folders]
    common = sorted(set.intersection(*(set(found) for found in rows)))
    if not common:
        raise DataError(f"{folders[0]} and {folders[1]} share no clip id.", "Generate all from the same prompts file.")
    for folder, found in zip(folders[1:], rows[1:], strict=True):
        for item in common:
            if found[item][0] != rows[0][item][0]:
                raise DataError(
                    f"The clip {item} has the caption {found[item][0]!r} in {folder}, and {rows[0][item][0]!r} in "
                    f"{folders[0]}.",
                    "Generate all folders from the same prompts file.",
                )
    sources = [
        Source(item, found[item][0], name, found[item][1], sha256(found[item][1]))
        for item in common
        for name, found in zip(names, rows, strict=True)
    ]
    return sources, sorted(set().union(*rows) - set(common))


def prepare(sources: Sequence[Source], seconds: float, out: Path, progress: Progress = silent) -> list[Prepared]:
    """Write `<token>.wav` in `out` for every source: the same length (at most `seconds`), rate, loudness and bytes.

    Raises DataError for clips that are silent or shorter than SHORTEST_SECONDS.
    """
    infos = [audio_io.probe(source.path) for source in sources]
    rate = min(max(info.sample_rate for info in infos), HIGHEST_RATE)
    shortest = min(infos, key=lambda info: info.seconds)
    length = int(min(seconds, shortest.seconds) * rate)
    if length < SHORTEST_SECONDS * rate:
        path = sources[infos.index(shortest)].path
        raise DataError(f"{path} is shorter than {SHORTEST_SECONDS} s.", "Leave its id out of all folders.")
    loudness: dict[Source, float] = {}
    ceilings: list[float] = []
    for number, source in enumerate(sources):
        samples = _faded(source.path, rate, length)
        loudness[source] = lufs(samples, rate)
        if math.isnan(loudness[source]):
            raise DataError(f"{source.path} is silent.", "Leave its id out of all folders.")
        ceilings.append(loudness[source] + 20 * math.log10(HIGHEST_PEAK / float(np.abs(samples).max())))
        progress("Measure clips", number + 1, len(sources))
    target = min(TARGET_LUFS, *ceilings)
    prepared = [Prepared(secrets.token_hex(16), source, length / rate) for source in sources]
    # in an order that says nothing, since times and inodes follow it
    for number, clip in enumerate(random.sample(prepared, len(prepared))):
        samples = _faded(clip.source.path, rate, length)
        path = out / f"{clip.token}.wav"
        gain = 10 ** ((target - loudness[clip.source]) / 20)
        audio_io.write(path, samples * np.float32(gain), rate)
        os.utime(path, (0, 0))  # the server sends this time along
        progress("Prepare clips", number + 1, len(sources))
    return prepared


def _captions(folder: Path) -> dict[str, tuple[str, Path]]:
    """(caption, file) by clip id. Raises DataError for rows that name no file of this folder."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", MAKE)
    if not (folder / MANIFEST).exists():
        raise DataError(f"{folder} has no {MANIFEST}, so its captions are unknown.", MAKE)
    found: dict[str, tuple[str, Path]] = {}
    for row in read_jsonl(folder / MANIFEST, MAKE):
        name, item, caption = (row.get(key) for key in ("file", "id", "prompt"))
        if not (isinstance(name, str) and isinstance(item, str) and isinstance(caption, str) and name and item):
            raise DataError(f"{folder / MANIFEST} has a row without id, file or prompt.", MAKE)
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{folder / MANIFEST} names {name!r}, which is no file of its folder.", MAKE)
        found[item] = (caption, folder / name)
    if not found:
        raise DataError(f"{folder / MANIFEST} lists no clips.", MAKE)
    return found


def _faded(path: Path, rate: int, length: int) -> Samples:
    samples, _ = audio_io.read(path, rate)
    samples = np.pad(samples[:length], (0, max(0, length - len(samples))))  # resampling rounds by a sample
    samples = samples - samples.mean(dtype=np.float64).astype(np.float32)
    fade = min(int(FADE_SECONDS * rate), length // 4)
    ramp = (0.5 - 0.5 * np.cos(np.linspace(0, np.pi, fade, dtype=np.float32))).astype(np.float32)
    samples[:fade] *= ramp
    samples[length - fade :] *= ramp[::-1]
    return samples


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
