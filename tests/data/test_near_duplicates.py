"""Copies in other encodings, at other levels, cut elsewhere: found on real music, and nothing else is."""

import csv
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages import params
from stages.audio import io
from stages.data import near_duplicates
from stages.data.collect import make_manifest
from stages.data.manifest import read_manifest
from stages.data.near_duplicates import Sketch, Sketcher, find_pairs, similarity
from stages.progress import silent

DEMO = sorted((Path(__file__).parents[2] / "data" / "demo").glob("*.ogg"))
THRESHOLD = params.Manifest().near_duplicate or 0.0
ENCODINGS = {".mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.5}, ".ogg": {"compression_level": 0.8},
             ".flac": {}}  # fmt: skip


def sketch(path: Path) -> Sketch:
    with io.open_audio(path) as audio:
        sketcher = Sketcher(audio.sample_rate)
        for block in audio.blocks():
            sketcher.update(block)
    return sketcher.sketch()


def copy(source: Path, target: Path, start: float, gain: float) -> Path:
    """A lossy copy from `start` seconds on."""
    samples, rate = soundfile.read(source, dtype="float32")
    with soundfile.SoundFile(target, "w", rate, 1, **ENCODINGS[target.suffix]) as file:
        for block in np.array_split(gain * samples[round(start * rate) :], 20):
            file.write(block)
    return target


@pytest.fixture(scope="module")
def sketches() -> list[Sketch]:
    return [sketch(path) for path in DEMO]


def test_no_two_demo_tracks_are_one_recording(sketches: list[Sketch]) -> None:
    assert len(sketches) == 108
    assert sum(len(found) > 0 for found in sketches) >= 105
    alike = [pair.similarity for pair in find_pairs(sketches, 0.1)]
    assert 0.1 < max(alike) < THRESHOLD - 0.3


def test_two_pieces_that_both_fade_in_are_two() -> None:
    """Their loudness goes the same way, which is not what a recording is known by."""

    def faded(seed: int) -> Sketch:
        noise = np.random.default_rng(seed).standard_normal((240, 24)) * 12
        return (noise + np.linspace(-90, 60, 240)[:, None]).astype(np.int8)

    assert np.corrcoef(faded(1).ravel(), faded(2).ravel())[0, 1] > 0.9
    assert similarity(faded(1), faded(2)) < 0.2


def test_lossy_copies_at_other_levels_and_starts_are_found(sketches: list[Sketch], tmp_path: Path) -> None:
    draw = random.Random(2)
    chosen = draw.sample(range(len(DEMO)), 12)
    copies = []
    for number, index in enumerate(chosen):
        target = tmp_path / f"{number}{list(ENCODINGS)[number % 3]}"
        copies.append(sketch(copy(DEMO[index], target, draw.uniform(0, 4), draw.uniform(0.1, 0.9))))
    pairs = find_pairs([*sketches, *copies], THRESHOLD)
    assert {(pair.first, pair.second) for pair in pairs} == {(index, 108 + i) for i, index in enumerate(chosen)}


