"""How far a figure can be trusted: 95% intervals by resampling whole tracks, Wilson's for shares; Holm's p values."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964  # normal quantile of 0.975
Array = NDArray[np.float64]
Rows = NDArray[np.int64]


def resampler(groups: Sequence[str]) -> Callable[[np.random.Generator], Rows]:
    """Draws of row numbers with replacement, by group: clips of one track are not independent of each other."""
    names = np.asarray(groups)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]

    def draw(generator: np.random.Generator) -> Rows:
        chosen = generator.integers(len(members), size=len(members))
        return np.concatenate([members[i] for i in chosen])

    return draw


def mean_figure(values: Array, groups: Sequence[str], bootstrap: int, seed: int) -> dict[str, Any]:
    """Mean of values (N,) with the percentile bootstrap interval."""
    generator, draw = np.random.default_rng(seed), resampler(groups)
    means = [float(values[draw(generator)].mean()) for _ in range(bootstrap)]
    low, high = np.quantile(means, [0.025, 0.975])
    return figure(float(values.mean()), float(low), float(high), len(values), len(set(groups)))


def distance_figure(value: float, replicates: Sequence[float], n: int, trials: int | None = None) -> dict[str, Any]:
    """A distance with value -+ 1.96 bootstrap standard errors; n and trials as in `figure`.

    Not the percentiles: a resampled set holds clips twice, which moves every distance between distributions
    upwards, so that the percentile interval need not even hold the value.
    """
    error = Z_95 * float(np.std(np.asarray(replicates), ddof=1)) if len(replicates) > 1 else 0.0
    return figure(value, value - error, value + error, n, trials)


def ratio_figure(
    above: float, below: float, draws_above: Sequence[float], draws_below: Sequence[float], n: int,
    trials: int | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """above / below, times and over exp of 1.96 bootstrap standard errors of its logarithm.

    The draws belong together one by one. None when a distance is nothing.
    """
    if below <= 0 or above <= 0 or min(*draws_above, *draws_below, 1.0) <= 0:
        return None
    logs = np.log(draws_above) - np.log(draws_below)
    factor = math.exp(Z_95 * float(np.std(logs, ddof=1))) if len(logs) > 1 else 1.0
    return figure(above / below, above / below / factor, above / below * factor, n, trials)


def share_figure(hits: int, n: int, trials: int | None = None) -> dict[str, Any]:
    """hits / n with Wilson's score interval, which is honest at 0 and 1 (Wilson 1927).

    `trials` as in `figure`.
    """
    p, m, z2 = hits / n, trials or n, Z_95**2
    centre = (p + z2 / (2 * m)) / (1 + z2 / m)
    half = Z_95 * math.sqrt(p * (1 - p) / m + z2 / (4 * m * m)) / (1 + z2 / m)
    return figure(p, max(0.0, centre - half), min(1.0, centre + half), n, trials)


def holm(p: Sequence[float]) -> list[float]:
    """Step-down corrected p values in the given order (Holm 1979)."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def figure(value: float, low: float, high: float, n: int, trials: int | None = None) -> dict[str, Any]:
    """A value with its 95% interval. `trials` is how many of the n cases are independent of each other, where not all
    are: the tracks they are windows of."""
    return {"value": value, "low": low, "high": high, "n": n, "trials": trials or n}
