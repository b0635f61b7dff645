"""From a dataset to the batches of a training's steps, and what they cost."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from stages.data.dataset import Draw, collate
from stages.training.draws import DRAW
from stages.training.signals import leave_to_parent

Batch = dict[str, Tensor]
PIPE_BYTES = 16_384  # a quarter of what a pipe holds before its writer must wait for its reader


class WithDraws(Dataset):
    """The batches of a dataset with their draw seeds, for `stages.training.draws`; in one piece where it can."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        whole = hasattr(self.dataset, "__getitems__")
        batch = self.dataset.__getitems__(draws) if whole else default_collate([self.dataset[draw] for draw in draws])
        batch = {**batch, DRAW: torch.tensor([seed for _, seed in draws])}
        if get_worker_info() is None:
            return batch
        return {key: value.numpy() if value.nbytes <= PIPE_BYTES else value for key, value in batch.items()}


def loader(dataset: Any, draws: Iterable[list[Draw]], device: torch.device, workers: int = 0) -> DataLoader:
    """Batches of the dataset, one for each list of draws; `on_device` makes tensors of all that is in them.

    A worker sends what is small as arrays, in the message itself: for each tensor its parent must ask it again, and
    wait until it gets a turn beside the step.
    """
    return DataLoader(
        WithDraws(dataset),
        batch_sampler=draws,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=begin_worker,
        pin_memory=device.type == "cuda",
    )


def begin_worker(worker: int) -> None:
    """A worker hands a batch over by a second thread while it makes the next: let that not wait 5 ms for its turn."""
    leave_to_parent(worker)
    sys.setswitchinterval(1e-4)


def on_device(batch: dict[str, Any], device: torch.device) -> Batch:
    """A loader's batch as tensors on the device."""
    return {key: torch.as_tensor(value).to(device, non_blocking=True) for key, value in batch.items()}


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

    def waits(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
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
