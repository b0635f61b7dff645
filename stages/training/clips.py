"""The clips a training draws from shards, and fixed ones of a split to measure on."""

from collections.abc import Sized

import numpy as np
import torch
from torch import Tensor

from stages.data.dataset import ClipDataset, Draw
from stages.data.shards import ShardReader
from stages.params import Params


def clips(reader: ShardReader, params: Params, split: str = "train") -> ClipDataset:
    """The split's clips at the size and level of `params.audio`. Raises DataError when it has no track."""
    return ClipDataset(reader, split, params.audio.clip_samples, params.audio.peak)


def clips_if_any(reader: ShardReader, params: Params, split: str) -> ClipDataset | None:
    """The same for a valid or test split, which may have no track: then None."""
    return clips(reader, params, split) if any(track.split == split for track in reader.tracks) else None


def spread(dataset: Sized, count: int) -> list[Draw]:
    """At most `count` draws, always the same, spread evenly over the dataset."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), count), dtype=int))
    return [(int(index), 0) for index in chosen]


def random_segments(mel: Tensor, frames: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[int]]:
    """Cut `frames` frames out of each of the log-mels (B, T, F), anywhere, by a generator or torch's global one.

    Returns the segments (B, frames, F) and the first frame of each.
    """
    starts = torch.randint(mel.shape[1] - frames + 1, (len(mel),), generator=generator).tolist()
    return torch.stack([clip[start : start + frames] for clip, start in zip(mel, starts, strict=True)]), starts
