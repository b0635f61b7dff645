"""The clips a training draws from shards, and fixed ones of a split to measure on."""

import math
from collections.abc import Sized

import numpy as np
import torch
from torch import Tensor

from stages.audio.mel import MelSpectrogram
from stages.data.dataset import ClipDataset, Draw
from stages.data.shards import ShardReader
from stages.params import Params
from stages.training.draws import integers


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


def random_starts(items: list[torch.Generator], frames: int, of: int) -> list[int]:
    """First frames of one segment for each clip of `of` frames, each by its own generator."""
    starts: list[int] = integers(items, of - frames + 1).tolist()
    return starts


def cut(values: Tensor, starts: list[int], length: int) -> Tensor:
    """(B, N, ...) -> (B, length, ...), each row from its own start on."""
    return torch.stack([row[start : start + length] for row, start in zip(values, starts, strict=True)])


def mel_segments(front_end: MelSpectrogram, audio: Tensor, starts: list[int], frames: int) -> Tensor:
    """The same as cutting `frames` frames from each clip's log-mel, computed from the sound around them only.

    audio (B, L) -> (B, frames, F). At a segment's inner edges the clip's own sound goes on, at the clip's
    ends it is reflected as in the whole clip's mel.
    """
    hop = front_end.hop_length
    context = math.ceil(front_end.n_fft / 2 / hop)
    length = min(frames + 2 * context, audio.shape[1] // hop)
    first = [min(max(start - context, 0), audio.shape[1] // hop - length) for start in starts]
    around = front_end(cut(audio, [start * hop for start in first], length * hop))
    return cut(around, [start - begin for start, begin in zip(starts, first, strict=True)], frames)
