"""What all evaluations share: parameters, folders, and a network with the cache of what it has heard."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.data.shards import ShardReader
from stages.evaluate import spectral
from stages.evaluate.backbones import Backbone, ClapBackbone
from stages.evaluate.cache import EmbeddingCache
from stages.evaluate.embeddings import Embedded, Segment, embed, preprocessing, shard_segments
from stages.evaluate.index import SCHEMA, Kept, TrainingIndex, write_index
from stages.params import Params
from stages.progress import Progress, silent


class Listener:
    """One network, with the cache of what it has heard."""

    def __init__(self, backbone: Backbone, params: Params, cache: Path, progress: Progress) -> None:
        self.backbone, self.params, self.folder, self.progress = backbone, params, cache, progress
        self.cache = EmbeddingCache(cache / "embeddings.sqlite")

    def __call__(self, segments: Iterable[Segment], what: str) -> Embedded:
        return embed(segments, self.backbone, self.params.audio, what, self.cache, self.progress)

    def split(self, reader: ShardReader, split: str) -> Embedded:
        return self(shard_segments(reader, split, self.params.audio), f"{split} split")

    def index(self, reader: ShardReader, path: Path | None = None, kept: Kept = "float32") -> TrainingIndex:
        """The index of the train split: made once for shards, network and preprocessing, then found again."""
        if path is None:
            about = f"{preprocessing(self.params.audio, self.backbone)} {self.backbone.name} {reader.digest}"
            name = hashlib.sha256(f"{about} {SCHEMA} {spectral.VERSION} {kept}".encode()).hexdigest()[:12]
            path = self.folder / f"index-{name}"
            if path.exists():
                return TrainingIndex(path)
        return self.write(path, shard_segments(reader, "train", self.params.audio), reader.digest, kept)

    def write(self, path: Path, segments: Iterable[Segment], data: str, kept: Kept) -> TrainingIndex:
        return write_index(path, segments, self.backbone, self.params.audio, data, kept, self.cache, self.progress)


@dataclass(frozen=True)
class Setting:
    """What all evaluations share: parameters, the folders of shards and CLAP, and where embeddings are kept."""

    params: Params
    shards: Path
    clap: Path
    cache: Path
    progress: Progress = silent

    def listener(self, backbone: Backbone) -> Listener:
        return Listener(backbone, self.params, self.cache, self.progress)

    def clap_backbone(self) -> ClapBackbone:
        return ClapBackbone(self.clap, self.params.audio.sample_rate)
