"""Is it new: the nearest training window of every generated clip, by CLAP audio similarity (paper, table 2)."""

import re
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from stages.errors import GateError, UsageError
from stages.evaluate.embeddings import Embedded
from stages.evaluate.intervals import mean_figure, share_figure
from stages.params import Evaluate


@dataclass(frozen=True)
class Gate:
    """Fail when more than `share` of the clips have a training neighbour of at least `threshold`."""

    share: float
    threshold: float


def parse_gate(text: str) -> Gate:
    """`0.05@0.95` -> Gate(0.05, 0.95). Raises UsageError."""
    number = r"(0(?:\.\d+)?|1(?:\.0+)?|\.\d+)"
    match = re.fullmatch(f"{number}@{number}", text.strip())
    if match is None:
        raise UsageError(f"--fail-over {text!r} is not SHARE@SIMILARITY (0 to 1 each).", "E.g.: --fail-over 0.05@0.95")
    return Gate(float(match[1]), float(match[2]))


def nearest(queries: Embedded, training: Embedded) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine (N,) of each window with its nearest training window, and that window's row (exact search)."""
    index = faiss.IndexFlatIP(training.vectors.shape[1])
    index.add(training.vectors.astype(np.float32))
    similarity, rows = index.search(queries.vectors.astype(np.float32), 1)
    return np.clip(similarity[:, 0], -1, 1), rows[:, 0]


def novelty(
    generated: Embedded, held_out: Embedded | None, training: Embedded, settings: Evaluate, gate: Gate | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures, and one row for each generated and held-out window.

    `held_out` are real clips of no training artist: what similarity music has that was not copied. SIM_AA@t is
    the share of windows whose nearest training window has a similarity of at least t.
    """
    thresholds = sorted({*settings.thresholds, *([] if gate is None else [gate.threshold])})
    result: dict[str, Any] = {
        "backbone": generated.backbone,
        "preprocessing": generated.preprocessing,
        "n_generated": len(generated.names),
        "n_training_windows": len(training.names),
        "n_training_tracks": len(set(training.names)),
        "intervals": f"95%, Wilson for shares; percentiles of {settings.bootstrap} bootstrap draws for means",
        "generated": None,
        "held_out": None,
    }
    table: list[dict[str, Any]] = []
    for which, queries in (("generated", generated), ("held_out", held_out)):
        if queries is not None:
            similarity, rows = nearest(queries, training)
            result[which] = _figures(queries.names, similarity, thresholds, settings)
            table += _table(which, queries, training, similarity, rows)
    warnings = [*generated.warnings, *training.warnings]
    if held_out is None:
        warnings.append("There is no test split, so there is no reference row of held-out music.")
    return result | {"warnings": warnings}, table


def _table(
    which: str, queries: Embedded, training: Embedded, similarity: NDArray[np.float32], rows: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """One row a window, the most similar first."""
    found = zip(queries.names, queries.starts, similarity, rows, strict=True)
    table = [
        {
            "set": which,
            "id": name,
            "start_seconds": round(float(start), 3),
            "similarity": round(float(value), 6),
            "training_track": training.names[row],
            "training_start_seconds": round(float(training.starts[row]), 3),
        }
        for name, start, value, row in found
    ]
    return sorted(table, key=lambda row: -float(row["similarity"]))


def _figures(
    names: list[str], similarity: NDArray[np.float32], thresholds: list[float], settings: Evaluate
) -> dict[str, Any]:
    values = similarity.astype(np.float64)
    shares = {f"sim_aa@{t:g}": share_figure(int((similarity >= np.float32(t)).sum()), len(names)) for t in thresholds}
    return shares | {"mean_similarity": mean_figure(values, names, settings.bootstrap, settings.seed)}


def check_gate(result: dict[str, Any], gate: Gate) -> None:
    """Raises GateError when the measured share is over the gate's."""
    found = result["generated"][f"sim_aa@{gate.threshold:g}"]
    if found["value"] > gate.share:
        raise GateError(
            f"{found['value']:.1%} of {found['n']} clips have a training clip of similarity >= {gate.threshold:g}; "
            f"the gate allows {gate.share:.1%}.",
            "Look at the nearest pairs: musicldm eval report. Train with mixup, or on more music.",
        )
