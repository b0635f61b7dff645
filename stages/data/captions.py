"""Captions for training: the user's own words, joined by words for what was measured of the sound.

Every added word is listed with its measure and value, and nothing is said of what could not be measured.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages import params
from stages.audio import io
from stages.audio.descriptors import SAMPLE_RATE, VERSION, Descriptors, compile_librosa, describe
from stages.audio.musicnn import MusicNN, Name, load_musicnn
from stages.data.manifest import Manifest, Track, read_manifest
from stages.data.parallel import run_each
from stages.errors import DataError
from stages.progress import Progress, silent
from stages.store import read_json, read_jsonl, write_json, write_jsonl, write_text
from stages.tabular import csv_text

MEASURED = "tracks"
CAPTIONS = "captions.jsonl"
PROMPTS = "prompts.csv"
TAGGER: Name = "MTT_musicnn"

# What is worth a word. Levels are of tracks scaled to one peak (audio.peak); the limits leave the middle
# two thirds of the demo music without a word.
MIN_KEY_CORRELATION, MIN_KEY_MARGIN = 0.6, 0.03
QUIET_BELOW_DB, LOUD_ABOVE_DB = -17.0, -11.5  # RMS against the peak
EVEN_BELOW_DB, WIDE_ABOVE_DB = 3.5, 10.5
DARK_BELOW_HZ, BRIGHT_ABOVE_HZ = 900.0, 1900.0
SLOW_BELOW_BPM, FAST_ABOVE_BPM = 85.0, 135.0

# How a label is said; None where we measure the same ourselves, or it says nothing about the music.
SPOKEN: dict[str, str | None] = {
    "slow": None, "fast": None, "loud": None, "quiet": None, "weird": None,
    "classic": "classical", "beats": "beat", "choral": "choir",
    "vocal": "vocals", "singing": "vocals", "voice": "vocals",
    "female": "female vocals", "woman": "female vocals",
    "female vocal": "female vocals", "female voice": "female vocals",
    "male": "male vocals", "man": "male vocals", "male vocal": "male vocals", "male voice": "male vocals",
    "no vocals": "instrumental", "no vocal": "instrumental", "no voice": "instrumental",
}  # fmt: skip


@dataclass(frozen=True)
class Word:
    """A piece of a caption and the number it was said for."""

    text: str
    measure: str
    value: float


def write_captions(
    audio_manifest: Path,
    beats: Path,
    out: Path,
    settings: params.Params,
    jobs: int | None = None,
    progress: Progress = silent,
    *,
    dask: str | None = None,
) -> dict[str, Any]:
    """Measure every track and write `out`/captions.jsonl, and prompts.csv of the test split.

    Returns counts, and as `example` the row of the first track that words were added to. With `captions.measured` false
    nothing is measured, and the captions are the user's own. Measurements are kept in `out`/tracks under the audio's
    hash, so that an interrupted run goes on, and other words, tempos or seeds measure nothing again. `jobs` processes
    at a time (default: one for each CPU), or a Dask cluster. Raises DataError for unreadable audio and for a track
    without a row in `beats`.
    """
    manifest = read_manifest(audio_manifest)
    again = "Track the beats: musicldm prep beats"
    tempos = {row["id"]: row for row in read_jsonl(beats, again)}
    missing = [track.id for track in manifest.tracks if track.id not in tempos]
    if missing:
        raise DataError(f"{beats} has no row for track {missing[0]} ({len(missing)} are missing).", again)
    words: dict[str, list[Word]] = {}
    if settings.captions.measured:
        measured = _measure_all(manifest, out, settings.captions.tags > 0, jobs, progress, dask)
        words = {id: find_words(found, tempos[id], settings) for id, found in measured.items()}
    rows = [_row(track, words.get(track.id, []), settings.captions.seed) for track in manifest.tracks]
    prompts = [(row["id"], row["caption"]) for row in rows if row["split"] == "test"]
    write_text(out / PROMPTS, csv_text(["id", "prompt"], prompts))
    write_jsonl(out / CAPTIONS, rows)
    counts = {"tracks": len(rows), "words": sum(len(row["words"]) for row in rows), "prompts": len(prompts)}
    return counts | {"example": next((row for row in rows if row["words"]), None)}


def _measure_all(
    manifest: Manifest, out: Path, tagged: bool, jobs: int | None, progress: Progress, dask: str | None
) -> dict[str, Descriptors]:
    """Each track's measurements, by its id; those in `out`/tracks are kept."""
    kept = {track.id: _kept(out, track, tagged) for track in manifest.tracks}
    todo = {kept[track.id]: manifest.audio_path(track).absolute() for track in manifest.tracks}
    todo = {file: path for file, path in todo.items() if not file.exists()}
    if todo:
        compile_librosa()
    targets, items = list(todo), [(path, tagged) for path in todo.values()]
    for index, found in run_each(_measure, items, jobs=jobs, dask=dask, label="Captions", progress=progress):
        write_json(targets[index], asdict(found))
    return {id: _read(file) for id, file in kept.items()}


