"""A few numbers of what each stage of a project made, close from machine to machine, to see whether results moved."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile

RECORDED = Path(__file__).parent / "results.json"  # {stage: {"version": its number, "numbers": {name: value}}}
TOLERANCE = 0.01  # relative: processors round differently, and the losses of trainings with them

Numbers = dict[str, float]


def numbers(work: Path) -> dict[str, Numbers]:
    """Of every stage, from a finished `work` folder."""
    audio = [soundfile.read(path, dtype="int16")[0] for path in sorted((work / "audio" / "tracks").glob("*.wav"))]
    beats = _lines(work / "beats" / "beats.jsonl")
    captions = _lines(work / "captions" / "captions.jsonl")
    return {
        "manifest": _manifest(work / "manifest" / "manifest.csv"),
        "resample": {"samples": sum(map(len, audio)), "loudness": float(np.mean([_rms(part) for part in audio]))},
        "beats": {"beats": sum(len(b["beats"]) for b in beats), "seconds": sum(sum(b["downbeats"]) for b in beats)},
        "captions": {"characters": sum(len(row["caption"]) for row in captions)},
        "shards": _arrays(work / "shards"),
        **{name: _losses(work / "checkpoints" / name) for name in ("clap", "vae", "vocoder")},
        "latents": _arrays(work / "latents"),
        "ldm": _losses(work / "checkpoints" / "ldm"),
        "generate": {path.stem: _rms(soundfile.read(path)[0]) for path in (work / "generated").glob("*.wav")},
        "evaluate": {
            f"{path.parent.name}: {key}": value
            for path in (work / "metrics").glob("*/metrics.json")
            for key, value in _values(json.loads(path.read_text(encoding="utf-8")))
        },
        "report": {"rows": (work / "report" / "report.html").read_text(encoding="utf-8").count("<tr")},
    }


def differ(first: Numbers, second: Numbers) -> bool:
    """Whether two stages' numbers are not the same ones, or further apart than processors are."""
    return first.keys() != second.keys() or any(
        not np.isclose(first[name], second[name], rtol=TOLERANCE, atol=1e-4) for name in first
    )


def _manifest(file: Path) -> Numbers:
    with file.open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    splits = {split: sum(row["split"] == split for row in rows) for split in ("train", "valid", "test")}
    return splits | {"seconds": sum(float(row["seconds"]) for row in rows)}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _losses(checkpoints: Path) -> Numbers:
    """The last validation of a training."""
    (log,) = checkpoints.glob("*/log.jsonl")
    return {name: value for name, value in _lines(log)[-1].items() if name.startswith("valid/")}


def _arrays(folder: Path) -> Numbers:
    """Size and mean magnitude of every array of the HDF5 files, those of one name together."""
    found: dict[str, list[np.ndarray]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and item.size:
            found.setdefault(name.rpartition("/")[2], []).append(np.abs(item[()].astype(np.float64)).ravel())

    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(visit)
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    return {f"{name} {what}": float(get(part)) for name, part in joined.items() for what, get in _SUMS.items()}


_SUMS = {"size": np.size, "mean": np.mean}


def _values(metrics: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(metrics, dict):
        if isinstance(metrics.get("value"), float):
            yield key, metrics["value"]
        for name, below in metrics.items():
            yield from _values(below, f"{key}.{name}".lstrip("."))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
