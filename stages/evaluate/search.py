"""Exact nearest neighbours by dot product in any number of stored vectors, in flat memory.

Beside each block of vectors lie its 8-bit codes. Products of codes, which processors multiply several times
faster than floats, bound every dot product from both sides (Cauchy-Schwarz on the rounding errors, whose
norms are known); only the few pairs whose upper bound reaches the best lower bound are computed from the
vectors themselves. So the result is that of a full search, not an approximation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_ROWS = 16_384
QUERY_ROWS = 1024
CODE_MAX = 127
EXACT_SHARE = 0.02  # of a block's pairs; where more are open, the block is computed whole
SLACK = 1e-5  # rounding of the float32 products

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Coded:
    """A block's codes (n, D) int8, the value of one step, and the largest norms of vectors and rounding errors."""

    codes: NDArray[np.int8]
    step: float
    norm: float
    error: float


def encode(vectors: NDArray[Any]) -> Coded:
    """The codes of a block (n, D)."""
    exact = vectors.astype(np.float32)
    step = max(float(np.abs(exact).max()) / CODE_MAX, 1e-12)
    codes = np.rint(exact / step).astype(np.int8)
    error = np.linalg.norm(exact - codes.astype(np.float32) * np.float32(step), axis=1).max()
    return Coded(codes, step, float(np.linalg.norm(exact, axis=1).max()), float(error))


class Query:
    """Up to QUERY_ROWS queries (Q, D), and the best row found so far for each.

    `own` (Q, 2) are rows (start, stop) that a query does not look at.
    """

    def __init__(self, vectors: NDArray[Any], own: Rows | None = None) -> None:
        self.vectors, self.own = torch.from_numpy(vectors.astype(np.float32)), own
        step = self.vectors.abs().amax(1, keepdim=True).clamp(min=1e-12) / CODE_MAX
        self.codes = (self.vectors / step).round().to(torch.int8)
        self.steps = step[:, 0]
        rounded = self.codes.float() * step
        self.norm, self.error = rounded.norm(dim=1), (self.vectors - rounded).norm(dim=1)
        self.best = torch.full((len(vectors),), -torch.inf)
        self.row = torch.full((len(vectors),), -1, dtype=torch.long)

    def look(self, block: Coded, vectors: NDArray[Any], first: int) -> None:
        """Look through one block, whose first row has the number `first`."""
        scores = torch._int_mm(self.codes, torch.from_numpy(block.codes).T)
        self._hide(scores, first, torch.iinfo(torch.int32).min)
        unit = self.steps * block.step
        bound = self.error * block.norm + self.norm * block.error + SLACK * block.norm
        threshold = ((self.best - bound) / unit).clamp(-2.0e9, 2.0e9)
        lowest = torch.maximum(threshold, scores.amax(1) - 2 * bound / unit)
        rows = (scores.amax(1) >= lowest).nonzero()[:, 0]
        if not len(rows):
            return
        open_pairs = (scores[rows] >= lowest[rows, None].ceil().to(torch.int32)).nonzero()
        if len(open_pairs) > EXACT_SHARE * scores.numel():
            self._compare_whole(vectors, first)
        else:
            self._compare(rows[open_pairs[:, 0]], open_pairs[:, 1], vectors, first)

    def _hide(self, scores: Tensor, first: int, value: float) -> None:
        if self.own is None:
            return
        for query, (start, stop) in enumerate(self.own - first):
            if start < scores.shape[1] and stop > 0:
                scores[query, max(0, int(start)) : int(stop)] = value

    def _compare(self, queries: Tensor, rows: Tensor, vectors: NDArray[Any], first: int) -> None:
        for start in range(0, len(queries), BLOCK_ROWS):
            q, r = queries[start : start + BLOCK_ROWS], rows[start : start + BLOCK_ROWS]
            stored = torch.from_numpy(vectors[r.numpy()].astype(np.float32))
            self._keep(q, r + first, (self.vectors[q] * stored).sum(1))

    def _keep(self, queries: Tensor, rows: Tensor, found: Tensor) -> None:
        """The best of each query; of equal ones the first row."""
        order = np.lexsort((rows.numpy(), -found.numpy(), queries.numpy()))
        q = queries.numpy()[order]
        head = torch.from_numpy(order[np.flatnonzero(np.r_[True, q[1:] != q[:-1]])])
        better = head[found[head] > self.best[queries[head]]]
        self.best[queries[better]], self.row[queries[better]] = found[better], rows[better]

    def _compare_whole(self, vectors: NDArray[Any], first: int) -> None:
        scores = self.vectors @ torch.from_numpy(vectors.astype(np.float32)).T
        self._hide(scores, first, -torch.inf)
        found, at = scores.max(1)
        better = found > self.best
        self.best[better], self.row[better] = found[better], at[better] + first


def nearest(
    queries: NDArray[Any], vectors: NDArray[Any], coded: Iterator[Coded] | None = None, own: Rows | None = None
) -> tuple[NDArray[np.float64], Rows]:
    """The largest dot product (Q,) of each query (Q, D) with a row of `vectors` (N, D), and the row (-1: none).

    `vectors` may be a memory map; `coded` are its blocks of BLOCK_ROWS, else they are made on the way. The
    products returned are in float64 from the stored numbers, so they do not depend on what else is searched.
    """
    groups = [
        Query(queries[start : start + QUERY_ROWS], None if own is None else own[start : start + QUERY_ROWS])
        for start in range(0, len(queries), QUERY_ROWS)
    ]
    for first in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[first : first + BLOCK_ROWS]
        code = encode(block) if coded is None else next(coded)
        for group in groups:
            group.look(code, block, first)
    rows = np.concatenate([group.row.numpy() for group in groups])
    stored = np.asarray(vectors[np.maximum(rows, 0)], np.float64)
    return np.where(rows < 0, -1.0, (queries.astype(np.float64) * stored).sum(1)), rows