def test_the_similarity_is_the_correlation_at_the_best_shift() -> None:
    draw = np.random.default_rng(0)
    whole = draw.integers(-60, 60, (120, 24)).astype(np.int8)
    part = (whole[17:97] // 2 + 5).astype(np.int8)

    def centred(levels: np.ndarray) -> np.ndarray:
        levels = levels - levels.mean(axis=1, keepdims=True)
        return (levels - levels.mean(axis=0)).ravel()

    wanted = np.corrcoef(centred(whole[17:97]), centred(part))[0, 1]
    assert similarity(whole, part) == pytest.approx(wanted, abs=1e-9)
    assert similarity(part, whole) == pytest.approx(wanted, abs=1e-9)
    assert similarity(whole, whole) == pytest.approx(1.0)
    assert abs(similarity(whole, draw.integers(-60, 60, (120, 24)).astype(np.int8))) < 0.2
    assert similarity(whole[:10], whole) == -1.0
    assert similarity(np.zeros_like(whole), whole) == -1.0


def test_many_pairs_at_once_are_those_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, by any number of threads, of tracks of any length; every track is every other's neighbour here."""
    monkeypatch.setattr(near_duplicates, "BLOCK_PAIRS", 7)
    monkeypatch.setattr(near_duplicates, "BLOCK_TRACKS", 3)
    draw = np.random.default_rng(3)
    sketches = [draw.integers(-60, 60, (n, 24)).astype(np.int8) for n in (240, 240, 97, 31, 20, 19, 0, 180)]
    sketches += [sketches[0][13:], (sketches[7][:120] // 2).astype(np.int8), sketches[3][4:30]]

    def slowly(first: Sketch, second: Sketch) -> float:
        best = -1.0
        for shift in range(-24, 25):
            a, b = first[max(shift, 0) :].astype(float), second[max(-shift, 0) :].astype(float)
            count = min(len(a), len(b))
            if count >= max(20, min(len(first), len(second)) // 2):
                a, b = (x[:count] - x[:count].mean(axis=1, keepdims=True) for x in (a, b))
                a, b = a - a.mean(axis=0), b - b.mean(axis=0)
                best = max(best, float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())))
        return best

    wanted = {(i, j): slowly(sketches[i], sketches[j]) for i in range(11) for j in range(i + 1, 11)}
    found = find_pairs(sketches, -0.99)
    assert {(pair.first, pair.second) for pair in found} == {pair for pair, alike in wanted.items() if alike > -0.99}
    assert [pair.similarity for pair in found] == pytest.approx([wanted[p.first, p.second] for p in found], abs=1e-9)
    assert [(pair.first, pair.second) for pair in find_pairs(sketches, 0.9)] == [(0, 8), (3, 10), (7, 9)]


def test_memory_does_not_grow_with_the_square_of_the_collection() -> None:
    draw = np.random.default_rng(4)
    sketches = [draw.integers(-60, 60, (20, 24)).astype(np.int8) for _ in range(2000)]
    tracemalloc.start()
    near_duplicates._candidates(sketches, silent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # an index for each product of 2,000 with 2,000 is 32 MB


def test_what_is_short_silent_or_steady_is_not_compared() -> None:
    def made(samples: np.ndarray, rate: int = 16_000) -> Sketch:
        sketcher = Sketcher(rate)
        for block in np.array_split(samples.astype(np.float32), 7):
            sketcher.update(block)
        return sketcher.sketch()

    noise = np.random.default_rng(1).standard_normal(30 * 16_000)
    steady = [made(np.sin(np.arange(30 * 16_000) * 0.2)), made(np.sin(np.arange(30 * 16_000) * 0.2) * 0.5)]
    assert len(made(noise[: 4 * 16_000])) == len(made(np.zeros(30 * 16_000))) == len(made(noise[:0])) == 0
    assert len(made(noise)) == 120
    assert find_pairs([*steady, made(noise[: 4 * 16_000]), made(noise[: 4 * 16_000])], THRESHOLD) == []
    assert find_pairs([], THRESHOLD) == find_pairs([made(noise)], THRESHOLD) == []
    assert made(noise[: 8 * 16_000], 4000).shape[1] == 24  # bands beyond half of a low rate are empty


def test_copies_share_a_split_and_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "music"
    source.mkdir()
    rows = []
    for number, track in enumerate(DEMO[:4]):
        (source / track.name).symlink_to(track)
        rows.append({"path": track.name, "caption": "c", "artist": f"artist {number}"})
    for number, suffix in enumerate((".mp3", ".ogg")):
        copy(DEMO[number], source / f"copy{suffix}", 1.3, 0.4)
        rows.append({"path": f"copy{suffix}", "caption": "c", "artist": "thief"})
    (source / "captions.json").write_text(json.dumps(rows))
    settings = params.Manifest(valid_share=0.2, test_share=0.2)
    made = make_manifest(source, None, tmp_path / "out", settings)
    names = {"copy.mp3": DEMO[0].name, "copy.ogg": DEMO[1].name}
    listed = list(csv.DictReader((tmp_path / "out" / "duplicates.csv").open(encoding="utf-8")))
    assert {(row["path"], row["copy_of"]) for row in listed} == {(b, a) if a < b else (a, b) for a, b in names.items()}
    assert all(THRESHOLD <= float(row["similarity"]) < 1 for row in listed)
    track = {track.path: track for track in read_manifest(tmp_path / "out").tracks}
    assert len({track[name].split for pair in names.items() for name in pair}) == 1
    assert all(track[a].recording == track[b].recording != "" for a, b in names.items())
    assert track["copy.mp3"].recording != track["copy.ogg"].recording
    assert len(made.duplicates) == 2
    off = make_manifest(source, None, tmp_path / "off", settings.model_copy(update={"near_duplicate": None}))
    assert off.duplicates == ()
