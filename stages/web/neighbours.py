"""The training clips nearest to a generated one, with their sound, so that one hears whether it is a copy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io as audio_io
from stages.data.shards import ShardReader
from stages.evaluate.backbones import ClapBackbone
from stages.evaluate.embeddings import Segment, embed, windows
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
        """The COUNT training windows of different tracks that are most like any window of the clip (L,), best first;
        their sound in `<stem>-near-<n>.wav`. Raises DataError for a silent clip."""
        rate, size = self.params.audio.sample_rate, self.params.audio.clip_samples
        samples = waveform.numpy()
        starts = windows(len(samples), size)
        segments = [Segment(stem.name, start / rate, samples[start : start + size], rate) for start in starts]
        queries = embed(segments, self.backbone, self.params.audio, "clip").vectors.astype(np.float32)
        found: list[dict[str, Any]] = []
        for row, query, similarity in self._ranked(queries):
            name, start = self.index.place(row)
            track = self.reader.tracks[self.tracks[name]]
            if any(track.id == other["track"] for other in found):
                continue
            file = f"{stem.name}-near-{len(found) + 1}.wav"
            audio_io.write(stem.with_name(file), self._sound(name, start), rate)
            found.append({"track": track.id, "title": track.title, "artist": track.artist, "file": file,
                          "start_seconds": round(start, 2), "clip_start_seconds": round(starts[query] / rate, 2),
                          "similarity": round(similarity, 4)})  # fmt: skip
            if len(found) == COUNT:
                break
        return found

    def _sound(self, name: str, start_seconds: float) -> NDArray[np.float32]:
        number, size = self.tracks[name], self.params.audio.clip_samples
        first = round(start_seconds * self.params.audio.sample_rate)
        samples = self.reader.audio(number, first, min(first + size, self.reader.tracks[number].samples))
        return samples.astype(np.float32) / np.float32(audio_io.FULL_SCALE)

    def _ranked(self, queries: NDArray[np.float32]) -> Iterator[tuple[int, int, float]]:
        """Training rows, best first, each with the query (Q, D) it is most like and their cosine."""
        vectors = self.index.vectors
        blocks = [vectors[i : i + BLOCK_ROWS] @ queries.T for i in range(0, len(vectors), BLOCK_ROWS)]
        cosine = np.clip(np.concatenate(blocks), -1, 1)
        best = cosine.max(axis=1)
        for row in np.argsort(-best, kind="stable"):
            yield int(row), int(cosine[row].argmax()), float(best[row])
