"""One self-contained page about a set of generated clips: sound, nearest training music, figures, tables."""

import base64
import csv
import tempfile
from pathlib import Path
from typing import Any

import h5py
import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io as audio_io
from stages.data.hdf5 import attribute, member
from stages.data.shard_index import INDEX, read_index
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.evaluate.embeddings import folder_files
from stages.evaluate.run import METRICS, QUALITY, RELEVANCE
from stages.evaluate.wording import counted, meaning, sample, shown, title
from stages.generate.manifest import MANIFEST, read_manifest
from stages.generate.plots import one_line, spectrogram_pair_png, violin_png
from stages.layout import Layout
from stages.params import Params
from stages.store import read_json, write_text

# The paper's own figures (arXiv 2308.01546): other data, other networks; shown for orientation only.
PAPER_QUALITY = (
    ("model", "FD (PANN)", "FD (VGGish)", "IS", "KL"),
    ("Riffusion", 68.95, 10.77, 1.34, 5.00), ("MuBERT", 31.70, 19.04, 1.51, 4.69),
    ("AudioLDM", 38.92, 3.08, 1.67, 3.65), ("MusicLDM", 26.67, 2.40, 1.81, 3.80),
    ("MusicLDM, mixup", 30.15, 2.84, 1.51, 3.74), ("MusicLDM, BAM", 28.54, 2.26, 1.56, 3.50),
    ("MusicLDM, BLM", 24.95, 2.31, 1.79, 3.40), ("MusicLDM, only TA", 32.40, 2.51, 1.49, 3.96),
    ("MusicLDM, text-finetune", 27.81, 1.75, 1.76, 3.60),
    ("MusicLDM, BAM and text-finetune", 28.22, 1.81, 1.61, 3.61),
    ("MusicLDM, BLM and text-finetune", 26.34, 1.68, 1.82, 3.47),
)  # fmt: skip
PAPER_SIMILARITY = (
    ("model", "text-audio similarity", "SIM_AA@0.90", "SIM_AA@0.95"),
    ("test set (reference)", 0.325, "", ""), ("retrieval max (reference)", 0.423, "", ""),
    ("MuBERT", 0.131, 0.107, 0.0), ("MusicLDM", 0.281, 0.430, 0.047), ("MusicLDM, mixup", 0.234, 0.391, 0.028),
    ("MusicLDM, BAM", 0.266, 0.402, 0.027), ("MusicLDM, BLM", 0.268, 0.401, 0.020),
)  # fmt: skip


def write_report(generated: Path, layout: Layout, params: Params, path: Path, clips: int) -> int:
    """Write the page; returns how many clips it shows: where there are more, the most and the least similar to
    the training music. Evaluations that were not made are named as such. Raises DataError without clips."""
    rows = {
        Path(row["file"]).stem: row for row in (read_manifest(generated) if (generated / MANIFEST).exists() else [])
    }
    files = {file.stem: file for file in folder_files(generated)}
    nearest = [row for row in read_rows(layout.metrics / "novelty" / "nearest.csv") if row["set"] == "generated"]
    order = list(dict.fromkeys([row["id"] for row in nearest if row["id"] in files] + list(files)))
    half = clips // 2
    chosen = order if len(order) <= clips else order[: clips - half] + (order[-half:] if half else [])
    first = {row["id"]: row for row in reversed(nearest)}  # a clip's most similar window comes first in the table
    training = _Training(layout.shards) if first and (layout.shards / INDEX).exists() else None
    cards = [_card(files[name], rows.get(name, {}), first.get(name), training, params) for name in chosen]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.evaluate"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        clips=counted(len(files), "generated clip"), cards=cards, tables=_tables(layout), violins=_violins(layout),
        paper=[("Table 1, quality", PAPER_QUALITY), ("Table 2, relevance and novelty", PAPER_SIMILARITY)],
        settings=next(iter(rows.values()), {}),
    )  # fmt: skip
    write_text(path, page)
    return len(cards)


