"""Training clips from shards, and the order they are drawn in: a function of the seed and the step alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from stages.audio.io import FULL_SCALE
from stages.data.shards import ShardReader
from stages.errors import DataError, ParamsError

Draw = tuple[int, int]
"""(window index, draw seed): what a sampler asks a ClipDataset for."""


class Clip(TypedDict):
    """`audio` float32 (clip_samples,) in [-peak, peak]; `track` its index in the reader."""

    audio: Tensor
    track: int


@dataclass(frozen=True)
class Window:
    """A clip of `track` that may start anywhere in first .. last, both included (samples)."""

    track: int
    first: int
    last: int


class ClipDataset(Dataset[Clip]):
    """The clips of one split. Every stretch of a track belongs to one window; the draw seed places the clip in it.

    Raises DataError when the split has no track.
    """

    def __init__(self, reader: ShardReader, split: str, clip_samples: int, peak: float) -> None:
        self.reader, self.clip_samples, self.peak = reader, clip_samples, peak
        self.windows = [
            window
            for number, track in enumerate(reader.tracks)
            if track.split == split
            for window in _windows(number, track.samples, clip_samples)
        ]
        if not self.windows:
            raise DataError(
                f"{reader.folder} has no track in the split {split!r}.",
                "Change manifest.valid_share or test_share, then: musicldm prep manifest",
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, draw: Draw) -> Clip:
        audio = torch.zeros(self.clip_samples)
        self._fill(audio.numpy(), *draw)
        return {"audio": audio, "track": self.windows[draw[0]].track}

    def __getitems__(self, draws: list[Draw]) -> dict[str, Tensor]:
        """A batch made in one piece, which a DataLoader asks for and `collate` leaves as it is.

        audio (B, clip_samples) float32, track (B,) int64. A worker makes it where its parent can read it:
        zeros put there afterwards cost half as much again as all the rest.
        """
        shape = (len(draws), self.clip_samples)
        audio = torch.zeros(shape) if get_worker_info() is None else _shared_zeros(shape)
        for row, draw in zip(audio.numpy(), draws, strict=True):
            self._fill(row, *draw)
        return {"audio": audio, "track": torch.tensor([self.windows[index].track for index, _ in draws])}

    def _fill(self, row: NDArray[np.float32], index: int, seed: int) -> None:
        window = self.windows[index]
        start = int(np.random.Generator(np.random.Philox(key=seed)).integers(window.first, window.last + 1))
        stop = min(start + self.clip_samples, self.reader.tracks[window.track].samples)
        normalise(self.reader.audio(window.track, start, stop), self.peak, row[: stop - start])


def _shared_zeros(shape: tuple[int, int]) -> Tensor:
    """float32 in shared memory, which begins as zeros; made as torch's own `default_collate` makes it."""
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(torch.float32.itemsize * shape[0] * shape[1])
    return torch.empty(0).set_(storage).view(shape)


def _windows(track: int, samples: int, clip_samples: int) -> list[Window]:
    """As many windows as whole clips fit, their starts dividing the possible ones equally; at least one."""
    starts = max(samples - clip_samples, 0) + 1
    edges = np.linspace(0, starts, max(samples // clip_samples, 1) + 1).astype(int).tolist()
    return [Window(track, first, last - 1) for first, last in pairwise(edges)]


def normalise(samples: NDArray[np.int16], peak: float, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """int16 (L,) -> float32 (L,) with the mean removed and the largest magnitude at `peak` (paper's front-end).

    What stays within one step of 16-bit sound around its mean is silence, and becomes zeros. Writes to `out`
    where it is given: new memory costs more than the sums.
    """
    mean = np.float32(samples.mean(dtype=np.float64))
    centred = np.subtract(samples, mean, out=out, dtype=np.float32)
    largest = max(np.float32(samples.max()) - mean, mean - np.float32(samples.min()))
    centred *= np.float32(peak / largest if largest > 1 else 0.0)
    return centred


def normalise_audio(audio: Tensor, peak: float) -> Tensor:
    """The same for float clips (B, L) in [-1, 1] that were computed: mixed, or decoded."""
    centred = audio.float() - audio.float().mean(1, keepdim=True)
    largest = centred.abs().amax(1, keepdim=True)
    return centred * torch.where(largest > 1 / FULL_SCALE, peak / largest, 0.0)


def collate(items: Any) -> Any:
    """What a dataset's `__getitems__` made into a batch, as it is; a list of items by torch's rule."""
    return items if isinstance(items, dict) else default_collate(items)


class StepBatches(Sampler[list[Draw]]):
    """The batch of every step from `start_step` to `steps`, for a DataLoader's `batch_sampler`.

    All steps read one endless row of draws: epoch after epoch, each a permutation of the items, so every
    item comes once an epoch even where the batch size does not divide their number. The batch of a step is
    a function of (seed, step) alone; `rank` of `world_size` processes gets its slice of it.
    """

    def __init__(
        self,
        n_items: int,
        batch_size: int,
        steps: int,
        start_step: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ParamsError(
                f"train.batch_size {batch_size} cannot be divided among {world_size} processes.",
                f"Make it a multiple of {world_size}.",
            )
        self.n_items, self.batch_size, self.seed = n_items, batch_size, seed
        self.steps, self.start_step = steps, start_step
        share = batch_size // world_size
        self.mine = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return max(self.steps - self.start_step, 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start_step, self.steps):
            yield self.global_batch(step)[self.mine]

    def global_batch(self, step: int) -> list[Draw]:
        """The draws of all processes at one step, batch_size of them."""
        seeds = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, 1, step))))
        draw_seeds = seeds.integers(0, 2**63, self.batch_size).tolist()
        first = step * self.batch_size
        return [(self._item(first + place), draw_seeds[place]) for place in range(self.batch_size)]

    def _item(self, position: int) -> int:
        epoch, place = divmod(position, self.n_items)
        return int(_permutation(self.n_items, self.seed, epoch)[place])


@lru_cache(maxsize=8)
def _permutation(n_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 0, epoch))))
    return generator.permutation(n_items)
