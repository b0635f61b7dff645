"""From a dataset to the batches of a training's steps, and what they cost."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from stages.data.dataset import Draw, collate
from stages.training.draws import DRAW
from stages.training.signals import leave_to_parent

Batch = dict[str, Tensor]


class WithDraws(Dataset):
    """The batches of a dataset with their draw seeds, for `stages.training.draws`; in one piece where it can."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, draws: list[Draw]) -> Batch:
        whole = hasattr(self.dataset, "__getitems__")
        batch = self.dataset.__getitems__(draws) if whole else default_collate([self.dataset[draw] for draw in draws])
        return {**batch, DRAW: torch.tensor([seed for _, seed in draws])}


def loader(dataset: Any, draws: Iterable[list[Draw]], device: torch.device, workers: int = 0) -> DataLoader:
    """Batches of the dataset, one for each list of draws."""
    return DataLoader(
        WithDraws(dataset),
        batch_sampler=draws,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=leave_to_parent,
        pin_memory=device.type == "cuda",
    )


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` equal parts, for accumulation."""
    size = len(next(iter(batch.values()))) // count
    return [{key: value[n * size : (n + 1) * size] for key, value in batch.items()} for n in range(count)]


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of what is drawn in one step on one process beside the items' own draws: dropout, mostly."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


class Clock:
    """Seconds a step, and how many of them it waited for its batch; means since they were last asked for."""

    def __init__(self) -> None:
        self.begun, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def waits(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the time it takes to have each."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.steps += 1
            yield batch

    def figures(self) -> dict[str, float]:
        now = time.perf_counter()
        means = {"seconds/step": (now - self.begun) / self.steps, "seconds/wait": self.waited / self.steps}
        self.begun, self.waited, self.steps = now, 0.0, 0
        return means