class _Training:
    """Sound and attribution of training windows."""

    def __init__(self, shards: Path) -> None:
        self.reader = ShardReader(shards)
        self.number = {track.id: i for i, track in enumerate(self.reader.tracks)}
        self.files = {track.id: shards / s.file for s in read_index(shards).shards for track in s.tracks}

    def window(self, row: dict[str, str], params: Params) -> NDArray[np.float32]:
        if row["training_track"] not in self.number:
            raise DataError(
                "The novelty figures are of other shards than these.", "Measure again: musicldm eval novelty"
            )
        index = self.number[row["training_track"]]
        start = round(float(row["training_start_seconds"]) * self.reader.sample_rate)
        stop = min(start + params.audio.clip_samples, self.reader.tracks[index].samples)
        return self.reader.audio(index, start, stop).astype(np.float32) / np.float32(audio_io.FULL_SCALE)

    def attribution(self, track: str) -> str:
        with h5py.File(self.files[track], "r", locking=False) as file:
            group = member(file, track)
            artist, licence = (attribute(group, key, str) or "unknown" for key in ("artist", "licence"))
            title = attribute(group, "title", str) or track
        return f"“{title}” by {artist}, licence: {licence}"


def _card(
    file: Path, row: dict[str, Any], near: dict[str, str] | None, training: _Training | None, params: Params
) -> dict[str, Any]:
    samples, _ = audio_io.read(file, params.audio.sample_rate)
    prompt = str(row.get("prompt", file.stem))
    card: dict[str, Any] = {"id": file.stem, "prompt": prompt, "row": row, "near": None, "audio": _ogg(samples, params)}
    if near is None or training is None:
        return card
    start = round(float(near["start_seconds"]) * params.audio.sample_rate)
    made = samples[start : start + params.audio.clip_samples]
    real = training.window(near, params)
    titles = (f"generated: {one_line(prompt, 45)}", f"nearest in training: {near['training_track']}")
    shown: dict[str, Any] = dict(near)
    shown["audio"] = _ogg(real, params)
    shown["attribution"] = training.attribution(near["training_track"])
    shown["image"] = _base64(spectrogram_pair_png(_tensor(made), _tensor(real), titles, params))
    card["near"] = shown
    return card


def _tensor(samples: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(samples))


def _ogg(samples: NDArray[np.float32], params: Params) -> str:
    with tempfile.TemporaryDirectory(prefix="musicldm-") as folder:
        path = Path(folder) / "clip.ogg"
        audio_io.write(path, samples.clip(-1, 1), params.audio.sample_rate)
        return _base64(path.read_bytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _tables(layout: Layout) -> list[dict[str, Any]]:
    """Our own figures: title, what they were measured with, rows of text, warnings."""
    tables: list[dict[str, Any]] = []
    for name in ("quality", "relevance", "novelty"):
        path = layout.metrics / name / METRICS
        if not path.exists():
            tables.append({"title": name, "missing": f"musicldm eval {name}"})
            continue
        found = read_json(path, f"Measure again: musicldm eval {name}")
        rows = [_shown(key, found[key]) for key in QUALITY + RELEVANCE if found.get(key)]
        for which in ("generated", "held_out") if name == "novelty" else ():
            prefix = f"{which.replace('_', ' ')}: "
            rows += [_shown(key, figure, prefix) for key, figure in (found[which] or {}).items()]
        counts = ", ".join(f"{key[2:].replace('_', ' ')} {n}" for key, n in found.items() if key.startswith("n_"))
        about = f"{found['backbone']}; {found['preprocessing']}; {found['intervals']}; {counts}"
        tables.append({"title": name, "missing": "", "about": about, "rows": rows, "warnings": found["warnings"]})
    return tables


def _shown(key: str, figure: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A figure's row: name, meaning, value, interval and n as text."""
    value, low, high = shown(figure)
    return {"name": prefix + title(key), "meaning": meaning(key), "value": value, "interval": f"{low} to {high}",
            "n": sample(figure)}  # fmt: skip


def _violins(layout: Layout) -> list[dict[str, str]]:
    """Figure 3: text-audio and audio-audio similarity, each with its reference of real music."""
    wanted = (
        ("relevance/prompts.csv", "text-audio similarity", {"generated": "generated", "test_set": "test set"}),
        ("novelty/nearest.csv", "similarity to nearest training clip", {"generated": "generated",
                                                                        "held_out": "held-out real music"}),
    )  # fmt: skip
    figures = []
    for file, label, names in wanted:
        rows = read_rows(layout.metrics / file)
        sets = {shown: [float(r["similarity"]) for r in rows if r["set"] == key] for key, shown in names.items()}
        sets = {shown: values for shown, values in sets.items() if values}
        if sets:
            figures.append({"label": label, "image": _base64(violin_png(sets, label))})
    return figures


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that an evaluation wrote; none where it was not run."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
