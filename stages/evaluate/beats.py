"""Beat and downbeat tracking against references: F-measure, CMLt, AMLt and Cemgil, as in the literature."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from stages.audio.walk import is_hidden
from stages.beats.annotations import FORMATS, SUFFIXES, read_beats
from stages.errors import DataError
from stages.progress import Progress, silent

SKIPPED_SECONDS = 5.0  # of the start, as mir_eval and the published figures do
METRICS = ("f_measure", "cmlt", "amlt", "cemgil")


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
    "tracks": [{"id", "beats", "downbeats"}], "left_out": [{"id", "reason"}]}. A reference that holds nothing to score
    is left out, and one without downbeats has no score of them, since neither says that the estimate is wrong.
    Raises DataError when a reference has no estimate, or cannot be read, and when none can be scored.
    """
    tracks: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    pairs = list(_pairs(estimates, references))
    for done, (name, estimate, reference) in enumerate(pairs, start=1):
        (found, found_bars), (true, true_bars) = read_beats(estimate), read_beats(reference)
        if _can_be_scored(true):
            bars = score(found_bars, true_bars) if found_bars is not None and _can_be_scored(true_bars) else None
            tracks.append({"id": name, "beats": score(found, true), "downbeats": bars})
        else:
            left_out.append({"id": name, "reason": f"its reference has no beat after {SKIPPED_SECONDS:g} s"})
        progress("scores", done, len(pairs))
    if not tracks:
        raise DataError(f"No reference in {references} has a beat after {SKIPPED_SECONDS:g} s.", FORMATS)
    downbeats = [track["downbeats"] for track in tracks if track["downbeats"] is not None]
    return {
        "n": len(tracks),
        "n_downbeats": len(downbeats),
        "skipped_seconds": SKIPPED_SECONDS,
        "beats": _means([track["beats"] for track in tracks]),
        "downbeats": _means(downbeats) if downbeats else None,
        "tracks": tracks,
        "left_out": left_out,
    }


def _can_be_scored(reference: NDArray[np.float64] | None) -> TypeGuard[NDArray[np.float64]]:
    return reference is not None and bool((reference >= SKIPPED_SECONDS).any())


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in METRICS}


def _pairs(estimates: Path, references: Path) -> Iterator[tuple[str, Path, Path]]:
    if estimates.is_file() and references.is_file():
        yield references.stem, estimates, references
        return
    if not (estimates.is_dir() and references.is_dir()):
        raise DataError(f"{estimates} and {references} must be two files or two folders.", FORMATS)
    found, true = _by_name(estimates), _by_name(references)
    both = sorted(true.keys() & found.keys())
    missing = [name for name in sorted(true.keys() - found.keys()) if _holds_beats(true[name])]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(both) + len(missing)} references have no estimate in {estimates}, "
            f"the first is {missing[0]}.",
            f"Make them with: musicldm prep beats --audio AUDIO --out {estimates}",
        )
    if not both:
        raise DataError(f"There are no references in {references}.", f"Known suffixes: {' '.join(SUFFIXES)}")
    yield from ((name, found[name], true[name]) for name in both)


def _holds_beats(path: Path) -> bool:
    """Whether a file without an estimate is a reference at all, and no README or list of titles."""
    try:
        return len(read_beats(path)[0]) > 0
    except DataError:
        return False


def _by_name(folder: Path) -> dict[str, Path]:
    """Files with one of SUFFIXES by their names without it; hidden ones are passed over."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() in SUFFIXES and not any(map(is_hidden, below.parts)):
            name = below.with_suffix("").as_posix()
            if name in files:
                raise DataError(f"{files[name]} and {path} are both beats of {name}.", "Keep one of them.")
            files[name] = path
    return files
