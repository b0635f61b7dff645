"""Music that the training set holds twice: the nearest other track of every training window.

Twice the same music counts twice in training and is learned by heart first; and a novelty figure measured
against it says less.
"""

from typing import Any

import numpy as np

from stages.evaluate import spectral
from stages.evaluate.index import TrainingIndex
from stages.evaluate.intervals import share_figure
from stages.params import Evaluate
from stages.progress import Progress, silent

WINDOWS = 1024  # searched at once


def duplicates(
    index: TrainingIndex, settings: Evaluate, progress: Progress = silent
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row for each window, the most similar by spectrogram first, and the shares over the thresholds.

    A window is never compared with its own track, which may well repeat itself.
    """
    own = np.repeat(np.arange(index.n_tracks), [track.windows for track in index.tracks])
    frames = dict(index.sketches())
    length = round(index.clip_seconds * spectral.FRAMES_PER_SECOND)
    rows: list[dict[str, Any]] = []
    for first in range(0, len(index), WINDOWS):
        progress("Look for duplicates", first, len(index))
        numbers = own[first : first + WINDOWS]
        nearest, found = index.search(index.vectors[first : first + WINDOWS], numbers)
        places = [index.place(first + i) for i in range(len(numbers))]
        cut = [round(start * spectral.FRAMES_PER_SECOND) for _, start in places]
        clips = [frames[n][at : at + length] for n, at in zip(numbers, cut, strict=True)]
        best = spectral.search(clips, frames.items(), [int(n) for n in numbers])
        for i, (track, start) in enumerate(places):
            other, at = index.place(int(found[i])) if found[i] >= 0 else ("", 0.0)
            number = int(best.track[i])
            rows.append({
                "track": track, "start_seconds": round(start, 3),
                "similarity": round(float(nearest[i]), 6), "other_track": other, "other_start_seconds": round(at, 3),
                "mel_similarity": round(float(best.similarity[i]), 6),
                "mel_other_track": index.tracks[number].id if number >= 0 else "",
                "mel_other_start_seconds": round(float(best.start[i]), 3),
            })  # fmt: skip
    rows.sort(key=lambda row: -float(row["mel_similarity"]))
    columns = {"aa": "similarity", "mel": "mel_similarity"}
    shares = {
        f"duplicates_{measure}@{t:g}": share_figure(sum(row[column] >= t for row in rows), len(rows), index.n_tracks)
        for measure, column in columns.items()
        for t in settings.thresholds
    }
    return rows, shares
