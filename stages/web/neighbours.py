"""The training clips nearest to a generated one, with their sound, so that one hears whether it is a copy."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stages.audio import io as audio_io
from stages.data.shards import ShardReader
from stages.evaluate.backbones import ClapBackbone
from stages.evaluate.embeddings import Segment, embed
from stages.evaluate.index import TrainingIndex
from stages.evaluate.run import index_training
from stages.params import Params
from stages.progress import Progress

COUNT = 3
BLOCK_ROWS = 65_536


class Neighbours:
    """The index of the train split as one model's CLAP hears it; built at the first clip, then found again.

    Raises DataError when there are no shards."""

    def __init__(self, shards: Path, model: Path, params: Params, cache: Path, progress: Progress) -> None:
        self.reader, self.params = ShardReader(shards), params
        path, _ = index_training(shards, model, params, None, cache, "float32", False, progress)
        self.index = TrainingIndex(path)
        self.backbone = ClapBackbone(model, params.audio.sample_rate)
        self.tracks = {track.id: i for i, track in enumerate(self.reader.tracks)}

    def write(self, waveform: Tensor, stem: Path) -> list[dict[str, Any]]:
        """The COUNT nearest windows of different tracks, best first; their sound in `<stem>-near-<n>.wav`."""
        rate = self.params.audio.sample_rate
        segment = Segment(stem.name, 0.0, waveform[: self.params.audio.clip_samples].numpy(), rate)
        query = embed([segment], self.backbone, self.params.audio, "clip").vectors[0].astype(np.float32)
        found: list[dict[str, Any]] = []
        for row, similarity in self._ranked(query):
            name, start = self.index.place(row)
            track = self.reader.tracks[self.tracks[name]]
            if any(track.id == other["track"] for other in found):
                continue
            first = round(start * rate)
            last = min(first + self.params.audio.clip_samples, track.samples)
            samples = self.reader.audio(self.tracks[name], first, last).astype(np.float32) / np.float32(
                audio_io.FULL_SCALE
            )
            file = f"{stem.name}-near-{len(found) + 1}.wav"
            audio_io.write(stem.with_name(file), samples, rate)
            found.append({"track": track.id, "title": track.title, "artist": track.artist, "file": file,
                          "start_seconds": round(start, 2), "similarity": round(similarity, 4)})  # fmt: skip
            if len(found) == COUNT:
                break
        return found

    def _ranked(self, query: np.ndarray) -> list[tuple[int, float]]:
        vectors = self.index.vectors
        blocks = [vectors[i : i + BLOCK_ROWS] @ query for i in range(0, len(vectors), BLOCK_ROWS)]
        cosine = np.clip(np.concatenate(blocks), -1, 1)
        return [(int(row), float(cosine[row])) for row in np.argsort(-cosine, kind="stable")]
