"""Fixtures of the data tests."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
import soundfile

DEMO = Path(__file__).parents[2] / "data" / "demo"
RATE = 16_000
HEADER = ["id", "path", "caption", "title", "artist", "album", "licence", "split", "seconds", "sample_rate", "sha256"]


@pytest.fixture(scope="session")
def write_collection():
    """Writes a small resampled collection of real music, as `prep resample`, `beats` and `captions` leave it."""
    return _write_collection


def _write_collection(work: Path, names: list[str], seconds: float = 12.0, test: tuple[str, ...] = ()) -> None:
    """FLACs, manifest.csv, beats.jsonl and captions.jsonl of demo tracks; those in `test` are the test split.

    Beats are a plain 120 BPM grid of four; tracks with `hell` in their name have none.
    """
    audio, rows, beats, captions = work / "audio", [], [], []
    (audio / "tracks").mkdir(parents=True, exist_ok=True)
    for name in names:
        ident = name.replace("_", "-")
        samples, rate = soundfile.read(DEMO / f"{name}.ogg", frames=int(seconds * RATE), dtype="int16")
        assert rate == RATE
        file = audio / "tracks" / f"{ident}.flac"
        soundfile.write(file, samples, rate, subtype="PCM_16")
        split = "test" if name in test else "train"
        digest = hashlib.sha256(f"{rate}:".encode() + samples.astype("<i2").tobytes()).hexdigest()
        rows.append([ident, f"tracks/{ident}.flac", f"music called {name}", name, name.split("_")[0], "", "CC-BY-SA",
                     split, len(samples) / rate, rate, digest])  # fmt: skip
        grid = [] if "hell" in name else [0.5 * beat for beat in range(int(2 * seconds))]
        beats.append({"id": ident, "beats": grid, "downbeats": grid[::4], "metre": 4 if grid else None,
                      "tempo_bpm": 120.0 if grid else None, "mean_bpm": 120.0 if grid else None,
                      "tempo_confidence": 1.0 if grid else 0.0})  # fmt: skip
        captions.append({"id": ident, "split": split, "caption": f"A measured piece called {name}.",
                         "original": f"music called {name}", "words": []})  # fmt: skip
    with (audio / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    for folder, lines in (("beats", beats), ("captions", captions)):
        (work / folder).mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (work / folder / f"{folder}.jsonl").write_text(text, encoding="utf-8")