def _kept(out: Path, track: Track, tagged: bool) -> Path:
    return out / MEASURED / f"{track.sha256}-{VERSION}-{TAGGER if tagged else 'untagged'}.json"


def _read(file: Path) -> Descriptors:
    again = f"Remove {file} and run again: musicldm prep captions"
    try:
        return Descriptors(**read_json(file, again))
    except TypeError as error:
        raise DataError(f"{file} holds other measurements than are made now.", again) from error


_taggers: dict[Name, MusicNN] = {}  # one in each process


def _measure(path: Path, tagged: bool) -> Descriptors:
    if tagged and TAGGER not in _taggers:
        _taggers[TAGGER] = load_musicnn(TAGGER)
    samples, _ = io.read(path, SAMPLE_RATE)
    return describe(samples, _taggers[TAGGER] if tagged else None)


def _row(track: Track, words: list[Word], seed: int) -> dict[str, Any]:
    own_seed = int.from_bytes(hashlib.sha256(f"{seed} {track.id}".encode()).digest()[:8], "big")
    return {
        "id": track.id,
        "split": track.split,
        "caption": join(track.caption, words, np.random.default_rng(own_seed)),
        "original": track.caption,
        "words": [{"text": word.text, "measure": word.measure, "value": word.value} for word in words],
    }


def find_words(found: Descriptors, tempo: dict[str, Any], settings: params.Params) -> list[Word]:
    """The words that a track's measurements allow, `tempo` being its row of beats.jsonl."""
    words = _tag_words(found.tags, settings.captions)
    bpm = tempo["tempo_bpm"]
    if bpm is not None and tempo["tempo_confidence"] >= settings.tempo.min_confidence:
        words.append(Word(f"{bpm:.0f} BPM", "tempo_bpm", round(bpm, 2)))
        words += _outside("tempo_bpm", bpm, SLOW_BELOW_BPM, "slow", FAST_ABOVE_BPM, "fast")
    if found.loudness_dbfs is None or found.brightness_hz is None:  # silence
        return words
    if found.key is not None and found.key_correlation >= MIN_KEY_CORRELATION and found.key_margin >= MIN_KEY_MARGIN:
        words.append(Word(found.key, "key_correlation", round(found.key_correlation, 3)))
    peak = 20 * float(np.log10(settings.audio.peak))
    words += _outside(
        "loudness_dbfs", found.loudness_dbfs, peak + QUIET_BELOW_DB, "quiet", peak + LOUD_ABOVE_DB, "loud"
    )
    words += _outside("dynamics_db", found.dynamics_db, EVEN_BELOW_DB, "even level", WIDE_ABOVE_DB, "wide dynamics")
    words += _outside(
        "brightness_hz", found.brightness_hz, DARK_BELOW_HZ, "dark sound", BRIGHT_ABOVE_HZ, "bright sound"
    )
    return words


def _outside(measure: str, value: float, low: float, below: str, high: float, above: str) -> list[Word]:
    text = below if value < low else above if value > high else None
    return [] if text is None else [Word(text, measure, round(value, 2))]


def _tag_words(tags: dict[str, float], settings: params.Captions) -> list[Word]:
    """The most probable labels above the threshold; of those said alike the most probable counts."""
    words: dict[str, Word] = {}
    for label, value in sorted(tags.items(), key=lambda item: (-item[1], item[0])):
        text = SPOKEN.get(label, label)
        sung = any("vocals" in said for said in words)
        contradicts = (text == "instrumental" and sung) or ("instrumental" in words and "vocals" in (text or ""))
        if text is not None and text not in words and value >= settings.tag_threshold and not contradicts:
            words[text] = Word(text, f"{TAGGER} {label}", round(value, 3))
    return list(words.values())[: settings.tags]


def join(original: str, words: list[Word], generator: np.random.Generator) -> str:
    """The user's caption and the words in one text; order and form are drawn, no word is left out."""
    if not words:
        return original
    tags = [word.text for word in words if word.measure.startswith(TAGGER)]
    phrases = [_PHRASES.get(word.measure, "{}").format(word.text) for word in words if word.text not in tags]
    if tags:
        phrases.append(tags[0] if len(tags) == 1 else f"{', '.join(tags[:-1])} and {tags[-1]}")
    text = ", ".join(phrases[i] for i in generator.permutation(len(phrases)))
    form = _FORMS[int(generator.integers(len(_FORMS)))]
    return form.format(original=original.rstrip(" .,;:"), text=text, sentence=text[0].upper() + text[1:])


_PHRASES = {"key_correlation": "in {}"}
_FORMS = ["{original}, {text}", "{original}. {sentence}.", "{original}: {text}", "{sentence}: {original}"]
