"""The training set, embedded once: a folder that novelty and retrieval search without the audio.

index.json     schema, network, preprocessing, data, and each track's number of windows and frames
vectors.bin    (windows, D) float32 or float16, written as the music streams by
frames.bin     (frames, 80) float16, the sketches of stages.evaluate.spectral
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.evaluate import spectral
from stages.evaluate.backbones import Backbone
from stages.evaluate.cache import EmbeddingCache
from stages.evaluate.embeddings import Segment, embed_stream, preprocessing
from stages.evaluate.search import nearest
from stages.params import Audio
from stages.progress import Progress, silent
from stages.store import atomic_folder, read_json

SCHEMA = 3  # since 3 a CLAP is named by its own content
INDEX = "index.json"
FORMAT = "musicldm training index"
Kept = Literal["float32", "float16"]


@dataclass(frozen=True)
class Track:
    """One training track: its windows and sketch frames lie together, in this order."""

    id: str
    windows: int
    frames: int


def write_index(
    path: Path, segments: Iterable[Segment], backbone: Backbone, audio: Audio, data_digest: str,
    kept: Kept = "float32", cache: EmbeddingCache | None = None, progress: Progress = silent,
) -> "TrainingIndex":  # fmt: skip
    """Write the folder, in flat memory: a batch of vectors and one track's audio at a time.

    `segments` come track by track; `data_digest` names the music. Raises DataError when there is none.
    """
    if backbone.patch_seconds:
        raise DataError(f"{backbone.name} has several vectors for a clip; an index needs one.", "Take clap.")
    tracks: list[Track] = []
    dimensions = 0
    with atomic_folder(path) as folder:
        with (folder / "vectors.bin").open("wb") as vectors, (folder / "frames.bin").open("wb") as frames:
            watched = _sketched(segments, audio, frames, tracks)
            for batch in embed_stream(watched, backbone, audio, "training set", cache, progress):
                rows = np.stack([entry.vectors[0] for _, entry, _ in batch])
                dimensions = rows.shape[1]
                vectors.write(rows.astype(kept).tobytes())
        if not tracks:
            raise DataError("There is no training music to index.", "Check the splits: musicldm data check")
        header = {
            "schema": SCHEMA, "format": FORMAT, "backbone": backbone.name,
            "preprocessing": preprocessing(audio, backbone), "sketch": spectral.VERSION, "data": data_digest,
            "clip_seconds": audio.clip_seconds, "dtype": kept, "dimensions": dimensions,
            "tracks": [[track.id, track.windows, track.frames] for track in tracks],
        }  # fmt: skip
        (folder / INDEX).write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
    return TrainingIndex(path)


def _sketched(segments: Iterable[Segment], audio: Audio, file: IO[bytes], tracks: list[Track]) -> Iterator[Segment]:
    """Pass the windows on; write each track's sketch and note its length when its windows are over."""
    for name, parts in groupby(segments, key=lambda segment: segment.name):
        windows = []
        for segment in parts:
            windows.append(segment.samples)
            yield segment
        frames = spectral.sketch(np.concatenate(windows), audio.sample_rate)
        file.write(frames.tobytes())
        tracks.append(Track(name, len(windows), len(frames)))


class TrainingIndex:
    """An index folder, memory-mapped. Raises DataError when it is missing, cut short, or of a newer version."""

    def __init__(self, path: Path) -> None:
        again = f"Build it again: musicldm eval index --out {path}"
        header = read_json(path / INDEX, again)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DataError(f"{path / INDEX} is not a training index.", again)
        schema = header.get("schema")
        if schema != SCHEMA:
            age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "an older"
            raise DataError(
                f"The index {path} was written by {age} musicldm (schema {schema}; this one reads {SCHEMA}).", again
            )
        self.path = path
        try:
            self.backbone, self.preprocessing = str(header["backbone"]), str(header["preprocessing"])
            self.data, self.clip_seconds = str(header["data"]), float(header["clip_seconds"])
            self.sketch, self.tracks = str(header["sketch"]), [Track(*row) for row in header["tracks"]]
            width, self.kept = int(header["dimensions"]), str(header["dtype"])
            windows, frames = (sum(getattr(t, key) for t in self.tracks) for key in ("windows", "frames"))
            # "c": never written, but torch takes no read-only arrays
            self.vectors = np.memmap(path / "vectors.bin", self.kept, "c", shape=(windows, width))
            self._frames = np.memmap(path / "frames.bin", np.float16, "r", shape=(frames, spectral.BANDS))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"The index {path} is damaged: {error}.", again) from error

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def n_tracks(self) -> int:
        return len(self.tracks)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """The first row of each track, and the number of rows."""
        return np.concatenate([[0], np.cumsum([track.windows for track in self.tracks])]).astype(np.int64)

    def check(self, backbone: str, wanted: str) -> None:
        """Raises DataError unless the index was made with this network and preprocessing."""
        for what, mine, other in (("network", self.backbone, backbone), ("preprocessing", self.preprocessing, wanted),
                                  ("sketch", self.sketch, spectral.VERSION)):  # fmt: skip
            if mine != other:
                raise DataError(
                    f"The index {self.path} was made with another {what} ({mine}) than this evaluation's ({other}); "
                    "their similarities cannot be compared.",
                    f"Build it again: musicldm eval index --out {self.path}",
                )

    def place(self, row: int) -> tuple[str, float]:
        """Track id and start in seconds of a row."""
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return self.tracks[number].id, float(row - self.offsets[number]) * self.clip_seconds

    def search(
        self, queries: NDArray[Any], own: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """stages.evaluate.search.nearest over all rows; `own` (Q,) are numbers of tracks not to look in."""
        spans = None if own is None else np.stack([self.offsets[own], self.offsets[own + 1]], 1)
        return nearest(queries, self.vectors, spans)

    def sketches(self) -> Iterator[tuple[int, spectral.Frames]]:
        """Number and sketch of each track."""
        start = 0
        for number, track in enumerate(self.tracks):
            yield number, np.asarray(self._frames[start : start + track.frames])
            start += track.frames
