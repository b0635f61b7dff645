"""How near a set of clips is to real music, over a stated network's embeddings and tags.

FD, IS, KL and `kid_audioldm_eval` are audioldm_eval's, density and coverage those of Naeem et al. 2020 (arXiv
2002.09797), the extrapolation of FD to endless sets that of Chong and Forsyth 2020 (arXiv 1911.07023).
The same metric over another network or another preprocessing is another number; every figure names both.
"""

import itertools
from collections.abc import Callable, Sequence
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
IS_SPLITS, IS_SEED = 10, 2020  # audioldm_eval's; a score over fewer splits is higher and cannot be compared
NEIGHBOURS = 5  # of density and coverage, as in their paper
FD_SIZES, FD_REPEATS = 12, 8  # of the extrapolation: set sizes, and random subsets of each
FD_LEAST = 0.25  # of the set: its smallest subsets
FD_DRAWS = 100  # of the bootstrap, at most: each takes FD_SIZES distances
KID_SUBSETS, KID_SIZE, KID_SEED = 100, 1000, 2020  # audioldm_eval's


def frechet_distance(x: Array, y: Array) -> float:
    """FD of Gaussians fitted to embeddings x (N, D) and y (M, D), in squared units of the embedding.

    |mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2) (Dowson & Landau 1982). The last trace is the sum
    of singular values of X Y^T / sqrt((N - 1)(M - 1)) for centred X and Y: no matrix root, so that a set's
    distance to itself is 0 also where D > N. Raises ValueError for fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a covariance needs two clips")
    return _distance_to(x, y.mean(0), _root(y))


def _distance_to(x: Array, centre: Array, root: Array) -> float:
    """FD of x (N, D) to the Gaussian with mean `centre` and covariance root^T root."""
    a = _root(x)
    trace = float(np.linalg.svd(a @ root.T, compute_uv=False).sum())
    mean = float(np.square(x.mean(0) - centre).sum())
    return max(0.0, mean + float(np.square(a).sum() + np.square(root).sum()) - 2 * trace)


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


def subset_distance(
    xx: Array, yy: Array, xy: Array, subsets: int = KID_SUBSETS, size: int = KID_SIZE, seed: int = KID_SEED
) -> tuple[float, float]:
    """audioldm_eval's KID: mean and standard deviation of `kernel_distance` over random subsets of each set.

    Subsets of equal size, `size` or what the smaller set has, drawn without replacement from NumPy's old generator,
    of x (the generated clips) first, so that the draws are theirs too.
    """
    generator, size = np.random.RandomState(seed), min(size, len(xx), len(yy))
    drawn = []
    for _ in range(subsets):
        i, j = (generator.choice(n, size, replace=False) for n in (len(xx), len(yy)))
        drawn.append(kernel_distance(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)]))
    return float(np.mean(drawn)), float(np.std(drawn))


def density_coverage(made: Array, real: Array, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage of made (M, D) against real (N, D), N > k.

    Each real clip owns the ball up to its k-th nearest real neighbour. Density is the number of balls a made
    clip lies in, on average and over k (1 is as dense as the real set, it may be more); coverage the share of
    balls that hold a made clip. Raises ValueError for too few real clips.
    """
    if len(real) <= k:
        raise ValueError(f"{len(real)} real clips have no {k} neighbours")
    radius = np.partition(_distances(real, real), k, axis=1)[:, k]  # itself is the 0-th
    inside = _distances(real, made) < radius[:, None]
    return float(inside.sum() / (k * len(made))), float(inside.any(1).mean())


def _distances(x: Array, y: Array) -> Array:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(x, y))


def fd_infinity(made: Array, real: Array, seed: int, repeats: int = FD_REPEATS) -> tuple[float, float]:
    """FD extrapolated to endlessly many made clips, and R^2 of the fit.

    FD falls in proportion to 1 / N; a line through the means over `repeats` random subsets of FD_SIZES sizes meets
    1 / N = 0 there. The reference stays whole.
    """
    generator = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(max(2, FD_LEAST * len(made)), len(made), FD_SIZES).round().astype(int))
    centre, root = real.mean(0), _root(real)
    found = np.array([
        [_distance_to(made[generator.choice(len(made), n, replace=False)], centre, root) for n in sizes]
        for _ in range(repeats)
    ])  # fmt: skip
    mean = found.mean(0)
    start, slope = np.polynomial.polynomial.polyfit(1 / sizes, mean, 1)
    spread = float(np.square(mean - mean.mean()).sum())
    fit = 1 - float(np.square(mean - start - slope / sizes).sum()) / spread if spread > 0 else 1.0
    return float(start), fit


def limit_figure(
    made: Array, real: Array, draws: Sequence[tuple[Rows, Rows]], seed: int, n: int, trials: int
) -> dict[str, Any] | None:
    """fd_infinity as a figure, with the R^2 of its fit; None for so few clips that the sizes are no line.

    Its interval is over FD_DRAWS of the bootstrap's `draws` of whole tracks of both sets.
    """
    if len(made) < 2 * FD_SIZES:
        return None
    limit, fit = fd_infinity(made, real, seed)
    replicates = [fd_infinity(made[i], real[j], seed, repeats=1)[0] for i, j in draws[:FD_DRAWS]]
    return distance_figure(limit, replicates, n, trials) | {"r_squared": fit}


