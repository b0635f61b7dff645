"""Exact nearest neighbours by dot product among any number of stored vectors, in flat memory.

NumPy's matrix products in float32 find which groups of rows may hold the nearest: all whose best product is within
float32's rounding of the best of all. Only these are computed again, in float64 and row by row, so the result is
that of a full search in float64, and equal input has an equal similarity bit for bit, whatever is searched
beside it. NumPy's, for its OpenBLAS knows processors that FAISS's takes for ones of 2008 (benchmarks/novelty.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 4096  # of stored vectors multiplied at once: what they make stays in the cache
GROUP_ROWS = 64  # computed again together
QUERY_ROWS = 1024  # searched at once
ROUNDING = 2.0**-23  # of each of the D terms of a float32 product of unit vectors, with a factor of two to spare

Rows = NDArray[np.int64]


def nearest(queries: NDArray[Any], vectors: NDArray[Any], own: Rows | None = None) -> tuple[NDArray[np.float64], Rows]:
    """The largest dot product (Q,) of each query (Q, D) with a row of `vectors` (N, D), and the row.

    All have length 1 (or less). `vectors` may be a memory map of any float type. `own` (Q, 2) are rows (start, stop)
    that a query does not look at; one that may look nowhere has row -1 and product -1. Of equal rows the first is
    found.
    """
    spans = np.zeros((len(queries), 2), np.int64) if own is None else own
    found, rows = np.full(len(queries), -1.0), np.full(len(queries), -1)
    for start in range(0, len(queries), QUERY_ROWS):
        part = slice(start, start + QUERY_ROWS)
        best = _group_maxima(queries[part], vectors, spans[part])
        for i, maxima in enumerate(best.T, start):
            found[i], rows[i] = _exact(queries[i], vectors, spans[i], maxima)
    return found, rows


def _group_maxima(queries: NDArray[Any], vectors: NDArray[Any], own: Rows) -> NDArray[np.float32]:
    """The largest product (ceil(N / GROUP_ROWS), Q) of each query with each group of rows, in float32."""
    asked = np.ascontiguousarray(queries.T, np.float32)
    maxima = np.empty((-(-len(vectors) // GROUP_ROWS), len(queries)), np.float32)
    products = np.empty((BLOCK_ROWS, len(queries)), np.float32)
    for first in range(0, len(vectors), BLOCK_ROWS):
        block = np.asarray(vectors[first : first + BLOCK_ROWS], np.float32)
        size = -(-len(block) // GROUP_ROWS) * GROUP_ROWS
        np.matmul(block, asked, out=products[: len(block)])
        products[len(block) : size] = -np.inf
        for query in np.flatnonzero((own[:, 0] < first + len(block)) & (own[:, 1] > first)):
            start, stop = own[query] - first
            products[max(0, start) : stop, query] = -np.inf
        group = first // GROUP_ROWS
        products[:size].reshape(-1, GROUP_ROWS, len(queries)).max(1, out=maxima[group : group + size // GROUP_ROWS])
    return maxima


def _exact(query: NDArray[Any], vectors: NDArray[Any], own: Rows, maxima: NDArray[np.float32]) -> tuple[float, int]:
    """The largest product in float64, and the first row that has it, among the groups that may hold it."""
    found, row, exact = -1.0, -1, query.astype(np.float64)
    highest = maxima.max(initial=-np.inf)
    for group in np.flatnonzero(maxima >= highest - 2 * ROUNDING * len(query)) if np.isfinite(highest) else ():
        start = int(group) * GROUP_ROWS
        products = (np.asarray(vectors[start : start + GROUP_ROWS], np.float64) * exact).sum(1)
        products[max(0, own[0] - start) : max(0, own[1] - start)] = -np.inf
        at = int(products.argmax())
        if row < 0 or products[at] > found:
            found, row = float(products[at]), start + at
    return found, row
