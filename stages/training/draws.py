"""Random numbers of a step, one generator for each item of the batch, seeded by the item's draw alone.

So what an item meets does not depend on the process or micro-batch it falls into: several processes, or
accumulation, compute what one process does with the whole batch. Drawn on the CPU, equal on every device.
"""

import torch
from torch import Tensor

DRAW = "draw"  # the batch's name for its items' seeds, (B,) int64


def generators(batch: dict[str, Tensor]) -> list[torch.Generator]:
    """One for each item of a batch, at its beginning; who draws first must always draw first."""
    return [torch.Generator().manual_seed(seed) for seed in batch[DRAW].tolist()]


def normal(items: list[torch.Generator], *shape: int) -> Tensor:
    """Standard normal numbers (B, *shape) float32."""
    return torch.stack([torch.randn(shape, generator=item) for item in items])


def uniform(items: list[torch.Generator]) -> Tensor:
    """Numbers in [0, 1), (B,) float32."""
    return torch.stack([torch.rand((), generator=item) for item in items])


def integers(items: list[torch.Generator], high: int) -> Tensor:
    """Whole numbers in [0, high), (B,) int64."""
    return torch.stack([torch.randint(high, (), generator=item) for item in items])
