"""Shards of a few real clips, as the trainers read them."""

import csv
import hashlib
import json
from pathlib import Path

import soundfile

from stages.data.shard_writer import write_shards

DEMO = Path(__file__).parents[2] / "data" / "demo"
HEADER = ["id", "path", "caption", "title", "artist", "album", "licence", "split", "seconds", "sample_rate", "sha256"]
SPLITS = {
    "flare_battle_theme": "train", "singularity_awakening": "train", "ufoai_marine01": "train",
    "warzone_new_dawn": "train", "hyperrogue_hr3_caves": "valid", "flare_town_theme": "test",
}  # fmt: skip


def demo_shards(work, params, seconds=11.0):
    """Shards below `work` with four train tracks, one valid and one test track, without beats."""
    tracks, rows, beats, captions = work / "audio" / "tracks", [HEADER], [], []
    tracks.mkdir(parents=True)
    for name, split in SPLITS.items():
        track = name.replace("_", "-")
        samples, rate = soundfile.read(DEMO / f"{name}.ogg", frames=int(seconds * 16_000), dtype="int16")
        soundfile.write(tracks / f"{track}.flac", samples, rate, subtype="PCM_16")
        digest = hashlib.sha256(f"{rate}:".encode() + samples.astype("<i2").tobytes()).hexdigest()
        rows.append([track, f"tracks/{track}.flac", name, name, name.split("_")[0], "", "CC-BY-SA-3.0", split,
                     len(samples) / rate, rate, digest])  # fmt: skip
        beats.append({"id": track, "beats": [], "downbeats": [], "metre": None, "tempo_bpm": None,
                      "mean_bpm": None, "tempo_confidence": 0.0})  # fmt: skip
        captions.append({"id": track, "split": split, "caption": name, "original": name, "words": []})
    with (work / "audio" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    for name, lines in (("beats.jsonl", beats), ("captions.jsonl", captions)):
        (work / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_shards(
        work / "audio" / "manifest.csv", work / "beats.jsonl", work / "captions.jsonl", work / "shards", params
    )
    return work / "shards"
