"""Does it sound like its text: CLAP similarity of captions and generated clips, between two references.

Paper, table 2: the test set's own audio is what a true pair scores, and the best training clip for each
prompt is what copying would score.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.evaluate.embeddings import Embedded
from stages.evaluate.intervals import mean_figure
from stages.evaluate.novelty import Training
from stages.evaluate.shuffled import against_shuffled
from stages.params import Evaluate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """Captions by clip or track name, with their embeddings (N, D), L2-normalised."""

    names: list[str]
    captions: list[str]
    vectors: Array


def by_name(found: Embedded, names: list[str]) -> Array:
    """(N, D): the normalised mean over the windows of each name."""
    of = np.asarray(found.names)
    means = np.stack([found.vectors[of == name].mean(0) for name in names])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def similarities(texts: Texts, heard: Array) -> Array:
    """Dot product (N,) of each caption with the audio of the same name, (N, D) of `by_name`."""
    return np.asarray((texts.vectors * heard).sum(1))


def relevance(
    prompts: Texts,
    generated: Embedded,
    tests: Texts | None,
    test: Embedded | None,
    training: Training | None,
    settings: Evaluate,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures, and one row for each prompt and for each test caption. References are null where there are no shards.

    The test reference is over the tracks the prompts were taken from, where there are any, so that both
    figures are about the same captions. Raises DataError when a prompt has no clip.
    """
    missing = sorted(set(prompts.names) - set(generated.names))
    if missing:
        raise DataError(f"{len(missing)} clips of the manifest have no audio: {missing[0]}.", "Run generate again.")
    heard = by_name(generated, prompts.names)
    scores = similarities(prompts, heard)
    rows = _rows("generated", prompts, scores)
    result: dict[str, Any] = {
        "backbone": generated.backbone,
        "preprocessing": generated.preprocessing + "; windows of a clip averaged and renormalised",
        "n_generated": len(rows),
        "intervals": f"95%, percentiles of {settings.bootstrap} bootstrap draws, seed {settings.seed}",
        "text_audio_similarity": mean_figure(scores, prompts.names, settings.bootstrap, settings.seed),
        "against_shuffled": _shuffled(prompts, heard, settings.seed),
        "test_set_reference": None,
        "retrieval_max_reference": None,
    }
    warnings = list(generated.warnings)
    real_rows: list[dict[str, Any]] = []
    if tests is not None and test is not None:
        own = _restrict(tests, set(prompts.names))
        if len(own.names) < len(prompts.names):
            warnings.append(f"{len(prompts.names) - len(own.names)} prompts are not test captions; the reference is "
                            f"over {len((own if own.names else tests).names)} test tracks.")  # fmt: skip
        own = own if own.names else tests
        own_scores = similarities(own, by_name(test, own.names))
        real_rows = _rows("test_set", own, own_scores)
        result["test_set_reference"] = mean_figure(own_scores, own.names, settings.bootstrap, settings.seed)
    if training is not None:
        best, where = training.search(prompts.vectors)
        result["retrieval_max_reference"] = mean_figure(best, prompts.names, settings.bootstrap, settings.seed)
        for row, score, index in zip(rows, best, where, strict=True):
            row["best_training_track"] = training.place(int(index))[0]
            row["best_training_similarity"] = round(float(score), 6)
    result["warnings"] = warnings
    return result, rows + real_rows


def _shuffled(prompts: Texts, heard: Array, seed: int) -> dict[str, Any] | None:
    """Each different prompt against every clip; `heard` (N, D) are the clips of the prompts' names."""
    rows = [prompts.captions.index(caption) for caption in dict.fromkeys(prompts.captions)]
    return against_shuffled(prompts.vectors[rows] @ heard.T, prompts.captions, seed)


def _rows(which: str, texts: Texts, scores: Array) -> list[dict[str, Any]]:
    columns = {"best_training_track": "", "best_training_similarity": ""}
    found = zip(texts.names, texts.captions, scores, strict=True)
    return [{"set": which, "id": n, "prompt": t, "similarity": round(float(s), 6)} | columns for n, t, s in found]


def _restrict(texts: Texts, names: set[str]) -> Texts:
    kept = [index for index, name in enumerate(texts.names) if name in names]
    return Texts([texts.names[i] for i in kept], [texts.captions[i] for i in kept], texts.vectors[kept])
