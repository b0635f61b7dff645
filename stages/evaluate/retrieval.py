"""The baseline that makes nothing: for each prompt, the training clip nearest to it (MuBERT's kind, table 2)."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.audio import io as audio_io
from stages.data.shards import ShardReader
from stages.evaluate.novelty import Training
from stages.evaluate.relevance import Texts
from stages.generate.manifest import MANIFEST
from stages.params import Audio
from stages.store import atomic_folder, write_jsonl


def retrieve(prompts: Texts, training: Training, reader: ShardReader, audio: Audio, out: Path) -> list[dict[str, Any]]:
    """Write `<id>.wav` and a manifest for each prompt, as `generate` does; returns the manifest's rows.

    Nearest is by CLAP similarity of caption and training window, so text relevance is what retrieval can reach
    and novelty is nil.
    """
    similarity, found = training.search(prompts.vectors)
    number = {track.id: i for i, track in enumerate(reader.tracks)}
    rows = []
    with atomic_folder(out) as folder:
        for name, prompt, score, row in zip(prompts.names, prompts.captions, similarity, found, strict=True):
            track, seconds = training.place(int(row))
            i, start = number[track], round(seconds * audio.sample_rate)
            stop = min(start + audio.clip_samples, reader.tracks[i].samples)
            samples = reader.audio(i, start, stop).astype(np.float32) / np.float32(audio_io.FULL_SCALE)
            audio_io.write(folder / f"{name}.wav", samples, audio.sample_rate)
            rows.append({
                "id": name, "file": f"{name}.wav", "prompt": prompt, "seed": 0, "system": "retrieval",
                "training_track": track, "training_start_seconds": round(seconds, 3),
                "clap_score": round(float(score), 6),
            })  # fmt: skip
        write_jsonl(folder / MANIFEST, rows)
    return rows
