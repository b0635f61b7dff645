"""Zero-shot classification with CLAP (paper, table 3): each clip gets the class whose prompt is nearest to it.

Reads the public layouts: ESC-50 (meta/esc50.csv, audio/), UrbanSound8K (metadata/UrbanSound8K.csv, audio/fold*/),
VGGSound (vggsound.csv, its test split, any folder of <id>_<start>.wav), GTZAN (genres/ or genres_original/).
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.audio import io as audio_io
from stages.audio.walk import find_audio
from stages.clap.model import Clap
from stages.errors import DataError
from stages.evaluate.intervals import mean_figure
from stages.params import Evaluate
from stages.progress import Progress, silent

MAP_CLASSES = 10  # mAP@10, as in the CLAP papers; with one true class it is the mean of 1 / rank up to 10


@dataclass(frozen=True)
class Clip:
    """An audio file with its true class, and the fold it belongs to where the set has folds."""

    path: Path
    label: str
    fold: str | None


@dataclass(frozen=True)
class Benchmark:
    """How to read a set, and how its class names become sentences."""

    prompt: str
    read: Callable[[Path], Iterator[Clip]]


def _esc50(folder: Path) -> Iterator[Clip]:
    for row in _rows(folder / "meta" / "esc50.csv", {"filename", "fold", "category"}):
        yield Clip(folder / "audio" / row["filename"], row["category"].replace("_", " "), row["fold"])


def _urbansound8k(folder: Path) -> Iterator[Clip]:
    for row in _rows(folder / "metadata" / "UrbanSound8K.csv", {"slice_file_name", "fold", "class"}):
        path = folder / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
        yield Clip(path, row["class"].replace("_", " "), row["fold"])


def _vggsound(folder: Path) -> Iterator[Clip]:
    files = {path.stem: path for path in find_audio(folder)}
    header = ("id", "start", "label", "split")
    for row in _rows(folder / "vggsound.csv", set(header), header):
        name = f"{row['id']}_{int(row['start']):06d}"
        if row["split"] == "test":
            yield Clip(files.get(name, folder / f"{name}.wav"), row["label"], None)


def _gtzan(folder: Path) -> Iterator[Clip]:
    root = next((folder / name for name in ("genres_original", "genres") if (folder / name).is_dir()), folder)
    for path in (path for path in find_audio(root) if path.parent.parent == root):
        yield Clip(path, path.parent.name, None)


BENCHMARKS = {
    "esc50": Benchmark("This is a sound of {}.", _esc50),
    "urbansound8k": Benchmark("This is a sound of {}.", _urbansound8k),
    "vggsound": Benchmark("This is a sound of {}.", _vggsound),
    "gtzan": Benchmark("This is a {} song.", _gtzan),
}


def _rows(path: Path, columns: set[str], header: tuple[str, ...] | None = None) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.DictReader(file, header) if None not in row.values()]
    except FileNotFoundError:
        raise DataError(f"There is no {path}.", "Give the folder as the set's authors distribute it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if not rows or not columns <= rows[0].keys():
        raise DataError(f"{path} needs the columns {', '.join(sorted(columns))}.", "Give it as it is distributed.")
    return rows


def detect(folder: Path) -> str:
    """The benchmark whose layout a folder has. Raises DataError."""
    marks = {"esc50": "meta/esc50.csv", "urbansound8k": "metadata/UrbanSound8K.csv", "vggsound": "vggsound.csv"}
    found = next((name for name, file in marks.items() if (folder / file).exists()), None)
    if found is None and any((folder / name).is_dir() for name in ("genres", "genres_original")):
        found = "gtzan"
    if found is None:
        raise DataError(
            f"{folder} has the layout of none of {', '.join(BENCHMARKS)}.", "Name one: --benchmark, and see its layout."
        )
    return found


def evaluate_zeroshot(
    folder: Path, name: str, clap: Clap, backbone: str, settings: Evaluate, progress: Progress = silent
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy, mAP@10, accuracy of each fold and class, and a row for each clip.

    Files that the table names and the folder has not are counted in the warnings (VGGSound's videos vanish).
    Raises DataError when nothing is there, or a file cannot be decoded.
    """
    benchmark = BENCHMARKS[name]
    listed = list(benchmark.read(folder))
    clips = [clip for clip in listed if clip.path.is_file()]
    if not clips:
        raise DataError(f"None of the {len(listed)} clips of {name} is below {folder}.", "Check the layout.")
    labels = sorted({clip.label for clip in listed})
    text = clap.embed_text([benchmark.prompt.format(label) for label in labels]).numpy()
    ranks = np.zeros(len(clips), np.int64)
    rows: list[dict[str, Any]] = []
    for number, clip in enumerate(clips):
        scores = text @ _embed(clap, clip.path)
        order = np.argsort(-scores, kind="stable")
        ranks[number] = int(np.flatnonzero(order == labels.index(clip.label))[0]) + 1
        rows.append({"file": clip.path.name, "fold": clip.fold or "", "label": clip.label,
                     "predicted": labels[order[0]], "rank": int(ranks[number])})  # fmt: skip
        progress("Classify", number + 1, len(clips))
    warnings = [f"{len(listed) - len(clips)} of {len(listed)} clips are missing."] if len(clips) < len(listed) else []
    found = _figures(ranks, clips, settings) | {
        "benchmark": name, "backbone": backbone, "prompt": benchmark.prompt, "n_clips": len(clips),
        "n_classes": len(labels), "preprocessing": "whole clip in CLAP's fixed windows, averaged and renormalised",
        "warnings": warnings,
    }  # fmt: skip
    return found, rows


def _embed(clap: Clap, path: Path) -> NDArray[np.float32]:
    import torch

    samples, rate = audio_io.read(path)
    return np.asarray(clap.embed_audio(torch.from_numpy(samples)[None], rate)[0])


def _figures(ranks: NDArray[np.int64], clips: list[Clip], settings: Evaluate) -> dict[str, Any]:
    right = (ranks == 1).astype(np.float64)
    reciprocal = np.where(ranks <= MAP_CLASSES, 1 / ranks, 0.0)
    each = [str(i) for i in range(len(clips))]
    result: dict[str, Any] = {
        "accuracy": mean_figure(right, each, settings.bootstrap, settings.seed),
        f"map@{MAP_CLASSES}": mean_figure(reciprocal, each, settings.bootstrap, settings.seed),
        "class_accuracy": _by([clip.label for clip in clips], right),
    }
    folds = [clip.fold for clip in clips if clip.fold is not None]
    if folds:
        result["fold_accuracy"] = _by(folds, right)
        result["mean_of_folds"] = float(np.mean(list(result["fold_accuracy"].values())))
    return result


def _by(groups: list[str], right: NDArray[np.float64]) -> dict[str, float]:
    names = np.asarray(groups)
    return {str(name): float(right[names == name].mean()) for name in sorted(set(groups))}