def inception_score(p: Array, splits: int = 1, seed: int = IS_SEED) -> float:
    """exp of the mean KL(p(class | clip) || p(class)) over probabilities p (N, K) (Salimans et al. 2016).

    With splits, as in audioldm_eval: the clips are shuffled with the seed, cut into runs of equal length, and
    the scores of the runs averaged.
    """
    shuffled = p[np.random.RandomState(seed).permutation(len(p))] if splits > 1 else p
    cuts = [i * len(p) // splits for i in range(splits + 1)]
    return float(np.mean([_one_score(shuffled[a:b]) for a, b in itertools.pairwise(cuts)]))


def _one_score(p: Array) -> float:
    return float(np.exp((rel_entr(p, p.mean(0, keepdims=True))).sum(1).mean()))


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
        "n_generated_tracks": generated.n_tracks,
        "n_reference_tracks": reference.n_tracks,
        "intervals": intervals(settings),
    }
    result |= _set_distances(generated, reference, settings) | _tag_figures(generated, reference, settings)
    result["warnings"] = _warnings(generated, reference)
    return result


def _set_distances(generated: Embedded, reference: Embedded, settings: Evaluate) -> dict[str, Any]:
    x, y = generated.vectors, reference.vectors
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n, trials = fewest(generated, reference)

    def kid(i: Rows, j: Rows) -> float:
        return kernel_distance(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)])

    draws = _draws(generated, reference, settings)
    distances, kids = [frechet_distance(x[i], y[j]) for i, j in draws], [kid(i, j) for i, j in draws]
    theirs, deviation = subset_distance(xx, yy, xy)
    return {
        "fd": distance_figure(frechet_distance(x, y), distances, n, trials),
        "fd_infinity": limit_figure(x, y, draws, settings.seed, n, trials),
        "kid": distance_figure(kernel_distance(xx, yy, xy), kids, n, trials),
        # estimates the same distance from the same clips, so that its interval is that of all pairs
        "kid_audioldm_eval": distance_figure(theirs, kids, n, trials)
        | {"subsets": KID_SUBSETS, "subset_size": min(KID_SIZE, len(x), len(y)), "subset_deviation": deviation},
        **_neighbours(generated, y, draws),
    }


def intervals(settings: Evaluate) -> str:
    """How the intervals of distances between sets are made."""
    few = f" (fd_infinity {FD_DRAWS})" if settings.bootstrap > FD_DRAWS else ""
    return f"95%, {settings.bootstrap} bootstrap draws{few} of whole tracks, seed {settings.seed}"


def fewest(*sets: Embedded) -> tuple[int, int]:
    """Windows and tracks of the set of the fewest tracks, on which a distance between sets rests."""
    smallest = min(sets, key=lambda one: (one.n_tracks, len(one)))
    return len(smallest), smallest.n_tracks


def _neighbours(generated: Embedded, y: Array, draws: list[tuple[Rows, Rows]]) -> dict[str, Any]:
    """Density and coverage; only the made set is resampled, since a real clip drawn twice has a ball of no size."""
    if len(y) <= NEIGHBOURS:
        return {"density": None, "coverage": None}
    x = generated.vectors
    both = density_coverage(x, y)
    replicates = np.array([density_coverage(x[i], y) for i, _ in draws]).reshape(-1, 2)
    names = ("density", "coverage")
    return {
        k: distance_figure(v, replicates[:, i].tolist(), len(x), generated.n_tracks)
        for i, (k, v) in enumerate(zip(names, both, strict=True))
    }


def _draws(generated: Embedded, reference: Embedded, settings: Evaluate) -> list[tuple[Rows, Rows]]:
    generator = np.random.default_rng(settings.seed)
    left, right = resampler(generated.names), resampler(reference.names)
    pairs = [(left(generator), right(generator)) for _ in range(settings.bootstrap)]
    return [(i, j) for i, j in pairs if min(len(i), len(j)) > 1]


def _tag_figures(generated: Embedded, reference: Embedded, settings: Evaluate) -> dict[str, Any]:
    if generated.logits is None or reference.logits is None:
        return dict.fromkeys(("is_softmax", "is_one_split", "kl_softmax", "kl_sigmoid"))
    p = softmax(generated.logits)
    return {
        "is_softmax": _score(p, IS_SPLITS, generated.names, settings) if len(p) >= 2 * IS_SPLITS else None,
        "is_one_split": _score(p, 1, generated.names, settings),
        **_paired(generated, reference, settings),
    }


def _score(p: Array, splits: int, names: list[str], settings: Evaluate) -> dict[str, Any]:
    draw, generator = resampler(names), np.random.default_rng(settings.seed)
    drawn = [draw(generator) for _ in range(settings.bootstrap)]
    replicates = [inception_score(p[rows], splits) for rows in drawn if len(rows) >= splits]
    return distance_figure(inception_score(p, splits), replicates, len(p), len(set(names))) | {"splits": splits}


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
            "with sets of the same size only, and look at KID, which is unbiased, and at FD-infinity."
        )
    found += [
        f"The {which} set is one file, {len(one)} windows of one track: its own spread is in no interval."
        for which, one in (("generated", generated), ("reference", reference))
        if one.n_tracks == 1
    ]
    if generated.logits is not None and len(generated.names) < 2 * IS_SPLITS:
        found.append(f"IS over {IS_SPLITS} splits needs {2 * IS_SPLITS} clips; there are {len(generated.names)}.")
    if len(reference.names) <= NEIGHBOURS:
        found.append(f"Density and coverage need more than {NEIGHBOURS} reference clips.")
    if sorted(set(generated.rates)) != sorted(set(reference.rates)):
        found.append("Generated and reference files have different sample rates; bandwidth alone moves these figures.")
    if len(generated.vectors) < 2 * FD_SIZES:
        found.append(f"FD-infinity needs {2 * FD_SIZES} generated clips; there are {len(generated.vectors)}.")
    unpaired = len(set(generated.names) - set(reference.names))
    if unpaired:
        kept = len(set(generated.names)) - unpaired
        found.append(f"KL is over the {kept} clips with a reference of the same name; {unpaired} have none.")
    return found
