"""Beat and downbeat tracking against references: F-measure, CMLt, AMLt and Cemgil, as in the literature."""

import csv
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.progress import Progress, silent

SKIPPED_SECONDS = 5.0  # of the start, as mir_eval and the published figures do
SUFFIXES = (".beats", ".csv", ".txt", ".jams", ".json")
METRICS = ("f_measure", "cmlt", "amlt", "cemgil")
_FORMATS = "A line is: seconds, then a tab or a comma, then the position in the bar (1 is the downbeat)."

Beats = tuple[NDArray[np.float64], NDArray[np.float64] | None]


def read_beats(path: Path) -> Beats:
    """Beat times (N,) and downbeat times (M,) in seconds, sorted; None for downbeats where the file has no positions.

    Reads `.beats` and CSV (seconds, optionally position in the bar; `#` comments and one header line are
    skipped) and JAMS (namespaces beat_position and beat). Raises DataError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = _jams_rows(json.loads(text)) if path.suffix in (".jams", ".json") else _text_rows(text)
        times = np.array([time for time, _ in rows], dtype=np.float64)
        positions = [position for _, position in rows]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold beats: {error}.", _FORMATS) from error
    if not np.isfinite(times).all() or (times < 0).any():
        raise DataError(f"{path} holds beat times that are no times.", _FORMATS)
    known = None if None in positions else np.sort(times[np.array(positions, dtype=float) == 1])
    return np.sort(times), known


def score(estimated: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float]:
    """F-measure (+-70 ms), CMLt, AMLt and Cemgil, each 0..1, of beat times in seconds; the first 5 s are dropped.

    By mir_eval.beat, whose definitions hold; perfect estimates score 1. Without beats on either side all are 0.
    """
    from mir_eval import beat

    reference, estimated = beat.trim_beats(reference), beat.trim_beats(estimated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mir_eval warns of empty sides, which score 0
        _, correct, _, any_level = beat.continuity(reference, estimated)
        values = (
            beat.f_measure(reference, estimated),
            correct,
            any_level,
            beat.cemgil(reference, estimated)[0],
        )
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def evaluate_beats(estimates: Path, references: Path, progress: Progress = silent) -> dict[str, Any]:
    """Scores of each estimated file against the reference of the same name, and their means.

    Both are files, or both folders. -> {"n", "n_downbeats", "beats": means, "downbeats": means or None,
    "tracks": [{"id", "beats", "downbeats"}]}. Raises DataError when a reference has no estimate.
    """
    tracks: list[dict[str, Any]] = []
    pairs = list(_pairs(estimates, references))
    for done, (name, estimate, reference) in enumerate(pairs, start=1):
        found, true = read_beats(estimate), read_beats(reference)
        bars = score(found[1], true[1]) if found[1] is not None and true[1] is not None else None
        tracks.append({"id": name, "beats": score(found[0], true[0]), "downbeats": bars})
        progress("scores", done, len(pairs))
    downbeats = [track["downbeats"] for track in tracks if track["downbeats"] is not None]
    return {
        "n": len(tracks),
        "n_downbeats": len(downbeats),
        "skipped_seconds": SKIPPED_SECONDS,
        "beats": _means([track["beats"] for track in tracks]),
        "downbeats": _means(downbeats) if downbeats else None,
        "tracks": tracks,
    }


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in METRICS}


def _pairs(estimates: Path, references: Path) -> Iterator[tuple[str, Path, Path]]:
    if estimates.is_file() and references.is_file():
        yield references.stem, estimates, references
        return
    if not (estimates.is_dir() and references.is_dir()):
        raise DataError(f"{estimates} and {references} must be two files or two folders.", _FORMATS)
    found, true = _by_name(estimates), _by_name(references)
    if not true:
        raise DataError(f"There are no references in {references}.", f"Known suffixes: {' '.join(SUFFIXES)}")
    missing = sorted(true.keys() - found.keys())
    if missing:
        raise DataError(
            f"{len(missing)} of {len(true)} references have no estimate in {estimates}, the first is {missing[0]}.",
            f"Make them with: musicldm prep beats --audio AUDIO --out {estimates}",
        )
    yield from ((name, found[name], true[name]) for name in sorted(true))


def _by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in files:
                raise DataError(f"{files[name]} and {path} are both beats of {name}.", "Keep one of them.")
            files[name] = path
    return files


def _text_rows(text: str) -> list[tuple[float, float | None]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    fields = [next(csv.reader([line])) if "," in line else line.split() for line in lines]
    if fields and not _is_number(fields[0][0]):
        fields = fields[1:]
    return [(float(row[0]), float(row[1]) if len(row) > 1 and row[1].strip() else None) for row in fields]


def _jams_rows(jams: Any) -> list[tuple[float, float | None]]:
    """The first annotation with beat positions, else the first with beats, of a JAMS object."""
    annotations = {one["namespace"]: one for one in reversed(jams["annotations"])}
    chosen = annotations.get("beat_position") or annotations.get("beat")
    if chosen is None:
        raise ValueError("there is no annotation of namespace beat or beat_position")
    data = chosen["data"]
    if isinstance(data, dict):  # the older, columnar form
        data = [{"time": time, "value": value} for time, value in zip(data["time"], data["value"], strict=True)]
    return [(float(one["time"]), _position(one["value"])) for one in data]


def _position(value: Any) -> float | None:
    found = value.get("position") if isinstance(value, dict) else value
    return None if found is None else float(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
