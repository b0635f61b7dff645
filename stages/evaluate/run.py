"""The three evaluations from folders to metrics.json: which files are read, with which network."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from stages.clap.model import Clap
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.evaluate import novelty as novelty_
from stages.evaluate import quality as quality_
from stages.evaluate import relevance as relevance_
from stages.evaluate.embeddings import (
    Backbone,
    ClapBackbone,
    Embedded,
    MusicnnBackbone,
    cached,
    embed,
    folder_files,
    folder_segments,
    shard_segments,
)  # fmt: skip
from stages.generate.batch import MANIFEST, read_manifest
from stages.params import Params
from stages.progress import Progress, silent
from stages.store import atomic_file, write_json

METRICS = "metrics.json"


def quality(
    generated: Path,
    reference: Path | None,
    shards: Path,
    clap: Path,
    params: Params,
    out: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write out/metrics.json. `reference` None is the test split of `shards`. Raises DataError, ModelError."""
    files = folder_files(generated)
    references = None if reference is None else folder_files(reference)
    backbone = _backbone(params, clap)
    if references is None:
        real = _split(ShardReader(shards), "test", backbone, params, progress)
    else:
        real = embed(folder_segments(references, params.audio), backbone, params.audio, "reference", progress)
    made = embed(folder_segments(files, params.audio), backbone, params.audio, "generated", progress)
    result = quality_.quality(made, real, params.evaluate)
    write_json(out / METRICS, result)
    return result


def relevance(
    generated: Path, shards: Path, clap: Path, params: Params, out: Path, cache: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Write out/metrics.json and out/prompts.csv. Raises DataError when GEN has no manifest of prompts."""
    files = folder_files(generated)
    captions = _prompts(generated)
    known = [path for path in files if path.stem in captions]
    if not known:
        raise DataError(f"No audio file of {generated} is in its {MANIFEST}.", "Make clips with: musicldm generate")
    backbone = ClapBackbone(clap, params.audio.sample_rate)
    made = embed(folder_segments(known, params.audio), backbone, params.audio, "generated", progress)
    if len(known) < len(files):
        made.warnings.append(f"{len(files) - len(known)} files are not in {MANIFEST} and have no prompt.")
    prompts = _texts(backbone.clap, {path.stem: captions[path.stem] for path in known})
    tests = test = training = None
    if (shards / "index.json").exists():
        reader = ShardReader(shards)
        found = {track.id: track.caption for track in reader.tracks if track.split == "test" and track.caption}
        if found:
            tests, test = _texts(backbone.clap, found), _split(reader, "test", backbone, params, progress)
        training = training_windows(reader, backbone, params, cache, progress)
    result, rows = relevance_.relevance(prompts, made, tests, test, training, params.evaluate)
    _write_csv(out / "prompts.csv", rows)
    write_json(out / METRICS, result)
    return result


def novelty(
    generated: Path,
    shards: Path,
    clap: Path,
    params: Params,
    out: Path,
    cache: Path,
    gate: novelty_.Gate | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write out/metrics.json and out/nearest.csv, then raise GateError when the gate does not hold."""
    files = folder_files(generated)
    reader = ShardReader(shards)
    backbone = ClapBackbone(clap, params.audio.sample_rate)
    training = training_windows(reader, backbone, params, cache, progress)
    has_test = any(track.split == "test" for track in reader.tracks)
    held_out = _split(reader, "test", backbone, params, progress) if has_test else None
    made = embed(folder_segments(files, params.audio), backbone, params.audio, "generated", progress)
    result, rows = novelty_.novelty(made, held_out, training, params.evaluate, gate)
    _write_csv(out / "nearest.csv", rows)
    write_json(out / METRICS, result)
    if gate is not None:
        novelty_.check_gate(result, gate)
    return result


def training_windows(
    reader: ShardReader, backbone: ClapBackbone, params: Params, cache: Path, progress: Progress
) -> Embedded:
    """The train split, embedded once for each pair of shards and CLAP; kept below `cache`."""
    key = f"train-{reader.digest}-{backbone.name.split()[-1]}-{params.digest('audio')}"
    return cached(cache / f"{key}.npz", lambda: _split(reader, "train", backbone, params, progress))


def _split(reader: ShardReader, split: str, backbone: Backbone, params: Params, progress: Progress) -> Embedded:
    return embed(shard_segments(reader, split, params.audio), backbone, params.audio, f"{split} split", progress)


def _backbone(params: Params, clap: Path) -> Backbone:
    if params.evaluate.backbone == "clap":
        return ClapBackbone(clap, params.audio.sample_rate)
    return MusicnnBackbone(params.audio.sample_rate)


def _prompts(folder: Path) -> dict[str, str]:
    """Prompt by file stem."""
    if not (folder / MANIFEST).exists():
        raise DataError(
            f"{folder} has no {MANIFEST}, so its prompts are unknown.", "Make clips with: musicldm generate"
        )
    return {Path(row["file"]).stem: str(row["prompt"]) for row in read_manifest(folder)}


def _texts(clap: Clap, captions: dict[str, str]) -> relevance_.Texts:
    vectors = np.concatenate([clap.embed_text([caption]).double().cpu().numpy() for caption in captions.values()])
    return relevance_.Texts(list(captions), list(captions.values()), vectors)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
