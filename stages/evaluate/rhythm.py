"""Does a clip keep the tempo that its prompt states, more often than it keeps that of another prompt."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.beats.tempo import Rhythm
from stages.beats.track import track_files
from stages.errors import DataError
from stages.evaluate.intervals import mean_figure
from stages.evaluate.run import METRICS, clip_prompts
from stages.evaluate.setting import Setting
from stages.evaluate.shuffled import against_shuffled
from stages.params import Params
from stages.progress import Progress, silent
from stages.store import write_json

TOLERANCE = 0.08  # of the stated tempo
OCTAVES = (0.5, 1.0, 2.0)
STATED = re.compile(r"(?<![\d.])(\d{2,3}(?:\.\d+)?) ?BPM\b", re.IGNORECASE)


def stated_bpm(prompt: str) -> float | None:
    """The tempo that a prompt states, e.g. 120 of "calm piano, 120 BPM"."""
    found = STATED.search(prompt)
    return None if found is None else float(found[1])


def rhythm(prompts: Mapping[Path, str], settings: Params, progress: Progress = silent) -> dict[str, Any]:
    """Shares of clips tracked within TOLERANCE of the stated tempo, true pairs against shuffled ones.

    `prompts` has each clip's; those that state no tempo are left out. `with_octaves` also takes half and double the
    tempo for right. A clip without two beats is wrong. Raises DataError when no prompt states a tempo.
    """
    stated = {path: bpm for path, text in prompts.items() if (bpm := stated_bpm(text)) is not None}
    if not stated:
        raise DataError("No prompt states a tempo.", 'Make clips of prompts such as "calm piano, 120 BPM".')
    paths, bpms = list(stated), np.array(list(stated.values()))
    tracked = np.full(len(paths), np.nan)
    for index, found in track_files(paths, settings.beats, progress=progress):
        bpm = Rhythm.measure(paths[index].stem, found.bars, found.seconds).tempo_bpm
        tracked[index] = np.nan if bpm is None else bpm
    names = [prompts[path] for path in paths]
    rows = np.array(list(dict(zip(names, bpms, strict=True)).values()))  # of each different prompt
    result: dict[str, Any] = {
        "backend": settings.beats.backend, "tolerance": TOLERANCE, "n_clips": len(paths),
        "n_without_tempo": len(prompts) - len(paths), "n_untracked": int(np.isnan(tracked).sum()),
    }  # fmt: skip
    for key, octaves in (("within", (1.0,)), ("within_with_octaves", OCTAVES)):
        own = _near(bpms, tracked, octaves)
        pairs = _near(rows[:, None], tracked[None], octaves)
        result[key] = mean_figure(own, names, settings.evaluate.bootstrap, settings.evaluate.seed)
        result[f"{key}_against_shuffled"] = against_shuffled(pairs, names, settings.evaluate.seed)
    return result


def rhythm_of(setting: Setting, generated: Path, out: Path) -> dict[str, Any]:
    """The same for a folder of clips with a manifest or prompts.csv, written to out/metrics.json. Raises DataError."""
    result = rhythm(clip_prompts(generated), setting.params, setting.progress)
    write_json(out / METRICS, result)
    return result


def _near(stated: np.ndarray, tracked: np.ndarray, octaves: tuple[float, ...]) -> np.ndarray:
    """1.0 where the tracked tempo lies within TOLERANCE of the stated one times any of `octaves`; nan is 0."""
    return np.any([np.abs(tracked / (stated * o) - 1) <= TOLERANCE for o in octaves], axis=0).astype(float)
