"""Is it new: the nearest training music of every generated clip, by two similarities.

CLAP's (paper, table 2) compares windows of training tracks as wholes, and hears style. That of spectrograms
(stages.evaluate.spectral) slides every clip along every training track, and hears copies.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import GateError, UsageError
from stages.evaluate import spectral
from stages.evaluate.embeddings import Embedded
from stages.evaluate.index import TrainingIndex
from stages.evaluate.intervals import mean_figure, share_figure
from stages.params import Evaluate
from stages.progress import Progress, silent


class Training(Protocol):
    """Training windows that can be searched: an index folder, or an embedded set."""

    @property
    def n_tracks(self) -> int: ...
    def __len__(self) -> int: ...
    def place(self, row: int) -> tuple[str, float]: ...
    def search(self, queries: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]: ...


@dataclass(frozen=True)
class Found:
    """What one similarity says of N clips: how near the nearest training music is, and in which track it is."""

    similarity: NDArray[np.float64]
    tracks: list[str]


@dataclass(frozen=True)
class Heard:
    """A set's spectrogram search: its best stretches, and the names of the training tracks they are in."""

    best: spectral.Best
    tracks: list[str]

    def found(self) -> Found:
        similarity = self.best.similarity.astype(np.float64)
        return Found(similarity, [self.tracks[n] if n >= 0 else "" for n in self.best.track])


@dataclass(frozen=True)
class Gate:
    """Fail when more than `share` of the clips have a training neighbour of at least `threshold`."""

    share: float
    threshold: float
    measure: Literal["aa", "mel"] = "aa"

    @property
    def key(self) -> str:
        return f"sim_{self.measure}@{self.threshold:g}"


def parse_gate(text: str) -> Gate:
    """`0.05@0.95` -> Gate(0.05, 0.95); `mel:0@0.7` is about the spectrogram similarity. Raises UsageError."""
    number = r"(0(?:\.\d+)?|1(?:\.0+)?|\.\d+)"
    match = re.fullmatch(f"(mel:)?{number}@{number}", text.strip())
    if match is None:
        raise UsageError(
            f"--fail-over {text!r} is not SHARE@SIMILARITY (0 to 1 each).",
            "E.g.: --fail-over 0.05@0.95, or of the spectrogram similarity: --fail-over mel:0@0.7",
        )
    return Gate(float(match[2]), float(match[3]), "mel" if match[1] else "aa")


def hear(sketches: Sequence[spectral.Frames], index: TrainingIndex, progress: Progress = silent) -> Heard:
    """The most similar stretch of training music for each clip's sketch."""
    best = spectral.search(sketches, list(index.sketches()), progress=progress)
    return Heard(best, [track.id for track in index.tracks])


def novelty(
    generated: Embedded, held_out: Embedded | None, training: Training, settings: Evaluate,
    gates: Iterable[Gate] = (), heard: dict[str, Heard] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Figures, and one row for each generated and held-out window.

    `held_out` are real clips of no training artist: what similarity music has that was not copied. SIM_AA@t is
    the share of windows whose nearest training window has a similarity of at least t; sim_mel@t the same of the
    spectrogram similarity, where `heard` has it for `generated` and `held_out`.
    """
    wanted = {m: sorted({*settings.thresholds, *(g.threshold for g in gates if g.measure == m)}) for m in ("aa", "mel")}
    result: dict[str, Any] = {
        "backbone": generated.backbone,
        "preprocessing": generated.preprocessing,
        "mel": spectral.VERSION if heard else None,
        "n_generated": len(generated.names),
        "n_training_windows": len(training),
        "n_training_tracks": training.n_tracks,
        "intervals": "95%, Wilson for shares, a clip or track one trial; "
        f"percentiles of {settings.bootstrap} bootstrap draws for means",
        "generated": None,
        "held_out": None,
    }
    table: list[dict[str, Any]] = []
    for which, queries in (("generated", generated), ("held_out", held_out)):
        if queries is None:
            continue
        similarity, rows = training.search(queries.vectors)
        similarity = np.clip(similarity, -1, 1)
        result[which] = _figures("aa", queries.names, similarity, wanted["aa"], settings)
        found = _table(which, queries, training, similarity, rows)
        if heard:
            best = heard[which].best
            result[which] |= _figures("mel", queries.names, best.similarity.astype(np.float64), wanted["mel"], settings)
            found = [row | _stretch(heard[which], i) for i, row in enumerate(found)]
        table += sorted(found, key=lambda row: -float(row["similarity"]))
    warnings = list(generated.warnings)
    if held_out is None:
        warnings.append("There is no test split, so there is no reference row of held-out music.")
    return result | {"warnings": warnings}, table


def _table(
    which: str, queries: Embedded, training: Training, similarity: NDArray[np.float64], rows: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """One row a window, in their order."""
    table = []
    for name, start, value, row in zip(queries.names, queries.starts, similarity, rows, strict=True):
        track, at = training.place(int(row))
        table.append({
            "set": which, "id": name, "start_seconds": round(float(start), 3), "similarity": round(float(value), 6),
            "training_track": track, "training_start_seconds": round(at, 3),
        })  # fmt: skip
    return table


def _stretch(heard: Heard, i: int) -> dict[str, Any]:
    number = int(heard.best.track[i])
    return {
        "mel_similarity": round(float(heard.best.similarity[i]), 6),
        "mel_training_track": heard.tracks[number] if number >= 0 else "",
        "mel_training_start_seconds": round(float(heard.best.start[i]), 3),
    }


def _figures(
    measure: str, names: list[str], values: NDArray[np.float64], thresholds: list[float], settings: Evaluate
) -> dict[str, Any]:
    mean = "mean_similarity" if measure == "aa" else "mean_mel_similarity"
    single = values.astype(np.float32)  # so that 0.95 is not missed by what float64 adds
    shares = {
        f"sim_{measure}@{t:g}": share_figure(int((single >= np.float32(t)).sum()), len(names), len(set(names)))
        for t in thresholds
    }
    return shares | {mean: mean_figure(values, names, settings.bootstrap, settings.seed)}


def check_gate(result: dict[str, Any], gate: Gate) -> None:
    """Raises GateError when the measured share is over the gate's."""
    found = result["generated"][gate.key]
    if found["value"] > gate.share:
        what = "spectrogram similarity" if gate.measure == "mel" else "similarity"
        raise GateError(
            f"{found['value']:.1%} of {found['n']} clips have a training clip of {what} >= {gate.threshold:g}; "
            f"the gate allows {gate.share:.1%}.",
            "Look at the nearest pairs: musicldm eval report. Train with mixup, or on more music.",
        )
