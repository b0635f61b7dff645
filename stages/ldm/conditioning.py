"""What the UNet is told: a CLAP vector, or the learned null vector that guidance needs (Ho & Salimans 2022)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def with_null(condition: Tensor, null: Tensor, dropped: Tensor | None) -> Tensor:
    """Condition (B, D) with the rows where `dropped` (B,) bool is true replaced by `null` (D,).

    Only a training step passes `dropped`: dropping at inference, as the public code does, would make one
    clip in ten ignore its prompt.
    """
    return condition if dropped is None else torch.where(dropped[:, None], null.to(condition), condition)


def interpolate(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Condition of a mixed clip under text conditioning: l * first + (1 - l) * second, L2-normalised.

    first, second (B, D) L2-normalised text embeddings; weight l (B,) in [0, 1] -> (B, D). The paper leaves
    this case undefined.
    """
    return F.normalize(torch.lerp(second, first, weight[:, None]), dim=-1)
