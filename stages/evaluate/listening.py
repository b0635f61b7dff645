"""What listeners said: means, paired tests and agreement of a listening test (paper, section 4.3, appendix D)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.evaluate.intervals import holm, mean_figure
from stages.tabular import csv_text

SCALES = ("quality", "relevance", "musicality")  # in the order of the paper's table 2
LOWEST, HIGHEST = 1, 5
RESAMPLES = 9999  # sign flips, where not all of them can be counted
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rating:
    """One answer: who, of which caption's clip (item) by which model, on which scale, 1 to 5."""

    rater: str
    item: str
    model: str
    scale: str
    value: int


def analyse(ratings: Sequence[Rating], models: Sequence[str], bootstrap: int, seed: int) -> dict[str, Any]:
    """Means per model and scale, every pair of models tested, and the raters' agreement.

    The independent unit is the rater: intervals resample raters, and a pair is tested on each rater's mean
    difference over the captions they heard from both. Raises DataError when there is nothing to analyse.
    """
    if not ratings:
        raise DataError("There are no ratings of finished groups yet.", "Let people finish: musicldm eval listen serve")
    scores: dict[str, Any] = {}
    for scale in SCALES:
        found = {model: [r for r in ratings if r.scale == scale and r.model == model] for model in models}
        scores[scale] = {
            model: mean_figure(np.array([float(r.value) for r in own]), [r.rater for r in own], bootstrap, seed)
            for model, own in found.items()
            if own
        }
    return {
        "n_raters": len({r.rater for r in ratings}),
        "n_ratings": len(ratings),
        "intervals": f"95%, percentiles of {bootstrap} bootstrap draws of raters",
        "test": "sign-flip permutation test of raters' mean differences, two-sided; Holm over all pairs and scales",
        "means": scores,
        "pairs": _pairs(ratings, models, seed),
        "agreement": {scale: {"krippendorff_alpha_ordinal": krippendorff(_matrix(ratings, scale))} for scale in SCALES},
    }


def _pairs(ratings: Sequence[Rating], models: Sequence[str], seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for scale in SCALES:
        values = {(r.rater, r.item, r.model): r.value for r in ratings if r.scale == scale}
        for first, second in combinations(models, 2):
            differences: dict[str, list[float]] = {}
            for (rater, item, model), value in values.items():
                if model == first and (rater, item, second) in values:
                    differences.setdefault(rater, []).append(value - values[rater, item, second])
            per_rater = np.array([np.mean(d) for d in differences.values()])
            if len(per_rater):
                p = sign_flip_p(per_rater, seed)
                rows.append({"scale": scale, "first": first, "second": second, "n_raters": len(per_rater),
                             "difference": float(per_rater.mean()), "p": p})  # fmt: skip
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def sign_flip_p(differences: Array, seed: int) -> float:
    """Two-sided p of a mean difference (N,) of 0 when each sign is a coin toss; exact where 2^N <= RESAMPLES."""
    from scipy.stats import permutation_test

    if len(differences) < 2:
        return 1.0
    found = permutation_test(
        (differences,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(min(1.0, found.pvalue))


def krippendorff(matrix: Array) -> float | None:
    """Ordinal alpha of (raters, units) with NaN where a rater did not rate (Krippendorff 2011).

    1 is perfect agreement, 0 that of chance; None when no unit has two ratings or all ratings are equal.
    """
    levels = np.unique(matrix[~np.isnan(matrix)])
    if len(levels) < 2:
        return None
    counts = np.stack([(matrix == level).sum(axis=0) for level in levels], axis=1).astype(float)  # (units, levels)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return None
    raters = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - np.einsum("uk,kl->ukl", counts, np.eye(len(levels)))
    observed = (pairs / (raters - 1)[:, None, None]).sum(axis=0)
    totals = observed.sum(axis=1)
    steps = np.cumsum(totals) - totals / 2  # the mid-rank of each level
    distance = (steps[:, None] - steps[None, :]) ** 2
    expected = np.outer(totals, totals) / (totals.sum() - 1)
    disagreement = float((expected * distance).sum())
    return None if disagreement == 0 else 1 - float((observed * distance).sum()) / disagreement


def _matrix(ratings: Sequence[Rating], scale: str) -> Array:
    chosen = [r for r in ratings if r.scale == scale]
    raters = {name: i for i, name in enumerate(dict.fromkeys(r.rater for r in chosen))}
    units = {unit: i for i, unit in enumerate(dict.fromkeys((r.item, r.model) for r in chosen))}
    matrix = np.full((len(raters), len(units)), np.nan)
    for r in chosen:
        matrix[raters[r.rater], units[r.item, r.model]] = r.value
    return matrix


def table(result: dict[str, Any]) -> dict[str, str]:
    """The right of the paper's table 2 as Markdown, CSV (with intervals) and LaTeX, by file suffix."""
    means = result["means"]
    models = list(dict.fromkeys(model for scale in SCALES for model in means[scale]))
    cells = {m: [f"{means[s][m]['value']:.2f}" if m in means[s] else "—" for s in SCALES] for m in models}
    titles = [scale.capitalize() for scale in SCALES]
    markdown = [f"| Model | {' | '.join(t + ' ↑' for t in titles)} |", "|-|" + "-:|" * len(SCALES)]
    markdown += [f"| {_markdown(m)} | {' | '.join(row)} |" for m, row in cells.items()]
    latex = [r"\begin{tabular}{lccc}", r"\hline", " & ".join(["Model", *(rf"{t} $\uparrow$" for t in titles)]) + r" \\",
             r"\hline", *(" & ".join([_latex(m), *row]) + r" \\" for m, row in cells.items()), r"\hline",
             r"\end{tabular}"]  # fmt: skip
    return {"md": "\n".join(markdown) + "\n", "csv": _csv(means, models), "tex": "\n".join(latex) + "\n"}


def _csv(means: dict[str, Any], models: list[str]) -> str:
    header = ["model", *(f"{s}{suffix}" for s in SCALES for suffix in ("", "_low", "_high", "_n"))]
    figures = {model: [means[s].get(model, {}) for s in SCALES] for model in models}
    keys = ("value", "low", "high", "n")
    return csv_text(header, [[model, *(f.get(k) for f in found for k in keys)] for model, found in figures.items()])


def _markdown(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|")


def _latex(name: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in name)
