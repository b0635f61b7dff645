"""Does the prompt matter: what clips score with their own prompts against the same clips with each other's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
Array = NDArray[np.float64]


def against_shuffled(scores: Array, of_clips: Sequence[str], seed: int) -> dict[str, Any] | None:
    """Mean score of true and of shuffled pairs, and the chance of the former by luck; None for one prompt.

    scores (P, N): of each of P different prompts with each of N clips; `of_clips` names each clip's prompt, in the
    order of its first clip that of the rows. Clips of one prompt are averaged first, so that prompts count alike and
    their clips are no independent cases. p is that of a permutation test, one-sided: (1 + draws at least as good) /
    (1 + draws), over permutations of the prompts (Phipson & Smyth 2010).
    """
    names = list(dict.fromkeys(of_clips))
    if len(names) < 2:
        return None
    clips = np.asarray(of_clips)
    means = np.stack([scores[:, clips == name].mean(1) for name in names], axis=1)
    own = np.arange(len(names))
    true = float(means[own, own].mean())
    generator = np.random.default_rng(seed)
    drawn = np.array([means[own, generator.permutation(len(names))].mean() for _ in range(DRAWS)])
    return {
        "true": true,
        "shuffled": float((means.sum() - means.trace()) / (means.size - len(names))),
        "p": float((1 + (drawn >= true - 1e-12).sum()) / (1 + DRAWS)),
        "prompts": len(names),
        "clips": len(clips),
    }
