"""How near a set of clips is to real music: FD, KID, IS and KL over a stated network's embeddings and tags.

The same metric over another network or another preprocessing is another number; every figure names both.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from stages.errors import DataError
from stages.evaluate.embeddings import Embedded
from stages.evaluate.intervals import Rows, distance_figure, mean_figure, resampler
from stages.params import Evaluate

Array = NDArray[np.float64]
EPSILON = 1e-6  # under the logarithm of KL, as in audioldm_eval
IS_SPLITS = 1  # a score over more splits is lower and cannot be compared with this one


def frechet_distance(x: Array, y: Array) -> float:
    """FD of Gaussians fitted to embeddings x (N, D) and y (M, D), in squared units of the embedding.

    |mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2) (Dowson & Landau 1982). The last trace is the sum
    of singular values of X Y^T / sqrt((N - 1)(M - 1)) for centred X and Y: no matrix root, so that a set's
    distance to itself is 0 also where D > N. Raises ValueError for fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a covariance needs two clips")
    a, b = (_root(rows) for rows in (x, y))
    trace = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    mean = float(np.square(x.mean(0) - y.mean(0)).sum())
    return max(0.0, mean + float(np.square(a).sum() + np.square(b).sum()) - 2 * trace)


def _root(rows: Array) -> Array:
    """A (k, D) with A^T A the covariance (N - 1 in the denominator) and k = min(N, D)."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(rows) > rows.shape[1] else centred


def kernel(x: Array, y: Array) -> Array:
    """KID's polynomial kernel (x . y / D + 1)^3, (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(xx: Array, yy: Array, xy: Array) -> float:
    """Unbiased MMD^2 from the three kernel matrices (Binkowski et al. 2018, eq. 4); may be below 0."""
    n, m = len(xx), len(yy)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def inception_score(p: Array) -> float:
    """exp of the mean KL(p(class | clip) || p(class)) over probabilities p (N, K) (Salimans et al. 2016)."""
    marginal = p.mean(0, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(marginal))).sum(1).mean()))


def kl_divergences(target: Array, generated: Array) -> Array:
    """KL(target || generated) of each pair (N,), in nats, eps inside the logarithm as in audioldm_eval.

    Rows (N, K) are softmax probabilities, or independent tag probabilities, for which audioldm_eval sums the
    same expression (its `kl_sigmoid`), though it is then no true divergence.
    """
    return np.asarray(rel_entr(target, generated + EPSILON).sum(1))


def softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def quality(generated: Embedded, reference: Embedded, settings: Evaluate) -> dict[str, Any]:
    """All figures with their intervals and N. Raises DataError for fewer than two clips on a side."""
    for which, found in (("generated", generated), ("reference", reference)):
        if len(found.names) < 2:
            raise DataError(
                f"The {which} set has {len(found.names)} clip; a distance between sets needs two on each side.",
                "Make more: musicldm generate --prompts FILE. For one clip there is: musicldm eval relevance",
            )
    result: dict[str, Any] = {
        "backbone": generated.backbone,
        "preprocessing": generated.preprocessing,
        "dimensions": generated.vectors.shape[1],
        "n_generated": len(generated.names),
        "n_reference": len(reference.names),
        "intervals": f"95%, {settings.bootstrap} bootstrap draws of whole tracks, seed {settings.seed}",
    }
    result |= _set_distances(generated, reference, settings) | _tag_figures(generated, reference, settings)
    result["warnings"] = _warnings(generated, reference)
    return result


def _set_distances(generated: Embedded, reference: Embedded, settings: Evaluate) -> dict[str, Any]:
    x, y = generated.vectors, reference.vectors
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n = min(len(x), len(y))

    def kid(i: Rows, j: Rows) -> float:
        return kernel_distance(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)])

    draws = _draws(generated, reference, settings)
    distances = [frechet_distance(x[i], y[j]) for i, j in draws]
    return {
        "fd": distance_figure(frechet_distance(x, y), distances, n),
        "kid": distance_figure(kernel_distance(xx, yy, xy), [kid(i, j) for i, j in draws], n),
    }


def _draws(generated: Embedded, reference: Embedded, settings: Evaluate) -> list[tuple[Rows, Rows]]:
    generator = np.random.default_rng(settings.seed)
    left, right = resampler(generated.names), resampler(reference.names)
    pairs = [(left(generator), right(generator)) for _ in range(settings.bootstrap)]
    return [(i, j) for i, j in pairs if min(len(i), len(j)) > 1]


def _tag_figures(generated: Embedded, reference: Embedded, settings: Evaluate) -> dict[str, Any]:
    if generated.logits is None or reference.logits is None:
        return {"is_softmax": None, "kl_softmax": None, "kl_sigmoid": None}
    p = softmax(generated.logits)
    draw, generator = resampler(generated.names), np.random.default_rng(settings.seed)
    replicates = [inception_score(p[draw(generator)]) for _ in range(settings.bootstrap)]
    score = distance_figure(inception_score(p), replicates, len(p)) | {"splits": IS_SPLITS}
    return {"is_softmax": score, **_paired(generated, reference, settings)}


def _paired(generated: Embedded, reference: Embedded, settings: Evaluate) -> dict[str, Any]:
    """KL of clips paired by name; a name with several clips stands for their mean probabilities."""
    names = [name for name in dict.fromkeys(generated.names) if name in set(reference.names)]
    figures: dict[str, Any] = {"kl_softmax": None, "kl_sigmoid": None}
    activations: dict[str, Callable[[Array], Array]] = {"kl_softmax": softmax, "kl_sigmoid": sigmoid}
    for key, activation in activations.items() if names else ():
        target, made = (_by_name(found, activation, names) for found in (reference, generated))
        figures[key] = mean_figure(kl_divergences(target, made), names, settings.bootstrap, settings.seed)
    return figures


def _by_name(found: Embedded, activation: Callable[[Array], Array], names: list[str]) -> Array:
    p, of = activation(np.asarray(found.logits)), np.asarray(found.names)
    return np.stack([p[of == name].mean(0) for name in names])


def _warnings(generated: Embedded, reference: Embedded) -> list[str]:
    found = [*generated.warnings, *reference.warnings]
    dimensions, n = generated.vectors.shape[1], min(len(generated.names), len(reference.names))
    if n <= dimensions:
        found.append(
            f"FD is biased upwards: {n} clips do not determine a covariance of {dimensions} dimensions; compare it "
            "with sets of the same size only, and look at KID, which is unbiased."
        )
    if sorted(set(generated.rates)) != sorted(set(reference.rates)):
        found.append("Generated and reference files have different sample rates; bandwidth alone moves these figures.")
    unpaired = len(set(generated.names) - set(reference.names))
    if unpaired:
        kept = len(set(generated.names)) - unpaired
        found.append(f"KL is over the {kept} clips with a reference of the same name; {unpaired} have none.")
    return found
